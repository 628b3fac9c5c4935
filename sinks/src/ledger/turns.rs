//! One call to the ledger at a time, for all who share it.
//!
//! A lane with thousands of deliveries in flight settles each provider's answer by itself. Sent as they
//! come, those calls would wait for each other in the connection, and their time would run out there although
//! the ledger is well. So callers wait here: whoever has the turn asks for all who wait, [`ENTRIES_MAX`]
//! entries at most, and the others find their answers. A ledger that is slow makes calls larger and the lane
//! slower; time runs for one call only. Claims, settlements and looks take turns each among themselves.
//!
//! Claims and settlements may be asked for twice, so whoever had the turn may be dropped in the middle of
//! it: those it asked for ask again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tidings_schemas::time::Instant;
use tokio::sync::oneshot;

use super::{Claim, Claimed, Entry, Incarnation, Key, Ledger, LedgerError, Settle};
use crate::log::TopicPartition;

/// Entries in one call. A store that works through one call after the other, as Redis does, is held for less
/// than a millisecond by it: that is what a critical call may have to wait for, once for every lane.
pub(crate) const ENTRIES_MAX: usize = 64;

/// A ledger, asked by one caller at a time.
pub(crate) struct Turns {
    ledger: Arc<dyn Ledger>,
    claims: Queue<Claim, Claimed>,
    settles: Queue<Settle, bool>,
    looks: Queue<Key, Option<Entry>>,
}

impl Turns {
    pub(crate) fn new(ledger: Arc<dyn Ledger>) -> Self {
        Self { ledger, claims: Queue::default(), settles: Queue::default(), looks: Queue::default() }
    }
}

/// Asks `$ask` for pieces of `$questions`, each in its turn.
macro_rules! in_turn {
    ($queue:expr, $incarnation:expr, $questions:expr, $now:expr, |$batch:ident| $ask:expr) => {{
        let mut all = Vec::with_capacity($questions.len());
        for questions in $questions.chunks(ENTRIES_MAX) {
            let mut place = $queue.wait($incarnation, questions, $now);
            let answers = loop {
                let $batch = match $queue.turn(&mut place).await {
                    Turn::Over(answers) => break answers?,
                    Turn::Ours(batch) => batch,
                };
                let answers = $ask.await;
                $batch.tell(answers);
            };
            all.extend(answers);
        }
        Ok(all)
    }};
}

#[async_trait]
impl Ledger for Turns {
    async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
        self.ledger.incarnation(now).await
    }

    async fn claim(
        &self,
        incarnation: &Incarnation,
        claims: &[Claim],
        now: Instant,
    ) -> Result<Vec<Claimed>, LedgerError> {
        in_turn!(self.claims, incarnation, claims, now, |it| self.ledger.claim(&it.believed, &it.questions, it.now))
    }

    async fn settle(
        &self,
        incarnation: &Incarnation,
        settles: &[Settle],
        now: Instant,
    ) -> Result<Vec<bool>, LedgerError> {
        in_turn!(self.settles, incarnation, settles, now, |it| self.ledger.settle(&it.believed, &it.questions, it.now))
    }

    async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
        in_turn!(self.looks, incarnation, keys, Instant(0), |it| self.ledger.look(&it.believed, &it.questions))
    }

    async fn passed(
        &self,
        incarnation: &Incarnation,
        lane: &TopicPartition,
        said_through: u64,
        now: Instant,
    ) -> Result<(), LedgerError> {
        self.ledger.passed(incarnation, lane, said_through, now).await
    }
}

type Answers<A> = Result<Vec<A>, LedgerError>;

/// Who waits for a turn.
struct Queue<Q, A> {
    waiting: Mutex<VecDeque<Waiting<Q, A>>>,
    turn: tokio::sync::Mutex<()>,
}

struct Waiting<Q, A> {
    believed: Incarnation,
    questions: Vec<Q>,
    now: Instant,
    told: oneshot::Sender<Answers<A>>,
}

/// A caller's place in the queue.
struct Place<'a, Q, A> {
    believed: &'a Incarnation,
    questions: &'a [Q],
    now: Instant,
    told: oneshot::Receiver<Answers<A>>,
}

enum Turn<'a, Q, A> {
    /// The answers to one's own questions are there.
    Over(Answers<A>),
    /// It is one's own turn: to ask these.
    Ours(Batch<'a, Q, A>),
}

