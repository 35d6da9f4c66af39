//! The one place that reads the clock.

use std::time::Duration;
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
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// The moment. Never goes back; stands still while the machine sleeps, on systems whose monotonic clock does.
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Seconds since 1970 by the machine's wall clock: for showing to people, never for deciding anything.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let clock = Clock::start();
        let (first, second) = (clock.now(), clock.now());

        assert!(first <= second);
        assert!(wall_clock() > Duration::from_secs(1_700_000_000));
    }
}
