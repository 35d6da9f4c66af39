//! Identities, signatures, network ids and invites.
//!
//! Every signature is made over [`SIGNED_PREFIX`], the [`Domain`]'s name, a slash, the network's id and the blake3 of
//! the body. So a record of one kind or network never passes for one of another.

use std::fmt;

use ed25519_dalek::Signature;
use ed25519_dalek::Signer;
use ed25519_dalek::SigningKey;
use ed25519_dalek::VerifyingKey;
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::ids::NetworkId;
use crate::ids::PeerKey;

pub mod invite;

/// What every signed message begins with; the number is the version of the scheme.
pub const SIGNED_PREFIX: &[u8] = b"brigade/1/";

/// The longest name of a network, in bytes (arbitrary).
pub const MAX_NETWORK_NAME: usize = 64;

/// What kind of record a signature is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A peer's profile.
    Profile,
    /// A model's card.
    Card,
    /// The header of a credit entry.
    Credit,
    /// What a stage received and what it made of it.
    Commitment,
}

impl Domain {
    /// The name that is signed; never holds a slash, so that no name continues another's message.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Card => "card",
            Self::Credit => "credit",
            Self::Commitment => "commitment",
        }
    }
}

/// A signature that is not the author's, or is not one at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the signature of this {} is not by {}", .domain.name(), .author.short())]
pub struct BadSignature {
    /// Who should have signed.
    pub author: PeerKey,
    /// What should have been signed.
    pub domain: Domain,
}

/// A peer's secret key. It is wiped from memory when dropped and never shown.
#[derive(Clone)]
pub struct Identity(SigningKey);

impl Identity {
    /// A new identity from 32 bytes of the operating system's random source.
    pub fn generate(random: [u8; 32]) -> Self {
        let random = Zeroizing::new(random);
        Self(SigningKey::from_bytes(&random))
    }

    /// The identity whose [`secret_bytes`](Self::secret_bytes) these are.
    pub fn from_secret_bytes(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The secret, to be stored.
    pub fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public key, by which everybody knows this peer.
    pub fn peer(&self) -> PeerKey {
        PeerKey::new(self.0.verifying_key().to_bytes())
    }

    /// Signs `body` as a record of `domain` in `network`.
    pub fn sign(&self, domain: Domain, network: NetworkId, body: &[u8]) -> [u8; 64] {
        self.0.sign(&signed_message(domain, network, body)).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer().short())
    }
}

/// Checks that `author` signed `body` as a record of `domain` in `network`.
///
/// Strict: weak keys and malleable signatures are refused, so that a record has one signature that all peers agree on.
///
/// # Errors
/// [`BadSignature`] if it did not.
pub fn verify(
    author: PeerKey,
    domain: Domain,
    network: NetworkId,
    body: &[u8],
    signature: &[u8; 64],
) -> Result<(), BadSignature> {
    let bad = BadSignature { author, domain };
    let key = VerifyingKey::from_bytes(author.as_bytes()).map_err(|_| bad)?;
    let message = signed_message(domain, network, body);
    key.verify_strict(&message, &Signature::from_bytes(signature)).map_err(|_| bad)
}

fn signed_message(domain: Domain, network: NetworkId, body: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, domain.name().as_bytes(), b"/", network.as_bytes(), blake3::hash(body).as_bytes()].concat()
}

/// The key of a private network. It is wiped from memory when dropped, compared in constant time and never shown.
#[derive(Clone)]
pub struct NetworkSecret(Zeroizing<[u8; 32]>);

impl NetworkSecret {
    /// A key from 32 bytes of the operating system's random source, or as stored.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key, to be stored or put into an invite.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The pre-shared key of libp2p's private networks, derived so that this key itself never meets the wire.
    pub fn pre_shared_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key("brigade 1 private network pre-shared key", self.as_bytes()))
    }
}

impl PartialEq for NetworkSecret {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes().ct_eq(other.as_bytes()).into()
    }
}

impl Eq for NetworkSecret {}

impl fmt::Debug for NetworkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkSecret(hidden)")
    }
}

