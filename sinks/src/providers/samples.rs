//! What the providers' tests share: a clock that stands until it is told, calls, a context that
//! trusts the simulated providers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tidings_schemas::channel::{Channel, Priority};
use tidings_schemas::ids::{DeliveryId, EventId, NotificationId};
use tidings_schemas::profile::Address;
use tidings_schemas::time::Instant;

use super::{Call, Context, Provider, WallClock};
use crate::outcome::Outcome;
use crate::render::{Content, Email, Push, Sms};
use crate::simulated::{Config, KeyFiles, Simulated};

/// 2026-01-02T03:04:05Z.
pub(crate) const NOW: Instant = Instant(1_767_323_045_000);

/// A clock that stands at [`NOW`] until it is moved.
#[derive(Clone)]
pub(crate) struct Clock(Arc<AtomicI64>);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(NOW.0)))
    }

    pub(crate) fn pass(&self, span: Duration) {
        self.0.fetch_add(i64::try_from(span.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn back(&self, span: Duration) {
        self.0.fetch_sub(i64::try_from(span.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn wall(&self) -> WallClock {
        let at = self.0.clone();
        Arc::new(move || Instant(at.load(Ordering::SeqCst)))
    }
}

/// Simulated providers, their keys in a folder, and a clock that all share.
pub(crate) struct World {
    pub(crate) simulated: Simulated,
    pub(crate) clock: Clock,
    pub(crate) files: KeyFiles,
    pub(crate) context: Context,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let simulated = Simulated::start(Config::new(clock.wall())).await.unwrap();
        let files = simulated.write_keys(folder.path()).unwrap();
        let context = context(folder.path().to_owned(), &clock);
        Self { simulated, clock, files, context, _folder: folder }
    }

    /// The provider `name` with `params`, built as a topology builds it.
    pub(crate) fn provider(&self, name: &str, params: Value) -> Arc<dyn Provider> {
        super::kind(name).unwrap().build(params, &self.context).unwrap()
    }
}

pub(crate) fn context(folder: PathBuf, clock: &Clock) -> Context {
    Context { folder, extra_ca_pem: None, wall_clock: clock.wall(), environment: Arc::new(|_| None) }
}

pub(crate) async fn deliver_one(provider: &dyn Provider, call: &Call) -> Outcome {
    let mut outcomes = provider.deliver(std::slice::from_ref(call), NOW).await;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

fn call(channel: Channel, address: &str, content: Content) -> Call {
    let notification = NotificationId::new("route", "u1", b"", &mut [EventId::new("high", 0, 7)]);
    Call {
        delivery: DeliveryId::new(notification, channel.as_str(), address, 0),
        notification,
        user: "u1".to_owned(),
        address: Address {
            environment: Some("production".to_owned()),
            registered_at: Some(NOW.before(Duration::from_secs(86_400))),
            ..Address::live("u1", address, channel, address)
        },
        content,
        collapse_key: None,
        expires_at: None,
        priority: Priority::High,
        category: "social".to_owned(),
    }
}

/// A push to the device `token`.
pub(crate) fn push(token: &str) -> Call {
    let content = Push {
        title: "Bob and 3 others".to_owned(),
        body: "liked „photo 7“".to_owned(),
        sound: Some("default".to_owned()),
        action_url: Some("app://photo/7".to_owned()),
        ..Push::default()
    };
    call(Channel::Push, token, Content::Push(Box::new(content)))
}

/// A text message to `number`.
pub(crate) fn sms(number: &str, text: &str) -> Call {
    call(Channel::Sms, number, Content::Sms(Sms { text: text.to_owned() }))
}

/// A mail to `address`.
pub(crate) fn email(address: &str) -> Call {
    let content = Email {
        subject: "Your order {{4412}} & more – shipped".to_owned(),
        html: Some("<p>It's <b>here</b>: {{{not_a_variable}}} &amp; \"more\"</p>".to_owned()),
        text: "It's here: {{not_a_variable}} & \"more\" <soon>\n".to_owned(),
    };
    call(Channel::Email, address, Content::Email(content))
}
