//! A stage's own hop: what goes down it, what was not taken up yet, and what may have to be sent again.

use bytes::Bytes;

use crate::amounts::Position;
use crate::ids::Step;
use crate::ids::StreamId;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::stage::WINDOW;
use crate::session::stage::journal::Journal;

/// Hidden states of some positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    /// The position of the first.
    pub(super) first: Position,
    /// How many.
    pub(super) count: u32,
    /// Row by row.
    pub(super) payload: Bytes,
}

impl Rows {
    /// The position after the last.
    pub(super) fn end(&self) -> Position {
        self.first.plus(Position(self.count))
    }

    /// Those before `end`.
    pub(super) fn until(mut self, end: Position, row_bytes: usize) -> Self {
        self.count = self.count.min(end.minus(self.first).0);
        self.payload.truncate(self.count as usize * row_bytes);
        self
    }

    /// Those from `first` on.
    pub(super) fn since(mut self, first: Position, row_bytes: usize) -> Self {
        let skipped = first.minus(self.first).0.min(self.count);
        let _ = self.payload.split_to((skipped as usize * row_bytes).min(self.payload.len()));
        self.first = self.first.plus(Position(skipped));
        self.count -= skipped;
        self
    }
}

/// The way to the downstream neighbour. Its stream is that of one chain; what was computed stays.
#[derive(Debug)]
pub(super) struct Outflow {
    stream: Option<StreamId>,
    opened: bool,
    next: Step,
    /// The first step that the neighbour has not taken up.
    untaken: Step,
    row_bytes: usize,
    /// None if there was no room for it, and at the tail.
    journal: Option<Journal>,
    /// What the neighbour has: rows before are not sent.
    lacks_from: Position,
    /// What is to be sent again: from the first position to the second.
    replay: (Position, Position),
}

/// The neighbour acknowledged what was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeverSent;

/// The neighbour lacks what the journal does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotJournalled;

impl Outflow {
    pub(super) fn new(stream: StreamId, row_bytes: usize, journal: Option<Journal>) -> Self {
        Self {
            stream: Some(stream),
            opened: false,
            next: Step(0),
            untaken: Step(0),
            row_bytes,
            journal,
            lacks_from: Position::ZERO,
            replay: (Position::ZERO, Position::ZERO),
        }
    }

    /// Goes over to the hop of a newer chain; the stream that it had, if it has one.
    pub(super) fn reopen(&mut self, stream: StreamId) -> Option<StreamId> {
        (self.opened, self.next, self.untaken) = (false, Step(0), Step(0));
        self.replay = (Position::ZERO, Position::ZERO);
        self.stream.replace(stream)
    }

    /// Rows before `keep` stay; the neighbour lacks those from `lacks_from` on.
    ///
    /// # Errors
    /// [`NotJournalled`] if it lacks rows that were forgotten.
    pub(super) fn resume(&mut self, keep: Position, lacks_from: Position) -> Result<(), NotJournalled> {
        match &mut self.journal {
            Some(journal) => journal.truncate(keep),
            None if lacks_from < keep => return Err(NotJournalled),
            // All is computed again, and there may be room this time.
            None if keep == Position::ZERO => self.journal = Some(Journal::new(self.row_bytes)),
            None => {}
        }
        self.lacks_from = lacks_from;
        self.replay = (lacks_from, keep.max(lacks_from));
        Ok(())
    }

    /// The neighbour holds the lease that names this stage.
    pub(super) fn opened(&mut self) {
        self.opened = true;
    }

    /// The stream has ended, or is to; it, if it had not.
    pub(super) fn lose(&mut self) -> Option<StreamId> {
        self.opened = false;
        self.stream.take()
    }

    /// Takes rows that were computed; those that the neighbour lacks, if any.
    pub(super) fn computed(&mut self, rows: Rows) -> Option<Rows> {
        if let Some(journal) = &mut self.journal {
            journal.push(rows.clone());
        }
        let lacking = rows.since(self.lacks_from, self.row_bytes);
        (lacking.count > 0).then_some(lacking)
    }

    /// The next rows to be sent again, at most `most`, if the neighbour can take them.
    pub(super) fn replay(&mut self, most: u32) -> Option<Rows> {
        if !self.opened || self.in_window() >= WINDOW {
            return None;
        }
        let (first, end) = self.replay;
        #[cfg(feature = "mutants")]
        if is_planted(Mutant::DropLastJournalPart) && first < end && end.minus(first).0 <= most {
            self.replay.0 = end;
            return None;
        }
        let rows = self.journal.as_ref()?.rows(first, end, most)?;
        self.replay.0 = rows.end();
        Some(rows)
    }

