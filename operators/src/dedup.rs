//! `dedup`: the first event of a wish within the window passes; a repeat becomes a row that names
//! the original.
//!
//! The key is what the type's policy says, else the producer's id (see `validate`'s ids), and the
//! operation, so that a cancel is not swallowed by its target. What deliver gives back comes in by a
//! port of its own, because deliver repeats itself after a crash: each return of a leg passes once.
//!
//! ```text
//! 10:00  like-77   -> goes on
//! 10:01  like-77   -> deduplicated (e_… of 10:00)
//! +24 h  like-77   -> goes on
//! ```
//! Keeps a note per key, 36 bytes and a slot of an index, for the window.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::ids::{EventId, IdHasher};
use tidings_schemas::lifecycle::{State as Did, Unit};
use tidings_schemas::reason::Reason;
use tidings_schemas::units::Period;

use crate::item::Item;
use crate::keyed::{About, Cx, NoteId, Notes, Operator, State};
use crate::params::Report;

/// Parameters of `dedup`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DedupParams {
    /// How long a wish is remembered. Default 24h.
    #[serde(default = "day")]
    pub window: Period,
}

fn day() -> Period {
    Period(Duration::from_secs(86_400))
}

/// Who came first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstV1(EventId);
impl State for FirstV1 {}

/// The operator.
pub struct Dedup {
    window: Duration,
}

impl Operator for Dedup {
    const KIND: &'static str = "dedup";
    type Params = DedupParams;
    type User = ();
    type Entry = FirstV1;
    type Body = ();
    type Store = Notes<Self>;

    fn check(params: &DedupParams, report: &mut Report<'_>) {
        report.positive("window", params.window.0);
    }

    fn new(params: DedupParams) -> Self {
        Self { window: params.window.0 }
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
        let id = if item.returned.is_some() { return_id(&item) } else { item.dedup_key.0 };
        let event = item.first_event();
        if let Some(FirstV1(first)) = cx.noted(&id).cloned() {
            // A record that was handed over twice has one event id: it is one event, not a repeat of
            // one. So is a return that deliver said twice.
            if first != event {
                let about = About::member(&item, item.newest());
                let cause = format!("repeats {first}");
                cx.record_caused(Unit::Event, about, &[Did::Deduplicated], Some(Reason::Duplicate), &cause);
            }
            return;
        }
        cx.note(&id, FirstV1(event), self.window);
        cx.emit(0, item);
    }
}

/// What makes two returns the same: notification, channel, address, replay, number of the return.
fn return_id(item: &Item) -> NoteId {
    let mut hasher = IdHasher::new("returned");
    hasher.field(&item.notification.0).text(item.channel().map_or("", |channel| channel.as_str()));
    hasher.text(item.only_address.as_deref().unwrap_or("")).number(u64::from(item.replay));
    hasher.number(u64::from(item.returns));
    hasher.finish()
}
