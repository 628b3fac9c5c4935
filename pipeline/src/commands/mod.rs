//! The commands, and what they share: arguments, exit codes, and how they speak.
//!
//! Data goes to stdout and talk to stderr, so that a pipe carries nothing but data; `--json` makes the
//! data JSON. A command returns its exit code; an error is printed with its causes, and its type says
//! which code it ends with.

mod check;
mod client;
mod completions;
mod demo;
mod emit;
mod explain;
mod graph;
mod providers;
mod run;
mod schema;
mod supervise;
mod tail;
mod test;
mod topics;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidings_operators::calendar::Calendar;
use tidings_pipeline::assemble::{AssembleError, TopicsError};
use tidings_pipeline::explain::record::OlderError;
use tidings_pipeline::runtime::cluster::MemberError;
use tidings_pipeline::topology::{LoadError, Loaded, Loader, OperatorKinds, ProcessEnvironment, ProviderKinds};
use tidings_sinks::log::LogError;
use tidings_sinks::record::history::HistoryError;
use tracing_subscriber::EnvFilter;

/// Decides whether, when, on which channel and together with what a person is told.
#[derive(Parser)]
#[command(name = "tidings", version, max_term_width = 110)]
struct Cli {
    /// Data as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// What is logged to stderr, like `warn` or `tidings_pipeline=debug`.
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", default_value = "warn")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Demo),
    Run(run::Run),
    Check(check::Check),
    Graph(graph::Graph),
    Schema(schema::Schema),
    Test(test::Test),
    Topics(topics::Topics),
    Emit(emit::Emit),
    Explain(explain::Explain),
    Tail(tail::Tail),
    Providers(providers::Providers),
    Completions(completions::Completions),
}

impl Command {
    fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        match self {
            Self::Demo(command) => command.run(shell),
            Self::Run(command) => command.run(shell),
            Self::Emit(command) => command.run(shell),
            Self::Explain(command) => command.run(shell),
            Self::Tail(command) => command.run(shell),
            Self::Providers(command) => command.run(shell),
            Self::Check(command) => command.run(shell),
            Self::Graph(command) => command.run(shell),
            Self::Schema(command) => command.run(shell),
            Self::Test(command) => command.run(shell),
            Self::Topics(command) => command.run(shell),
            Self::Completions(command) => command.run(shell),
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All is well.
    Ok = 0,
    /// It did what it was asked to, and found something.
    Findings = 1,
    /// The command line is wrong.
    Usage = 64,
    /// Something that it needs cannot be reached.
    Unreachable = 69,
    /// The same command may succeed later.
    TryAgain = 75,
    /// The topology, or what it names, is wrong.
    Configuration = 78,
}

impl Exit {
    /// The one with this code.
    pub(crate) fn of_code(code: i32) -> Option<Self> {
        let all = [Self::Ok, Self::Findings, Self::Usage, Self::Unreachable, Self::TryAgain, Self::Configuration];
        all.into_iter().find(|exit| *exit as i32 == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Which code an error ends with: the first of its causes that says so.
fn exit_of(error: &anyhow::Error) -> Exit {
    let of_log = |error: &LogError| match error {
        LogError::Unreachable(_) => Exit::Unreachable,
        LogError::Ambiguous(_) | LogError::Fenced(_) => Exit::TryAgain,
        LogError::MissingTopic(_) | LogError::Refused(_) => Exit::Configuration,
        LogError::OutOfRange { .. } | LogError::TooLarge { .. } | LogError::Store(_) => Exit::Findings,
    };
    let of = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(error) = cause.downcast_ref::<LogError>() {
            Some(of_log(error))
        } else if let Some(TopicsError::Log(error)) = cause.downcast_ref::<TopicsError>() {
            Some(of_log(error))
        } else if let Some(OlderError::ClickHouse(HistoryError::Unreachable { .. })) = cause.downcast_ref() {
            Some(Exit::Unreachable)
        } else if let Some(MemberError::Refused(_)) = cause.downcast_ref() {
            Some(Exit::Configuration)
        } else if cause.is::<TopicsError>() || cause.is::<LoadError>() || cause.is::<AssembleError>() {
            Some(Exit::Configuration)
        } else {
            None
        }
    };
    error.chain().find_map(of).unwrap_or(Exit::Findings)
}

/// How a command speaks.
pub(crate) struct Shell {
    /// Whether data is JSON.
    pub(crate) json: bool,
}

impl Shell {
    /// Prints data. A reader that has gone away wants no more of it: that is no error.
    pub(crate) fn data(&self, text: impl Display) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match write!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        }
    }

    /// Prints data as JSON.
    pub(crate) fn json(&self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.data(serde_json::to_string_pretty(value)? + "\n")
    }

    /// Says something to the person who typed the command.
    pub(crate) fn talk(&self, text: impl Display) {
        // Nobody can be told that telling failed.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Whether stdout shows colours.
    pub(crate) fn styled(&self) -> bool {
        io::stdout().is_terminal() && !no_color()
    }

    /// Whether stderr shows colours.
    pub(crate) fn talk_styled(&self) -> bool {
        io::stderr().is_terminal() && !no_color()
    }

    /// Loads a topology that must be right; warnings are said.
    ///
    /// # Errors
    /// When it is not: with all findings.
    pub(crate) fn load(&self, path: &Path, calendar: &Calendar) -> Result<Loaded, LoadError> {
        let loaded = load(path, calendar);
        match &loaded {
            Ok(loaded) if !loaded.warnings.is_empty() => {
                self.talk(loaded.source.render(&loaded.warnings, self.talk_styled()).trim_end());
            }
            Err(LoadError::Refused(refused)) => {
                self.talk(refused.source_text.render(&refused.findings, self.talk_styled()).trim_end());
            }
            _ => {}
        }
        loaded
    }
}

/// `1 test`, `2 tests`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Loads a topology, and says nothing.
pub(crate) fn load(path: &Path, calendar: &Calendar) -> Result<Loaded, LoadError> {
    let (operators, providers) = (OperatorKinds::standard(), ProviderKinds::standard());
    let environment = ProcessEnvironment::beside(path);
    Loader { operators: &operators, providers: &providers, calendar, environment: &environment }.load(path)
}

#[expect(clippy::disallowed_methods, reason = "the command line reads the environment")]
fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value: OsString| !value.is_empty())
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data, and asked for.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            let _ = error.print();
            return exit.into();
        }
    };
    let shell = Shell { json: cli.json };
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            shell.talk(format_args!("error: --log `{}`: {error}; expected something like `warn`", cli.log));
            return Exit::Usage.into();
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(shell.talk_styled()).init();
    match cli.command.run(&shell) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            let mut said = causes.first().cloned().unwrap_or_default();
            // A message that contains its cause already needs no repeat of it.
            for cause in causes.iter().skip(1).filter(|cause| !causes[0].contains(*cause)) {
                said = format!("{said}: {cause}");
            }
            shell.talk(format_args!("error: {said}"));
            exit_of(&error).into()
        }
    }
}
