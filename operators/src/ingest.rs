//! From a source's record to what the chain takes in: the one place that reads payloads.
//!
//! Parsing is a pure function of (record, rules), so that a replay reads what the first run read. It
//! stands before the exchange, because the user decides who gets the item. What is no event becomes a
//! dead letter with reason, place and the raw bytes; the stream goes on.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use smol_str::SmolStr;
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::cloudevents;
use tidings_schemas::event::InvalidEvent;
use tidings_schemas::ids::{DedupKey, EventId, GroupId, IntentId, NotificationId, placement};
use tidings_schemas::lane::{HEADER_ACCEPTED, HEADER_EVENT, Returned};
use tidings_schemas::lifecycle::{Stage, State as Did, Unit};
use tidings_schemas::plain::PlainEvent;
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use crate::harness::drafts::Drafts;
use crate::harness::feed::{Lot, RawRecord};
use crate::harness::ordinal::Ordinal;
use crate::item::{Channels, Content, Folded, Item, Member, Members, Page, Struck};
use crate::keyed::{About, Cause};
use crate::rules::Rules;
use crate::when::{Count, Facts, Text, Value};

/// What a source's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// Events; unknown top-level keys are refused, or moved to `data`.
    Events {
        /// Whether they are moved.
        unknown_to_data: bool,
    },
    /// What deliver gives back.
    Returned,
    /// Profiles, keyed by user.
    Profiles,
    /// Addresses, keyed by user and address.
    Addresses,
}

/// A source of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its id: part of every event id.
    pub id: Arc<str>,
    /// What its records are.
    pub kind: SourceKind,
}

/// Which of the two paths reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The dataflow.
    Decide,
    /// Beside it, one by one.
    Critical,
}

/// A record as the chain takes it in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrived {
    /// Its place in the partition.
    pub offset: u64,
    /// Its event id.
    pub event: EventId,
    /// Whether the other path handed it over, under this id: then it may come twice.
    pub handed_over: bool,
    /// What it is.
    pub body: Body,
}

/// What a record is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// An event, or a leg that came back.
    Item(Box<Item>),
    /// A whole profile.
    Profile {
        /// Whose.
        user: Arc<str>,
        /// All of it.
        profile: Box<Profile>,
    },
    /// An address, or its end.
    Address {
        /// Whose.
        user: Arc<str>,
        /// Which.
        address_id: String,
        /// None: it is gone.
        address: Option<Box<Address>>,
    },
    /// None of these.
    Rejected(Box<Rejected>),
}

impl Arrived {
    /// The placement that decides which worker takes it.
    #[must_use]
    pub fn placement(&self) -> u64 {
        placement(match &self.body {
            Body::Item(item) => &item.user,
            Body::Profile { user, .. } | Body::Address { user, .. } => user,
            Body::Rejected(rejected) => &rejected.user,
        })
    }
}

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its event id.
    pub event: EventId,
    /// Whether it stood among events: only those are accounted for.
    pub is_event: bool,
    /// The record's key, which by contract is the user.
    pub user: Arc<str>,
    /// Why.
    pub reason: Reason,
    /// In words: place, expectation, remedy.
    pub problem: String,
    /// The source's id.
    pub source: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
    /// The record's bytes.
    pub raw: Vec<u8>,
    /// When the log took it.
    pub created_at: Instant,
}

/// Bytes of the record that a dead letter repeats: four times the largest event, and escaped still less
/// than the log takes. Of a larger record it holds the beginning; `raw_bytes` says how much there was.
const LETTER_BYTES_MAX: usize = 1024 * 1024;

impl Rejected {
    /// The dead letter: legible where the record was text, Base64 where not.
    #[must_use]
    pub fn letter(&self, path: Path) -> Vec<u8> {
        let kept = self.raw.get(..LETTER_BYTES_MAX).unwrap_or(&self.raw);
        let (key, raw) = match std::str::from_utf8(kept) {
            Ok(text) => ("raw", text.to_owned()),
            Err(_) => ("raw_base64", base64::engine::general_purpose::STANDARD.encode(kept)),
        };
        let stage = match path {
            Path::Decide => Stage::Decide,
            Path::Critical => Stage::Critical,
        };
        let mut letter = serde_json::json!({
            "v": 1, "stage": stage, "event": self.event, "reason": self.reason, "problem": self.problem,
            "source": self.source, "partition": self.partition, "offset": self.offset,
            "created_at": self.created_at, key: raw,
        });
        if kept.len() < self.raw.len() {
            letter["raw_bytes"] = self.raw.len().into();
        }
        letter.to_string().into_bytes()
    }

