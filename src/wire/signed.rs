//! Records that carry their author's signature and are relayed byte for byte.

use bytes::Bytes;

use crate::ids::PeerKey;

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
