//! A process that outlives us, and that we can find again without ever taking a stranger for it.
//!
//! Process ids are given out again. The pid file therefore holds the id and the instant at which the kernel started
//! the process; only both together are the process that we started.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A process that we started, now or in an earlier command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    id: i32,
    /// Ticks from the machine's boot to the process's start, as `/proc` tells them.
    started: u64,
}

impl Process {
    /// Starts a command in the background, its output in `folder/log`, and records it in `folder/pid`.
    pub(super) fn start(command: &mut Command, folder: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(folder.join("log")).context("cannot open its log")?;
        // A process group of its own: Ctrl-C in our terminal is not meant for it.
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share its log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let id = i32::try_from(child.id()).context("a process id beyond the system's range")?;
        // Unreaped, even one that died at once still stands in /proc.
        let (started, _) = look(id).context("the process is gone before it could be recorded")?;
        let process = Process { id, started };
        fs::write(folder.join("pid"), format!("{id} {started}\n")).context("cannot record the process")?;
        Ok(process)
    }

    /// The recorded process, if it still lives.
    pub(super) fn recorded(pid_file: &Path) -> Option<Self> {
        let text = fs::read_to_string(pid_file).ok()?;
        let (id, started) = text.trim().split_once(' ')?;
        let process = Process { id: id.parse().ok()?, started: started.parse().ok()? };
        process.is_alive().then_some(process)
    }

    pub(super) fn id(self) -> i32 {
        self.id
    }

    /// A zombie is dead: where nobody reaps orphans it would stay for ever.
    pub(super) fn is_alive(self) -> bool {
        look(self.id).is_some_and(|(started, state)| started == self.started && !matches!(state, 'Z' | 'X'))
    }

    /// A stopped process (some tests freeze services) hears nothing before it goes on.
    pub(super) fn ask_to_end(self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    pub(super) fn kill(self) {
        self.signal(Signal::KILL);
    }

    fn signal(self, signal: Signal) {
        if let (true, Some(id)) = (self.is_alive(), Pid::from_raw(self.id)) {
            // It may end in between; whether it lives is asked again anyway.
            let _ = kill_process(id, signal);
        }
    }
}

/// When the process started, and its state's letter.
fn look(id: i32) -> Option<(u64, char)> {
    parse(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// Field 2 is the program's name in parentheses and may hold both spaces and parentheses; state is field 3, the start
/// field 22.
fn parse(stat: &str) -> Option<(u64, char)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    Some((fields.get(19)?.parse().ok()?, fields.first()?.chars().next()?))
}

#[cfg(test)]
mod tests {
    use rustix::process::{WaitId, WaitIdOptions, waitid};

    use super::*;

    #[test]
    fn a_name_full_of_parentheses_hides_nothing() {
        let stat = "42 (a) S 9) Z 1 42 42 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0 18446744073709551615";
        assert_eq!(parse(stat), Some((987_654, 'Z')));
        assert_eq!(parse("42 (sh)"), None);
    }

    #[test]
    fn a_process_is_found_again_until_it_is_killed() {
        let folder = tempfile::tempdir().expect("a folder");
        let process = Process::start(Command::new("sleep").arg("600"), folder.path()).expect("a process");
        let pid = folder.path().join("pid");
        assert_eq!(Process::recorded(&pid), Some(process));
        process.kill();
        let child = WaitId::Pid(Pid::from_raw(process.id).expect("an id"));
        waitid(child, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("its end");
        assert_eq!(Process::recorded(&pid), None);
    }

    #[test]
    fn a_number_that_belongs_to_someone_else_by_now_is_not_ours() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let own = i32::try_from(std::process::id()).expect("an id");
        let (started, _) = look(own).expect("we run");
        fs::write(&pid, format!("{own} {started}\n")).expect("a file");
        assert!(Process::recorded(&pid).is_some());
        fs::write(&pid, format!("{own} {}\n", started + 1)).expect("a file");
        assert_eq!(Process::recorded(&pid), None);
    }
}
