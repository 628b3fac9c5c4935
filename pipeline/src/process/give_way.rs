//! Who gives way: on a machine that is out of breath the scheduler takes critical threads first.
//!
//! Raising a priority needs a privilege, lowering one does not. So all but critical threads lower theirs as
//! they begin, and whatever they start (librdkafka's threads, workers of decide) inherits it. A core that is idle
//! is nobody's loss; a busy one goes to a critical message at once, not when the others' slices are used up.

use std::sync::LazyLock;

/// By how much they are lowered. A step of one is a tenth of a core between two that want it: a third of the
/// weight is enough for whoever seldom wants it to go first, and starves nobody beside a busy neighbour.
const STEPS: i32 = 5;
/// Where the kernel's scale ends.
const LOWEST: i32 = 19;

/// Lowers the priority of this thread, and of all that it will start, behind critical work. Call it from threads
/// that the main thread starts: the first one tells what is normal.
pub fn give_way() {
    use rustix::process::{getpriority_process, setpriority_process};
    static BEHIND: LazyLock<i32> = LazyLock::new(|| (getpriority_process(None).unwrap_or(0) + STEPS).min(LOWEST));
    if let Err(error) = setpriority_process(None, *BEHIND) {
        tracing::debug!(%error, "this thread's priority stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_once_and_whoever_started_it_does_not() {
        let mine = || rustix::process::getpriority_process(None).unwrap();
        let normal = mine();
        let lowered = std::thread::spawn(move || {
            give_way();
            give_way();
            let inherited = std::thread::spawn(mine).join().unwrap();
            (mine(), inherited)
        });
        let behind = (normal + STEPS).min(LOWEST);
        assert_eq!((lowered.join().unwrap(), mine()), ((behind, behind), normal));
    }
}
