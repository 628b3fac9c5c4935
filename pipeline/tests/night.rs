//! The demo's night on the real chain: every fate is met, the sums add up, and the last words say so.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use support::{Seen, night};
use tidings_operators::calendar::Calendar;
use tidings_pipeline::demo::closing::{closing, three_stories};
use tidings_pipeline::demo::workload::{BEGINS_AT, LASTS};
use tidings_pipeline::explain::{Colour, Context, Story, Tone, explain};
use tidings_schemas::event::Event;
use tidings_schemas::ids::EventId;
use tidings_schemas::lane::LaneRecord;
use tidings_schemas::lifecycle::{Row, Unit};
use tidings_schemas::profile::Profile;
use tidings_sinks::lane::{Render, Texts};
use tidings_sinks::record::fates::{Fate, Fates};
use tidings_sinks::render::{TemplateStore, Templates};

#[derive(Default)]
struct Night {
    rows: Vec<Row>,
    lanes: Vec<LaneRecord>,
    events: BTreeMap<EventId, Event>,
    profiles: BTreeMap<String, Profile>,
}

impl Night {
    fn played() -> Self {
        let mut all = Self::default();
        night(1, BEGINS_AT.after(LASTS).after(std::time::Duration::from_secs(3600)), |seen| match seen {
            Seen::Event { id, value, .. } => {
                if let Ok(event) = Event::from_json(&value, false) {
                    all.events.insert(id, event);
                }
            }
            Seen::Profile { user, profile, .. } => drop(all.profiles.insert(user, *profile)),
            Seen::Rows(rows) => all.rows.extend(rows),
            Seen::Lane(lane) => all.lanes.push(*lane),
            Seen::Message(_) => {}
        });
        all
    }

    fn context(&self, user: &str) -> Context {
        let profile = self.profiles.get(user).cloned();
        let zone = profile.as_ref().and_then(|profile| profile.time_zone.as_deref());
        let mut context = Context {
            zone: zone.and_then(|zone| Calendar::bundled().zone(zone).cloned()),
            events: self.events.clone(),
            profile,
            ..Context::default()
        };
        self.lanes.iter().for_each(|lane| context.observe_lane(lane));
        context
    }

    fn story(&self, own: &str) -> Story {
        let accepted = |id: &EventId| self.rows.iter().filter(|row| row.event == *id).map(|row| row.created_at).min();
        let named = self.events.iter().filter(|(_, event)| event.id.as_deref() == Some(own));
        let (id, event) = named.min_by_key(|(id, _)| accepted(id)).expect("an event");
        explain(&self.rows, *id, &self.context(&event.user_id)).expect("a story")
    }
}

#[test]
fn every_fate_is_met_and_the_sums_add_up() {
    let night = Night::played();
    let fates = Fates::of(night.rows.iter());
    for sum in fates.sums() {
        assert!(sum.adds_up() && sum.created > 50, "{sum:?}");
    }
    let events: BTreeSet<EventId> =
        night.rows.iter().filter(|row| row.unit == Unit::Event).map(|row| row.event).collect();
    let met: BTreeSet<Fate> = events.iter().filter_map(|event| fates.event(*event)).collect();
    for fate in Fate::OF_EVENTS.iter().filter(|fate| **fate != Fate::Lost) {
        assert!(met.contains(fate), "no event is {}", fate.as_str());
    }
    assert!(fates.sums()[1].fates.iter().any(|(fate, legs)| *fate == Fate::Suppressed && *legs > 2));
}

#[test]
fn every_leg_has_its_text() {
    let texts = Texts::new(Arc::new(TemplateStore::fixed(Templates::embedded().expect("templates"))));
    let night = Night::played();
    assert!(night.lanes.len() > 50);
    for lane in &night.lanes {
        if let Err(without) = texts.render(lane) {
            panic!("{} by {}: {}", lane.event_type, lane.channel, without.detail);
        }
    }
}

#[test]
fn forty_three_people_become_one_notification() {
    let night = Night::played();
    let merged = night.lanes.iter().find(|lane| lane.user == "nora" && !lane.silent && lane.actors_count >= 43);
    let merged = merged.expect("the burst's notification");
    assert_eq!((merged.actors[0].as_str(), merged.actors_count, merged.activities), ("Alice", 43, 43));
}

#[test]
fn the_script_says_what_its_captions_promise() {
    let night = Night::played();
    let lines: Vec<_> = [
        "like-1",
        "like-5",
        "unlike-6",
        "order-4412",
        "order-4413",
        "order-4412-retry",
        "message-1",
        "code-1",
        "reminder-1",
        "reminder-2",
        "cancel-1",
        "spring-mia",
        "spring-john",
        "spring-sofia",
        "sale-1",
        "unlike-eve",
        "comment-10",
        "like-11",
        "like-13",
    ]
    .into_iter()
    .map(|own| format!("{own}: {}", night.story(own).headline))
    .collect();
    insta::assert_snapshot!("captions", lines.join("\n"));
}

#[test]
fn every_event_has_a_whole_story_in_plain_words() {
    let night = Night::played();
    let fates = Fates::of(night.rows.iter());
    let events: BTreeMap<EventId, &str> =
        night.rows.iter().filter(|row| row.unit == Unit::Event).map(|row| (row.event, row.user.as_str())).collect();
    assert!(events.len() > 100);
    for (id, user) in events {
        let story = explain(&night.rows, id, &night.context(user)).unwrap_or_else(|| panic!("{id} has no story"));
        let fate = fates.event(id).expect("a fate");
        let whole = format!("{fate:?}: {story:#?}");
        assert_eq!(story.end.word, fate.as_str(), "{whole}");
        let begins = |word| story.steps.first().is_some_and(|step| step.text.contains(word));
        assert!(begins(if fate == Fate::Rejected { "refused" } else { "accepted" }), "no beginning\n{whole}");
        assert!(fate == Fate::Rejected || story.steps.len() > 1, "no end\n{whole}");
        let is_waiting = [Fate::Parked, Fate::Merged].contains(&fate);
        assert!(!is_waiting || story.end.tone != Tone::Bad, "what waits is no failure\n{whole}");
        if [Fate::Suppressed, Fate::Rejected, Fate::Expired].contains(&fate) {
            assert!(!story.not_done.is_empty() || !story.hints.is_empty(), "no reason\n{whole}");
        }
        // Codes are for tables; a person is told in words.
        let spoken = story.steps.iter().map(|step| &step.text);
        let spoken = spoken.chain(story.channels.iter().map(|end| &end.end.text));
        for text in spoken.chain([&story.headline, &story.end.text]).chain(&story.not_done).chain(&story.hints) {
            let is_id = |word: &str| word.trim_end_matches('.').split_once('_').is_some_and(|(_, id)| id.len() == 32);
            // A hint may name a field that the producer has to set.
            let is_field = |word: &str| word.starts_with('`') && story.hints.contains(text);
            let is_code = |word: &&str| (word.contains('_') || word.contains("::")) && !is_id(word) && !is_field(word);
            let code = text.split_whitespace().find(is_code);
            assert_eq!(code, None, "{text}\n{whole}");
        }
    }
}

#[test]
fn the_last_words() {
    let night = Night::played();
    let sums = Fates::of(night.rows.iter()).sums();
    let text = closing(&sums, &night.rows, |user| night.context(user), Colour::Off);
    insta::assert_snapshot!("last_words", text);
    assert_eq!(three_stories(&night.rows, |user| night.context(user)).len(), 3);
}
