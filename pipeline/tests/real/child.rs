//! Child processes of tests: none outlives its test, and the end of each can be waited for.

use std::process::Child;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// A child that does not outlive its test.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    /// Calls `then` once it has ended, on a thread that ends with it. How it ended stays to be asked.
    pub(crate) fn at_its_end(&self, then: impl FnOnce() + Send + 'static) {
        let child = Pid::from_child(&self.0);
        std::thread::spawn(move || {
            while let Err(Errno::INTR) = waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {}
            then();
        });
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
