//! Rows that are encoded already: what one epoch says, from where it is decided to the log.
//!
//! A row is put into bytes once, where it is made, and never read again on its way: workers' rows are
//! joined and ordered by their *places*, and blocks are cut from their bytes. Who wants rows to look at
//! ([`Rows::decode`]) reads them back.

use bytes::Bytes;

use crate::block::{self, Block};
use crate::ids::placement;
use crate::lifecycle::{Row, RowOf, Stage, State, Unit};

/// Rows in one block: a block stays far below the log's largest record.
const BLOCK_ROWS_MAX: usize = 4_096;

/// Where a row stands, and what it is ordered and dealt out by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is about, and that unit's id.
    pub unit: (Unit, [u8; 16]),
    /// The placement of its user.
    pub placement: u64,
    /// Its bytes: first and behind the last.
    pub bytes: (usize, usize),
}

/// Encoded rows.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    buffers: Vec<Bytes>,
    /// Each with the number of its buffer.
    places: Vec<(usize, Place)>,
}

/// Appends `row` to `bytes`; returns its place there.
pub fn put<T: AsRef<str>, S: AsRef<[State]>>(bytes: &mut Vec<u8>, row: &RowOf<T, S>, placement: u64) -> Place {
    let start = bytes.len();
    block::put(bytes, row);
    Place { unit: (row.unit, row.unit_id()), placement, bytes: (start, bytes.len()) }
}

/// Reads back what [`put`] wrote.
///
/// # Panics
/// Never: what [`put`] wrote can be read.
#[must_use]
pub fn decode(bytes: &[u8]) -> Row {
    block::decode_row(bytes).expect("a row that `put` wrote")
}

impl Rows {
    /// The rows that [`put`] wrote into `bytes`, with the places that it gave.
    #[must_use]
    pub fn new(bytes: Bytes, places: impl Iterator<Item = Place>) -> Self {
        Self { buffers: vec![bytes], places: places.map(|place| (0, place)).collect() }
    }

    /// These rows, encoded.
    #[must_use]
    pub fn of(rows: &[Row]) -> Self {
        let mut bytes = Vec::new();
        let places: Vec<_> = rows.iter().map(|row| put(&mut bytes, row, placement(&row.user))).collect();
        Self::new(bytes.into(), places.into_iter())
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// What they take in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(Bytes::len).sum::<usize>() + size_of_val(&self.places[..])
    }

    /// Adds other rows behind these.
    pub fn append(&mut self, other: Self) {
        let before = self.buffers.len();
        self.buffers.extend(other.buffers);
        self.places.extend(other.places.into_iter().map(|(buffer, place)| (before + buffer, place)));
    }

    /// Puts them in the order in which two runs are compared: by unit. The sort finds what is in order
    /// already, so that this merges what workers have ordered.
    pub fn sort(&mut self) {
        self.places.sort_by_key(|(_, place)| place.unit);
    }

    fn of_place(&self, (buffer, place): &(usize, Place)) -> &[u8] {
        let buffer = self.buffers.get(*buffer).map_or(&[][..], |buffer| buffer);
        buffer.get(place.bytes.0..place.bytes.1).unwrap_or_default()
    }

    /// Each row's bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.places.iter().map(|place| self.of_place(place))
    }

    /// Each row's place and bytes, in order.
    pub fn each(&self) -> impl Iterator<Item = (&Place, &[u8])> {
        self.places.iter().map(|place| (&place.1, self.of_place(place)))
    }

    /// The blocks of these rows by partition, of `partitions`: none larger than the log takes.
    #[must_use]
    pub fn blocks(&self, stage: Stage, epoch: u64, partitions: u32) -> Vec<(u32, Bytes)> {
        let mut dealt: Vec<Vec<&(usize, Place)>> = (0..partitions.max(1)).map(|_| Vec::new()).collect();
        for place in &self.places {
            dealt[(place.1.placement % u64::from(partitions.max(1))) as usize].push(place);
        }
        let block = |places: &[&(usize, Place)]| {
            let bytes = places.iter().map(|(_, place)| place.bytes.1 - place.bytes.0).sum();
            let rows = places.iter().map(|place| self.of_place(place));
            Bytes::from(Block::of_encoded(stage, epoch, places.len() as u64, bytes, rows))
        };
        let of_partition = |(partition, places): (u32, &Vec<_>)| -> Vec<(u32, Bytes)> {
            places.chunks(BLOCK_ROWS_MAX).map(|places| (partition, block(places))).collect()
        };
        (0..).zip(&dealt).flat_map(of_partition).collect()
    }

    /// The rows, read back: for who looks at them.
    ///
    /// # Panics
    /// Never: what [`put`] wrote can be read.
    #[must_use]
    pub fn decode(&self) -> Vec<Row> {
        self.iter().map(decode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EventId, lane_partition};

    fn row(number: u64) -> Row {
        Row { event: EventId::new("high", 0, number), user: format!("u{number}"), ..Row::default() }.sealed()
    }

    #[test]
    fn what_two_workers_say_becomes_the_same_blocks_as_what_one_says() {
        let rows: Vec<_> = (0..100).map(row).collect();
        let mut one = Rows::of(&rows);
        let (even, odd): (Vec<_>, Vec<_>) = rows.iter().cloned().partition(|row| row.user.len() % 2 == 0);
        let mut two = Rows::of(&odd);
        two.append(Rows::of(&even));
        one.sort();
        two.sort();
        assert_eq!(one.decode(), two.decode());
        let blocks = one.blocks(Stage::Decide, 7, 4);
        assert_eq!(blocks, two.blocks(Stage::Decide, 7, 4));
        let mut sorted = rows;
        sorted.sort_by_key(|row| row.event);
        for (partition, block) in blocks {
            let of_partition: Vec<_> =
                sorted.iter().filter(|row| lane_partition(&row.user, 4) == partition).cloned().collect();
            assert_eq!(block, Block::encode(Stage::Decide, 7, &of_partition));
        }
    }

    #[test]
    fn no_rows_are_no_blocks_and_many_are_more_than_one() {
        assert!(Rows::default().blocks(Stage::Decide, 1, 4).is_empty());
        let rows: Vec<_> = (0..BLOCK_ROWS_MAX as u64 + 1).map(row).collect();
        let blocks = Rows::of(&rows).blocks(Stage::Critical, 0, 1);
        let counts = blocks.iter().map(|(_, block)| Block::decode_header(block).map(|block| block.header.rows));
        assert_eq!(counts.collect::<Result<Vec<_>, _>>(), Ok(vec![BLOCK_ROWS_MAX as u64, 1]));
    }
}
