//! What flows through the graph: one type from `validate` to the lanes, so that any operator can be
//! left out.
//!
//! An event is an item of one member. An operator that merges makes an item of many, with a new
//! notification id; passing an item on keeps its id. A group keeps [`MEMBERS_MAX`] members; one
//! beyond that is *folded*: counted and hashed, its row written at once, and no longer retractable.
//! So "Alice and 4,999 others" stays one notification in bounded memory.
//!
//! What never changes on the way lies in a shared [`Page`], and members are shared too: a copy of an
//! item is a small one.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use smol_str::SmolStr;
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::event::{Actor, Event, Object};
use tidings_schemas::ids::{DedupKey, EventId, GroupId, IdHasher, IntentId, LegId, NotificationId};
use tidings_schemas::lane::ReturnCause;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::when::Text;

/// Members that a group keeps. Beyond it they are folded: the text still counts them, but they can
/// no longer be retracted. 1,024 members of about 200 bytes are the most that one parked item costs.
pub const MEMBERS_MAX: usize = 1024;

/// Names that a text may show.
pub const NAMES_MAX: usize = 3;

/// Texts are read into the memory in which they stay, and not through another.
mod texts {
    use std::fmt;
    use std::sync::Arc;

    use serde::Deserializer;
    use serde::de::{Error, Visitor};

    struct Text;

    impl Visitor<'_> for Text {
        type Value = Arc<str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Arc<str>, E> {
            Ok(text.into())
        }
    }

    pub(super) fn one<'de, D: Deserializer<'de>>(text: D) -> Result<Arc<str>, D::Error> {
        text.deserialize_str(Text)
    }
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Variables, a JSON object as text.
    #[serde(deserialize_with = "texts::one")]
    pub data: Arc<str>,
    /// The template, where one was asked for.
    pub template_id: Option<SmolStr>,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its type.
    pub event_type: SmolStr,
    /// Its category.
    pub category: SmolStr,
    /// To what it was done.
    pub object: Option<Arc<Object>>,
}

impl Subject {
    /// Whether the two are the same to a reader and to a retraction.
    fn is_like(&self, other: &Self) -> bool {
        self.event_type == other.event_type && same_object(self.object.as_deref(), other.object.as_deref())
    }
}

fn same_object(one: Option<&Object>, two: Option<&Object>) -> bool {
    one.map(|object| &object.id) == two.map(|object| &object.id)
}

/// One event within an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The event.
    pub event: EventId,
    /// Its intent, by its dedup key.
    pub intent: IntentId,
    /// Its intent by the producer's own id: a cancel may name either.
    pub intent_by_id: IntentId,
    /// What a cancel may name.
    pub cancel_key: Option<SmolStr>,
    /// Who did it.
    pub actor: Option<Actor>,
    /// What it is about, where its item's members are about several things: a retraction means this
    /// one. None: what the item is about.
    pub subject: Option<Arc<Subject>>,
    /// What it says.
    pub content: Content,
    /// When it was accepted.
    pub created_at: Instant,
    /// Not after this.
    pub expires_at: Option<Instant>,
}

/// Members beyond [`MEMBERS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    /// How many.
    pub count: u64,
    /// Distinct actors among them that no kept member shares, up to the bound of exactness.
    pub actors: u64,
    /// Running hash of their ids, in the order of folding.
    pub hash: [u8; 16],
}

pub use tidings_schemas::plain::Channels;

/// Channels that may not be used, with reason.
pub type Struck = SmallVec<[(Channel, Reason); 4]>;

/// An item's events. Most have one.
pub type Members = SmallVec<[Arc<Member>; 1]>;

/// What an item says of itself for all its life. Reads as part of the item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Who is to be told.
    #[serde(deserialize_with = "texts::one")]
    pub user: Arc<str>,
    /// The tenant.
    pub tenant: SmolStr,
    /// The type.
    pub event_type: SmolStr,
    /// Its category.
    pub category: SmolStr,
    /// What makes two events the same wish.
    pub dedup_key: DedupKey,
    /// The producer's own key behind it, for a hand-over between the two paths.
    pub producer_key: Option<SmolStr>,
    /// The producer's own id, for the same: a cancel may name it beside a key.
    pub producer_id: Option<SmolStr>,
    /// Only to this address.
    pub only_address: Option<SmolStr>,
}

