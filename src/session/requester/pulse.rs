//! How quickly a stage answers, and from when on its silence means that it is lost.

use crate::amounts::Span;
use crate::amounts::Time;

/// The bound of a stage that has not answered yet.
pub const SILENCE: Span = Span::seconds(3);

/// The shortest bound: what a busy machine may need to come round to an answer (arbitrary). With a ping a second, a stage that
/// stands still is missed after three.
const SHORTEST: Span = Span::seconds(2);

/// The longest bound: a reader waits for no stage that is slower (arbitrary).
const LONGEST: Span = Span::seconds(10);

/// How many times as long as expected an answer may take (arbitrary).
const MARGIN: u64 = 4;

/// What is known of a stage's answers to pings. Smoothed as round trips are for retransmission (RFC 6298 §2).
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    /// The newest ping and when it was sent.
    newest: (u64, Time),
    /// Since when it is waited for a word; none if there was one since it was last asked.
    asked: Option<Time>,
    /// Smoothed time to an answer and its deviation, once measured.
    pace: Option<(Span, Span)>,
}

impl Pulse {
    /// Of a stage that has just been asked for something.
    pub(super) fn new(now: Time) -> Self {
        Self { newest: (0, now), asked: Some(now), pace: None }
    }

    /// It is asked whether it lives.
    pub(super) fn pinged(&mut self, number: u64, now: Time) {
        self.newest = (number, now);
        self.asked.get_or_insert(now);
    }

    /// It said something.
    pub(super) fn heard(&mut self) {
        self.asked = None;
    }

    /// It answered a ping. Only the newest one's time is known.
    pub(super) fn answered(&mut self, number: u64, now: Time) {
        if self.newest.0 == number {
            let took = now.since(self.newest.1);
            self.pace = Some(match self.pace {
                None => (took, Span(took.0 / 2)),
                Some((smoothed, deviation)) => {
                    let off = Span(smoothed.0.abs_diff(took.0));
                    (Span((7 * smoothed.0 + took.0) / 8), Span((3 * deviation.0 + off.0) / 4))
                }
            });
        }
    }

    /// When it is lost, if nothing is heard from it. It has been asked before.
    pub(super) fn lost_at(&self) -> Option<Time> {
        self.asked.map(|asked| asked.after(self.bound()))
    }

    fn bound(&self) -> Span {
        let Some((smoothed, deviation)) = self.pace else { return SILENCE };
        smoothed.plus(deviation.times(4)).times(MARGIN).clamp(SHORTEST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO.after(Span::millis(millis))
    }

    /// A stage whose answers took so long, asked once a second.
    fn paced(millis: &[u64]) -> (Pulse, u64) {
        let mut pulse = Pulse::new(at(0));
        let mut now = 0;
        for (number, took) in (1..).zip(millis) {
            pulse.pinged(number, at(now));
            pulse.heard();
            pulse.answered(number, at(now + took));
            now += 1_000;
        }
        (pulse, now)
    }

    #[test]
    fn silence_counts_from_the_first_question_without_an_answer() {
        let (mut pulse, now) = paced(&[2, 3, 2]);
        assert_eq!(pulse.lost_at(), None, "it was not asked");

        pulse.pinged(4, at(now));
        pulse.pinged(5, at(now + 1_000));

        assert_eq!(pulse.lost_at(), Some(at(now).after(SHORTEST)));
        pulse.heard();
        assert_eq!(pulse.lost_at(), None);
    }

    #[test]
    fn a_slow_stage_is_given_time_and_a_stranger_the_usual() {
        let (mut slow, now) = paced(&[900; 20]);
        slow.pinged(21, at(now));
        let bound = slow.lost_at().unwrap().since(at(now));
        assert!(bound > Span::millis(3_600) && bound < LONGEST, "{bound}");

        let (mut erratic, now) = paced(&[10, 5_000, 10, 8_000]);
        erratic.pinged(5, at(now));
        assert_eq!(erratic.lost_at(), Some(at(now).after(LONGEST)));

        assert_eq!(Pulse::new(at(7)).lost_at(), Some(at(7).after(SILENCE)));
    }

    #[test]
    fn an_answer_to_an_old_ping_measures_nothing() {
        let (mut pulse, now) = paced(&[2]);
        pulse.pinged(2, at(now));
        pulse.pinged(3, at(now + 1_000));

        pulse.answered(2, at(now + 9_000));

        pulse.heard();
        pulse.pinged(4, at(now + 9_000));
        assert_eq!(pulse.lost_at(), Some(at(now + 9_000).after(SHORTEST)));
    }
}
