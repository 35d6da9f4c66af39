//! A line in a requester's credit log: what it owes each stage of one session, hash-chained and signed.
//!
//! The header has a fixed size, so that chains can be verified, pruned and compared without the lines: two different
//! headers with one (requester, sequence) are proof of cheating by themselves.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::units::UnitRange;
use crate::wire::signed::Signed;

/// The most lines of one entry.
pub const MAX_LINES: usize = 256;

/// The fixed-size head of a credit entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditHeader {
    /// Who owes; equals the signature's author.
    pub requester: PeerKey,
    /// Counts this requester's entries, from 0, without a gap.
    pub sequence: u64,
    /// blake3 of the previous header's bytes; zero for the first.
    pub previous: [u8; 32],
    /// The session.
    pub session: SessionId,
    /// The model.
    pub model: ModelId,
    /// Positions computed: prompt and new tokens.
    pub positions: Position,
    /// blake3 of the lines' bytes.
    pub lines: [u8; 32],
    /// The sum over the lines.
    pub total: Mflop,
}

/// What is owed to one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditLine {
    /// Who is owed.
    pub stage: PeerKey,
    /// The units it served.
    pub range: UnitRange,
    /// The work, difficulty applied.
    pub work: Mflop,
    /// The difficulty factor fixed in the quote, in thousandths; 1,000 is plain.
    pub difficulty: u32,
}

/// A signed header with its lines; the lines match the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreditEntry {
    /// The signed header.
    pub header: Signed<CreditHeader>,
    /// One per stage, in chain order, `1..=MAX_LINES`.
    pub lines: Vec<CreditLine>,
}