/// What flows from operator to operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What never changes.
    pub page: Arc<Page>,
    /// Notify, or a control that takes something out.
    pub op: Op,
    /// Its priority.
    pub priority: Priority,
    /// What is said.
    pub notification: NotificationId,
    /// The group it was formed in, zero if it never was.
    pub group: GroupId,
    /// To what it was done, where all members agree.
    pub object: Option<Arc<Object>>,
    /// Its events, in canonical order; never empty.
    pub members: Members,
    /// Events beyond the bound.
    pub folded: Folded,
    /// Explicit channels, all of them used; empty for the type's default.
    pub channels: Channels,
    /// Channels to use when delivery fails for good.
    pub fallback: Channels,
    /// When it happened.
    pub time: Instant,
    /// When its oldest member was accepted.
    pub created_at: Instant,
    /// When it was last released.
    pub ready_at: Instant,
    /// Not before this.
    pub scheduled_at: Option<Instant>,
    /// Not after this.
    pub expires_at: Option<Instant>,
    /// Channels that may carry it, best first.
    pub candidates: Channels,
    /// Channels that may not, with reason.
    pub struck: Struck,
    /// The leg, once `route` made it.
    pub leg: Option<LegId>,
    /// In-app without a badge: neither limited nor counted.
    pub silent: bool,
    /// Limits have counted it already.
    pub counted: bool,
    /// How often deliver gave it back.
    pub returns: u32,
    /// Why deliver gave it back.
    pub returned: Option<ReturnCause>,
    /// Which replay.
    pub replay: u32,
    /// Of a control item: how many members it took out so far.
    pub matched: u64,
}

impl Page {
    /// A page that says nothing but whose it is.
    #[must_use]
    pub fn of(user: Arc<str>) -> Self {
        Self {
            user,
            tenant: SmolStr::default(),
            event_type: SmolStr::default(),
            category: SmolStr::default(),
            dedup_key: DedupKey::default(),
            producer_key: None,
            producer_id: None,
            only_address: None,
        }
    }

    /// The text that an expression asks for.
    #[must_use]
    pub fn text(&self, name: Text) -> &str {
        match name {
            Text::UserId => &self.user,
            Text::Type => &self.event_type,
            Text::Category => &self.category,
            Text::Tenant => &self.tenant,
        }
    }
}

impl Deref for Item {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

impl Item {
    /// Whether this is a retraction or a cancellation.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.op != Op::Notify
    }

    /// Events merged: kept and folded.
    #[must_use]
    pub fn activities(&self) -> u64 {
        self.members.len() as u64 + self.folded.count
    }

    /// Distinct actors: exact among the kept members, plus those folded.
    #[must_use]
    pub fn actors_count(&self) -> u64 {
        let actors = self.members.iter().filter_map(|member| member.actor.as_ref()).map(|actor| actor.id.as_str());
        let kept = if self.members.len() == 1 { actors.count() } else { actors.collect::<BTreeSet<_>>().len() };
        kept as u64 + self.folded.actors
    }

    /// Names of the first distinct actors.
    #[must_use]
    pub fn actor_names(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let actors = self.members.iter().filter_map(|member| member.actor.as_ref());
        let distinct = actors.filter(|actor| seen.insert(actor.id.as_str()));
        distinct.take(NAMES_MAX).map(|actor| actor.name.as_ref().unwrap_or(&actor.id).to_string()).collect()
    }

    /// The newest member: content comes from it.
    ///
    /// # Panics
    /// Never: an item has at least one member by construction.
    #[must_use]
    pub fn newest(&self) -> &Member {
        self.members.last().expect("an item has at least one member")
    }

    /// The first event: what rows of a leg name.
    #[must_use]
    pub fn first_event(&self) -> EventId {
        self.members.first().map_or_else(EventId::default, |member| member.event)
    }

    /// The channel that is judged next: the first candidate.
    #[must_use]
    pub fn channel(&self) -> Option<Channel> {
        self.candidates.first().copied()
    }

    /// Strikes `channel` off the candidates.
    pub fn strike(&mut self, channel: Channel, reason: Reason) {
        self.candidates.retain(|candidate| *candidate != channel);
        self.struck.push((channel, reason));
    }

    /// Whether `member` is what the control item `self` names.
    #[must_use]
    pub fn names(&self, item: &Self, member: &Member) -> bool {
        match self.op {
            Op::Notify => false,
            Op::Retract => {
                let actor = self.members.first().and_then(|control| control.actor.as_ref()).map(|actor| &actor.id);
                let (event_type, object) = match &member.subject {
                    Some(subject) => (&subject.event_type, subject.object.as_deref()),
                    None => (&item.event_type, item.object.as_deref()),
                };
                self.event_type == *event_type
                    && actor.is_some()
                    && actor == member.actor.as_ref().map(|actor| &actor.id)
                    && same_object(self.object.as_deref(), object)
            }
            Op::Cancel => {
                let Some(control) = self.members.first() else { return false };
                control.intent == member.intent
                    || control.intent_by_id == member.intent_by_id
                    || (control.cancel_key.is_some() && control.cancel_key == member.cancel_key)
            }
        }
    }

