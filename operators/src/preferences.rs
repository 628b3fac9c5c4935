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
use serde::Deserialize;
use tidings_schemas::lifecycle::State as Did;

use crate::item::Item;
use crate::keyed::{Cx, Operator};

/// `preferences` has no parameters.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreferencesParams {}

/// The operator.
pub struct Preferences;

impl Operator for Preferences {
    const KIND: &'static str = "preferences";
    type Params = PreferencesParams;
    type User = ();
    type Entry = ();
    type Body = ();

    fn new(_: PreferencesParams) -> Result<Self, String> {
        Ok(Self)
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, mut item: Item) {
        if !item.is_control() && item.returned.is_none() {
            let answer = cx.candidates(&item);
            item.candidates = answer.open;
            item.struck = answer.closed;
            cx.record_events(&item, &[Did::PreferenceChecked], None, None);
        }
        cx.emit(0, item);
    }
}
