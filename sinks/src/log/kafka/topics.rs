//! Topics: what they are like, what they should be like, making and trimming them.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{BATCH_BYTES_MAX, Kafka, MOVE_PAUSE, is_missing, list, native, raw, unreachable, unsigned, wait_for};
use crate::log::{LogError, Retention, TopicPartition, TopicSpec};

impl Kafka {
    pub(super) fn options(&self) -> AdminOptions {
        let patience = Some(self.params.patience);
        AdminOptions::new().request_timeout(patience).operation_timeout(patience)
    }

    /// The settings of the topics that exist among `names`.
    pub(super) fn settings(&self, names: &[String]) -> Result<BTreeMap<String, Settings>, LogError> {
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        if resources.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = wait_for(self.admin.describe_configs(&resources, &self.options()));
        let mut settings = BTreeMap::new();
        for (name, resource) in names.iter().zip(found.map_err(|error| unreachable(&error))?) {
            match resource {
                Ok(resource) => {
                    let entries = resource.entries.into_iter();
                    let of = entries.map(|entry| (entry.name, entry.value.unwrap_or_default())).collect();
                    settings.insert(name.clone(), of);
                }
                Err(code) if is_missing(code) => {}
                Err(code) => return Err(LogError::Unreachable(format!("topic `{name}`: {code}"))),
            }
        }
        Ok(settings)
    }

    pub(super) fn describe(&self, names: &[String]) -> Result<Vec<(TopicSpec, Settings)>, LogError> {
        let metadata = self.desk.fetch_metadata(None, self.params.patience).map_err(|error| unreachable(&error))?;
        let found =
            |name: &String| metadata.topics().iter().find(|it| it.name() == name && !it.partitions().is_empty());
        let existing: Vec<String> = names.iter().filter(|name| found(name).is_some()).cloned().collect();
        let mut settings = self.settings(&existing)?;
        let mut topics = Vec::new();
        for name in existing {
            let (Some(topic), Some(settings)) = (found(&name), settings.remove(&name)) else { continue };
            let copies = topic.partitions().iter().map(|it| it.replicas().len()).min().unwrap_or(0);
            let spec = TopicSpec {
                name,
                partitions: u32::try_from(topic.partitions().len()).unwrap_or(u32::MAX),
                retention: retention_of(&settings),
                replication: u16::try_from(copies).unwrap_or(u16::MAX),
                min_insync: number(&settings, "min.insync.replicas").and_then(|it| u16::try_from(it).ok()).unwrap_or(1),
            };
            topics.push((spec, settings));
        }
        Ok(topics)
    }

    pub(super) fn create(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let settings: Vec<_> = topics.iter().map(settings_for).collect();
        let mut new = Vec::new();
        for (topic, settings) in topics.iter().zip(&settings) {
            let partitions = native(topic.partitions)?;
            let mut it = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(i32::from(topic.replication)));
            for (name, value) in settings {
                it = it.set(name, value);
            }
            new.push(it);
        }
        if new.is_empty() {
            return Ok(());
        }
        let results = wait_for(self.admin.create_topics(&new, &self.options())).map_err(|error| unreachable(&error))?;
        for result in results {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(LogError::Refused(format!("topic `{name}`: {code}"))),
            }
        }
        self.leaders_of(topics)
    }

    /// Waits until each partition has a leader: the brokers hear of a new topic after its creation.
    pub(super) fn leaders_of(&self, topics: &[TopicSpec]) -> Result<(), LogError> {
        let mut pauses_left = self.params.patience.as_millis() / MOVE_PAUSE.as_millis();
        loop {
            let metadata = self.desk.fetch_metadata(None, self.params.patience).map_err(|error| unreachable(&error))?;
            let led = |topic: &&TopicSpec| {
                let found = metadata.topics().iter().find(|it| it.name() == topic.name);
                found.is_some_and(|it| !it.partitions().is_empty() && it.partitions().iter().all(|it| it.leader() >= 0))
            };
            match topics.iter().find(|topic| !led(topic)) {
                None => return Ok(()),
                Some(topic) if pauses_left == 0 => {
                    return Err(LogError::Unreachable(format!("topic `{}` has no leader yet", topic.name)));
                }
                Some(_) => {}
            }
            pauses_left -= 1;
            std::thread::sleep(MOVE_PAUSE);
        }
    }

    pub(super) fn trim(&self, partition: &TopicPartition, before: u64) -> Result<(), LogError> {
        self.exists(partition)?;
        let offsets = list([(partition, raw(before))])?;
        let done =
            wait_for(self.admin.delete_records(&offsets, &self.options())).map_err(|error| unreachable(&error))?;
        match done.elements().first().map(|it| it.error()) {
            Some(Err(KafkaError::OffsetFetch(RDKafkaErrorCode::OffsetOutOfRange))) => {
                Err(self.out_of_range(partition, before))
            }
            Some(Err(error)) => Err(LogError::Unreachable(error.to_string())),
            _ => Ok(()),
        }
    }
}

