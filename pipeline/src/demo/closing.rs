//! The demo's last words: where everything went, and three events explained. Pure functions of rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use tidings_schemas::channel::Priority;
use tidings_schemas::ids::EventId;
use tidings_schemas::lifecycle::{Row, State, Unit};
use tidings_sinks::record::fates::{Fate, Sum};

use crate::explain::{Colour, Context, Story, Tone, explain, words};

/// How many events the demo explains.
pub const EXPLAINED: usize = 3;

/// The three sums as a table, with the reasons of what was suppressed.
#[must_use]
pub fn fates_table(sums: &[Sum; 3], rows: &[Row], colour: Colour) -> String {
    let mut text = String::new();
    for sum in sums {
        let unit = match sum.unit {
            Unit::Event => "events",
            Unit::Leg => "ways to a channel (legs)",
            Unit::Delivery => "deliveries",
        };
        let _ = writeln!(text, "{:>7}  {}", sum.created, colour.bold(unit));
        for (fate, units) in sum.fates.iter().filter(|(_, units)| *units > 0) {
            let reasons = if *fate == Fate::Suppressed { reasons(sum.unit, rows) } else { String::new() };
            let _ =
                writeln!(text, "{:>7}  {}{reasons}", units, colour.paint(tone(*fate), &words::spaced(fate.as_str())));
        }
        let told: u64 = sum.fates.iter().map(|(_, units)| units).sum();
        let verdict = match (sum.adds_up(), sum.unaccounted) {
            (true, _) => colour.paint(Tone::Good, &format!("= {}, adds up", sum.created)),
            (false, 0) => {
                colour.paint(Tone::Bad, &format!("{told} of {} told, {} without a beginning", sum.created, sum.orphans))
            }
            (false, open) => colour.paint(Tone::Waiting, &format!("and {open} of which nothing was decided yet")),
        };
        let _ = writeln!(text, "         {verdict}\n");
    }
    text.truncate(text.trim_end().len());
    text
}

/// ` (2 opted out, 1 quiet hours)`, or nothing.
fn reasons(unit: Unit, rows: &[Row]) -> String {
    let mut units: BTreeMap<&str, BTreeSet<[u8; 16]>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.unit == unit && row.states.contains(&State::Suppressed)) {
        if let Some(reason) = row.reason {
            units.entry(reason.as_str()).or_default().insert(row.unit_id());
        }
    }
    let words: Vec<_> =
        units.iter().map(|(reason, units)| format!("{} {}", units.len(), words::spaced(reason))).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

const fn tone(fate: Fate) -> Tone {
    match fate {
        Fate::Notified | Fate::Delivered | Fate::Queued => Tone::Good,
        Fate::Parked => Tone::Waiting,
        Fate::Merged | Fate::Returned | Fate::InFlight => Tone::Open,
        Fate::Rejected | Fate::Lost | Fate::Failed | Fate::DeadLettered | Fate::Unknown | Fate::Unaccounted => {
            Tone::Bad
        }
        Fate::Deduplicated | Fate::Retracted | Fate::Cancelled | Fate::Expired | Fate::Suppressed => Tone::Quiet,
    }
}

/// Three events whose stories say most: one that waited or was told with others, one that was not
/// told, a critical one; the longest story of each kind, others where a kind is missing.
/// `context_of` knows what there is to know of a user.
#[must_use]
pub fn three_stories(rows: &[Row], context_of: impl Fn(&str) -> Context) -> Vec<Story> {
    let mut of_user: BTreeMap<&str, (BTreeSet<EventId>, Vec<&Row>)> = BTreeMap::new();
    for row in rows {
        let (events, rows) = of_user.entry(&row.user).or_default();
        rows.push(row);
        if row.unit == Unit::Event {
            events.insert(row.event);
        }
    }
    let mut stories: Vec<Story> = Vec::new();
    for (user, (events, rows)) in of_user {
        let context = context_of(user);
        stories.extend(events.iter().filter_map(|event| explain(rows.iter().copied(), *event, &context)));
    }
    // Whatever lasted longest first, and of that what has more to say; the same ones for the same rows.
    let span = |story: &Story| story.steps.last().map_or(0, |last| last.at.0 - story.at.0);
    stories.sort_by_key(|story| {
        (std::cmp::Reverse(span(story)), std::cmp::Reverse(story.steps.len()), story.ids.event.clone())
    });
    let waited = |story: &Story| story.end.word == "merged" && story.end.tone == Tone::Good;
    let not_told = |story: &Story| {
        story.end.word == "suppressed" || story.channels.iter().any(|end| !end.silent && end.end.word == "suppressed")
    };
    let at_once = |story: &Story| story.priority == Some(Priority::Critical) && story.end.tone == Tone::Good;
    let any = |_: &Story| true;
    let kinds: [&dyn Fn(&Story) -> bool; 6] = [&waited, &not_told, &at_once, &any, &any, &any];
    let mut chosen: Vec<Story> = Vec::new();
    for kind in kinds {
        if chosen.len() < EXPLAINED {
            let place = stories.iter().position(kind);
            chosen.extend(place.map(|place| stories.remove(place)));
        }
    }
    chosen
}

/// All of the last words.
#[must_use]
pub fn closing(sums: &[Sum; 3], rows: &[Row], context_of: impl Fn(&str) -> Context, colour: Colour) -> String {
    let mut text = format!("{}\n\n{}\n", colour.bold("Where everything went"), fates_table(sums, rows, colour));
    for story in three_stories(rows, context_of) {
        let _ = write!(text, "\n{}\n{}\n", "─".repeat(72), story.text(colour));
    }
    text
}
