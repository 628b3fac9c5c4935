//! From the file's shape to what it means: names, wiring, shares, policies, tests.
//!
//! Checks go on as long as they can: what could not be read is left out, its name stays known, so
//! that one fault makes one finding and not a trail of them.

mod delivery;
mod policies;
mod scenarios;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tidings_operators::params::{Names, Step};
use tidings_operators::when::{self, WhenError};
use tidings_schemas::channel::Channel;
use tidings_schemas::event::normal_type;
use tidings_schemas::topics::PREFIX;
use tidings_schemas::units::{Period, Share};
use tidings_sinks::record::clickhouse::{ClickHouseParams, InvalidUrl};

use super::config::{self, Config, Deployment, Input, Place, Role, Topology, VERSION};
use super::decode::{At, Captured, Findings, Lenient, Named, decode, describe, is_misspelt};
use super::diagnostic::{Code, Source, Span, TopologyError, one_of};
use super::kinds::{OperatorKind, Reader};
use super::tree::{Content, Document, NodeId};
use super::{Loader, raw};

/// Longest id or name, in bytes: it stands in every row and every state key.
const NAME_BYTES_MAX: usize = 64;
/// Most partitions of a topic. More bring nothing, as there are 1024 key groups; librdkafka and brokers
/// pay for each.
const PARTITIONS_MAX: u32 = 1024;
/// The time between two checkpoints where nothing is said (DESIGN §4).
const CHECKPOINT_EVERY: Period = Period(Duration::from_secs(5));
/// The folder of everything embedded where the log is not.
const DATA: &str = "./data";
/// What an address of ClickHouse looks like.
const CLICKHOUSE: &str = "one like `http://127.0.0.1:8123/?database=default`";

/// Checks `source`. Without a tree, or without what a [`Config`] can't do without, there is none;
/// with one, the findings may still refuse it.
pub(super) fn check(loader: &Loader<'_>, source: &Source) -> (Option<Config>, Vec<TopologyError>) {
    let mut syntax = Vec::new();
    let document = Document::parse(source, loader.environment, &mut syntax);
    let findings = Findings::new(syntax);
    let config = document.as_ref().and_then(|document| {
        let file: raw::File = decode(document, document.root, &findings)?;
        Check { loader, source, document, findings: &findings }.file(file)
    });
    let mut findings = findings.into_inner();
    if let Some(document) = &document {
        findings.iter_mut().for_each(|finding| hide_values(document, finding));
    }
    (config, findings)
}

/// Shorter values are hidden at their own place only: elsewhere they are part of ordinary words.
const HIDDEN_EVERYWHERE_MIN: usize = 6;

/// Puts what is written where a finding would show what came from outside.
fn hide_values(document: &Document, finding: &mut TopologyError) {
    for (span, value, written) in document.values_from_outside() {
        let here = span == finding.span;
        if value.is_empty() || !(here || value.len() >= HIDDEN_EVERYWHERE_MIN) {
            continue;
        }
        let texts = [Some(&mut finding.found), Some(&mut finding.expected), finding.hint.as_mut()];
        for text in texts.into_iter().flatten().filter(|text| text.contains(value)) {
            *text = text.replace(value, written);
        }
        if here {
            finding.nearest = None;
        }
    }
}

struct Check<'a> {
    loader: &'a Loader<'a>,
    source: &'a Source,
    document: &'a Document,
    findings: &'a Findings,
}

/// An operator as far as it could be read.
struct Draft<'a> {
    id: At<String>,
    kind_name: String,
    kind: Option<&'a OperatorKind>,
    /// Where the kind is written.
    kind_span: Span,
    inputs: Vec<At<String>>,
    when: Option<String>,
    params: Option<serde_json::Value>,
}

/// A source as far as it could be read.
struct SourceDraft {
    name: At<String>,
    source: Option<config::Source>,
    role: Option<Role>,
}

/// A sink as far as it could be read.
struct SinkDraft {
    channel: Option<Channel>,
    /// The inputs as written.
    inputs: Vec<At<String>>,
    sink: config::Sink,
}

