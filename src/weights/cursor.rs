//! Walks the bytes of a GGUF file; every step is checked against what is left.

use crate::weights::gguf::GgufError;

/// Bytes of a key or tensor name; GGUF allows keys of 65,535 and tensor names of 64.
const MAX_NAME: u64 = 65_535;

/// Bytes of one text outside an array; chat templates reach some ten thousand. Arbitrary.
const MAX_TEXT: u64 = 16 << 20;

/// A place in a file, which only moves forward.
#[derive(Debug)]
pub(super) struct Cursor<'file> {
    bytes: &'file [u8],
    position: usize,
}

impl<'file> Cursor<'file> {
    pub(super) fn new(bytes: &'file [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, what: &str, length: u64) -> Result<&'file [u8], GgufError> {
        let rest = self.rest();
        let Some(taken) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
            return Err(GgufError::Truncated {
                what: what.to_owned(),
                expected: (self.position as u64).saturating_add(length),
                got: self.bytes.len() as u64,
            });
        };
        self.position += taken.len();
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N as u64)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The raw bytes of a text of any length that fits.
    pub(super) fn raw_text(&mut self, what: &str) -> Result<&'file [u8], GgufError> {
        let length = self.u64(what)?;
        self.take(what, length)
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self, what: &str) -> Result<String, GgufError> {
        self.bounded_text(what, MAX_NAME)
    }

    /// A text that is UTF-8.
    pub(super) fn text(&mut self, what: &str) -> Result<String, GgufError> {
        self.bounded_text(what, MAX_TEXT)
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// What has not been read.
    pub(super) fn rest(&self) -> &'file [u8] {
        &self.bytes[self.position..]
    }

    fn bounded_text(&mut self, what: &str, limit: u64) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        if length > limit {
            return Err(GgufError::TooMany { what: format!("bytes of {what}"), limit, got: length });
        }
        let bytes = self.take(what, length)?;
        let text = str::from_utf8(bytes)
            .map_err(|_| GgufError::Malformed { what: what.to_owned(), reason: "it is not UTF-8" })?;
        Ok(text.to_owned())
    }
}
