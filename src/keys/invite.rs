//! The invite: one line of text that lets a person join a network.
//!
//! `brigade1-` and then, in base32 without padding and in lower case:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 2 | length of the whole body, little-endian |
//! | 1 + n | the network's name |
//! | 1 (+ 32) | 1 and the network's secret, or 0 |
//! | 1 | how many addresses |
//! | 1 + n each | the addresses |
//! | 4 | the first bytes of the blake3 of all before |

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::keys::BadNetworkName;
use crate::keys::NetworkSecret;
use crate::keys::check_network_name;

const PREFIX: &str = "brigade1-";
const VERSION: u8 = 1;
const CHECKSUM: usize = 4;
/// The shortest body: version, length, a name of one letter, no secret, no addresses, checksum.
const MIN_BODY: usize = 1 + 2 + 2 + 1 + 1 + CHECKSUM;

/// The most addresses of one invite (arbitrary).
pub const MAX_ADDRESSES: usize = 16;

/// The longest address, in bytes; what one byte can count.
pub const MAX_ADDRESS: usize = 255;

/// The longest text that is looked at: an invite with all addresses at their longest takes 6,700 characters.
const MAX_TEXT: usize = 8_192;

/// What somebody needs to join a network. Whoever sees a private network's invite can join it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    network: String,
    secret: Option<NetworkSecret>,
    addresses: Vec<String>,
}

/// Why there is no such invite.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadInvite {
    /// It does not begin as one.
    #[error("an invite begins with \"{PREFIX}\"")]
    NotAnInvite,
    /// A character that invites don't have.
    #[error("character {position} does not belong in an invite")]
    BadCharacter {
        /// Counted from 1.
        position: usize,
    },
    /// The end is missing.
    #[error("the invite is cut off: expected {expected} bytes, got {got}")]
    Truncated {
        /// Bytes of the whole body.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// There is more than an invite.
    #[error("the invite is too long: expected {expected} bytes, got {got}")]
    TooLong {
        /// Bytes of the whole body.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A form that this build does not know.
    #[error("expected an invite of version {VERSION}, got version {got}; a newer brigade may read it")]
    Version {
        /// The version given.
        got: u8,
    },
    /// A mistyped or damaged invite.
    #[error("the invite's checksum does not match: a character is wrong")]
    Checksum,
    /// Whole, but not of the form.
    #[error("the invite's contents are not of the expected form")]
    Malformed,
    /// The network's name cannot be one.
    #[error(transparent)]
    Name(#[from] BadNetworkName),
    /// Too many addresses.
    #[error("an invite holds at most {MAX_ADDRESSES} addresses, got {got}")]
    TooManyAddresses {
        /// Addresses given.
        got: usize,
    },
    /// An address that is empty, too long or not plain text.
    #[error("address {place} of the invite is empty, longer than {MAX_ADDRESS} bytes or not plain ASCII")]
    Address {
        /// Counted from 1.
        place: usize,
    },
}

impl Invite {
    /// Checks the name and the addresses.
    ///
    /// # Errors
    /// [`BadInvite::Name`], [`BadInvite::TooManyAddresses`] or [`BadInvite::Address`].
    pub fn new(network: String, secret: Option<NetworkSecret>, addresses: Vec<String>) -> Result<Self, BadInvite> {
        check_network_name(&network)?;
        if addresses.len() > MAX_ADDRESSES {
            return Err(BadInvite::TooManyAddresses { got: addresses.len() });
        }
        let plain =
            |text: &String| (1..=MAX_ADDRESS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if let Some(place) = addresses.iter().position(|address| !plain(address)) {
            return Err(BadInvite::Address { place: place + 1 });
        }
        Ok(Self { network, secret, addresses })
    }

    /// The network's name.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The network's secret, if it is private.
    pub fn secret(&self) -> Option<&NetworkSecret> {
        self.secret.as_ref()
    }

    /// Where peers of it were reachable, at most [`MAX_ADDRESSES`].
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    fn body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Zeroizing::new(vec![VERSION, 0, 0]);
        push_short(&mut body, self.network.as_bytes());
        match &self.secret {
            Some(secret) => {
                body.push(1);
                body.extend_from_slice(secret.as_bytes());
            }
            None => body.push(0),
        }
        body.push(u8::try_from(self.addresses.len()).unwrap_or(u8::MAX));
        for address in &self.addresses {
            push_short(&mut body, address.as_bytes());
        }
        let length = u16::try_from(body.len() + CHECKSUM).unwrap_or(u16::MAX);
        body[1..3].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&body);
        body.extend_from_slice(&checksum);
        body
    }
}

/// Appends a length of one byte and `bytes`; the constructor has bounded them.
fn push_short(body: &mut Vec<u8>, bytes: &[u8]) {
    body.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    body.extend_from_slice(bytes);
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    let hash = blake3::hash(bytes);
    let [a, b, c, d, ..] = *hash.as_bytes();
    [a, b, c, d]
}

impl fmt::Display for Invite {
    /// Shows the secret: an invite is made to be handed over.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&self.body()).to_ascii_lowercase())
    }
}

