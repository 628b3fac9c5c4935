//! The topology: what a YAML file must say so that the pipeline starts, and what it then means.
//!
//! One loader serves `run`, `check`, `graph` and `test`, so `check` passes exactly when `run` would
//! start. It works in four steps and reports everything it finds, not the first fault:
//!
//! 1. `tree`: the text becomes nodes with spans; `${…}` is resolved, in scalars only.
//! 2. `raw`: the nodes become the file's shape; what depends on a kind is only captured.
//! 3. `kinds`: each operator and provider is read with the parameter type of its kind, from the
//!    registries of `operators` and `sinks`.
//! 4. `validate`: names, wiring, shares, policies, tests; out comes a [`Config`], pure data.
//!
//! *Invariant:* whatever is accepted can be stored and read back: `Topology::from_canonical` gives
//! the same topology, and the same hash.

mod config;
mod decode;
mod defaults;
mod diagnostic;
mod graph;
mod kinds;
mod raw;
mod schema;
mod tree;
mod unit_test;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tidings_operators::calendar::Calendar;

pub use config::{
    Checkpoints, Config, ContentHash, Deployment, Expectation, Expected, Fate, Format, Input, InvalidCanonical, Log,
    Moment, Operator, Place, Private, Provider, Providers, Record, Role, Sink, Source, Store, Test, TestInput,
    TestStep, TopicSettings, Topology, UnknownFields, VERSION, canonical_policies, policies_from_canonical,
};
pub use defaults::policies as default_policies;
pub use diagnostic::{Code, Severity, Source as SourceText, Span, TopologyError, nearest};
pub use graph::{dot, mermaid, svg};
pub use kinds::{OperatorKinds, ProviderKinds};
pub use schema::schema;
pub use tree::Environment;
pub use unit_test::{Failure, TestReport, run_tests};

/// Everything a topology is checked against.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The kinds of operators.
    pub operators: &'a OperatorKinds,
    /// The kinds of providers.
    pub providers: &'a ProviderKinds,
    /// The zones of the world.
    pub calendar: &'a Calendar,
    /// Where `${…}` gets its values.
    pub environment: &'a dyn Environment,
}

/// A topology that may start.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// Its text.
    pub source: SourceText,
    /// What somebody should look at.
    pub warnings: Vec<TopologyError>,
}

/// Why a topology may not start.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no text.
    #[error("cannot read the topology {path}: {source}; name a file that can be read")]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The text is refused.
    #[error(transparent)]
    Refused(#[from] Box<Refused>),
}

/// A topology with at least one error.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {} found", source_text.name(), count(findings))]
pub struct Refused {
    /// Its text.
    pub source_text: SourceText,
    /// Errors and warnings, in the order of the file.
    pub findings: Vec<TopologyError>,
}

fn count(findings: &[TopologyError]) -> String {
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        1 => "1 error".to_owned(),
        many => format!("{many} errors"),
    }
}

impl Refused {
    /// All findings as a person reads them, the count last.
    #[must_use]
    pub fn render(&self, styled: bool) -> String {
        format!("{}{self}\n", self.source_text.render(&self.findings, styled))
    }

    /// All findings as a program reads them.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        self.source_text.to_json(&self.findings)
    }
}

impl Loader<'_> {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it can't be read, or is refused: then with all findings.
    pub fn load(&self, path: &Path) -> Result<Loaded, LoadError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
        Ok(self.check(SourceText::new(path.display().to_string(), text))?)
    }

    /// Checks a text.
    ///
    /// # Errors
    /// When it is refused, with all findings.
    pub fn check(&self, source: SourceText) -> Result<Loaded, Box<Refused>> {
        let (config, mut findings) = validate::check(self, &source);
        findings.sort_by_key(|finding| (finding.span, finding.code));
        findings.dedup();
        let refused = findings.iter().any(|finding| finding.severity == Severity::Error);
        match config {
            Some(config) if !refused => Ok(Loaded { config, source, warnings: findings }),
            _ => Err(Box::new(Refused { source_text: source, findings })),
        }
    }
}

/// The variables of this process, and files beside a topology.
#[derive(Clone, Debug)]
pub struct ProcessEnvironment {
    folder: PathBuf,
}

impl ProcessEnvironment {
    /// For the topology at `path`: its folder is where `${file:…}` starts.
    #[must_use]
    pub fn beside(path: &Path) -> Self {
        Self { folder: path.parent().map(Path::to_owned).unwrap_or_default() }
    }
}

impl Environment for ProcessEnvironment {
    #[expect(clippy::disallowed_methods, reason = "the one place of the loader that reads the environment")]
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place of the loader that reads the environment")]
    fn names(&self) -> Vec<String> {
        std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.folder.join(path))
    }
}

/// Variables and files that are given: for tests, and wherever nothing must be read.
#[derive(Clone, Debug, Default)]
pub struct FixedEnvironment {
    /// The variables.
    pub variables: BTreeMap<String, String>,
    /// The files by path.
    pub files: BTreeMap<String, String>,
}

impl Environment for FixedEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.variables.keys().cloned().collect()
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        self.files.get(path).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}