    /// Says what became of the event, in the name of `validate`.
    pub(crate) fn record(&self, ordinal: Ordinal, drafts: &mut Drafts) {
        if !self.is_event {
            return;
        }
        let page = Arc::new(Page::of(Arc::clone(&self.user)));
        let about = About::record(&page, self.event, self.created_at);
        let spot = drafts.book.root(ordinal, Cause::Words(self.problem.clone()));
        let call = drafts.call(spot, None, "validate", placement(&self.user));
        let did = [Did::Created, Did::Rejected];
        drafts.add(call, Unit::Event, &about, &did, Some(self.reason), None, None);
    }
}

/// Reads one record of `source`.
#[must_use]
pub fn ingest(source: &Source, lot: Lot, record: &RawRecord, rules: &Rules, path: Path) -> Arrived {
    let event = event_id(source, lot, record);
    let body = match source.kind {
        SourceKind::Events { unknown_to_data } => parse_event(record, unknown_to_data)
            .map(|parsed| Body::Item(Box::new(item(parsed, event, accepted(record), rules, path)))),
        SourceKind::Returned => parse_returned(record).map(|item| Body::Item(Box::new(item))),
        SourceKind::Profiles => parse_profile(record),
        SourceKind::Addresses => parse_address(record),
    };
    match body {
        Ok(body) => Arrived { offset: record.offset, event, handed_over: kept_event(record).is_some(), body },
        Err((reason, problem)) => reject(source, lot, record, reason, problem),
    }
}

/// The record as one that cannot be used.
#[must_use]
pub fn reject(source: &Source, lot: Lot, record: &RawRecord, reason: Reason, problem: String) -> Arrived {
    let event = event_id(source, lot, record);
    let rejected = Rejected {
        event,
        is_event: matches!(source.kind, SourceKind::Events { .. }),
        user: text_key(record).unwrap_or_default().into(),
        reason,
        problem,
        source: Arc::clone(&source.id),
        partition: lot.partition,
        offset: record.offset,
        raw: record.value.as_deref().unwrap_or_default().to_vec(),
        created_at: accepted(record),
    };
    Arrived { offset: record.offset, event, handed_over: false, body: Body::Rejected(Box::new(rejected)) }
}

fn event_id(source: &Source, lot: Lot, record: &RawRecord) -> EventId {
    kept_event(record).unwrap_or_else(|| EventId::new(&source.id, lot.partition, record.offset))
}

/// The event id that a record handed over between the two paths keeps.
fn kept_event(record: &RawRecord) -> Option<EventId> {
    std::str::from_utf8(record.header(HEADER_EVENT)?).ok()?.parse().ok()
}

/// When the record's event was accepted: a record that was handed over says it.
fn accepted(record: &RawRecord) -> Instant {
    let said = |record: &RawRecord| std::str::from_utf8(record.header(HEADER_ACCEPTED)?).ok()?.parse().ok();
    said(record).unwrap_or(record.timestamp)
}

fn text_key(record: &RawRecord) -> Option<&str> {
    std::str::from_utf8(record.key.as_deref()?).ok()
}

type Refusal = (Reason, String);

fn parse_event(record: &RawRecord, unknown_to_data: bool) -> Result<PlainEvent<'_>, Refusal> {
    let Some(value) = &record.value else {
        return Err((Reason::InvalidEvent, "an event without a value; tombstones have no meaning here".to_owned()));
    };
    if !cloudevents::in_headers(&record.headers)
        && let Some(event) = PlainEvent::read(value)
    {
        return Ok(event);
    }
    let content_type = record.header("content-type").and_then(|bytes| std::str::from_utf8(bytes).ok());
    let event = cloudevents::parse_record(&record.headers, content_type, value, unknown_to_data);
    event.map(PlainEvent::from).map_err(|error| {
        let reason = match &error {
            InvalidEvent::Json(_) => Reason::InvalidJson,
            InvalidEvent::TooLarge(_) => Reason::TooLarge,
            InvalidEvent::Shape(_) | InvalidEvent::Field { .. } => Reason::InvalidEvent,
        };
        (reason, error.to_string())
    })
}

