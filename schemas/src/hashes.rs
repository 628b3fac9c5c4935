//! BLAKE3 of messages of one block, four at a time: the same hashes as one by one, in less than half the time. What
//! one lane of a register does for one message the others do for others, and nobody waits for the step before.
//!
//! Only what ids need is here: messages of up to [`BLOCK`] bytes, and the first sixteen bytes of their hashes. The
//! crate `blake3` hashes all others, and is the oracle of these.

use wide::u32x4;

/// Bytes of a block, and of the longest message that is hashed here.
pub(crate) const BLOCK: usize = 64;

/// Messages that are hashed at once.
pub(crate) const LANES: usize = 4;

/// A message: filled up with zeros, and its length.
pub(crate) type Message = ([u8; BLOCK], u32);

/// The initial values.
const IV: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The block is the first and the last of its chunk, and its chunk the root.
const FLAGS: u32 = 1 | 2 | 8;

/// Mixes one column or diagonal.
#[inline(always)]
fn mix(v: &mut [u32x4; 16], [a, b, c, d]: [usize; 4], one: u32x4, two: u32x4) {
    let right = |word: u32x4, by: u32| (word >> by) | (word << (32 - by));
    v[a] += v[b] + one;
    v[d] = right(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = right(v[b] ^ v[c], 12);
    v[a] += v[b] + two;
    v[d] = right(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = right(v[b] ^ v[c], 7);
}

/// One round, in which the words of the message come in the order `of`.
#[inline(always)]
fn round(v: &mut [u32x4; 16], words: &[u32x4; 16], of: [usize; 16]) {
    mix(v, [0, 4, 8, 12], words[of[0]], words[of[1]]);
    mix(v, [1, 5, 9, 13], words[of[2]], words[of[3]]);
    mix(v, [2, 6, 10, 14], words[of[4]], words[of[5]]);
    mix(v, [3, 7, 11, 15], words[of[6]], words[of[7]]);
    mix(v, [0, 5, 10, 15], words[of[8]], words[of[9]]);
    mix(v, [1, 6, 11, 12], words[of[10]], words[of[11]]);
    mix(v, [2, 7, 8, 13], words[of[12]], words[of[13]]);
    mix(v, [3, 4, 9, 14], words[of[14]], words[of[15]]);
}

/// The first sixteen bytes of the hash of each message.
pub(crate) fn four(messages: &[Message; LANES]) -> [[u8; 16]; LANES] {
    let word = |place: usize| {
        let of = |lane: usize| {
            let (words, _) = messages[lane].0.as_chunks::<4>();
            u32::from_le_bytes(words[place])
        };
        u32x4::new([of(0), of(1), of(2), of(3)])
    };
    let words: [u32x4; 16] = std::array::from_fn(word);
    let every = u32x4::splat;
    let lengths = u32x4::new(messages.each_ref().map(|message| message.1));
    let mut v = [
        every(IV[0]),
        every(IV[1]),
        every(IV[2]),
        every(IV[3]),
        every(IV[4]),
        every(IV[5]),
        every(IV[6]),
        every(IV[7]),
        every(IV[0]),
        every(IV[1]),
        every(IV[2]),
        every(IV[3]),
        every(0),
        every(0),
        lengths,
        every(FLAGS),
    ];
    round(&mut v, &words, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    round(&mut v, &words, [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]);
    round(&mut v, &words, [3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1]);
    round(&mut v, &words, [10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6]);
    round(&mut v, &words, [12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4]);
    round(&mut v, &words, [9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7]);
    round(&mut v, &words, [11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13]);
    let out: [[u32; LANES]; 4] = std::array::from_fn(|place| (v[place] ^ v[place + 8]).to_array());
    std::array::from_fn(|lane| {
        let mut hash = [0; 16];
        let (words, _) = hash.as_chunks_mut::<4>();
        words.iter_mut().zip(&out).for_each(|(to, word)| *to = word[lane].to_le_bytes());
        hash
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_hashed_as_blake3_hashes_it() {
        let text: Vec<u8> = (0..=255).collect();
        for length in 0..=BLOCK {
            let message = |from: usize| {
                let mut block = [0; BLOCK];
                let length = (length + from) % (BLOCK + 1);
                block[..length].copy_from_slice(&text[from..from + length]);
                (block, length as u32)
            };
            let messages = [0, 7, 100, 33].map(message);
            let hashes = messages.map(|(block, length)| blake3::hash(&block[..length as usize]));
            assert_eq!(four(&messages), hashes.map(|hash| *hash.as_bytes().first_chunk().unwrap()), "{length}");
        }
    }
}
