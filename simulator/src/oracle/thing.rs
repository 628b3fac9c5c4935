//! What travels down the oracle's chain: an event at first, then whatever was made of several.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tidings_schemas::channel::{Channel, Op, Priority};
use tidings_schemas::event::{Actor, Event, Object};
use tidings_schemas::ids::{DedupKey, EventId, GroupId, IdHasher, IntentId, LegId, NotificationId};
use tidings_schemas::lane::{ReturnCause, Returned};
use tidings_schemas::policy::{Policies, TypePolicy};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;

use super::condition::{Named, below};

/// MODEL §3: a group keeps so many members, the rest is folded.
const MEMBERS_MAX: usize = 1_024;

/// One event within a thing.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) event: EventId,
    pub(super) intent: IntentId,
    pub(super) intent_by_id: IntentId,
    pub(super) cancel_key: Option<String>,
    pub(super) actor: Option<Actor>,
    pub(super) event_type: String,
    pub(super) category: String,
    pub(super) object: Option<Object>,
    pub(super) data: BTreeMap<String, Value>,
    pub(super) template_id: Option<String>,
    pub(super) created_at: Instant,
    pub(super) expires_at: Option<Instant>,
}

/// Members that are counted only.
#[derive(Clone, Debug, Default)]
pub(super) struct Folded {
    pub(super) count: u64,
    pub(super) actors: u64,
    pub(super) hash: [u8; 16],
}

#[derive(Clone, Debug)]
pub(super) struct Thing {
    pub(super) op: Op,
    pub(super) user: String,
    pub(super) tenant: String,
    pub(super) event_type: String,
    pub(super) category: String,
    pub(super) priority: Priority,
    pub(super) notification: NotificationId,
    pub(super) group: GroupId,
    pub(super) key: DedupKey,
    pub(super) object: Option<Object>,
    pub(super) members: Vec<Member>,
    pub(super) folded: Folded,
    pub(super) channels: Vec<Channel>,
    pub(super) fallback: Vec<Channel>,
    pub(super) created_at: Instant,
    pub(super) ready_at: Instant,
    pub(super) scheduled_at: Option<Instant>,
    pub(super) candidates: Vec<Channel>,
    pub(super) struck: Vec<(Channel, Reason)>,
    pub(super) leg: Option<LegId>,
    pub(super) silent: bool,
    pub(super) counted: bool,
    pub(super) returns: u32,
    pub(super) returned: Option<ReturnCause>,
    pub(super) replay: u32,
    pub(super) only_address: Option<String>,
    /// Of a control: how many things it took something out of.
    pub(super) matched: u64,
    /// The other path handed it over, and may do so twice.
    pub(super) handed_over: bool,
}

/// The policy of a type, with what the default type lends it.
pub(super) fn policy_of(policies: &Policies, event_type: &str) -> TypePolicy {
    let default = policies.types.get("default").cloned().unwrap_or_default();
    let mut policy = policies.types.get(event_type).cloned().unwrap_or_else(|| default.clone());
    policy.category = policy.category.or(default.category).or_else(|| Some("other".to_owned()));
    policy.priority = policy.priority.or(default.priority).or(Some(Priority::Medium));
    policy
}

impl Thing {
    /// The thing of one event.
    pub(super) fn of_event(event: Event, id: EventId, accepted: Instant, policies: &Policies) -> Result<Self, String> {
        let policy = policy_of(policies, &event.event_type);
        let of_type = policy.priority.unwrap_or(Priority::Medium);
        // Lowering (a larger value) is the producer's right.
        let priority = match event.priority {
            Some(asked) if asked > of_type || policy.may_raise => asked,
            _ => of_type,
        };
        let own = event.dedup_key.clone().or_else(|| event.id.clone()).unwrap_or_else(|| id.to_string());
        let by_id = event.id.clone().unwrap_or_else(|| id.to_string());
        let expressed = match policy.dedup_key.as_deref() {
            None => None,
            Some(expression) => {
                let path = expression.strip_prefix("data.");
                let path = path.ok_or_else(|| format!("the dedup key `{expression}` is not below `data`"))?;
                text_of(&below(&event.data, path))?
            }
        };
        let type_name = expressed.is_some().then_some(event.event_type.as_str());
        let value = expressed.as_deref().unwrap_or(&own);
        let intent = IntentId::new(&event.tenant, &event.user_id, type_name, value);
        let key = DedupKey::new(&event.tenant, event.op.as_str(), type_name, value);
        let member = Member {
            event: id,
            intent,
            intent_by_id: IntentId::new(&event.tenant, &event.user_id, None, &by_id),
            cancel_key: event.cancel_key,
            actor: event.actor,
            event_type: event.event_type.clone(),
            category: policy.category.clone().unwrap_or_default(),
            object: event.object.clone(),
            data: event.data,
            template_id: event.template_id.or(policy.template_id),
            created_at: accepted,
            expires_at: event.expires_at,
        };
        Ok(Self {
            op: event.op,
            notification: NotificationId::of_one(&event.user_id, id),
            user: event.user_id,
            tenant: event.tenant,
            event_type: event.event_type,
            category: policy.category.unwrap_or_default(),
            priority,
            group: GroupId::default(),
            key,
            object: event.object,
            members: vec![member],
            folded: Folded::default(),
            channels: event.channels.unwrap_or_default(),
            fallback: event.fallback_channels.or(policy.fallback_channels).unwrap_or_default(),
            created_at: accepted,
            ready_at: accepted,
            scheduled_at: event.scheduled_at,
            candidates: Vec::new(),
            struck: Vec::new(),
            leg: None,
            silent: false,
            counted: false,
            returns: 0,
            returned: None,
            replay: 0,
            only_address: None,
            matched: 0,
            handed_over: false,
        })
    }

