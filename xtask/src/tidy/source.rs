//! A source file, seen three ways: as written, without comments and texts, and without its tests as well.
//!
//! What is left out is blanked, not removed, so that lines keep their numbers. This is no parser: it knows where
//! comments, texts and `#[cfg(test)]` items begin and end, and nothing else about Rust.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// One `.rs` file of a crate.
pub(super) struct Source {
    /// From the workspace's root, with `/`.
    pub(super) path: String,
    pub(super) text: String,
    /// Without comments and texts.
    pub(super) code: String,
    /// Without tests as well; empty for a file below `tests/`.
    pub(super) shipped: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = without_comments_and_texts(text);
        let shipped = if path.split('/').any(|part| part == "tests") { String::new() } else { without_tests(&code) };
        Source { path: path.to_owned(), text: text.to_owned(), code, shipped }
    }
}

/// All sources of all members, ordered by path.
pub(super) fn read(workspace: &Workspace) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for member in &workspace.members {
        for folder in ["src", "tests", "examples", "benches"] {
            read_folder(&workspace.root, &member.folder.join(folder), &mut sources)?;
        }
    }
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(sources)
}

fn read_folder(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_folder(root, &path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
            sources.push(Source::new(&name, &text));
        }
    }
    Ok(())
}

fn without_comments_and_texts(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hidden = hidden_length(rest, code.chars().next_back());
        if hidden == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            let (blanked, after) = rest.split_at(hidden);
            code.extend(blanked.chars().map(blank));
            rest = after;
        }
    }
    code
}

/// How many bytes at the start of `rest` are a comment, a text or a character; 0 where code stands.
fn hidden_length(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    if rest.starts_with('"') {
        return quoted_length(rest, '"');
    }
    if let Some(after) = rest.strip_prefix('\'') {
        // 'x' and '\n' are characters, 'static is a lifetime.
        let mut following = after.chars();
        let is_character = match following.next() {
            Some('\\') => true,
            Some(_) => following.next() == Some('\''),
            None => false,
        };
        return if is_character { quoted_length(rest, '\'') } else { 0 };
    }
    let in_a_name = before.is_some_and(is_name);
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'));
    match raw {
        Some(after) if !in_a_name => {
            let hashes = after.len() - after.trim_start_matches('#').len();
            if !after[hashes..].starts_with('"') {
                return 0;
            }
            let start = rest.len() - after.len() + hashes + 1;
            let end = format!("\"{}", &after[..hashes]);
            rest[start..].find(&end).map_or(rest.len(), |length| start + length + end.len())
        }
        _ => 0,
    }
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Blanks each item under `#[cfg(test)]`, up to the end of its braces or its semicolon.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut shipped = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(start) = rest.find(MARK) {
        let (before, item) = rest.split_at(start);
        let (tests, after) = item.split_at(item_length(item));
        shipped.push_str(before);
        shipped.extend(tests.chars().map(blank));
        rest = after;
    }
    shipped.push_str(rest);
    shipped
}

fn item_length(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in item.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// Whether a character can be part of a name.
pub(super) fn is_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn blank(character: char) -> char {
    if character == '\n' { '\n' } else { ' ' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_remains_and_lines_keep_their_numbers() {
        for (text, expected) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("a \" b", c)"#, r"f(        , c)"),
            ("r#\"a \" b\"# c", "           c"),
            ("br\"a\" c", "      c"),
            ("for r in bar", "for r in bar"),
            ("'\"' \"a\" 'a' x", "            x"),
            ("&'static str", "&'static str"),
            ("'\\'' x", "     x"),
            ("\"a\nb\" c", "  \n   c"),
        ] {
            assert_eq!(without_comments_and_texts(text), expected, "{text}");
        }
    }

    #[test]
    fn tests_are_not_shipped_but_what_follows_them_is() {
        let source = Source::new("a/src/b.rs", "a\n#[cfg(test)]\nmod tests {\n  fn b() { \"}\" }\n}\nc");
        assert_eq!(source.shipped.split_whitespace().collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!(source.shipped.lines().count(), source.text.lines().count());
        let declared = Source::new("a/src/b.rs", "#[cfg(test)]\nmod tests;\nc");
        assert_eq!(declared.shipped.trim(), "c");
        assert_eq!(Source::new("a/tests/b.rs", "c").shipped, "");
    }
}
