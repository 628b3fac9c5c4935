//! The operators of the decide stage, and the one harness that runs them on timely.
//!
//! In reading order: what flows ([`item`], [`ingest`]), what an operator is ([`keyed`]), what several
//! of them ask ([`candidates`], [`quiet`], [`parked`]), the operators themselves from the top of the
//! graph down, and the engine ([`harness`]).

pub mod calendar;
pub mod ingest;
pub mod item;
pub mod rules;
pub mod when;

pub mod keyed;
mod packed;
pub mod params;
pub mod registry;
pub mod short;

pub mod candidates;
pub mod parked;
pub mod quiet;

pub mod validate;

pub mod dedup;

pub mod schedule;

pub mod preferences;

pub mod aggregate;

pub mod route;

pub mod quiet_hours;

pub mod rate_limit;

pub mod lanes;

pub mod harness;
pub mod script;
