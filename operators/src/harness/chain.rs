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

use tidings_schemas::channel::Priority;
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::ids::{key_group, placement};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::aside::{Crumbs, PORT_ASIDE, Skip, set_aside, skip_at};
use super::delta::{Delta, Key};
use super::drafts::Drafts;
use super::dropped::{DropCount, Dropped, MayDrop};
use super::feed::Lot;
use super::ordinal::Ordinal;
use super::output::{EpochOutput, To};
use super::profiles::{PROFILES, Profiles};
use super::pulse::Pulse;
use super::saying::Saying;
use super::stage::{Env, Flow, Outbox, Stage};
use super::table::{Image, UserKey};
use crate::ingest::{Arrived, Body, Path};
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
    /// Whether items can reach it on several ways, so that they must be put in order.
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
    /// Room for what an epoch says: it is used again and again.
    drafts: Drafts,
    saying: Saying,
    dropped: Dropped,
    /// Calls that the next epoch does not make.
    skips: Arc<[Skip]>,
    /// Who hears of its calls.
    crumbs: Option<Arc<dyn Crumbs>>,
    /// What waits for each operator; empty between two waves, and kept for its memory.
    inboxes: Vec<Vec<Flow>>,
    /// The same of what an operator says.
    flows: Vec<Flow>,
    pulse: Pulse,
}

impl Chain {
    pub(crate) fn new(nodes: Vec<Node>, sources: Vec<Vec<Target>>, path: Path) -> Self {
        let inboxes = nodes.iter().map(|_| Vec::new()).collect();
        Self {
            nodes,
            sources,
            profiles: Profiles::default(),
            rules: None,
            path,
            drafts: Drafts::default(),
            saying: Saying::default(),
            dropped: Dropped::default(),
            skips: Arc::default(),
            crumbs: None,
            inboxes,
            flows: Vec::new(),
            pulse: Pulse::default(),
        }
    }

    /// Counts the steps of whoever runs it: a wave down the chain is one.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Puts images of a checkpoint back; `images` are those that this worker owns. `rules` names
    /// the rules under which they were written.
    ///
    /// # Errors
    /// When an image belongs to no operator of this chain, or its bytes do not fit.
    pub fn restore(&mut self, images: impl Iterator<Item = (Key, Image)>, rules: [u8; 32]) -> Result<(), RestoreError> {
        self.restore_but(images, rules, &MayDrop::default())
    }

    /// The same; what belongs to an operator that the chain does not have is dropped where that is
    /// allowed, and the first epoch says so.
    ///
    /// # Errors
    /// As there.
    pub fn restore_but(
        &mut self,
        images: impl Iterator<Item = (Key, Image)>,
        rules: [u8; 32],
        may_drop: &MayDrop,
    ) -> Result<(), RestoreError> {
        self.rules = Some(rules);
        for ((operator, key), image) in images {
            let fits =
                |problem| RestoreError::Bytes { operator: operator.to_string(), user: key.user.to_string(), problem };
            if *operator == *PROFILES {
                self.profiles.restore(&key, &image).map_err(fits)?;
                continue;
            }
            match self.nodes.iter_mut().find(|node| node.id == operator) {
                Some(node) => node.stage.restore(&key, &image).map_err(fits)?,
                None if may_drop.allows(&operator) => self.dropped.take(&operator, &key, &image).map_err(fits)?,
                None => return Err(RestoreError::NoOperator(operator.to_string())),
            }
        }
        Ok(())
    }

    /// The ids of the operators, from the top down.
    pub fn operators(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().map(|node| &node.id)
    }

    /// How much was dropped at the restore, by operator; until the first epoch.
    #[must_use]
    pub fn dropped(&self) -> std::collections::BTreeMap<Arc<str>, DropCount> {
        self.dropped.count()
    }

