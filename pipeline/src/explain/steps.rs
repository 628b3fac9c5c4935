//! What happened, in order: a sentence for each state of a row that says something.

use tidings_schemas::channel::Channel;
use tidings_schemas::ids::EventId;
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_schemas::reason::Reason;
use tidings_sinks::record::fates::Fate;

use super::words::Matter;
use super::{NAMES_TOLD_MAX, Step, Teller, Tone, by_channel, is_waiting, matter, why_not, words};

impl Teller<'_, '_> {
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut rows: Vec<&Row> = self.own.clone();
        // A repeat shares its legs with the first: what became of them is that one's story.
        if self.fate != Fate::Deduplicated {
            rows.extend(self.legs.iter().chain(&self.deliveries));
        }
        rows.sort_by_key(|row| (row.at, row.epoch, row.unit, row.silent, row.attempt, row.row_id));
        let last_merge = self.own.iter().rev().find(|row| row.states.contains(&State::Merged)).map(|row| row.row_id);
        for row in rows {
            for (text, tone) in self.tell(row, last_merge == Some(row.row_id)) {
                let local = self.clock.column(row.at);
                let repeats = steps.iter().any(|step| step.text == text && step.local == local);
                if !text.is_empty() && !repeats {
                    let by = if row.operator.is_empty() { row.stage.as_str().to_owned() } else { row.operator.clone() };
                    steps.push(Step { at: row.at, local, text, by, tone });
                }
            }
        }
        if let (Some(leg), Some(own)) = (self.repeats, self.own.last()) {
            let why = words::sentence(State::Deduplicated, Some(Reason::Duplicate), matter(own, None));
            let text = format!("{why} The first was {}.", leg.event);
            let (local, by) = (self.clock.column(own.at), own.stage.as_str().to_owned());
            steps.push(Step { at: own.at, local, text, by, tone: tone_of(State::Deduplicated) });
        }
        steps
    }

    /// What one row tells, a sentence for each state that says something.
    pub(super) fn tell(&self, row: &Row, is_last_merge: bool) -> Vec<(String, Tone)> {
        let until = row.until.map(|until| self.clock.text(until));
        let matter = matter(row, until.as_deref());
        let is_first = row.unit == Unit::Event && row.states.contains(&State::Created);
        let mut told = Vec::new();
        if is_first && !row.states.contains(&State::Rejected) {
            told.push((format!("{} was accepted.", words::capital(&self.title())), Tone::Open));
        }
        if row.silent && row.states.contains(&State::Queued) {
            told.push(("A silent copy goes to the app's inbox, without sound or badge.".to_owned(), Tone::Open));
            return told;
        }
        for state in telling(row) {
            let text = match (state, row.unit) {
                (State::Merged, Unit::Event) => match self.joined.filter(|_| self.is_join(row)) {
                    Some(joined) => self.joins(joined),
                    None if is_last_merge => format!("Put together with {} into one notification.", self.others()),
                    None => continue,
                },
                // Its event says so.
                (State::Merged, Unit::Leg) if self.own.iter().any(|row| row.states.contains(&State::Merged)) => {
                    continue;
                }
                (State::Rejected, _) if !row.caused_by.is_empty() => {
                    format!("{} {}.", words::sentence(state, row.reason, matter), words::capital(&row.caused_by))
                }
                (State::Deduplicated, _) => {
                    format!("{}{}", words::sentence(state, row.reason, matter), self.original(row))
                }
                (State::Deferred, _) => match &until {
                    Some(until) => {
                        format!("Not sent at once: it is quiet for the user until {until}. It waits until then.")
                    }
                    None => words::sentence(state, row.reason, matter),
                },
                (State::RateLimited, _) => match &until {
                    Some(until) => format!(
                        "Not sent at once: {}. It waits for room until {until}, and is told together with what else comes.",
                        words::why(Reason::RateLimited, matter)
                    ),
                    None => words::sentence(state, row.reason, matter),
                },
                (State::Suppressed, Unit::Event) => {
                    words::sentence(state, row.reason, Matter { channel: None, ..matter })
                }
                (State::Suppressed, _) => match row.reason {
                    Some(reason) => format!("Not sent{}: {}.", by_channel(row), why_not(reason, row, matter)),
                    None => words::sentence(state, None, matter),
                },
                (State::Queued, _) if self.spread(row).is_some() => format!(
                    "Released {} after the quiet hours ended (a morning's messages are spread out), and handed over to be sent{}.",
                    self.spread(row).unwrap_or_default(),
                    by_channel(row)
                ),
                (State::Queued, _) if self.waited(row) => {
                    format!("Released, and handed over to be sent{}.", by_channel(row))
                }
                (State::Queued, _) => words::sentence(state, None, matter),
                (State::Retracted | State::Cancelled, Unit::Event) => self.taken_back(state, row, matter),
                (State::FailedOver, _) => {
                    format!("{} Another channel takes its place.", words::sentence(State::Returned, row.reason, matter))
                }
                (State::Sent, _) if row.channel == Some(Channel::InApp) => continue,
                (State::Delivered, _) if row.states.contains(&State::Sent) && row.channel != Some(Channel::InApp) => {
                    continue;
                }
                (State::Dlq, _) if row.states.contains(&State::Failed) => words::sentence(state, None, matter),
                (State::Sent | State::Delivered | State::Failed | State::Retry, _) => self.call(state, row, matter),
                _ => words::sentence(state, row.reason, matter),
            };
            let tone = if row.states.contains(&State::Delivered) { Tone::Good } else { tone_of(state) };
            let because = match (row.unit, row.caused_by.as_str()) {
                (Unit::Leg, "profile") => "The user's profile or addresses changed. ",
                (Unit::Leg, "rules") => "The policies changed. ",
                _ => "",
            };
            told.push((format!("{because}{text}"), tone));
        }
        told
    }

    /// What came of a call, with the provider's own answer.
    pub(super) fn call(&self, state: State, row: &Row, matter: Matter<'_>) -> String {
        let answer = if row.code.is_empty() { String::new() } else { format!(" Its answer: {}.", row.code) };
        let provider = words::provider(&row.provider);
        match state {
            State::Sent if row.states.contains(&State::Delivered) => format!("Given to {provider}, which accepted it."),
            State::Sent => format!("Given to {provider}{}.", by_channel(row)),
            State::Delivered => words::sentence(state, None, matter),
            State::Retry => {
                let until = matter.until.map_or(String::new(), |until| format!(" at {until}"));
                format!(
                    "{} did not take it; attempt {} follows{until}.{answer}",
                    words::capital(provider),
                    row.attempt + 1
                )
            }
            _ => format!("{}{answer}", words::sentence(state, row.reason, matter)),
        }
    }

    pub(super) fn taken_back(&self, state: State, row: &Row, matter: Matter<'_>) -> String {
        let by = row.caused_by.parse::<EventId>().ok().and_then(|id| self.context.events.get(&id));
        // A control item's own row has no other cause than itself.
        if self.is_control() || row.caused_by.is_empty() {
            return match state {
                State::Cancelled => "What it names was cancelled before the user was told.".to_owned(),
                _ => "What it names was taken back before the user was told.".to_owned(),
            };
        }
        match by.and_then(|event| event.actor.as_ref()) {
            Some(actor) => {
                let name = actor.name.as_ref().unwrap_or(&actor.id);
                format!("{name} took it back before the user was told.")
            }
            None => words::sentence(state, row.reason, matter),
        }
    }

    pub(super) fn original(&self, row: &Row) -> String {
        let Some(original) = row.caused_by.strip_prefix("repeats ") else { return String::new() };
        format!(" The first was {original}.")
    }

    /// Whether the leg of `row` waited before.
    pub(super) fn waited(&self, row: &Row) -> bool {
        let waits = |other: &&Row| other.at < row.at && other.states.iter().any(|state| is_waiting(*state));
        self.joined.is_some() || self.legs.iter().chain(&self.own).copied().any(|other| waits(&other))
    }

    /// How long after the end of the quiet hours a leg that waited for it was released.
    pub(super) fn spread(&self, row: &Row) -> Option<String> {
        let waits = |other: &&&Row| {
            other.at < row.at
                && other.reason == Some(Reason::QuietHours)
                && other.states.iter().any(|state| is_waiting(*state))
        };
        let waited = self.legs.iter().rev().find(waits).copied().or(self.joined.filter(|row| waits(&&&**row)))?;
        let minutes = (row.at.0 - waited.until?.0) / 60_000;
        // A later release had other causes.
        (1..=180).contains(&minutes).then(|| format!("{minutes} minute{}", if minutes == 1 { "" } else { "s" }))
    }

    /// Whether `row` joined others that waited, rather than left with them.
    pub(super) fn is_join(&self, row: &Row) -> bool {
        self.own.iter().find(|row| row.states.contains(&State::Merged)).is_some_and(|first| first.row_id == row.row_id)
    }

    /// That it joined what waits, and how long that does.
    pub(super) fn joins(&self, joined: &Row) -> String {
        let until = joined.until.map_or(String::new(), |until| format!(" until {}", self.clock.text(until)));
        let why = joined
            .reason
            .map_or(String::new(), |reason| format!(", because {}", words::why(reason, matter(joined, None))));
        format!("Not sent at once: it joined others that wait{until}{why}.")
    }

    /// With whom it is told: `Alice's`, `Alice's and Carol's`, `Alice's, Bob's, Carol's and 40 more`.
    pub(super) fn others(&self) -> String {
        let own = self.actor(self.event);
        let mut names: Vec<String> = Vec::new();
        for other in &self.companions {
            if let Some(name) = self.actor(*other).filter(|name| own.as_ref() != Some(name))
                && !names.contains(&name)
            {
                names.push(name);
            }
        }
        let count = self.companions.len();
        if names.is_empty() {
            return match count {
                0 => "others like it".to_owned(),
                1 => "one other event".to_owned(),
                _ => format!("{count} other events"),
            };
        }
        names.sort();
        let most = if names.len() == NAMES_TOLD_MAX + 1 { names.len() } else { NAMES_TOLD_MAX };
        let more = names.len().saturating_sub(most);
        names.truncate(most);
        let mut words: Vec<String> = names.into_iter().map(|name| format!("{name}'s")).collect();
        if more > 0 {
            words.push(format!("{more} more people's"));
        }
        words::list(&words)
    }

    pub(super) fn actor(&self, event: EventId) -> Option<String> {
        let actor = self.context.events.get(&event)?.actor.as_ref()?;
        Some(actor.name.as_ref().unwrap_or(&actor.id).to_string())
    }
}

