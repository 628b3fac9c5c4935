//! Lane records, hand-overs and dead letters of one epoch under construction: values one after the other
//! in one buffer, of which each output is handed a slice.

use std::sync::Arc;

use tidings_schemas::ids::KeyGroup;
use tidings_schemas::lane::LaneTexts;

use super::buffers::Buffers;
use super::ordinal::Ordinal;
use super::output::{Said, To};
use super::spread::Spread;

/// What one worker says in an epoch.
#[derive(Debug, Default)]
pub(crate) struct Saying {
    /// The values. Whoever says something appends it, and then says where it goes.
    pub(crate) values: Vec<u8>,
    buffers: Buffers,
    /// Texts that values repeat.
    pub(crate) texts: LaneTexts,
    outputs: Vec<Option<Output>>,
    places: Vec<Place>,
    spread: Spread<Place>,
    digest: u64,
}

#[derive(Debug)]
struct Output {
    ordinal: Ordinal,
    to: To,
    user: Arc<str>,
    start: usize,
    end: usize,
}

/// What outputs are ordered by: small, because outputs are large. Nearly always the ordinal's beginning
/// decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    group: KeyGroup,
    beginning: u128,
    output: usize,
}

impl Saying {
    /// Says where the value that was just appended goes.
    pub(crate) fn say(&mut self, ordinal: Ordinal, to: To, group: KeyGroup, user: Arc<str>) {
        let start = self.outputs.last().and_then(Option::as_ref).map_or(0, |output| output.end);
        let end = self.values.len();
        self.digest = self.digest.wrapping_add(to.digest(&ordinal, &user, &self.values[start..end]));
        let mut beginning = [0; 16];
        let known = ordinal.bytes().len().min(16);
        beginning[..known].copy_from_slice(&ordinal.bytes()[..known]);
        let beginning = u128::from_be_bytes(beginning);
        self.places.push(Place { group, beginning, output: self.outputs.len() });
        self.outputs.push(Some(Output { ordinal, to, user, start, end }));
    }

    /// Ends the epoch: its outputs by (key group, ordinal), and the sum of their digests.
    pub(crate) fn finish(&mut self) -> (Vec<Said>, u64) {
        let values = self.buffers.exchange(&mut self.values);
        let outputs = &self.outputs;
        let ordinal = |place: &Place| outputs[place.output].as_ref().map(|output| &output.ordinal);
        let by_place = |one: &Place, two: &Place| {
            let beginning = (one.group, one.beginning).cmp(&(two.group, two.beginning));
            beginning.then_with(|| ordinal(one).cmp(&ordinal(two)).then(one.output.cmp(&two.output)))
        };
        self.spread.sort(&mut self.places, |place| usize::from(place.group.0), by_place);
        let outputs = &mut self.outputs;
        let mut said = Vec::with_capacity(outputs.len());
        said.extend(self.places.drain(..).filter_map(|Place { group, output, .. }| {
            let Output { ordinal, to, user, start, end } = outputs[output].take()?;
            Some(Said { group, ordinal, to, user, value: values.slice(start..end) })
        }));
        self.outputs.clear();
        (said, std::mem::take(&mut self.digest))
    }
}
