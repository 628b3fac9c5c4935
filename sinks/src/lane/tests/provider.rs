//! A provider that follows a script.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tidings_schemas::channel::Channel;
use tidings_schemas::ids::DeliveryId;
use tidings_schemas::time::Instant;

use super::crash::Crash;
use super::{CALL_MAX, T0};
use crate::outcome::{Code, Outcome};
use crate::providers::{Call, Provider};

/// What a call is answered with.
#[derive(Clone)]
pub(super) enum Answer {
    Is(Outcome),
    After(Duration, Outcome),
    Never,
}

pub(super) fn ok() -> Answer {
    Answer::Is(Outcome::accepted(Code::new(200, ""), "id"))
}

pub(super) fn busy() -> Answer {
    Answer::Is(Outcome::retryable(Code::new(503, "ServiceUnavailable"), None))
}

/// Answers by user, one after the other, the last one for ever; accepts from users it was told nothing about.
#[derive(Default)]
pub(super) struct Scripted {
    script: Mutex<BTreeMap<String, VecDeque<Answer>>>,
    pub(super) calls: Mutex<Vec<(String, DeliveryId, Instant)>>,
    pub(super) accepted: Mutex<Vec<DeliveryId>>,
}

impl Scripted {
    pub(super) fn set(&self, user: &str, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().insert(user.to_owned(), answers.into_iter().collect());
    }

    fn answer(&self, call: &Call, now: Instant) -> Answer {
        self.calls.lock().unwrap().push((call.user.clone(), call.delivery, now));
        let mut script = self.script.lock().unwrap();
        let Some(answers) = script.get_mut(&call.user) else { return ok() };
        if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() }
    }

    /// How often `user` has it.
    pub(super) fn has(&self, user: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        let own: BTreeSet<_> = calls.iter().filter(|call| call.0 == user).map(|call| call.1).collect();
        self.accepted.lock().unwrap().iter().filter(|delivery| own.contains(*delivery)).count()
    }

    /// When `user` was called, in milliseconds since the start.
    pub(super) fn times(&self, user: &str) -> Vec<i64> {
        self.calls.lock().unwrap().iter().filter(|call| call.0 == user).map(|call| call.2.0 - T0.0).collect()
    }
}

/// How a channel reaches it.
pub(super) struct ScriptedLine {
    pub(super) provider: Arc<Scripted>,
    pub(super) channel: Channel,
    pub(super) crash: Arc<Crash>,
}

#[async_trait]
impl Provider for ScriptedLine {
    fn name(&self) -> &'static str {
        "scripted"
    }
    fn channel(&self) -> Channel {
        self.channel
    }
    fn batch_max(&self) -> usize {
        1
    }
    fn timeout(&self) -> Duration {
        CALL_MAX
    }
    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        self.crash.point().await;
        let mut outcomes = Vec::new();
        for call in calls {
            let outcome = match self.provider.answer(call, now) {
                Answer::Is(outcome) => outcome,
                Answer::After(wait, outcome) => {
                    tokio::time::sleep(wait).await;
                    outcome
                }
                Answer::Never => std::future::pending().await,
            };
            if matches!(outcome, Outcome::Accepted { .. }) {
                self.provider.accepted.lock().unwrap().push(call.delivery);
            }
            outcomes.push(outcome);
        }
        self.crash.point().await;
        outcomes
    }
}
