//! `validate`: what is an event goes on, what belongs on the other path goes there.
//!
//! Payloads are read before the exchange ([`crate::ingest`]); what is no event never gets here. This
//! operator opens the event's story and keeps the two paths apart: type policy decides what is
//! critical, whoever calls and whatever topic they wrote to. A critical event that was written
//! elsewhere is handed over; one that is scheduled waits here and is handed over when it is due.
//!
//! ```text
//! order_shipped, events.medium       -> goes on
//! verification_code, events.low      -> events.critical, under its own event id
//! like, events.critical              -> events.high, under its own event id
//! ```
//!
//! A record that was handed over may come twice, because the other path repeats itself after a crash. The
//! second copy of an event is dropped without a row: its story was opened. Keeps a byte for each event that
//! was handed over, for a day; nothing for others.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::Priority;
use tidings_schemas::lifecycle::State as Did;

use crate::ingest::Path;
use crate::item::Item;
use crate::keyed::{Cause, Cx, Operator, PORT_CRITICAL, PORT_HIGH, State, Subkey, Table, TimerId};
use crate::params::Position;

const FORGET: TimerId = TimerId(0);

/// How long a copy of what was handed over is told from a new event. The other path repeats what it had
/// not committed when it died, so that copies are as far apart as it was away; beyond a day the copy opens
/// the event's story again, and `dedup` still lets it pass once only.
const COPIES_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// `validate` has no parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateParams {}

/// An event that was handed over: it is here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HereV1;

impl State for HereV1 {}

/// The operator.
pub struct Validate;

impl Operator for Validate {
    const KIND: &'static str = "validate";
    const POSITION: Position = Position::First;
    type Params = ValidateParams;
    type User = ();
    type Entry = HereV1;
    type Body = ();
    type Store = Table<Self>;

    fn new(_: ValidateParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
        if cx.path() == Path::Decide && matches!(cx.cause(), Cause::HandedOver(_)) {
            let subkey = Subkey::from(&item.first_event().0);
            if cx.entry(&subkey).is_some() {
                return;
            }
            *cx.entry_mut(&subkey) = HereV1;
            cx.set_timer(&subkey, FORGET, cx.now().after(COPIES_WITHIN));
        }
        let immediate = item.scheduled_at.is_none_or(|at| at <= cx.now());
        let critical = !item.is_control() && item.priority == Priority::Critical && immediate;
        match cx.path() {
            // The other path opens the story, under the same event id.
            Path::Decide if critical => cx.emit(PORT_CRITICAL, item),
            Path::Critical if !critical => cx.emit(PORT_HIGH, item),
            Path::Decide | Path::Critical => {
                cx.record_events(&item, &[Did::Created, Did::Validated], None, None);
                cx.emit(0, item);
            }
        }
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, _: TimerId) {
        cx.remove(subkey);
    }
}

#[cfg(test)]
mod tests {
    use tidings_schemas::ids::EventId;
    use tidings_schemas::lane::HEADER_EVENT;
    use tidings_schemas::time::Instant;

    use super::*;
    use crate::harness::chain::Block;
    use crate::harness::feed::{Lot, RawRecord};
    use crate::ingest::ingest;
    use crate::script;

    #[test]
    fn an_event_that_is_handed_over_twice_is_opened_once() {
        let none = serde_json::json!({});
        let mut chain =
            script::straight(&[("validate", none.clone(), None), ("route", none, None)]).chain(Path::Decide).unwrap();
        let (rules, sources) = (script::rules_of(&script::policies(), Duration::ZERO), script::sources());
        let lot = Lot { source: 0, partition: 0 };
        let mut rows = |epoch: u64, hours: i64, event: Option<EventId>| {
            let headers = event.map(|event| (HEADER_EVENT.to_owned(), event.to_string().into()));
            let record = RawRecord {
                offset: epoch,
                key: Some("u1".into()),
                value: Some(r#"{"type":"like","user_id":"u1"}"#.into()),
                headers: headers.into_iter().collect(),
                timestamp: Instant(0),
            };
            let records = vec![ingest(&sources[0], lot, &record, &rules, Path::Decide)];
            let now = Instant(hours * 3_600_000);
            let output = chain.epoch(epoch, now, &rules, vec![Block { lot, target: 0, records }]);
            output.rows.decode().iter().filter(|row| row.states.contains(&Did::Created)).count()
        };
        let (one, other) = (EventId::new("there", 0, 7), EventId::new("there", 0, 8));
        assert!(rows(1, 0, Some(one)) > 0);
        assert_eq!(rows(2, 1, Some(one)), 0, "in another epoch");
        assert!(rows(3, 2, Some(other)) > 0 && rows(4, 3, None) > 0, "and others pass");
        assert_eq!(rows(5, 23, Some(one)), 0);
        assert!(rows(6, 49, Some(one)) > 0, "a day later nobody remembers");
    }
}
