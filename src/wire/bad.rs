//! What can be wrong with bytes from another peer, and the checks that find it.

use std::ops::RangeInclusive;

use prost::Message;
use thiserror::Error;

use crate::units::BadChain;
use crate::units::EmptyRange;
use crate::units::UnitRange;
use crate::wire::text::is_printable;

/// Bytes that are not the message they should be. Always the sender's fault. Shows nothing of the contents but numbers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadMessage {
    /// More bytes than the message may have.
    #[error("{message}: expected at most {limit} bytes, got {got}")]
    TooLarge {
        /// The message.
        message: &'static str,
        /// The most bytes it may have.
        limit: usize,
        /// Bytes given.
        got: usize,
    },
    /// Not protobuf of the message's schema.
    #[error("{message}: {reason}")]
    Malformed {
        /// The message.
        message: &'static str,
        /// The protobuf decoder's words.
        reason: String,
    },
    /// A fixed layout ends too early.
    #[error("{field}: expected {expected} more bytes, got {got}")]
    Truncated {
        /// What was to be read.
        field: &'static str,
        /// Bytes it takes.
        expected: usize,
        /// Bytes left.
        got: usize,
    },
    /// A fixed layout goes on after its end.
    #[error("{message}: {got} bytes follow its end")]
    Trailing {
        /// The message.
        message: &'static str,
        /// Bytes left over.
        got: usize,
    },
    /// A fixed layout does not begin with its mark.
    #[error("{message}: does not begin with its mark")]
    Mark {
        /// The message.
        message: &'static str,
    },
    /// A version of a fixed layout that this build does not know.
    #[error("{message}: expected version {expected}, got {got}")]
    Version {
        /// The message.
        message: &'static str,
        /// The version that this build knows.
        expected: u16,
        /// The version given.
        got: u16,
    },
    /// A part that must be there is not.
    #[error("{field}: missing")]
    Missing {
        /// The part.
        field: &'static str,
    },
    /// A part that must not be there is.
    #[error("{field}: not expected here")]
    Unexpected {
        /// The part.
        field: &'static str,
    },
    /// An id, key, list or payload of the wrong length.
    #[error("{field}: expected a length of {expected}, got {got}")]
    Length {
        /// The field.
        field: &'static str,
        /// The length it has.
        expected: u64,
        /// The length given.
        got: u64,
    },
    /// A list or text that is too long.
    #[error("{field}: expected a length of at most {limit}, got {got}")]
    TooLong {
        /// The field.
        field: &'static str,
        /// The greatest length.
        limit: usize,
        /// The length given.
        got: usize,
    },
    /// A number outside its range, or a float that is not finite.
    #[error("{field}: out of range")]
    OutOfRange {
        /// The field.
        field: &'static str,
    },
    /// A list that is not in its order, or holds something twice.
    #[error("{field}: not in order")]
    Disorder {
        /// The field.
        field: &'static str,
    },
    /// A text that is not plain, or not UTF-8.
    #[error("{field}: not plain text")]
    NotText {
        /// The field.
        field: &'static str,
    },
    /// A number that stands for nothing this build knows.
    #[error("{field}: {got} is unknown")]
    Unknown {
        /// The field.
        field: &'static str,
        /// The number given.
        got: i64,
    },
    /// A unit range that holds nothing.
    #[error(transparent)]
    Range(#[from] EmptyRange),
    /// Stages that are not a chain.
    #[error(transparent)]
    Chain(#[from] BadChain),
    /// A signed record inside the message that does not hold.
    #[error("{field}: {reason}")]
    Record {
        /// The record.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A hash that is not that of what it stands for.
    #[error("{field}: the hash does not match")]
    Hash {
        /// What was hashed.
        field: &'static str,
    },
}

/// Checks the size before anything else, then reads protobuf.
pub(super) fn protobuf<M: Message + Default>(
    message: &'static str,
    limit: usize,
    bytes: &[u8],
) -> Result<M, BadMessage> {
    if bytes.len() > limit {
        return Err(BadMessage::TooLarge { message, limit, got: bytes.len() });
    }
    M::decode(bytes).map_err(|fault| BadMessage::Malformed { message, reason: fault.to_string() })
}

/// The part that must be there.
pub(super) fn required<T>(field: &'static str, part: Option<T>) -> Result<T, BadMessage> {
    part.ok_or(BadMessage::Missing { field })
}

/// Bytes of exactly the length `N`.
pub(super) fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], BadMessage> {
    bytes.try_into().map_err(|_| BadMessage::Length { field, expected: N as u64, got: bytes.len() as u64 })
}

/// A number that fits sixteen bits.
pub(super) fn short(field: &'static str, number: u32) -> Result<u16, BadMessage> {
    u16::try_from(number).map_err(|_| BadMessage::OutOfRange { field })
}

/// A number within its range.
pub(super) fn within<T: PartialOrd>(field: &'static str, number: T, range: RangeInclusive<T>) -> Result<T, BadMessage> {
    // A float that is not a number lies in no range.
    if range.contains(&number) { Ok(number) } else { Err(BadMessage::OutOfRange { field }) }
}

/// A float that is a number and not infinite.
pub(super) fn finite(field: &'static str, number: f32) -> Result<f32, BadMessage> {
    within(field, number, f32::MIN..=f32::MAX)
}

/// A float above zero, not infinite.
pub(super) fn positive(field: &'static str, number: f32) -> Result<f32, BadMessage> {
    if number > 0.0 { finite(field, number) } else { Err(BadMessage::OutOfRange { field }) }
}

/// A length that is not above its limit.
pub(super) fn at_most(field: &'static str, got: usize, limit: usize) -> Result<(), BadMessage> {
    if got > limit { Err(BadMessage::TooLong { field, limit, got }) } else { Ok(()) }
}

/// Two lists of one length.
pub(super) fn paired<A, B>(field: &'static str, left: Vec<A>, right: Vec<B>) -> Result<Vec<(A, B)>, BadMessage> {
    if left.len() != right.len() {
        return Err(BadMessage::Length { field, expected: left.len() as u64, got: right.len() as u64 });
    }
    Ok(left.into_iter().zip(right).collect())
}

/// A list whose keys rise strictly.
pub(super) fn ascending<T, K: PartialOrd>(
    field: &'static str,
    list: &[T],
    key: impl Fn(&T) -> K,
) -> Result<(), BadMessage> {
    if list.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])) { Ok(()) } else { Err(BadMessage::Disorder { field }) }
}

/// A text for people within its limit.
pub(super) fn printable(field: &'static str, text: String, limit: usize) -> Result<String, BadMessage> {
    at_most(field, text.len(), limit)?;
    if is_printable(&text) { Ok(text) } else { Err(BadMessage::NotText { field }) }
}

/// A unit range from its ends.
pub(super) fn range(start: u32, end: u32) -> Result<UnitRange, BadMessage> {
    Ok(UnitRange::new(short("range start", start)?, short("range end", end)?)?)
}
