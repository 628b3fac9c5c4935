//! House rules that are code: `cargo xtask tidy` names file, line, what is wrong, and what to do instead.
//!
//! Three kinds, one file each: [`words`] that may not stand in a source file, [`arrows`] between crates, and [`files`]
//! that are missing, misnamed or without a header. clippy.toml holds what clippy can know better (it resolves paths);
//! here stands what it can't: rules that depend on where a file lies.

mod arrows;
mod files;
mod source;
mod words;

use std::fmt;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::Refusal;
use crate::workspace::Workspace;

/// One broken rule. `Display` is what editors and terminals make a link of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    /// From the workspace's root.
    path: String,
    line: usize,
    /// What is wrong, then what to do instead.
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// `cargo xtask tidy`
pub(crate) fn command(arguments: &[&str]) -> Result<ExitCode> {
    if !arguments.is_empty() {
        return Err(Refusal::Usage("tidy: takes no arguments".to_owned()).into());
    }
    check().map(|()| ExitCode::SUCCESS)
}

/// Prints all findings; any is an error.
pub(crate) fn check() -> Result<()> {
    let workspace = Workspace::load()?;
    let sources = source::read(&workspace)?;
    let mut findings = words::check(&sources);
    findings.extend(files::check(&sources));
    findings.extend(files::manifests(&workspace)?);
    findings.extend(arrows::check(&workspace));
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            eprintln!("{} files, nothing to tidy", sources.len());
            Ok(())
        }
        count => bail!("{count} to tidy in {} files", sources.len()),
    }
}
