//! Who reads whom: every input exists, nothing waits for itself, events are validated first, a
//! `route` stands between items and legs, and no output is for nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::super::config::{Place, Role};
use super::super::decode::At;
use super::super::diagnostic::{Code, Span, TopologyError};
use super::{Check, Draft, SinkDraft, SourceDraft};
use tidings_operators::params::{Position, SideInput};
use tidings_schemas::channel::Priority;
use tidings_schemas::policy::Policies;
use tidings_schemas::topics::{PREFIX, Topics};

impl Check<'_> {
    /// Checks every input, and returns the operators in topological order: among those that could
    /// be next, the one that is written first.
    pub(super) fn wiring(&self, sources: &[SourceDraft], operators: &[Draft<'_>]) -> Vec<usize> {
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
        self.single_events(operators, &before);
        self.topological_order(operators, &before)
    }

    /// What holds single events stands above what merges them.
    fn single_events(&self, operators: &[Draft<'_>], before: &[Vec<usize>]) {
        for (index, draft) in operators.iter().enumerate().filter(|(_, it)| it.kind.is_some_and(|kind| kind.single)) {
            let (mut above, mut seen) = (before[index].clone(), BTreeSet::new());
            while let Some(next) = above.pop() {
                if !seen.insert(next) {
                    continue;
                }
                above.extend(&before[next]);
                if let Some(other) = operators.get(next).filter(|other| other.kind.is_some_and(|kind| kind.merges)) {
                    let found = format!(
                        "`{}` holds single events, but `{}` above it merges them",
                        draft.id.value, other.id.value
                    );
                    let finding = TopologyError::new(
                        Code::WrongOrder,
                        draft.kind_span,
                        found,
                        format!("`{}` above `{}`", draft.id.value, other.id.value),
                    );
                    self.report(finding.related(other.kind_span, "merges"));
                }
            }
        }
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

    /// The two paths hand each other what belongs to the other one, through the topics of critical and of
    /// high events: a topic that no source reads would keep it for ever.
    pub(super) fn hand_overs(&self, sources: &[SourceDraft], policies: &Policies, prefix: &str) {
        let topics = Topics::new(prefix);
        let reads = |role: Role, topic: &str| {
            let of_role = sources.iter().filter(|draft| draft.role == Some(role)).filter_map(|it| it.source.as_ref());
            of_role.into_iter().any(|source| matches!(&source.place, Place::Topic(place) if place == topic))
        };
        if sources.iter().any(|draft| draft.source.is_none()) {
            return;
        }
        let decides = sources.iter().any(|draft| draft.role == Some(Role::Events));
        let critical = topics.events(Priority::Critical);
        // Types that this file names: the built-in ones are there whether or not anybody sends them.
        let urgent = policies.types.iter().find(|(name, it)| {
            self.node(&["policies", "types", name]).is_some()
                && (it.priority == Some(Priority::Critical) || it.may_raise)
        });
        if let Some((name, _)) = urgent
            && decides
            && !reads(Role::Critical, &critical)
        {
            let found = format!("events of type `{name}` that are critical go to `{critical}`, which no source reads");
            let expected = "a source that reads it, with `path: critical`";
            let span = self.span(&["policies", "types", name]);
            let finding = TopologyError::new(Code::UnreadHandOver, span, found, expected).warning();
            self.report(finding.hint(format!("add `critical: {{ topic: {critical}, path: critical }}` to `sources`")));
        }
        let high = topics.events(Priority::High);
        let first = sources.iter().find(|draft| draft.role == Some(Role::Critical));
        if let Some(first) = first
            && !reads(Role::Events, &high)
        {
            let found =
                format!("what is not critical in `{}` goes to `{high}`, which no source reads", first.name.value);
            let expected = "a source that reads it";
            let finding = TopologyError::new(Code::UnreadHandOver, first.name.span, found, expected).warning();
            self.report(
                finding.hint(format!("add `high: {{ topic: {high} }}` to `sources`, as an input of `validate`")),
            );
        }
    }

    /// `route` before the sinks, side inputs where users are joined, and no output for nobody.
    pub(super) fn route_and_outputs(
        &self,
        sources: &[SourceDraft],
        operators: &[Draft<'_>],
        sinks: Option<&[SinkDraft]>,
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
            .chain(sinks.iter().flat_map(|draft| &draft.inputs))
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
}
