//! `preferences`: joins the user's profile and resolves the candidate channels, in order, among which
//! `route` chooses.
//!
//! Precedence and consent are [`crate::candidates`]'s; this operator ends nothing: an event without a
//! candidate still becomes a leg, so that its story has an end with a reason.
//!
//! ```text
//! like for a user with push off   -> candidates email; struck push (opted_out)
//! ```
//! Keeps nothing: profiles are side inputs that the engine keeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_schemas::lifecycle::{State as Did, Unit};

use crate::item::Item;
use crate::keyed::{About, Cx, Operator, Table};

use crate::params::SideInput;

/// `preferences` has no parameters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreferencesParams {}

/// The operator.
pub struct Preferences;

impl Operator for Preferences {
    const KIND: &'static str = "preferences";
    const JOINS: &'static [SideInput] = &[SideInput::Profile, SideInput::Reachability];
    type Params = PreferencesParams;
    type User = ();
    type Entry = ();
    type Body = ();
    type Store = Table<Self>;

    fn new(_: PreferencesParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, mut item: Box<Item>) {
        if !item.is_control() && item.returned.is_none() {
            let answer = cx.candidates(&item);
            item.candidates = answer.open;
            item.struck = answer.closed;
            match struck(&item) {
                None => cx.record_events(&item, &[Did::PreferenceChecked], None, None),
                // What may not be used, and why, is part of the story: a row is the only one to tell it.
                Some(words) => {
                    for member in &item.members {
                        let about = About::member(&item, member);
                        cx.record_caused(Unit::Event, about, &[Did::PreferenceChecked], None, &words);
                    }
                }
            }
        }
        cx.emit(0, item);
    }
}

/// The channels that may not carry an item, as the row says them: `not push (opted_out), sms (no_consent)`.
fn struck(item: &Item) -> Option<String> {
    let mut words = String::new();
    for (place, (channel, reason)) in item.struck.iter().enumerate() {
        let before = if place == 0 { "not " } else { ", " };
        [before, channel.as_str(), " (", reason.as_str(), ")"].into_iter().for_each(|part| words.push_str(part));
    }
    (!words.is_empty()).then_some(words)
}
