//! Step 3, the claim: nobody else calls while this one does. Critical ones go on without a ledger that does not answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidings_schemas::time::Instant;

use super::asking::{BACKOFF, CLAIMS_WAIT, CRITICAL_LEDGER_WAIT, patiently};
use super::{Deliverer, Delivery, Desk, Granted, Met};
use crate::ledger::{Attempt, Claim, Claimed, Entry, Incarnation, LEASE_MARGIN, Ledger, LedgerError, Phase};

/// How old what the directory said may be when it is judged before a call. Claims come at once where the ledger
/// is well; where they had to wait for it, whoever opted out meanwhile is asked again.
const LOOKED_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether a commit names the ledger's new word. The reader's next turn makes one.
const LOOK_FOR_NAME: Duration = Duration::from_millis(20);

const WITHOUT_LEDGER: &str = "critical messages go out without the ledger";

/// What came of a claim.
pub(super) enum Asked {
    Granted(Granted),
    Met(Met),
}

impl Deliverer {
    /// An owner's name, the lease and the count, for each; asks until the ledger answers. Critical ones go on
    /// without it. `None`: abandoned.
    pub(super) async fn claim(&self, desk: &Desk, deliveries: Vec<Delivery>) -> Option<Vec<Asked>> {
        let critical = deliveries.first()?.leg.is_critical();
        let owner = || format!("{}.{}", self.parts.process, self.claims.fetch_add(1, Ordering::Relaxed)).into();
        let mut deliveries: Vec<(Delivery, Arc<str>)> = deliveries.into_iter().map(|it| (it, owner())).collect();
        let (mut pause, mut unnamed) = (BACKOFF.0, Duration::ZERO);
        loop {
            let (now, incarnation) = (self.now(), self.incarnation());
            // Of a partition that is someone else's nothing is begun.
            deliveries.retain(|(it, _)| it.leg.ticket.is_named(&incarnation).is_some());
            deliveries.first()?;
            let named = deliveries.iter().all(|(it, _)| it.leg.ticket.is_named(&incarnation) == Some(true));
            if !named && (!critical || unnamed < CRITICAL_LEDGER_WAIT) {
                unnamed += LOOK_FOR_NAME;
                self.pause(desk, LOOK_FOR_NAME).await?;
                continue;
            }
            let claims: Vec<_> =
                deliveries.iter().map(|(it, owner)| self.claim_of(it, owner, &incarnation, now)).collect();
            let asked = async {
                match named {
                    true => desk.ledger.claim(&incarnation, &claims, now).await,
                    false => Err(LedgerError::Unreachable("no commit names its word".to_owned())),
                }
            };
            let error = match patiently(critical, asked).await {
                Ok(answers) => {
                    desk.troubles.over(&[CLAIMS_WAIT, WITHOUT_LEDGER], now);
                    let answered =
                        deliveries.into_iter().zip(answers).map(|((delivery, owner), answer)| match answer {
                            Claimed::Granted(entry) => {
                                Asked::Granted(Granted { delivery, owner, entry, under: Some(incarnation.clone()) })
                            }
                            Claimed::Met(entry) => Asked::Met(Met { delivery, entry, under: incarnation.clone() }),
                        });
                    return Some(answered.collect());
                }
                Err(LedgerError::Lost) => match self.refound(critical).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if critical {
                desk.troubles.met(WITHOUT_LEDGER, &error, now);
                let unclaimed = deliveries.into_iter().map(|(delivery, owner)| unclaimed(delivery, owner, now));
                return Some(unclaimed.map(Asked::Granted).collect());
            }
            desk.troubles.met(CLAIMS_WAIT, &error, now);
            pause = self.pause(desk, pause).await?;
        }
    }

    /// The next attempt of it. Where the ledger was lost that would know of one more, that one counts as made.
    fn claim_of(&self, delivery: &Delivery, owner: &Arc<str>, incarnation: &Incarnation, now: Instant) -> Claim {
        let suspect = delivery.fresh && delivery.leg.believed.is_lost(incarnation);
        Claim {
            key: delivery.key.clone(),
            owner: owner.clone(),
            lease_until: now.after(self.lease(delivery)),
            attempts_before: delivery.known + u32::from(suspect),
        }
    }

    /// What was claimed, with what the directory says now, where that was long ago. `None`: abandoned.
    pub(super) async fn refreshed(&self, desk: &Desk, mut claimed: Vec<Asked>) -> Option<Vec<Asked>> {
        let now = self.elapsed();
        let old = |granted: &Granted| now.saturating_sub(granted.delivery.looked) > self.clocked(LOOKED_MAX);
        let granted = claimed.iter_mut().filter_map(|it| match it {
            Asked::Granted(granted) if old(granted) => Some(granted),
            _ => None,
        });
        let mut granted: Vec<&mut Granted> = granted.collect();
        if granted.is_empty() {
            return Some(claimed);
        }
        let legs: Vec<_> = granted.iter().map(|granted| granted.delivery.leg.clone()).collect();
        let records: Vec<_> = legs.iter().map(|leg| &leg.record).collect();
        let known = self.look(desk, &records).await?;
        for (granted, known) in granted.iter_mut().zip(known) {
            granted.delivery = granted.delivery.clone().refreshed(&known, self.elapsed());
        }
        Some(claimed)
    }

    /// The longest that a call for it may take, and a margin, on the clock.
    fn lease(&self, delivery: &Delivery) -> Duration {
        self.clocked(self.provider(delivery).map_or(Duration::ZERO, |provider| provider.timeout()) + LEASE_MARGIN)
    }
}

/// The attempt that goes out though the ledger does not know of it.
fn unclaimed(delivery: Delivery, owner: Arc<str>, now: Instant) -> Granted {
    let phase = Phase::Pending { owner: owner.clone(), lease_until: now };
    let entry = Entry::of(Attempt { number: delivery.known + 1, phase });
    Granted { delivery, owner, entry, under: None }
}
