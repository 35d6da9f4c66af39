//! Amounts of memory as people write them.

use crate::amounts::Bytes;

/// A text that is no amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an amount such as 4GiB, 512MiB or 25%, got \"{got}\"")]
pub struct BadMemory {
    /// The text as given, cut to 40 characters.
    pub got: String,
}

const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

const DECIMAL_UNITS: [(&str, u64); 4] =
    [("kb", 1_000), ("mb", 1_000_000), ("gb", 1_000_000_000), ("tb", 1_000_000_000_000)];

/// Reads `4GiB`, `1.5g`, `512 MB`, `25%` (of `total`, if that is known) or plain bytes. A unit of one letter is binary.
///
/// # Errors
/// [`BadMemory`] if it is none of these.
pub fn parse(text: &str, total: Option<Bytes>) -> Result<Bytes, BadMemory> {
    let bad = || BadMemory { got: text.chars().take(40).collect() };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let bytes = match unit.trim() {
        "%" if number <= 100.0 => total.ok_or_else(bad)?.0 as f64 * number / 100.0,
        unit => {
            let (_, factor) = UNITS.iter().chain(&DECIMAL_UNITS).find(|(name, _)| *name == unit).ok_or_else(bad)?;
            number * *factor as f64
        }
    };
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(Bytes(bytes as u64)) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: Option<Bytes> = Some(Bytes(1000));

    #[test]
    fn amounts_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("4GiB", 4 << 30),
            ("4g", 4 << 30),
            ("1.5 MiB", 3 << 19),
            ("2 GB", 2_000_000_000),
            ("123", 123),
            ("25%", 250),
        ] {
            assert_eq!(parse(text, TOTAL), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "GiB", "-1", "4 XB", "101%", "1e9", "1.2.3", "9999999999999999 TiB"] {
            assert!(parse(text, TOTAL).is_err(), "{text}");
        }
    }
}