    /// The members that `control` names leave; returns them. The caller forms what remains anew.
    pub fn take_out(&mut self, control: &Self) -> Members {
        self.take_out_where(|item, member| control.names(item, member))
    }

    /// The members whose `expires_at` is not after `now` leave; returns them.
    pub fn take_out_expired(&mut self, now: Instant) -> Members {
        self.take_out_where(|_, member| member.expires_at.is_some_and(|at| at <= now))
    }

    fn take_out_where(&mut self, leaves: impl Fn(&Self, &Member) -> bool) -> Members {
        if !self.members.iter().any(|member| leaves(self, member)) {
            return Members::new();
        }
        let members = std::mem::take(&mut self.members);
        let (mut out, mut kept): (Members, Members) = members.into_iter().partition(|member| leaves(self, member));
        if kept.is_empty() && self.folded.count > 0 {
            // Folded members can't be taken out any more, and a notification needs a face.
            kept.extend(out.pop());
        }
        self.members = kept;
        self.created_at = self.members.iter().map(|member| member.created_at).min().unwrap_or(self.created_at);
        self.expires_at = self.earliest_expiry();
        self.settle();
        out
    }

    fn subject(&self) -> Subject {
        let (event_type, category) = (self.event_type.clone(), self.category.clone());
        Subject { event_type, category, object: self.object.clone() }
    }

    /// Every member says itself what it is about.
    fn name_subjects(&mut self) {
        if self.members.iter().any(|member| member.subject.is_none()) {
            let own = Arc::new(self.subject());
            for member in &mut self.members {
                Arc::make_mut(member).subject.get_or_insert_with(|| Arc::clone(&own));
            }
        }
    }

    /// What members of several subjects are about together: type and category are the newest's, as the
    /// content is; the object is what all agree on.
    fn settle(&mut self) {
        let Some(newest) = self.members.last().and_then(|member| member.subject.clone()) else { return };
        let subjects = || self.members.iter().filter_map(|member| member.subject.as_deref());
        let alike = subjects().all(|subject| subject.is_like(&newest));
        let together = subjects().all(|subject| same_object(subject.object.as_deref(), newest.object.as_deref()));
        // What folded members were about is not known any more.
        let known = self.folded.count == 0 || same_object(self.object.as_deref(), newest.object.as_deref());
        self.object = newest.object.clone().filter(|_| together && known);
        if self.event_type != newest.event_type || self.category != newest.category {
            let page = Arc::make_mut(&mut self.page);
            (page.event_type, page.category) = (newest.event_type.clone(), newest.category.clone());
        }
        if alike && known {
            self.members.iter_mut().for_each(|member| Arc::make_mut(member).subject = None);
        }
    }

    /// Takes in `newer`'s members: content and type come from the newest, `created_at` from the oldest,
    /// the object stays where all agree. Returns the members that were folded.
    pub fn absorb(&mut self, mut newer: Self) -> Vec<Arc<Member>> {
        let several = |item: &Self| item.members.iter().any(|member| member.subject.is_some());
        let alike = self.event_type == newer.event_type && same_object(self.object.as_deref(), newer.object.as_deref());
        if !alike || several(self) || several(&newer) {
            self.name_subjects();
            newer.name_subjects();
        }
        let mut folded = Vec::new();
        for member in newer.members {
            if self.members.len() < MEMBERS_MAX {
                self.members.push(member);
            } else {
                // The content must stay the newest's: the new member takes the last place, and the
                // one that stood there is folded.
                let mut leaves = member;
                if let Some(last) = self.members.last_mut() {
                    std::mem::swap(last, &mut leaves);
                }
                let known = |other: &Arc<Member>| match (&other.actor, &leaves.actor) {
                    (Some(one), Some(two)) => one.id == two.id,
                    _ => false,
                };
                if leaves.actor.is_some() && !self.members.iter().any(known) {
                    self.folded.actors += 1;
                }
                self.folded.count += 1;
                self.folded.hash = chain_hash(self.folded.hash, &leaves.event.0);
                folded.push(leaves);
            }
        }
        if newer.folded.count > 0 {
            self.folded.count += newer.folded.count;
            self.folded.actors += newer.folded.actors;
            self.folded.hash = chain_hash(self.folded.hash, &newer.folded.hash);
        }
        if !same_object(self.object.as_deref(), newer.object.as_deref()) {
            self.object = None;
        }
        self.settle();
        self.created_at = self.created_at.min(newer.created_at);
        self.time = self.time.max(newer.time);
        self.expires_at = self.earliest_expiry();
        self.priority = self.priority.min(newer.priority);
        folded
    }