/// What is asked in one call.
struct Batch<'a, Q, A> {
    believed: Incarnation,
    questions: Vec<Q>,
    now: Instant,
    callers: Vec<(usize, oneshot::Sender<Answers<A>>)>,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl<Q, A> Default for Queue<Q, A> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<Q: Clone, A> Queue<Q, A> {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Waiting<Q, A>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, believed: &'a Incarnation, questions: &'a [Q], now: Instant) -> Place<'a, Q, A> {
        Place { believed, questions, now, told: self.enter(believed, questions, now) }
    }

    fn enter(&self, believed: &Incarnation, questions: &[Q], now: Instant) -> oneshot::Receiver<Answers<A>> {
        let (told, answers) = oneshot::channel();
        self.waiting().push_back(Waiting { believed: believed.clone(), questions: questions.to_vec(), now, told });
        answers
    }

    async fn turn(&self, place: &mut Place<'_, Q, A>) -> Turn<'_, Q, A> {
        let turn = tokio::select! {
            biased;
            answers = &mut place.told => match answers {
                Ok(answers) => return Turn::Over(answers),
                // Whoever asked for us was dropped.
                Err(_) => {
                    place.told = self.enter(place.believed, place.questions, place.now);
                    self.turn.lock().await
                }
            },
            turn = self.turn.lock() => turn,
        };
        match place.told.try_recv() {
            Ok(answers) => return Turn::Over(answers),
            Err(oneshot::error::TryRecvError::Closed) => {
                place.told = self.enter(place.believed, place.questions, place.now);
            }
            Err(oneshot::error::TryRecvError::Empty) => {}
        }
        let mut waiting = self.waiting();
        let mut batch = Batch {
            believed: waiting.front().map_or_else(|| place.believed.clone(), |first| first.believed.clone()),
            questions: Vec::new(),
            now: place.now,
            callers: Vec::new(),
            _turn: turn,
        };
        // In their order, those who believe the same. Nobody has more than fit; the earliest clock holds, so
        // that no lease runs out early.
        while let Some(first) = waiting.pop_front_if(|it| {
            it.believed == batch.believed && batch.questions.len() + it.questions.len() <= ENTRIES_MAX
        }) {
            if first.told.is_closed() {
                continue;
            }
            batch.now = batch.now.min(first.now);
            batch.callers.push((first.questions.len(), first.told));
            batch.questions.extend(first.questions);
        }
        Turn::Ours(batch)
    }
}

