//! One lane of the queue: requesters take turns of a number of positions (deficit round robin).

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

use crate::amounts::Position;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::scheduler::Batch;
use crate::scheduler::Item;
use crate::scheduler::Piece;
use crate::scheduler::stage_of;

/// The most that one step counts, so that a turn is found in a bounded number of rounds (arbitrary).
const MAX_CHARGE: u64 = 4_096;

/// What positions take of their requester's credit.
fn charge(positions: Position) -> u64 {
    u64::from(positions.0).clamp(1, MAX_CHARGE)
}

/// One requester's steps, oldest first.
#[derive(Clone, Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Positions that it may still take.
    credit: u64,
}

impl Waiting {
    /// The oldest step that the batch has room for and that overtakes none of its stage, and how much of it.
    fn next(&self, batch: &Batch) -> Option<(usize, Position)> {
        let mut passed_over = BTreeSet::new();
        self.items.iter().enumerate().find_map(|(index, item)| {
            let granted = batch.grant(item).filter(|_| !passed_over.contains(&stage_of(item)));
            if granted.is_none() {
                passed_over.insert(stage_of(item));
            }
            Some((index, granted?))
        })
    }

    /// Takes so many positions of a step.
    fn cut(&mut self, index: usize, positions: Position) -> Option<Piece> {
        let waiting = self.items.get_mut(index)?;
        let item = Item { positions, ..*waiting };
        waiting.positions = waiting.positions.minus(positions);
        let whole = waiting.positions == Position::ZERO;
        if whole {
            self.items.remove(index);
        }
        Some(Piece { item, whole })
    }
}

/// Steps of one kind.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    /// Positions that a turn gives.
    turn: u64,
    waiting: BTreeMap<PeerKey, Waiting>,
    /// Whose turn it is, and who follows; everyone in `waiting` once.
    ring: VecDeque<PeerKey>,
    /// Whether the first of the ring was given this turn's credit.
    begun: bool,
    length: usize,
    positions: Position,
}

impl Lane {
    pub(super) fn new(turn: u64) -> Self {
        let (waiting, ring) = (BTreeMap::new(), VecDeque::new());
        Self { turn, waiting, ring, begun: false, length: 0, positions: Position::ZERO }
    }

    pub(super) fn push(&mut self, item: Item) {
        let waiting = self.waiting.entry(item.requester).or_default();
        if waiting.items.is_empty() {
            self.ring.push_back(item.requester);
        }
        waiting.items.push_back(item);
        self.length += 1;
        self.positions = self.positions.plus(item.positions);
    }

    /// Takes what goes next of what the batch has room for.
    pub(super) fn take(&mut self, batch: &Batch) -> Option<Piece> {
        loop {
            let (ahead, (index, granted)) = self.next(batch)?;
            if ahead > 0 {
                self.pass(ahead);
            }
            let requester = *self.ring.front()?;
            let waiting = self.waiting.get_mut(&requester)?;
            if !self.begun {
                waiting.credit = waiting.credit.saturating_add(self.turn);
                self.begun = true;
            }
            if let Some(rest) = waiting.credit.checked_sub(charge(granted)) {
                waiting.credit = rest;
                let piece = waiting.cut(index, granted)?;
                self.length -= usize::from(piece.whole);
                self.positions = self.positions.minus(granted);
                self.leave_if_done(requester);
                return Some(piece);
            }
            self.ring.rotate_left(1);
            self.begun = false;
        }
    }

    /// The first requester of the ring with something that the batch has room for, and what. If there is none the ring stays as it
    /// is, so that the next batch begins with whose turn it is.
    fn next(&self, batch: &Batch) -> Option<(usize, (usize, Position))> {
        let mut places = self.ring.iter().enumerate();
        places.find_map(|(ahead, requester)| Some((ahead, self.waiting.get(requester)?.next(batch)?)))
    }

    /// Ends the turns of the first `count` requesters, who have nothing else for this batch. What they leave of a turn is not kept
    /// for ever, or whoever asks for little could later ask for much at once.
    fn pass(&mut self, count: usize) {
        for requester in self.ring.iter().take(count) {
            if let Some(waiting) = self.waiting.get_mut(requester) {
                waiting.credit = waiting.credit.min(self.turn);
            }
        }
        self.ring.rotate_left(count);
        self.begun = false;
    }

    pub(super) fn remove(&mut self, session: SessionId) -> usize {
        let before = self.length;
        for waiting in self.waiting.values_mut() {
            waiting.items.retain(|item| item.key.session != session);
        }
        let left = |waiting: &Waiting| waiting.items.iter().map(|item| item.positions).sum::<Position>();
        self.length = self.waiting.values().map(|waiting| waiting.items.len()).sum();
        self.positions = self.waiting.values().map(left).sum();
        let emptied = self.waiting.iter().filter(|(_, waiting)| waiting.items.is_empty());
        for requester in emptied.map(|(&requester, _)| requester).collect::<Vec<_>>() {
            self.leave_if_done(requester);
        }
        before - self.length
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn positions(&self) -> Position {
        self.positions
    }

    /// How many steps of `requester` wait.
    pub(super) fn waiting(&self, requester: PeerKey) -> usize {
        self.waiting.get(&requester).map_or(0, |waiting| waiting.items.len())
    }

    /// Takes a requester without steps off the ring; its credit is not kept for another day.
    fn leave_if_done(&mut self, requester: PeerKey) {
        if self.waiting.get(&requester).is_some_and(|waiting| !waiting.items.is_empty()) {
            return;
        }
        self.waiting.remove(&requester);
        if self.ring.front() == Some(&requester) {
            self.begun = false;
        }
        self.ring.retain(|other| *other != requester);
    }
}