    /// The earliest deadline of all operators.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.nodes.iter().filter_map(|node| node.stage.next_timer()).min()
    }

    /// The next epoch does not make these calls. Records among them were refused before they came here.
    pub fn leave_out(&mut self, skips: &Arc<[Skip]>) {
        self.skips = Arc::clone(skips);
    }

    /// Of the next epoch's calls `crumbs` hears before they are made.
    pub fn tell(&mut self, crumbs: Option<Arc<dyn Crumbs>>) {
        self.crumbs = crumbs;
    }

    /// Runs one epoch. `blocks` are this worker's, one partition's in the order in which they were
    /// sent; partitions in any order.
    pub fn epoch(&mut self, epoch: u64, now: Instant, rules: &Rules, mut blocks: Vec<Block>) -> EpochOutput {
        let (mut drafts, saying) = (std::mem::take(&mut self.drafts), std::mem::take(&mut self.saying));
        drafts.begin(epoch, now, self.path);
        let dropped = std::mem::take(&mut self.dropped).say(&mut drafts);
        let (skips, crumbs) = (std::mem::take(&mut self.skips), self.crumbs.take());
        let mut run = Run { epoch, now, rules, path: self.path, drafts, saying, skips, crumbs };
        if !deliberate::has(Bug::ArrivalOrder) {
            blocks.sort_by_key(|block| block.lot);
        }
        let (side, records): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.is_side_input());
        self.side_inputs(&mut run, side);
        self.timers(&mut run);
        self.records(&mut run, records);
        let Run { mut drafts, mut saying, .. } = run;
        let ((rows, of_rows), (said, of_said)) = (drafts.finish(), saying.finish());
        (self.drafts, self.saying) = (drafts, saying);
        let (digest, next_timer) = (of_rows.wrapping_add(of_said), self.next_timer());
        let delta = self.delta(dropped);
        let keys = self.nodes.iter().map(|node| node.stage.keys() as u64).sum();
        EpochOutput { epoch, now, said, rows, digest, next_timer, delta, keys, ..EpochOutput::default() }
    }

    /// What the epoch changed.
    fn delta(&mut self, mut delta: Delta) -> Delta {
        for Node { id, stage, .. } in &mut self.nodes {
            let (images, page) = stage.drain_dirty();
            delta.push(id, images, page);
        }
        let (images, page) = self.profiles.drain_dirty();
        delta.push(&Arc::from(PROFILES), images, page);
        delta
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
            self.wave(run, |stage, env, out| stage.on_profiles(env, &changed, out));
        }
        if rules_changed {
            self.wave(run, |stage, env, out| stage.on_rules(env, out));
        }
    }

    fn timers(&mut self, run: &mut Run<'_>) {
        if self.next_timer().is_some_and(|at| at <= run.now) {
            self.wave(run, |stage, env, out| stage.on_timers(env, out));
        }
    }

    fn records(&mut self, run: &mut Run<'_>, blocks: Vec<Block>) {
        let sources = std::mem::take(&mut self.sources);
        let mut waiting = 0;
        for block in blocks {
            let targets = sources.get(usize::from(block.lot.source)).map_or(&[][..], Vec::as_slice);
            for arrived in block.records {
                let ordinal = Ordinal::record(block.lot, arrived.offset);
                match arrived.body {
                    Body::Item(item) => {
                        let cause = if arrived.handed_over { Cause::HandedOver } else { Cause::Event };
                        let (cause, placement) = (cause(arrived.event), placement(&item.user));
                        let spot = run.drafts.book.root(ordinal, cause);
                        let flow = Flow { spot, port: 0, placement, item };
                        deliver(run, &self.profiles, targets, flow, &mut self.inboxes);
                        waiting += 1;
                    }
                    Body::Rejected(rejected) => run.reject(ordinal, &rejected),
                    Body::Profile { .. } | Body::Address { .. } => {}
                }
                if waiting == BATCH {
                    self.wave(run, |_, _, _| {});
                    waiting = 0;
                }
            }
        }
        if waiting > 0 {
            self.wave(run, |_, _, _| {});
        }
        self.sources = sources;
    }

    /// One wave down the chain: each operator first does `own`, then takes in what came from above.
    fn wave(&mut self, run: &mut Run<'_>, mut own: impl FnMut(&mut dyn Stage, &Env<'_>, &mut Outbox<'_>)) {
        self.pulse.beat();
        let Self { nodes, profiles, inboxes, flows, path, .. } = self;
        let (skips, crumbs) = (Arc::clone(&run.skips), run.crumbs.clone());
        let crumbs = crumbs.as_deref();
        let env =
            Env { now: run.now, epoch: run.epoch, rules: run.rules, profiles, path: *path, skips: &skips, crumbs };
        for (place, node) in nodes.iter_mut().enumerate() {
            // What timers and side inputs cause does not travel in the order of its ordinals: an operator's
            // own comes before what the wave brought from above, whatever was due first.
            let mut outbox = Outbox { flows: std::mem::take(flows), drafts: &mut run.drafts };
            own(&mut *node.stage, &env, &mut outbox);
            let mut inbox = std::mem::take(&mut inboxes[place]);
            if node.joins {
                // Root ordinal first, then port, then emission: all of it is in the ordinal but the
                // port, which is where the ways differ.
                let book = &outbox.drafts.book;
                inbox.sort_by(|one, two| book.cmp(one.spot, two.spot).then(one.port.cmp(&two.port)));
            }
            // What the operator is not for passes untouched, in its place: a place is told by standing in
            // it, or who shares a worker would decide.
            if !inbox.is_empty() {
                node.stage.on_events(&env, node.when.as_ref(), &mut inbox, &mut outbox);
            }
            inboxes[place] = inbox;
            *flows = outbox.flows;
            hand_on(run, profiles, &node.targets, flows, inboxes);
        }
        run.drafts.settle();
    }
}