impl<'a> Check<'a> {
    fn report(&self, finding: TopologyError) {
        self.findings.borrow_mut().push(finding);
    }

    /// The span of what a path of keys leads to.
    fn span(&self, path: &[&str]) -> Span {
        let steps: Vec<Step> = path.iter().map(|key| Step::Key((*key).to_owned())).collect();
        self.document.span_at(self.document.root, &steps)
    }

    /// The node that a path of keys leads to.
    fn node(&self, path: &[&str]) -> Option<NodeId> {
        path.iter().try_fold(self.document.root, |at, key| self.document.get(at, key).map(|(_, value)| value))
    }

    /// The span of a top-level key, or of the file's beginning.
    fn section(&self, key: &str) -> Span {
        match self.document.get(self.document.root, key) {
            Some((name, _)) => self.document.node(name).span,
            None => self.document.node(self.document.root).span,
        }
    }

    /// A key that `mapping` must have and has not: unless it is there, misspelt, and reported as such.
    fn missing_in(&self, mapping: NodeId, at: Span, key: &str, hint: &str) {
        if is_misspelt(self.document, mapping, key, self.findings) {
            return;
        }
        let finding =
            TopologyError::new(Code::MissingKey, at, format!("the key `{key}` is missing"), format!("`{key}` here"));
        self.report(finding.hint(hint));
    }

    fn missing(&self, key: &str, hint: &str) {
        let root = self.document.root;
        self.missing_in(root, self.document.node(root).span, key, hint);
    }

    /// A name that can stand in state keys, topics and columns.
    fn name(&self, name: &At<String>, what: &str) {
        let good = name.value.starts_with(|c: char| c.is_ascii_lowercase())
            && name.value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && name.value.len() <= NAME_BYTES_MAX;
        if !good {
            let expected =
                format!("lower-case letters, digits and `_`, a letter first, at most {NAME_BYTES_MAX} bytes");
            let finding = TopologyError::new(
                Code::InvalidName,
                name.span,
                format!("`{}` is no name for {what}", name.value),
                expected,
            );
            let normal = normal_type(&name.value);
            self.report(if normal == name.value { finding } else { finding.hint(format!("write `{normal}`")) });
        }
    }

    fn file(&self, file: raw::File) -> Option<Config> {
        match &file.version {
            None => self.missing("version", "begin the file with `version: 1`"),
            Some(Lenient(Some(version))) if version.value != VERSION => self.report(TopologyError::new(
                Code::UnsupportedVersion,
                version.span,
                format!("version {} of the language", version.value),
                format!("version {VERSION}, the one that this build reads"),
            )),
            Some(_) => {}
        }
        let policies = self.policies(file.policies);
        let names = Names {
            types: policies.types.keys().filter(|name| *name != "default").cloned().collect(),
            categories: policies.categories.keys().cloned().collect(),
        };
        let sources = self.sources(file.sources);
        let operators = self.operators(file.operators, &names, &sources);
        let order = self.wiring(&sources, &operators);
        let providers = self.providers(file.providers, &names);
        let sinks = self.sinks(file.sinks, &sources, &operators, providers.as_ref());
        self.route_and_outputs(&sources, &operators, sinks.as_deref());
        let tests = self.tests(file.tests, &names);
        let topics = file.topics.and_then(|topics| topics.0);
        let topic_prefix = self.topic_prefix(topics.as_ref());
        self.hand_overs(&sources, &policies, &topic_prefix);
        let deployment = self.deployment(
            (file.log, file.checkpoints, file.ledger, file.directory, file.record),
            topics.as_ref(),
            providers.unwrap_or_default(),
        )?;
        if self.refused() {
            return None;
        }
        let topology = Topology {
            version: VERSION,
            topic_prefix,
            sources: sources.into_iter().filter_map(|draft| draft.source).collect(),
            operators: in_order(&order, operators)?,
            sinks: sinks?.into_iter().filter_map(|draft| Some((draft.channel?, draft.sink))).collect(),
        };
        Some(Config { topology, policies, deployment, tests })
    }