impl<Q, A> Batch<'_, Q, A> {
    fn tell(self, answers: Answers<A>) {
        let mut answers = answers.map(Vec::into_iter);
        for (count, told) in self.callers {
            let theirs = match &mut answers {
                Ok(answers) => Ok(answers.take(count).collect()),
                Err(error) => Err(error.clone()),
            };
            // Nobody listens any more where the caller was dropped.
            let _ = told.send(theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tidings_schemas::ids::DeliveryId;
    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    use super::*;
    use crate::ledger::{Bucket, MemoryLedger};

    /// A ledger that answers when it is let, and counts.
    struct Gated {
        inner: MemoryLedger,
        let_through: Semaphore,
        calls: AtomicUsize,
        at_once: AtomicUsize,
        entries_max: AtomicUsize,
    }

    impl Gated {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                inner: MemoryLedger::default(),
                let_through: Semaphore::new(0),
                calls: AtomicUsize::new(0),
                at_once: AtomicUsize::new(0),
                entries_max: AtomicUsize::new(0),
            })
        }
    }

    #[async_trait]
    impl Ledger for Gated {
        async fn incarnation(&self, now: Instant) -> Result<Incarnation, LedgerError> {
            self.inner.incarnation(now).await
        }

        async fn claim(
            &self,
            incarnation: &Incarnation,
            claims: &[Claim],
            now: Instant,
        ) -> Result<Vec<Claimed>, LedgerError> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.entries_max.fetch_max(claims.len(), Ordering::SeqCst);
            assert_eq!(self.at_once.fetch_add(1, Ordering::SeqCst), 0, "two calls at once");
            let _leaves = Leaves(&self.at_once);
            self.let_through.acquire().await.unwrap().forget();
            self.inner.claim(incarnation, claims, now).await
        }

        async fn settle(
            &self,
            incarnation: &Incarnation,
            settles: &[Settle],
            now: Instant,
        ) -> Result<Vec<bool>, LedgerError> {
            self.inner.settle(incarnation, settles, now).await
        }

        async fn look(&self, incarnation: &Incarnation, keys: &[Key]) -> Result<Vec<Option<Entry>>, LedgerError> {
            self.inner.look(incarnation, keys).await
        }

        async fn passed(
            &self,
            incarnation: &Incarnation,
            lane: &TopicPartition,
            said_through: u64,
            now: Instant,
        ) -> Result<(), LedgerError> {
            self.inner.passed(incarnation, lane, said_through, now).await
        }
    }

    struct Leaves<'a>(&'a AtomicUsize);

    impl Drop for Leaves<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn claims(from: u8, count: u8) -> Vec<Claim> {
        let of = |number: u8| Claim {
            key: Key { delivery: DeliveryId([number; 16]), bucket: Bucket::Own },
            owner: format!("owner{number}").into(),
            lease_until: Instant(1000),
            attempts_before: 0,
        };
        (from..from + count).map(of).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_callers_share_a_few_calls_and_each_gets_its_own_answers() {
        let ledger = Gated::new();
        let turns = Arc::new(Turns::new(ledger.clone()));
        let believed = turns.incarnation(Instant(0)).await.unwrap();
        let mut callers = JoinSet::new();
        for number in 0..100 {
            let (turns, believed) = (turns.clone(), believed.clone());
            callers.spawn(async move { (number, turns.claim(&believed, &claims(number, 1), Instant(0)).await) });
        }
        // Paused time moves on only when everybody waits.
        tokio::time::sleep(Duration::from_millis(1)).await;
        ledger.let_through.add_permits(100);
        while let Some(answered) = callers.join_next().await {
            let (number, answers) = answered.unwrap();
            let Ok([Claimed::Granted(entry)]) = answers.as_deref() else { panic!("{number}: {answers:?}") };
            assert!(entry.newest().line().contains(&format!("owner{number}")), "{entry:?} is not {number}'s");
        }
        // The first went alone; the others waited for it.
        let calls = ledger.calls.load(Ordering::SeqCst);
        assert_eq!((calls, ledger.entries_max.load(Ordering::SeqCst)), (3, ENTRIES_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_with_many_entries_asks_in_pieces_and_in_order() {
        let ledger = Gated::new();
        ledger.let_through.add_permits(10);
        let turns = Turns::new(ledger.clone());
        let believed = turns.incarnation(Instant(0)).await.unwrap();
        let answers = turns.claim(&believed, &claims(0, 200), Instant(0)).await.unwrap();
        for (number, answer) in answers.iter().enumerate() {
            let Claimed::Granted(entry) = answer else { panic!("{answer:?}") };
            assert!(entry.newest().line().ends_with(&format!("owner{number}")), "{entry:?} is not {number}'s");
        }
        assert_eq!((answers.len(), ledger.calls.load(Ordering::SeqCst)), (200, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_in_its_turn_takes_nobody_along() {
        let ledger = Gated::new();
        let turns = Arc::new(Turns::new(ledger.clone()));
        let believed = turns.incarnation(Instant(0)).await.unwrap();
        let mut callers = JoinSet::new();
        for (number, patience) in [(0, 1000), (1, 300), (2, 1000)] {
            let (turns, believed) = (turns.clone(), believed.clone());
            callers.spawn(async move {
                let asked = claims(number, 1);
                let asked = turns.claim(&believed, &asked, Instant(0));
                (number, tokio::time::timeout(Duration::from_millis(patience), asked).await)
            });
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The first is answered; the second asks for the third, too, and gives up.
        ledger.let_through.add_permits(1);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(ledger.entries_max.load(Ordering::SeqCst), 2);
        ledger.let_through.add_permits(10);
        while let Some(answered) = callers.join_next().await {
            let (number, answers) = answered.unwrap();
            assert_eq!(answers.is_err(), number == 1, "{number}: {answers:?}");
            assert!(answers.is_err() || matches!(answers.unwrap().as_deref(), Ok([Claimed::Granted(_)])), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_incarnation_is_not_asked_under_the_same_word() {
        let ledger = Gated::new();
        ledger.let_through.add_permits(10);
        let turns = Turns::new(ledger.clone());
        let believed = turns.incarnation(Instant(0)).await.unwrap();
        let (old, mine, theirs) = (Incarnation("lost".into()), claims(0, 1), claims(1, 1));
        let (mine, theirs) =
            tokio::join!(turns.claim(&believed, &mine, Instant(0)), turns.claim(&old, &theirs, Instant(0)));
        assert!(matches!(mine.as_deref(), Ok([Claimed::Granted(_)])), "{mine:?}");
        assert_eq!(theirs, Err(LedgerError::Lost));
    }
}
