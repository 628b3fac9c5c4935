//! The providers: one file each, top to bottom in one order (header with the answer table,
//! constants, parameters, wire types, `build_request`, `classify`, the client, tests), and one line
//! in [`registry`].
//!
//! An adapter makes calls and says what came of them. It never waits before a retry, never schedules
//! one and never writes a row: that is the lane's. What it may do within one `deliver` is try a
//! second time at once where the provider's table says that the first try cannot count (a refused
//! stream, an expired token, the other environment).

pub mod apns;
pub mod fcm;
mod http;
pub mod inbox;
mod jwt;
pub mod paced;
#[cfg(test)]
pub(crate) mod samples;
pub mod ses;
pub(crate) mod sigv4;
pub(crate) mod sms;
pub mod telnyx;
pub mod twilio;
pub mod unsubscribe;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, NotificationId};
use tidings_schemas::profile::Address;
use tidings_schemas::time::Instant;

use crate::lane::Pace;
use crate::outcome::{MassInvalidationGuard, Outcome};
use crate::render::{Content, Push};

/// One delivery, ready to be carried.
#[derive(Clone, Debug)]
pub struct Call {
    /// One notification on one channel to one address: every attempt carries the same.
    pub delivery: DeliveryId,
    /// What it is part of.
    pub notification: NotificationId,
    /// Whom it is for.
    pub user: String,
    /// Where it goes.
    pub address: Address,
    /// What it shows.
    pub content: Content,
    /// What replaces an earlier one on the screen; where absent the content's own key, else the notification alone.
    pub collapse_key: Option<String>,
    /// Not to be shown after this; where absent a push is kept as long as its content says.
    pub expires_at: Option<Instant>,
    /// How urgent.
    pub priority: Priority,
    /// The category, for lists, tags and statistics.
    pub category: String,
}

impl Call {
    /// What `push` replaces on the screen where somebody asked for it.
    fn collapse_key<'a>(&'a self, push: &'a Push) -> Option<&'a str> {
        self.collapse_key.as_deref().or(push.collapse_key.as_deref())
    }
}

/// Who carries messages of one channel.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Its name in the topology, in metrics and in rows.
    fn name(&self) -> &'static str;

    /// The channel it serves.
    fn channel(&self) -> Channel;

    /// Whether it owns files of this machine, so that no second one like it can stand beside it.
    fn is_one_owner(&self) -> bool {
        false
    }

    /// Most calls that one `deliver` turns into one request; 1 where the provider has no request for
    /// several (run many `deliver` at once instead, they share connections).
    fn batch_max(&self) -> usize;

    /// How fast it may be called; absent where nothing but its own answers limits it.
    fn pace(&self) -> Option<&Arc<Pace>> {
        None
    }

    /// How long one `deliver` takes at most, second tries included: a lease outlasts it.
    fn timeout(&self) -> Duration;

    /// Carries `calls` and says what came of each, in their order. `now` is the clock that
    /// `expires_at` is written in.
    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome>;
}

/// The wall clock: what signatures are dated by, whatever clock the graph runs on.
pub type WallClock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Looks a variable of the environment up.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What every provider is built with.
#[derive(Clone)]
pub struct Context {
    /// Relative paths in parameters start here: the topology's folder.
    pub folder: PathBuf,
    /// Certificates (PEM) to trust beside the system's, for all providers.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// The wall clock.
    pub wall_clock: WallClock,
    /// The environment.
    pub environment: Environment,
}

impl Context {
    fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    fn read(&self, provider: &'static str, field: &'static str, path: &Path) -> Result<Vec<u8>, BuildError> {
        let path = self.path(path);
        std::fs::read(&path).map_err(|error| BuildError {
            provider,
            problem: format!("`{field}` {}: {error}; give the path of a file that can be read", path.display()),
        })
    }
}

/// Why a provider could not be built: names the field, the expectation and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("provider `{provider}`: {problem}")]
pub struct BuildError {
    /// The provider.
    pub provider: &'static str,
    /// Place, expectation and remedy.
    pub problem: String,
}

/// A kind of provider: its name, its parameters and how it is made of them.
pub struct ProviderKind {
    /// Its name in the topology.
    pub name: &'static str,
    /// The channel it serves.
    pub channel: Channel,
    /// The schema of its parameters.
    pub schema: fn() -> Schema,
    make: Make,
}

type Make = fn(serde_json::Value, &Context) -> Result<Box<dyn Provider>, BuildError>;

