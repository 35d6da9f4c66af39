//! Planted bugs, each of which the simulator must find. Compiled with the feature `mutants` only, which is for its tests.
//!
//! A bug stands at its real place, in a branch named after it; none is active before a test plants it in its thread.

use std::cell::Cell;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// What was computed for an older chain goes down the hop of the newer.
    AcceptOldEpoch,
    /// What was computed for a chain before stays in the journal beyond what was kept.
    ForgetToRewind,
    /// A frame that came before is computed again.
    ApplyStepTwice,
    /// A new neighbour is not sent the last rows that it lacks.
    DropLastJournalPart,
    /// What a session's end has freed is freed again with the stream.
    ReleaseTwice,
    /// The last token that was shown is left out of those fed, so that it is sampled again.
    ResampleShown,
    /// Rows of tokens that were not accepted stay in caches.
    KeepUnaccepted,
    /// A new tail is not told what was generated before it came.
    ForgetHistory,
    /// A token that the driver heard is taken though the new tail, which looks back, was not told.
    TakeHeardUntold,
    /// A token that the driver heard is shown though it was shown before.
    ShowHeardTwice,
    /// A driver that goes on is fed from the first token.
    FeedFromStart,
    /// An entry is told to others before it is on the disk.
    TellBeforeStored,
    /// A stage says that it leaves, and nobody heeds it.
    IgnoreLeaving,
    /// What one of several chains has computed is shown though others are to be heard.
    ShowUncompared,
    /// Of chains that differ, those that most agree with are taken for wrong.
    BelieveTheFewest,
}

impl Mutant {
    /// Every bug.
    pub const ALL: [Self; 15] = [
        Self::AcceptOldEpoch,
        Self::ForgetToRewind,
        Self::ApplyStepTwice,
        Self::DropLastJournalPart,
        Self::ReleaseTwice,
        Self::ResampleShown,
        Self::KeepUnaccepted,
        Self::ForgetHistory,
        Self::TakeHeardUntold,
        Self::ShowHeardTwice,
        Self::FeedFromStart,
        Self::TellBeforeStored,
        Self::IgnoreLeaving,
        Self::ShowUncompared,
        Self::BelieveTheFewest,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Plants a bug in everything that this thread does from now on, or takes it out again.
pub fn plant(mutant: Option<Mutant>) {
    PLANTED.set(mutant);
}

/// Whether the bug is planted.
pub fn is_planted(mutant: Mutant) -> bool {
    PLANTED.get() == Some(mutant)
}
