//! From the file's shape to what it means: names, wiring, shares, policies, tests.
//!
//! Checks go on as long as they can: what could not be read is left out, its name stays known, so
//! that one fault makes one finding and not a trail of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tidings_operators::calendar::Fold;
use tidings_operators::when::{self, WhenError};
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::event::{Event, normal_type};
use tidings_schemas::policy::{Policies, QuietRule, QuietRules, TypePolicy};
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::time::Instant;
use tidings_schemas::topics::PREFIX;
use tidings_schemas::units::{Period, Share};

use super::config::{self, Config, Deployment, Input, Moment, Place, Role, SideInput, Topology, VERSION};
use super::decode::{At, Captured, Findings, Lenient, Named, decode, describe, is_misspelt};
use super::diagnostic::{Code, Source, Span, TopologyError, nearest, one_of};
use super::kinds::{Context, OperatorKind, Position, Reader};
use super::tree::{Content, Document, NodeId, Step};
use super::{Loader, defaults, raw};

/// Longest id or name, in bytes: it stands in every row and every state key.
const NAME_BYTES_MAX: usize = 64;
/// The time between two checkpoints where nothing is said (DESIGN §4).
const CHECKPOINT_EVERY: Period = Period(Duration::from_secs(5));
/// The folder of everything embedded where the log is not.
const DATA: &str = "./data";

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
    for (span, value, written) in document.from_outside() {
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
        let context = Context {
            types: policies.types.keys().filter(|name| *name != "default").cloned().collect(),
            categories: policies.categories.keys().cloned().collect(),
        };
        let sources = self.sources(file.sources);
        let operators = self.operators(file.operators, &context, &sources);
        let order = self.wiring(&sources, &operators);
        let providers = self.providers(file.providers, &context);
        let sinks = self.sinks(file.sinks, &sources, &operators, providers.as_ref());
        self.route_and_outputs(&sources, &operators, sinks.as_deref());
        let tests = self.tests(file.tests, &context);
        let topic_prefix = self.topic_prefix(file.topics);
        let deployment = self.deployment(
            (file.log, file.checkpoints, file.ledger, file.directory, file.record),
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
            sinks: sinks?.into_iter().filter_map(|(channel, _, sink)| Some((channel?, sink))).collect(),
        };
        Some(Config { topology, policies, deployment, tests })
    }

    fn refused(&self) -> bool {
        self.findings.borrow().iter().any(|finding| finding.severity == super::Severity::Error)
    }

    fn topic_prefix(&self, topics: Option<Lenient<raw::Topics>>) -> String {
        let Some(Lenient(Some(topics))) = topics else { return PREFIX.to_owned() };
        let prefix = topics.prefix;
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
        prefix.value
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
        context: &Context,
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
            let Some(draft) = self.operator(node, context) else { continue };
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

    fn operator(&self, node: NodeId, context: &Context) -> Option<Draft<'a>> {
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
            let reader = Reader { document: self.document, node, findings: self.findings, apart: &APART, context };
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

    // ── wiring ──────────────────────────────────────────────────────────────────────────────────

    /// Checks every input, and returns the operators in topological order: among those that could
    /// be next, the one that is written first.
    fn wiring(&self, sources: &[SourceDraft], operators: &[Draft<'_>]) -> Vec<usize> {
        let by_id: BTreeMap<&str, usize> =
            operators.iter().enumerate().rev().map(|(index, draft)| (draft.id.value.as_str(), index)).collect();
        let (mut before, mut firsts) = (vec![Vec::new(); operators.len()], BTreeMap::new());
        for (index, draft) in operators.iter().enumerate() {
            if let Some(kind) = draft.kind
                && matches!(kind.position, Position::First | Position::Route)
                && let Some(first) = firsts.insert(kind.position as u8, draft.kind_span)
            {
                let found = format!("a second `{}`", draft.kind_name);
                let finding = TopologyError::new(
                    Code::RepeatedKind,
                    draft.kind_span,
                    found,
                    "one in a topology, with several inputs if need be",
                );
                self.report(finding.related(first, "the first one"));
            }
            let mut seen = BTreeSet::new();
            for input in &draft.inputs {
                if !seen.insert(input.value.as_str()) {
                    let found = format!("`{}` reads `{}` twice", draft.id.value, input.value);
                    self.report(TopologyError::new(Code::InvalidInput, input.span, found, "each input once"));
                }
                if let Some(source) = sources.iter().find(|source| source.name.value == input.value) {
                    self.source_as_input(draft, input, source);
                } else if let Some(other) = by_id.get(input.value.as_str()) {
                    before[index].push(*other);
                    self.operator_as_input(draft, input, &operators[*other]);
                } else {
                    let names = sources.iter().map(|s| s.name.value.as_str()).chain(by_id.keys().copied());
                    let names: Vec<&str> = names.filter(|name| !name.is_empty() && *name != draft.id.value).collect();
                    let found = format!("nothing is called `{}`", input.value);
                    let finding =
                        TopologyError::new(Code::UnknownInput, input.span, found, "a source or an operator's id");
                    self.report(finding.nearest(&input.value, names));
                }
            }
        }
        self.topological_order(operators, &before)
    }

    fn source_as_input(&self, draft: &Draft<'_>, input: &At<String>, source: &SourceDraft) {
        let first = draft.kind.map(|kind| kind.position == Position::First);
        match (source.role, first) {
            (Some(Role::Critical), _) => {
                let found = format!("`{}` feeds the critical path, not the dataflow", input.value);
                let finding = TopologyError::new(Code::InvalidInput, input.span, found, "a source of the dataflow");
                self.report(finding.hint("leave it out: critical events never wait for an epoch"));
            }
            (Some(Role::SideInput(_)), _) => {
                let found = format!("`{}` is a side input: it carries no events", input.value);
                let finding = TopologyError::new(Code::InvalidInput, input.span, found, "a source of events");
                self.report(finding.hint("leave it out: operators that join users see it by themselves"));
            }
            (Some(Role::Events), Some(false)) => {
                let found = format!("events of `{}` reach `{}` unvalidated", input.value, draft.id.value);
                let finding =
                    TopologyError::new(Code::ValidateFirst, input.span, found, "the `validate` operator first");
                self.report(finding.hint("make the source an input of `validate`"));
            }
            (Some(Role::Returned), Some(true)) => {
                let found = format!("`{}` carries what was validated already", input.value);
                let finding = TopologyError::new(Code::InvalidInput, input.span, found, "sources of events");
                self.report(finding.hint("make it an input of `dedup`, or of what follows `validate`"));
            }
            _ => {}
        }
    }

    fn operator_as_input(&self, draft: &Draft<'_>, input: &At<String>, other: &Draft<'_>) {
        let (Some(kind), Some(other_kind)) = (draft.kind, other.kind) else { return };
        let legs = matches!(other_kind.position, Position::Route | Position::Legs);
        let (found, expected) = match (kind.position, legs) {
            (Position::First, _) => {
                let found =
                    format!("`{}` comes after `{}`, but nothing may come before it", draft.id.value, other.id.value);
                self.report(TopologyError::new(Code::ValidateFirst, input.span, found, "sources of events"));
                return;
            }
            (Position::Items, true) => (
                format!("`{}` works on items, but `{}` hands on legs", draft.id.value, other.id.value),
                "an operator before `route`",
            ),
            (Position::Legs, false) => (
                format!("`{}` works on legs, but `{}` hands on items", draft.id.value, other.id.value),
                "`route`, or an operator after it",
            ),
            _ => return,
        };
        self.report(TopologyError::new(Code::WrongOrder, input.span, found, expected));
    }

    fn topological_order(&self, operators: &[Draft<'_>], before: &[Vec<usize>]) -> Vec<usize> {
        let (mut order, mut placed) = (Vec::new(), vec![false; operators.len()]);
        while let Some(next) =
            (0..operators.len()).find(|index| !placed[*index] && before[*index].iter().all(|other| placed[*other]))
        {
            placed[next] = true;
            order.push(next);
        }
        // Whatever is left waits for itself or for a cycle: walk back until something repeats.
        if let Some(mut at) = placed.iter().position(|placed| !placed) {
            let mut path = Vec::new();
            while !path.contains(&at) {
                path.push(at);
                at = before[at].iter().copied().find(|other| !placed[*other]).unwrap_or(at);
            }
            let start = path.iter().position(|index| *index == at).unwrap_or(0);
            let mut cycle: Vec<usize> = path[start..].to_vec();
            cycle.reverse();
            let least = cycle.iter().enumerate().min_by_key(|(_, index)| **index).map_or(0, |(at, _)| at);
            cycle.rotate_left(least);
            let names: Vec<String> =
                cycle.iter().chain(cycle.first()).map(|index| format!("`{}`", operators[*index].id.value)).collect();
            let span = cycle.first().map_or(Span::default(), |index| {
                let waits_for = cycle.last().map(|index| operators[*index].id.value.as_str());
                let inputs = &operators[*index].inputs;
                inputs.iter().find(|input| Some(input.value.as_str()) == waits_for).map_or(Span::default(), |i| i.span)
            });
            let found = format!("a cycle: {}", names.join(" → "));
            self.report(TopologyError::new(Code::Cycle, span, found, "an input that does not come from here"));
        }
        order
    }

    /// `route` before the sinks, side inputs where users are joined, and no output for nobody.
    fn route_and_outputs(
        &self,
        sources: &[SourceDraft],
        operators: &[Draft<'_>],
        sinks: Option<&[(Option<Channel>, Vec<At<String>>, config::Sink)]>,
    ) {
        let has_route = operators.iter().any(|d| d.kind.is_some_and(|kind| kind.position == Position::Route));
        let all_kinds_known = operators.iter().all(|draft| draft.kind.is_some());
        if !has_route && all_kinds_known && !operators.is_empty() {
            let finding = TopologyError::new(
                Code::MissingRoute,
                self.section("operators"),
                "no operator chooses channels",
                "an operator of kind `route` before the sinks",
            );
            self.report(finding.hint("like `{ id: route, kind: route, input: preferences }`"));
        }
        let mut asked = BTreeSet::new();
        for draft in operators {
            for side in draft.kind.map_or(&[][..], |kind| kind.needs) {
                let there = sources.iter().any(|s| s.role.is_none() || s.role == Some(Role::SideInput(*side)));
                if !there && asked.insert(*side) {
                    let found = format!("`{}` joins users, but no source brings `{}`", draft.id.value, side.as_str());
                    let topic = match side {
                        SideInput::Profile => "preferences",
                        SideInput::Reachability => "addresses",
                    };
                    let finding = TopologyError::new(
                        Code::MissingSideInput,
                        draft.kind_span,
                        found,
                        format!("a source with `side_input: {}`", side.as_str()),
                    );
                    let line = format!("{topic}: {{ topic: {PREFIX}.{topic}, side_input: {} }}", side.as_str());
                    self.report(finding.hint(format!("add `{line}` to `sources`")));
                }
            }
        }
        // An input that is missing or misspelt says enough: what it would have read is not unused.
        let unresolved = self.findings.borrow().iter().any(|finding| finding.code == Code::UnknownInput)
            || operators.iter().any(|draft| draft.inputs.is_empty());
        let Some(sinks) = sinks.filter(|_| !unresolved) else { return };
        let read: BTreeSet<&str> = operators
            .iter()
            .flat_map(|draft| &draft.inputs)
            .chain(sinks.iter().flat_map(|(_, inputs, _)| inputs))
            .map(|input| input.value.as_str())
            .collect();
        let unread = |name: &At<String>, what: &str| {
            if !name.value.is_empty() && !read.contains(name.value.as_str()) {
                let found = format!("nothing reads the {what} `{}`", name.value);
                self.report(TopologyError::new(
                    Code::UnusedOutput,
                    name.span,
                    found,
                    "an operator or a sink that has it as `input`",
                ));
            }
        };
        for source in sources {
            if matches!(source.role, Some(Role::Events | Role::Returned)) {
                unread(&source.name, "source");
            }
        }
        for draft in operators {
            unread(&draft.id, "operator");
        }
    }

    // ── sinks and providers ─────────────────────────────────────────────────────────────────────

    fn providers(
        &self,
        providers: Option<Lenient<Named<Captured>>>,
        context: &Context,
    ) -> Option<BTreeMap<String, (Span, config::Provider)>> {
        const APART: [&str; 1] = ["kind"];
        let named = match providers {
            None => return Some(BTreeMap::new()),
            Some(Lenient(named)) => named?,
        };
        let mut all = BTreeMap::new();
        for (name, Captured(node)) in named.0 {
            self.name(&name, "a provider");
            let (kind_name, kind_span) = match self.document.get(node, "kind") {
                Some((_, kind)) => (self.read::<String>(kind).unwrap_or_default(), self.document.node(kind).span),
                None => (name.value.clone(), name.span),
            };
            let mut params = serde_json::Value::Null;
            match self.loader.providers.0.get(kind_name.as_str()) {
                Some(kind) => {
                    let reader =
                        Reader { document: self.document, node, findings: self.findings, apart: &APART, context };
                    params = (kind.read)(&reader).unwrap_or_default();
                }
                None => {
                    let expected = one_of(self.loader.providers.names());
                    let found = format!("unknown kind of provider `{kind_name}`");
                    let finding = TopologyError::new(Code::UnknownProvider, kind_span, found, expected);
                    self.report(
                        finding
                            .nearest(&kind_name, self.loader.providers.names())
                            .hint("a provider's name is its kind; with another name, add `kind: …`"),
                    );
                }
            }
            let provider = config::Provider { kind: kind_name, params: config::Private::new(params) };
            all.insert(name.value, (name.span, provider));
        }
        Some(all)
    }

    #[allow(clippy::type_complexity, reason = "one list, read twice, right here")]
    fn sinks(
        &self,
        sinks: Option<Lenient<Named<Lenient<raw::Sink>>>>,
        sources: &[SourceDraft],
        operators: &[Draft<'_>],
        providers: Option<&BTreeMap<String, (Span, config::Provider)>>,
    ) -> Option<Vec<(Option<Channel>, Vec<At<String>>, config::Sink)>> {
        let Some(sinks) = sinks else {
            let hint = "at least one, like `in_app: { input: route, providers: [inbox] }`";
            self.missing("sinks", hint);
            return None;
        };
        let (mut all, mut used, mut whole) = (Vec::new(), BTreeSet::new(), true);
        for (name, Lenient(sink)) in sinks.0?.0 {
            let channel: Option<Channel> = name.value.parse().ok();
            if channel.is_none() {
                let names = Channel::ALL.iter().map(|channel| channel.as_str());
                let found = format!("no channel is called `{}`", name.value);
                let finding = TopologyError::new(Code::UnknownChannel, name.span, found, one_of(names.clone()));
                self.report(finding.nearest(&name.value, names));
            }
            let Some(sink) = sink else {
                whole = false;
                continue;
            };
            for input in &sink.input.0 {
                self.sink_input(&name.value, input, sources, operators);
            }
            let choice = match sink.providers.value {
                raw::Providers::One(name) => {
                    let one = [At { span: sink.providers.span, value: name }];
                    self.sink_providers(channel, sink.providers.span, &one, providers, &mut used);
                    config::Providers::InOrder(one.into_iter().map(|name| name.value).collect())
                }
                raw::Providers::InOrder(list) => {
                    self.sink_providers(channel, sink.providers.span, &list, providers, &mut used);
                    config::Providers::InOrder(list.into_iter().map(|name| name.value).collect())
                }
                raw::Providers::ByPlatform(map) => {
                    let mut by_platform = BTreeMap::new();
                    for (platform, list) in map {
                        self.sink_providers(channel, platform.span, &list.0, providers, &mut used);
                        let names = list.0.into_iter().map(|name| name.value).collect();
                        by_platform.insert(platform.value, names);
                    }
                    config::Providers::ByPlatform(by_platform)
                }
            };
            let sink_inputs = sink.input.0.iter().map(|input| input.value.clone()).collect();
            let templates = sink.templates.map(PathBuf::from);
            if let Some(cap) = &sink.cap
                && (cap.value.max == 0 || cap.value.per.0.is_zero())
            {
                let found = format!("the cap `{}` lets nothing through", cap.value);
                let finding = TopologyError::new(Code::ZeroLimit, cap.span, found, "a rate like `500000/h`");
                self.report(finding.hint("to send nothing on a channel, leave its sink out"));
            }
            let cap = sink.cap.map(|cap| cap.value);
            all.push((channel, sink.input.0, config::Sink { inputs: sink_inputs, providers: choice, templates, cap }));
        }
        for (name, (span, _)) in providers.into_iter().flatten() {
            if whole && !used.contains(name) {
                let found = format!("no sink uses the provider `{name}`");
                let finding = TopologyError::new(Code::UnusedProvider, *span, found, "a sink that names it");
                self.report(finding.warning());
            }
        }
        whole.then_some(all)
    }

    fn sink_input(&self, sink: &str, input: &At<String>, sources: &[SourceDraft], operators: &[Draft<'_>]) {
        let Some(operator) = operators.iter().find(|draft| draft.id.value == input.value) else {
            let is_source = sources.iter().any(|source| source.name.value == input.value);
            let found = match is_source {
                true => format!("the sink `{sink}` reads the source `{}` itself", input.value),
                false => format!("nothing is called `{}`", input.value),
            };
            let code = if is_source { Code::InvalidInput } else { Code::UnknownInput };
            let finding = TopologyError::new(code, input.span, found, "an operator's id, at `route` or after it");
            self.report(finding.nearest(&input.value, operators.iter().map(|draft| draft.id.value.as_str())));
            return;
        };
        let has_route = operators.iter().any(|d| d.kind.is_some_and(|kind| kind.position == Position::Route));
        if has_route && operator.kind.is_some_and(|kind| !matches!(kind.position, Position::Route | Position::Legs)) {
            let found = format!("the sink `{sink}` needs legs, but `{}` hands on items", input.value);
            self.report(TopologyError::new(Code::WrongOrder, input.span, found, "`route`, or an operator after it"));
        }
    }

    fn sink_providers(
        &self,
        channel: Option<Channel>,
        at: Span,
        list: &[At<String>],
        providers: Option<&BTreeMap<String, (Span, config::Provider)>>,
        used: &mut BTreeSet<String>,
    ) {
        if list.is_empty() {
            self.report(TopologyError::new(Code::MissingProvider, at, "nobody carries this", "at least one provider"));
        }
        let Some(providers) = providers else { return };
        for name in list {
            used.insert(name.value.clone());
            let Some((_, provider)) = providers.get(&name.value) else {
                let found = format!("the provider `{}` is not configured", name.value);
                let finding = TopologyError::new(Code::MissingProvider, name.span, found, "a name of `providers`");
                let near = nearest(&name.value, providers.keys().map(String::as_str));
                let finding = finding.nearest(&name.value, providers.keys().map(String::as_str));
                let known = near.is_none() && self.loader.providers.0.contains_key(name.value.as_str());
                self.report(if known {
                    finding.hint(format!("add `{}: {{ … }}` to `providers`", name.value))
                } else {
                    finding
                });
                continue;
            };
            let kind = self.loader.providers.0.get(provider.kind.as_str());
            if let (Some(channel), Some(kind)) = (channel, kind)
                && !kind.channels.contains(&channel)
            {
                let carries = one_of(kind.channels.iter().map(|channel| channel.as_str()));
                let able = self.loader.providers.0.iter().filter(|(_, kind)| kind.channels.contains(&channel));
                let expected = match able.map(|(name, _)| *name).collect::<Vec<_>>() {
                    able if able.is_empty() => format!("no provider of this build carries `{channel}`"),
                    able => one_of(able),
                };
                let found = format!("`{}` carries {carries}, not `{channel}`", name.value);
                self.report(TopologyError::new(Code::WrongProvider, name.span, found, expected));
            }
        }
    }

    // ── policies ────────────────────────────────────────────────────────────────────────────────

    fn policies(&self, policies: Option<Lenient<raw::Policies>>) -> Policies {
        let mut all = defaults::policies();
        let Some(Lenient(Some(file))) = policies else { return all };
        for (name, Lenient(category)) in file.categories.into_iter().flat_map(|all| all.0) {
            self.name(&name, "a category");
            // What could not be read keeps its name, so that its users are not reported too.
            all.categories.insert(name.value, category.unwrap_or_default());
        }
        for (name, Lenient(policy)) in file.types.into_iter().flat_map(|all| all.0) {
            self.name(&name, "a type");
            if let Some(policy) = &policy {
                self.type_policy(&name.value, policy, &all);
            }
            all.types.insert(name.value, policy.unwrap_or_default());
        }
        for (priority, Lenient(rules)) in file.quiet_hours.into_iter().flat_map(|all| all.0) {
            let Some(rules) = rules else { continue };
            self.quiet_rules(priority.value, &rules);
            all.quiet_hours.insert(priority.value, rules);
        }
        all
    }

    fn type_policy(&self, name: &str, policy: &TypePolicy, all: &Policies) {
        let span = |key: &str| self.span(&["policies", "types", name, key]);
        if let Some(category) = &policy.category
            && !all.categories.contains_key(category)
        {
            let names = || all.categories.keys().map(String::as_str);
            let found = format!("no category is called `{category}`");
            let finding = TopologyError::new(Code::UnknownCategory, span("category"), found, one_of(names()));
            let hint = format!("a category of your own is one line: `{category}: {{}}` in `policies.categories`");
            self.report(finding.nearest(category, names()).hint(hint));
        }
        if let Some(key) = &policy.dedup_key
            && let Err(error) = when::compile_value(key)
            && let Some(node) = self.node(&["policies", "types", name, "dedup_key"])
        {
            self.expression(node, key, error);
        }
        for (key, channels) in [("channels", &policy.channels), ("fallback_channels", &policy.fallback_channels)] {
            let Some(channels) = channels else { continue };
            let mut seen = BTreeSet::new();
            if channels.is_empty() {
                let expected = "at least one, or no such key for the priority's default";
                self.report(TopologyError::new(Code::InvalidValue, span(key), "a list of no channels", expected));
            }
            for (index, channel) in channels.iter().enumerate().filter(|(_, channel)| !seen.insert(**channel)) {
                let path = ["policies", "types", name, key].map(|key| Step::Key(key.to_owned()));
                let path = [&path[..], &[Step::Index(index)]].concat();
                let at = self.document.span_at(self.document.root, &path);
                let found = format!("`{channel}` stands twice");
                self.report(TopologyError::new(Code::InvalidValue, at, found, "each channel once"));
            }
        }
    }

    fn quiet_rules(&self, priority: Priority, rules: &QuietRules) {
        let base = ["policies", "quiet_hours", priority.as_str()];
        let holds = match rules {
            QuietRules::All(rule) => *rule != QuietRule::Pass,
            QuietRules::ByChannel(map) => map.values().any(|rule| *rule != QuietRule::Pass),
        };
        if priority == Priority::Critical && holds {
            let found = "critical notifications would wait for the morning";
            let finding = TopologyError::new(Code::CriticalWaits, self.span(&base), found, "`pass`, or no such key");
            self.report(finding.hint("critical never waits; give what may wait the priority `high`"));
            return;
        }
        let silent: Vec<Span> = match rules {
            QuietRules::All(QuietRule::Silent) => vec![self.span(&base)],
            QuietRules::All(_) => Vec::new(),
            QuietRules::ByChannel(map) => map
                .iter()
                .filter(|(channel, rule)| **rule == QuietRule::Silent && **channel != Channel::InApp)
                .map(|(channel, _)| self.span(&[base[0], base[1], base[2], channel.as_str()]))
                .collect(),
        };
        for span in silent {
            let found = "only the in-app channel can be silent";
            self.report(TopologyError::new(Code::InvalidValue, span, found, "`pass`, `defer` or `in_app`"));
        }
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
            checkpoints: config::Checkpoints {
                to: to.unwrap_or_else(|| data.join("checkpoints").display().to_string()),
                every,
            },
            ledger: store(ledger, "ledger"),
            directory: store(directory, "directory"),
            record: match record {
                Some(raw::Record::ClickHouse(url)) => config::Record::ClickHouse(config::Private::new(url)),
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

    // ── tests ───────────────────────────────────────────────────────────────────────────────────

    fn tests(&self, tests: Option<Lenient<Vec<Lenient<raw::Test>>>>, context: &Context) -> Vec<config::Test> {
        let Some(Lenient(Some(tests))) = tests else { return Vec::new() };
        let (mut all, mut names) = (Vec::new(), BTreeMap::<String, Span>::new());
        for test in tests.into_iter().filter_map(|test| test.0) {
            if let Some(first) = names.insert(test.name.value.clone(), test.name.span) {
                let found = format!("two tests are called `{}`", test.name.value);
                let finding = TopologyError::new(Code::DuplicateId, test.name.span, found, "a name of its own");
                self.report(finding.related(first, "the first one"));
            }
            all.push(self.test(test, context));
        }
        all
    }

    fn test(&self, test: raw::Test, context: &Context) -> config::Test {
        let given = test.given.unwrap_or(raw::Given { profiles: Vec::new(), addresses: Vec::new() });
        let (mut events, mut types) = (BTreeSet::new(), BTreeSet::new());
        let (mut steps, mut last): (Vec<config::TestStep>, Option<(Instant, Span)>) = (Vec::new(), None);
        for step in test.steps.into_iter().filter_map(|step| step.0) {
            // A time that can't be understood is reported; the step's other faults are too.
            let at = self.moment(&step.at);
            if let (Some(at), Some((before, span))) = (&at, &last)
                && at.at < *before
            {
                let found = format!("time goes back to {}", at.written);
                let finding = TopologyError::new(Code::StepOrder, step.at.span, found, "a time that is not earlier");
                self.report(finding.related(*span, "the step before"));
            }
            last = at.as_ref().map(|at| (at.at, step.at.span)).or(last);
            let all =
                |one: Option<Captured>, many: Option<Vec<Captured>>| one.into_iter().chain(many.into_iter().flatten());
            let mut inputs = Vec::new();
            inputs.extend(
                all(step.profile, step.profiles)
                    .filter_map(|node| self.profile(node))
                    .map(|profile| config::TestInput::Profile(Box::new(profile))),
            );
            inputs.extend(
                all(step.address, step.addresses)
                    .filter_map(|node| self.address(node))
                    .map(|address| config::TestInput::Address(Box::new(address))),
            );
            for Captured(node) in all(step.event, step.events) {
                // Even what can't be read says its id, so that its expectations are not reported too.
                let text = |key: &str| self.document.get(node, key).and_then(|(_, value)| self.document.text(value));
                events.extend(text("id").map(str::to_owned));
                types.extend(text("type").map(normal_type));
                let Some(event) = self.event(node, context) else { continue };
                inputs.push(config::TestInput::Event(Box::new(event)));
            }
            let expect = step
                .expect
                .into_iter()
                .filter_map(|expectation| self.expectation(expectation.0?, &events, &types))
                .collect();
            steps.extend(at.map(|at| config::TestStep { at, span: step.at.span, inputs, expect }));
        }
        config::Test {
            name: test.name.value,
            span: test.name.span,
            profiles: given.profiles.into_iter().filter_map(|node| self.profile(node)).collect(),
            addresses: given.addresses.into_iter().filter_map(|node| self.address(node)).collect(),
            steps,
        }
    }

    fn zone(&self, zone: &str, span: Span) {
        if self.loader.calendar.zone(zone).is_none() {
            let found = format!("no time zone is called `{zone}`");
            let finding = TopologyError::new(Code::UnknownZone, span, found, "an IANA name like `Europe/Berlin`");
            let nearest = self.loader.calendar.nearest(zone).map(str::to_owned);
            self.report(TopologyError { nearest, ..finding });
        }
    }

    /// The instant that is meant. A wall time that a clock shows twice means the first time; one
    /// that it never shows is refused.
    fn moment(&self, moment: &At<raw::Moment>) -> Option<Moment> {
        let written = self.source.slice(moment.span).trim_matches(['"', '\'']).to_owned();
        let (day, minute, second, zone) = match &moment.value {
            raw::Moment::Exact(at) => return Some(Moment { at: *at, written }),
            raw::Moment::Local { day, minute, second, zone } => (*day, *minute, *second, zone),
        };
        let Some(known) = self.loader.calendar.zone(zone) else {
            let at = self.source.slice(moment.span).rfind(zone.as_str()).map(|at| moment.span.start + at);
            self.zone(zone, at.map_or(moment.span, |start| Span { start, end: start + zone.len() }));
            return None;
        };
        let at = known.instant(day, minute, Fold::Earlier);
        if known.local(at).minute != minute {
            let found = format!("clocks in `{zone}` never show this time: they go forward over it");
            self.report(TopologyError::new(Code::InvalidValue, moment.span, found, "a time that exists"));
            return None;
        }
        Some(Moment { at: at.after(Duration::from_secs(u64::from(second))), written })
    }

    fn profile(&self, Captured(node): Captured) -> Option<Profile> {
        let profile: Profile = decode(self.document, node, self.findings)?;
        if let Some(zone) = &profile.time_zone {
            self.zone(zone, self.document.span_at(node, &[Step::Key("time_zone".to_owned())]));
        }
        if profile.user_id.is_none() {
            let expected = "`user_id` here: it is the record's key";
            let span = self.document.node(node).span;
            self.report(TopologyError::new(Code::MissingKey, span, "a profile of nobody", expected));
        }
        Some(profile)
    }

    fn address(&self, Captured(node): Captured) -> Option<Address> {
        let address: raw::TestAddress = decode(self.document, node, self.findings)?;
        Some(Address {
            address_id: address.address_id.unwrap_or_else(|| address.channel.as_str().to_owned()),
            address: address.address.unwrap_or_else(|| format!("{}-{}", address.user_id, address.channel)),
            user_id: address.user_id,
            channel: address.channel,
            provider: address.provider,
            platform: address.platform,
            environment: None,
            registered_at: None,
            last_seen_at: None,
            status: address.status,
            reason: None,
        })
    }

    fn event(&self, node: NodeId, context: &Context) -> Option<Event> {
        let event: Event = decode(self.document, node, self.findings)?;
        let span = self.document.node(node).span;
        match event.checked() {
            Err(error) => {
                self.report(TopologyError::new(Code::InvalidValue, span, error.to_string(), "an event"));
                None
            }
            Ok(event) => {
                if !context.types.contains(&event.event_type) && event.event_type != "default" {
                    let at = self.document.span_at(node, &[Step::Key("type".to_owned())]);
                    let found = format!("no policy knows the type `{}`", event.event_type);
                    let finding = TopologyError::new(Code::UnknownType, at, found, "a type of `policies`");
                    let finding = finding.nearest(&event.event_type, context.types.iter().map(String::as_str));
                    self.report(finding.hint("it would get the policy `default`: to test that, use `type: default`"));
                }
                Some(event)
            }
        }
    }

    fn expectation(
        &self,
        expectation: At<raw::Expectation>,
        events: &BTreeSet<String>,
        types: &BTreeSet<String>,
    ) -> Option<config::Expectation> {
        let (span, raw) = (expectation.span, expectation.value);
        if let Some(event) = raw.event.as_ref().filter(|event| !events.contains(&event.value)) {
            let found = format!("no step up to here brings an event `{}`", event.value);
            let finding =
                TopologyError::new(Code::UnknownEvent, event.span, found, "the `id` of an event of this test");
            self.report(finding.nearest(&event.value, events.iter().map(String::as_str)));
        }
        if let Some(kind) = raw.event_type.as_ref().filter(|kind| !types.contains(&kind.value)) {
            let found = format!("no step up to here brings an event of type `{}`", kind.value);
            let finding = TopologyError::new(Code::UnknownType, kind.span, found, "the type of an event of this test");
            self.report(finding.nearest(&kind.value, types.iter().map(String::as_str)));
        }
        let until = match &raw.parked_until {
            None => None,
            Some(until) => Some(self.moment(until)?),
        };
        let flag = |flag: Option<bool>, fate: config::Fate| flag.filter(|flag| *flag).map(|_| fate);
        let fates: Vec<config::Fate> = [
            flag(raw.queued, config::Fate::Queued),
            flag(raw.parked, config::Fate::Parked),
            until.map(config::Fate::ParkedUntil),
            raw.suppressed.map(config::Fate::Suppressed),
            raw.rejected.map(config::Fate::Rejected),
            flag(raw.merged, config::Fate::Merged),
            flag(raw.deduplicated, config::Fate::Deduplicated),
            flag(raw.retracted, config::Fate::Retracted),
            flag(raw.cancelled, config::Fate::Cancelled),
            flag(raw.expired, config::Fate::Expired),
        ]
        .into_iter()
        .flatten()
        .collect();
        let selects = raw.event.is_some() || raw.event_type.is_some();
        let wrong = |found: &str| {
            let expected = "`nothing_sent: true`, or an `event` (or `type`) and exactly one fate like `queued: true`";
            self.report(TopologyError::new(Code::Expectation, span, found, expected));
            None
        };
        let expected = match (raw.nothing_sent, selects, fates.len()) {
            (Some(true), false, 0) if raw.leg.is_none() => {
                config::Expected::NothingSent { except: raw.except.map(|except| except.0).unwrap_or_default() }
            }
            (Some(_), ..) => return wrong("`nothing_sent` beside something else, or not true"),
            (None, false, _) => return wrong("an expectation about nothing"),
            (None, true, 0) => return wrong("an expectation without a fate"),
            (None, true, 1) if raw.except.is_some() => return wrong("`except` without `nothing_sent`"),
            (None, true, 1) => config::Expected::Fate {
                event: raw.event.map(|event| event.value),
                event_type: raw.event_type.map(|kind| kind.value),
                leg: raw.leg,
                fate: fates.into_iter().next()?,
                actors: raw.actors,
                activities: raw.activities,
            },
            (None, true, _) => return wrong("an expectation with several fates"),
        };
        Some(config::Expectation { span, expected })
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