/// A text that cannot be a network's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a network's name has 1 to 64 ASCII letters, digits, dots, dashes and underscores, got \"{got}\"")]
pub struct BadNetworkName {
    /// The name as given, cut to 80 characters, control characters escaped.
    pub got: String,
}

/// Checks that `name` can be a network's.
///
/// # Errors
/// [`BadNetworkName`] if it is empty, longer than [`MAX_NETWORK_NAME`] or holds other characters than ASCII letters,
/// digits, `.`, `-` and `_`.
pub fn check_network_name(name: &str) -> Result<(), BadNetworkName> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || name.len() > MAX_NETWORK_NAME || !name.bytes().all(allowed) {
        return Err(BadNetworkName { got: name.chars().take(80).flat_map(char::escape_debug).collect() });
    }
    Ok(())
}

impl NetworkId {
    /// The id of the network called `name`; a private one's depends on its secret too, and tells nothing of it.
    ///
    /// blake3 in key derivation mode over the name's length as eight bytes, the name, and the secret if there is one.
    pub fn of(name: &str, secret: Option<&NetworkSecret>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("brigade 1 network id");
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        if let Some(secret) = secret {
            hasher.update(secret.as_bytes());
        }
        Self::new(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str) -> NetworkId {
        NetworkId::of(name, None)
    }

    #[test]
    fn a_signature_holds_for_one_author_domain_network_and_body() {
        let (author, other) = (Identity::generate([1; 32]), Identity::generate([2; 32]));
        let signature = author.sign(Domain::Profile, network("a"), b"body");
        let check = |peer: PeerKey, domain, id, body: &[u8]| verify(peer, domain, id, body, &signature).is_ok();

        assert!(check(author.peer(), Domain::Profile, network("a"), b"body"));
        assert!(!check(other.peer(), Domain::Profile, network("a"), b"body"));
        assert!(!check(author.peer(), Domain::Card, network("a"), b"body"));
        assert!(!check(author.peer(), Domain::Profile, network("b"), b"body"));
        assert!(!check(author.peer(), Domain::Profile, network("a"), b"bode"));
    }

    #[test]
    fn a_flipped_bit_anywhere_breaks_a_signature() {
        let author = Identity::generate([1; 32]);
        let signature = author.sign(Domain::Credit, network("a"), b"body");

        for bit in 0..512 {
            let mut broken = signature;
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(author.peer(), Domain::Credit, network("a"), b"body", &broken).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_weak_key_signs_nothing() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let mut signature = [0; 64];
        signature[0] = 1;

        let verdict = verify(PeerKey::new(identity_point), Domain::Card, network("a"), b"any", &signature);

        assert!(verdict.is_err());
    }

    #[test]
    fn an_identity_survives_its_storing() {
        let identity = Identity::generate([7; 32]);

        assert_eq!(Identity::from_secret_bytes(&identity.secret_bytes()).peer(), identity.peer());
    }

    #[test]
    fn a_network_is_its_name_and_secret() {
        let (one, two) = (NetworkSecret::new([1; 32]), NetworkSecret::new([2; 32]));
        let ids = [
            NetworkId::of("a", None),
            NetworkId::of("b", None),
            NetworkId::of("a", Some(&one)),
            NetworkId::of("a", Some(&two)),
        ];

        for (place, id) in ids.iter().enumerate() {
            assert!(!ids[..place].contains(id));
        }
        assert_ne!(*one.pre_shared_key(), *one.as_bytes());
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = NetworkSecret::new([0xab; 32]);
        let identity = Identity::generate([0xab; 32]);

        assert_eq!(format!("{secret:?}"), "NetworkSecret(hidden)");
        assert_eq!(format!("{identity:?}"), format!("Identity({})", identity.peer().short()));
    }

    #[test]
    fn a_network_name_is_short_and_plain() {
        assert_eq!(check_network_name("home.lab-2_x"), Ok(()));
        for bad in ["", "two words", "a/b", "é", "a\n", &"a".repeat(65)] {
            assert!(check_network_name(bad).is_err(), "{bad:?}");
        }
    }
}
