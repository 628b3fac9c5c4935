//! Sinks and providers: every channel has somebody who can carry it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tidings_operators::params::{Names, Position};
use tidings_schemas::channel::Channel;
use tidings_schemas::units::Rate;

use super::super::config;
use super::super::decode::{At, Captured, Lenient, Named};
use super::super::diagnostic::{Code, Span, TopologyError, nearest, one_of};
use super::super::kinds::Reader;
use super::super::raw;
use super::{Check, Draft, SinkDraft, SourceDraft};

impl Check<'_> {
    pub(super) fn providers(
        &self,
        providers: Option<Lenient<Named<Captured>>>,
        names: &Names,
    ) -> Option<BTreeMap<String, (Span, config::Provider)>> {
        const APART: [&str; 2] = ["kind", "rate"];
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
                        Reader { document: self.document, node, findings: self.findings, apart: &APART, names };
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
            let rate = self.document.get(node, "rate").and_then(|(_, rate)| self.read::<At<Rate>>(rate));
            if let Some(rate) = rate.as_ref().filter(|rate| rate.value.max == 0 || rate.value.per.0.is_zero()) {
                let found = format!("the rate `{}` lets nothing through", rate.value);
                self.report(TopologyError::new(Code::ZeroLimit, rate.span, found, "a rate like `600000/m`"));
            }
            let (params, rate) = (config::Private::new(params), rate.map(|rate| rate.value));
            let provider = config::Provider { kind: kind_name, params, rate };
            all.insert(name.value, (name.span, provider));
        }
        Some(all)
    }

    pub(super) fn sinks(
        &self,
        sinks: Option<Lenient<Named<Lenient<raw::Sink>>>>,
        sources: &[SourceDraft],
        operators: &[Draft<'_>],
        providers: Option<&BTreeMap<String, (Span, config::Provider)>>,
    ) -> Option<Vec<SinkDraft>> {
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
            let written = sink.input.0;
            let sink = config::Sink { inputs: sink_inputs, providers: choice, templates, cap };
            all.push(SinkDraft { channel, inputs: written, sink });
        }
        self.same_inputs(&all);
        for (name, (span, _)) in providers.into_iter().flatten() {
            if whole && !used.contains(name) {
                let found = format!("no sink uses the provider `{name}`");
                let finding = TopologyError::new(Code::UnusedProvider, *span, found, "a sink that names it");
                self.report(finding.warning());
            }
        }
        whole.then_some(all)
    }

    /// All sinks read the same operators: a leg leaves the chain once, whatever its channel.
    fn same_inputs(&self, sinks: &[SinkDraft]) {
        let inputs = |sink: &SinkDraft| sink.inputs.iter().map(|input| input.value.clone()).collect::<BTreeSet<_>>();
        let Some((first, others)) = sinks.split_first() else { return };
        let wanted = inputs(first);
        for other in others.iter().filter(|other| inputs(other) != wanted) {
            let Some(span) = other.inputs.iter().find(|input| !wanted.contains(&input.value)).or(other.inputs.first())
            else {
                continue;
            };
            let found = format!("this sink reads `{}`, another one does not", span.value);
            let expected = wanted.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and ");
            let finding =
                TopologyError::new(Code::InvalidInput, span.span, found, format!("{expected}, for every sink"));
            let finding = finding.hint("a leg leaves once: what one channel skips is a policy or a condition");
            self.report(match first.inputs.first() {
                Some(input) => finding.related(input.span, "the first sink"),
                None => finding,
            });
        }
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
                && kind.channel != channel
            {
                let carries = kind.channel;
                let able = self.loader.providers.0.iter().filter(|(_, kind)| kind.channel == channel);
                let expected = match able.map(|(name, _)| *name).collect::<Vec<_>>() {
                    able if able.is_empty() => format!("no provider of this build carries `{channel}`"),
                    able => one_of(able),
                };
                let found = format!("`{}` carries `{carries}`, not `{channel}`", name.value);
                self.report(TopologyError::new(Code::WrongProvider, name.span, found, expected));
            }
        }
    }
}
