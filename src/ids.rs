//! Names of things: every id, epoch and token travels as its own type, never as a bare integer.

use std::fmt;
use std::str::FromStr;

/// A text that is not the hexadecimal form of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadId {
    /// The number of hexadecimal digits that the id has.
    pub expected_digits: usize,
    /// The text as given, cut to 80 characters.
    pub got: String,
}

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} hexadecimal digits, got \"{}\"", self.expected_digits, self.got)
    }
}

impl std::error::Error for BadId {}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], BadId> {
    let bad = || BadId { expected_digits: 2 * N, got: text.chars().take(80).collect() };
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// Bytes in the id.
            pub const LEN: usize = $bytes;

            /// Wraps raw bytes.
            pub const fn new(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first eight hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_hex(text).map(Self)
            }
        }
    };
}

hex_id!(
    /// A peer's identity: its ed25519 public key.
    PeerKey, 32
);
hex_id!(
    /// A network: blake3 of its name and, for a private one, its key.
    NetworkId, 32
);
hex_id!(
    /// A model: blake3 of its manifest's bytes.
    ModelId, 32
);
hex_id!(
    /// The blake3 of any stored content.
    BlobHash, 32
);
hex_id!(
    /// What the rows of a session hash to, one after another, from its beginning to some position.
    RowsHash, 32
);
hex_id!(
    /// One generation, named at random by its requester.
    SessionId, 16
);

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The one that follows; stays at the largest value.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// The version of a session's chain; frames of an older one are refused.
    Epoch, u32
);
counter!(
    /// Counts the frames of one hop and epoch, from 0, without a gap.
    Step, u64
);
counter!(
    /// A stage's place in its chain; 0 is the driver.
    StageIndex, u16
);
counter!(
    /// One of the chains that compute the same answer; never leaves the process.
    ReplicaIndex, u16
);
counter!(
    /// A token id of a model's vocabulary.
    Token, u32
);
counter!(
    /// A request of this peer's own user; never leaves the process.
    RequestId, u64
);
counter!(
    /// A stream between this process and a peer (or itself); never leaves the process.
    StreamId, u64
);

/// Orders one peer's announcements: the boot number rises at each start, the sequence at each message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootSeq {
    /// Rises by one, and is synced to disk, at each start.
    pub boot: u64,
    /// Rises by one at each announcement of this boot.
    pub seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_shows() {
        let id = ModelId::new([0xab; 32]);

        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "abababab");
    }

    #[test]
    fn an_id_of_the_wrong_length_or_alphabet_is_refused() {
        assert!("abc".parse::<SessionId>().is_err());
        assert!("zz".repeat(16).parse::<SessionId>().is_err());
        assert!("é".repeat(16).parse::<SessionId>().is_err());
    }
}
