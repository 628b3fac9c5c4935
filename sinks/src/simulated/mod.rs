//! Simulated providers that speak the real wire: APNs, FCM, SES, Telnyx and Twilio over TLS and HTTP/2, with real
//! authentication, real error bodies and scripted faults, and an inbox to look at what arrived.
//!
//! They check what the real ones check (tokens, signatures, headers, sizes), so that an adapter that
//! satisfies them has its protocol right; they count what each address received by notification and
//! delivery, so that a run can prove that nothing was lost and see what was doubled. A message is
//! counted when it is *accepted*, whether or not the answer reaches the caller: that is the truth
//! that a timeout hides.

mod apns;
mod faults;
mod fcm;
mod inbox;
mod keys;
mod server;
mod ses;
mod telnyx;
mod twilio;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde::Serialize;
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::providers::WallClock;
use crate::providers::sigv4::Credentials;
use crate::render::Content;
pub use faults::{Fault, Faults, Rule};
pub use keys::{KeyFiles, Keys};
use server::Reply;

/// How the simulated providers are started.
#[derive(Clone)]
pub struct Config {
    /// The address to listen on.
    pub host: IpAddr,
    /// Ports; 0 takes a free one.
    pub ports: Ports,
    /// Where keys are kept: read where present, else made and written. New ones at each start where absent.
    pub keys: Option<PathBuf>,
    /// Apple's key id, as tokens must name it.
    pub apns_key_id: String,
    /// Apple's team id, as tokens must name it.
    pub apns_team_id: String,
    /// The app's bundle id.
    pub apns_topic: String,
    /// Google's project.
    pub fcm_project: String,
    /// The AWS region.
    pub ses_region: String,
    /// Twilio's account.
    pub twilio_account_sid: String,
    /// Messages kept for the inbox; older ones leave, their counts stay.
    pub messages_max: usize,
    /// Streams at once on one connection: 100 is what FCM allows, a fresh APNs connection no more.
    pub streams_max: u32,
    /// The wall clock, which credentials are judged by.
    pub wall_clock: WallClock,
}

/// Ports; 0 takes a free one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// APNs, production.
    pub apns: u16,
    /// APNs, development.
    pub apns_sandbox: u16,
    /// FCM and its token endpoint.
    pub fcm: u16,
    /// SES.
    pub ses: u16,
    /// Telnyx.
    pub telnyx: u16,
    /// Twilio.
    pub twilio: u16,
    /// The inbox, plain HTTP.
    pub inbox: u16,
}

impl Config {
    /// What the examples' topology expects, on free ports of this machine.
    #[must_use]
    pub fn new(wall_clock: WallClock) -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            ports: Ports::default(),
            keys: None,
            apns_key_id: "ABC1234567".to_owned(),
            apns_team_id: "DEF1234567".to_owned(),
            apns_topic: "com.example.app".to_owned(),
            fcm_project: "example".to_owned(),
            ses_region: "us-east-1".to_owned(),
            twilio_account_sid: "AC00000000000000000000000000000001".to_owned(),
            messages_max: 1000,
            streams_max: 100,
            wall_clock,
        }
    }
}

/// Where the simulated providers listen.
#[derive(Clone, Debug, Serialize)]
pub struct Endpoints {
    /// APNs, production.
    pub apns: String,
    /// APNs, development.
    pub apns_sandbox: String,
    /// FCM; its token endpoint is `/token`.
    pub fcm: String,
    /// SES.
    pub ses: String,
    /// Telnyx.
    pub telnyx: String,
    /// Twilio.
    pub twilio: String,
    /// The inbox, for a browser.
    pub inbox: String,
}

