//! `tidings demo`: one night of six people, on this machine alone: embedded log, ledger, directory and
//! record, simulated providers over real HTTP/2, and a page in which one watches what happens and asks
//! why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tidings_operators::calendar::Calendar;
use tidings_operators::harness::dataflow::Transport;
use tidings_pipeline::assemble::RunSettings;
use tidings_pipeline::console::{Console, Inbox};
use tidings_pipeline::demo::closing::closing;
use tidings_pipeline::demo::workload::{Act, Action, BEGINS_AT, LASTS, Workload};
use tidings_pipeline::explain::Colour;
use tidings_pipeline::explain::Context;
use tidings_pipeline::process::{Emitter, Process, Settings, type_channels};
use tidings_pipeline::runtime::clock::{Clock, ScaledClock, SystemClock};
use tidings_pipeline::runtime::watch::STILL_MAX;
use tidings_pipeline::topology::{FixedEnvironment, LoadError, Loader, OperatorKinds, ProviderKinds, SourceText, svg};
use tidings_schemas::event::Event;
use tidings_schemas::profile::{Address, Profile};
use tidings_schemas::time::Instant;
use tidings_sinks::record::files::Files;
use tidings_sinks::record::index::RecordIndex;
use tidings_sinks::simulated::{Config as SimulatedConfig, Simulated};

use super::run::{build, runtime, stop_signal};
use super::{Exit, Shell};

const TOPOLOGY: &str = include_str!("../../../examples/demo.yaml");

/// Watch one night of six people: what they are told, when, and why not.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// How many times faster than the wall the night passes.
    #[arg(long, default_value_t = 60)]
    speed: u32,
    /// The seed of what happens beside the script.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Where the page is served; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7878")]
    admin: SocketAddr,
    /// A folder for everything that is kept; a new one, deleted at the end, if none is named.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Ends after so many minutes of the night.
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<u64>,
}

/// What people received, on the demo's clock: providers know the machine's only.
struct Received {
    simulated: Arc<Simulated>,
    began: Instant,
    speed: u32,
}

impl Inbox for Received {
    fn messages(&self) -> BoxFuture<'_, Result<serde_json::Value, String>> {
        Box::pin(async {
            let mut messages = self.simulated.messages();
            for message in &mut messages {
                message.at = BEGINS_AT.after(message.at.since(self.began) * self.speed);
            }
            serde_json::to_value(messages).map_err(|error| error.to_string())
        })
    }
}

