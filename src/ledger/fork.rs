//! The proof that a requester keeps two logs.

use bytes::Bytes;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::wire::bad::BadMessage;
use crate::wire::credit::CreditHeader;
use crate::wire::signed::BadRecord;
use crate::wire::signed::Signed;

/// Two different headers with one number, both signed by one requester. Anybody can check it, and it is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The smaller body first, so that one pair makes one proof.
    first: Signed<CreditHeader>,
    second: Signed<CreditHeader>,
}

impl Fork {
    /// Bytes of an encoded proof: two signed headers.
    pub const BYTES: usize = 2 * Signed::<CreditHeader>::MAX;

    /// The proof that two verified headers make; `None` if they are equal, or of different numbers or requesters.
    pub fn between(one: &Signed<CreditHeader>, other: &Signed<CreditHeader>) -> Option<Self> {
        let place = |header: &Signed<CreditHeader>| (header.value.requester, header.value.sequence);
        if place(one) != place(other) || one.value == other.value {
            return None;
        }
        let (first, second) = if one.body < other.body { (one, other) } else { (other, one) };
        Some(Self { first: first.clone(), second: second.clone() })
    }

    /// Reads a proof and checks all of it, both signatures in `network` included.
    ///
    /// # Errors
    /// [`BadRecord`] with the first fault found.
    pub fn decode(bytes: &[u8], network: NetworkId) -> Result<Self, BadRecord> {
        if bytes.len() != Self::BYTES {
            let (expected, got) = (Self::BYTES as u64, bytes.len() as u64);
            return Err(BadMessage::Length { field: "fork", expected, got }.into());
        }
        let (first, second) = bytes.split_at(Self::BYTES / 2);
        let (first, second) = (Signed::open(first, network)?, Signed::open(second, network)?);
        let fork = Self::between(&first, &second).filter(|fork| fork.first == first);
        fork.ok_or_else(|| BadMessage::Disorder { field: "fork" }.into())
    }

    /// Both signed headers, the smaller first.
    pub fn encode(&self) -> Bytes {
        [self.first.to_bytes(), self.second.to_bytes()].concat().into()
    }

    /// Who cheated.
    pub const fn requester(&self) -> PeerKey {
        self.first.value.requester
    }

    /// The number with two headers.
    pub const fn sequence(&self) -> u64 {
        self.first.value.sequence
    }

    /// Both headers.
    pub const fn headers(&self) -> [&Signed<CreditHeader>; 2] {
        [&self.first, &self.second]
    }
}
