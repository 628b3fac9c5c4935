//! The chain: every operator of the decide stage on one worker, run through one epoch at a time, in
//! canonical order.
//!
//! Rule 3 of determinism in this file's terms. Per user and epoch:
//! 1. side inputs are applied, and each operator, from the top down, is told of each changed user;
//!    what that sets free travels down with the wave (`Chain::side_inputs`);
//! 2. due timers fire as a wave down the chain: each operator its own, then what came from above
//!    (`Chain::timers`);
//! 3. records, block by block in the order (source, partition, offset), in batches that travel down
//!    the whole chain before the next one starts (`Chain::records`). A batch is fuel: its size
//!    decides nothing, because every user's records meet every operator in the same order.
//!
//! Rows of one unit within the epoch become one row (`drafts`).

use std::sync::Arc;

use bytes::Bytes;
use tidings_schemas::channel::Priority;
use tidings_schemas::ids::{key_group, placement};
use tidings_schemas::time::Instant;

use super::drafts::Drafts;
use super::feed::Lot;
use super::ordinal::Ordinal;
use super::output::{EpochOutput, Said, To};
use super::profiles::{PROFILES, Profiles};
use super::stage::{Env, Flow, Outbox, Stage};
use super::table::{Image, StateKey};
use crate::deliberate::{self, Bug};
use crate::ingest::{Arrived, Body, ItemFacts, Path};
use crate::keyed::{Cause, Known, PORT_CRITICAL, PORT_HIGH};
use crate::lanes;
use crate::rules::Rules;
use crate::when::When;

/// Records per batch. Between sixteen and a whole epoch it makes no difference to speed (measured);
/// it bounds what is in flight between operators.
const BATCH: usize = 128;

/// The epoch that rows of the critical path name: none.
const NO_EPOCH: u64 = 0;

/// Where an operator's output goes: another operator's input port, or the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Input `port` of the operator at this place of the chain.
    Operator(usize, u8),
    /// The lanes.
    Lanes,
}

/// One operator of the chain. Operators stand in topological order.
pub(crate) struct Node {
    pub(crate) id: Arc<str>,
    pub(crate) when: Option<When>,
    pub(crate) stage: Box<dyn Stage>,
    pub(crate) targets: Vec<Target>,
    /// Whether items of one record can reach it on several ways, so that they must be put in order.
    pub(crate) joins: bool,
}

/// Records of one partition for one worker in one epoch, in offset order.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Block {
    /// Whose.
    pub lot: Lot,
    /// The worker that owns the users.
    pub target: u32,
    /// What arrived.
    pub records: Vec<Arrived>,
}

/// All operators on one worker.
pub struct Chain {
    nodes: Vec<Node>,
    /// Where each source's items go.
    sources: Vec<Vec<Target>>,
    profiles: Profiles,
    rules: Option<[u8; 32]>,
    path: Path,
    drafts: Drafts,
}

impl Chain {
    pub(crate) fn new(nodes: Vec<Node>, sources: Vec<Vec<Target>>, path: Path) -> Self {
        Self { nodes, sources, profiles: Profiles::default(), rules: None, path, drafts: Drafts::default() }
    }

