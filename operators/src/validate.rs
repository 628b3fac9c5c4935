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
//! Keeps nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::Priority;
use tidings_schemas::lifecycle::State as Did;

use crate::ingest::Path;
use crate::item::Item;
use crate::keyed::{Cx, Operator, PORT_CRITICAL, PORT_HIGH};
use crate::params::Position;

/// `validate` has no parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateParams {}

/// The operator.
pub struct Validate;

impl Operator for Validate {
    const KIND: &'static str = "validate";
    const POSITION: Position = Position::First;
    type Params = ValidateParams;
    type User = ();
    type Entry = ();
    type Body = ();

    fn new(_: ValidateParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
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
}
