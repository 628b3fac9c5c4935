//! The watchdog's thread, and the sign of life that it gives a supervisor.
//!
//! It ends the process at once, by an abort: whoever stands still cannot be ended alone, and threads of a
//! process that was frozen must not go on with what others have taken over. What it says stands on stderr.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::anyhow;

use crate::runtime::clock::Clock;
use crate::runtime::watch::{Pulses, Watchdog};

/// What a supervised process writes to its stdout as long as nobody in it stands still.
const SIGN_OF_LIFE: &[u8] = b".";

/// How long the end waits for its reason to be said.
const SAY_MAX: Duration = Duration::from_millis(500);

/// Watches until `stop`.
pub(super) struct Watching {
    pub(super) pulses: Pulses,
    pub(super) limit: Duration,
    /// The machine's time.
    pub(super) clock: Arc<dyn Clock>,
    pub(super) stop: Arc<AtomicBool>,
    /// Whether somebody listens on stdout for signs of life.
    pub(super) supervised: bool,
}

impl Watching {
    /// # Errors
    /// When the supervisor is gone.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut watchdog = Watchdog::new(self.limit);
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(still) = watchdog.look(self.clock.elapsed(), &self.pulses.counts()) {
                abort(&still);
            }
            if self.supervised {
                let mut life = std::io::stdout().lock();
                life.write_all(SIGN_OF_LIFE)
                    .and_then(|()| life.flush())
                    .map_err(|_| anyhow!("its supervisor is gone"))?;
            }
            std::thread::sleep(watchdog.pause());
        }
        Ok(())
    }
}

/// Says why, and ends the process. One of those who stand still may hold stderr, so that saying it is not waited
/// for to its end.
fn abort(still: &str) -> ! {
    let why = format!("error: {still}; the process is ended, and the next one goes on from the newest checkpoint");
    let said = std::thread::spawn(move || {
        let _ = writeln!(std::io::stderr(), "{why}");
    });
    for _ in 0..SAY_MAX.as_millis() {
        if said.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    std::process::abort();
}
