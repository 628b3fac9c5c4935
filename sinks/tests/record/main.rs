//! The record against real servers.
//!
//! `TIDINGS_TEST_CLICKHOUSE=http://…` names a ClickHouse; each test makes a database of its own there.
//! `TIDINGS_TEST_KAFKA=host:port` names a broker; each test makes topics of its own there.
//! `TIDINGS_TEST_CLICKHOUSE_LAUNCH="launcher {data} {port}"` starts one that may be killed. What is not set
//! is skipped, loudly.

mod agreement;
mod files;
mod kafka;
mod support;
mod views;
mod writer;
