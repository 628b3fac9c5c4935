//! Text messages as networks count them: in GSM-7 or UCS-2, whole or in parts.
//!
//! A text is GSM-7 if each of its characters is in the alphabet of GSM 03.38 or its extension table, whose characters
//! take two septets. One other character makes all of it UCS-2, and less than half as much fits: so characters that
//! look alike are replaced where that makes the whole text GSM-7. A message of several parts gives six bytes of each to
//! the header that joins them, and no part ends within a character.
//!
//! Source: 3GPP TS 23.038 and 23.040; the counts of the tests were verified against an independent calculator.

use std::borrow::Cow;

use reqwest::Url;
use unicode_segmentation::UnicodeSegmentation as _;

use super::Call;
use crate::outcome::{Code, Outcome};
use crate::render::Content;

const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿\
                     abcdefghijklmnopqrstuvwxyzäöñüà";
const EXTENSION: &str = "^{}\\[~]|€\u{c}";
/// Most segments of one message: ten are the 1,600 characters that Twilio takes, and as many carriers join.
const SEGMENTS_MAX: usize = 10;
/// What a text ends with that was cut short.
const CUT: &str = "...";

/// How a text is written on the air.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Septets.
    Gsm7,
    /// UTF-16.
    Ucs2,
}

impl Encoding {
    fn of(text: &str) -> Self {
        let is_gsm7 = |c: char| BASIC.contains(c) || EXTENSION.contains(c);
        if text.chars().all(is_gsm7) { Self::Gsm7 } else { Self::Ucs2 }
    }

    /// Units that a character takes.
    fn units(self, c: char) -> usize {
        match self {
            Self::Gsm7 => 1 + usize::from(EXTENSION.contains(c)),
            Self::Ucs2 => c.len_utf16(),
        }
    }

    /// Units of a message alone, and of one part of several.
    const fn room(self) -> (usize, usize) {
        match self {
            Self::Gsm7 => (160, 153),
            Self::Ucs2 => (70, 67),
        }
    }
}

/// How `text` is written, and in how many segments it goes: what is paid for.
pub(crate) fn segments(text: &str) -> (Encoding, usize) {
    let encoding = Encoding::of(text);
    let (alone, part) = encoding.room();
    if text.chars().map(|c| encoding.units(c)).sum::<usize>() <= alone {
        return (encoding, 1);
    }
    let (mut segments, mut left) = (1, part);
    for units in text.chars().map(|c| encoding.units(c)) {
        if units > left {
            (segments, left) = (segments + 1, part);
        }
        left -= units;
    }
    (encoding, segments)
}

/// The text with what looks alike in GSM-7, if that makes all of it GSM-7; else as it is.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if Encoding::of(text) == Encoding::Gsm7 {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '‘' | '’' | '‚' | '‛' | '′' | '`' | '´' => plain.push('\''),
            '“' | '”' | '„' | '‟' | '″' | '«' | '»' => plain.push('"'),
            '‐' | '‑' | '‒' | '–' | '—' | '―' | '−' => plain.push('-'),
            '…' => plain.push_str("..."),
            '\t' | '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' => plain.push(' '),
            // Of no width: nobody sees that they are gone.
            '\u{200b}' | '\u{2060}' | '\u{feff}' => {}
            c => plain.push(c),
        }
    }
    if Encoding::of(&plain) == Encoding::Gsm7 { plain.into() } else { text.into() }
}

