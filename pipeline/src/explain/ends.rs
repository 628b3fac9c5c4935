//! What became of an event: on each channel, as a whole, and in a sentence.

use std::collections::{BTreeMap, BTreeSet};

use tidings_schemas::channel::{Channel, Op};
use tidings_schemas::ids::LegId;
use tidings_schemas::lifecycle::{Row, State};
use tidings_schemas::reason::Reason;
use tidings_schemas::time::Instant;
use tidings_sinks::record::fates::{Fate, Fates};

use super::words::Matter;
use super::{ChannelEnd, End, Teller, Tone, is_waiting, matter, words};

impl Teller<'_, '_> {
    pub(super) fn channels(&self) -> Vec<ChannelEnd> {
        let mut legs: BTreeMap<(bool, LegId), Vec<&Row>> = BTreeMap::new();
        for row in &self.legs {
            legs.entry((row.silent, row.leg)).or_default().push(row);
        }
        let mut ends: Vec<(Instant, ChannelEnd, bool)> = Vec::new();
        for ((silent, _), rows) in legs {
            let Some(last) = rows.last().copied() else { continue };
            let Some(channel) = rows.iter().rev().find_map(|row| row.channel) else { continue };
            let merged = last.states.contains(&State::Merged);
            let end = self.leg_end(last, channel);
            ends.push((rows[0].at, ChannelEnd { channel, silent, end }, merged));
        }
        let any_left = ends.iter().any(|(_, end, merged)| !merged && !end.silent);
        ends.retain(|(_, _, merged)| !(*merged && any_left));
        ends.sort_by_key(|(at, end, _)| (end.silent, *at, end.channel));
        let mut ends: Vec<ChannelEnd> = ends.into_iter().map(|(_, end, _)| end).collect();
        ends.dedup();
        ends
    }

