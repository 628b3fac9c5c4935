//! Byte strings that keep their place, densely: how names and entries lie between the epochs that touch them.
//!
//! A string lies in a *cell* of the next larger size. Cells of one size share chunks of memory. Sizes are four bytes
//! apart, beyond 64 bytes a sixteenth of the last doubling: so hardly anything lies there for nothing, and no string
//! has a header, a pointer or an allocation of its own. In return it must say itself where it ends, because a cell
//! does not.
//!
//! A cell that is given back is filled again, and a chunk whose cells are all free becomes one of whatever size is
//! wanted next: strings that grow leave nothing behind. That chunks become free is helped by filling the first that
//! has room, and by strings of one time lying together.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ops::Range;

use super::slab::{Place, Slab};

/// Bytes of a chunk: growing clears one chunk, and a size of which there is one string costs one.
const CHUNK_BYTES: usize = 1 << 15;

/// The smallest cell: so many fit into a chunk that their numbers have twelve bits.
const CELL_BYTES_MIN: usize = 8;
const CELL_BITS: u32 = (CHUNK_BYTES / CELL_BYTES_MIN).ilog2();

/// The largest cell. A longer string has an allocation of its own, beside which a header is little.
const CELL_BYTES_MAX: usize = 2048;

/// Chunks that can be numbered: eight gigabytes of one operator's state on one worker. What comes then has an
/// allocation of its own.
const CHUNKS_MAX: usize = 1 << (LONG.trailing_zeros() - CELL_BITS);

/// Marks the number of a string that has an allocation of its own.
const LONG: u32 = 1 << 30;

/// Where a string lies: 31 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot(NonZeroU32);

enum Lies {
    InChunk(usize, usize),
    Alone(Place),
}

impl Spot {
    const fn of(number: u32) -> Self {
        Self(NonZeroU32::MIN.saturating_add(number))
    }

    fn lies(self) -> Lies {
        let number = self.0.get() - 1;
        if number & LONG == 0 {
            Lies::InChunk((number >> CELL_BITS) as usize, number as usize & ((1 << CELL_BITS) - 1))
        } else {
            Lies::Alone(number & !LONG)
        }
    }

    /// As a number below 2³¹.
    pub(crate) const fn number(self) -> NonZeroU32 {
        self.0
    }

    /// The spot of [this number](Self::number).
    pub(crate) const fn numbered(number: NonZeroU32) -> Self {
        Self(number)
    }
}

struct Chunk {
    cell_bytes: usize,
    bytes: Box<[u8]>,
    /// How many cells are filled.
    filled: u16,
    /// How many were filled ever; those beyond are free.
    begun: u16,
    /// A free cell, if one was given back: in its first two bytes it names the next, and the last one itself.
    free: Option<u16>,
}

impl Chunk {
    fn cells(&self) -> usize {
        CHUNK_BYTES / self.cell_bytes
    }

    fn cell(&self, cell: usize) -> Range<usize> {
        cell * self.cell_bytes..(cell + 1) * self.cell_bytes
    }

    fn is_full(&self) -> bool {
        usize::from(self.filled) == self.cells()
    }

    /// All its cells are free, and of this size.
    fn begin(&mut self, cell_bytes: usize) {
        (self.cell_bytes, self.filled, self.begun, self.free) = (cell_bytes, 0, 0, None);
    }

    /// Takes a free cell, of which there is one.
    fn fill(&mut self) -> u16 {
        self.filled += 1;
        let Some(cell) = self.free else {
            self.begun += 1;
            return self.begun - 1;
        };
        let next = self.bytes[self.cell(cell.into())].first_chunk().map_or(cell, |next| u16::from_le_bytes(*next));
        self.free = Some(next).filter(|next| *next != cell);
        cell
    }

    fn empty(&mut self, cell: u16) {
        self.filled -= 1;
        let (place, next) = (self.cell(cell.into()), self.free.unwrap_or(cell));
        self.bytes[place][..2].copy_from_slice(&next.to_le_bytes());
        self.free = Some(cell);
    }
}

#[derive(Default)]
pub(crate) struct Shelves {
    chunks: Vec<Chunk>,
    /// By size: chunks that have free cells.
    open: Vec<BTreeSet<u32>>,
    /// Chunks of which all cells are free.
    vacant: Vec<u32>,
    long: Slab<Box<[u8]>>,
}

/// The number of the size into which so many bytes fit, and that size.
const fn size_of_cell(length: usize) -> (usize, usize) {
    let last = if length < CELL_BYTES_MIN { CELL_BYTES_MIN - 1 } else { length - 1 };
    let shift = if last < 64 { 2 } else { last.ilog2() as usize - 4 };
    let units = (last >> shift) + 1;
    ((shift - 2) * 16 + units, units << shift)
}

fn copy(cell: &mut [u8], parts: &[&[u8]]) {
    let mut start = 0;
    for part in parts {
        cell[start..start + part.len()].copy_from_slice(part);
        start += part.len();
    }
}

impl Shelves {
    /// The bytes of the cell: the string, and whatever lies behind it.
    #[inline]
    pub(crate) fn get(&self, spot: Spot) -> &[u8] {
        let bytes = match spot.lies() {
            Lies::InChunk(chunk, cell) => self.chunks.get(chunk).and_then(|chunk| chunk.bytes.get(chunk.cell(cell))),
            Lies::Alone(place) => self.long.get(place).map(|bytes| &**bytes),
        };
        bytes.unwrap_or_default()
    }

