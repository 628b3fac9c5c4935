//! `cool_down`: one item per user and type passes; what follows within the span is suppressed.
//!
//! The example of CONTRIBUTING.md, "Add an operator". As a part of the house this file is
//! `operators/src/cool_down.rs`, says `crate::` where it says `tidings_operators::` here, has no
//! `main`, and is registered by a `pub mod` line in `lib.rs` and one line in `registry.rs`. Run it:
//! `cargo run -p tidings-operators --example add_an_operator`.
//!
//! ```text
//! span 6h
//! 10:00  new_follower alice   -> goes on
//! 12:00  new_follower bob     -> suppressed (rate_limited)
//! 16:00  new_follower carol   -> goes on
//! ```
//! Keeps 8 bytes per user and type for the span; an entry is forgotten by its own timer.

use std::io::Write as _;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_operators::item::Item;
use tidings_operators::keyed::{Cx, Operator, State, Subkey, Table, TimerId};
use tidings_operators::params::Report;
use tidings_schemas::channel::Priority;
use tidings_schemas::lifecycle::State as Did;
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_schemas::units::Period;

const FORGET: TimerId = TimerId(0);

/// Parameters of `cool_down`. The JSON Schema for editors, and the loader's messages about unknown
/// keys and wrong values, come from this type.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoolDownParams {
    /// How long nothing more of a type passes. Default 6h.
    #[serde(default = "six_hours")]
    pub span: Period,
}

fn six_hours() -> Period {
    Period(Duration::from_secs(6 * 3600))
}

/// Until when a type is held back for a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoolV1 {
    until: Instant,
}

// Version 1. A change of the fields is a version 2 with a `migrate` that reads version 1.
impl State for CoolV1 {}

/// The operator.
pub struct CoolDown {
    span: Duration,
}

impl Operator for CoolDown {
    const KIND: &'static str = "cool_down";
    type Params = CoolDownParams;
    type User = ();
    type Entry = CoolV1;
    type Body = ();
    type Store = Table<Self>;

    fn check(params: &CoolDownParams, report: &mut Report<'_>) {
        report.positive("span", params.span.0);
    }

    fn new(params: CoolDownParams) -> Self {
        Self { span: params.span.0 }
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
        // A cancel looks for its target below, a returned leg was judged before, critical never waits.
        if item.is_control() || item.returned.is_some() || item.priority == Priority::Critical {
            return cx.emit(0, item);
        }
        let subkey = Subkey::of(&[&item.tenant, &item.event_type]);
        // By the instant kept, not by the entry's being there: after an outage a timer may fire late.
        if cx.entry(&subkey).is_some_and(|cool| cool.until > cx.now()) {
            return cx.record_events(&item, &[Did::Suppressed], Some(Reason::RateLimited), None);
        }
        let until = cx.now().after(self.span);
        *cx.entry_mut(&subkey) = CoolV1 { until };
        cx.set_timer(&subkey, FORGET, until);
        cx.emit(0, item);
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, _: TimerId) {
        cx.remove(subkey);
    }
}

/// Shows what the loader asks a kind: are these parameters right, and what is their schema?
fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for span in ["6h", "0s"] {
        let params: CoolDownParams = serde_json::from_value(serde_json::json!({ "span": span }))?;
        let mut report = Report::new(None);
        CoolDown::check(&params, &mut report);
        match report.findings.first() {
            Some(finding) => writeln!(out, "{}: {finding}", CoolDown::KIND)?,
            None => writeln!(out, "{}: nothing more of a type for {:?}", CoolDown::KIND, CoolDown::new(params).span)?,
        }
    }
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(CoolDownParams))?;
    writeln!(out, "{schema}")
}
