//! `schedule`: holds an event until `scheduled_at`; a cancellation or retraction takes it out.
//!
//! What is due expires if its `expires_at` has passed. A critical event is handed over to the
//! critical path the moment it is due. Due means within an epoch, one release per event.
//!
//! ```text
//! 10:00  reminder, scheduled_at 15:00   -> parked until 15:00
//! 11:00  cancel reminder                -> cancelled, the reminder too
//! 15:00                                 -> (nothing)
//! ```
//! Keeps the event, once, until it is due.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::channel::{Op, Priority};
use tidings_schemas::lifecycle::State as Did;
use tidings_schemas::reason::Reason;

use crate::item::Item;
use crate::keyed::{Cx, Operator, PORT_CRITICAL, Subkey, Table, TimerId};

const DUE: TimerId = TimerId(0);

/// `schedule` has no parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleParams {}

/// The operator.
pub struct Schedule;

impl Operator for Schedule {
    const KIND: &'static str = "schedule";
    /// An item carries one date. Of a merged one the others were told as merged, and would wait unsaid.
    const SINGLE: bool = true;
    type Params = ScheduleParams;
    type User = ();
    type Entry = ();
    type Body = Option<Box<Item>>;
    type Store = Table<Self>;

    fn new(_: ScheduleParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, mut item: Box<Item>) {
        if item.is_control() {
            take_out(cx, &mut item);
            return cx.emit(0, item);
        }
        if item.expires_at.is_some_and(|at| at <= cx.now()) {
            return cx.record_events(&item, &[Did::Expired], Some(Reason::Expired), None);
        }
        match item.scheduled_at.filter(|at| *at > cx.now()) {
            None => cx.emit(0, item),
            Some(at) => {
                let subkey = Subkey::from(&item.first_event().0);
                cx.record_events(&item, &[Did::Scheduled, Did::Parked], None, Some(at));
                cx.set_body(&subkey, Some(item));
                cx.set_timer(&subkey, DUE, at);
            }
        }
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, _: TimerId) {
        let Some((_, Some(mut item))) = cx.remove(subkey) else { return };
        if item.expires_at.is_some_and(|at| at <= cx.now()) {
            return cx.record_events(&item, &[Did::Expired], Some(Reason::Expired), None);
        }
        item.scheduled_at = None;
        item.ready_at = cx.now();
        let port = if item.priority == Priority::Critical { PORT_CRITICAL } else { 0 };
        cx.emit(port, item);
    }
}

fn take_out(cx: &mut Cx<'_, Schedule>, control: &mut Item) {
    let (did, reason) = match control.op {
        Op::Cancel => (Did::Cancelled, Reason::Cancelled),
        Op::Retract | Op::Notify => (Did::Retracted, Reason::Retracted),
    };
    for subkey in cx.subkeys() {
        let named = |item: &Item| item.members.iter().any(|member| control.names(item, member));
        if cx.body(&subkey).is_some_and(|body| body.as_deref().is_some_and(named)) {
            let Some((_, Some(item))) = cx.remove(&subkey) else { continue };
            cx.record_events(&item, &[did], Some(reason), None);
            control.matched += 1;
        }
    }
}
