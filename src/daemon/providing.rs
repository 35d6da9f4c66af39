//! Names this peer in the DHT as one that can describe a model and gives its weights, so that whoever knows nothing but the id finds it.

use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::ModelId;

/// How often to say it again: who is responsible for a key comes and goes (arbitrary; records are kept for much longer).
const AGAIN: Span = Span::seconds(600);

/// How long after a peer has come to say it to it, too, so that several that come at once are told together (arbitrary).
const GATHER: Span = Span::seconds(5);

/// The least time between two times that it is said because a peer has come (arbitrary).
const PAUSE: Span = Span::seconds(60);

/// What is said in the DHT.
#[derive(Debug, Default)]
pub(super) struct Providing {
    models: BTreeSet<ModelId>,
    last: Option<Time>,
    due: Option<Time>,
}

impl Providing {
    /// A model is given to others from now on, or not any more. Whether that was otherwise before.
    pub(super) fn set(&mut self, model: ModelId, is_given: bool, now: Time) -> bool {
        let changed = if is_given { self.models.insert(model) } else { self.models.remove(&model) };
        if changed && is_given {
            self.say_by(now.after(GATHER));
        }
        changed
    }

    /// A peer has come, which may be responsible for some of the keys.
    pub(super) fn peer_came(&mut self, now: Time) {
        let earliest = self.last.map_or(now, |last| last.after(PAUSE));
        self.say_by(now.after(GATHER).max(earliest));
    }

    /// When to come back.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.due.filter(|_| !self.models.is_empty())
    }

    /// What is to be said now.
    pub(super) fn due(&mut self, now: Time) -> Vec<ModelId> {
        if self.deadline().is_none_or(|due| now < due) {
            return Vec::new();
        }
        (self.last, self.due) = (Some(now), Some(now.after(AGAIN)));
        self.models.iter().copied().collect()
    }

    fn say_by(&mut self, time: Time) {
        self.due = Some(self.due.map_or(time, |due| due.min(time)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_when_there_is_something_to_say_and_somebody_to_hear_it() {
        let at = |seconds| Time::ZERO.after(Span::seconds(seconds));
        let (one, other) = (ModelId::new([1; 32]), ModelId::new([2; 32]));
        let mut providing = Providing::default();
        providing.peer_came(at(1));
        assert_eq!((providing.deadline(), providing.due(at(100))), (None, vec![]));

        assert!(providing.set(one, true, at(100)) && !providing.set(one, true, at(100)));
        assert_eq!(providing.due(at(100)), [one]);
        assert!(providing.set(other, true, at(110)));
        assert_eq!((providing.due(at(114)), providing.due(at(115))), (vec![], vec![one, other]));

        // Not for each of many that come, and in any case once in a while.
        providing.peer_came(at(116));
        assert_eq!(providing.deadline(), Some(at(175)));
        assert_eq!(providing.due(at(175)).len(), 2);
        assert_eq!(providing.deadline(), Some(at(775)));
        assert!(providing.set(one, false, at(200)) && providing.set(other, false, at(200)));
        assert_eq!(providing.deadline(), None);
    }
}
