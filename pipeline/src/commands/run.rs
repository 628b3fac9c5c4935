//! `tidings run`: runs a topology, all stages or some of them, until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::BoxFuture;
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::dataflow::Transport;
use tidings_pipeline::assemble::RunSettings;
use tidings_pipeline::console::Inbox;
use tidings_pipeline::cutlog::Hash;
use tidings_pipeline::process::{Cluster, Process, Settings, Stage, give_way};
use tidings_pipeline::runtime::clock::{Clock as _, SystemClock};
use tidings_pipeline::runtime::cluster::Share;
use tidings_pipeline::runtime::watch::STILL_MAX;
use tidings_pipeline::topology::{Log, OperatorKinds, svg};
use tidings_schemas::units::Period;

use super::supervise::supervise;
use super::{Exit, Shell};

/// Run a topology until SIGINT or SIGTERM.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// The topology.
    #[arg(short, long, value_name = "FILE", default_value = "topology.yaml", env = "TIDINGS_TOPOLOGY")]
    config: PathBuf,
    /// A stage to run; all of them if none is named.
    #[arg(long = "stage", value_name = "STAGE")]
    stages: Vec<Stage>,
    /// Worker threads of the decide stage, in each process.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Processes that share the decide stage; each is started with its number and all of their addresses.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    processes: u16,
    /// The number of this process. Process 0 runs the other stages as well; the others run workers of decide only.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    process: u16,
    /// Where each process is reached, by number. The ports belong on a private network: nothing on them is encrypted.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    hosts: Vec<String>,
    /// Where this process listens for the others; its own address of --hosts if it is not said.
    #[arg(long, value_name = "ADDRESS:PORT")]
    bind: Option<String>,
    /// What this process is called in its groups in Kafka: the same after a restart, and no other process's. Without
    /// it, this machine's name and a number.
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Where the console, the control API and metrics are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878")]
    admin: SocketAddr,
    /// A certificate (PEM) to trust beside the system's: the simulated providers' own.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Create the topics that are missing: for one's own machine.
    #[arg(long)]
    create_topics: bool,
    /// Go on although another build decided what is to be replayed.
    #[arg(long)]
    accept_divergence: bool,
    /// Drop the state of an operator that the topology has no longer: what it holds is said to be lost.
    #[arg(long = "allow-dropped-state", value_name = "OPERATOR")]
    may_drop: Vec<String>,
    /// End the process when somebody in the decide stage makes no step for so long.
    #[arg(long, value_name = "SPAN", default_value_t = Period(STILL_MAX))]
    watchdog: Period,
    /// Run as a child of this process, and start it again whenever it ends by itself or says nothing.
    #[arg(long)]
    supervise: bool,
    /// Give signs of life on stdout: what a supervisor asks for.
    #[arg(long, hide = true)]
    supervised: bool,
}

/// Without simulated providers nobody here knows what people received.
struct NoInbox;

impl Inbox for NoInbox {
    fn messages(&self) -> BoxFuture<'_, Result<serde_json::Value, String>> {
        Box::pin(async { Ok(serde_json::json!([])) })
    }
}

