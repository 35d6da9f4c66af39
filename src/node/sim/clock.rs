//! A host's own clock: nobody's is right, and none runs quite as fast as another.

use crate::amounts::Time;

/// Parts of a million in which a second of the host's differs.
const MILLION: i64 = 1_000_000;

/// No run comes so far: a deadline beyond is none.
const FAR: Time = Time(1 << 50);

/// A clock that was started at some time and runs a little too fast or too slow.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostClock {
    pub(super) began: Time,
    /// What it showed then.
    pub(super) shows: Time,
    /// By how many parts of a million it is too fast.
    pub(super) drift: i64,
}

impl HostClock {
    /// A clock that shows the world's time.
    pub(super) const RIGHT: Self = Self { began: Time::ZERO, shows: Time::ZERO, drift: 0 };

    /// What it shows at a moment of the world's.
    pub(super) fn at(&self, now: Time) -> Time {
        let passed = now.since(self.began).0 as i128;
        Time(self.shows.0 + (passed * i128::from(MILLION + self.drift) / i128::from(MILLION)) as u64)
    }

    /// The first moment of the world's at which it shows `time`.
    pub(super) fn when(&self, time: Time) -> Time {
        if time > FAR {
            return time;
        }
        let passed = i128::from(time.since(self.shows).0);
        let guess = passed * i128::from(MILLION) / i128::from(MILLION + self.drift);
        let mut at = Time(self.began.0.saturating_add(u64::try_from(guess).unwrap_or(u64::MAX)));
        while self.at(at) < time {
            at = Time(at.0 + 1);
        }
        at
    }
}
