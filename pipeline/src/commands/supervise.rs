//! `tidings run --supervise`: a process that starts another one, which does the work, again and again.
//!
//! It is for machines where nothing else does that; under systemd or Kubernetes leave it out. It starts the same program
//! with the same arguments, hears a sign of life from it as often as its watchdog looks, and starts it again when
//! it ends by itself or says nothing for longer than the watchdog bears: a frozen process cannot end itself. Whoever
//! is frozen is killed first, and what it had in mind is fenced anyway.
//!
//! The pause before each start doubles up to a bound, and begins anew after a process that lived. There is no last
//! start: services that are away come back. Only a first process that refuses the topology or the command line ends
//! the supervisor as well: no restart mends those. A process whose supervisor is gone stops.

use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tidings_pipeline::runtime::clock::{Clock as _, SystemClock};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};

use super::run::stop_signal;
use super::{Exit, Shell};

/// The pause before the second start, and the longest: a service that is away is not asked more often than twice a
/// minute, and one that is back does not wait for longer than that.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Who lived for so long did not fail at its start: the next pause is the shortest again.
const LIVED: Duration = Duration::from_secs(60);

/// How much longer than its own watchdog a process may be silent: it can say what stood still, a kill cannot.
const BEYOND: Duration = Duration::from_secs(2);

/// How long a process may take to stop once it is told to: its own bounds (deciding, delivering, recording) and a margin.
const STOP_MAX: Duration = Duration::from_secs(90);

/// How one process was over.
enum Over {
    Ended(ExitStatus),
    Silent,
}

pub(super) fn supervise(shell: &Shell, still_max: Duration) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(generations(shell, still_max))
}

async fn generations(shell: &Shell, still_max: Duration) -> anyhow::Result<Exit> {
    let program = std::env::current_exe().context("this program's own file is unknown")?;
    let own = std::env::args_os().skip(1).filter(|argument| argument != "--supervise");
    let arguments: Vec<OsString> = own.chain(["--supervised".into()]).collect();
    let clock = SystemClock::default();
    let mut signal = std::pin::pin!(stop_signal());
    let mut pause = None;
    loop {
        let began = clock.elapsed();
        let mut command = Command::new(&program);
        let mut child = command.args(&arguments).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let Some(mut life) = child.stdout.take() else { anyhow::bail!("a child without a stdout") };
        shell.talk(format_args!("started as process {}", child.id().unwrap_or_default()));
        let over = tokio::select! {
            over = tend(&mut child, &mut life, still_max + BEYOND) => over?,
            signal = &mut signal => {
                signal?;
                return stop(shell, child).await;
            }
        };
        let how = match over {
            Over::Ended(status) if status.success() => return Ok(Exit::Ok),
            Over::Ended(status) => {
                let refused = status.code().and_then(Exit::of_code);
                if pause.is_none()
                    && let Some(exit @ (Exit::Usage | Exit::Configuration)) = refused
                {
                    return Ok(exit);
                }
                format!("the process ended ({status})")
            }
            Over::Silent => format!("the process gave no sign of life for {:.0?} and was killed", still_max + BEYOND),
        };
        let next = next_pause(pause, clock.elapsed().saturating_sub(began));
        shell.talk(format_args!("{how}; it is started again after {next:.1?}"));
        pause = Some(next);
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            signal = &mut signal => return signal.map(|_| Exit::Ok),
        }
    }
}

/// Waits for its end, or for a silence of `silence`, upon which it is killed.
async fn tend(child: &mut Child, life: &mut ChildStdout, silence: Duration) -> anyhow::Result<Over> {
    let mut signs = [0; 64];
    loop {
        match tokio::time::timeout(silence, life.read(&mut signs)).await {
            Ok(Ok(0) | Err(_)) => return Ok(Over::Ended(child.wait().await?)),
            Ok(Ok(_)) => {}
            Err(_) => {
                child.kill().await?;
                return Ok(Over::Silent);
            }
        }
    }
}

/// Tells it to stop, and waits for it; a frozen one hears nothing and is killed.
async fn stop(shell: &Shell, mut child: Child) -> anyhow::Result<Exit> {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).unwrap_or_default())) {
        // It may have ended in between.
        let _ = kill_process(pid, Signal::TERM);
    }
    // Its signs of life are still written while it stops: nobody reads them any more, and they fit the pipe.
    match tokio::time::timeout(STOP_MAX, child.wait()).await {
        Ok(status) => Ok(status?.code().and_then(Exit::of_code).unwrap_or(Exit::Findings)),
        Err(_) => {
            shell.talk(format_args!("the process did not stop within {STOP_MAX:.0?} and is killed"));
            child.kill().await?;
            Ok(Exit::Findings)
        }
    }
}

fn next_pause(before: Option<Duration>, lived: Duration) -> Duration {
    match before {
        Some(before) if lived < LIVED => (before * 2).min(PAUSE.1),
        _ => PAUSE.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_begin_anew_after_a_life() {
        let seconds = Duration::from_secs_f64;
        for (before, lived, expected) in [
            (None, 0.0, 0.5),
            (Some(0.5), 0.0, 1.0),
            (Some(20.0), 59.9, 30.0),
            (Some(30.0), 1.0, 30.0),
            (Some(30.0), 60.0, 0.5),
        ] {
            assert_eq!(next_pause(before.map(seconds), seconds(lived)), seconds(expected), "{before:?} {lived}");
        }
    }
}
