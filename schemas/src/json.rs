//! JSON by hand, for what is written a million times a second: the same bytes as `serde_json` writes,
//! straight into a shared buffer.

use crate::ids::IdText;
use crate::time::Instant;

/// Appends a string, quoted and escaped.
pub(crate) fn put_text(to: &mut Vec<u8>, text: &str) {
    // A whole pass without a branch is cheaper than looking for the first byte to escape.
    let special = |found, byte: &u8| found | (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\');
    if text.as_bytes().iter().fold(false, special) {
        // Writing a string into memory cannot fail.
        let _ = serde_json::to_writer(to, text);
        return;
    }
    to.push(b'"');
    to.extend_from_slice(text.as_bytes());
    to.push(b'"');
}

/// Appends a word that needs no escape.
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
pub(crate) fn put_instant(to: &mut Vec<u8>, instant: Instant) {
    to.push(b'"');
    instant.put(to);
    to.push(b'"');
}

/// Appends a number.
pub(crate) fn put_number(to: &mut Vec<u8>, number: u64) {
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
pub(crate) fn put_list<T>(to: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    to.push(b'[');
    for (place, value) in list.iter().enumerate() {
        if place > 0 {
            to.push(b',');
        }
        put(to, value);
    }
    to.push(b']');
}
