//! A line in a requester's credit log: what it owes each stage of one session, hash-chained and signed.
//!
//! The header has a fixed size, so that chains can be verified, pruned and compared without the lines: two different
//! headers with one (requester, sequence) are proof of cheating by themselves.
//!
//! The bytes, all numbers little-endian. First the header, [`HEADER`] bytes, which are what is signed and chained:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 32 | requester |
//! | 33 | 8 | sequence |
//! | 41 | 32 | previous |
//! | 73 | 16 | session |
//! | 89 | 32 | model |
//! | 121 | 4 | positions |
//! | 125 | 32 | lines: blake3 of all the lines' bytes |
//! | 157 | 8 | total |
//!
//! then the requester's signature of 64 bytes, then the lines, [`LINE`] bytes each:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 32 | stage |
//! | 32 | 2 | the range's first unit |
//! | 34 | 2 | the unit after its last |
//! | 36 | 8 | work |
//! | 44 | 4 | difficulty |

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::keys::Domain;
use crate::keys::Identity;
use crate::units::UnitRange;
use crate::wire::bad::BadMessage;
use crate::wire::bad::at_most;
use crate::wire::bad::within;
use crate::wire::layout::Reader;
use crate::wire::signed::BadRecord;
use crate::wire::signed::SIGNATURE;
use crate::wire::signed::Signed;
use crate::wire::signed::SignedBody;

/// Bytes of a header.
pub const HEADER: usize = 165;

/// Bytes of a line.
pub const LINE: usize = 48;

/// The greatest difficulty factor, in thousandths (arbitrary).
pub const MAX_DIFFICULTY: u32 = 1_000_000;

/// The version of the header's layout.
const VERSION: u8 = 1;

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

impl CreditHeader {
    /// The header's bytes, [`HEADER`] of them.
    pub fn encode(&self) -> [u8; HEADER] {
        let parts: [&[u8]; 9] = [
            &[VERSION],
            self.requester.as_bytes(),
            &self.sequence.to_le_bytes(),
            &self.previous,
            self.session.as_bytes(),
            self.model.as_bytes(),
            &self.positions.0.to_le_bytes(),
            &self.lines,
            &self.total.0.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        let mut rest = &mut bytes[..];
        for part in parts {
            let (place, after) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = after;
        }
        bytes
    }

    /// What the next header of this requester names as `previous`.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }
}

impl SignedBody for CreditHeader {
    const DOMAIN: Domain = Domain::Credit;
    const MAX_BODY: usize = HEADER;

    fn decode_body(body: &[u8]) -> Result<Self, BadMessage> {
        let mut reader = Reader::new("CreditHeader", body);
        let got = reader.u8("version")?;
        if got != VERSION {
            let (expected, got) = (VERSION.into(), got.into());
            return Err(BadMessage::Version { message: "CreditHeader", expected, got });
        }
        let header = Self {
            requester: PeerKey::new(reader.array("requester")?),
            sequence: reader.u64("sequence")?,
            previous: reader.array("previous")?,
            session: SessionId::new(reader.array("session")?),
            model: ModelId::new(reader.array("model")?),
            positions: Position(reader.u32("positions")?),
            lines: reader.array("lines")?,
            total: Mflop(reader.u64("total")?),
        };
        reader.end()?;
        if (header.sequence == 0) != (header.previous == [0; 32]) {
            return Err(BadMessage::OutOfRange { field: "previous" });
        }
        Ok(header)
    }

    fn encode_body(&self) -> bytes::Bytes {
        self.encode().to_vec().into()
    }

    fn author(&self) -> PeerKey {
        self.requester
    }
}

impl CreditLine {
    fn encode(&self) -> [u8; LINE] {
        let mut bytes = [0; LINE];
        bytes[..32].copy_from_slice(self.stage.as_bytes());
        bytes[32..34].copy_from_slice(&self.range.start().to_le_bytes());
        bytes[34..36].copy_from_slice(&self.range.end().to_le_bytes());
        bytes[36..44].copy_from_slice(&self.work.0.to_le_bytes());
        bytes[44..].copy_from_slice(&self.difficulty.to_le_bytes());
        bytes
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, BadMessage> {
        Ok(Self {
            stage: PeerKey::new(reader.array("line stage")?),
            range: UnitRange::new(reader.u16("line range")?, reader.u16("line range")?)?,
            work: Mflop(reader.u64("line work")?),
            difficulty: within("line difficulty", reader.u32("line difficulty")?, 1..=MAX_DIFFICULTY)?,
        })
    }
}

/// blake3 of the lines' bytes, for [`CreditHeader::lines`].
pub fn hash_lines(lines: &[CreditLine]) -> [u8; 32] {
    *blake3::hash(&encode_lines(lines)).as_bytes()
}

/// The sum over the lines, for [`CreditHeader::total`]; `None` if it cannot be counted.
pub fn sum_lines(lines: &[CreditLine]) -> Option<Mflop> {
    lines.iter().try_fold(0_u64, |sum, line| sum.checked_add(line.work.0)).map(Mflop)
}

fn encode_lines(lines: &[CreditLine]) -> Vec<u8> {
    lines.iter().flat_map(CreditLine::encode).collect()
}

impl CreditEntry {
    /// The most bytes of an encoded entry.
    pub const MAX: usize = HEADER + SIGNATURE + MAX_LINES * LINE;

