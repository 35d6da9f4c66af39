//! An engine that does not come back: a device that hangs, a disk that does not answer, a thread that waits for ever.
//!
//! Its peer still answers pings, so nobody else can tell it from one that computes for long. It knows itself what it has handed over and
//! how long that usually takes: it gives up its leases, so that answers go on elsewhere at once, and takes no new ones until the
//! engine is back.

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::node::Node;
use crate::session::stage::LeasedStage;

/// No batch is given up sooner (arbitrary: a machine that is short of memory or shared with others may stand still for seconds).
const LEAST: Span = Span::seconds(10);

/// A batch is given up when each of its positions has taken so many times as long as whole batches do (arbitrary; a batch of one position is
/// the slowest way to compute one).
const TIMES_USUAL: u64 = 8;

/// How long the first batches may take, when nothing is known: they read the weights from the disk.
const FIRST: Span = Span::seconds(600);

/// Watches what the engine has.
#[derive(Debug, Default)]
pub(super) struct Watch {
    due: Option<Time>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Well,
    Stuck,
}

impl Watch {
    /// The engine has got a batch of so many positions; one usually takes `usual`, if that is known.
    pub(super) fn handed_over(&mut self, positions: Position, usual: Span, now: Time) {
        let bound = match usual {
            Span::ZERO => FIRST,
            usual => usual.times(TIMES_USUAL).times(u64::from(positions.0)).clamp(LEAST, FIRST),
        };
        self.due = Some(now.after(bound));
    }

    /// The engine has nothing any more. Whether it was stuck.
    pub(super) fn is_back(&mut self) -> bool {
        std::mem::take(self).state == State::Stuck
    }

    /// When it is to be back.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.due
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.state == State::Stuck
    }

    /// Whether it should have been back; says so once.
    fn is_overdue(&mut self, now: Time) -> bool {
        let is_overdue = self.due.take_if(|due| *due <= now).is_some();
        if is_overdue {
            self.state = State::Stuck;
        }
        is_overdue
    }
}

impl Node {
    /// Gives up all leases if the engine does not come back.
    pub(super) fn watch_engine(&mut self, now: Time) {
        if self.stages.watch.is_overdue(now) {
            for key in self.stages.leased.keys().copied().collect::<Vec<_>>() {
                self.with_stage(key, now, LeasedStage::on_engine_stuck);
            }
            self.profile_changed(now);
        }
    }

    /// Serves again once the engine is back.
    pub(super) fn welcome_engine(&mut self, now: Time) {
        if self.stages.has_landed() && self.stages.watch.is_back() {
            self.profile_changed(now);
        }
    }

    /// Whether the engine does not come back with what it has.
    pub fn is_stuck(&self) -> bool {
        self.stages.watch.is_stuck()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Time = Time(1_000);

    #[test]
    fn a_batch_may_take_several_times_as_long_as_usual_and_ten_seconds_in_any_case() {
        let due = |positions, usual| {
            let mut watch = Watch::default();
            watch.handed_over(Position(positions), usual, T0);
            watch.deadline().unwrap().since(T0)
        };

        assert_eq!(due(1, Span::millis(50)), LEAST);
        assert_eq!(due(128, Span::millis(50)), Span::millis(50 * 8 * 128));
        assert_eq!(due(512, Span::seconds(5)), FIRST);
        assert_eq!(due(1, Span::ZERO), FIRST);
    }

    #[test]
    fn it_is_stuck_once_and_until_it_is_back() {
        let mut watch = Watch::default();
        watch.handed_over(Position(1), Span::millis(1), T0);

        assert!(!watch.is_overdue(T0.after(Span::seconds(9))));
        assert!(watch.is_overdue(T0.after(LEAST)) && watch.is_stuck());
        assert!(!watch.is_overdue(T0.after(LEAST)));
        assert_eq!(watch.deadline(), None);
        assert!(watch.is_back() && !watch.is_stuck());
        assert!(!watch.is_back());
    }
}
