//! A stand-in for the critical path: what is handed over to it is decided at once, by its own chain, upon
//! what is known of the user now, and appended. It never fails: its own crashes have tests of their own
//! (`pipeline/tests/critical.rs`); here it fills the critical lanes.

use std::sync::Arc;

use bytes::Bytes;
use tidings_operators::harness::chain::Chain;
use tidings_operators::harness::feed::{Lot, RawRecord};
use tidings_operators::harness::output::To;
use tidings_operators::ingest::{Path, Source, SourceKind, ingest};
use tidings_operators::keyed::Known;
use tidings_operators::rules::Rules;
use tidings_pipeline::runtime::critical::wiring;
use tidings_pipeline::runtime::egress::Outlets;
use tidings_schemas::block::Block;
use tidings_schemas::channel::{ChannelSet, Priority};
use tidings_schemas::lane::HEADER_EVENT;
use tidings_schemas::lifecycle::Stage;
use tidings_schemas::profile::Reachability;
use tidings_schemas::topics::Topics;
use tidings_sinks::log::{Append, Record};

use crate::deliver::outside::Outside;
use crate::log::World;
use crate::run::at;

/// The path.
pub struct CriticalPath {
    chain: Chain,
    source: Source,
    rules: Arc<Rules>,
    outlets: Outlets,
    read: usize,
}

impl CriticalPath {
    /// A path that has read nothing yet.
    ///
    /// # Panics
    /// Never: its wiring is constant.
    #[must_use]
    pub fn new(rules: &Arc<Rules>, partitions: &[(String, u32)]) -> Self {
        let source = Source { id: "critical".into(), kind: SourceKind::Events { unknown_to_data: false } };
        let chain = wiring(vec![source.clone()]).chain(Path::Critical).expect("a constant wiring");
        let outlets = Outlets { topics: Topics::default(), partitions: partitions.iter().cloned().collect() };
        Self { chain, source, rules: Arc::clone(rules), outlets, read: 0 }
    }

    /// Decides what has come since.
    pub fn step(&mut self, world: &World, outside: &Outside) {
        let topic = at(&self.outlets.topics.events(Priority::Critical), 0);
        let new: Vec<Record> = {
            let nature = world.nature();
            let Some(records) = nature.history.get(&topic).filter(|records| records.len() > self.read) else { return };
            records[self.read..].to_vec()
        };
        for record in new {
            self.read += 1;
            let Record { offset, key, value, headers, timestamp } = record;
            let raw = RawRecord { offset, key, value, headers, timestamp };
            let lot = Lot { source: 0, partition: 0 };
            let arrived = ingest(&self.source, lot, &raw, &self.rules, Path::Critical);
            let user = String::from_utf8_lossy(raw.key.as_deref().unwrap_or_default()).into_owned();
            let (profile, addresses) = outside.known(&user);
            let mut reachability = Reachability::default();
            for listed in &addresses {
                reachability.apply(&listed.address.address_id, Some(&listed.address));
            }
            let assumed = if reachability.is_empty() { ChannelSet::ALL } else { ChannelSet::default() };
            let known = Known { profile: profile.into(), reachability: reachability.into(), assumed };
            let output = self.chain.single(world.time.truth(), &self.rules, lot, arrived, known);
            let mut appends = Vec::new();
            for said in output.said {
                let to = self.outlets.place(&said);
                let key = (!said.user.is_empty()).then(|| Bytes::copy_from_slice(said.user.as_bytes()));
                let headers = match &said.to {
                    To::HandOver(_, event) => vec![(HEADER_EVENT.to_owned(), Bytes::from(event.to_string()))],
                    To::Lane(..) | To::Dlq(_) => Vec::new(),
                };
                appends.push(Append { to, key, value: Some(said.value), headers });
            }
            let rows = output.rows.decode();
            let block = Block::encode(Stage::Critical, 0, &rows);
            let to = at(&self.outlets.topics.lifecycle(), 0);
            appends.push(Append { to, key: None, value: Some(block.into()), headers: Vec::new() });
            world.trace(|| format!("the critical path says {} records", appends.len()));
            world.append(&appends).expect("the simulated log has the topics");
        }
    }
}