    /// A leg that deliver gave back.
    pub(super) fn of_return(returned: Returned) -> Self {
        let leg = returned.leg;
        let mut names = leg.actors.iter();
        let member = |event: &EventId| Member {
            event: *event,
            intent: IntentId::default(),
            intent_by_id: IntentId::default(),
            cancel_key: None,
            actor: names.next().map(|name| Actor { id: name.as_str().into(), name: Some(name.as_str().into()) }),
            event_type: leg.event_type.clone(),
            category: leg.category.clone(),
            object: leg.object.clone(),
            data: leg.data.clone(),
            template_id: leg.template_id.clone(),
            created_at: leg.created_at,
            expires_at: leg.expires_at,
        };
        let members: Vec<_> = leg.members.iter().map(member).collect();
        let named = members.iter().filter(|member| member.actor.is_some()).count() as u64;
        let folded = Folded {
            count: leg.activities.saturating_sub(members.len() as u64),
            actors: leg.actors_count.saturating_sub(named),
            hash: leg.notification.0,
        };
        Self {
            op: Op::Notify,
            user: leg.user,
            tenant: leg.tenant,
            event_type: leg.event_type,
            category: leg.category,
            priority: leg.priority,
            notification: leg.notification,
            group: leg.group,
            key: DedupKey::default(),
            object: leg.object,
            members,
            folded,
            channels: leg.request.channels,
            fallback: leg.fallback_channels,
            created_at: leg.created_at,
            ready_at: leg.ready_at,
            scheduled_at: None,
            candidates: vec![leg.channel],
            struck: leg.struck,
            leg: Some(leg.leg),
            silent: leg.silent,
            counted: true,
            returns: leg.returns + 1,
            returned: Some(returned.cause),
            replay: leg.replay,
            only_address: leg.only_address,
            matched: 0,
            handed_over: false,
        }
    }

    pub(super) fn is_control(&self) -> bool {
        self.op != Op::Notify
    }

    pub(super) fn channel(&self) -> Option<Channel> {
        self.candidates.first().copied()
    }

    pub(super) fn first_event(&self) -> EventId {
        self.members.first().map(|member| member.event).unwrap_or_default()
    }

    pub(super) fn object_id(&self) -> Option<&str> {
        self.object.as_ref().map(|object| object.id.as_str())
    }