    fn refused(&self) -> bool {
        self.findings.borrow().iter().any(|finding| finding.severity == super::Severity::Error)
    }

    fn topic_prefix(&self, topics: Option<&raw::Topics>) -> String {
        let Some(prefix) = topics.and_then(|topics| topics.prefix.as_ref()) else { return PREFIX.to_owned() };
        let good = !prefix.value.is_empty()
            && prefix.value.len() <= NAME_BYTES_MAX
            && prefix.value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !good {
            self.report(TopologyError::new(
                Code::InvalidName,
                prefix.span,
                "this is no prefix for topics",
                format!("letters, digits, `.`, `_` and `-`, at most {NAME_BYTES_MAX} bytes"),
            ));
        }
        prefix.value.clone()
    }

    fn topic_settings(&self, topics: Option<&raw::Topics>, one_machine: bool) -> config::TopicSettings {
        let mut settings = config::TopicSettings::standard(one_machine);
        let Some(topics) = topics else { return settings };
        if let Some(replication) = &topics.replication {
            if replication.value == 0 || (one_machine && replication.value > 1) {
                let found = format!("{} copies of each partition", replication.value);
                let expected = if one_machine { "1: an embedded log has one copy" } else { "1 or more" };
                self.report(TopologyError::new(Code::InvalidValue, replication.span, found, expected));
            }
            settings.replication = replication.value;
        }
        for (priority, count) in topics.partitions.iter().flat_map(|partitions| &partitions.0) {
            if !(1..=PARTITIONS_MAX).contains(&count.value) {
                let found = format!("{} partitions", count.value);
                let expected = format!("1 to {PARTITIONS_MAX}");
                self.report(TopologyError::new(Code::InvalidValue, count.span, found, expected));
            }
            settings.partitions.insert(priority.value, count.value);
        }
        settings
    }

    // ── sources ─────────────────────────────────────────────────────────────────────────────────

    fn sources(&self, sources: Option<Lenient<Named<Lenient<raw::Source>>>>) -> Vec<SourceDraft> {
        let Some(sources) = sources else {
            let hint = "say where events come from, like `high: { topic: notifications.events.high }`";
            self.missing("sources", hint);
            return Vec::new();
        };
        let (mut drafts, mut topics) = (Vec::new(), BTreeMap::<String, (Span, String)>::new());
        for (name, Lenient(source)) in sources.0.map(|named| named.0).unwrap_or_default() {
            self.name(&name, "a source");
            let mut draft = SourceDraft { name, source: None, role: None };
            if let Some(source) = source {
                self.source(&mut draft, source, &mut topics);
            }
            drafts.push(draft);
        }
        let mut total = 0u32;
        for draft in &drafts {
            let Some(source) = &draft.source else { continue };
            let share = u32::from(source.at_least.0);
            if total <= 100 && total + share > 100 {
                let found = format!("guaranteed shares of {}% together", total + share);
                let span = self.span(&["sources", &source.name, "at_least"]);
                self.report(TopologyError::new(Code::Shares, span, found, "at most 100% over all sources"));
            }
            total += share;
        }
        drafts
    }