impl Block {
    fn is_side_input(&self) -> bool {
        self.records.iter().any(|arrived| matches!(arrived.body, Body::Profile { .. } | Body::Address { .. }))
    }
}

/// Hands on what an operator said: as it lies, where all of it goes to one operator.
fn hand_on(
    run: &mut Run<'_>,
    profiles: &Profiles,
    targets: &[Target],
    flows: &mut Vec<Flow>,
    inboxes: &mut [Vec<Flow>],
) {
    if let [Target::Operator(place, port)] = *targets
        && !flows.iter().any(|flow| leaves(flow.port))
    {
        flows.iter_mut().for_each(|flow| flow.port = port);
        let inbox = &mut inboxes[place];
        if inbox.is_empty() {
            std::mem::swap(inbox, flows);
        } else {
            inbox.append(flows);
        }
        return;
    }
    for flow in flows.drain(..) {
        deliver(run, profiles, targets, flow, inboxes);
    }
}

/// Whether what is said on this port leaves the chain, whatever stands below.
const fn leaves(port: u8) -> bool {
    matches!(port, PORT_CRITICAL | PORT_HIGH | PORT_ASIDE)
}

/// Hands a flow to every target, the last one without a copy.
fn deliver(run: &mut Run<'_>, profiles: &Profiles, targets: &[Target], flow: Flow, inboxes: &mut [Vec<Flow>]) {
    if leaves(flow.port) {
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
            let known = profiles.get(UserKey { name: &flow.item.user, placement: flow.placement });
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
    drafts: Drafts,
    saying: Saying,
    skips: Arc<[Skip]>,
    crumbs: Option<Arc<dyn Crumbs>>,
}

impl Run<'_> {
    /// The chain's end: an item becomes a lane record, a hand-over, or a row.
    fn end(&mut self, flow: Flow, known: &Known) {
        let Flow { mut spot, item, mut port, placement } = flow;
        let ordinal = self.drafts.book.ordinal(spot);
        if let Some(skip) = skip_at(&self.skips, &ordinal, None) {
            spot = self.drafts.book.root(ordinal.clone(), Cause::Words(skip.problem.clone()));
            port = PORT_ASIDE;
        }
        if let Some(crumbs) = &self.crumbs {
            crumbs.at(self.epoch, &ordinal, None);
        }
        self.drafts.book.enter(spot, None);
        let to = match port {
            PORT_ASIDE => {
                let letter = set_aside(&item, spot, &mut self.drafts, self.path);
                self.saying.values.extend_from_slice(&letter);
                Some(To::Dlq(Reason::Panicked))
            }
            PORT_CRITICAL => Some(lanes::hand_over(&item, Priority::Critical, &mut self.saying.values)),
            PORT_HIGH => Some(lanes::hand_over(&item, Priority::High, &mut self.saying.values)),
            _ => {
                let mut end = lanes::End {
                    now: self.now,
                    known,
                    rules: self.rules,
                    spot,
                    placement,
                    drafts: &mut self.drafts,
                    texts: &mut self.saying.texts,
                };
                end.of(&item, &mut self.saying.values)
            }
        };
        self.drafts.book.leave();
        if let Some(to) = to {
            self.saying.say(ordinal, to, key_group(placement), Arc::clone(&item.user));
        }
    }

    /// A record that is no event: to the dead letters, with a row.
    fn reject(&mut self, ordinal: Ordinal, rejected: &crate::ingest::Rejected) {
        rejected.record(ordinal.clone(), &mut self.drafts);
        self.saying.values.extend_from_slice(&rejected.letter(self.path));
        let group = key_group(placement(&rejected.user));
        self.saying.say(ordinal, To::Dlq(rejected.reason), group, Arc::clone(&rejected.user));
    }
}

/// Why a checkpoint does not fit the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The checkpoint holds state of an operator that the topology no longer has.
    #[error(
        "the checkpoint holds state of operator `{0}`, which the topology does not have: put it back, or \
         start with `--allow-dropped-state {0}`, which gives up what it holds"
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
        self.profiles.get(UserKey::of(&user.into()))
    }
}
