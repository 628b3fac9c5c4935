//! Step 2: addresses and profiles are looked up, and a leg becomes one delivery per address.
//!
//! Per live one, that is. A retry record names its address, whatever became of it since; and of those that are gone
//! the ledger is asked whether they were called, because then they have to be accounted for. Where it was lost nobody
//! can tell, and all of them are.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tidings_schemas::channel::Channel;
use tidings_schemas::ids::DeliveryId;
use tidings_schemas::profile::Address;

use super::asking::CRITICAL_LEDGER_WAIT;
use super::{Deliverer, Delivery, Desk, Leg, Step};
use crate::directory::{Known, Listed};
use crate::ledger::{Bucket, Key};

impl Deliverer {
    /// Step 2: addresses and profiles of all users at once; a leg becomes a delivery per address.
    pub(super) async fn begin(&self, desk: &Desk, legs: Vec<Arc<Leg>>) -> Vec<Step> {
        let records: Vec<_> = legs.iter().map(|leg| &leg.record).collect();
        let Some(known) = self.look(desk, &records).await else { return Vec::new() };
        let mut gone = Vec::new();
        let live: Vec<Vec<Delivery>> = legs
            .iter()
            .zip(known)
            .map(|(leg, known)| {
                let (live, dead): (Vec<_>, Vec<_>) = self
                    .deliveries(leg, &known)
                    .into_iter()
                    .partition(|it| leg.retry.is_some() || it.listed.as_ref().is_some_and(Listed::is_live));
                gone.extend(dead);
                live
            })
            .collect();
        let Some(called) = self.called(desk, gone).await else { return Vec::new() };
        let mut called = called.into_iter().peekable();
        let mut deliveries = Vec::new();
        for (leg, mut live) in legs.iter().zip(live) {
            while let Some(it) = called.next_if(|it| Arc::ptr_eq(&it.leg, leg)) {
                live.push(it);
            }
            if live.is_empty() {
                self.unreachable(desk, leg).await;
                continue;
            }
            {
                let mut open = leg.open.lock().unwrap_or_else(PoisonError::into_inner);
                open.deliveries = live.iter().map(|it| it.key.delivery).collect();
                open.left = live.len();
            }
            deliveries.extend(live);
        }
        self.admit(desk, deliveries).await
    }

    /// Those that were called before their address died, or may have been, in the same order: they still have to be
    /// accounted for, whether or not another address of their user lives. Critical legs wait for no ledger: where it
    /// does not answer in time, all may have been called. `None`: abandoned.
    async fn called(&self, desk: &Desk, gone: Vec<Delivery>) -> Option<Vec<Delivery>> {
        if gone.is_empty() {
            return Some(gone);
        }
        let asked = self.called_before(desk, &gone);
        let called = if gone.iter().any(|it| it.leg.is_critical()) {
            match tokio::time::timeout(CRITICAL_LEDGER_WAIT, asked).await {
                Ok(called) => called?,
                Err(_) => return Some(gone),
            }
        } else {
            asked.await?
        };
        Some(gone.into_iter().zip(called).filter_map(|(it, called)| called.then_some(it)).collect())
    }

    fn deliveries(&self, leg: &Arc<Leg>, known: &Known) -> Vec<Delivery> {
        let record = &leg.record;
        let profile = Arc::new(known.profile.clone());
        let mut addresses: Vec<(String, Option<Listed>)> = if record.channel == Channel::InApp {
            vec![(record.user.clone(), Some(inbox_address(&record.user)))]
        } else {
            known.addresses.iter().map(|listed| (listed.address.address_id.clone(), Some(listed.clone()))).collect()
        };
        if let Some(only) = &record.only_address {
            addresses.retain(|(address_id, _)| address_id == only);
            if addresses.is_empty() && leg.retry.is_some() {
                addresses.push((only.clone(), None));
            }
        }
        // Where a fallback hangs on several deliveries, each must be found after the lane record is gone.
        let alone = addresses.len() < 2 || record.fallback_channels.is_empty();
        let bucket = match &leg.epoch {
            Some((lane, epoch)) if alone && !leg.is_critical() && leg.retry.is_none() => {
                Bucket::Lane { lane: lane.clone(), epoch: *epoch }
            }
            _ => Bucket::Own,
        };
        let attempts = leg.retry.as_ref().map_or(0, |retry| retry.attempt);
        let looked = self.elapsed();
        let delivery = |(address_id, listed): (String, Option<Listed>)| Delivery {
            leg: leg.clone(),
            key: Key {
                delivery: DeliveryId::new(record.notification, record.channel.as_str(), &address_id, record.replay),
                bucket: bucket.clone(),
            },
            address_id,
            listed,
            profile: profile.clone(),
            looked,
            known: attempts,
            said: attempts,
            fresh: true,
            turns: Vec::new(),
        };
        addresses.into_iter().map(delivery).collect()
    }
}

impl Delivery {
    pub(super) fn refreshed(mut self, known: &Known, looked: Duration) -> Self {
        self.looked = looked;
        if self.leg.record.channel != Channel::InApp {
            self.listed = known.addresses.iter().find(|it| it.address.address_id == self.address_id).cloned();
        }
        self.profile = Arc::new(known.profile.clone());
        self
    }
}

/// In-app needs no address: the user is one.
fn inbox_address(user: &str) -> Listed {
    Listed { address: Address::live(user, user, Channel::InApp, user), partition: 0 }
}
