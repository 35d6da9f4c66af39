//! Reading and writing the fixed layouts: little-endian, lengths before what they count, no padding.
//!
//! The writer trusts its caller with lengths; whoever builds such a value checks it first (`Manifest::check`,
//! `Vocabulary::check`), as the decoder does.

use std::ops::RangeInclusive;

use crate::wire::bad::BadMessage;
use crate::wire::bad::at_most;

/// Reads a fixed layout from front to back. Nothing is allocated for a length before the bytes are seen to be there.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    message: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, whose name in errors is `message`.
    pub(super) const fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self { message, rest: bytes }
    }

    /// Passes over the mark and the version, if they are the ones expected.
    pub(super) fn begin(&mut self, mark: [u8; 4], version: u16) -> Result<(), BadMessage> {
        self.begin_one_of(mark, version..=version).map(|_| ())
    }

    /// Passes over the mark and returns the version, if it is one of those.
    pub(super) fn begin_one_of(&mut self, mark: [u8; 4], versions: RangeInclusive<u16>) -> Result<u16, BadMessage> {
        if self.array::<4>("mark")? != mark {
            return Err(BadMessage::Mark { message: self.message });
        }
        let got = self.u16("version")?;
        if !versions.contains(&got) {
            return Err(BadMessage::Version { message: self.message, expected: *versions.end(), got });
        }
        Ok(got)
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], BadMessage> {
        let short = BadMessage::Truncated { field, expected: count, got: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BadMessage> {
        let taken = self.take(field, N)?;
        taken.try_into().map_err(|_| BadMessage::Truncated { field, expected: N, got: taken.len() })
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, BadMessage> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, BadMessage> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, BadMessage> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, BadMessage> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn f32(&mut self, field: &'static str) -> Result<f32, BadMessage> {
        self.array(field).map(f32::from_le_bytes)
    }

    /// One byte, 0 or 1.
    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, BadMessage> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadMessage::OutOfRange { field }),
        }
    }

    /// Checks that `count` items of at least `each` bytes are allowed and can still follow.
    pub(super) fn count(
        &self,
        field: &'static str,
        count: usize,
        limit: usize,
        each: usize,
    ) -> Result<usize, BadMessage> {
        at_most(field, count, limit)?;
        let expected = count.saturating_mul(each);
        if expected > self.rest.len() {
            return Err(BadMessage::Truncated { field, expected, got: self.rest.len() });
        }
        Ok(count)
    }

    /// `length` bytes of UTF-8.
    pub(super) fn text(&mut self, field: &'static str, length: usize) -> Result<String, BadMessage> {
        let bytes = self.take(field, length)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BadMessage::NotText { field })
    }

    /// Checks that nothing follows.
    pub(super) const fn end(self) -> Result<(), BadMessage> {
        match self.rest.len() {
            0 => Ok(()),
            got => Err(BadMessage::Trailing { message: self.message, got }),
        }
    }
}

/// Appends the length of `bytes` in one byte, and `bytes`.
pub(super) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(bytes);
}

/// Appends the length of `bytes` in two bytes, and `bytes`.
pub(super) fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a count in four bytes.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}
