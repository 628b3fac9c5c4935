//! The file's own tests, as far as they can be understood without being run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings_operators::calendar::Fold;
use tidings_schemas::event::{Event, normal_type};
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::time::Instant;

use super::super::config::{self, Moment};
use super::super::decode::{At, Captured, Lenient, decode};
use super::super::diagnostic::{Code, Span, TopologyError};
use super::super::raw;
use super::super::tree::NodeId;
use super::Check;
use tidings_operators::params::{Names, Step};

impl Check<'_> {
    pub(super) fn tests(&self, tests: Option<Lenient<Vec<Lenient<raw::Test>>>>, names: &Names) -> Vec<config::Test> {
        let Some(Lenient(Some(tests))) = tests else { return Vec::new() };
        let (mut all, mut seen) = (Vec::new(), BTreeMap::<String, Span>::new());
        for test in tests.into_iter().filter_map(|test| test.0) {
            if let Some(first) = seen.insert(test.name.value.clone(), test.name.span) {
                let found = format!("two tests are called `{}`", test.name.value);
                let finding = TopologyError::new(Code::DuplicateId, test.name.span, found, "a name of its own");
                self.report(finding.related(first, "the first one"));
            }
            all.push(self.test(test, names));
        }
        all
    }

    fn test(&self, test: raw::Test, names: &Names) -> config::Test {
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
                let Some(event) = self.event(node, names) else { continue };
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

    fn event(&self, node: NodeId, names: &Names) -> Option<Event> {
        let event: Event = decode(self.document, node, self.findings)?;
        let span = self.document.node(node).span;
        match event.checked() {
            Err(error) => {
                self.report(TopologyError::new(Code::InvalidValue, span, error.to_string(), "an event"));
                None
            }
            Ok(event) => {
                if !names.types.contains(&event.event_type) && event.event_type != "default" {
                    let at = self.document.span_at(node, &[Step::Key("type".to_owned())]);
                    let found = format!("no policy knows the type `{}`", event.event_type);
                    let finding = TopologyError::new(Code::UnknownType, at, found, "a type of `policies`");
                    let finding = finding.nearest(&event.event_type, names.types.iter().map(String::as_str));
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
