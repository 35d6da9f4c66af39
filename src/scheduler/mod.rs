//! Which waiting step the engine takes next.
//!
//! Decode steps go first, since somebody reads along; prefill gets its turn after a bounded number of them. Between
//! requesters the one that was served the fewest positions goes first. Steps of one stage of one session never
//! overtake each other.

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;

/// Names a waiting step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepKey {
    /// The session.
    pub session: SessionId,
    /// The stage that computes.
    pub stage: StageIndex,
    /// The chain's version.
    pub epoch: Epoch,
    /// The step.
    pub step: Step,
}

/// What kind of step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The next token's.
    Decode,
    /// A chunk of a prompt, or of a replay.
    Prefill,
}

/// A step that waits for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which step.
    pub key: StepKey,
    /// Whose session it is.
    pub requester: PeerKey,
    /// What kind it is.
    pub kind: Kind,
    /// How many positions it computes.
    pub positions: Position,
    /// When it came.
    pub enqueued: Time,
}

/// The bounds and the pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Steps that may wait.
    pub capacity: usize,
    /// Steps of one requester that may wait, so that none can fill the queue alone.
    pub per_requester: usize,
    /// Decode steps taken in a row while prefill waits.
    pub decodes_per_prefill: u32,
}

/// No room for another step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// In the whole queue.
    #[error("the queue is full: {capacity} steps wait")]
    Queue {
        /// Steps that may wait.
        capacity: usize,
    },
    /// For this requester.
    #[error("the requester's part of the queue is full: {per_requester} of its steps wait")]
    Requester {
        /// Steps of one requester that may wait.
        per_requester: usize,
    },
}

/// A step taken from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The step.
    pub item: Item,
    /// How long it waited.
    pub waited: Span,
}

/// The steps that wait for one engine.
#[derive(Clone, Debug)]
pub struct Scheduler {}

impl Scheduler {
    /// An empty queue.
    pub fn new(config: SchedulerConfig) -> Self {
        todo!("{config:?}")
    }

    /// Adds a step.
    ///
    /// # Errors
    /// [`Full`] if it may not wait here; the queue is as before.
    pub fn push(&mut self, item: Item) -> Result<(), Full> {
        todo!("{item:?}")
    }

    /// Takes the step that goes next.
    pub fn pop(&mut self, now: Time) -> Option<Taken> {
        todo!("{now:?}")
    }

    /// Takes out every step of a session, and says how many there were.
    pub fn remove(&mut self, session: SessionId) -> usize {
        todo!("{session}")
    }

    /// How many steps wait.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
