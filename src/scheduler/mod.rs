//! Which waiting step the engine takes next.
//!
//! Decode steps go first, since somebody reads along; prefill gets its turn after a bounded number of them. In either
//! lane requesters take turns, each for as many positions as the others. Steps of one stage of one session never
//! overtake each other.

mod lane;

use std::collections::BTreeMap;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::scheduler::lane::Lane;

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

impl Default for SchedulerConfig {
    /// Arbitrary.
    fn default() -> Self {
        Self { capacity: 4_096, per_requester: 1_024, decodes_per_prefill: 8 }
    }
}

/// Positions that a requester decodes in one turn: steps of one position alternate between requesters.
const DECODE_TURN: u64 = 1;

/// Positions that a requester prefills in one turn (arbitrary; about a chunk).
const PREFILL_TURN: u64 = 128;

/// The steps that wait for one engine.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    decode: Lane,
    prefill: Lane,
    /// In which lane the steps of each stage of a session wait, and how many.
    stages: BTreeMap<(SessionId, StageIndex), (Kind, usize)>,
    /// Steps taken from the decode lane since prefill last had its turn.
    decodes: u32,
}

impl Scheduler {
    /// An empty queue.
    pub fn new(config: SchedulerConfig) -> Self {
        Self {
            config,
            decode: Lane::new(DECODE_TURN),
            prefill: Lane::new(PREFILL_TURN),
            stages: BTreeMap::new(),
            decodes: 0,
        }
    }

    /// Adds a step.
    ///
    /// # Errors
    /// [`Full`] if it may not wait here; the queue is as before.
    pub fn push(&mut self, item: Item) -> Result<(), Full> {
        let SchedulerConfig { capacity, per_requester, .. } = self.config;
        if self.len() >= capacity {
            return Err(Full::Queue { capacity });
        }
        if self.decode.waiting(item.requester) + self.prefill.waiting(item.requester) >= per_requester {
            return Err(Full::Requester { per_requester });
        }
        // Where steps of its own stage wait already, a step joins them, so that none overtakes another.
        let (kind, count) = self.stages.entry((item.key.session, item.key.stage)).or_insert((item.kind, 0));
        *count += 1;
        match kind {
            Kind::Decode => self.decode.push(item),
            Kind::Prefill => self.prefill.push(item),
        }
        Ok(())
    }

    /// Takes the step that goes next.
    pub fn pop(&mut self, now: Time) -> Option<Taken> {
        let item = match self.turn() {
            Kind::Decode => {
                self.decodes = self.decodes.saturating_add(1);
                self.decode.pop()?
            }
            Kind::Prefill => {
                self.decodes = 0;
                self.prefill.pop()?
            }
        };
        let stage = (item.key.session, item.key.stage);
        if let Some((_, count)) = self.stages.get_mut(&stage) {
            *count -= 1;
            if *count == 0 {
                self.stages.remove(&stage);
            }
        }
        Some(Taken { item, waited: now.since(item.enqueued) })
    }

    /// Takes out every step of a session, and says how many there were.
    pub fn remove(&mut self, session: SessionId) -> usize {
        self.stages.retain(|(of, _), _| *of != session);
        self.decode.remove(session) + self.prefill.remove(session)
    }

    /// How many steps wait.
    pub fn len(&self) -> usize {
        self.decode.len() + self.prefill.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many positions wait: with the time of one, how long a new step would.
    pub fn positions(&self) -> Position {
        self.decode.positions().plus(self.prefill.positions())
    }

    fn turn(&self) -> Kind {
        let patient = self.decodes < self.config.decodes_per_prefill;
        if self.prefill.len() == 0 || (patient && self.decode.len() > 0) { Kind::Decode } else { Kind::Prefill }
    }
}

#[cfg(test)]
mod tests;
