//! The tail: follows what the stages say into the console.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings_operators::params::SideInput;
use tidings_schemas::block::{Block, Kind};
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::{HEADER_EVENT, LaneRecord};
use tidings_schemas::profile::Profile;
use tidings_sinks::log::{Log, Reader, Record, TopicPartition};

use crate::assemble;
use crate::console::Console;
use crate::topology::{Config, Role};

/// Pause between two rounds that brought nothing: what the page may lag behind.
const PAUSE: Duration = Duration::from_millis(25);

/// Records of one poll.
const RECORDS_MAX: usize = 1024;

enum What {
    Events(String),
    Profiles,
    Lanes,
    Rows,
}

struct Followed {
    what: What,
    partition: TopicPartition,
    reader: Box<dyn Reader>,
}

/// What a topic's records are, by the name of their source.
type Meaning = fn(&str) -> What;

/// Follows topics from where they end now.
pub(super) struct Tail {
    followed: Vec<Followed>,
    console: Console,
}

impl Tail {
    pub(super) fn open(
        log: &Arc<dyn Log>,
        config: &Config,
        partitions: &BTreeMap<String, u32>,
        console: Console,
    ) -> anyhow::Result<Self> {
        let topics = config.topology.topics();
        let mut wanted: Vec<(String, Meaning, String)> = Vec::new();
        for source in &config.topology.sources {
            let topic = assemble::topic_of(&config.topology, source);
            match source.role {
                Role::Events | Role::Critical => {
                    wanted.push((topic, |source| What::Events(source.to_owned()), source.name.clone()));
                }
                Role::SideInput(SideInput::Profile) => wanted.push((topic, |_| What::Profiles, String::new())),
                Role::SideInput(SideInput::Reachability) | Role::Returned => {}
            }
        }
        for channel in config.topology.sinks.keys() {
            for priority in tidings_schemas::channel::Priority::ALL {
                wanted.push((topics.lane(*channel, *priority), |_| What::Lanes, String::new()));
            }
        }
        wanted.push((topics.lifecycle(), |_| What::Rows, String::new()));
        let mut followed = Vec::new();
        for (topic, what, source) in wanted {
            for partition in 0..partitions.get(&topic).copied().unwrap_or(1) {
                let partition = TopicPartition { topic: topic.as_str().into(), partition };
                let reader = log.reader(&partition, log.range(&partition)?.end)?;
                followed.push(Followed { what: what(&source), partition, reader });
            }
        }
        Ok(Self { followed, console })
    }

    pub(super) fn run(mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let mut quiet = true;
            for followed in &mut self.followed {
                match followed.reader.poll(RECORDS_MAX, Duration::ZERO) {
                    Ok(batch) => {
                        quiet &= batch.records.is_empty();
                        for record in batch.records {
                            observe(&self.console, followed, record);
                        }
                    }
                    // The page lags; nothing depends on it.
                    Err(error) if error.is_transient() => tracing::debug!(%error, "the console cannot follow"),
                    Err(error) => tracing::warn!(%error, "the console cannot follow"),
                }
            }
            if quiet {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

fn observe(console: &Console, followed: &Followed, record: Record) {
    let value = record.value.as_deref().unwrap_or_default();
    match &followed.what {
        What::Events(source) => {
            let kept = record.header(HEADER_EVENT).and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
            let own = EventId::new(source, followed.partition.partition, record.offset);
            console.observe_event(kept.unwrap_or(own), record.timestamp, value, None);
        }
        What::Profiles => {
            let user = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            if let (Some(user), Ok(profile)) = (user, Profile::from_json(record.value.as_deref())) {
                console.observe_profile(user, &profile, record.timestamp, None);
            }
        }
        What::Lanes => {
            if let Ok(lane) = serde_json::from_slice::<LaneRecord>(value) {
                console.observe_lane(&lane);
            }
        }
        What::Rows => {
            let block = Block::decode_header(value).ok().filter(|block| block.header.kind == Kind::Rows);
            if let Some(Ok(rows)) = block.map(|block| block.decode_rows()) {
                console.observe_rows(&rows);
            }
        }
    }
}
