//! What flows through tidings, in reading order: names and ids, what comes in, what the graph
//! passes on, what goes out. Types and their encodings only: no I/O, no clock, no randomness.

pub mod channel;
pub mod codec;
pub mod ids;
pub mod time;
pub mod units;

pub mod cloudevents;
pub mod event;
pub mod plain;
pub mod profile;

pub mod policy;
pub mod reason;

mod json;
pub mod lane;
pub mod lifecycle;
pub mod topics;

pub mod block;
pub mod migrations;
pub mod rows;

pub mod deliberate;