    /// Signs `header` and puts it before its lines.
    ///
    /// # Errors
    /// [`BadRecord`] if `identity` is not the requester, or the lines are not the header's.
    pub fn seal(
        header: &CreditHeader,
        lines: Vec<CreditLine>,
        identity: &Identity,
        network: NetworkId,
    ) -> Result<Self, BadRecord> {
        check_lines(header, &lines)?;
        Ok(Self { header: Signed::seal(header, identity, network)?, lines })
    }

    /// Reads an entry and checks all of it: size, lines, their hash and sum, the requester's signature in `network`.
    /// Whether it continues the requester's chain is for the ledger to say.
    ///
    /// # Errors
    /// [`BadRecord`] with the first fault found.
    pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, BadRecord> {
        let got = bytes.len();
        if got > Self::MAX {
            return Err(BadMessage::TooLarge { message: "CreditEntry", limit: Self::MAX, got }.into());
        }
        let expected = HEADER + SIGNATURE;
        let cut = BadMessage::Truncated { field: "credit header", expected, got };
        let (head, rest) = bytes.split_at_checked(expected).ok_or(cut)?;
        let mut reader = Reader::new("CreditEntry", rest);
        let lines = (0..rest.len() / LINE).map(|_| CreditLine::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        reader.end()?;
        let header = Signed::<CreditHeader>::open(head, network)?;
        check_lines(&header.value, &lines)?;
        Ok(Self { header, lines })
    }

    /// The entry as received or sealed: header, signature, lines.
    pub fn encode(&self) -> bytes::Bytes {
        [&self.header.to_bytes()[..], &encode_lines(&self.lines)].concat().into()
    }
}

fn check_lines(header: &CreditHeader, lines: &[CreditLine]) -> Result<(), BadMessage> {
    at_most("credit lines", lines.len(), MAX_LINES)?;
    if lines.is_empty() {
        return Err(BadMessage::Missing { field: "credit lines" });
    }
    if hash_lines(lines) != header.lines {
        return Err(BadMessage::Hash { field: "credit lines" });
    }
    if sum_lines(lines) != Some(header.total) {
        return Err(BadMessage::OutOfRange { field: "credit total" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    fn reseal(change: impl FnOnce(&mut CreditHeader, &mut Vec<CreditLine>)) -> Vec<u8> {
        let CreditEntry { header, mut lines } = samples::entry(3);
        let mut header = header.value;
        change(&mut header, &mut lines);
        let body = header.encode();
        let signature = samples::identity().sign(Domain::Credit, samples::network(), &body);
        [&body[..], &signature, &encode_lines(&lines)].concat()
    }

    fn refused(change: impl FnOnce(&mut CreditHeader, &mut Vec<CreditLine>)) -> bool {
        CreditEntry::decode(&reseal(change), samples::network()).is_err()
    }

    #[test]
    fn an_entry_is_relayed_byte_for_byte() {
        let bytes = samples::entry(3).encode();

        assert_eq!(CreditEntry::decode(&bytes, samples::network()).unwrap().encode(), bytes);
        assert_eq!(bytes.len(), HEADER + SIGNATURE + 3 * LINE);
    }

    #[test]
    fn the_lines_are_the_headers() {
        assert!(!refused(|_, _| {}));
        assert!(refused(|_, lines| lines[1].work = Mflop(0)));
        assert!(refused(|_, lines| lines.swap(0, 1)));
        assert!(refused(|_, lines| lines.truncate(2)));
        assert!(refused(|header, _| header.total = Mflop(1)));
    }

    #[test]
    fn a_sum_that_cannot_be_counted_is_refused() {
        assert!(refused(|header, lines| {
            lines[0].work = Mflop(u64::MAX);
            header.lines = hash_lines(lines);
            header.total = lines.iter().map(|line| line.work).sum();
        }));
    }

    #[test]
    fn lines_are_few_but_some_and_of_known_difficulty() {
        let with = |count, difficulty| {
            refused(|header, lines| {
                *lines = vec![CreditLine { work: Mflop(1), difficulty, ..lines[0] }; count];
                header.lines = hash_lines(lines);
                header.total = Mflop(count as u64);
            })
        };

        assert!(!with(MAX_LINES, 1_000));
        assert!(with(MAX_LINES + 1, 1_000));
        assert!(with(0, 1_000));
        assert!(with(1, 0));
        assert!(with(1, MAX_DIFFICULTY + 1));
    }

    #[test]
    fn only_the_first_header_has_no_previous() {
        assert!(!refused(|header, _| (header.sequence, header.previous) = (0, [0; 32])));
        assert!(refused(|header, _| (header.sequence, header.previous) = (0, [1; 32])));
        assert!(refused(|header, _| (header.sequence, header.previous) = (4, [0; 32])));
    }

    #[test]
    fn every_byte_of_an_entry_matters() {
        let bytes = samples::entry(2).encode();

        for place in 0..bytes.len() {
            let mut broken = bytes.to_vec();
            broken[place] ^= 1;
            assert!(CreditEntry::decode(&broken, samples::network()).is_err(), "byte {place}");
            assert!(CreditEntry::decode(&bytes[..place], samples::network()).is_err(), "cut at {place}");
        }
    }
}