    pub(super) fn leg_end(&self, last: &Row, channel: Channel) -> End {
        let by_delivery: Vec<&Row> = self
            .deliveries
            .iter()
            .copied()
            .filter(|row| row.notification == last.notification && row.channel == Some(channel))
            .collect();
        let until = last.until.map(|until| self.clock.text(until));
        let matter = matter(last, until.as_deref());
        let fate =
            Fates::of([last].into_iter()).sums()[1].fates.iter().find(|(_, units)| *units == 1).map(|(fate, _)| *fate);
        let fate = fate.or_else(|| last_fate(last));
        match fate {
            Some(Fate::Queued) if !by_delivery.is_empty() => self.delivery_end(&by_delivery, channel),
            Some(Fate::Queued) => end("queued", "on its way", Tone::Open),
            Some(Fate::Parked) => {
                let why = last.reason.map_or(String::new(), |reason| {
                    format!(": {}", words::why(reason, Matter { until: None, ..matter }))
                });
                let until = until.as_deref().map_or(String::new(), |until| format!(" until {until}"));
                end("parked", &format!("waits{until}{why}"), Tone::Waiting)
            }
            Some(Fate::Suppressed) => {
                let why = last.reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter)));
                end("suppressed", &format!("not sent{why}"), Tone::Quiet)
            }
            Some(Fate::Merged) => match self.joined.and_then(|joined| Some((joined, self.joined_until?))) {
                // Nothing of the group has left yet, or its leg would stand here.
                Some((joined, until)) => {
                    let why = joined.reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter)));
                    end("merged", &format!("waits with others until {}{why}", self.clock.text(until)), Tone::Waiting)
                }
                None => end("merged", "told together with others", Tone::Quiet),
            },
            Some(Fate::Expired) => end("expired", "came too late", Tone::Quiet),
            Some(Fate::Cancelled) => end("cancelled", "cancelled", Tone::Quiet),
            Some(Fate::Retracted) => end("retracted", "taken back", Tone::Quiet),
            Some(Fate::Returned) => end("returned", "is judged anew", Tone::Open),
            _ => end("created", "on its way", Tone::Open),
        }
    }

    pub(super) fn delivery_end(&self, rows: &[&Row], channel: Channel) -> End {
        let mut by_id: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            by_id.entry(row.delivery).or_default().push(row);
        }
        let has = |rows: &[&Row], state: State| rows.iter().any(|row| row.states.contains(&state));
        let providers: BTreeSet<&str> =
            rows.iter().map(|row| row.provider.as_str()).filter(|name| !name.is_empty()).collect();
        let providers: Vec<String> = providers.into_iter().map(|name| words::provider(name).to_owned()).collect();
        let provider = if providers.is_empty() { words::provider("").to_owned() } else { words::list(&providers) };
        let at = |state: State| {
            rows.iter()
                .find(|row| row.states.contains(&state))
                .map_or(String::new(), |row| format!(" at {}", self.clock.text(row.at)))
        };
        let count = by_id.values().filter(|rows| has(rows, State::Delivered)).count();
        let reason = rows.iter().rev().find_map(|row| row.reason);
        let matter = Matter { channel: Some(channel), ..matter(rows[rows.len() - 1], None) };
        let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, matter)));
        if count > 0 {
            let devices = if count > 1 { format!(" on {count} addresses") } else { String::new() };
            let took = match channel {
                Channel::InApp => String::new(),
                Channel::Push | Channel::Email | Channel::Sms | Channel::Webhook => {
                    format!(" ({provider} accepted it)")
                }
            };
            end("delivered", &format!("delivered{}{devices}{took}", at(State::Delivered)), Tone::Good)
        } else if has(rows, State::Unknown) {
            let given_up =
                if has(rows, State::Failed) { format!(", and was given up later{why}") } else { String::new() };
            end("unknown", &format!("may have arrived (the provider's answer was lost){given_up}"), Tone::Bad)
        } else if has(rows, State::Dlq) || has(rows, State::Failed) {
            let word = if has(rows, State::Dlq) { "dead_lettered" } else { "failed" };
            end(word, &format!("could not be delivered{why}"), Tone::Bad)
        } else if has(rows, State::Suppressed) {
            end("suppressed", &format!("not sent{why}"), Tone::Quiet)
        } else if has(rows, State::Expired) {
            end("expired", "came too late", Tone::Quiet)
        } else if has(rows, State::Sent) {
            end("in_flight", &format!("given to {provider}"), Tone::Open)
        } else {
            end("in_flight", "on its way", Tone::Open)
        }
    }

    pub(super) fn end(&self, channels: &[ChannelEnd]) -> End {
        let loud = channels.iter().find(|channel| !channel.silent);
        let own_reason = self.own.iter().rev().find_map(|row| row.reason);
        match self.fate {
            Fate::Rejected => end("rejected", "refused", Tone::Bad),
            Fate::Deduplicated => end("deduplicated", "a repeat, left out", Tone::Quiet),
            Fate::Retracted => end("retracted", "taken back", Tone::Quiet),
            Fate::Cancelled => end("cancelled", "cancelled", Tone::Quiet),
            Fate::Expired => end("expired", "came too late", Tone::Quiet),
            Fate::Lost => end("lost", "given up by an operator", Tone::Bad),
            Fate::Suppressed => {
                let reason = own_reason
                    .filter(|_| self.legs.is_empty())
                    .or_else(|| self.legs.iter().rev().find_map(|row| row.reason));
                let what = if self.is_control() { "without effect" } else { "not sent" };
                let text =
                    reason.map_or(what.to_owned(), |reason| format!("{what} ({})", words::spaced(reason.as_str())));
                end("suppressed", &text, Tone::Quiet)
            }
            Fate::Parked => {
                let until = self
                    .own
                    .iter()
                    .chain(&self.legs)
                    .filter(|row| !row.silent)
                    .max_by_key(|row| row.at)
                    .and_then(|row| row.until);
                let until = until.map_or(String::new(), |until| format!(" until {}", self.clock.text(until)));
                end("parked", &format!("waits{until}"), Tone::Waiting)
            }
            Fate::Merged => {
                let tone = loud.map_or(Tone::Waiting, |channel| channel.end.tone);
                let with = format!("with {} other{}", self.companions.len(), plural(self.companions.len()));
                let text = match loud {
                    Some(channel) if tone == Tone::Good => format!("told {with}, {}", words::by(channel.channel)),
                    Some(channel) if tone == Tone::Waiting => {
                        // The clause up to the reason; times have colons of their own.
                        let waits = channel.end.text.split(": ").next().unwrap_or_default();
                        format!("{with}, {}", waits.replacen("waits with others", "waits", 1))
                    }
                    Some(channel) if tone == Tone::Open => format!("{with}, {}", channel.end.text),
                    Some(channel) => {
                        format!("{with}, {} {}", words::channel(channel.channel), words::spaced(&channel.end.word))
                    }
                    None => with,
                };
                end("merged", &text, tone)
            }
            Fate::Notified => match loud.or(channels.first()) {
                Some(channel) if channel.end.tone == Tone::Good || channel.end.tone == Tone::Bad => end(
                    "notified",
                    &format!("{} {}", words::channel(channel.channel), words::spaced(&channel.end.word)),
                    channel.end.tone,
                ),
                Some(channel) if !channel.silent && channel.end.word != "suppressed" => {
                    end("notified", &format!("{} on its way", words::channel(channel.channel)), Tone::Open)
                }
                _ => end("notified", "in the app's inbox only", Tone::Quiet),
            },
            Fate::Queued
            | Fate::Returned
            | Fate::Delivered
            | Fate::Failed
            | Fate::DeadLettered
            | Fate::Unknown
            | Fate::InFlight
            | Fate::Unaccounted => end("accepted", "accepted, being decided", Tone::Open),
        }
    }

    pub(super) fn headline(&self, title: &str, channels: &[ChannelEnd]) -> String {
        let first = self.own[0];
        let when = format!("({}, in {})", self.clock.text(first.created_at), self.clock.place());
        let when =
            if self.clock.place() == "UTC" { format!("({} UTC)", self.clock.text(first.created_at)) } else { when };
        format!("{} {when} {}", words::capital(title), self.outcome(channels))
    }

    /// What became of the event, as the rest of a sentence that begins with it.
    pub(super) fn outcome(&self, channels: &[ChannelEnd]) -> String {
        let reason = self.own.iter().rev().find_map(|row| row.reason);
        let facts = matter(self.own[self.own.len() - 1], None);
        match self.fate {
            Fate::Rejected => {
                let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, facts)));
                return format!("was refused and put among the dead letters{why}.");
            }
            Fate::Deduplicated => {
                return match self.repeats {
                    Some(leg) => format!(
                        "was left out as a repeat of {}, accepted at {}.",
                        self.title_of(leg.event),
                        self.clock.text(leg.created_at)
                    ),
                    None => "repeats an earlier event and was left out.".to_owned(),
                };
            }
            Fate::Retracted if self.is_control() => {
                return "was carried out: what it names was taken back before the user was told.".to_owned();
            }
            Fate::Cancelled if self.is_control() => {
                return "was carried out: what it names was cancelled before the user was told.".to_owned();
            }
            Fate::Retracted => return "was taken back before the user was told of it.".to_owned(),
            Fate::Cancelled => return "was cancelled before the user was told of it.".to_owned(),
            Fate::Expired => return "was not told: when its time came, it was too late.".to_owned(),
            Fate::Lost => return "was given up by an operator's explicit word.".to_owned(),
            _ => {}
        }
        let mut clauses: Vec<String> = Vec::new();
        if let Some(why) = self.first_wait() {
            clauses.push(why);
        }
        let loud: Vec<&ChannelEnd> = channels.iter().filter(|channel| !channel.silent).collect();
        let arrived: Vec<&&ChannelEnd> = loud.iter().filter(|channel| channel.end.tone == Tone::Good).collect();
        let together = match (self.fate, self.companions.is_empty()) {
            (Fate::Merged, false) => format!("told together with {}", self.others()),
            (Fate::Merged, true) => "told together with others".to_owned(),
            _ => "told".to_owned(),
        };
        if !arrived.is_empty() {
            let ways: Vec<String> = arrived
                .iter()
                .map(|channel| {
                    format!(
                        "{} {}",
                        words::by(channel.channel),
                        channel.end.text.trim_start_matches("delivered").trim()
                    )
                })
                .map(|way| way.trim().to_owned())
                .collect();
            clauses.push(format!("it was {together} {}", words::list(&ways)));
        } else if let Some(channel) = loud.iter().find(|channel| channel.end.tone == Tone::Bad) {
            clauses.push(format!("{}: it {}", words::by(channel.channel), channel.end.text).replacen(
                "by ",
                "went wrong by ",
                1,
            ));
        } else if let Some(channel) = loud.iter().find(|channel| channel.end.tone == Tone::Waiting) {
            let among = if self.fate == Fate::Merged { format!(", to be {together}") } else { String::new() };
            if clauses.is_empty() {
                clauses.push(format!("{}{among}", channel.end.text));
            } else {
                clauses.push(format!("it still {}{among}", channel.end.text));
            }
        } else if let Some(channel) = loud.iter().find(|channel| channel.end.tone == Tone::Open) {
            clauses.push(
                format!("it is on its way {}, {together}", words::by(channel.channel))
                    .replace(", told.", ".")
                    .trim_end_matches(", told")
                    .to_owned(),
            );
        } else if let Some(channel) = loud.first() {
            clauses.push(match channel.end.text.strip_prefix("not sent") {
                Some(why) => format!("was not told {}{why}", words::by(channel.channel)),
                None => format!("{} it {}", words::by(channel.channel), channel.end.text),
            });
        } else if self.fate == Fate::Suppressed {
            let why = reason.map_or(String::new(), |reason| format!(": {}", words::why(reason, facts)));
            let what = if self.is_control() { "had no effect" } else { "was not told" };
            clauses.push(format!("{what}{why}"));
        } else if self.fate == Fate::Merged {
            clauses.push(format!("is to be {together}"));
        }
        if channels.iter().any(|channel| channel.silent && channel.end.tone == Tone::Good) && arrived.is_empty() {
            clauses.push("a silent copy lies in the app's inbox".to_owned());
        }
        if clauses.is_empty() {
            return "was accepted; nothing has been decided yet.".to_owned();
        }
        if clauses.len() == 1 && clauses[0].starts_with("by ") {
            clauses[0].insert_str(0, "was not told: ");
        }
        if !clauses[0].starts_with("had ")
            && !clauses[0].starts_with("was ")
            && !clauses[0].starts_with("is ")
            && !clauses[0].starts_with("wait")
        {
            // The sentence's subject is the event already.
            clauses[0] = clauses[0].trim_start_matches("it ").to_owned();
        }
        format!("{}.", clauses.join("; "))
    }

    pub(super) fn is_control(&self) -> bool {
        self.context.events.get(&self.event).is_some_and(|event| event.op != Op::Notify)
    }

    /// Why it was not said at once, of whatever held it first and long.
    pub(super) fn first_wait(&self) -> Option<String> {
        let over = |row: &Row, until: Instant| {
            self.own.iter().chain(&self.legs).any(|later| later.at >= until && later.at > row.at)
                || self
                    .own
                    .iter()
                    .chain(&self.legs)
                    .any(|later| later.at > row.at && later.states.contains(&State::Queued))
        };
        let waits = |row: &&&Row| row.states.iter().any(|state| is_waiting(*state)) && row.until.is_some();
        if let Some(row) = self.legs.iter().find(waits) {
            let until = row.until?;
            if !over(row, until) {
                return None;
            }
            let until = self.clock.text(until);
            return Some(match row.reason {
                Some(Reason::QuietHours) => {
                    match self.legs.iter().find(|later| later.at > row.at && later.caused_by == "profile") {
                        Some(change) => format!(
                            "was not sent at once, because it was quiet; at {} the user's profile changed",
                            self.clock.text(change.at)
                        ),
                        None => format!("was not sent at once: it was quiet until {until}"),
                    }
                }
                Some(Reason::RateLimited) => "was not sent at once: a limit was reached".to_owned(),
                _ => format!("waited until {until}"),
            });
        }
        if let Some((joined, until)) = self.joined.and_then(|row| Some((row, self.joined_until?))) {
            return Some(match joined.reason {
                Some(Reason::QuietHours) if over(joined, until) => {
                    format!("was not sent at once: it was quiet until {}", self.clock.text(until))
                }
                Some(Reason::RateLimited) if over(joined, until) => {
                    "was not sent at once: a limit was reached".to_owned()
                }
                reason => {
                    let why = reason
                        .map_or(String::new(), |reason| format!(": {}", words::why(reason, matter(joined, None))));
                    format!("waits until {}{why}", self.clock.text(until))
                }
            });
        }
        let row = self.own.iter().find(|row| row.states.contains(&State::Scheduled))?;
        let until = row.until?;
        Some(if over(row, until) {
            format!("waited until {}, as its producer asked", self.clock.text(until))
        } else {
            format!("waits until {}, as its producer asked", self.clock.text(until))
        })
    }
}

fn last_fate(row: &Row) -> Option<Fate> {
    row.states.iter().rev().find_map(|state| match state {
        State::Queued => Some(Fate::Queued),
        State::Merged => Some(Fate::Merged),
        State::Suppressed => Some(Fate::Suppressed),
        State::Expired => Some(Fate::Expired),
        State::Cancelled => Some(Fate::Cancelled),
        State::Retracted => Some(Fate::Retracted),
        State::Parked | State::Deferred | State::RateLimited | State::Scheduled | State::Digested => Some(Fate::Parked),
        State::Returned => Some(Fate::Returned),
        _ => None,
    })
}

fn end(word: &str, text: &str, tone: Tone) -> End {
    End { word: word.to_owned(), text: text.to_owned(), tone }
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
