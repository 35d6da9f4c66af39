//! The one place that reads the clock.

use std::time::Instant;
use std::time::SystemTime;

use crate::amounts::Time;

/// Counts the time since it was made. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Begins to count.
    #[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The moment. Never goes back; stands still while the machine sleeps, on systems whose monotonic clock does.
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Seconds since 1970 by this machine's calendar, for people and programs outside; nothing in the mesh depends on it.
#[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let clock = Clock::start();

        let earlier = clock.now();

        assert!(clock.now() >= earlier);
    }
}
