//! Which waiting steps the engine takes next, together: a batch goes through a stage in one pass.
//!
//! Decode steps go first, all that wait, since each has a reader; prompts fill the rest of the batch, and less of it while
//! readers wait, so that these don't stall. Neither starves the other, as each batch has room for both. This peer's own work goes
//! before that of peers it trusts, and theirs before everybody else's; whoever goes last still gets a part of each batch. Among
//! steps of a kind and class requesters take turns, each for as many positions as the others. Steps of one stage of one session never overtake
//! each other, and a batch has one of them at most.

mod lane;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::Step;
use crate::scheduler::lane::Lane;
use crate::units::UnitRange;

/// Names a waiting step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepKey {
    /// The session.
    pub session: SessionId,
    /// The units of the stage that computes.
    pub range: UnitRange,
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

/// Whose work it is: the more important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// This peer's own.
    Own,
    /// That of peers on its allow-list.
    Trusted,
    /// Anybody's.
    Other,
}

impl Class {
    /// All of them, the most important first.
    pub const ALL: [Self; 3] = [Self::Own, Self::Trusted, Self::Other];
}

/// A step that waits for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which step.
    pub key: StepKey,
    /// Whose session it is.
    pub requester: PeerKey,
    /// How important it is.
    pub class: Class,
    /// What kind it is.
    pub kind: Kind,
    /// How many positions it computes.
    pub positions: Position,
    /// When it came.
    pub enqueued: Time,
}

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Steps that may wait.
    pub capacity: usize,
    /// Steps of one requester that may wait, so that none can fill the queue alone.
    pub per_requester: usize,
    /// What a batch may hold.
    pub budget: Budget,
}

/// What a batch may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Decode steps.
    pub decodes: usize,
    /// Positions of prompts, if there are no readers.
    pub positions: Position,
    /// Positions of prompts while there are readers.
    pub beside_decodes: Position,
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

/// A step taken from the queue, or a piece of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The step; its positions are those to compute.
    pub item: Item,
    /// How long it waited.
    pub waited: Span,
}

impl Default for SchedulerConfig {
    /// Arbitrary.
    fn default() -> Self {
        Self { capacity: 4_096, per_requester: 1_024, budget: Budget::default() }
    }
}

impl Default for Budget {
    /// Arbitrary: enough positions that products and not the reading of weights take the time of a prompt's pass, few enough
    /// that a 1B model on two cores passes in two seconds, and in a quarter of one while readers wait; as many decode
    /// steps as keep the logits of a large vocabulary below 40 MB.
    fn default() -> Self {
        Self { decodes: 64, positions: Position(512), beside_decodes: Position(64) }
    }
}

/// Positions that a requester decodes in one turn: steps of one position alternate between requesters.
const DECODE_TURN: u64 = 1;

/// Positions that a requester prefills in one turn (arbitrary; about a chunk).
const PREFILL_TURN: u64 = 128;

/// Of what a batch may hold, a class whose steps wait gets at least one part in so many, however much goes before it (arbitrary).
const FLOOR: u32 = 8;

/// A batch waits for this part of its length for readers whose steps are on their way (arbitrary: little against what one
/// more pass for a late step costs).
const PATIENCE: u64 = 16;

/// What is shorter is not waited for: timers of the house are no finer.
const LEAST_PATIENCE: Span = Span::millis(1);

/// The longest that a batch waits (arbitrary: steps that one peer sends together arrive within it).
const MOST_PATIENCE: Span = Span::millis(4);

/// The steps that wait for one engine.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    /// By class, the most important first.
    lanes: [Lanes; Class::ALL.len()],
    /// In which lane the steps of each stage of a session wait, and how many.
    stages: BTreeMap<(SessionId, UnitRange), (Kind, usize)>,
    /// Since when steps have waited without a break.
    waiting_since: Option<Time>,
}

impl Scheduler {
    /// An empty queue.
    pub fn new(config: SchedulerConfig) -> Self {
        let lanes = Class::ALL.map(|_| Lanes { decode: Lane::new(DECODE_TURN), prefill: Lane::new(PREFILL_TURN) });
        Self { config, lanes, stages: BTreeMap::new(), waiting_since: None }
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
        if self.lanes.iter().map(|lanes| lanes.waiting(item.requester)).sum::<usize>() >= per_requester {
            return Err(Full::Requester { per_requester });
        }
        // Where steps of its own stage wait already, a step joins them, so that none overtakes another.
        let (kind, count) = self.stages.entry((item.key.session, item.key.range)).or_insert((item.kind, 0));
        *count += 1;
        let lanes = &mut self.lanes[item.class as usize];
        match kind {
            Kind::Decode => lanes.decode.push(item),
            Kind::Prefill => lanes.prefill.push(item),
        }
        self.waiting_since.get_or_insert(item.enqueued);
        Ok(())
    }

    /// When the next batch is to be taken, if anything waits: at once if every reader's step does, else a moment after the
    /// engine could have begun. A batch costs little more than its longest step, so steps that come one after another from
    /// the same place go together.
    ///
    /// - `idle`: since when the engine has had nothing to do
    /// - `pass`: how long a batch takes
    /// - `readers`: stages whose next step is a decode step, or will be
    pub fn due(&self, idle: Time, pass: Span, readers: usize) -> Option<Time> {
        let from = idle.max(self.waiting_since?);
        let patience = Span(pass.0 / PATIENCE).min(MOST_PATIENCE);
        let gathers = self.decodes() < readers && patience >= LEAST_PATIENCE;
        Some(if gathers { from.after(patience) } else { from })
    }

