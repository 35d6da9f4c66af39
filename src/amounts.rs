//! Amounts: bytes, work, positions, time. Arithmetic saturates, so no amount can wrap around.

use std::fmt;
use std::time::Duration;

macro_rules! amount {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);

            /// The sum; stays at the largest value.
            #[must_use]
            pub const fn plus(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }

            /// The difference; stays at zero.
            #[must_use]
            pub const fn minus(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// The product; stays at the largest value.
            #[must_use]
            pub const fn times(self, factor: $inner) -> Self {
                Self(self.0.saturating_mul(factor))
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
                amounts.fold(Self::ZERO, Self::plus)
            }
        }
    };
}

amount!(
    /// A number of bytes.
    Bytes, u64
);
amount!(
    /// Work, in whole millions of floating-point operations; also the unit in which credits are counted.
    Mflop, u64
);
amount!(
    /// A token position of a session, from 0; also a number of positions.
    Position, u32
);
amount!(
    /// A length of time in microseconds.
    Span, u64
);

impl Bytes {
    /// Bytes in a mebibyte.
    pub const MIB: u64 = 1 << 20;

    /// Whole mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(Self::MIB))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut scaled = self.0 as f64;
        let mut unit = 0;
        while scaled >= 1024.0 && unit + 1 < UNITS.len() {
            scaled /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{scaled:.1} {}", UNITS[unit]) }
    }
}

impl fmt::Display for Mflop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MFLOP", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Span {
    /// Whole seconds.
    pub const fn seconds(count: u64) -> Self {
        Self(count.saturating_mul(1_000_000))
    }

    /// Whole milliseconds.
    pub const fn millis(count: u64) -> Self {
        Self(count.saturating_mul(1_000))
    }

    /// The same length for the standard library.
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// The length in seconds.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros @ 0..1_000 => write!(f, "{micros} µs"),
            micros @ 1_000..1_000_000 => write!(f, "{:.1} ms", micros as f64 / 1e3),
            micros => write!(f, "{:.1} s", micros as f64 / 1e6),
        }
    }
}

/// A moment: microseconds since the process began to count. The core never reads a clock; it is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The beginning.
    pub const ZERO: Self = Self(0);

    /// The moment `span` later.
    #[must_use]
    pub const fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The time passed since `earlier`; zero if it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_saturate_and_never_wrap() {
        assert_eq!(Bytes(1).minus(Bytes(2)), Bytes::ZERO);
        assert_eq!(Mflop(u64::MAX).plus(Mflop(1)), Mflop(u64::MAX));
        assert_eq!(Time(5).since(Time(9)), Span::ZERO);
    }

    #[test]
    fn amounts_read_like_a_person_would_write_them() {
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Span(2_500).to_string(), "2.5 ms");
        assert_eq!(Span::seconds(3).to_string(), "3.0 s");
    }
}
