//! What is wrong with a topology, where, and what to do about it.
//!
//! A finding has a stable code, a span, what was found, what was expected, and often the nearest
//! valid name or a hint. All findings of one run are reported together, in the order of the file.
//! A value that came from the environment or a file is never shown: findings quote what is written.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_json::{Value, json};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal),* $(,)?) => {
        /// What kind of fault a finding is. The words are stable: scripts and documents name them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $variant),* }

        impl Code {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The stable word.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

codes! {
    /// The file is not YAML.
    Syntax = "syntax",
    /// A key stands twice in one mapping.
    DuplicateKey = "duplicate_key",
    /// A key that nothing reads.
    UnknownKey = "unknown_key",
    /// A key that must be there is not.
    MissingKey = "missing_key",
    /// A value of another shape: a list for a text, a text for a number.
    WrongType = "wrong_type",
    /// A value of the right shape that makes no sense.
    InvalidValue = "invalid_value",
    /// A word that is not in a closed vocabulary.
    UnknownWord = "unknown_word",
    /// A topology of another version of the language.
    UnsupportedVersion = "unsupported_version",
    /// `${…}` that can't be read.
    Interpolation = "interpolation",
    /// `${V}` where `V` is not set.
    UnsetVariable = "unset_variable",
    /// `${file:…}` where the file can't be read.
    UnreadableFile = "unreadable_file",
    /// An operator without `id`.
    MissingId = "missing_id",
    /// An id or name that can't name state, topics or columns.
    InvalidName = "invalid_name",
    /// One name for two things.
    DuplicateId = "duplicate_id",
    /// An operator of a kind that does not exist.
    UnknownKind = "unknown_kind",
    /// An input that nothing produces.
    UnknownInput = "unknown_input",
    /// An input that can't be one here.
    InvalidInput = "invalid_input",
    /// Operators that wait for each other.
    Cycle = "cycle",
    /// An operator that no source reaches.
    Unreachable = "unreachable",
    /// Events that one path hands to the other through a topic that no source reads.
    UnreadHandOver = "unread_hand_over",
    /// A source or operator whose output nothing reads.
    UnusedOutput = "unused_output",
    /// Events that don't pass `validate` first.
    ValidateFirst = "validate_first",
    /// A kind that must occur at most once occurs again.
    RepeatedKind = "repeated_kind",
    /// A kind that stands on the wrong side of `route`.
    WrongOrder = "wrong_order",
    /// No `route` before the sinks.
    MissingRoute = "missing_route",
    /// Operators that join users, and no source that says who they are.
    MissingSideInput = "missing_side_input",
    /// A sink for a channel that does not exist.
    UnknownChannel = "unknown_channel",
    /// A provider of a kind that does not exist.
    UnknownProvider = "unknown_provider",
    /// A sink names a provider that is not configured.
    MissingProvider = "missing_provider",
    /// A provider that can't serve the sink's channel.
    WrongProvider = "wrong_provider",
    /// A provider that no sink names.
    UnusedProvider = "unused_provider",
    /// A source that reads from nowhere, or from two places.
    SourcePlace = "source_place",
    /// Two sources on one topic.
    SharedTopic = "shared_topic",
    /// Guaranteed shares of more than everything.
    Shares = "shares",
    /// A window of no length.
    ZeroWindow = "zero_window",
    /// A threshold that merges nothing.
    LowThreshold = "low_threshold",
    /// A limit that lets nothing through.
    ZeroLimit = "zero_limit",
    /// A condition that does not compile.
    InvalidWhen = "invalid_when",
    /// A policy under which critical notifications would wait.
    CriticalWaits = "critical_waits",
    /// A type that no policy knows.
    UnknownType = "unknown_type",
    /// A category that no policy knows.
    UnknownCategory = "unknown_category",
    /// A time zone that does not exist.
    UnknownZone = "unknown_zone",
    /// A test step before its predecessor.
    StepOrder = "step_order",
    /// An expectation about an event that no step brings.
    UnknownEvent = "unknown_event",
    /// An expectation that says nothing, or two things at once.
    Expectation = "expectation",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether a finding keeps the pipeline from starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not, but somebody should look.
    Warning,
}

/// Bytes of the source, start to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The first byte that is not part of it any more.
    pub end: usize,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyError {
    /// What kind of fault.
    pub code: Code,
    /// Whether it keeps the pipeline from starting.
    pub severity: Severity,
    /// Where.
    pub span: Span,
    /// What was found.
    pub found: String,
    /// What was expected instead.
    pub expected: String,
    /// The valid name that looks most like what was found.
    pub nearest: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// A second place that belongs to it, and what it is.
    pub related: Option<(Span, String)>,
}

impl TopologyError {
    /// An error without nearest name, hint or second place.
    pub fn new(code: Code, span: Span, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            span,
            found: found.into(),
            expected: expected.into(),
            nearest: None,
            hint: None,
            related: None,
        }
    }

    /// The same as a warning.
    #[must_use]
    pub fn warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// With what to do.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// With the nearest name among `names`, if one is near enough to be meant.
    #[must_use]
    pub fn nearest<'a>(self, wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { nearest: nearest(wrong, names).map(str::to_owned), ..self }
    }

    /// With a second place.
    #[must_use]
    pub fn related(self, span: Span, what: impl Into<String>) -> Self {
        Self { related: Some((span, what.into())), ..self }
    }
}

