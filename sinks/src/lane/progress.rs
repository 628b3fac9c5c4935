//! How far one lane partition was read and settled, and what a commit of it may say.
//!
//! A commit stands at the first record that is not settled. Beside it stand the highest mark *below
//! it* (a mark further on would make the reader drop records between the two as repeats, unsent), the
//! ledger's incarnation, and what is known of its last loss. A record is called only under an incarnation that
//! such a commit names ([`Progress::names`]): whoever comes next then knows what it was called under, however
//! soon after it the reader died and the ledger lost everything.
//!
//! A record may stand in a lane twice: an append whose acknowledgement was lost is made again, and the critical
//! path says again what it had not committed. The ledger knows the second one, unless it was lost in
//! between. So after a loss a record is suspect as well that may repeat an earlier one: of an epoch no later than
//! those that were read before, or, on the critical path, of an event that is older than the loss. A retry record names
//! the word under which its last attempt was claimed: what it repeats was called under that one or a later one. Of
//! the suspect ones that are called the attempt before is said to be unknown; too many of them for a moment, rather
//! than too few.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use tidings_schemas::deliberate::{self, Bug};
use tidings_schemas::time::Instant;

use super::metrics::Reached;
use crate::ledger::Incarnation;
use crate::log::Commit;

/// The word beside a committed offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<u64>,
    /// That records are called under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ledger: Option<Incarnation>,
    /// The highest epoch that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<Lost>,
}

impl Metadata {
    fn of(commit: &Commit) -> Self {
        serde_json::from_str(&commit.metadata).unwrap_or_default()
    }
}

/// How a record tells whether it may repeat one that was read before a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Its epoch.
    Epoch(u64),
    /// A critical one's event came in then.
    Event(Instant),
    /// It waits in a retry topic, and names the ledger's word under which its last attempt was claimed, if it was.
    Attempt(Option<Incarnation>),
}

/// A loss of the ledger that may concern records still to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lost {
    #[serde(rename = "ledger")]
    incarnation: Incarnation,
    /// What lies below was read, or may have been in flight.
    end: u64,
    /// The highest epoch among it, as far as it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<u64>,
    /// When it was noticed.
    at: Instant,
}

impl Lost {
    fn concerns(&self, offset: u64, sign: &Sign) -> bool {
        let repeats = match sign {
            Sign::Epoch(epoch) => self.epoch.is_some_and(|before| *epoch <= before),
            Sign::Event(came) => *came <= self.at,
            Sign::Attempt(_) => false,
        };
        offset < self.end || repeats
    }
}

/// The progress of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The offset after the last one read.
    next: u64,
    /// Read and not settled.
    open: BTreeSet<u64>,
    /// The highest mark read: what it passed is a repeat from here on.
    mark: Option<u64>,
    /// Rises of the highest mark at offsets that no commit has passed.
    rises: VecDeque<(u64, u64)>,
    /// The highest mark below every commit from now on.
    mark_below: Option<u64>,
    /// The incarnation that new records are read under.
    ledger: Incarnation,
    /// The highest epoch read.
    epoch: Option<u64>,
    /// Where the partition ended when this began: what lies below was in the hands of those before.
    inherited: u64,
    lost: Option<Lost>,
    committed: Option<Commit>,
    /// The incarnation that the commit names.
    named: Option<Incarnation>,
}

impl Progress {
    /// Goes on from `commit`; without one from `start`. `end` is the partition's end now: what lies below
    /// it may have been in flight when the ledger was lost.
    pub(crate) fn resume(commit: Option<&Commit>, start: u64, end: u64, ledger: Incarnation, now: Instant) -> Self {
        let Metadata { mark, ledger: before, epoch, lost } = commit.map(Metadata::of).unwrap_or_default();
        let named = before.clone();
        // A ledger that nobody heard yet may be the one that was: what is known of losses stays.
        let unheard = ledger == Incarnation::unheard();
        let ledger = before.clone().filter(|_| unheard).unwrap_or(ledger);
        let before = before.filter(|before| before.is_lost(&ledger));
        Self {
            next: commit.map_or(start, |commit| commit.offset),
            open: BTreeSet::new(),
            mark,
            rises: VecDeque::new(),
            mark_below: mark,
            ledger,
            epoch,
            inherited: end,
            // What an earlier loss concerns lies below the end as well.
            lost: before.map(|incarnation| Lost { incarnation, end, epoch, at: now }).or(lost),
            committed: commit.cloned(),
            named,
        }
    }