/// The states of a row that say something which no other state of the row says better.
fn telling(row: &Row) -> Vec<State> {
    let has = |state: State| row.states.contains(&state);
    let waits_by_name = has(State::Deferred) || has(State::RateLimited) || has(State::Scheduled);
    let ends = row.states.iter().any(|state| !matches!(state, State::Created | State::Rendered));
    let mut told = row.states.clone();
    told.dedup();
    told.retain(|state| match state {
        State::Validated | State::PreferenceChecked | State::Closed => false,
        State::Created => row.unit != Unit::Event && !ends,
        State::Rendered => !ends,
        State::Parked => !waits_by_name && !has(State::Merged),
        // Waits that were over within the same instant are no waits.
        State::Deferred | State::RateLimited | State::Scheduled => !has(State::Queued),
        State::Returned | State::Suppressed => !has(State::FailedOver),
        State::Dlq => true,
        State::Sent => !has(State::Retry),
        _ => true,
    });
    told
}

const fn tone_of(state: State) -> Tone {
    match state {
        State::Delivered | State::Opened | State::Clicked => Tone::Good,
        State::Parked | State::Deferred | State::RateLimited | State::Scheduled | State::Digested => Tone::Waiting,
        State::Rejected
        | State::Failed
        | State::Retry
        | State::Unknown
        | State::Dlq
        | State::Bounced
        | State::Complained
        | State::Lost => Tone::Bad,
        State::Created
        | State::Validated
        | State::PreferenceChecked
        | State::Rendered
        | State::Queued
        | State::Sent
        | State::Returned
        | State::Escalated
        | State::FailedOver
        | State::Closed => Tone::Open,
        State::Deduplicated
        | State::Cancelled
        | State::Retracted
        | State::Suppressed
        | State::Merged
        | State::Expired
        | State::Dismissed
        | State::Unsubscribed => Tone::Quiet,
    }
}
