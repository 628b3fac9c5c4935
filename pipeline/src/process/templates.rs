//! Template folders, read again where they changed: a mended text serves the next attempt, a broken one
//! is named with its line and column, and the last good one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use tidings_sinks::render::{TemplateError, TemplateStore, Templates};
use tokio_util::sync::CancellationToken;

/// How often folders are looked through: soon enough for who edits a text and watches, and a few calls
/// of the system per file. Nothing is read that did not change.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The locale at the end of each chain.
const DEFAULT_LOCALE: &str = "en";

/// Where the templates stand.
#[derive(Debug, Default)]
pub struct TemplateStatus {
    /// How often changed files were taken into use.
    pub reloads: AtomicU64,
    /// What keeps files from being used as they are on disk.
    pub problems: AtomicU64,
}

/// The stores of a process, one for each folder.
#[derive(Default)]
pub(super) struct Stores {
    by_folder: BTreeMap<PathBuf, Arc<TemplateStore>>,
}

impl Stores {
    /// The store of `folder`; of the built-in templates where none is named.
    pub(super) fn open(&mut self, folder: Option<&Path>) -> anyhow::Result<Arc<TemplateStore>> {
        let Some(folder) = folder else {
            return Ok(Arc::new(TemplateStore::fixed(Templates::embedded().map_err(refused)?)));
        };
        if let Some(store) = self.by_folder.get(folder) {
            return Ok(Arc::clone(store));
        }
        let store = Arc::new(TemplateStore::open(folder, DEFAULT_LOCALE).map_err(refused)?);
        self.by_folder.insert(folder.to_owned(), Arc::clone(&store));
        Ok(store)
    }

    /// Looks through the folders again and again until it is told to stop.
    pub(super) async fn watch(
        self,
        status: Arc<TemplateStatus>,
        every: Duration,
        stopping: CancellationToken,
    ) -> Result<(), tokio::task::JoinError> {
        let mut said: BTreeSet<String> = BTreeSet::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                () = tokio::time::sleep(every) => {}
            }
            let mut problems = BTreeSet::new();
            for (folder, store) in &self.by_folder {
                let looked = Arc::clone(store);
                let changed = tokio::task::spawn_blocking(move || looked.refresh()).await?;
                if changed {
                    tracing::info!(folder = %folder.display(), "templates were read again");
                    status.reloads.fetch_add(1, Ordering::Relaxed);
                }
                problems.extend(store.problems().iter().map(ToString::to_string));
            }
            for problem in problems.difference(&said) {
                tracing::warn!("template not used, the last good text stays: {problem}");
            }
            for problem in said.difference(&problems) {
                tracing::info!("template mended: {problem}");
            }
            status.problems.store(problems.len() as u64, Ordering::Relaxed);
            said = problems;
        }
    }
}

fn refused(errors: Vec<TemplateError>) -> anyhow::Error {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    anyhow!("templates:\n  {}", lines.join("\n  "))
}

#[cfg(test)]
mod tests {
    use std::fs::write;

    use super::*;
    use tidings_sinks::tasks::Tasks;

    /// Asks again until it is so.
    async fn until(what: &str, mut so: impl FnMut() -> bool) {
        let asked = async {
            while !so() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), asked).await.is_ok(), "waited for 30 s: {what}");
    }

    /// Puts a file in place in one step: a half-written one would be a problem of its own.
    fn put(path: &Path, text: &str) {
        let beside = path.with_extension("tmp");
        write(&beside, text).unwrap();
        std::fs::rename(&beside, path).unwrap();
    }

    #[tokio::test]
    async fn an_edit_is_taken_up_while_it_runs_and_a_broken_one_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let text = |body: &str| format!("template_id: a\nchannel: sms\nversion: 1\nbody: \"{body}\"\n");
        put(&file, &text("first"));
        let mut stores = Stores::default();
        let store = stores.open(Some(folder.path())).unwrap();
        assert!(Arc::ptr_eq(&store, &stores.open(Some(folder.path())).unwrap()), "one folder, one store");
        assert!(stores.open(None).unwrap().problems().is_empty());

        let (status, mut tasks) = (Arc::new(TemplateStatus::default()), Tasks::default());
        let stopping = tasks.stopping();
        tasks.spawn("templates", stores.watch(Arc::clone(&status), Duration::from_millis(1), stopping));
        let counted = |of: &AtomicU64| of.load(Ordering::Relaxed);
        put(&file, &text("second one"));
        until("the edit is in use", || counted(&status.reloads) == 1).await;
        put(&file, &text("third {{ broken"));
        until("the broken one is counted", || counted(&status.problems) == 1).await;
        assert!(
            store.problems()[0]
                .to_string()
                .ends_with("a.yaml:4:17: syntax error: unexpected end of input, expected end of variable block")
        );
        assert_eq!(counted(&status.reloads), 1, "the last good text stays");
        put(&file, &text("fourth"));
        until("the mended one is in use", || counted(&status.reloads) == 2 && counted(&status.problems) == 0).await;
        assert_eq!(tasks.stop(Duration::from_secs(30)).await, (Vec::new(), true));
    }

    #[test]
    fn a_broken_template_at_the_start_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path().join("a.yaml"), "template_id: a\nchannel: sms\nversion: 1\nbody: \"{{ x\"\n").unwrap();
        let error = Stores::default().open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.starts_with("templates:\n  ") && error.contains("a.yaml:4:"), "{error}");
    }
}
