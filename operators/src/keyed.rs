//! The operator's side of the engine: what a keyed operator is, and all that it can see and do.
//!
//! An operator is a pure state machine. It is told of an event, a timer, a changed profile or
//! changed rules, and answers through its [`Cx`]: state, timers, items, rows. It sees no thread, no
//! clock but the epoch's one instant, no I/O and nothing of timely; so whatever it decides is a
//! function of the cut.
//!
//! State is kept per user and, below, per subkey: the unit of dirtiness and of checkpoint images.
//! An entry has a *head*, written whenever it was touched, and a *body*, written only in the epoch
//! that sets it: parked items are bodies, counters are heads.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::{Channel, ChannelSet};
use tidings_schemas::ids::{EventId, GroupId, IntentId, LegId, NotificationId};
use tidings_schemas::lifecycle::{State as Did, Unit};
use tidings_schemas::profile::{Profile, Reachability};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::harness::book::Spot;
use crate::harness::drafts::{Call, Drafts};
pub use crate::harness::notes::{NoteId, Notes};
use crate::harness::profiles::Profiles;
use crate::harness::stage::{Flow, Store};
pub use crate::harness::table::Table;
use crate::harness::table::{UserKey, put_by_serde, read_by_serde};
use crate::ingest::Path;
use crate::item::{Item, Member, Page, Subject};
use crate::packed;
use crate::params::{Position, Report, SideInput};
use crate::quiet::{self, Verdict};
use crate::rules::Rules;
use crate::short::Short;

/// What a subkey holds without an allocation: ids, and a few short words.
const SUBKEY_INLINE_BYTES: usize = 38;

/// What an operator keeps under one user: a byte string, compared by bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Subkey(Short<SUBKEY_INLINE_BYTES>);

impl Subkey {
    /// The subkey of these fields, each ended by a zero byte (which texts here never hold).
    #[must_use]
    pub fn of(fields: &[&str]) -> Self {
        let mut subkey = Self::default();
        fields.iter().for_each(|field| subkey.push(field));
        subkey
    }

    /// Adds a field.
    pub fn push(&mut self, field: &str) {
        self.0.push(field.as_bytes());
        self.0.push(&[0]);
    }

    /// Adds a list as one field.
    pub fn push_list<'a>(&mut self, parts: impl IntoIterator<Item = &'a str>) {
        for (place, part) in parts.into_iter().enumerate() {
            if place > 0 {
                self.0.push(b",");
            }
            self.0.push(part.as_bytes());
        }
        self.0.push(&[0]);
    }

    /// The subkey of these bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(Short::from_slice(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8; 16]> for Subkey {
    fn from(id: &[u8; 16]) -> Self {
        Self(Short::from_slice(id))
    }
}

/// Output port that leaves the chain for the critical path, whatever stands below.
pub const PORT_CRITICAL: u8 = 254;
/// Output port that leaves the critical path for the dataflow.
pub const PORT_HIGH: u8 = 253;

/// Names one of an entry's timers. An entry has at most one timer of each id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimerId(pub u8);

/// State that outlives its process: versioned bytes in checkpoints.
pub trait State: Default + Clone + Serialize + DeserializeOwned + Send + 'static {
    /// The version that this build writes.
    const VERSION: u8 = 1;

    /// Reads state that version `from` wrote.
    ///
    /// # Errors
    /// When this build knows no way from that version.
    fn migrate(from: u8, bytes: &[u8]) -> Result<Self, String> {
        let _ = bytes;
        Err(unknown_version::<Self>(from))
    }

    /// Appends its bytes: those of postcard, whoever writes them.
    fn put(&self, to: &mut Vec<u8>) {
        put_by_serde(self, to);
    }

    /// Reads bytes of this build's version.
    ///
    /// # Errors
    /// When they are none.
    fn read(bytes: &[u8]) -> Result<Self, String> {
        read_by_serde(bytes)
    }
}

/// Why state of version `from` is not read: what a `migrate` says of one that it does not know.
#[must_use]
pub fn unknown_version<S: State>(from: u8) -> String {
    newer_version(from, S::VERSION)
}

pub(crate) fn newer_version(from: u8, reads: u8) -> String {
    format!(
        "it is of version {from}, and this build reads version {reads} only: start a build that knows version {from}"
    )
}