/// The text, cut short if it takes more than so many segments: between two characters as people see them, and it says so.
pub(crate) fn fitted(text: Cow<'_, str>, segments_max: usize) -> Cow<'_, str> {
    if segments(&text).1 <= segments_max {
        return text;
    }
    let ends: Vec<usize> = text.grapheme_indices(true).map(|(at, _)| at).collect();
    let cut = |end: usize| format!("{}{CUT}", text[..end].trim_end());
    // More text never takes fewer segments.
    let fits = ends.partition_point(|end| segments(&cut(*end)).1 <= segments_max);
    cut(ends.get(fits.saturating_sub(1)).copied().unwrap_or(0)).into()
}

/// Whether it is a number as networks write it (E.164): what a provider may be asked at all.
pub(crate) fn is_number(address: &str) -> bool {
    let digits = address.strip_prefix('+').unwrap_or_default();
    (2..=15).contains(&digits.len()) && !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Number and text of `call`, or the outcome of one that cannot be sent.
pub(crate) fn check(call: &Call, segments_max: usize) -> Result<(&str, String), Outcome> {
    let Content::Sms(content) = &call.content else {
        return Err(Outcome::permanent(Code::ours("wrong_content"), "expected the content of a text message"));
    };
    if !is_number(&call.address.address) {
        let reason = "expected a number like +14155552671: `+`, the country, and digits alone";
        return Err(Outcome::invalid_address(Code::ours("not_a_number"), reason));
    }
    if content.text.trim().is_empty() {
        return Err(Outcome::permanent(Code::ours("no_text"), "the message is empty: correct the template"));
    }
    Ok((&call.address.address, fitted(plain(&content.text), segments_max).into_owned()))
}

/// `url` with the ids of `call`: what comes back by it can be told apart, whatever the provider's answer was.
pub(crate) fn callback(url: &Url, call: &Call) -> Url {
    let mut url = url.clone();
    let ids = [("delivery", call.delivery.to_string()), ("notification", call.notification.to_string())];
    url.query_pairs_mut().extend_pairs(ids);
    url
}

/// An address that a provider can call back; `field` is where it stands.
pub(crate) fn callback_url(field: &str, text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    // Twilio refuses every message whose callback's host has an underscore.
    let url = url.filter(|url| url.host_str().is_some_and(|host| !host.contains('_')));
    url.ok_or_else(|| format!("`{field}`: expected an address whose host has no underscore, found `{text}`"))
}

/// A bound on segments that a message can keep to.
pub(crate) fn segments_max(found: usize) -> Result<usize, String> {
    let wrong = || format!("`segments_max`: expected 1 to {SEGMENTS_MAX}, found {found}");
    (1..=SEGMENTS_MAX).contains(&found).then_some(found).ok_or_else(wrong)
}

/// That bound where a topology does not say it.
pub(crate) const fn segments_default() -> usize {
    SEGMENTS_MAX
}

/// How long a request may take where a topology does not say it: both providers answer within a second or two.
pub(crate) const fn timeout_seconds() -> u64 {
    20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_counted_as_networks_count_them() {
        let a = |count| "a".repeat(count);
        let zhe = |count| "ж".repeat(count);
        for (text, expected) in [
            (a(160), 1),
            (a(161), 2),
            (a(306), 2),
            (a(307), 3),
            (a(459), 3),
            (a(460), 4),
            ("€".repeat(80), 1),
            ("€".repeat(81), 2),
            (a(159) + "€", 2),
            (a(152) + "€" + &a(152), 3),
            (zhe(70), 1),
            (zhe(71), 2),
            (zhe(134), 2),
            (zhe(135), 3),
            ("👍".repeat(35), 1),
            ("👍".repeat(36), 2),
            (zhe(66) + "👍" + &zhe(66), 3),
        ] {
            assert_eq!(segments(&text).1, expected, "{text}");
        }
        for (text, encoding) in [
            ("français", Encoding::Ucs2),
            ("FRANÇAIS", Encoding::Gsm7),
            ("café", Encoding::Gsm7),
            ("It’s", Encoding::Ucs2),
            ("a`b", Encoding::Ucs2),
        ] {
            assert_eq!(segments(text).0, encoding, "{text}");
        }
        assert_eq!((BASIC.chars().count(), EXTENSION.chars().count()), (127, 10), "without the escape");
    }

    #[test]
    fn what_looks_alike_is_replaced_where_all_of_it_becomes_gsm_7() {
        assert_eq!(plain("It’s “here” – now…\u{a0}\u{200b}`x`"), "It's \"here\" - now... 'x'");
        assert_eq!(plain("It’s здесь"), "It’s здесь", "it stays UCS-2, so it stays as it was written");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_what_people_see_as_characters() {
        let long = format!("{} {}", "a".repeat(150), "b".repeat(200));
        let cut = fitted(long.as_str().into(), 1);
        assert_eq!((cut.len(), segments(&cut).1, cut.ends_with("bbb...")), (160, 1, true), "{cut}");
        let family = "👨‍👩‍👧".repeat(20);
        let cut = fitted(family.as_str().into(), 2);
        let whole = cut.strip_suffix("...").unwrap();
        assert!(segments(&cut).1 == 2 && whole == "👨‍👩‍👧".repeat(whole.chars().count() / 5), "{cut}");
        assert_eq!(fitted("short".into(), 1), "short");
    }

    #[test]
    fn a_number_is_written_as_networks_write_it() {
        for (address, expected) in [
            ("+14155552671", true),
            ("+4915112345678", true),
            ("14155552671", false),
            ("+0415555267", false),
            ("+1 415 555 2671", false),
            ("+1234567890123456", false),
            ("+1", false),
            ("", false),
        ] {
            assert_eq!(is_number(address), expected, "{address}");
        }
    }
}