/// A topic's settings, by Kafka's names.
pub(super) type Settings = BTreeMap<String, String>;

fn number(settings: &Settings, name: &str) -> Option<i64> {
    settings.get(name)?.parse().ok()
}

fn span(millis: i64) -> Duration {
    Duration::from_millis(unsigned(millis))
}

fn retention_of(settings: &Settings) -> Retention {
    let policy = settings.get("cleanup.policy").map_or("delete", String::as_str);
    if policy.split(',').any(|it| it.trim() == "compact") {
        let lag = number(settings, "min.compaction.lag.ms").unwrap_or(0);
        return Retention::Compacted(span(lag.min(number(settings, "delete.retention.ms").unwrap_or(0))));
    }
    match number(settings, "retention.ms").unwrap_or(0) {
        ..0 => Retention::Forever,
        millis => Retention::For(span(millis)),
    }
}

fn settings_for(topic: &TopicSpec) -> Vec<(&'static str, String)> {
    let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX).to_string();
    let mut settings = vec![
        ("min.insync.replicas", topic.min_insync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("max.message.bytes", BATCH_BYTES_MAX.to_string()),
        ("retention.bytes", "-1".to_owned()),
    ];
    settings.extend(match topic.retention {
        Retention::For(span) => vec![("cleanup.policy", "delete".to_owned()), ("retention.ms", millis(span))],
        Retention::Forever => vec![
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", "-1".to_owned()),
            ("message.timestamp.type", "LogAppendTime".to_owned()),
        ],
        Retention::Compacted(lag) => vec![
            ("cleanup.policy", "compact".to_owned()),
            ("min.compaction.lag.ms", millis(lag)),
            ("delete.retention.ms", millis(lag)),
        ],
    });
    settings
}

/// Settings of Kafka's own that make a topic weaker, whatever it should be like.
pub(super) fn own_weaknesses(name: &str, settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    let setting = |name: &str| settings.get(name).map_or("", String::as_str);
    if setting("unclean.leader.election.enable") == "true" {
        found.push(format!(
            "topic `{name}`: unclean.leader.election.enable is true, so acknowledged records can vanish; set it to false"
        ));
    }
    if number(settings, "retention.bytes").is_some_and(|bytes| bytes >= 0) {
        let bytes = setting("retention.bytes");
        found.push(format!("topic `{name}`: retention.bytes is {bytes}, so a burst shortens retention; set it to -1"));
    }
    let policy = setting("cleanup.policy");
    if policy.contains("compact") && policy.contains("delete") {
        found.push(format!(
            "topic `{name}`: cleanup.policy is {policy}, so newest records vanish by age; set it to compact"
        ));
    }
    if number(settings, "max.message.bytes").is_some_and(|bytes| unsigned(bytes) < BATCH_BYTES_MAX as u64) {
        let bytes = setting("max.message.bytes");
        found.push(format!(
            "topic `{name}`: max.message.bytes is {bytes}, a record may have more; set it to at least {BATCH_BYTES_MAX}"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_lose_records_are_named() {
        let cases = [
            ("unclean.leader.election.enable", "true", "unclean.leader.election.enable is true"),
            ("retention.bytes", "1000", "retention.bytes is 1000"),
            ("cleanup.policy", "compact,delete", "cleanup.policy is compact,delete"),
            ("max.message.bytes", "1000", "max.message.bytes is 1000"),
            ("retention.bytes", "-1", ""),
        ];
        for (name, value, expected) in cases {
            let settings = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let found = own_weaknesses("t", &settings).join("\n");
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{name}={value}: {found}");
        }
    }

    #[test]
    fn what_we_ask_for_is_what_we_read_back() {
        for retention in [
            Retention::For(Duration::from_secs(691_200)),
            Retention::Forever,
            Retention::Compacted(Duration::from_secs(691_200)),
        ] {
            let topic = TopicSpec { name: "t".to_owned(), partitions: 1, retention, replication: 3, min_insync: 2 };
            let settings = settings_for(&topic).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            assert_eq!(retention_of(&settings), retention);
            assert_eq!(own_weaknesses("t", &settings), Vec::<String>::new());
        }
    }
}
