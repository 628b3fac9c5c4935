//! What this process is called among the members of its groups.
//!
//! A process that was killed and started again must have the same name, so that its partitions are its own at once;
//! two that run at the same time must not. Machines differ by their names; processes on one machine by a number, whose
//! file they hold locked: the lock ends with the process however it ends, so that the next one takes the number.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tidings_sinks::log::kafka::Instance;

/// Processes of one deployment on one machine. Beyond it a process has no name, and says so.
const PROCESSES_MAX: u32 = 64;

/// A name, and what keeps it this process's own.
#[derive(Default)]
pub(super) struct Named {
    pub(super) instance: Option<Arc<Instance>>,
    _number: Option<File>,
}

/// The name that was given; otherwise the machine's and the lowest number that nobody on it has in the deployment of
/// this topic prefix.
pub(super) fn named(given: Option<&str>, prefix: &str, folder: &Path) -> Named {
    if let Some(name) = given {
        return Named { instance: Some(Arc::new(Instance::new(name.to_owned()))), _number: None };
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    match numbered(prefix, folder) {
        Ok(Some((number, file))) => {
            let instance = Instance::new(format!("{host}-{prefix}-{number}"));
            Named { instance: Some(Arc::new(instance)), _number: Some(file) }
        }
        Ok(None) => nameless(&format!("{PROCESSES_MAX} processes of {prefix} run on this machine already")),
        Err(error) => nameless(&format!("{}: {error}", folder.display())),
    }
}

fn nameless(why: &str) -> Named {
    tracing::warn!(
        why,
        "this process has no name in its groups: when it dies, its partitions wait for the end of its session; give it one with \
         `--instance`"
    );
    Named { instance: None, _number: None }
}

/// The lowest free number, and its file, locked.
fn numbered(prefix: &str, folder: &Path) -> io::Result<Option<(u32, File)>> {
    let owner = rustix::process::geteuid().as_raw();
    for number in 0..PROCESSES_MAX {
        let path = folder.join(format!("tidings-{owner}-{prefix}-{number}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => return Ok(Some((number, file))),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_one_machine_have_numbers_and_who_follows_a_dead_one_has_its() {
        let folder = tempfile::tempdir().unwrap();
        let number = |prefix: &str| numbered(prefix, folder.path()).unwrap().unwrap();
        let (first, second) = (number("a"), number("a"));
        assert_eq!((first.0, second.0, number("b").0), (0, 1, 0));
        drop(first);
        assert_eq!(number("a").0, 0);
        assert!(numbered("a", Path::new("/nowhere")).is_err());
    }
}