impl State for () {}

impl State for Option<Box<Item>> {
    fn put(&self, to: &mut Vec<u8>) {
        packed::put(self.as_deref(), to);
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        packed::read(bytes).map_or_else(|| read_by_serde(bytes), Ok)
    }
}

/// What is known about a user at the end of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The profile; all defaults for a user who never set anything.
    pub profile: Arc<Profile>,
    /// On which channels the user can be reached.
    pub reachability: Arc<Reachability>,
    /// Channels on which an address is taken for granted: those of whom the critical path cannot know
    /// better. Deliver holds the addresses, and ends a leg that has none. In decide always empty.
    pub assumed: ChannelSet,
}

/// A keyed operator. Parameters live in `self`; state lives in the engine.
pub trait Operator: Send + Sized + 'static {
    /// Its kind in the YAML.
    const KIND: &'static str;
    /// Where in a chain it may stand.
    const POSITION: Position = Position::Items;
    /// Whether it may hand on items of several events.
    const MERGES: bool = false;
    /// Whether it takes items of one event only.
    const SINGLE: bool = false;
    /// What it must know about users.
    const JOINS: &'static [SideInput] = &[];
    /// Its parameters there.
    type Params: DeserializeOwned + Serialize + JsonSchema;
    /// Small state per user; the default is not stored.
    type User: State;
    /// State per (user, subkey), written when touched.
    type Entry: State;
    /// State per (user, subkey), written when set.
    type Body: State;
    /// How all this lies in memory: in a [`Table`], unless it is [`Notes`].
    type Store: Store<Self>;

    /// Says what is wrong with parameters that could be read.
    fn check(params: &Self::Params, report: &mut Report<'_>) {
        let _ = (params, report);
    }

    /// The operator of these parameters, which were checked.
    fn new(params: Self::Params) -> Self;

    /// An item arrived on `port`.
    fn on_event(&self, cx: &mut Cx<'_, Self>, port: u8, item: Box<Item>);

    /// A timer of an entry is due. It is gone when this is called.
    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, timer: TimerId) {
        let _ = (cx, subkey, timer);
    }

    /// The user's profile or reachability changed between the end of the last epoch and of this.
    fn on_profile(&self, cx: &mut Cx<'_, Self>, old: &Known) {
        let _ = (cx, old);
    }

    /// Policies or tz data changed at this cut: what is parked is to be judged again.
    fn on_rules(&self, cx: &mut Cx<'_, Self>) {
        let _ = cx;
    }
}

/// What an operator was called for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An event: the unit's own or another's.
    Event(EventId),
    /// An event that the other path handed over under its own id.
    HandedOver(EventId),
    /// A timer of an entry.
    Timer,
    /// A changed profile or address.
    Profile,
    /// Changed policies or tz data.
    Rules,
    /// What the operator says.
    Words(String),
}

/// The facts of an item that rows repeat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct About<'a> {
    /// Who is told, and of what, unless `subject` says it.
    pub page: &'a Arc<Page>,
    /// What it is about, where that is not what its page says.
    pub subject: Option<&'a Arc<Subject>>,
    /// The event.
    pub event: EventId,
    /// Its intent; zero in a leg's facts.
    pub intent: IntentId,
    /// The notification.
    pub notification: NotificationId,
    /// The group.
    pub group: GroupId,
    /// The leg.
    pub leg: LegId,
    /// Whether the leg is a silent one.
    pub silent: bool,
    /// The priority.
    pub priority: Option<tidings_schemas::channel::Priority>,
    /// The channel.
    pub channel: Option<Channel>,
    /// When the unit's oldest event was accepted.
    pub created_at: Instant,
    /// When it was last released.
    pub ready_at: Option<Instant>,
}

impl<'a> About<'a> {
    /// What is known of a record that is no event: whose it is.
    #[must_use]
    pub fn record(page: &'a Arc<Page>, event: EventId, created_at: Instant) -> Self {
        Self {
            page,
            subject: None,
            event,
            intent: IntentId::default(),
            notification: NotificationId::default(),
            group: GroupId::default(),
            leg: LegId::default(),
            silent: false,
            priority: None,
            channel: None,
            created_at,
            ready_at: None,
        }
    }