    /// The number of the frame that is about to be sent.
    pub(super) fn send(&mut self) -> Step {
        let step = self.next;
        self.next = step.next();
        step
    }

    /// Everything up to and with `step` was taken up.
    pub(super) fn taken(&mut self, step: Step) -> Result<(), NeverSent> {
        if step >= self.next {
            return Err(NeverSent);
        }
        self.untaken = self.untaken.max(step.next());
        Ok(())
    }

    pub(super) fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    pub(super) fn is_opened(&self) -> bool {
        self.opened
    }

    /// Whether one more frame may be sent once `coming` others were, and all that was to be sent again.
    pub(super) fn has_room(&self, coming: usize) -> bool {
        self.opened && !self.is_replaying() && self.in_window().saturating_add(coming) < WINDOW
    }

    pub(super) fn is_replaying(&self) -> bool {
        self.replay.0 < self.replay.1
    }

    /// Whether all rows that were computed can be had again.
    pub(super) fn is_journalled(&self) -> bool {
        self.journal.is_some()
    }

    /// What the journal holds.
    pub(super) fn journal_bytes(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::bytes)
    }

    /// Forgets the journal, unless it is being sent.
    pub(super) fn evict(&mut self) {
        if !self.is_replaying() {
            self.journal = None;
        }
    }

    fn in_window(&self) -> usize {
        usize::try_from(self.next.0.saturating_sub(self.untaken.0)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(first: u32, values: &[u8]) -> Rows {
        Rows { first: Position(first), count: values.len() as u32, payload: Bytes::copy_from_slice(values) }
    }

    fn opened() -> Outflow {
        let mut hop = Outflow::new(StreamId(0), 1, Some(Journal::new(1)));
        hop.opened();
        hop
    }

    #[test]
    fn the_window_is_what_was_sent_and_not_taken_up() {
        let mut hop = opened();
        let steps: Vec<Step> = (0..WINDOW).map(|_| hop.send()).collect();

        assert!(!hop.has_room(0));
        hop.taken(steps[1]).unwrap();
        assert!(hop.has_room(1));
        assert!(!hop.has_room(2));
        // A late acknowledgement of an earlier step moves nothing back.
        hop.taken(steps[0]).unwrap();
        assert!(hop.has_room(1));
        assert_eq!(hop.taken(Step(WINDOW as u64)), Err(NeverSent));
    }

    #[test]
    fn a_new_neighbour_gets_what_it_lacks_before_anything_is_computed() {
        let mut hop = opened();
        hop.computed(rows(0, &[0, 1, 2, 3, 4]));
        hop.reopen(StreamId(2));

        hop.resume(Position(4), Position(1)).unwrap();

        assert!(hop.replay(2).is_none(), "before the hop is open");
        hop.opened();
        assert_eq!(hop.replay(2), Some(rows(1, &[1, 2])));
        assert!(!hop.has_room(0));
        assert_eq!(hop.replay(2), Some(rows(3, &[3])));
        assert_eq!(hop.replay(2), None);
        assert!(hop.has_room(0));
        assert_eq!(hop.computed(rows(4, &[9])), Some(rows(4, &[9])));
    }

    #[test]
    fn a_neighbour_is_not_sent_what_it_has() {
        let mut hop = opened();

        hop.resume(Position(0), Position(3)).unwrap();

        assert_eq!(hop.computed(rows(0, &[0, 1])), None);
        assert_eq!(hop.computed(rows(2, &[2, 3, 4])), Some(rows(3, &[3, 4])));
    }

    #[test]
    fn what_was_forgotten_cannot_be_sent_again_but_computed() {
        let mut hop = opened();
        hop.computed(rows(0, &[0, 1, 2]));

        hop.evict();

        assert_eq!(hop.resume(Position(3), Position(1)), Err(NotJournalled));
        assert_eq!(hop.resume(Position(3), Position(3)), Ok(()));
        assert!(!hop.is_journalled());
        assert_eq!(hop.resume(Position(0), Position(0)), Ok(()));
        assert!(hop.is_journalled());
    }
}
