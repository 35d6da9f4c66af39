//! What a stage says, signed, of the rows that it received and of what it made of them: evidence, should that be a lie.
//!
//! Both are said as hashes of all rows from position 0 on, row by row, so that neither the steps in which they were computed nor
//! the frames in which they travelled show in them: a row is hashed behind the hash of those before it (see [`RowsHash::then`]).
//! Stages of different sessions that compute the same thing therefore say the same.
//!
//! | stage | received | sent |
//! |---|---|---|
//! | driver | token ids, four bytes each, little-endian | hidden states |
//! | others | hidden states, as they come over the hop | hidden states |
//! | tail | hidden states | the token that it sampled behind the last row, alone; [`RowsHash::NOTHING`] if none |
//!
//! The bytes, all numbers little-endian, [`COMMITMENT`] of them, then the stage's signature of 64 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 32 | peer |
//! | 33 | 16 | session |
//! | 49 | 4 | epoch |
//! | 53 | 32 | model |
//! | 85 | 2 | the range's first unit |
//! | 87 | 2 | the unit after its last |
//! | 89 | 4 | end |
//! | 93 | 32 | received |
//! | 125 | 32 | sent |

use crate::amounts::Position;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RowsHash;
use crate::ids::SessionId;
use crate::ids::Token;
use crate::keys::Domain;
use crate::units::UnitRange;
use crate::wire::bad::BadMessage;
use crate::wire::bad::within;
use crate::wire::layout::Reader;
use crate::wire::signed::SignedBody;

/// Bytes of a commitment.
pub const COMMITMENT: usize = 157;

/// Every stage commits itself at multiples of so many positions, so that stages whose steps were cut otherwise can be compared
/// (arbitrary: a chunk of a prompt).
pub const COMMIT_EVERY: u32 = 128;

/// The version of the layout.
const VERSION: u8 = 1;

/// What a stage received and what it made of it, up to a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commitment {
    /// Who says so; equals the signature's author.
    pub peer: PeerKey,
    /// The session.
    pub session: SessionId,
    /// The chain in which the last row was computed.
    pub epoch: Epoch,
    /// The model.
    pub model: ModelId,
    /// The units it serves.
    pub range: UnitRange,
    /// The position after the last row, at least 1.
    pub end: Position,
    /// What the rows received hash to.
    pub received: RowsHash,
    /// What was sent hashes to.
    pub sent: RowsHash,
}

impl RowsHash {
    /// No rows.
    pub const NOTHING: Self = Self::new([0; 32]);

    /// What one more row makes of it: blake3 of this hash and the row.
    #[must_use]
    pub fn then(self, row: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.as_bytes());
        hasher.update(row);
        Self::new(*hasher.finalize().as_bytes())
    }

    /// What a token hashes to behind this.
    #[must_use]
    pub fn then_token(self, token: Token) -> Self {
        self.then(&token.0.to_le_bytes())
    }
}

impl SignedBody for Commitment {
    const DOMAIN: Domain = Domain::Commitment;
    const MAX_BODY: usize = COMMITMENT;

    fn decode_body(body: &[u8]) -> Result<Self, BadMessage> {
        let mut reader = Reader::new("Commitment", body);
        let got = reader.u8("version")?;
        if got != VERSION {
            let (expected, got) = (VERSION.into(), got.into());
            return Err(BadMessage::Version { message: "Commitment", expected, got });
        }
        let commitment = Self {
            peer: PeerKey::new(reader.array("commitment peer")?),
            session: SessionId::new(reader.array("commitment session")?),
            epoch: Epoch(reader.u32("commitment epoch")?),
            model: ModelId::new(reader.array("commitment model")?),
            range: UnitRange::new(reader.u16("commitment range")?, reader.u16("commitment range")?)?,
            end: within("commitment end", Position(reader.u32("commitment end")?), Position(1)..=Position(u32::MAX))?,
            received: RowsHash::new(reader.array("rows received")?),
            sent: RowsHash::new(reader.array("rows sent")?),
        };
        reader.end()?;
        Ok(commitment)
    }

    fn encode_body(&self) -> bytes::Bytes {
        let parts: [&[u8]; 10] = [
            &[VERSION],
            self.peer.as_bytes(),
            self.session.as_bytes(),
            &self.epoch.0.to_le_bytes(),
            self.model.as_bytes(),
            &self.range.start().to_le_bytes(),
            &self.range.end().to_le_bytes(),
            &self.end.0.to_le_bytes(),
            self.received.as_bytes(),
            self.sent.as_bytes(),
        ];
        parts.concat().into()
    }

    fn author(&self) -> PeerKey {
        self.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NetworkId;
    use crate::wire::samples;
    use crate::wire::signed::Signed;

    #[test]
    fn a_commitment_has_one_encoding_and_is_of_one_network() {
        let signed = samples::commitment();
        let bytes = signed.to_bytes();

        assert_eq!(bytes.len(), COMMITMENT + 64);
        assert_eq!(Signed::<Commitment>::open(&bytes, samples::network()), Ok(signed));
        assert!(Signed::<Commitment>::open(&bytes, NetworkId::of("another", None)).is_err());
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(Signed::<Commitment>::open(&longer, samples::network()).is_err());
    }

    #[test]
    fn what_follows_the_same_rows_is_told_apart_from_what_follows_others() {
        let [one, other] = [b"one", b"two"].map(|row| RowsHash::NOTHING.then(row));

        assert_eq!(one.then(b"row"), RowsHash::NOTHING.then(b"one").then(b"row"));
        assert_ne!(one.then(b"row"), other.then(b"row"));
        assert_ne!(one.then(b""), one);
    }
}
