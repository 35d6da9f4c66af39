//! The one place that reads the clock.

use std::time::SystemTime;

/// Seconds since 1970 by this machine's calendar, for people and programs outside; nothing in the mesh depends on it.
#[expect(clippy::disallowed_methods, reason = "this module is where the clock is read")]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
