//! JSON by hand, for what is written a million times a second: the same bytes as `serde_json` writes,
//! straight into a shared buffer.

use wide::u8x16;

use crate::ids::IdText;
use crate::time::{Instant, InstantTexts};

/// Which of eight bytes are a quote, a backslash or a control character: their top bits, the first byte's
/// lowest. Above the first one that is, others may be marked that are not.
pub(crate) const fn specials(bytes: [u8; 8]) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = ONES << 7;
    // The usual tricks with words: a byte's top bit is set where `byte - n` borrows.
    let word = u64::from_le_bytes(bytes);
    let (quote, slash) = (word ^ (ONES * b'"' as u64), word ^ (ONES * b'\\' as u64));
    let found =
        word.wrapping_sub(ONES * 0x20) & !word | quote.wrapping_sub(ONES) & !quote | slash.wrapping_sub(ONES) & !slash;
    found & TOPS
}

/// The same of sixteen bytes, a bit for each, and all of them right.
#[inline]
pub(crate) fn specials_of_sixteen(bytes: [u8; 16]) -> u32 {
    let (every, bytes) = (u8x16::splat, u8x16::new(bytes));
    let found = bytes.min(every(0x1f)).simd_eq(bytes) | bytes.simd_eq(every(b'"')) | bytes.simd_eq(every(b'\\'));
    found.to_bitmask()
}

/// The top bit of the first of eight bytes that is a quote; zero if none is.
pub(crate) const fn first_quote(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let quote = word ^ (ONES * b'"' as u64);
    let found = quote.wrapping_sub(ONES) & !quote & (ONES << 7);
    found & found.wrapping_neg()
}

/// The first eight bytes of a text, filled up with zeros, in the order in which texts compare.
#[inline]
pub(crate) fn first_eight(text: &str) -> u64 {
    match text.as_bytes().first_chunk() {
        Some(eight) => u64::from_be_bytes(*eight),
        None => {
            let word = text.bytes().fold(0, |word, byte| word << 8 | u64::from(byte));
            if text.is_empty() { 0 } else { word << (64 - 8 * text.len()) }
        }
    }
}

/// Whether one of these eight bytes is a quote, a backslash or a control character.
const fn special(bytes: [u8; 8]) -> bool {
    specials(bytes) != 0
}

/// Whether a text stands for itself between quotes.
#[inline]
pub(crate) fn is_plain(text: &[u8]) -> bool {
    match text.last_chunk::<8>() {
        // The last eight bytes are looked at as a word too.
        Some(last) => !text.as_chunks::<8>().0.iter().any(|word| special(*word)) && !special(*last),
        None => {
            let mut word = [b' '; 8];
            word[..text.len()].copy_from_slice(text);
            !special(word)
        }
    }
}

/// Appends a string, quoted and escaped.
#[inline]
pub(crate) fn put_text(to: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        put_word(to, text);
    } else {
        // Writing a string into memory cannot fail.
        let _ = serde_json::to_writer(to, text);
    }
}

/// Appends a word that needs no escape.
#[inline]
pub(crate) fn put_word(to: &mut Vec<u8>, word: &str) {
    to.push(b'"');
    to.extend_from_slice(word.as_bytes());
    to.push(b'"');
}

/// Appends an id.
pub(crate) fn put_id(to: &mut Vec<u8>, id: IdText) {
    to.push(b'"');
    to.extend_from_slice(id.as_bytes());
    to.push(b'"');
}

/// Appends an instant.
pub(crate) fn put_instant(to: &mut Vec<u8>, instant: Instant, texts: &mut InstantTexts) {
    to.push(b'"');
    texts.put(instant, to);
    to.push(b'"');
}

/// Appends a number.
#[inline]
pub(crate) fn put_number(to: &mut Vec<u8>, number: u64) {
    // Nearly all are counts of one.
    if let Ok(digit @ 0..=9) = u8::try_from(number) {
        return to.push(b'0' + digit);
    }
    let mut digits = [0; 20];
    let (mut rest, mut at) = (number, digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    to.extend_from_slice(&digits[at..]);
}

/// Appends `true` or `false`.
pub(crate) fn put_bool(to: &mut Vec<u8>, value: bool) {
    to.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Appends what is there, or `null`.
pub(crate) fn put_option<T>(to: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => put(to, value),
        None => to.extend_from_slice(b"null"),
    }
}

/// Appends a list.
#[inline]
pub(crate) fn put_list<T>(to: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    if list.is_empty() {
        return to.extend_from_slice(b"[]");
    }
    to.push(b'[');
    for (place, value) in list.iter().enumerate() {
        if place > 0 {
            to.push(b',');
        }
        put(to, value);
    }
    to.push(b']');
}
