//! Deliver within a process: the same readers and deliverers twice, *critical* and *bulk*, that share nothing.
//!
//! Each half has a runtime, log handles, connections to ledger and directory, and provider adapters (so
//! HTTP/2 connections, tokens and pauses) of its own: a bulk lane that takes all it can get costs critical
//! messages neither a thread, nor a connection's turn, nor a provider's stream. What has one owner by its
//! nature, because it is files of this machine, is shared: an embedded log or store, an inbox in a folder.
//!
//! Shared is also what both keep to together: rates and caps ([`Pace`]), for which critical ones never wait,
//! and the templates, which are read again where they changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::topics::{RetryClass, Topics};
use tidings_sinks::directory::{Directory, EmbeddedDirectory, Loader, RedisDirectory};
use tidings_sinks::lane::{Deliverer, LaneMetrics, LaneReader, Limits, Line, Pace, Parts, Texts};
use tidings_sinks::ledger::{EmbeddedLedger, Ledger, RedisLedger};
use tidings_sinks::log::{Clock as SinkClock, Elapsed, Log};
use tidings_sinks::providers::Context as ProviderContext;
use tidings_sinks::render::TemplateStore;
use tidings_sinks::retry::Schedule;
use tidings_sinks::tasks::Tasks;
use tokio::runtime::{Handle, Runtime};

use super::instance::Named;
use super::providers::{self, Built};
use super::templates::{LOOK_EVERY, Stores};
use super::{PATIENCE, Settings, Standing};
use crate::assemble;
use crate::topology::{Config, Log as LogPlace, Store};

/// Threads of critical deliveries: the second one is for what comes while the first one renders or encrypts.
const CRITICAL_THREADS: usize = 2;

/// A commit is a round trip during which the lane is not read. What comes meanwhile waits: with one a second,
/// that is fewer than one message in a hundred. What a crash repeats meets the ledger.
const CRITICAL_COMMIT_EVERY: Duration = Duration::from_secs(1);

/// The runtime of critical deliveries, and where critical handles of the log are made: threads that are started
/// from here don't give way. It may be let go from within another runtime.
pub(super) struct CriticalRuntime(Option<Runtime>);

impl CriticalRuntime {
    pub(super) fn start() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let builder = builder.worker_threads(CRITICAL_THREADS).thread_name("critical-deliver").enable_all();
        builder.build().map(|runtime| Self(Some(runtime)))
    }

    fn handle(&self) -> anyhow::Result<&Handle> {
        self.0.as_ref().map(Runtime::handle).ok_or_else(|| anyhow!("critical work has no runtime"))
    }

    /// A handle of the log at `place` that queues behind nobody, made on these threads; `shared` where the log
    /// has one owner, because it is embedded.
    pub(super) async fn log(
        &self,
        shared: &Arc<dyn Log>,
        place: &LogPlace,
        instance: &Named,
        linger: Duration,
        clock: &SinkClock,
    ) -> anyhow::Result<Arc<dyn Log>> {
        if matches!(place, LogPlace::Embedded { .. }) {
            return Ok(Arc::clone(shared));
        }
        let (place, instance, clock) = (place.clone(), instance.instance.clone(), Arc::clone(clock));
        let opened =
            self.handle()?.spawn_blocking(move || assemble::open_log(&place, instance, linger, PATIENCE, clock));
        Ok(opened.await??)
    }
}

impl Drop for CriticalRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Its tasks have ended: their owner joined them.
            runtime.shutdown_background();
        }
    }
}

/// What deliver is started with.
pub(super) struct Start<'a> {
    pub(super) config: &'a Config,
    pub(super) settings: &'a Settings,
    pub(super) topics: &'a Topics,
    pub(super) log: &'a Arc<dyn Log>,
    pub(super) named: &'a Named,
    pub(super) clock: &'a SinkClock,
    pub(super) standing: &'a Standing,
}

/// What both halves share of a channel.
struct Shared {
    texts: BTreeMap<Channel, Arc<TemplateStore>>,
    caps: BTreeMap<Channel, Arc<Pace>>,
}

/// What one half has for itself.
struct Half {
    runtime: Handle,
    lines: Vec<Line>,
    log: Arc<dyn Log>,
    ledger: Arc<dyn Ledger>,
    directory: Arc<dyn Directory>,
    providers: Built,
    limits: Limits,
    /// Claims are made under it.
    process: Arc<str>,
}