    fn source(&self, draft: &mut SourceDraft, source: raw::Source, topics: &mut BTreeMap<String, (Span, String)>) {
        let name = &draft.name;
        let stdin = source.stdin.filter(|stdin| stdin.value);
        let places = [
            source.topic.as_ref().map(|topic| topic.span),
            source.file.as_ref().map(|file| file.span),
            stdin.as_ref().map(|stdin| stdin.span),
        ];
        let place = match (source.topic, source.file, stdin) {
            (Some(topic), None, None) => {
                if let Some((first, owner)) = topics.get(&topic.value) {
                    let found = format!("the topic `{}` is read by two sources", topic.value);
                    let finding = TopologyError::new(Code::SharedTopic, topic.span, found, "one source for each topic");
                    self.report(finding.related(*first, format!("`{owner}` reads it too")));
                }
                topics.insert(topic.value.clone(), (topic.span, name.value.clone()));
                Some(Place::Topic(topic.value))
            }
            (None, Some(file), None) => Some(Place::File(PathBuf::from(file.value))),
            (None, None, Some(_)) => Some(Place::Stdin),
            (None, None, None) => {
                let found = format!("the source `{}` reads from nowhere", name.value);
                let expected = "`topic: …`, `file: …` or `stdin: true`";
                self.report(TopologyError::new(Code::SourcePlace, name.span, found, expected));
                None
            }
            _ => {
                let found = format!("the source `{}` reads from several places", name.value);
                let expected = "one of `topic`, `file` and `stdin`";
                let last = places.into_iter().flatten().max().unwrap_or(name.span);
                self.report(TopologyError::new(Code::SourcePlace, last, found, expected));
                None
            }
        };
        let role = match (source.path, &source.side_input) {
            (None, None) => Role::Events,
            (Some(path), None) if path.value == raw::Path::Critical => Role::Critical,
            (Some(_), None) => Role::Returned,
            (None, Some(side)) => Role::SideInput(side.value),
            (Some(path), Some(side)) => {
                let found = "a path for what is a side input";
                let finding = TopologyError::new(Code::InvalidValue, path.span, found, "either `path` or `side_input`");
                self.report(finding.related(side.span, "the side input"));
                Role::SideInput(side.value)
            }
        };
        if let Some(share) = &source.at_least
            && !matches!(role, Role::Events | Role::Returned)
        {
            let found = "a share for a source that has no part in the epoch's budget";
            let expected = "`at_least` at sources of the dataflow only";
            self.report(TopologyError::new(Code::InvalidValue, share.span, found, expected));
        }
        draft.role = Some(role);
        draft.source = place.map(|place| config::Source {
            name: name.value.clone(),
            place,
            role,
            at_least: source.at_least.map_or(Share(0), |share| share.value),
            unknown_fields: source.unknown_fields,
            format: source.format,
        });
    }

    // ── operators ───────────────────────────────────────────────────────────────────────────────