    /// A mark was read.
    pub(crate) fn marked(&mut self, offset: u64, said_through: u64) {
        self.next = offset + 1;
        if self.mark.is_none_or(|mark| mark < said_through) {
            self.mark = Some(said_through);
            self.rises.push_back((offset, said_through));
        }
    }

    /// Whether a record of `epoch` that is read now is a repeat.
    pub(crate) fn is_repeat(&self, epoch: u64) -> bool {
        self.mark.is_some_and(|mark| epoch <= mark)
    }

    /// A record was read that needs nothing done.
    pub(crate) fn passed(&mut self, offset: u64) {
        self.next = offset + 1;
    }

    /// A record was read and is in flight from here on; says under which incarnation.
    pub(crate) fn took(&mut self, offset: u64, sign: &Sign) -> Incarnation {
        self.next = offset + 1;
        let believed = match (&self.lost, sign) {
            // Whatever it repeats was called after that attempt: under the same word, or a later one.
            (_, Sign::Attempt(Some(under))) => under.clone(),
            (Some(lost), sign) if lost.concerns(offset, sign) => lost.incarnation.clone(),
            _ => self.ledger.clone(),
        };
        if let Sign::Epoch(epoch) = *sign {
            self.epoch = self.epoch.max(Some(epoch));
            if let Some(lost) = self.lost.as_mut().filter(|lost| offset < lost.end) {
                lost.epoch = lost.epoch.max(Some(epoch));
            }
        }
        self.open.insert(offset);
        believed
    }

    /// A record is settled.
    pub(crate) fn settled(&mut self, offset: u64) {
        self.open.remove(&offset);
    }

    /// Whether the log has a commit that names this incarnation: only then may anything be called under it. Under none
    /// the ledger grants nothing.
    pub(crate) fn names(&self, ledger: &Incarnation) -> bool {
        *ledger == Incarnation::unheard() || self.named.as_ref() == Some(ledger)
    }

    /// The ledger is of this incarnation for what is read from here on.
    pub(crate) fn refounded(&mut self, ledger: Incarnation, now: Instant) {
        if ledger == Incarnation::unheard() {
            return;
        }
        if self.ledger.is_lost(&ledger) {
            let incarnation = std::mem::replace(&mut self.ledger, ledger);
            // Whatever an earlier loss concerns, and is still to be read, this one concerns as well.
            let end = self.lost.as_ref().map_or(0, |lost| lost.end).max(self.next).max(self.inherited);
            self.lost = Some(Lost { incarnation, end, epoch: self.epoch, at: now });
        } else {
            self.ledger = ledger;
        }
    }

    /// For people: how far it has come.
    pub(crate) fn reached(&self) -> Reached {
        let committed = self.committed.as_ref().map_or(0, |commit| commit.offset);
        Reached { position: self.next, committed, open: self.open.len() as u64 }
    }

    /// What a commit would say now.
    pub(crate) fn commit(&mut self) -> Commit {
        let open = self.open.first().filter(|_| !deliberate::has(Bug::CommittedPastTheUnsettled));
        let offset = open.map_or(self.next, |offset| *offset);
        while let Some((_, said_through)) = self.rises.pop_front_if(|(at, _)| *at < offset) {
            self.mark_below = Some(said_through);
        }
        let (ledger, epoch, lost) = (Some(self.ledger.clone()), self.epoch, self.lost.clone());
        let metadata = Metadata { mark: self.mark_below, ledger, epoch, lost };
        Commit { offset, metadata: serde_json::to_string(&metadata).unwrap_or_default() }
    }

    /// As [`Progress::commit`], if it says anything new.
    pub(crate) fn news(&mut self) -> Option<Commit> {
        let commit = self.commit();
        (self.committed.as_ref() != Some(&commit)).then_some(commit)
    }