impl Start<'_> {
    /// Starts the readers of all lanes, and the directory's loader.
    pub(super) async fn run(&self, runtime: &CriticalRuntime, tasks: &mut Tasks) -> anyhow::Result<()> {
        let nonce = format!("{}-{}", std::process::id(), (self.settings.wall)().0);
        let is_critical =
            |line: &Line| matches!(line, Line::Lane(Priority::Critical) | Line::Retry(RetryClass::Critical));
        let (critical, bulk): (Vec<_>, Vec<_>) = Line::all().into_iter().partition(is_critical);
        let (mut stores, mut texts, mut caps) = (Stores::default(), BTreeMap::new(), BTreeMap::new());
        for (channel, sink) in &self.config.topology.sinks {
            let folder = sink.templates.as_ref().map(|folder| self.settings.folder.join(folder));
            texts.insert(*channel, stores.open(folder.as_deref())?);
            caps.extend(sink.cap.map(|rate| (*channel, Arc::new(Pace::new(rate)))));
        }
        let (shared, rates) = (Shared { texts, caps }, providers::rates(self.config));
        let bulk = Half {
            runtime: Handle::current(),
            lines: bulk,
            log: Arc::clone(self.log),
            ledger: self.ledger(&nonce)?,
            directory: self.directory()?,
            providers: providers::build(self.config, &self.context(), &rates, None)?,
            limits: Limits::default(),
            process: nonce.as_str().into(),
        };
        let deployment = &self.config.deployment;
        let critical = Half {
            runtime: runtime.handle()?.clone(),
            lines: critical,
            // Without a linger: what is in doubt is said before the call.
            log: runtime.log(self.log, &deployment.log, self.named, Duration::ZERO, self.clock).await?,
            ledger: match &deployment.ledger {
                Store::Embedded { .. } => Arc::clone(&bulk.ledger),
                Store::Redis(_) => self.ledger(&nonce)?,
            },
            directory: match &deployment.directory {
                Store::Embedded { .. } => Arc::clone(&bulk.directory),
                Store::Redis(_) => self.directory()?,
            },
            providers: providers::build(self.config, &self.context(), &rates, Some(&bulk.providers))?,
            limits: Limits { commit_every: CRITICAL_COMMIT_EVERY, ..Limits::default() },
            process: format!("{nonce}-critical").into(),
        };
        let loader = Loader::new(Arc::clone(self.log), Arc::clone(&bulk.directory), self.topics);
        let stopping = tasks.stopping();
        tasks.spawn("directory", loader.run(stopping));
        let (stopping, status) = (tasks.stopping(), Arc::clone(&self.standing.templates));
        tasks.spawn("templates", stores.watch(status, LOOK_EVERY, stopping));
        self.half(critical, &shared, tasks).await?;
        self.half(bulk, &shared, tasks).await
    }

    async fn half(&self, half: Half, shared: &Shared, tasks: &mut Tasks) -> anyhow::Result<()> {
        let time = Arc::clone(&self.settings.clock);
        let elapsed: Elapsed = Arc::new(move || time.elapsed());
        for (channel, sink) in &self.config.topology.sinks {
            let texts = shared.texts.get(channel).ok_or_else(|| anyhow!("sink `{channel}` has no templates"))?;
            let parts = Parts {
                channel: *channel,
                topics: self.topics.clone(),
                log: Arc::clone(&half.log),
                ledger: Arc::clone(&half.ledger),
                directory: Arc::clone(&half.directory),
                render: Arc::new(Texts::new(Arc::clone(texts))),
                providers: providers::choice(&half.providers, &sink.providers)?,
                cap: shared.caps.get(channel).cloned(),
                schedule: Schedule::default(),
                categories: self.config.policies.categories.clone(),
                clock: Arc::clone(self.clock),
                elapsed: Arc::clone(&elapsed),
                speed: self.settings.speed,
                process: Arc::clone(&half.process),
            };
            self.lanes(*channel, parts, &half, tasks).await?;
        }
        Ok(())
    }

    async fn lanes(&self, channel: Channel, parts: Parts, half: &Half, tasks: &mut Tasks) -> anyhow::Result<()> {
        // There, because a connection belongs to the threads that make it.
        let mut opening = tokio::task::JoinSet::new();
        opening.spawn_on(Deliverer::open(parts), &half.runtime);
        let opened = opening.join_next().await.ok_or_else(|| anyhow!("nothing was opened"))?;
        let deliverer = Arc::new(opened??);
        for line in &half.lines {
            let metrics = Arc::<LaneMetrics>::default();
            let group = line.group(self.topics, channel);
            if let Ok(mut lanes) = self.standing.lanes.lock() {
                lanes.insert(group.clone(), Arc::clone(&metrics));
            }
            let reader = LaneReader {
                deliverer: Arc::clone(&deliverer),
                group: group.clone(),
                topics: line.topics(self.topics, channel),
                limits: half.limits.clone(),
                metrics,
            };
            let stopping = tasks.stopping();
            tasks.spawn_on(&half.runtime, group, reader.run(stopping));
        }
        Ok(())
    }

    fn ledger(&self, nonce: &str) -> anyhow::Result<Arc<dyn Ledger>> {
        Ok(match &self.config.deployment.ledger {
            Store::Redis(url) => Arc::new(RedisLedger::new(url.get(), &self.topics.store("ledger"), nonce)?),
            Store::Embedded { path } => Arc::new(EmbeddedLedger::open(&path.join("ledger"))?),
        })
    }

    fn directory(&self) -> anyhow::Result<Arc<dyn Directory>> {
        Ok(match &self.config.deployment.directory {
            Store::Redis(url) => Arc::new(RedisDirectory::new(url.get(), &self.topics.store("directory"))?),
            Store::Embedded { path } => Arc::new(EmbeddedDirectory::open(&path.join("directory"))?),
        })
    }

    fn context(&self) -> ProviderContext {
        #[expect(clippy::disallowed_methods, reason = "secrets of providers stand in this process's environment")]
        let environment = Arc::new(|name: &str| std::env::var(name).ok());
        ProviderContext {
            folder: self.settings.folder.clone(),
            extra_ca_pem: self.settings.extra_ca_pem.clone(),
            wall_clock: Arc::clone(&self.settings.wall),
            environment,
        }
    }
}