impl Demo {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let temporary = match &self.data {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("tidings-demo").tempdir()?),
        };
        let own = temporary.as_ref().map(|folder| folder.path().to_owned());
        let folder = self.data.clone().or(own).unwrap_or_default();
        runtime()?.block_on(self.night(shell, folder))
    }

    async fn night(self, shell: &Shell, folder: PathBuf) -> anyhow::Result<Exit> {
        let clock = Arc::new(ScaledClock::new(BEGINS_AT, self.speed));
        let machine = Arc::new(SystemClock::default());
        let wall: tidings_sinks::log::Clock = Arc::new(move || machine.wall());
        let began = wall();
        let keys = folder.join("keys");
        let config = SimulatedConfig { keys: Some(keys.clone()), ..SimulatedConfig::new(Arc::clone(&wall)) };
        let simulated = Arc::new(Simulated::start(config).await?);
        let endpoints = simulated.endpoints().clone();
        let variables = [
            ("DATA", folder.display().to_string()),
            ("KEYS", keys.display().to_string()),
            ("APNS", endpoints.apns.clone()),
            ("FCM", endpoints.fcm.clone()),
            ("SES", endpoints.ses.clone()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
        let environment = FixedEnvironment { variables, ..FixedEnvironment::default() };
        let (operators, providers) = (OperatorKinds::standard(), ProviderKinds::standard());
        let calendar = Calendar::bundled();
        let loader =
            Loader { operators: &operators, providers: &providers, calendar: &calendar, environment: &environment };
        let loaded = loader.check(SourceText::new("examples/demo.yaml", TOPOLOGY)).map_err(|refused| {
            shell.talk(refused.render(shell.talk_styled()));
            LoadError::Refused(refused)
        })?;
        let settings = Settings {
            stages: Vec::new(),
            run: RunSettings {
                build: build()?,
                workers: 2,
                transport: Transport::Memory,
                epoch_min: Duration::from_millis(20),
                idle_max: Duration::from_secs(1),
                checkpoint_every: Duration::from_secs(5),
            },
            cluster: None,
            instance: None,
            admin: Some(self.admin),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            speed: self.speed,
            wall,
            folder: folder.clone(),
            extra_ca_pem: Some(simulated.ca_pem().as_bytes().to_vec()),
            inbox: Arc::new(Received { simulated: Arc::clone(&simulated), began, speed: self.speed }),
            graph_svg: svg(&loaded.config.topology, &operators),
            create_topics: true,
            accept_divergence: false,
            may_drop: BTreeSet::new(),
            still_max: STILL_MAX,
            supervised: false,
        };
        let mut process = Process::start(&loaded.config, settings).await?;
        if let Some(admin) = process.admin {
            shell.talk(format_args!(
                "watch it at http://{admin}  ·  what people receive: {}  ·  Ctrl-C ends it",
                endpoints.inbox
            ));
        }
        let lasts = self.minutes.map_or(LASTS, |minutes| Duration::from_secs(minutes * 60));
        let stage = Stage {
            shell,
            clock: &clock,
            emit: &process.emit,
            console: process.console.clone(),
            simulated: &simulated,
        };
        let played = tokio::select! {
            played = stage.play(Workload::new(self.seed), lasts) => played,
            signal = stop_signal() => signal.map(|_| BTreeMap::new()),
        };
        let profiles = match played {
            Ok(profiles) => profiles,
            Err(error) => return Err(error),
        };
        // A stage that ended by itself is news; one that runs says nothing.
        let ended = tokio::time::timeout(Duration::ZERO, process.ended()).await.ok();
        shell.talk("the night is over: what is under way lands");
        process.finish().await?;
        if let Some(error) = ended {
            return Err(error);
        }
        let mut index = RecordIndex::default();
        index.refresh(&Files::new(folder.join("record")))?;
        let rows: Vec<_> = index.rows().cloned().collect();
        let context = |user: &str| {
            let profile: Option<Profile> = profiles.get(user).cloned();
            let zone = profile.as_ref().and_then(|profile| calendar.zone(profile.time_zone.as_deref()?)).cloned();
            Context { zone, profile, type_channels: type_channels(&loaded.config), ..Context::default() }
        };
        let colour = if shell.styled() { Colour::On } else { Colour::Off };
        let sums = index.fates().sums();
        shell.data(closing(&sums, &rows, context, colour))?;
        let adds_up = sums.iter().all(tidings_sinks::record::fates::Sum::adds_up);
        Ok(if adds_up { Exit::Ok } else { Exit::Findings })
    }
}

/// What the acts are played on.
struct Stage<'a> {
    shell: &'a Shell,
    clock: &'a ScaledClock,
    emit: &'a Arc<Emitter>,
    console: Console,
    simulated: &'a Simulated,
}

impl Stage<'_> {
    /// Plays every act at its time; returns the profiles as they were left.
    async fn play(self, workload: Workload, lasts: Duration) -> anyhow::Result<BTreeMap<String, Profile>> {
        let mut profiles = BTreeMap::new();
        let end = BEGINS_AT.after(lasts);
        for act in workload.take_while(|act| act.at < end) {
            self.until(act.at).await;
            if !act.caption.is_empty() {
                self.shell.data(format_args!("{}  {}\n", berlin(act.at), act.caption))?;
            }
            if let Action::Profile { user, value } = &act.action
                && let Ok(profile) = Profile::from_json(Some(value))
            {
                profiles.insert(user.clone(), profile);
            }
            self.act(act).await?;
        }
        self.until(end).await;
        Ok(profiles)
    }

    async fn until(&self, at: Instant) {
        tokio::time::sleep(self.clock.real(at.since(self.clock.wall()))).await;
    }

    async fn act(&self, act: Act) -> anyhow::Result<()> {
        let topics = self.emit.topics();
        let (topic, key, value) = match act.action {
            Action::Event { topic, key, value } => (self.emit.events(topic), key, value),
            Action::Profile { user, value } => (topics.preferences(), user, value),
            Action::Address { key, value } => {
                if let Ok(address) = serde_json::from_slice::<Address>(&value) {
                    self.simulated.name_addresses([(address.address, address.user_id)]);
                }
                (topics.addresses(), key, value)
            }
        };
        let is_event = serde_json::from_slice::<Event>(&value).is_ok() || topic.contains(".events.");
        let (emit, topic_of, bytes) = (Arc::clone(self.emit), topic.clone(), value.clone());
        let appended = tokio::task::spawn_blocking(move || emit.append(&topic_of, &key, Some(bytes))).await?;
        let (at, offset) = appended.map_err(|problem| anyhow::anyhow!("{topic}: {problem}"))?;
        if is_event {
            let caption = (!act.caption.is_empty()).then_some(act.caption.as_str());
            self.console.observe_event(self.emit.event_at(&at, offset), act.at, &value, caption);
        }
        Ok(())
    }
}

/// The time of day in Berlin, where most of it happens.
fn berlin(at: Instant) -> String {
    let calendar = Calendar::bundled();
    let zone = calendar.zone("Europe/Berlin").unwrap_or_else(|| calendar.utc());
    zone.local(at).minute.to_string()
}
