//! The main job on real services: raw events in Kafka, the real binary, simulated providers over the
//! real wire, the record in ClickHouse.
//!
//! `TIDINGS_TEST_KAFKA`, `TIDINGS_TEST_REDIS` and `TIDINGS_TEST_CLICKHOUSE` name the services; where one is
//! missing the tests say `SKIPPED`. `TIDINGS_E2E_EVENTS` sets the number of events, and
//! `TIDINGS_E2E_SEED` what they are.

#[path = "../real/checks.rs"]
mod checks;
#[path = "../real/child.rs"]
mod child;
mod cluster;
mod frozen;
mod main_job;
mod mistakes;
#[path = "../real/workload.rs"]
mod workload;
#[path = "../real/world.rs"]
mod world;