/// Why the simulated providers could not start.
#[derive(Debug, thiserror::Error)]
pub enum SimulatedError {
    /// A port is taken or the address is not this machine's.
    #[error("cannot listen on {0}: {1}; name another port, or 0 for a free one")]
    Listen(SocketAddr, #[source] io::Error),
    /// A key file cannot be used.
    #[error("key file {0}: {1}")]
    File(String, #[source] io::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS could not be set up.
    #[error("cannot set TLS up: {0}")]
    Tls(#[from] rustls::Error),
    /// A key cannot be used.
    #[error("cannot use key `{0}`: {1}")]
    Key(&'static str, String),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes to make keys of")]
    Randomness,
}

/// A message that a provider accepted, as its receiver sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    /// Counts messages, from 1.
    pub seq: u64,
    /// When it was accepted.
    pub at: Instant,
    /// Who carried it: `apns`, `apns_sandbox`, `fcm`, `ses`, `telnyx`, `twilio`.
    pub provider: &'static str,
    /// On which channel.
    pub channel: Channel,
    /// Whose address it is, where [`Simulated::name_addresses`] or `POST /api/users` said so.
    pub user: Option<String>,
    /// The device token, e-mail address or phone number.
    pub address: String,
    /// The notification, as the message itself names it.
    pub notification: Option<String>,
    /// The delivery, as the message itself names it.
    pub delivery: Option<String>,
    /// The provider's id.
    pub provider_id: String,
    /// What replaces an earlier message on the screen.
    pub collapse_key: Option<String>,
    /// How many messages of this delivery the address has now.
    pub copy: u64,
    /// Headers worth a look.
    pub headers: BTreeMap<String, String>,
    /// What it shows.
    pub content: Content,
}

/// What one address received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Received {
    /// Messages.
    pub messages: u64,
    /// Messages by notification id.
    pub notifications: BTreeMap<String, u64>,
    /// Messages by delivery id: more than one is a double.
    pub deliveries: BTreeMap<String, u64>,
}

/// What one listener did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Connections that came about.
    pub connections: u64,
    /// Requests.
    pub requests: u64,
    /// Messages accepted.
    pub accepted: u64,
    /// Faults that struck.
    pub faults: u64,
}

/// What was counted since the start; only a restart forgets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// By listener.
    pub providers: BTreeMap<&'static str, Traffic>,
    /// By address. It grows with every delivery: a simulated provider lives as long as a test or a demo.
    pub addresses: BTreeMap<String, Received>,
}

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    Apns,
    ApnsSandbox,
    Fcm,
    /// Google's token endpoint, on FCM's listener.
    FcmToken,
    Ses,
    Telnyx,
    Twilio,
    Inbox,
}

impl Listener {
    const fn name(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::ApnsSandbox => "apns_sandbox",
            Self::Fcm => "fcm",
            Self::FcmToken => "fcm_token",
            Self::Ses => "ses",
            Self::Telnyx => "telnyx",
            Self::Twilio => "twilio",
            Self::Inbox => "inbox",
        }
    }
}

/// What the listeners share.
struct Shared {
    config: Config,
    apns_public_key: Vec<u8>,
    fcm_public_key: Vec<u8>,
    ses_credentials: Credentials,
    telnyx_key: String,
    twilio_token: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    accepted: u64,
    numbered: u64,
    counts: Counts,
    script: faults::Script,
    users: BTreeMap<String, String>,
    access_tokens: BTreeMap<String, Instant>,
    /// Messages by idempotency key.
    idempotent: BTreeMap<String, String>,
    access_tokens_sold: u64,
}

impl State {
    /// The messages that are kept, newest first, with the users as they are known now.
    fn listed(&self) -> impl Iterator<Item = Message> {
        self.messages.iter().map(|message| {
            let user = self.users.get(&message.address).cloned();
            Message { user, ..message.clone() }
        })
    }
}

/// A message before it is numbered and counted.
struct Arrival {
    channel: Channel,
    address: String,
    notification: Option<String>,
    delivery: Option<String>,
    provider_id: String,
    collapse_key: Option<String>,
    headers: BTreeMap<String, String>,
    content: Content,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counters and lists: whole even if a holder panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Instant {
        (self.config.wall_clock)()
    }

    /// A number that no other message has, for a provider's id.
    fn number(&self) -> u64 {
        let mut state = self.state();
        state.numbered += 1;
        state.numbered
    }