    fn operators(
        &self,
        operators: Option<Lenient<Vec<Captured>>>,
        names: &Names,
        sources: &[SourceDraft],
    ) -> Vec<Draft<'a>> {
        let Some(operators) = operators else {
            let hint = "at least `validate` and `route`";
            self.missing("operators", hint);
            return Vec::new();
        };
        let mut seen: BTreeMap<String, (Span, &str)> =
            sources.iter().map(|source| (source.name.value.clone(), (source.name.span, "a source"))).collect();
        let mut drafts = Vec::new();
        for Captured(node) in operators.0.unwrap_or_default() {
            let Some(draft) = self.operator(node, names) else { continue };
            if !draft.id.value.is_empty() {
                self.name(&draft.id, "an operator");
                if let Some((first, what)) = seen.get(&draft.id.value) {
                    let found = format!("the id `{}` stands for two things", draft.id.value);
                    let finding = TopologyError::new(Code::DuplicateId, draft.id.span, found, "an id of its own");
                    self.report(finding.related(*first, format!("{what} of this name")));
                }
                seen.entry(draft.id.value.clone()).or_insert((draft.id.span, "an operator"));
            }
            drafts.push(draft);
        }
        drafts
    }

    fn operator(&self, node: NodeId, names: &Names) -> Option<Draft<'a>> {
        const APART: [&str; 4] = ["id", "kind", "input", "when"];
        let here = self.document.node(node);
        if !matches!(here.content, Content::Mapping(_)) {
            let found = format!("found {}", describe(here));
            let expected = "an operator like `{ id: dedup, kind: dedup, input: validate }`";
            self.report(TopologyError::new(Code::WrongType, here.span, found, expected));
            return None;
        }
        let kind_at = self.document.get(node, "kind");
        let kind_name = kind_at.and_then(|(_, kind)| self.read::<String>(kind)).unwrap_or_default();
        let kind = self.loader.operators.0.get(kind_name.as_str());
        let params = kind.and_then(|kind| {
            let reader = Reader { document: self.document, node, findings: self.findings, apart: &APART, names };
            (kind.read)(&reader)
        });
        let id = match self.document.get(node, "id") {
            Some((_, id)) => self.read::<At<String>>(id),
            None if is_misspelt(self.document, node, "id", self.findings) => None,
            None => {
                let finding = TopologyError::new(Code::MissingId, here.span, "an operator without `id`", "`id: NAME`");
                self.report(finding.hint("an id is for ever: state hangs on it, so it is never derived"));
                None
            }
        };
        let id = id.unwrap_or(At { span: here.span, value: String::new() });
        let kind_span = kind_at.map_or(id.span, |(_, kind)| self.document.node(kind).span);
        if kind_at.is_none() {
            let hint = format!("one of {}", one_of(self.loader.operators.names()));
            self.missing_in(node, id.span, "kind", &hint);
        } else if kind.is_none() && !kind_name.is_empty() {
            let expected = one_of(self.loader.operators.names());
            let found = format!("unknown kind of operator `{kind_name}`");
            let finding = TopologyError::new(Code::UnknownKind, kind_span, found, expected);
            self.report(finding.nearest(&kind_name, self.loader.operators.names()));
        }
        let inputs = match self.document.get(node, "input") {
            Some((key, input)) => {
                let inputs = self.read::<super::decode::OneOrMany<At<String>>>(input).map(|inputs| inputs.0);
                if inputs.as_ref().is_some_and(Vec::is_empty) {
                    let found = format!("the operator `{}` reads nothing", id.value);
                    let span = self.document.node(key).span;
                    self.report(TopologyError::new(Code::Unreachable, span, found, "at least one input"));
                }
                inputs.unwrap_or_default()
            }
            None => {
                self.missing_in(node, id.span, "input", "name a source or an operator, or a list of them");
                Vec::new()
            }
        };
        let when = self.document.get(node, "when").and_then(|(_, when)| self.when(when));
        Some(Draft { id, kind_name, kind, kind_span, inputs, when, params })
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, node: NodeId) -> Option<T> {
        decode(self.document, node, self.findings)
    }

    fn when(&self, node: NodeId) -> Option<String> {
        let text = self.read::<String>(node)?;
        if let Err(error) = when::compile(&text) {
            self.expression(node, &text, error);
        }
        Some(text)
    }

    /// Reports what is wrong with an expression, at its place inside the scalar `node`: where its
    /// text is written as it is, not folded, escaped or from outside.
    fn expression(&self, node: NodeId, text: &str, error: WhenError) {
        let here = self.document.node(node);
        let span = match self.source.slice(here.span).find(text) {
            Some(at) if here.written.is_none() && text.get(error.span.clone()).is_some() => {
                let start = here.span.start + at;
                Span { start: start + error.span.start, end: start + error.span.end }
            }
            _ => here.span,
        };
        let finding = TopologyError::new(Code::InvalidWhen, span, format!("found {}", error.found), error.expected);
        self.report(TopologyError { nearest: error.nearest, ..finding });
    }

    // ── deployment ──────────────────────────────────────────────────────────────────────────────

    #[allow(clippy::type_complexity, reason = "five sections of one file, taken apart right here")]
    fn deployment(
        &self,
        (log, checkpoints, ledger, directory, record): (
            Option<Lenient<raw::Log>>,
            Option<Lenient<raw::Checkpoints>>,
            Option<Lenient<raw::Store>>,
            Option<Lenient<raw::Store>>,
            Option<Lenient<raw::Record>>,
        ),
        topics: Option<&raw::Topics>,
        providers: BTreeMap<String, (Span, config::Provider)>,
    ) -> Option<Deployment> {
        let log = match log {
            None => {
                let hint = "`log: { kafka: { brokers: … } }`, or `log: { embedded: { path: ./data } }` on one machine";
                self.missing("log", hint);
                None
            }
            Some(Lenient(log)) => log,
        };
        let embedded = match &log {
            Some(raw::Log::Embedded(folder)) => Some(PathBuf::from(&folder.path)),
            _ => None,
        };
        let data = embedded.clone().unwrap_or_else(|| PathBuf::from(DATA));
        // With an embedded log everything is on this machine; with Kafka nobody should have to guess.
        let needs = |key: &str, hint: &str| {
            if embedded.is_none() && log.is_some() {
                self.missing(key, hint);
            }
        };
        let checkpoints = match checkpoints {
            None => {
                needs("checkpoints", "like `checkpoints: { to: ./data/checkpoints }`");
                None
            }
            Some(Lenient(checkpoints)) => checkpoints,
        };
        let every = checkpoints.as_ref().and_then(|checkpoints| checkpoints.every.as_ref());
        if let Some(every) = every.filter(|every| every.value.0.is_zero()) {
            let found = "checkpoints all the time";
            self.report(TopologyError::new(Code::ZeroWindow, every.span, found, "a duration like `5s`"));
        }
        let record = match record {
            None => {
                needs("record", "`record: { clickhouse: … }` or `record: { files: ./data/record }`");
                None
            }
            Some(Lenient(record)) => record,
        };
        let store = |store: Option<Lenient<raw::Store>>, folder: &str| match store {
            Some(Lenient(Some(raw::Store::Redis(url)))) => config::Store::Redis(config::Private::new(url)),
            _ => config::Store::Embedded { path: data.join(folder) },
        };
        let every = every.map_or(CHECKPOINT_EVERY, |every| every.value);
        let to = checkpoints.and_then(|checkpoints| checkpoints.to);
        Some(Deployment {
            topics: self.topic_settings(topics, embedded.is_some()),
            checkpoints: config::Checkpoints {
                to: to.unwrap_or_else(|| data.join("checkpoints").display().to_string()),
                every,
            },
            ledger: store(ledger, "ledger"),
            directory: store(directory, "directory"),
            record: match record {
                Some(raw::Record::ClickHouse(At { span, value })) => match ClickHouseParams::from_url(&value) {
                    Ok(params) => config::Record::ClickHouse(config::Private::new(params)),
                    Err(InvalidUrl(problem)) => {
                        let (found, expected) = (format!("no address of ClickHouse: {problem}"), CLICKHOUSE);
                        self.report(TopologyError::new(Code::InvalidValue, span, found, expected));
                        // It is refused; only so that everything else is looked at too.
                        config::Record::Files(data.join("record"))
                    }
                },
                Some(raw::Record::Files(path)) => config::Record::Files(PathBuf::from(path)),
                None => config::Record::Files(data.join("record")),
            },
            providers: providers.into_iter().map(|(name, (_, provider))| (name, provider)).collect(),
            log: match log? {
                raw::Log::Embedded(folder) => config::Log::Embedded { path: PathBuf::from(folder.path) },
                raw::Log::Kafka(kafka) => {
                    if kafka.brokers.value.trim().is_empty() {
                        let found = "no broker at all";
                        let expected = "`host:port`, several with commas";
                        self.report(TopologyError::new(Code::InvalidValue, kafka.brokers.span, found, expected));
                    }
                    let properties = kafka.properties.into_iter().map(|(key, property)| (key, property.0)).collect();
                    config::Log::Kafka {
                        brokers: config::Private::new(kafka.brokers.value),
                        properties: config::Private::new(properties),
                    }
                }
            },
        })
    }
}

/// The operators as they are numbered; an input that is no operator is a source.
fn in_order(order: &[usize], operators: Vec<Draft<'_>>) -> Option<Vec<config::Operator>> {
    let ids: BTreeSet<String> = operators.iter().map(|draft| draft.id.value.clone()).collect();
    let mut drafts: Vec<Option<Draft<'_>>> = operators.into_iter().map(Some).collect();
    order
        .iter()
        .map(|index| {
            let draft = drafts.get_mut(*index)?.take()?;
            let inputs = draft.inputs.into_iter().map(|input| match ids.contains(&input.value) {
                true => Input::Operator(input.value),
                false => Input::Source(input.value),
            });
            Some(config::Operator {
                id: draft.id.value,
                kind: draft.kind_name,
                inputs: inputs.collect(),
                when: draft.when,
                params: draft.params?,
            })
        })
        .collect()
}