/// The item of one event: type policy fills what the producer left open.
fn item(event: PlainEvent<'_>, id: EventId, accepted: Instant, rules: &Rules, path: Path) -> Item {
    let rule = rules.of_type(&event.event_type);
    let priority = match event.priority {
        // A larger value is less urgent: lowering is the producer's right, raising the policy's gift.
        Some(asked) if asked > rule.priority || rule.may_raise => asked,
        _ => rule.priority,
    };
    let producer_id = event.id.as_deref().map(SmolStr::new);
    let producer_key = event.dedup_key.as_deref().map(SmolStr::new).or_else(|| producer_id.clone());
    let template_id = event.template_id.as_deref().map(SmolStr::new).or_else(|| rule.template_id.clone());
    let page = Page {
        user: (*event.user_id).into(),
        tenant: SmolStr::new(&event.tenant),
        event_type: SmolStr::new(&event.event_type),
        category: rule.category.clone(),
        dedup_key: DedupKey::default(),
        producer_key,
        producer_id,
        only_address: None,
    };
    let member = Member {
        event: id,
        intent: IntentId::default(),
        intent_by_id: IntentId::default(),
        cancel_key: event.cancel_key.as_deref().map(SmolStr::new),
        actor: event.actor,
        subject: None,
        content: Content { data: (*event.data).into(), template_id },
        created_at: accepted,
        expires_at: event.expires_at,
    };
    let mut item = Item {
        page: Arc::new(page),
        op: event.op.unwrap_or(Op::Notify),
        priority,
        notification: NotificationId::default(),
        group: GroupId::default(),
        object: event.object.map(Arc::new),
        members: smallvec![Arc::new(member)],
        folded: Folded::default(),
        channels: event.channels.unwrap_or_default(),
        fallback: event.fallback_channels.unwrap_or_else(|| Channels::from_slice(&rule.fallback)),
        time: event.time.unwrap_or(accepted),
        created_at: accepted,
        ready_at: accepted,
        scheduled_at: event.scheduled_at,
        expires_at: event.expires_at,
        candidates: Channels::new(),
        struck: Struck::new(),
        leg: None,
        silent: false,
        counted: false,
        returns: 0,
        returned: None,
        replay: 0,
        matched: 0,
    };
    let expressed = rule.dedup_key.as_ref().and_then(|expression| expression.evaluate(&ItemFacts::new(&item)));
    name(&mut item, id, expressed.as_deref(), path);
    item
}

/// The ids of an event: by its type's expression where that has a value, by the producer's key else.
fn name(item: &mut Item, id: EventId, expressed: Option<&str>, path: Path) {
    let page = Arc::make_mut(&mut item.page);
    let absent = if page.producer_id.is_none() { id.to_string() } else { String::new() };
    let by_id = page.producer_id.as_deref().unwrap_or(&absent);
    let value = expressed.or(page.producer_key.as_deref()).unwrap_or(by_id);
    let of_type = expressed.map(|_| &*page.event_type);
    // The dedup set is kept per user, so that the key need not name the user.
    page.dedup_key = DedupKey::new(&page.tenant, item.op.as_str(), of_type, value);
    let intent = IntentId::new(&page.tenant, &page.user, of_type, value);
    // Most events have one name, which is hashed once.
    let one_name = of_type.is_none() && value == by_id;
    let intent_by_id = if one_name { intent } else { IntentId::new(&page.tenant, &page.user, None, by_id) };
    item.notification = match (path, item.priority) {
        (Path::Critical, Priority::Critical) => NotificationId::critical(intent),
        _ => NotificationId::of_one(&page.user, id),
    };
    for member in &mut item.members {
        let member = Arc::make_mut(member);
        (member.intent, member.intent_by_id) = (intent, intent_by_id);
    }
}

