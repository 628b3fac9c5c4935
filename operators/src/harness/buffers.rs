//! Buffers that go out with an epoch, and are filled again once nobody looks at them any more. Memory that
//! is new has to be cleared by the system first, which takes longer than filling it.

use std::collections::VecDeque;

use bytes::Bytes;

/// Buffers of one kind that are remembered: those of the epochs that are open or wait to be written, and, of
/// images, of all that waits for the next checkpoint: five seconds of the shortest epochs. Of more, the oldest is
/// left to whoever still has it.
const REMEMBERED: usize = 256;

/// What went out.
#[derive(Debug, Default)]
pub(crate) struct Buffers(VecDeque<Bytes>);

impl Buffers {
    /// What is in `full` goes out; an empty buffer with as much room takes its place.
    pub(crate) fn exchange(&mut self, full: &mut Vec<u8>) -> Bytes {
        if full.is_empty() {
            return Bytes::new();
        }
        let room = full.len() + full.len() / 4;
        // One that is too large goes: what waits must not hold more memory than three times what is in it.
        let fits = |empty: &Vec<u8>| (full.len()..=2 * room).contains(&empty.capacity());
        let empty = self.back().filter(fits).unwrap_or_else(|| Vec::with_capacity(room));
        let out = Bytes::from(std::mem::replace(full, empty));
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(out.clone());
        out
    }

    /// One that came back.
    fn back(&mut self) -> Option<Vec<u8>> {
        let free = self.0.iter().position(Bytes::is_unique)?;
        let mut bytes = self.0.remove(free)?.try_into_mut().ok()?;
        bytes.clear();
        Some(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_filled_again_when_nobody_looks_at_it() {
        let (mut buffers, mut full) = (Buffers::default(), b"one".to_vec());
        let one = buffers.exchange(&mut full);
        let memory = one.as_ptr();
        full.extend_from_slice(b"two");
        let two = buffers.exchange(&mut full);
        assert_eq!((&one[..], &two[..], full.len()), (&b"one"[..], &b"two"[..], 0));
        assert_ne!(full.as_ptr(), memory);
        drop(one);
        full.extend_from_slice(b"abc");
        let three = buffers.exchange(&mut full);
        assert_eq!((&three[..], full.len(), full.as_ptr()), (&b"abc"[..], 0, memory));
    }

    #[test]
    fn a_buffer_of_a_flood_is_not_filled_with_a_little() {
        let (mut buffers, mut full) = (Buffers::default(), vec![0; 100_000]);
        buffers.exchange(&mut full);
        for _ in 0..3 {
            full.resize(100, 0);
            buffers.exchange(&mut full);
        }
        assert!(full.capacity() < 1_000);
    }
}
