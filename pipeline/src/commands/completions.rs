//! `tidings completions`: what a shell must know to complete commands and flags.

use clap::CommandFactory as _;
use clap_complete::Shell as Kind;

use super::{Cli, Exit, Shell};

/// Print completions for a shell, like `tidings completions bash > /etc/bash_completion.d/tidings`.
#[derive(clap::Args)]
pub(crate) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    shell: Kind,
}

impl Completions {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tidings", &mut script);
        shell.data(String::from_utf8_lossy(&script))?;
        Ok(Exit::Ok)
    }
}
