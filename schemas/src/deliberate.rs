//! Bugs that the simulator puts in, one at a time, to prove that it would find them.
//!
//! Without the feature `deliberate-bugs` nothing here is more than a constant `false`. With it a bug
//! is one thread's, because the simulator runs on one thread and its tests on many.

/// A bug that can be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// An epoch's outputs are said before its cut is durable.
    SaidBeforeTheCut,
    /// Blocks are read in the order in which they arrived.
    ArrivalOrder,
    /// A generation goes on though another one writes the cut log.
    UnfencedZombie,
    /// A checkpoint counts before its epoch was said.
    CheckpointBeforeSaid,
    /// Cuts up to the newest checkpoint are deleted, not up to the second-newest.
    DeletedBelowTheNewest,
    /// A changed key is missing in what an epoch leaves.
    ForgottenDirtyKey,
    /// Timers are not put back.
    TimerLostOnRestore,
    /// A send is counted twice against a limit.
    CountedTwice,
    /// Whoever meets a claim takes it for a send, as SET NX before the call would.
    ClaimTakenAsSent,
    /// A lease that ran out is not said to be `unknown`.
    LostLeaseNotSaid,
    /// Nobody asks again right before the call whether it is still wanted.
    ConsentNotAskedAgain,
    /// What was read of a lane is committed, settled or not.
    CommittedPastTheUnsettled,
    /// A starter reads the cut log, and then begins.
    BegunAfterReading,
    /// What a cut takes is neither counted nor summed up, so that a replay of other records is not noticed.
    UncountedCuts,
}

impl Bug {
    /// Those that a seed finds.
    pub const ALL: [Self; 12] = [
        Self::SaidBeforeTheCut,
        Self::ArrivalOrder,
        Self::UnfencedZombie,
        Self::CheckpointBeforeSaid,
        Self::DeletedBelowTheNewest,
        Self::ForgottenDirtyKey,
        Self::TimerLostOnRestore,
        Self::CountedTwice,
        Self::ClaimTakenAsSent,
        Self::LostLeaseNotSaid,
        Self::ConsentNotAskedAgain,
        Self::CommittedPastTheUnsettled,
    ];

    /// Those that only the search through all orders of events is sure to find.
    pub const SEARCHED: [Self; 2] = [Self::BegunAfterReading, Self::UncountedCuts];
}

#[cfg(feature = "deliberate-bugs")]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Puts a bug in, or takes it out again, on this thread; returns what was there.
    pub fn put(bug: Option<Bug>) -> Option<Bug> {
        BUG.replace(bug)
    }

    /// Whether this bug was put in.
    #[must_use]
    pub fn has(bug: Bug) -> bool {
        BUG.get() == Some(bug)
    }
}

#[cfg(not(feature = "deliberate-bugs"))]
mod switch {
    use super::Bug;

    /// Whether this bug was put in: never, in a build without them.
    #[must_use]
    pub const fn has(_: Bug) -> bool {
        false
    }
}

pub use switch::*;