    /// The log has `commit`. Returns the mark that now stands below it, where that rose.
    pub(crate) fn committed(&mut self, commit: Commit) -> Option<u64> {
        let before = self.committed.as_ref().and_then(|it| Metadata::of(it).mark);
        let Metadata { mark, ledger, .. } = Metadata::of(&commit);
        (self.committed, self.named) = (Some(commit), ledger);
        mark.filter(|_| before != mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant(1_000);

    fn word(word: &str) -> Incarnation {
        Incarnation(word.into())
    }

    fn said(progress: &mut Progress) -> String {
        let Commit { offset, metadata } = progress.commit();
        format!("{offset} {metadata}")
    }

    #[test]
    fn a_commit_stands_at_the_first_open_record_and_names_only_marks_below_it() {
        let mut progress = Progress::resume(None, 10, 10, word("a"), T0);
        assert_eq!(said(&mut progress), r#"10 {"ledger":"a"}"#);
        progress.took(10, &Sign::Epoch(10));
        progress.took(11, &Sign::Epoch(11));
        progress.marked(12, 5);
        progress.took(13, &Sign::Epoch(13));
        progress.settled(11);
        progress.settled(13);
        assert!(progress.is_repeat(5) && !progress.is_repeat(6));
        assert_eq!(said(&mut progress), r#"10 {"ledger":"a","epoch":13}"#, "the mark lies beyond the commit");
        progress.settled(10);
        assert_eq!(said(&mut progress), r#"14 {"mark":5,"ledger":"a","epoch":13}"#);
    }

    #[test]
    fn a_restart_keeps_the_mark_and_a_lower_one_changes_nothing() {
        let mut progress = Progress::resume(None, 0, 0, word("a"), T0);
        progress.marked(0, 7);
        progress.marked(1, 3);
        let commit = progress.news().unwrap();
        assert_eq!(progress.committed(commit.clone()), Some(7));
        assert_eq!(progress.news(), None);
        let mut progress = Progress::resume(Some(&commit), 0, 9, word("a"), T0);
        assert!(progress.is_repeat(7));
        progress.marked(2, 9);
        let commit = progress.news().unwrap();
        assert_eq!(progress.committed(commit), Some(9));
    }

    #[test]
    fn what_was_in_flight_when_the_ledger_was_lost_stays_suspect_until_it_is_settled() {
        let mut progress = Progress::resume(None, 0, 0, word("a"), T0);
        progress.took(0, &Sign::Epoch(0));
        let commit = progress.commit();
        // The ledger is lost while nobody runs: everything up to the end may have been in flight.
        let mut progress = Progress::resume(Some(&commit), 0, 2, word("b"), T0);
        assert_eq!(
            [progress.took(0, &Sign::Epoch(0)), progress.took(1, &Sign::Epoch(1)), progress.took(2, &Sign::Epoch(2))],
            [word("a"), word("a"), word("b")]
        );
        progress.settled(0);
        let lost = r#"{"ledger":"a","end":2,"epoch":1,"at":"1970-01-01T00:00:01Z"}"#;
        assert_eq!(said(&mut progress), format!(r#"1 {{"ledger":"b","epoch":2,"lost":{lost}}}"#));
        // Lost again while running.
        progress.refounded(word("c"), T0);
        assert_eq!(progress.took(3, &Sign::Epoch(3)), word("c"));
        progress.settled(1);
        let lost = r#"{"ledger":"b","end":3,"epoch":2,"at":"1970-01-01T00:00:01Z"}"#;
        assert_eq!(said(&mut progress), format!(r#"2 {{"ledger":"c","epoch":3,"lost":{lost}}}"#));
        progress.settled(2);
        progress.settled(3);
        assert_eq!(said(&mut progress), format!(r#"4 {{"ledger":"c","epoch":3,"lost":{lost}}}"#));
    }

    #[test]
    fn a_word_is_named_once_the_log_has_the_commit() {
        let mut progress = Progress::resume(None, 0, 0, word("a"), T0);
        assert!(!progress.names(&word("a")), "nobody committed it");
        let commit = progress.news().unwrap();
        progress.committed(commit.clone());
        assert!(progress.names(&word("a")));
        progress.refounded(word("b"), T0);
        assert!(!progress.names(&word("b")));
        let progress = Progress::resume(Some(&commit), 0, 0, word("a"), T0);
        assert!(progress.names(&word("a")), "the one before committed it");
    }

    #[test]
    fn what_the_one_before_had_in_its_hands_is_suspect_though_the_ledger_was_lost_later() {
        let mut progress = Progress::resume(None, 0, 3, word("a"), T0);
        progress.refounded(word("b"), T0);
        for (offset, sign, expected) in
            [(0, Sign::Epoch(5), "a"), (2, Sign::Epoch(6), "a"), (3, Sign::Epoch(6), "a"), (4, Sign::Epoch(7), "b")]
        {
            assert_eq!(progress.took(offset, &sign), word(expected), "{offset} {sign:?}");
        }
    }

    #[test]
    fn a_ledger_that_is_not_heard_yet_makes_nobody_forget_a_loss() {
        let mut progress = Progress::resume(None, 0, 1, word("a"), T0);
        progress.refounded(word("b"), T0);
        let commit = progress.commit();
        for heard in ["b", "c"] {
            let mut next = Progress::resume(Some(&commit), 0, 1, Incarnation::unheard(), T0);
            assert!(next.names(&Incarnation::unheard()), "critical does without");
            next.refounded(Incarnation::unheard(), T0);
            next.refounded(word(heard), T0);
            assert!(next.took(0, &Sign::Epoch(1)).is_lost(&word(heard)), "{heard}");
        }
    }

    #[test]
    fn who_comes_after_a_loss_that_another_one_noticed_knows_what_it_concerns() {
        let mut progress = Progress::resume(None, 0, 0, word("a"), T0);
        progress.took(0, &Sign::Epoch(5));
        progress.took(1, &Sign::Epoch(6));
        progress.refounded(word("b"), T0);
        let noticed = progress.commit();
        // Nobody notices this one.
        let mut unnoticed = Progress::resume(None, 0, 0, word("a"), T0);
        unnoticed.took(0, &Sign::Epoch(6));
        unnoticed.settled(0);
        let unnoticed = unnoticed.commit();
        for (commit, end, offset, sign, expected) in [
            (&noticed, 2, 1, Sign::Epoch(6), "a"),
            (&noticed, 2, 2, Sign::Epoch(6), "a"),
            (&noticed, 2, 2, Sign::Event(T0), "a"),
            (&noticed, 9, 2, Sign::Epoch(7), "b"),
            (&unnoticed, 1, 1, Sign::Epoch(6), "a"),
            (&unnoticed, 1, 1, Sign::Epoch(7), "b"),
        ] {
            let mut next = Progress::resume(Some(commit), 0, end, word("b"), T0);
            assert_eq!(next.took(offset, &sign), word(expected), "{commit:?}, {offset}, {sign:?}");
        }
    }

    #[test]
    fn what_may_repeat_a_record_from_before_a_loss_is_suspect_wherever_it_stands() {
        let after = Instant(T0.0 + 1);
        // Lost while it runs: epochs up to 5 were read before.
        let mut progress = Progress::resume(None, 0, 0, word("a"), Instant(0));
        progress.took(0, &Sign::Epoch(5));
        progress.refounded(word("b"), T0);
        for (offset, sign, expected) in [
            (1, Sign::Epoch(5), "a"),
            (2, Sign::Epoch(6), "b"),
            (3, Sign::Event(T0), "a"),
            (4, Sign::Event(after), "b"),
            (5, Sign::Attempt(None), "b"),
            (6, Sign::Attempt(Some(word("a"))), "a"),
            (7, Sign::Attempt(Some(word("b"))), "b"),
            (8, Sign::Attempt(Some(word("c"))), "c"),
        ] {
            assert_eq!(progress.took(offset, &sign), word(expected), "{sign:?}");
        }
        // Lost while nobody ran: the highest epoch below the end is known once it is read.
        progress.settled(0);
        let commit = progress.commit();
        let mut progress = Progress::resume(Some(&commit), 0, 3, word("c"), T0);
        for (offset, sign, expected) in [
            (1, Sign::Epoch(5), "b"),
            (2, Sign::Epoch(6), "b"),
            (3, Sign::Epoch(6), "b"),
            (4, Sign::Epoch(7), "c"),
            (5, Sign::Event(T0), "b"),
            (6, Sign::Event(after), "c"),
        ] {
            assert_eq!(progress.took(offset, &sign), word(expected), "{sign:?}");
        }
    }
}