    /// When all of it is too late: the latest expiry, if every member has one. A member that expires
    /// earlier leaves alone.
    #[must_use]
    pub fn latest_expiry(&self) -> Option<Instant> {
        let mut latest = None;
        for member in &self.members {
            latest = latest.max(Some(member.expires_at?));
        }
        latest.filter(|_| self.folded.count == 0)
    }

    fn earliest_expiry(&self) -> Option<Instant> {
        self.members.iter().filter_map(|member| member.expires_at).min()
    }

    /// The id of what `operator` forms of these members for `subkey`.
    #[must_use]
    pub fn formed_id(&self, operator: &str, subkey: &[u8]) -> NotificationId {
        let mut events: Vec<_> = self.members.iter().map(|member| member.event).collect();
        if self.folded.count == 0 {
            NotificationId::new(operator, &self.user, subkey, &mut events)
        } else {
            NotificationId::with_folded(operator, &self.user, subkey, &mut events, &self.folded.hash)
        }
    }

    /// The event as a producer would have written it: what is handed over between the two paths.
    #[must_use]
    pub fn to_event(&self) -> Event {
        let member = self.newest();
        Event {
            id: self.producer_id.as_deref().map(str::to_owned),
            event_type: self.event_type.to_string(),
            user_id: self.user.to_string(),
            tenant: self.tenant.to_string(),
            time: Some(self.time),
            actor: member.actor.clone(),
            object: self.object.as_deref().cloned(),
            data: serde_json::from_str(&member.content.data).unwrap_or_default(),
            dedup_key: self.producer_key.as_deref().map(str::to_owned),
            channels: (!self.channels.is_empty()).then(|| self.channels.to_vec()),
            fallback_channels: (!self.fallback.is_empty()).then(|| self.fallback.to_vec()),
            priority: Some(self.priority),
            template_id: member.content.template_id.as_deref().map(str::to_owned),
            scheduled_at: self.scheduled_at,
            expires_at: self.expires_at,
            cancel_key: member.cancel_key.as_deref().map(str::to_owned),
            op: self.op,
        }
    }
}

fn chain_hash(before: [u8; 16], next: &[u8; 16]) -> [u8; 16] {
    let mut hasher = IdHasher::new("folded");
    hasher.field(&before).field(next);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_crosses_workers_and_checkpoints_unchanged() {
        let item = crate::script::like("u1", "bob", "photo7", 1);
        let bytes = postcard::to_stdvec(&item).unwrap();
        assert_eq!(postcard::from_bytes::<Item>(&bytes).unwrap(), item);
    }

    #[test]
    fn distinct_people_are_counted_not_activities() {
        let mut item = crate::script::like("u1", "bob", "photo7", 1);
        item.absorb(crate::script::like("u1", "alice", "photo7", 2));
        item.absorb(crate::script::like("u1", "bob", "photo7", 3));
        assert_eq!((item.activities(), item.actors_count()), (3, 2));
        assert_eq!(item.actor_names(), ["bob", "alice"]);
    }

    #[test]
    fn five_thousand_likes_stay_one_item_of_bounded_size() {
        let mut item = crate::script::like("u1", "a0", "photo7", 0);
        let mut folded = 0;
        for n in 1..5000 {
            folded += item.absorb(crate::script::like("u1", &format!("a{n}"), "photo7", n)).len();
        }
        assert_eq!((item.activities(), item.actors_count(), item.members.len()), (5000, 5000, MEMBERS_MAX));
        assert_eq!(folded, 5000 - MEMBERS_MAX);
        assert_eq!(item.newest().event, crate::script::like("u1", "a4999", "photo7", 4999).first_event());
    }

    #[test]
    fn a_retraction_takes_its_actor_out_and_nobody_else() {
        let mut item = crate::script::like("u1", "bob", "photo7", 1);
        item.absorb(crate::script::like("u1", "alice", "photo7", 2));
        let mut control = crate::script::like("u1", "bob", "photo7", 3);
        control.op = Op::Retract;
        assert_eq!(item.take_out(&control).len(), 1);
        assert_eq!(item.actor_names(), ["alice"]);
    }
}