/// A leg that deliver gave back, as the item it was.
fn parse_returned(record: &RawRecord) -> Result<Item, Refusal> {
    let value = record.value.as_deref().unwrap_or_default();
    let returned: Returned = serde_json::from_slice(value)
        .map_err(|error| (Reason::InvalidEvent, format!("not a returned leg: {error}")))?;
    let leg = returned.leg;
    let data: Arc<str> = serde_json::to_string(&leg.data).unwrap_or_default().into();
    let content = Content { data, template_id: leg.template_id.as_deref().map(SmolStr::new) };
    // The lane record names members and actors apart: who did what is not known any more, and not
    // needed, because a returned leg is never merged.
    let names = leg.actors.iter().map(Some).chain(std::iter::repeat(None));
    let member = |(event, name): (&EventId, Option<&String>)| {
        Arc::new(Member {
            event: *event,
            intent: IntentId::default(),
            intent_by_id: IntentId::default(),
            cancel_key: None,
            actor: name.map(|name| tidings_schemas::event::Actor {
                id: name.as_str().into(),
                name: Some(name.as_str().into()),
            }),
            subject: None,
            content: content.clone(),
            created_at: leg.created_at,
            expires_at: leg.expires_at,
        })
    };
    let members: Members = leg.members.iter().zip(names).map(member).collect();
    if members.is_empty() {
        return Err((Reason::InvalidEvent, "a returned leg without members".to_owned()));
    }
    let named = members.iter().filter(|member| member.actor.is_some()).count() as u64;
    let folded = Folded {
        count: leg.activities.saturating_sub(members.len() as u64),
        actors: leg.actors_count.saturating_sub(named),
        hash: leg.notification.0,
    };
    Ok(Item {
        page: Arc::new(Page {
            tenant: leg.tenant.as_str().into(),
            event_type: leg.event_type.as_str().into(),
            category: leg.category.as_str().into(),
            only_address: leg.only_address.as_deref().map(SmolStr::new),
            ..Page::of(leg.user.as_str().into())
        }),
        op: Op::Notify,
        priority: leg.priority,
        notification: leg.notification,
        group: leg.group,
        object: leg.object.map(Arc::new),
        members,
        folded,
        channels: leg.request.channels.into(),
        fallback: leg.fallback_channels.into(),
        time: record.timestamp,
        created_at: leg.created_at,
        ready_at: leg.ready_at,
        scheduled_at: None,
        expires_at: leg.expires_at,
        candidates: smallvec![leg.channel],
        struck: leg.struck.into(),
        leg: Some(leg.leg),
        silent: leg.silent,
        counted: true,
        returns: leg.returns + 1,
        returned: Some(returned.cause),
        replay: leg.replay,
        matched: 0,
    })
}

fn parse_profile(record: &RawRecord) -> Result<Body, Refusal> {
    let user = text_key(record).filter(|user| !user.is_empty());
    let user = user.ok_or_else(|| (Reason::InvalidEvent, "a profile needs the user as its key".to_owned()))?;
    let profile = Profile::from_json(record.value.as_deref())
        .map_err(|error| (Reason::InvalidEvent, format!("not a profile: {error}")))?;
    if let Some(other) = profile.user_id.as_deref().filter(|other| *other != user) {
        let problem = format!("the profile says `user_id` is `{other}`, its key says `{user}`; they must agree");
        return Err((Reason::InvalidEvent, problem));
    }
    Ok(Body::Profile { user: user.into(), profile: Box::new(profile) })
}

fn parse_address(record: &RawRecord) -> Result<Body, Refusal> {
    let key = text_key(record).and_then(|key| key.split_once('/'));
    let (user, address_id) =
        key.ok_or_else(|| (Reason::InvalidEvent, "an address needs `user/address` as its key".to_owned()))?;
    let address: Option<Box<Address>> = match record.value.as_deref() {
        None => None,
        Some(value) => {
            serde_json::from_slice(value).map_err(|error| (Reason::InvalidEvent, format!("not an address: {error}")))?
        }
    };
    Ok(Body::Address { user: user.into(), address_id: address_id.to_owned(), address })
}

/// An item as expressions see it. `data` is parsed when it is first asked for.
pub(crate) struct ItemFacts<'a> {
    item: &'a Item,
    data: OnceCell<BTreeMap<String, serde_json::Value>>,
}

impl<'a> ItemFacts<'a> {
    pub(crate) fn new(item: &'a Item) -> Self {
        Self { item, data: OnceCell::new() }
    }
}

impl Facts for ItemFacts<'_> {
    fn text(&self, name: Text) -> &str {
        self.item.page.text(name)
    }

    fn count(&self, name: Count) -> u64 {
        match name {
            Count::Actors => self.item.actors_count(),
            Count::Activities => self.item.activities(),
        }
    }

    fn priority(&self) -> Priority {
        self.item.priority
    }

    fn channel(&self) -> Option<Channel> {
        self.item.leg.and_then(|_| self.item.channel())
    }

    fn time(&self) -> Instant {
        self.item.time
    }

    fn data(&self, path: &[String]) -> Value<'_> {
        let data = self.data.get_or_init(|| serde_json::from_str(&self.item.newest().content.data).unwrap_or_default());
        Value::at(data, path)
    }
}
