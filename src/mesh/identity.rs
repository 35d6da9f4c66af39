//! The door between our names and libp2p's: an ed25519 public key is a `PeerId` with the key inline.

use libp2p::PeerId;
use libp2p::identity::Keypair;
use libp2p::identity::PublicKey;
use libp2p::identity::ed25519;
use libp2p::multihash::Multihash;
use zeroize::Zeroizing;

use crate::ids::PeerKey;
use crate::mesh::error::MeshError;

/// The multihash code of a digest that is the value itself (libp2p "Peer Ids and Keys").
const INLINE: u64 = 0;

/// The pair that belongs to an ed25519 secret.
pub(super) fn keypair(secret: &Zeroizing<[u8; 32]>) -> Result<Keypair, MeshError> {
    let mut bytes = secret.clone();
    Keypair::ed25519_from_bytes(bytes.as_mut_slice())
        .map_err(|error| MeshError::Setup { part: "the identity", reason: error.to_string() })
}

/// libp2p's name of a peer; `None` if the key is not a point of the curve.
pub(super) fn peer_id(key: PeerKey) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(key.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Our name of a peer; `None` for an identity that is not an inline ed25519 key.
pub(super) fn peer_key(peer: &PeerId) -> Option<PeerKey> {
    let hash: &Multihash<64> = peer.as_ref();
    if hash.code() != INLINE {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    Some(PeerKey::new(key.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_key_survives_the_way_to_libp2p_and_back() {
        let pair = keypair(&Zeroizing::new([7; 32])).unwrap();
        let peer = pair.public().to_peer_id();

        let key = peer_key(&peer).unwrap();

        assert_eq!(peer_id(key), Some(peer));
        assert_eq!(*key.as_bytes(), pair.public().try_into_ed25519().unwrap().to_bytes());
    }

    #[test]
    fn an_identity_of_another_kind_has_no_peer_key() {
        assert_eq!(peer_key(&PeerId::random()), None);
    }
}