    /// Puts images of a checkpoint back; `mine` says which of them this worker owns. `rules` names
    /// the rules under which they were written.
    ///
    /// # Errors
    /// When an image belongs to no operator of this chain, or its bytes do not fit.
    pub fn restore<'a>(
        &mut self,
        images: impl Iterator<Item = (&'a (Arc<str>, StateKey), &'a Image)>,
        rules: [u8; 32],
    ) -> Result<(), RestoreError> {
        self.rules = Some(rules);
        for ((operator, key), image) in images {
            let fits =
                |problem| RestoreError::Bytes { operator: operator.to_string(), user: key.user.to_string(), problem };
            if **operator == *PROFILES {
                self.profiles.restore(key, image).map_err(fits)?;
                continue;
            }
            let node = self.nodes.iter_mut().find(|node| node.id == *operator);
            let node = node.ok_or_else(|| RestoreError::NoOperator(operator.to_string()))?;
            node.stage.restore(key, image).map_err(fits)?;
        }
        Ok(())
    }

    /// The ids of the operators, from the top down.
    pub fn operators(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().map(|node| &node.id)
    }

    /// The earliest deadline of all operators.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.nodes.iter().filter_map(|node| node.stage.next_timer()).min()
    }

    /// Runs one epoch. `blocks` are this worker's, one partition's in the order in which they were
    /// sent; partitions in any order.
    pub fn epoch(&mut self, epoch: u64, now: Instant, rules: &Rules, mut blocks: Vec<Block>) -> EpochOutput {
        let output = EpochOutput { epoch, now, ..EpochOutput::default() };
        let mut drafts = std::mem::take(&mut self.drafts);
        drafts.begin(epoch, now, self.path);
        let mut run = Run { epoch, now, rules, path: self.path, output, drafts, values: Vec::new(), ends: Vec::new() };
        if !deliberate::has(Bug::ArrivalOrder) {
            blocks.sort_by_key(|block| block.lot);
        }
        let (side, records): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.is_side_input());
        self.side_inputs(&mut run, side);
        self.timers(&mut run);
        self.records(&mut run, records);
        let (mut output, drafts) = run.finish();
        self.drafts = drafts;
        output.next_timer = self.next_timer();
        for node in &mut self.nodes {
            let id = Arc::clone(&node.id);
            node.stage.drain_dirty(&mut |key, image| drop(output.delta.insert((Arc::clone(&id), key), image)));
        }
        let id: Arc<str> = Arc::from(PROFILES);
        self.profiles.drain_dirty(|key, image| drop(output.delta.insert((Arc::clone(&id), key), image)));
        output
    }

    /// Runs one record by itself, outside of all epochs, upon what the caller knows of its user: how
    /// the critical path decides. Its operators keep nothing, so that records don't see each other.
    pub fn single(&mut self, now: Instant, rules: &Rules, lot: Lot, arrived: Arrived, known: Known) -> EpochOutput {
        if let Body::Item(item) = &arrived.body {
            self.profiles = Profiles::only(&item.user, known);
        }
        let output = self.epoch(NO_EPOCH, now, rules, vec![Block { lot, target: 0, records: vec![arrived] }]);
        self.profiles = Profiles::default();
        output
    }

    fn side_inputs(&mut self, run: &mut Run<'_>, blocks: Vec<Block>) {
        for block in blocks {
            for arrived in block.records {
                match arrived.body {
                    Body::Profile { user, profile } => self.profiles.set_profile(&user, *profile),
                    Body::Address { user, address_id, address } => {
                        self.profiles.set_address(&user, &address_id, address.as_deref());
                    }
                    Body::Rejected(rejected) => run.reject(Ordinal::record(block.lot, arrived.offset), &rejected),
                    Body::Item(_) => {}
                }
            }
        }
        let changed = self.profiles.changed();
        let rules_changed = self.rules.is_some_and(|hash| hash != run.rules.hash);
        self.rules = Some(run.rules.hash);
        if !changed.is_empty() {
            self.wave(run, Vec::new(), |stage, env, out| stage.on_profiles(env, &changed, out));
        }
        if rules_changed {
            self.wave(run, Vec::new(), |stage, env, out| stage.on_rules(env, out));
        }
    }

    fn timers(&mut self, run: &mut Run<'_>) {
        if self.next_timer().is_some_and(|at| at <= run.now) {
            self.wave(run, Vec::new(), |stage, env, out| stage.on_timers(env, out));
        }
    }

    fn records(&mut self, run: &mut Run<'_>, blocks: Vec<Block>) {
        let mut batch = Vec::with_capacity(BATCH);
        for block in blocks {
            let targets = self.sources.get(usize::from(block.lot.source)).cloned().unwrap_or_default();
            for arrived in block.records {
                let ordinal = Ordinal::record(block.lot, arrived.offset);
                match arrived.body {
                    Body::Item(item) => {
                        let cause = Cause::Event(arrived.event);
                        batch.push((targets.clone(), Flow { ordinal, cause, port: 0, item: *item }));
                    }
                    Body::Rejected(rejected) => run.reject(ordinal, &rejected),
                    Body::Profile { .. } | Body::Address { .. } => {}
                }
                if batch.len() == BATCH {
                    self.wave(run, std::mem::take(&mut batch), |_, _, _| {});
                }
            }
        }
        if !batch.is_empty() {
            self.wave(run, batch, |_, _, _| {});
        }
    }

    /// One wave down the chain: each operator first does `own`, then takes in what came from above.
    fn wave(
        &mut self,
        run: &mut Run<'_>,
        arrivals: Vec<(Vec<Target>, Flow)>,
        mut own: impl FnMut(&mut dyn Stage, &Env<'_>, &mut Outbox<'_>),
    ) {
        let mut inboxes: Vec<Vec<Flow>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for (targets, flow) in arrivals {
            deliver(run, &self.profiles, &targets, flow, &mut inboxes);
        }
        for place in 0..self.nodes.len() {
            let node = &mut self.nodes[place];
            let env =
                Env { now: run.now, epoch: run.epoch, rules: run.rules, profiles: &self.profiles, path: self.path };
            let mut out = Outbox { flows: Vec::new(), drafts: &mut run.drafts };
            own(&mut *node.stage, &env, &mut out);
            let own_flows = std::mem::take(&mut out.flows);
            let mut inbox = std::mem::take(&mut inboxes[place]);
            if node.joins {
                // Root ordinal first, then port, then emission: all of it is in the ordinal but the
                // port, which is where the ways differ.
                inbox.sort_by(|one, two| (&one.ordinal, one.port).cmp(&(&two.ordinal, two.port)));
            }
            if let Some(when) = &node.when {
                let holds = |flow: &Flow| flow.item.is_control() || when.holds(&ItemFacts::new(&flow.item));
                let (taken, passed): (Vec<_>, Vec<_>) = inbox.into_iter().partition(holds);
                if !taken.is_empty() {
                    node.stage.on_events(&env, taken, &mut out);
                }
                // What the operator is not for passes untouched, in its place.
                let merged = !out.flows.is_empty();
                out.flows.extend(passed.into_iter().map(|flow| Flow {
                    ordinal: flow.ordinal.hop(place, 1, 0),
                    port: 0,
                    ..flow
                }));
                if merged {
                    out.flows.sort_by(|one, two| one.ordinal.cmp(&two.ordinal));
                }
            } else if !inbox.is_empty() {
                node.stage.on_events(&env, inbox, &mut out);
            }
            let flows = out.flows;
            let targets = std::mem::take(&mut self.nodes[place].targets);
            for flow in own_flows.into_iter().chain(flows) {
                deliver(run, &self.profiles, &targets, flow, &mut inboxes);
            }
            self.nodes[place].targets = targets;
        }
        run.drafts.settle();
    }
}