impl Run {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        if self.supervise {
            return supervise(shell, self.watchdog.0);
        }
        let cluster = match self.cluster() {
            Ok(cluster) => cluster,
            Err(problem) => {
                shell.talk(format_args!("error: {problem}"));
                return Ok(Exit::Usage);
            }
        };
        let loaded = shell.load(&self.config, &Calendar::bundled())?;
        if cluster.is_some() && matches!(loaded.config.deployment.log, Log::Embedded { .. }) {
            shell.talk(
                "error: an embedded log belongs to one process: with --processes the topology's log must be Kafka",
            );
            return Ok(Exit::Configuration);
        }
        let has = |id: &&String| loaded.config.topology.operators.iter().any(|operator| operator.id == **id);
        if let Some(id) = self.may_drop.iter().find(has) {
            shell.talk(format_args!(
                "error: --allow-dropped-state: the topology has operator `{id}`; only what it has no longer is dropped"
            ));
            return Ok(Exit::Usage);
        }
        let folder = self.config.parent().map(PathBuf::from).unwrap_or_default();
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("--ca {}", path.display()));
        let clock = Arc::new(SystemClock::default());
        let wall = Arc::clone(&clock);
        let is_other = cluster.as_ref().is_some_and(|cluster| cluster.share.process > 0);
        let settings = Settings {
            stages: if is_other { vec![Stage::Decide] } else { self.stages },
            cluster,
            run: RunSettings {
                build: build()?,
                workers: self.workers.max(1) * usize::from(self.processes),
                transport: Transport::Memory,
                epoch_min: Duration::from_millis(20),
                idle_max: Duration::from_secs(1),
                checkpoint_every: loaded.config.deployment.checkpoints.every.0,
            },
            instance: self.instance,
            admin: Some(self.admin),
            clock,
            speed: 1,
            wall: Arc::new(move || wall.wall()),
            folder,
            extra_ca_pem: self.ca.as_ref().map(read).transpose()?,
            inbox: Arc::new(NoInbox),
            graph_svg: svg(&loaded.config.topology, &OperatorKinds::standard()),
            create_topics: self.create_topics,
            accept_divergence: self.accept_divergence,
            may_drop: self.may_drop.into_iter().collect(),
            still_max: self.watchdog.0,
            supervised: self.supervised,
        };
        let bulk = tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_start(give_way).build()?;
        bulk.block_on(async {
            let mut process = Process::start(&loaded.config, settings).await?;
            if let Some(admin) = process.admin {
                shell.talk(format_args!("running; console and metrics at http://{admin}"));
            }
            let ended = tokio::select! {
                error = process.ended() => Some(error),
                signal = stop_signal() => {
                    shell.talk(format_args!("{}: stopping", signal?));
                    None
                }
            };
            let stopped = process.stop().await;
            match ended {
                Some(error) => Err(error),
                None => stopped.map(|()| Exit::Ok),
            }
        })
    }
}

impl Run {
    /// This process's share; none where there is one process. What is wrong with the command line otherwise.
    fn cluster(&self) -> Result<Option<Cluster>, String> {
        let Self { processes, process, hosts, .. } = self;
        if *processes == 1 {
            let alone = *process == 0 && hosts.is_empty() && self.bind.is_none();
            let several = "--process, --hosts and --bind are about several processes: say how many with --processes";
            return if alone { Ok(None) } else { Err(several.to_owned()) };
        }
        if hosts.len() != usize::from(*processes) {
            let count = hosts.len();
            return Err(format!(
                "--hosts has {count} addresses, --processes says {processes}: name one for each, in order"
            ));
        }
        let Some(own) = hosts.get(usize::from(*process)) else {
            return Err(format!(
                "--process {process}: numbers begin with 0, so that the last one is {}",
                processes - 1
            ));
        };
        if *process > 0 && self.stages.iter().any(|stage| *stage != Stage::Decide) {
            return Err(
                "--stage: a process other than 0 runs decide only; start further ones for other stages".to_owned()
            );
        }
        if *process == 0 && !self.stages.is_empty() && !self.stages.contains(&Stage::Decide) {
            return Err("--processes is about decide, which is not among the stages".to_owned());
        }
        let (process, workers, silence) = (*process, self.workers.max(1), self.watchdog.0);
        let share = Share { process, hosts: hosts.clone(), workers, silence };
        Ok(Some(Cluster { bind: self.bind.clone().unwrap_or_else(|| own.clone()), share }))
    }
}

/// Names the build that decides: the program's own bytes. Another build may decide otherwise.
pub(crate) fn build() -> anyhow::Result<Hash> {
    let program = std::env::current_exe().and_then(std::fs::read).context("this program's own file cannot be read")?;
    Ok(*blake3::hash(&program).as_bytes())
}

pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Waits for SIGINT or SIGTERM; says which it was.
pub(crate) async fn stop_signal() -> anyhow::Result<&'static str> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| "interrupted").map_err(Into::into),
        _ = terminate.recv() => Ok("terminated"),
    }
}
