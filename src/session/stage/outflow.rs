//! A stage's own hop: what was sent down it and not taken up yet.

use crate::ids::Step;
use crate::ids::StreamId;
use crate::session::stage::WINDOW;

/// The hop that a stage opened to its downstream neighbour.
#[derive(Debug)]
pub(super) struct Outflow {
    pub(super) stream: StreamId,
    opened: bool,
    next: Step,
    /// The first step that the neighbour has not taken up.
    untaken: Step,
}

/// The neighbour acknowledged what was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeverSent;

impl Outflow {
    pub(super) fn new(stream: StreamId) -> Self {
        Self { stream, opened: false, next: Step(0), untaken: Step(0) }
    }

    /// The neighbour holds the lease that names this stage.
    pub(super) fn opened(&mut self) {
        self.opened = true;
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

    pub(super) fn is_opened(&self) -> bool {
        self.opened
    }

    /// Whether one more frame may be sent once `coming` others were.
    pub(super) fn has_room(&self, coming: usize) -> bool {
        let waiting = self.next.0.saturating_sub(self.untaken.0);
        usize::try_from(waiting).unwrap_or(usize::MAX).saturating_add(coming) < WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_what_was_sent_and_not_taken_up() {
        let mut hop = Outflow::new(StreamId(0));
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
}