impl FromStr for Invite {
    type Err = BadInvite;

    /// Letters may be of either case; blanks around the text don't matter.
    fn from_str(text: &str) -> Result<Self, BadInvite> {
        let text = text.trim();
        let (prefix, code) = text.split_at_checked(PREFIX.len()).ok_or(BadInvite::NotAnInvite)?;
        if !prefix.eq_ignore_ascii_case(PREFIX) {
            return Err(BadInvite::NotAnInvite);
        }
        if text.len() > MAX_TEXT {
            return Err(BadInvite::TooLong { expected: MAX_TEXT, got: text.len() });
        }
        let body = decode_base32(code)?;
        check_frame(&body)?;
        parse(&body[3..body.len() - CHECKSUM])
    }
}

fn decode_base32(code: &str) -> Result<Zeroizing<Vec<u8>>, BadInvite> {
    let upper = Zeroizing::new(code.to_ascii_uppercase());
    let bad = |character: char| !matches!(character, 'A'..='Z' | '2'..='7');
    if let Some(place) = upper.chars().position(bad) {
        return Err(BadInvite::BadCharacter { position: PREFIX.len() + place + 1 });
    }
    // A cut can leave a number of characters, or bits after the last whole byte, that no body has.
    let whole = 5 * upper.len() / 8;
    let bytes =
        BASE32_NOPAD.decode(upper.as_bytes()).map_err(|_| BadInvite::Truncated { expected: whole + 1, got: whole })?;
    Ok(Zeroizing::new(bytes))
}

/// Checks version, length and checksum.
fn check_frame(body: &[u8]) -> Result<(), BadInvite> {
    let got = body.len();
    match body.first() {
        Some(&VERSION) => {}
        Some(&got) => return Err(BadInvite::Version { got }),
        None => return Err(BadInvite::Truncated { expected: MIN_BODY, got }),
    }
    if got < MIN_BODY {
        return Err(BadInvite::Truncated { expected: MIN_BODY, got });
    }
    let expected = usize::from(u16::from_le_bytes([body[1], body[2]]));
    if got < expected {
        return Err(BadInvite::Truncated { expected, got });
    }
    if got > expected {
        return Err(BadInvite::TooLong { expected, got });
    }
    let (said, sum) = body.split_at(got - CHECKSUM);
    if checksum(said) != *sum {
        return Err(BadInvite::Checksum);
    }
    Ok(())
}

/// Reads what stands between length and checksum.
fn parse(mut rest: &[u8]) -> Result<Invite, BadInvite> {
    let network = take_text(&mut rest)?;
    let secret = match take(&mut rest, 1)? {
        [0] => None,
        [1] => Some(NetworkSecret::new(take(&mut rest, 32)?.try_into().map_err(|_| BadInvite::Malformed)?)),
        _ => return Err(BadInvite::Malformed),
    };
    let count = usize::from(take(&mut rest, 1)?[0]);
    let addresses = (0..count).map(|_| take_text(&mut rest)).collect::<Result<_, _>>()?;
    if !rest.is_empty() {
        return Err(BadInvite::Malformed);
    }
    Invite::new(network, secret, addresses)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], BadInvite> {
    let (taken, left) = rest.split_at_checked(count).ok_or(BadInvite::Malformed)?;
    *rest = left;
    Ok(taken)
}

