//! Records that carry their author's signature and are relayed byte for byte.

use bytes::Bytes;
use thiserror::Error;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::keys::BadSignature;
use crate::keys::Domain;
use crate::keys::Identity;
use crate::keys::verify;
use crate::wire::bad::BadMessage;

/// Bytes of a signature.
pub const SIGNATURE: usize = 64;

/// What can be signed: it names its author and has an encoding of its own.
pub trait SignedBody: Sized {
    /// What kind of record it is.
    const DOMAIN: Domain;
    /// The most bytes of an encoded body.
    const MAX_BODY: usize;

    /// Reads a body and checks all of it.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    fn decode_body(body: &[u8]) -> Result<Self, BadMessage>;

    /// The bytes that are signed.
    fn encode_body(&self) -> Bytes;

    /// Whom the body names as its author.
    fn author(&self) -> PeerKey;
}

/// A value with the exact bytes that its author signed. Only a verified one can be had from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    /// What the bytes say.
    pub value: T,
    /// Who signed.
    pub author: PeerKey,
    /// The signed body, as received.
    pub body: Bytes,
    /// The author's ed25519 signature over domain, network id and body.
    pub signature: [u8; 64],
}

/// Bytes that are not a record signed by the author it names. Always the fault of whoever sent or made it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// More or fewer bytes than such a record can have.
    #[error("a record of {}: expected 64 to {limit} bytes, got {got}", .domain.name())]
    Size {
        /// What kind of record.
        domain: Domain,
        /// The most bytes it may have, signature included.
        limit: usize,
        /// Bytes given.
        got: usize,
    },
    /// The body is not what it should be.
    #[error(transparent)]
    Body(#[from] BadMessage),
    /// The author named in the body did not sign it.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// A body to be sealed names somebody else as its author.
    #[error("expected a record by {}, got one by {}", .expected.short(), .got.short())]
    Author {
        /// Who seals.
        expected: PeerKey,
        /// Whom the body names.
        got: PeerKey,
    },
}

impl<T: SignedBody> Signed<T> {
    /// The most bytes of a record: body and signature.
    pub const MAX: usize = T::MAX_BODY + SIGNATURE;

    /// Signs `value`. What is sealed passes every other peer's [`open`](Self::open); if the encoding leaves something
    /// out, so does the returned value.
    ///
    /// # Errors
    /// [`BadRecord`] if `identity` is not the author that the value names, or others would refuse the value.
    pub fn seal(value: &T, identity: &Identity, network: NetworkId) -> Result<Self, BadRecord> {
        let (expected, got) = (identity.peer(), value.author());
        if expected != got {
            return Err(BadRecord::Author { expected, got });
        }
        let body = value.encode_body();
        check_size::<T>(body.len() + SIGNATURE)?;
        let value = T::decode_body(&body)?;
        let signature = identity.sign(T::DOMAIN, network, &body);
        Ok(Self { value, author: expected, body, signature })
    }

    /// Reads a record: the size is checked first, then the body, then that its author signed it in this network.
    ///
    /// # Errors
    /// [`BadRecord`] with the first fault found.
    pub fn open(bytes: &[u8], network: NetworkId) -> Result<Self, BadRecord> {
        check_size::<T>(bytes.len())?;
        let (body, signature) = bytes.split_at(bytes.len() - SIGNATURE);
        let signature = crate::wire::bad::array("signature", signature)?;
        let value = T::decode_body(body)?;
        let author = value.author();
        verify(author, T::DOMAIN, network, body, &signature)?;
        Ok(Self { value, author, body: Bytes::copy_from_slice(body), signature })
    }

    /// The record as received or sealed: the body, then the signature.
    pub fn to_bytes(&self) -> Bytes {
        [&self.body[..], &self.signature].concat().into()
    }
}

fn check_size<T: SignedBody>(got: usize) -> Result<(), BadRecord> {
    let limit = T::MAX_BODY + SIGNATURE;
    if got < SIGNATURE || got > limit {
        return Err(BadRecord::Size { domain: T::DOMAIN, limit, got });
    }
    Ok(())
}
