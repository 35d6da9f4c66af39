//! Leaving: from the word to stop until nobody needs this peer any more, or cannot be waited for.

use tokio::sync::oneshot;

use crate::amounts::Span;
use crate::amounts::Time;

/// How long others get to take over what they have here, and the user's own answers to end. With what follows it stays below
/// the ten seconds that a stop may take in all.
pub(super) const DRAIN_LIMIT: Span = Span::seconds(8);

/// Whether the peer is about to stop, and who waits for that.
#[derive(Debug, Default)]
pub(super) struct Departure {
    until: Option<Time>,
    asked: Vec<oneshot::Sender<()>>,
}

impl Departure {
    /// Takes note of the word to stop; the first sets the limit.
    pub(super) fn ask(&mut self, reply: oneshot::Sender<()>, now: Time) {
        self.until.get_or_insert(now.after(DRAIN_LIMIT));
        // Whoever has gone needs no answer, and leaves the place to another.
        self.asked.retain(|asked| !asked.is_closed());
        self.asked.push(reply);
    }

    /// Whether the peer may go: nobody needs it any more, or the limit is over.
    pub(super) fn is_over(&self, is_drained: bool, now: Time) -> bool {
        self.until.is_some_and(|until| is_drained || until <= now)
    }

    /// When the limit is over, if the peer is about to stop.
    pub(super) const fn until(&self) -> Option<Time> {
        self.until
    }

    /// Tells everyone who waits that the peer has stopped.
    pub(super) fn over(self) {
        for reply in self.asked {
            // Whoever asked may have gone.
            let _ = reply.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_nobody_needs_goes_at_once_and_one_that_is_needed_at_the_limit() {
        let mut departure = Departure::default();
        assert!(!departure.is_over(true, Time(5)), "nobody asked");

        let (first, mut told) = oneshot::channel();
        departure.ask(first, Time(5));
        let (second, _) = oneshot::channel();
        departure.ask(second, Time(900));

        assert!(departure.is_over(true, Time(5)));
        assert!(!departure.is_over(false, Time(5)));
        let limit = Time(5).after(DRAIN_LIMIT);
        assert_eq!(departure.until(), Some(limit));
        assert!(departure.is_over(false, limit));
        assert!(told.try_recv().is_err());
        departure.over();
        assert_eq!(told.try_recv(), Ok(()));
    }
}