    /// When all of it is too late; never, if some of it never is.
    pub(super) fn expires_at(&self) -> Option<Instant> {
        let all: Option<Vec<Instant>> = self.members.iter().map(|member| member.expires_at).collect();
        all.filter(|_| self.folded.count == 0)?.into_iter().max()
    }

    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.expires_at().is_some_and(|at| at <= now)
    }

    pub(super) fn activities(&self) -> u64 {
        self.members.len() as u64 + self.folded.count
    }

    pub(super) fn actors(&self) -> Vec<&Actor> {
        let mut seen = BTreeSet::new();
        let actors = self.members.iter().filter_map(|member| member.actor.as_ref());
        actors.filter(|actor| seen.insert(actor.id.as_str())).collect()
    }

    pub(super) fn actors_count(&self) -> u64 {
        self.actors().len() as u64 + self.folded.actors
    }

    /// Whether the control `self` means this event.
    pub(super) fn means(&self, member: &Member) -> bool {
        let Some(own) = self.members.first() else { return false };
        match self.op {
            Op::Notify => false,
            Op::Cancel => {
                own.intent == member.intent
                    || own.intent_by_id == member.intent_by_id
                    || (own.cancel_key.is_some() && own.cancel_key == member.cancel_key)
            }
            Op::Retract => {
                let (Some(who), Some(actor)) = (&own.actor, &member.actor) else { return false };
                let object = member.object.as_ref().map(|object| object.id.as_str());
                self.event_type == member.event_type && who.id == actor.id && self.object_id() == object
            }
        }
    }

    /// The members that `leaves` says leave; the rest stays. A group with folded members keeps one.
    pub(super) fn part(&mut self, leaves: impl Fn(&Member) -> bool) -> Vec<Member> {
        let (mut gone, kept): (Vec<_>, Vec<_>) = self.members.drain(..).partition(|member| leaves(member));
        self.members = kept;
        if self.members.is_empty() && self.folded.count > 0 {
            self.members.extend(gone.pop());
        }
        if !gone.is_empty() && !self.members.is_empty() {
            self.created_at = self.members.iter().map(|member| member.created_at).min().unwrap_or_default();
            self.settle();
        }
        gone
    }

    /// Type and category are the newest's, as the content is; the object is what all agree on.
    fn settle(&mut self) {
        let Some(newest) = self.members.last().cloned() else { return };
        let id = |object: &Option<Object>| object.as_ref().map(|object| object.id.clone());
        let common = self.members.iter().all(|member| id(&member.object) == id(&newest.object));
        // Of folded members only this is known: whether they agreed until now.
        let agreed = self.folded.count == 0 || id(&self.object) == id(&newest.object);
        self.object = newest.object.filter(|_| common && agreed);
        (self.event_type, self.category) = (newest.event_type, newest.category);
    }

    /// Takes in another's members. Returns those that were folded.
    pub(super) fn join(&mut self, other: Self) -> Vec<Member> {
        let mut folded = Vec::new();
        for member in other.members {
            self.members.push(member);
            if self.members.len() > MEMBERS_MAX {
                // The newest stays, because content comes from it; the one before it is folded.
                let leaves = self.members.remove(MEMBERS_MAX - 1);
                let known = leaves.actor.as_ref().is_none_or(|actor| {
                    self.members.iter().any(|kept| kept.actor.as_ref().is_some_and(|kept| kept.id == actor.id))
                });
                self.folded.actors += u64::from(!known);
                self.folded.count += 1;
                self.folded.hash = chained(self.folded.hash, leaves.event.0);
                folded.push(leaves);
            }
        }
        if other.folded.count > 0 {
            self.folded.count += other.folded.count;
            self.folded.actors += other.folded.actors;
            self.folded.hash = chained(self.folded.hash, other.folded.hash);
        }
        if self.object_id() != other.object.as_ref().map(|object| object.id.as_str()) {
            self.object = None;
        }
        self.settle();
        self.created_at = self.created_at.min(other.created_at);
        self.priority = self.priority.min(other.priority);
        folded
    }

    /// The id of what `operator` formed for `subkey`: a hash of its whole membership.
    pub(super) fn formed(&self, operator: &str, subkey: &[u8]) -> NotificationId {
        let mut events: Vec<_> = self.members.iter().map(|member| member.event).collect();
        if self.folded.count == 0 {
            NotificationId::new(operator, &self.user, subkey, &mut events)
        } else {
            NotificationId::with_folded(operator, &self.user, subkey, &mut events, &self.folded.hash)
        }
    }
}

fn chained(before: [u8; 16], next: [u8; 16]) -> [u8; 16] {
    let mut hasher = IdHasher::new("folded");
    hasher.field(&before).field(&next);
    hasher.finish()
}

/// A value as a key's text; null where it has none.
fn text_of(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::String(text) => Ok(Some(text.clone())),
        Value::Bool(bool) => Ok(Some(bool.to_string())),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(Some(number.to_string())),
        Value::Number(number) => Err(format!("the dedup key {number}, which is no whole number")),
        Value::Null | Value::Array(_) | Value::Object(_) => Ok(None),
    }
}

impl Named for Thing {
    fn named(&self, name: &str) -> Value {
        match name {
            "user_id" => self.user.as_str().into(),
            "type" => self.event_type.as_str().into(),
            "category" => self.category.as_str().into(),
            "tenant" => self.tenant.as_str().into(),
            "priority" => self.priority.as_str().into(),
            "channel" => match (self.leg, self.channel()) {
                (Some(_), Some(channel)) => channel.as_str().into(),
                _ => Value::Null,
            },
            "actors" => self.actors_count().into(),
            "activities" => self.activities().into(),
            other => match (other.strip_prefix("data."), self.members.last()) {
                (Some(path), Some(newest)) => below(&newest.data, path),
                _ => Value::Null,
            },
        }
    }
}