    /// An event's facts: `member` of `item`.
    #[must_use]
    pub fn member(item: &'a Item, member: &'a Member) -> Self {
        Self {
            subject: member.subject.as_ref(),
            intent: member.intent,
            notification: item.notification,
            group: item.group,
            priority: Some(item.priority),
            ..Self::record(&item.page, member.event, member.created_at)
        }
    }

    /// A leg's facts.
    #[must_use]
    pub fn leg(item: &'a Item) -> Self {
        Self {
            intent: item.members.first().map_or_else(IntentId::default, |member| member.intent),
            notification: item.notification,
            group: item.group,
            leg: item.leg.unwrap_or_default(),
            silent: item.silent,
            priority: Some(item.priority),
            channel: item.channel(),
            ready_at: Some(item.ready_at),
            ..Self::record(&item.page, item.first_event(), item.created_at)
        }
    }
}

/// What the engine hands an operator, and takes from it, for one call.
pub struct Cx<'a, O: Operator> {
    pub(crate) now: Instant,
    pub(crate) operator: &'a Arc<str>,
    pub(crate) user: UserKey<'a>,
    pub(crate) profiles: &'a Profiles,
    /// What they know of the user, once it was asked for.
    pub(crate) known: OnceCell<&'a Known>,
    pub(crate) rules: &'a Rules,
    pub(crate) path: Path,
    pub(crate) table: &'a mut O::Store,
    /// What is handed on.
    pub(crate) flows: &'a mut Vec<Flow>,
    /// How many of them this call has handed on.
    pub(crate) emitted: usize,
    pub(crate) drafts: &'a mut Drafts,
    /// Where it stands.
    pub(crate) spot: Spot,
    pub(crate) number: usize,
    /// What the drafts of this call are known by, once there are any.
    pub(crate) call: Option<Call>,
}

impl<O: Operator> Cx<'_, O> {
    /// Stream time: the epoch's one instant.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// The user of this call.
    #[must_use]
    pub fn user_id(&self) -> &Arc<str> {
        self.user.name
    }

    /// The operator's id in the topology: part of every id that it forms.
    #[must_use]
    pub fn operator(&self) -> &Arc<str> {
        self.operator
    }

    /// Profile and reachability at the end of this epoch's side inputs.
    #[must_use]
    pub fn known(&self) -> &Known {
        self.known.get_or_init(|| self.profiles.get(self.user))
    }

    /// What this is called for.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        self.drafts.book.cause(self.spot)
    }

    /// Policies and calendar of this cut.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        self.rules
    }

    /// Which of the two paths this is.
    #[must_use]
    pub const fn path(&self) -> Path {
        self.path
    }

    /// Which channels may carry `item` now, best first, and which may not and why.
    #[must_use]
    pub fn candidates(&self, item: &Item) -> crate::candidates::Candidates {
        crate::candidates::candidates(item, self.known(), self.rules)
    }

    /// What the user's quiet hours say about `item` on `channel` now.
    #[must_use]
    pub fn verdict(&self, item: &Item, channel: Channel) -> Verdict {
        quiet::verdict(self.user.placement, &self.known().profile, self.rules, item.priority, channel, self.now)
    }

    /// Hands `item` on to whoever is connected to output `port`.
    pub fn emit(&mut self, port: u8, item: Box<Item>) {
        // Rows stand at port 0, before everything that the same call sets in motion.
        let spot = self.drafts.book.hop(self.spot, self.number, port.saturating_add(1), self.emitted);
        self.emitted += 1;
        self.flows.push(Flow { spot, port, placement: self.user.placement, item });
    }

    /// Says what happened to every event of `item`.
    pub fn record_events(&mut self, item: &Item, did: &[Did], reason: Option<Reason>, until: Option<Instant>) {
        for member in &item.members {
            self.record_member(item, member, did, reason, until);
        }
    }

    /// Says what happened to one event of `item`.
    pub fn record_member(
        &mut self,
        item: &Item,
        member: &Member,
        did: &[Did],
        reason: Option<Reason>,
        until: Option<Instant>,
    ) {
        self.draft(Unit::Event, &About::member(item, member), did, reason, until, None);
    }

    /// Says what happened to `item` as a leg.
    pub fn record_leg(&mut self, item: &Item, did: &[Did], reason: Option<Reason>, until: Option<Instant>) {
        self.draft(Unit::Leg, &About::leg(item), did, reason, until, None);
    }

    /// As the others, of facts that the caller put together.
    pub fn record_about(&mut self, unit: Unit, about: About<'_>, did: &[Did], reason: Option<Reason>) {
        self.draft(unit, &about, did, reason, None, None);
    }

    /// As the others, with the cause in the operator's own words instead of the engine's.
    pub fn record_caused(&mut self, unit: Unit, about: About<'_>, did: &[Did], reason: Option<Reason>, cause: &str) {
        self.draft(unit, &about, did, reason, None, Some(cause));
    }

    fn draft(
        &mut self,
        unit: Unit,
        about: &About<'_>,
        did: &[Did],
        reason: Option<Reason>,
        until: Option<Instant>,
        words: Option<&str>,
    ) {
        let name_it = || self.drafts.call(self.spot, Some(self.number), self.operator, self.user.placement);
        let call = *self.call.get_or_insert_with(name_it);
        self.drafts.add(call, unit, about, did, reason, until, words);
    }
}

