//! What operators say about their parameters: where they may stand, whom they join, and what is
//! wrong with values that could be read.
//!
//! A finding names its place as a path, so that the loader points at line and column and the
//! registry, which has no text, can still say it in words.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where in a chain a kind may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Reads raw events; nothing else may. Once.
    First,
    /// Works on items, before `route`.
    Items,
    /// Turns items into legs. Once.
    Route,
    /// Works on legs, after `route`.
    Legs,
}

/// What a side input says about users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SideInput {
    /// Preferences, zone, quiet hours.
    Profile,
    /// On which channels a user has an address.
    Reachability,
}

impl SideInput {
    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Reachability => "reachability",
        }
    }
}

/// One step of a path into parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into the value under a key.
    Key(String),
    /// To a key itself; ends a path.
    KeyItself(String),
    /// Into an item of a list.
    Index(usize),
}

/// The value under the key `name`.
#[must_use]
pub fn key(name: &str) -> Step {
    Step::Key(name.to_owned())
}

/// What kind of mistake a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A value that makes no sense here.
    InvalidValue,
    /// A window of no length.
    ZeroWindow,
    /// A limit that lets nothing through.
    ZeroLimit,
    /// A threshold that gathers nothing.
    LowThreshold,
    /// A channel that there is not.
    UnknownChannel,
    /// A type that policies do not know.
    UnknownType,
    /// A category that policies do not know.
    UnknownCategory,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidParam {
    /// What kind of mistake it is.
    pub mistake: Mistake,
    /// Where, below the parameters.
    pub path: Vec<Step>,
    /// What stands there.
    pub found: String,
    /// What would be right.
    pub expected: String,
    /// A wrong name and the right ones, for the nearest of them.
    pub wrong: Option<(String, Vec<String>)>,
}

impl fmt::Display for InvalidParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`")?;
        for (number, step) in self.path.iter().enumerate() {
            match step {
                Step::Key(name) | Step::KeyItself(name) => write!(f, "{}{name}", if number > 0 { "." } else { "" })?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        write!(f, "`: expected {}, found {}", self.expected, self.found)
    }
}

/// The names that policies know.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The types.
    pub types: BTreeSet<String>,
    /// The categories.
    pub categories: BTreeSet<String>,
}

/// Collects what a check finds.
#[derive(Debug, Default)]
pub struct Report<'a> {
    names: Option<&'a Names>,
    /// What was found.
    pub findings: Vec<InvalidParam>,
}

impl<'a> Report<'a> {
    /// An empty report. Without `names` no name of a policy is wrong.
    #[must_use]
    pub const fn new(names: Option<&'a Names>) -> Self {
        Self { names, findings: Vec::new() }
    }

    /// The names that policies know, where they are given.
    #[must_use]
    pub const fn names(&self) -> Option<&'a Names> {
        self.names
    }

    /// Adds a finding at `path`.
    pub fn finding(
        &mut self,
        mistake: Mistake,
        path: &[Step],
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> &mut InvalidParam {
        let (found, expected) = (found.into(), expected.into());
        self.findings.push(InvalidParam { mistake, path: path.to_vec(), found, expected, wrong: None });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    /// Adds a finding unless `window`, the value of the key `name`, has a length.
    pub fn positive(&mut self, name: &str, window: std::time::Duration) {
        if window.is_zero() {
            let found = format!("`{name}` of no length");
            self.finding(Mistake::ZeroWindow, &[key(name)], found, "a duration of at least 1ms, like `5m`");
        }
    }
}
