//! What a delivery says, per channel: plain fields, before any provider's framing.
//!
//! Adapters map these onto their wire format and keep the wire's limits (4 KiB for a push). Here a push text is
//! only cut to what a device shows, on a grapheme boundary, so that most pushes fit whatever was put into them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

/// Longest push title, in bytes. Devices show one line; beyond it the title ends in an ellipsis.
pub const PUSH_TITLE_BYTES_MAX: usize = 256;
/// Longest push body, in bytes: half of the 4,096 that APNs, FCM and Web Push carry, so that title, links, custom keys
/// and framing have the other half. Beyond it the body ends in an ellipsis.
pub const PUSH_BODY_BYTES_MAX: usize = 2_048;
const _: () = assert!(PUSH_TITLE_BYTES_MAX + PUSH_BODY_BYTES_MAX < 4_096, "a push carries 4 KiB in all");

/// What is said on a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "channel", rename_all = "snake_case")]
pub enum Content {
    /// A device notification.
    Push(Box<Push>),
    /// An e-mail.
    Email(Email),
    /// A text message.
    Sms(Sms),
    /// An entry of the inbox.
    InApp(InApp),
}

/// A device notification, with the presentation that each platform takes what it knows from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// First line, at most [`PUSH_TITLE_BYTES_MAX`] bytes.
    pub title: String,
    /// Second line (APNs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subtitle: Option<String>,
    /// The text, at most [`PUSH_BODY_BYTES_MAX`] bytes.
    pub body: String,
    /// A picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
    /// Where a tap leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_url: Option<String>,
    /// The number on the app's icon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub badge: Option<u32>,
    /// The sound, `default` or one of the app's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sound: Option<String>,
    /// The app's category, which decides its buttons (APNs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// What the device groups by (APNs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread_id: Option<String>,
    /// `passive`, `active`, `time-sensitive` or `critical` (APNs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption_level: Option<String>,
    /// Whether the app's extension may change it before it is shown (APNs).
    #[serde(default)]
    pub mutable_content: bool,
    /// Which earlier notification it replaces on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_key: Option<String>,
    /// How long a provider may keep it for an absent device, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
    /// The app's notification channel (Android).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_id: Option<String>,
    /// The icon's colour, `#rrggbb` (Android).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
    /// The icon (Android, Web Push).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// The activity that a tap opens (Android).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub click_action: Option<String>,
    /// Keys of the app's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, String>,
}

/// An e-mail's subject and its two bodies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Email {
    /// One line, without control characters.
    pub subject: String,
    /// The HTML part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// The text part.
    pub text: String,
}

/// A text message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sms {
    /// The whole message; segments are counted by the adapter.
    pub text: String,
}

/// An entry of the inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InApp {
    /// First line.
    pub title: String,
    /// The text.
    pub body: String,
    /// Where a tap leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_url: Option<String>,
}

impl Content {
    /// Bytes of UTF-8 in all texts and custom keys, without a provider's framing and JSON's escapes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sum =
            |texts: &[&Option<String>]| texts.iter().filter_map(|text| text.as_ref()).map(String::len).sum::<usize>();
        match self {
            Self::Push(push) => {
                // No `..`: a new field has to be counted or named here.
                let Push {
                    title,
                    subtitle,
                    body,
                    image_url,
                    action_url,
                    badge: _,
                    sound,
                    category,
                    thread_id,
                    interruption_level,
                    mutable_content: _,
                    collapse_key,
                    ttl_s: _,
                    channel_id,
                    color,
                    icon,
                    click_action,
                    custom,
                } = push.as_ref();
                let custom: usize = custom.iter().map(|(key, value)| key.len() + value.len()).sum();
                let shown = sum(&[subtitle, image_url, action_url, sound, category, thread_id, interruption_level]);
                let android = sum(&[collapse_key, channel_id, color, icon, click_action]);
                title.len() + body.len() + shown + android + custom
            }
            Self::Email(Email { subject, html, text }) => subject.len() + text.len() + sum(&[html]),
            Self::Sms(Sms { text }) => text.len(),
            Self::InApp(InApp { title, body, action_url }) => title.len() + body.len() + sum(&[action_url]),
        }
    }
}

/// The text within `bytes_max` bytes: where it is longer, whole graphemes and an ellipsis (three bytes).
#[must_use]
pub fn ellipsize(text: &str, bytes_max: usize) -> Cow<'_, str> {
    if text.len() <= bytes_max {
        return Cow::Borrowed(text);
    }
    let room = bytes_max.saturating_sub('…'.len_utf8());
    let ends = text.grapheme_indices(true).map(|(start, grapheme)| start + grapheme.len());
    let cut = ends.take_while(|end| *end <= room).last().unwrap_or(0);
    Cow::Owned(format!("{}…", text[..cut].trim_end()))
}

/// The text within `graphemes_max` graphemes, the last of them an ellipsis where it is longer.
pub(super) fn ellipsize_graphemes(text: &str, graphemes_max: usize) -> Cow<'_, str> {
    let mut graphemes = text.grapheme_indices(true);
    let Some((cut, _)) = graphemes.nth(graphemes_max.saturating_sub(1)) else { return Cow::Borrowed(text) };
    if graphemes.next().is_none() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", text[..cut].trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_graphemes() {
        for (text, bytes_max, expected) in [
            ("short", 5, "short"),
            ("a long text", 8, "a lon…"),
            ("one two three", 7, "one…"),
            ("ééééé", 7, "éé…"),
            // A family of four is one grapheme of 25 bytes: all of it or nothing.
            ("ab👨‍👩‍👧‍👦cd", 20, "ab…"),
            // So is a letter with its combining accent.
            ("abe\u{301}xyz", 6, "ab…"),
            ("日本語のテキスト", 12, "日本語…"),
        ] {
            let cut = ellipsize(text, bytes_max);
            assert_eq!(cut, expected);
            assert!(cut.len() <= bytes_max, "{cut} is longer than {bytes_max} bytes");
        }
        assert_eq!(ellipsize_graphemes("abcd", 4), "abcd");
        assert_eq!(ellipsize_graphemes("abcde", 4), "abc…");
    }

    proptest::proptest! {
        #[test]
        fn any_text_fits_where_it_is_cut_to(text in ".{0,80}", bytes_max in 3usize..60, graphemes_max in 1usize..20) {
            let cut = ellipsize(&text, bytes_max);
            assert!(cut.len() <= bytes_max);
            assert!(cut == text || text.starts_with(cut.trim_end_matches('…')));
            assert!(ellipsize_graphemes(&text, graphemes_max).graphemes(true).count() <= graphemes_max.max(1));
        }
    }

    #[test]
    fn content_has_a_golden_json_and_counts_its_bytes() {
        let push = Content::Push(Box::new(Push {
            title: "Hi".to_owned(),
            body: "Bob".to_owned(),
            badge: Some(1),
            custom: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            ..Push::default()
        }));
        let json =
            r#"{"channel":"push","title":"Hi","body":"Bob","badge":1,"mutable_content":false,"custom":{"k":"v"}}"#;
        assert_eq!(serde_json::to_string(&push).unwrap(), json);
        assert_eq!(serde_json::from_str::<Content>(json).unwrap(), push);
        assert_eq!(push.bytes(), 7);

        let email =
            Content::Email(Email { subject: "é".to_owned(), html: Some("<p>".to_owned()), text: "t".to_owned() });
        assert_eq!(
            serde_json::to_string(&email).unwrap(),
            r#"{"channel":"email","subject":"é","html":"<p>","text":"t"}"#
        );
        assert_eq!(email.bytes(), 6);
    }
}
