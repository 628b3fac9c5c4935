//! What a message shows, one shape per channel: the presentation that a template is rendered to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A device notification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// First line.
    pub title: String,
    /// Second line (Apple only).
    pub subtitle: Option<String>,
    /// The text.
    pub body: String,
    /// A picture, as an https address.
    pub image_url: Option<String>,
    /// Where a tap leads.
    pub action_url: Option<String>,
    /// The number on the app's icon.
    pub badge: Option<u32>,
    /// A sound's name, or `default`.
    pub sound: Option<String>,
    /// The actions that the app offers (Apple's category).
    pub category: Option<String>,
    /// Android's notification channel.
    pub channel_id: Option<String>,
    /// Android's accent, `#rrggbb`.
    pub color: Option<String>,
    /// Android's intent for a tap.
    pub click_action: Option<String>,
    /// The app's own keys.
    pub custom: BTreeMap<String, String>,
}

/// A mail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Email {
    /// The subject.
    pub subject: String,
    /// The HTML part.
    pub html: String,
    /// The text part.
    pub text: String,
}

/// A text message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sms {
    /// The text.
    pub text: String,
}

/// An entry of the inbox in the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InApp {
    /// First line.
    pub title: String,
    /// The text.
    pub body: String,
    /// Where a tap leads.
    pub action_url: Option<String>,
}

/// What one delivery shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// For `push`.
    Push(Push),
    /// For `email`.
    Email(Email),
    /// For `sms`.
    Sms(Sms),
    /// For `in_app`.
    InApp(InApp),
}