    /// The same, to be changed where it lies.
    pub(crate) fn get_mut(&mut self, spot: Spot) -> &mut [u8] {
        let bytes = match spot.lies() {
            Lies::InChunk(chunk, cell) => self.chunks.get_mut(chunk).and_then(|chunk| {
                let cell = chunk.cell(cell);
                chunk.bytes.get_mut(cell)
            }),
            Lies::Alone(place) => self.long.get_mut(place).map(|bytes| &mut **bytes),
        };
        bytes.unwrap_or_default()
    }

    /// Lays a string down, of which these are the parts.
    pub(crate) fn put(&mut self, parts: &[&[u8]]) -> Spot {
        let length = parts.iter().map(|part| part.len()).sum();
        match self.cell_for(length) {
            Some(spot) => {
                copy(self.get_mut(spot), parts);
                spot
            }
            None => Spot::of(LONG | self.long.insert(parts.concat().into())),
        }
    }

    /// Lays another string down in place of the one at `spot`, if it can where that lay.
    pub(crate) fn change(&mut self, spot: Spot, parts: &[&[u8]]) -> Spot {
        let wanted = size_of_cell(parts.iter().map(|part| part.len()).sum()).1;
        let cell = self.get_mut(spot);
        if cell.len() == wanted && wanted <= CELL_BYTES_MAX {
            copy(cell, parts);
            return spot;
        }
        self.free(spot);
        self.put(parts)
    }

    /// The cell may be filled again.
    pub(crate) fn free(&mut self, spot: Spot) {
        let (number, cell) = match spot.lies() {
            Lies::InChunk(number, cell) => (number, cell),
            Lies::Alone(place) => return drop(self.long.remove(place)),
        };
        let Some(chunk) = self.chunks.get_mut(number) else { return };
        let open = &mut self.open[size_of_cell(chunk.cell_bytes).0];
        if chunk.is_full() {
            open.insert(number as u32);
        }
        chunk.empty(cell as u16);
        if chunk.filled == 0 {
            open.remove(&(number as u32));
            self.vacant.push(number as u32);
        }
    }

    /// A cell for so many bytes, unless they are too many.
    fn cell_for(&mut self, length: usize) -> Option<Spot> {
        let (size, cell_bytes) = size_of_cell(length);
        if cell_bytes > CELL_BYTES_MAX {
            return None;
        }
        if self.open.len() <= size {
            self.open.resize_with(size + 1, BTreeSet::new);
        }
        let open = &mut self.open[size];
        let number = match open.first() {
            Some(number) => *number,
            None => {
                let number = match self.vacant.pop() {
                    Some(number) => number,
                    None if self.chunks.len() == CHUNKS_MAX => return None,
                    None => {
                        let bytes = vec![0; CHUNK_BYTES].into();
                        self.chunks.push(Chunk { cell_bytes, bytes, filled: 0, begun: 0, free: None });
                        (self.chunks.len() - 1) as u32
                    }
                };
                open.insert(number);
                self.chunks[number as usize].begin(cell_bytes);
                number
            }
        };
        let chunk = &mut self.chunks[number as usize];
        let cell = chunk.fill();
        if chunk.is_full() {
            open.remove(&number);
        }
        Some(Spot::of(number << CELL_BITS | u32::from(cell)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_string_fits_into_its_cell_and_wastes_little_of_it() {
        let (mut before, mut sizes) = (0, 0);
        for length in 0..=CELL_BYTES_MAX {
            let (number, cell) = size_of_cell(length);
            assert!(cell >= length && (length < CELL_BYTES_MIN || cell < length + 4.max(length / 16 + 1)), "{length}");
            assert_eq!(size_of_cell(cell), (number, cell));
            assert!(number == before || (number > before && cell > sizes), "{length}");
            (before, sizes) = (number, cell);
        }
        assert!(size_of_cell(CELL_BYTES_MAX + 1).1 > CELL_BYTES_MAX);
    }

    #[test]
    fn strings_of_all_lengths_keep_their_places_and_cells_are_filled_again() {
        let mut shelves = Shelves::default();
        let string = |number: usize| vec![number as u8; number * 7 % 2300];
        let mut spots: Vec<_> = (0..3000).map(|number| shelves.put(&[&string(number)])).collect();
        let there = |shelves: &Shelves, spot: Spot, number: usize| shelves.get(spot).starts_with(&string(number));
        assert!(spots.iter().enumerate().all(|(number, spot)| there(&shelves, *spot, number)));
        let chunks = shelves.chunks.len();
        for round in 1..4 {
            for (number, spot) in spots.iter_mut().enumerate() {
                *spot = shelves.change(*spot, &[&string(number + round)]);
            }
            assert!(spots.iter().enumerate().all(|(number, spot)| there(&shelves, *spot, number + round)));
        }
        spots.drain(..).for_each(|spot| shelves.free(spot));
        assert_eq!(shelves.vacant.len(), shelves.chunks.len());
        spots.extend((0..3000).map(|number| shelves.put(&[&string(number)])));
        assert!(spots.iter().enumerate().all(|(number, spot)| there(&shelves, *spot, number)));
        assert_eq!(shelves.chunks.len(), chunks);
        assert_eq!(shelves.long.len(), (0..3000).filter(|number| string(*number).len() > CELL_BYTES_MAX).count());
    }

    #[test]
    fn strings_that_all_grow_leave_their_chunks_to_those_that_they_become() {
        let mut shelves = Shelves::default();
        let mut spots: Vec<_> = (0..20_000).map(|_| shelves.put(&[&[1; 20]])).collect();
        for length in [30, 40, 50] {
            spots.iter_mut().for_each(|spot| *spot = shelves.change(*spot, &[&[2; 10], &vec![2; length - 10]]));
            let needed = 20_000 / (CHUNK_BYTES / size_of_cell(length).1) + 1;
            assert!(shelves.chunks.len() <= needed + 3, "{} chunks for {length} bytes", shelves.chunks.len());
        }
    }
}
