//! Messages: what peers say to each other, valid by type.
//!
//! The prost types stay private here. Each message has one door in (`decode`, which checks every count, size and
//! name) and one out (`encode`); whatever passed the door needs no further check by its reader. Signed records
//! travel as `body bytes + signature` and are stored and relayed byte for byte.
//!
//! Each message has a `MAX`: the reader of a stream refuses a longer one before it allocates for it. Decoding takes
//! memory in proportion to the bytes given, at most about 40 times as much (a list of empty protobuf messages). All
//! that can go wrong at a door is a [`BadMessage`](bad::BadMessage) or a [`BadRecord`](signed::BadRecord), and it is
//! always the sender's fault.

pub mod bad;
pub mod card;
pub mod commitment;
pub mod control;
pub mod credit;
pub mod fetch;
pub mod gossip;
pub mod hello;
pub mod hop;
mod layout;
pub mod manifest;
pub mod profile;
pub mod signed;
pub mod text;
pub mod vocabulary;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod strategies;

/// The generated protobuf types.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/brigade.v1.rs"));
}

/// Gives a message its two doors, from the conversions between it and its protobuf type.
macro_rules! doors {
    ($message:ident, $max:expr) => {
        impl $message {
            /// The most bytes of an encoded message.
            pub const MAX: usize = $max;

            /// Reads a message and checks all of it.
            ///
            /// # Errors
            /// [`BadMessage`](crate::wire::bad::BadMessage) with the first fault found.
            pub fn decode(bytes: &[u8]) -> Result<Self, crate::wire::bad::BadMessage> {
                let name = stringify!($message);
                crate::wire::bad::protobuf::<crate::wire::proto::$message>(name, Self::MAX, bytes)?.try_into()
            }

            /// The bytes for another peer's [`decode`](Self::decode).
            pub fn encode(&self) -> bytes::Bytes {
                prost::Message::encode_to_vec(&crate::wire::proto::$message::from(self)).into()
            }
        }
    };
}

/// Maps an enum to the protobuf one of the same name and variants, and back.
macro_rules! same_names {
    ($name:ident, $field:literal: $($variant:ident)*) => {
        impl $name {
            pub(in crate::wire) const fn code(self) -> i32 {
                match self { $(Self::$variant => crate::wire::proto::$name::$variant as i32,)* }
            }

            pub(in crate::wire) fn from_code(code: i32) -> Result<Self, crate::wire::bad::BadMessage> {
                match crate::wire::proto::$name::try_from(code) {
                    $(Ok(crate::wire::proto::$name::$variant) => Ok(Self::$variant),)*
                    Ok(crate::wire::proto::$name::Unspecified) | Err(_) => {
                        Err(crate::wire::bad::BadMessage::Unknown { field: $field, got: i64::from(code) })
                    }
                }
            }
        }
    };
}

use doors;
use same_names;
