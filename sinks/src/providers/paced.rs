//! A provider with a rate: what its deliverers keep to before they call it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidings_schemas::channel::Channel;
use tidings_schemas::time::Instant;

use super::{Call, Provider};
use crate::lane::Pace;
use crate::outcome::Outcome;

/// A provider and its rate.
pub struct Paced {
    provider: Arc<dyn Provider>,
    pace: Arc<Pace>,
}

impl Paced {
    /// `provider`, called at `pace`.
    #[must_use]
    pub const fn new(provider: Arc<dyn Provider>, pace: Arc<Pace>) -> Self {
        Self { provider, pace }
    }
}

#[async_trait]
impl Provider for Paced {
    fn name(&self) -> &'static str {
        self.provider.name()
    }
    fn channel(&self) -> Channel {
        self.provider.channel()
    }
    fn batch_max(&self) -> usize {
        self.provider.batch_max()
    }
    fn timeout(&self) -> Duration {
        self.provider.timeout()
    }
    fn is_one_owner(&self) -> bool {
        self.provider.is_one_owner()
    }
    fn pace(&self) -> Option<&Arc<Pace>> {
        Some(&self.pace)
    }
    async fn deliver(&self, calls: &[Call], now: Instant) -> Vec<Outcome> {
        self.provider.deliver(calls, now).await
    }
}