    fn connected(&self, which: Listener) {
        if which == Listener::Inbox {
            return; // whoever looks is no traffic
        }
        self.state().counts.providers.entry(which.name()).or_default().connections += 1;
    }

    /// Answers one request, after the latency that goes with it.
    fn handle(&self, which: Listener, request: &Request<Bytes>) -> (Duration, Reply) {
        let (slow, reply) = match which {
            Listener::Inbox => return (Duration::ZERO, inbox::handle(self, request)),
            Listener::Apns | Listener::ApnsSandbox => apns::handle(self, which, request),
            Listener::Fcm | Listener::FcmToken => fcm::handle(self, request),
            Listener::Ses => ses::handle(self, request),
            Listener::Telnyx => telnyx::handle(self, request),
            Listener::Twilio => twilio::handle(self, request),
        };
        let mut state = self.state();
        state.counts.providers.entry(which.name()).or_default().requests += 1;
        (slow + Duration::from_millis(state.script.faults.latency_ms), reply)
    }

    fn set_faults(&self, faults: Faults) {
        self.state().script = faults::Script::new(faults);
    }

    /// The fault that strikes a request as a whole, what it wants for one address, or both at once.
    fn strike(&self, which: Listener, address: Option<&str>, whole: bool) -> Option<Fault> {
        let mut state = self.state();
        let fault = state.script.strike(which.name(), address, whole)?;
        state.counts.providers.entry(which.name()).or_default().faults += 1;
        Some(fault)
    }

    /// Takes a message over: from here on it is counted.
    fn accept(&self, which: Listener, arrival: Arrival) {
        let at = self.now();
        let mut state = self.state();
        state.accepted += 1;
        state.counts.providers.entry(which.name()).or_default().accepted += 1;
        let received = state.counts.addresses.entry(arrival.address.clone()).or_default();
        received.messages += 1;
        if let Some(notification) = &arrival.notification {
            *received.notifications.entry(notification.clone()).or_default() += 1;
        }
        let copy = arrival.delivery.as_ref().map_or(1, |delivery| {
            let copies = received.deliveries.entry(delivery.clone()).or_default();
            *copies += 1;
            *copies
        });
        let message = Message {
            seq: state.accepted,
            at,
            provider: which.name(),
            channel: arrival.channel,
            user: None,
            address: arrival.address,
            notification: arrival.notification,
            delivery: arrival.delivery,
            provider_id: arrival.provider_id,
            collapse_key: arrival.collapse_key,
            copy,
            headers: arrival.headers,
            content: arrival.content,
        };
        state.messages.push_front(message);
        state.messages.truncate(self.config.messages_max);
    }
}

/// Running simulated providers. End them with [`Simulated::shutdown`]; dropping ends them too, but
/// does not wait.
pub struct Simulated {
    endpoints: Endpoints,
    keys: Keys,
    fcm_json: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    listeners: JoinSet<()>,
}