/// The state of an operator that keeps it in a [`Table`].
impl<O: Operator<Store = Table<O>>> Cx<'_, O> {
    /// The state kept for the user as a whole.
    #[must_use]
    pub fn user(&self) -> Option<&O::User> {
        self.table.user(self.user)
    }

    /// The same, to be changed; it is written at the epoch's end.
    pub fn user_mut(&mut self) -> &mut O::User {
        self.table.user_mut(self.user)
    }

    /// Forgets the user's state.
    pub fn clear_user(&mut self) {
        self.table.clear_user(self.user);
    }

    /// The head of an entry.
    #[must_use]
    pub fn entry(&self, subkey: &Subkey) -> Option<Cow<'_, O::Entry>> {
        self.table.head(self.user, subkey)
    }

    /// The head of an entry, to be changed; the entry is made where it is absent.
    pub fn entry_mut(&mut self, subkey: &Subkey) -> &mut O::Entry {
        self.table.head_mut(self.user, subkey)
    }

    /// The body of an entry.
    #[must_use]
    pub fn body(&self, subkey: &Subkey) -> Option<Cow<'_, O::Body>> {
        self.table.body(self.user, subkey)
    }

    /// Takes the body out of an entry, to be changed and set again: a body may be large.
    pub fn take_body(&mut self, subkey: &Subkey) -> Option<O::Body> {
        self.table.take_body(self.user, subkey)
    }

    /// Sets the body of an entry; the entry is made where it is absent.
    pub fn set_body(&mut self, subkey: &Subkey, body: O::Body) {
        self.table.set_body(self.user, subkey, body);
    }

    /// Forgets an entry, its timers too; returns what it was.
    pub fn remove(&mut self, subkey: &Subkey) -> Option<(O::Entry, O::Body)> {
        self.table.remove(self.user, subkey)
    }

    /// The user's subkeys, in order.
    #[must_use]
    pub fn subkeys(&self) -> Vec<Subkey> {
        self.table.subkeys(self.user)
    }

    /// Sets the entry's timer `id` to `at`, in place of an earlier one. What is due already fires in
    /// the next epoch.
    pub fn set_timer(&mut self, subkey: &Subkey, id: TimerId, at: Instant) {
        self.table.set_timer(self.user, subkey, id, at);
    }

    /// Takes the entry's timer `id` back.
    pub fn clear_timer(&mut self, subkey: &Subkey, id: TimerId) {
        self.table.clear_timer(self.user, subkey, id);
    }

    /// When the entry's timer `id` is due.
    #[must_use]
    pub fn timer(&self, subkey: &Subkey, id: TimerId) -> Option<Instant> {
        self.table.timer(self.user, subkey, id)
    }
}

/// The state of an operator that keeps it in [`Notes`].
impl<O: Operator<User = (), Body = (), Store = Notes<O>>> Cx<'_, O> {
    /// What was noted of the user under this id.
    #[must_use]
    pub fn noted(&self, id: &NoteId) -> Option<&O::Entry> {
        self.table.head(self.user, id)
    }

    /// Notes `entry` under this id, for `span`, which is 1 ms or more; then it is forgotten.
    pub fn note(&mut self, id: &NoteId, entry: O::Entry, span: Duration) {
        self.table.make(self.user, id, entry, self.now.after(span));
    }
}
