//! Who owns the tasks that run as long as the process does: readers, loaders, writers.
//!
//! Every task has a name and ends with a result. One that ends by itself is news for the owner, whatever its
//! result; a stop asks all of them and waits for each, up to a bound.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which.
    pub name: String,
    /// Its error, in words; absent where it ended well.
    pub error: Option<String>,
}

/// Tasks and the word that stops them.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<Ended>,
    stop: CancellationToken,
}

impl Tasks {
    /// What tasks watch to know when to stop; stopping it from outside stops all of them.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `task` under `name`, on the threads of whoever asks.
    pub fn spawn<E: std::fmt::Display>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.spawn_on(&Handle::current(), name, task);
    }

    /// Runs `task` under `name`, on the threads of `runtime`.
    pub fn spawn_on<E: std::fmt::Display>(
        &mut self,
        runtime: &Handle,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let name = name.into();
        let task = async move { Ended { name, error: task.await.err().map(|error| error.to_string()) } };
        self.set.spawn_on(task, runtime);
    }

    /// The next task that ends; `None` once there is none left.
    pub async fn ended(&mut self) -> Option<Ended> {
        let ended = self.set.join_next().await?;
        Some(ended.unwrap_or_else(|error| Ended { name: "a task".to_owned(), error: Some(error.to_string()) }))
    }

    /// Asks all to stop and waits for each, `at_most` in all; what has not ended by then is dropped. Returns
    /// those that failed, and whether all ended in time.
    pub async fn stop(mut self, at_most: Duration) -> (Vec<Ended>, bool) {
        self.stop.cancel();
        let mut failed = Vec::new();
        let all = async {
            while let Some(ended) = self.ended().await {
                failed.extend(Some(ended).filter(|ended| ended.error.is_some()));
            }
        };
        let in_time = tokio::time::timeout(at_most, all).await.is_ok();
        self.set.shutdown().await;
        (failed, in_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_named_and_a_stop_waits_up_to_its_bound() {
        let mut tasks = Tasks::default();
        let stopping = tasks.stopping();
        tasks.spawn("push.low", async { Err("the offset is out of range") });
        tasks.spawn("push.high", async move {
            stopping.cancelled().await;
            Ok::<_, String>(())
        });
        let expected = Ended { name: "push.low".to_owned(), error: Some("the offset is out of range".to_owned()) };
        assert_eq!(tasks.ended().await, Some(expected));
        assert_eq!(tasks.stop(Duration::from_secs(1)).await, (Vec::new(), true));

        let mut tasks = Tasks::default();
        tasks.spawn("deaf", std::future::pending::<Result<(), String>>());
        tasks.spawn("panics", std::future::poll_fn(|_| -> std::task::Poll<Result<(), String>> { panic!("a bug") }));
        let (failed, in_time) = tasks.stop(Duration::from_secs(1)).await;
        assert!(!in_time && failed.len() == 1 && failed[0].error.as_ref().is_some_and(|it| it.contains("panicked")));
    }
}