    /// Takes the steps that go next, together. A step with more positions than there is room for is taken in pieces,
    /// of which the rest stays where it waits.
    ///
    /// - `readers`: stages whose next step is a decode step, or will be; while there are any, prompts get less room, also when
    ///   none waits at this very moment
    pub fn take_batch(&mut self, readers: usize, now: Time) -> Vec<Taken> {
        let Budget { decodes, positions, beside_decodes } = self.config.budget;
        let room = if readers > 0 || self.decodes() > 0 { beside_decodes } else { positions };
        // A batch has room for something, or nothing would ever go.
        let whole = Room { decodes: decodes.max(1), positions: room.max(Position(1)) };
        let mut batch = Batch { left: whole, kept: Room::default(), stages: BTreeSet::new() };
        let mut taken = Vec::new();
        let mut floors = self.floors(whole);
        for class in Class::ALL {
            floors[class as usize] = Room::default();
            batch.kept = floors.iter().copied().fold(Room::default(), Room::plus);
            self.fill(class, &mut batch, &mut taken, now);
        }
        // What the others left of their parts.
        batch.kept = Room::default();
        Class::ALL.into_iter().for_each(|class| self.fill(class, &mut batch, &mut taken, now));
        self.note_if_empty();
        taken
    }

    /// Takes of one class what goes next, as long as there is room beside what is kept for others.
    fn fill(&mut self, class: Class, batch: &mut Batch, taken: &mut Vec<Taken>, now: Time) {
        while let Some(Piece { item, whole }) = self.lanes[class as usize].take(batch) {
            batch.add(&item);
            if whole {
                self.forget(stage_of(&item));
            }
            taken.push(Taken { item, waited: now.since(item.enqueued) });
        }
    }

    /// What of a batch each class gets at least; nothing of one too small for parts, so that the most important is always in it.
    fn floors(&self, whole: Room) -> [Room; Class::ALL.len()] {
        let part = |waiting: usize, all: u32| if waiting > 0 { all / FLOOR } else { 0 };
        let decodes = u32::try_from(whole.decodes).unwrap_or(u32::MAX);
        self.lanes.each_ref().map(|lanes| Room {
            decodes: part(lanes.decode.len(), decodes) as usize,
            positions: Position(part(lanes.prefill.len(), whole.positions.0)),
        })
    }

    /// Takes out every step of a session, and says how many there were.
    pub fn remove(&mut self, session: SessionId) -> usize {
        self.stages.retain(|(of, _), _| *of != session);
        let removed = self
            .lanes
            .iter_mut()
            .map(|lanes| lanes.decode.remove(session) + lanes.prefill.remove(session))
            .sum::<usize>();
        self.note_if_empty();
        removed
    }

    /// Whether a step of the stage waits, or the rest of one.
    pub fn holds(&self, session: SessionId, range: UnitRange) -> bool {
        self.stages.contains_key(&(session, range))
    }

    /// How many steps wait.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lanes| lanes.decode.len() + lanes.prefill.len()).sum()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many positions wait: with the time of one, how long a new step would.
    pub fn positions(&self) -> Position {
        self.lanes.iter().map(|lanes| lanes.decode.positions().plus(lanes.prefill.positions())).sum()
    }

    fn decodes(&self) -> usize {
        self.lanes.iter().map(|lanes| lanes.decode.len()).sum()
    }

    fn note_if_empty(&mut self) {
        if self.is_empty() {
            self.waiting_since = None;
        }
    }

    fn forget(&mut self, stage: (SessionId, UnitRange)) {
        if let Some((_, count)) = self.stages.get_mut(&stage) {
            *count -= 1;
            if *count == 0 {
                self.stages.remove(&stage);
            }
        }
    }
}

fn stage_of(item: &Item) -> (SessionId, UnitRange) {
    (item.key.session, item.key.range)
}

/// The steps of one class.
#[derive(Clone, Debug)]
struct Lanes {
    decode: Lane,
    prefill: Lane,
}

impl Lanes {
    fn take(&mut self, batch: &Batch) -> Option<Piece> {
        self.decode.take(batch).or_else(|| self.prefill.take(batch))
    }

    fn waiting(&self, requester: PeerKey) -> usize {
        self.decode.waiting(requester) + self.prefill.waiting(requester)
    }
}

/// A step as a lane gives it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// With the positions taken.
    item: Item,
    /// Whether nothing of the step is left.
    whole: bool,
}

/// What a batch that is being filled has room for.
#[derive(Debug)]
struct Batch {
    left: Room,
    /// What of it is for others than those that are asked.
    kept: Room,
    /// Those that have a step in it.
    stages: BTreeSet<(SessionId, UnitRange)>,
}

/// Room for steps.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    decodes: usize,
    positions: Position,
}

impl Room {
    fn plus(self, other: Self) -> Self {
        Self { decodes: self.decodes + other.decodes, positions: self.positions.plus(other.positions) }
    }
}

impl Batch {
    /// How many positions of the step may be taken, if any.
    fn grant(&self, item: &Item) -> Option<Position> {
        let positions = self.left.positions.minus(self.kept.positions);
        let room = match item.kind {
            Kind::Decode if self.left.decodes <= self.kept.decodes => return None,
            Kind::Decode => item.positions,
            Kind::Prefill if positions == Position::ZERO => return None,
            Kind::Prefill => item.positions.min(positions),
        };
        (!self.stages.contains(&stage_of(item))).then_some(room)
    }

    fn add(&mut self, item: &Item) {
        match item.kind {
            Kind::Decode => self.left.decodes -= 1,
            Kind::Prefill => self.left.positions = self.left.positions.minus(item.positions),
        }
        self.stages.insert(stage_of(item));
    }
}

#[cfg(test)]
mod tests;