impl ProviderKind {
    /// A provider of this kind with these parameters, the guard against mass invalidation behind it.
    ///
    /// # Errors
    /// When a parameter is unknown, missing or wrong, or a file that it names cannot be used.
    pub fn build(&self, params: serde_json::Value, context: &Context) -> Result<Arc<dyn Provider>, BuildError> {
        let provider = (self.make)(params, context)?;
        Ok(Arc::new(Guarded { provider, guard: Mutex::default() }))
    }
}

/// Somebody who needs the types behind the kinds: the loader of topologies.
pub trait Visitor {
    /// Called once for each kind.
    fn provider<P: DeserializeOwned + Serialize + JsonSchema>(&mut self, kind: &'static ProviderKind);
}

macro_rules! kinds {
    ($($provider:ident($params:ident)),* $(,)?) => {
        /// Every kind of provider.
        #[must_use]
        pub fn registry() -> &'static [ProviderKind] {
            &[$($provider::KIND),*]
        }

        /// Shows all kinds to `visitor`, with the type of their parameters.
        pub fn visit(visitor: &mut impl Visitor) {
            $(visitor.provider::<$provider::$params>(&$provider::KIND);)*
        }
    };
}

// A new provider is one file and one line here.
kinds![
    apns(ApnsParams),
    fcm(FcmParams),
    inbox(InboxParams),
    ses(SesParams),
    telnyx(TelnyxParams),
    twilio(TwilioParams)
];

/// The kind called `name`.
#[must_use]
pub fn kind(name: &str) -> Option<&'static ProviderKind> {
    registry().iter().find(|kind| kind.name == name)
}

fn params<P: DeserializeOwned>(provider: &'static str, params: serde_json::Value) -> Result<P, BuildError> {
    serde_json::from_value(params).map_err(|error| BuildError { provider, problem: error.to_string() })
}

/// A provider whose dead addresses are believed only while they are few.
struct Guarded {
    provider: Box<dyn Provider>,
    guard: Mutex<MassInvalidationGuard>,
}

#[async_trait]
impl Provider for Guarded {
    fn name(&self) -> &'static str {
        self.provider.name()
    }

    fn channel(&self) -> Channel {
        self.provider.channel()
    }

    fn is_one_owner(&self) -> bool {
        self.provider.is_one_owner()
    }

    fn batch_max(&self) -> usize {
        self.provider.batch_max()
    }

    fn timeout(&self) -> Duration {
        self.provider.timeout()
    }

    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        let outcomes = self.provider.deliver(calls, now).await;
        // The guard holds counts only: they are whole even if a holder panicked.
        let mut guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.into_iter().map(|outcome| guard.judge(outcome)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::outcome::{Code, GUARD_INVALID_MIN};
    use crate::simulated::{Fault, Faults, Rule};
    use samples::{NOW, World, push};

    #[test]
    fn every_kind_has_its_own_name_and_documents_each_parameter() {
        let names: BTreeSet<_> = registry().iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), registry().len());
        for kind in registry() {
            let schema = serde_json::to_value((kind.schema)()).unwrap();
            assert_eq!(schema["additionalProperties"], json!(false), "{}", kind.name);
            for (field, property) in schema["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{}.{field}", kind.name);
            }
        }
    }

    #[tokio::test]
    async fn a_wrong_environment_pauses_instead_of_striking_every_device() {
        let world = World::start().await;
        let apns = world.provider(
            "apns",
            json!({
                "endpoint": world.simulated.endpoints().apns, "ca_file": world.files.ca, "key_file": world.files.apns,
                "key_id": "ABC1234567", "team_id": "DEF1234567", "topic": "com.example.app",
            }),
        );
        let bad = Fault::Answer { status: 400, reason: "BadDeviceToken".to_owned() };
        world.simulated.set_faults(Faults { latency_ms: 0, rules: vec![Rule::always("apns", bad)] });
        let calls: Vec<_> = (0..100).map(|device| push(&format!("{device:064x}"))).collect();
        let outcomes = apns.deliver(&calls, NOW).await;
        let struck = outcomes.iter().filter(|outcome| outcome.word() == "invalid_address").count();
        let paused = outcomes.iter().filter(|outcome| outcome.word() == "paused").count();
        assert_eq!((struck, paused), (GUARD_INVALID_MIN - 1, 100 - struck));
        assert_eq!(outcomes[99].code(), &Code::new(400, "BadDeviceToken"));
        world.simulated.shutdown().await;
    }
}