impl Block {
    fn is_side_input(&self) -> bool {
        self.records.iter().any(|arrived| matches!(arrived.body, Body::Profile { .. } | Body::Address { .. }))
    }
}

/// Hands a flow to every target, the last one without a copy.
fn deliver(run: &mut Run<'_>, profiles: &Profiles, targets: &[Target], flow: Flow, inboxes: &mut [Vec<Flow>]) {
    if matches!(flow.port, PORT_CRITICAL | PORT_HIGH) {
        return hand(run, profiles, Target::Lanes, flow, inboxes);
    }
    let Some((last, others)) = targets.split_last() else { return };
    for target in others {
        hand(run, profiles, *target, flow.clone(), inboxes);
    }
    hand(run, profiles, *last, flow, inboxes);
}

fn hand(run: &mut Run<'_>, profiles: &Profiles, target: Target, flow: Flow, inboxes: &mut [Vec<Flow>]) {
    match target {
        Target::Operator(place, port) => inboxes[place].push(Flow { port, ..flow }),
        Target::Lanes => {
            let known = profiles.get(&flow.item.user);
            run.end(flow, known);
        }
    }
}

/// One epoch under way.
struct Run<'a> {
    epoch: u64,
    now: Instant,
    rules: &'a Rules,
    path: Path,
    output: EpochOutput,
    drafts: Drafts,
    /// The values of all outputs, one after the other, and where each ends.
    values: Vec<u8>,
    ends: Vec<usize>,
}

impl Run<'_> {
    /// The chain's end: an item becomes a lane record, a hand-over, or a row.
    fn end(&mut self, flow: Flow, known: &Known) {
        let Flow { ordinal, cause, item, port } = flow;
        let to = match port {
            PORT_CRITICAL => Some(lanes::hand_over(&item, Priority::Critical, &mut self.values)),
            PORT_HIGH => Some(lanes::hand_over(&item, Priority::High, &mut self.values)),
            _ => {
                let mut end = lanes::End {
                    now: self.now,
                    known,
                    rules: self.rules,
                    cause: &cause,
                    ordinal: &ordinal,
                    drafts: &mut self.drafts,
                };
                end.of(&item, &mut self.values)
            }
        };
        if let Some(to) = to {
            self.say(ordinal, to, item.user);
        }
    }

    /// A record that is no event: to the dead letters, with a row.
    fn reject(&mut self, ordinal: Ordinal, rejected: &crate::ingest::Rejected) {
        rejected.record(&ordinal, &mut self.drafts);
        self.values.extend_from_slice(&rejected.letter(self.path));
        self.say(ordinal, To::Dlq(rejected.reason), Arc::clone(&rejected.user));
    }

    /// Notes where the value that was just written goes.
    fn say(&mut self, ordinal: Ordinal, to: To, user: Arc<str>) {
        let group = key_group(placement(&user));
        let said = Said { group, ordinal, to, user, value: Bytes::new() };
        let start = self.ends.last().copied().unwrap_or(0);
        self.output.digest = self.output.digest.wrapping_add(said.digest(&self.values[start..]));
        self.ends.push(self.values.len());
        self.output.said.push(said);
    }

    /// What the epoch says, and the drafts' buffers for the next one.
    fn finish(self) -> (EpochOutput, Drafts) {
        let Self { mut output, mut drafts, values, ends, .. } = self;
        let values = Bytes::from(values);
        let mut start = 0;
        for (said, end) in output.said.iter_mut().zip(ends) {
            said.value = values.slice(start..end);
            start = end;
        }
        let (rows, digest) = drafts.finish();
        output.rows = rows;
        output.digest = output.digest.wrapping_add(digest);
        (output, drafts)
    }
}

/// Why a checkpoint does not fit the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The checkpoint holds state of an operator that the topology no longer has.
    #[error(
        "the checkpoint holds state of operator `{0}`, which the topology does not have: put it back, or start with `--drop-state {0}`"
    )]
    NoOperator(String),
    /// The bytes do not fit.
    #[error("state of operator `{operator}` for user `{user}`: {problem}")]
    Bytes {
        /// The operator.
        operator: String,
        /// The user.
        user: String,
        /// What is wrong.
        problem: String,
    },
}

impl Chain {
    /// What is known of a user: for tests and `state`.
    #[must_use]
    pub fn known(&self, user: &str) -> &Known {
        self.profiles.get(user)
    }
}