fn take_text(rest: &mut &[u8]) -> Result<String, BadInvite> {
    let length = usize::from(take(rest, 1)?[0]);
    String::from_utf8(take(rest, length)?.to_vec()).map_err(|_| BadInvite::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn invite() -> Invite {
        let addresses = vec!["/ip4/192.0.2.7/tcp/2744".to_owned(), "/ip6/2001:db8::1/tcp/2744".to_owned()];
        Invite::new("home".to_owned(), Some(NetworkSecret::new([0x5a; 32])), addresses).unwrap()
    }

    #[test]
    fn an_invite_reads_back_what_it_says() {
        let open = Invite::new("local".to_owned(), None, Vec::new()).unwrap();

        assert_eq!(invite().to_string().parse(), Ok(invite()));
        assert_eq!(format!("  {}\n", invite().to_string().to_uppercase()).parse(), Ok(invite()));
        assert_eq!(open.to_string().parse(), Ok(open));
    }

    #[test]
    fn an_old_invite_still_reads() {
        let old = "brigade1-aehaabdin5wwkaaawtezh6i";
        let invite = Invite::new("home".to_owned(), None, Vec::new()).unwrap();

        assert_eq!(invite.to_string(), old);
        assert_eq!(old.parse(), Ok(invite));
    }

    #[test]
    fn every_cut_is_named_as_one() {
        let text = invite().to_string();

        for length in PREFIX.len()..text.len() {
            let fault = text[..length].parse::<Invite>().unwrap_err();
            assert!(matches!(fault, BadInvite::Truncated { .. }), "{length}: {fault}");
        }
    }

    #[test]
    fn a_wrong_character_is_found() {
        let text = invite().to_string();

        for place in PREFIX.len() + 5..text.len() {
            let mut letters = text.clone().into_bytes();
            letters[place] = if letters[place] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(letters).unwrap().parse::<Invite>().is_err(), "{place}");
        }
        assert_eq!("brigade1-ae1".parse::<Invite>(), Err(BadInvite::BadCharacter { position: 12 }));
    }

    #[test]
    fn another_version_and_other_text_are_told_apart() {
        let mut body = invite().body().to_vec();
        body[0] = 9;
        let newer = format!("{PREFIX}{}", BASE32_NOPAD.encode(&body));

        assert_eq!(newer.parse::<Invite>(), Err(BadInvite::Version { got: 9 }));
        assert_eq!("hello".parse::<Invite>(), Err(BadInvite::NotAnInvite));
        assert_eq!("ééééééééé".parse::<Invite>(), Err(BadInvite::NotAnInvite));
    }

    #[test]
    fn neither_debug_nor_errors_show_the_secret() {
        let text = invite().to_string();
        let code = &text[PREFIX.len()..];

        assert!(!format!("{:?}", invite()).contains("5a5a") && !format!("{:?}", invite()).contains("90, 90"));
        for broken in [&text[..40], &format!("{text}aaaa"), &text.replace('a', "b")] {
            let fault = broken.parse::<Invite>().unwrap_err();
            assert!(!fault.to_string().contains(&code[..8]) && !format!("{fault:?}").contains(&code[..8]));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(brigade1-)?[a-z2-7]{0,200}|\\PC{0,60}") {
            let _ = text.parse::<Invite>();
        }

        #[test]
        fn no_body_panics(mut body in proptest::collection::vec(any::<u8>(), 0..120)) {
            body.splice(0..0, [VERSION, 0, 0]);
            let length = u16::try_from(body.len() + CHECKSUM).unwrap();
            body[1..3].copy_from_slice(&length.to_le_bytes());
            let sum = checksum(&body);
            body.extend_from_slice(&sum);

            let parsed = format!("{PREFIX}{}", BASE32_NOPAD.encode(&body)).parse::<Invite>();

            if let Ok(invite) = parsed {
                prop_assert_eq!(invite.body().to_vec(), body);
            }
        }
    }
}