impl Simulated {
    /// Starts them; once this returns, every endpoint answers.
    ///
    /// # Errors
    /// When a port cannot be had or a key cannot be read or made.
    pub async fn start(config: Config) -> Result<Self, SimulatedError> {
        let keys = config.keys.as_deref().map_or_else(Keys::make, Keys::read_or_make)?;
        let ports = config.ports;
        let (apns, apns_at) = bind(config.host, ports.apns).await?;
        let (apns_sandbox, apns_sandbox_at) = bind(config.host, ports.apns_sandbox).await?;
        let (fcm, fcm_at) = bind(config.host, ports.fcm).await?;
        let (ses, ses_at) = bind(config.host, ports.ses).await?;
        let (telnyx, telnyx_at) = bind(config.host, ports.telnyx).await?;
        let (twilio, twilio_at) = bind(config.host, ports.twilio).await?;
        let (inbox, inbox_at) = bind(config.host, ports.inbox).await?;
        let endpoints = Endpoints {
            apns: format!("https://{apns_at}"),
            apns_sandbox: format!("https://{apns_sandbox_at}"),
            fcm: format!("https://{fcm_at}"),
            ses: format!("https://{ses_at}"),
            telnyx: format!("https://{telnyx_at}"),
            twilio: format!("https://{twilio_at}"),
            inbox: format!("http://{inbox_at}"),
        };
        let fcm_json = Keys::service_account(&config.fcm_project, &format!("{}/token", endpoints.fcm));
        if let Some(folder) = &config.keys {
            let file = |error| SimulatedError::File(folder.display().to_string(), error);
            keys.write(folder, &fcm_json).map_err(file)?;
        }
        // Apple speaks HTTP/2 only.
        let http2 = acceptor(&keys, config.host, &[b"h2"])?;
        let either = acceptor(&keys, config.host, &[b"h2", b"http/1.1"])?;
        let shared = Arc::new(Shared {
            apns_public_key: apns::public_key(&keys.apns_p8)?,
            fcm_public_key: fcm::public_key()?,
            ses_credentials: Credentials {
                access_key_id: keys.ses_access_key_id.clone(),
                secret_access_key: keys.ses_secret_access_key.clone(),
                session_token: None,
            },
            telnyx_key: keys.telnyx_key.clone(),
            twilio_token: keys.twilio_token.clone(),
            config,
            state: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let mut listeners = JoinSet::new();
        for (which, listener, tls) in [
            (Listener::Apns, apns, Some(&http2)),
            (Listener::ApnsSandbox, apns_sandbox, Some(&http2)),
            (Listener::Fcm, fcm, Some(&either)),
            (Listener::Ses, ses, Some(&either)),
            (Listener::Telnyx, telnyx, Some(&either)),
            (Listener::Twilio, twilio, Some(&either)),
            (Listener::Inbox, inbox, None),
        ] {
            listeners.spawn(server::listen(which, listener, tls.cloned(), shared.clone(), stop.clone()));
        }
        Ok(Self { endpoints, keys, fcm_json, shared, stop, listeners })
    }

    /// Where they listen.
    #[must_use]
    pub const fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The certificate to trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.keys.ca_pem
    }

    /// The keys that clients need.
    #[must_use]
    pub const fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Google's service account, as FCM clients read it.
    #[must_use]
    pub fn fcm_json(&self) -> &str {
        &self.fcm_json
    }

    /// Writes the keys into `folder`, so that a topology can name the files.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_keys(&self, folder: &Path) -> io::Result<KeyFiles> {
        self.keys.write(folder, &self.fcm_json)
    }

    /// The messages that are kept, newest first.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        self.shared.state().listed().collect()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.state().counts.clone()
    }

    /// Replaces the faults; their counters start anew.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.set_faults(faults);
    }

    /// Makes every access token that FCM's token endpoint has sold invalid.
    pub fn revoke_access_tokens(&self) {
        self.shared.state().access_tokens.clear();
    }

    /// How many access tokens FCM's token endpoint has sold.
    #[must_use]
    pub fn access_tokens_sold(&self) -> u64 {
        self.shared.state().access_tokens_sold
    }

    /// Says whose addresses these are, for the inbox: (address, user).
    pub fn name_addresses(&self, users: impl IntoIterator<Item = (String, String)>) {
        self.shared.state().users.extend(users);
    }

    /// Ends all listeners and connections and waits until they are gone.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        while self.listeners.join_next().await.is_some() {}
    }
}

/// The reply with `Retry-After`, as it stands in the script.
fn with_retry_after(mut reply: Reply, value: Option<&str>) -> Reply {
    if let (Reply::Answer(response), Some(value)) = (&mut reply, value.and_then(|value| value.parse().ok())) {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    reply
}

async fn bind(host: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), SimulatedError> {
    let wanted = SocketAddr::new(host, port);
    let error = |error| SimulatedError::Listen(wanted, error);
    let listener = TcpListener::bind(wanted).await.map_err(error)?;
    let at = listener.local_addr().map_err(error)?;
    Ok((listener, at))
}

fn acceptor(keys: &Keys, host: IpAddr, protocols: &[&[u8]]) -> Result<TlsAcceptor, SimulatedError> {
    let (certificates, key) = keys.server_certificate(host)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}
