//! The contract between decide and deliver: lane records and marks.
//!
//! A lane record is JSON, legible with kcat; its headers `g` (generation), `e` (epoch) and
//! `ordinal` let a reader drop repeats of an epoch that a mark has passed. Records of the critical
//! path have none of the three.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::channel::{Channel, Priority};
use crate::event::Object;
use crate::ids::{EventId, GroupId, LegId, NotificationId};
use crate::reason::Reason;
use crate::time::Instant;

/// Header: the generation that wrote the record.
pub const HEADER_GENERATION: &str = "g";
/// Header: the epoch whose output it is.
pub const HEADER_EPOCH: &str = "e";
/// Header: its place within the epoch.
pub const HEADER_ORDINAL: &str = "ordinal";
/// Header: the record is a [`Mark`].
pub const HEADER_MARK: &str = "mark";
/// Header: the event id that a handed-over record keeps.
pub const HEADER_EVENT: &str = "event";
/// Header: when a record of a retry topic is due, RFC 3339.
pub const HEADER_DUE: &str = "due";

/// The version that [`LaneRecord::v`] has today.
pub const LANE_VERSION: u8 = 1;

/// What the producer asked for, kept for the way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Explicit channels, all of them used.
    #[serde(default)]
    pub channels: Vec<Channel>,
    /// Channels to try one after the other when delivery fails for good.
    #[serde(default)]
    pub fallback: Vec<Channel>,
}

/// One notification on its way to one channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneRecord {
    /// Format version.
    pub v: u8,
    /// What is said.
    pub notification: NotificationId,
    /// The leg.
    pub leg: LegId,
    /// The group it came from, zero if it was never merged.
    pub group: GroupId,
    /// The first event; the only one of a notification of one.
    pub event: EventId,
    /// Who is told.
    pub user: String,
    /// The tenant.
    pub tenant: String,
    /// The type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The category.
    pub category: String,
    /// The priority.
    pub priority: Priority,
    /// The channel.
    pub channel: Channel,
    /// In-app without a badge.
    pub silent: bool,
    /// The template, where the producer or the policy names one.
    #[serde(default)]
    pub template_id: Option<String>,
    /// The user's locale.
    #[serde(default)]
    pub locale: Option<String>,
    /// Variables for the text.
    #[serde(default)]
    pub data: BTreeMap<String, serde_json::Value>,
    /// The first actors' names.
    #[serde(default)]
    pub actors: Vec<String>,
    /// Distinct actors.
    pub actors_count: u64,
    /// Events merged.
    pub activities: u64,
    /// To what it was done, where all members agree.
    #[serde(default)]
    pub object: Option<Object>,
    /// Ids of the members that are kept.
    #[serde(default)]
    pub members: Vec<EventId>,
    /// What the producer asked for.
    #[serde(default)]
    pub request: Request,
    /// Candidates that were struck, with reason.
    #[serde(default)]
    pub struck: Vec<(Channel, Reason)>,
    /// How often it came back.
    pub returns: u32,
    /// When the oldest member was accepted.
    pub created_at: Instant,
    /// When it was last released.
    pub ready_at: Instant,
    /// Not after this.
    #[serde(default)]
    pub expires_at: Option<Instant>,
    /// Beyond this decide must judge it again.
    pub fresh_until: Instant,
    /// Channels to try next when all addresses failed; on the first leg only.
    #[serde(default)]
    pub fallback_channels: Vec<Channel>,
    /// Which replay of the notification this is.
    pub replay: u32,
    /// Only to this address.
    #[serde(default)]
    pub only_address: Option<String>,
}

/// Why a leg comes back to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReturnCause {
    /// `fresh_until` passed before it could be sent: the same channel is judged anew.
    Stale,
    /// Every address failed for good: the next fallback.
    Undeliverable,
    /// An operator replays it from the dead-letter queue.
    Replay,
}

/// A record of `notifications.returned`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Returned {
    /// Why.
    pub cause: ReturnCause,
    /// The leg as it was.
    pub leg: LaneRecord,
}

/// Says in a lane partition that every epoch up to `said_through` was said: readers drop records
/// of those epochs that come after it, because they are repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The generation that wrote it.
    pub g: u64,
    /// The highest epoch that was said.
    pub said_through: u64,
}