/// The text of a topology and its name, as findings cite it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    name: String,
    text: String,
}

impl Source {
    /// A source called `name`.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// Its name, usually a path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What stands at `span`; empty where the span lies outside.
    #[must_use]
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.start..span.end).unwrap_or_default()
    }

    /// Line and column of a byte, both from 1; columns count characters.
    #[must_use]
    pub fn line_and_column(&self, byte: usize) -> (usize, usize) {
        let before = self.text.get(..byte).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// The byte at a line and column, both from 1.
    pub(super) fn byte_at(&self, line: usize, column: usize) -> usize {
        let mut start = 0;
        for _ in 1..line {
            match self.text[start..].find('\n') {
                Some(at) => start += at + 1,
                None => return self.text.len(),
            }
        }
        let rest = &self.text[start..];
        start + rest.char_indices().nth(column.saturating_sub(1)).map_or(rest.len(), |(at, _)| at)
    }

    /// Findings as a person reads them, one after the other, with the lines they are about.
    #[must_use]
    pub fn render(&self, findings: &[TopologyError], styled: bool) -> String {
        let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for finding in findings {
            let level = match finding.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let label = format!("expected {}", finding.expected);
            let mut snippet = Snippet::source(self.text.as_str())
                .path(self.name.as_str())
                .annotation(AnnotationKind::Primary.span(self.visible(finding.span)).label(label.as_str()));
            if let Some((span, what)) = &finding.related {
                snippet = snippet.annotation(AnnotationKind::Context.span(self.visible(*span)).label(what.as_str()));
            }
            let mut group = level.primary_title(finding.found.as_str()).id(finding.code.as_str()).element(snippet);
            let nearest = finding.nearest.as_ref().map(|name| format!("did you mean `{name}`?"));
            for help in nearest.iter().chain(&finding.hint) {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            out.push_str(&renderer.render(&[group]));
            out.push_str("\n\n");
        }
        out
    }

    /// A span that a renderer can underline: on character borders and within one line, because an
    /// underlined block hides its text.
    fn visible(&self, span: Span) -> Range<usize> {
        let floor = |mut at: usize| {
            at = at.min(self.text.len());
            while !self.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (start, end) = (floor(span.start), floor(span.end));
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        start..end.clamp(start, line_end.max(start))
    }

    /// Findings as a program reads them.
    #[must_use]
    pub fn to_json(&self, findings: &[TopologyError]) -> Value {
        let place = |span: Span| {
            let ((line, column), (end_line, end_column)) =
                (self.line_and_column(span.start), self.line_and_column(span.end.max(span.start)));
            json!({ "file": self.name, "line": line, "column": column, "end_line": end_line, "end_column": end_column })
        };
        let one = |finding: &TopologyError| {
            json!({
                "code": finding.code.as_str(),
                "severity": match finding.severity { Severity::Error => "error", Severity::Warning => "warning" },
                "at": place(finding.span),
                "found": finding.found,
                "expected": finding.expected,
                "nearest": finding.nearest,
                "hint": finding.hint,
                "related": finding.related.as_ref().map(|(span, what)| json!({ "at": place(*span), "what": what })),
            })
        };
        Value::Array(findings.iter().map(one).collect())
    }
}

/// The name that looks most like `wrong`, if at most a third of its letters differ (and one always may).
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (wrong.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= most && *name != wrong)
        .min()
        .map(|(_, name)| name)
}

/// Edits from `a` to `b`, a swap of neighbours being one. Upper and lower case, `-` and `_` count as alike.
fn distance(a: &str, b: &str) -> usize {
    let alike = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    strsim::osa_distance(&alike(a), &alike(b))
}

/// More names than this don't help: the nearest one does.
const NAMES_SHOWN_MAX: usize = 16;

/// `a`, `a or b`, `a, b or c`, each in backticks.
pub(super) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        many if many.len() > NAMES_SHOWN_MAX => {
            format!("{}, … ({} in all)", many[..NAMES_SHOWN_MAX / 2].join(", "), many.len())
        }
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_that_could_be_meant() {
        let names = ["window", "threshold", "by", "when", "input"];
        assert_eq!(nearest("windwo", names), Some("window"));
        assert_eq!(nearest("treshhold", names), Some("threshold"));
        assert_eq!(nearest("bY", names), Some("by"));
        assert_eq!(nearest("levels", names), None);
        assert_eq!(nearest("quiet-hours", ["quiet_hours"]), Some("quiet_hours"));
    }

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        let source = Source::new("t.yaml", "a: ü x\nb: y\n");
        assert_eq!(source.line_and_column(0), (1, 1));
        assert_eq!(source.line_and_column(6), (1, 6));
        assert_eq!(source.line_and_column(8), (2, 1));
        assert_eq!(source.byte_at(1, 6), 6);
        assert_eq!(source.byte_at(2, 4), 11);
        assert_eq!(source.byte_at(9, 9), source.text().len());
    }
}
