//! The first message of every stream: which versions and features its opener speaks.

use thiserror::Error;

use crate::wire::bad::BadMessage;
use crate::wire::bad::printable;
use crate::wire::doors;
use crate::wire::proto;
use crate::wire::text;

/// The lowest minor version that this build speaks.
pub const MIN_VERSION: u32 = 1;

/// The highest minor version that this build speaks.
pub const MAX_VERSION: u32 = 1;

/// The longest name and version of a software, in bytes.
pub const MAX_SOFTWARE: usize = 64;

/// The first message of every stream, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The lowest minor version spoken.
    pub min: u32,
    /// The highest minor version spoken.
    pub max: u32,
    /// A bit per optional feature; unknown bits are ignored.
    pub features: u64,
    /// Name and version of the software, for people, at most 64 bytes.
    pub software: String,
}

/// Two peers that have no version in common.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "no version in common: we ({}) speak {} to {}, they ({}) speak {} to {}",
    .ours.software, .ours.min, .ours.max, .theirs.software, .theirs.min, .theirs.max
)]
pub struct VersionMismatch {
    /// What this peer said.
    pub ours: Box<Hello>,
    /// What the other said.
    pub theirs: Box<Hello>,
}

impl Hello {
    /// What this build says; `software` is its name and version for people, cut to [`MAX_SOFTWARE`].
    pub fn current(software: &str) -> Self {
        Self { min: MIN_VERSION, max: MAX_VERSION, features: 0, software: text::printable(software, MAX_SOFTWARE) }
    }

    /// The highest minor version that both speak.
    ///
    /// # Errors
    /// [`VersionMismatch`] if there is none.
    pub fn agree(&self, theirs: &Self) -> Result<u32, VersionMismatch> {
        let highest = self.max.min(theirs.max);
        if highest < self.min.max(theirs.min) {
            return Err(VersionMismatch { ours: Box::new(self.clone()), theirs: Box::new(theirs.clone()) });
        }
        Ok(highest)
    }
}

doors!(Hello, 256);

impl TryFrom<proto::Hello> for Hello {
    type Error = BadMessage;

    fn try_from(message: proto::Hello) -> Result<Self, BadMessage> {
        let proto::Hello { min, max, features, software } = message;
        if min == 0 || min > max {
            return Err(BadMessage::OutOfRange { field: "hello versions" });
        }
        Ok(Self { min, max, features, software: printable("hello software", software, MAX_SOFTWARE)? })
    }
}

impl From<&Hello> for proto::Hello {
    fn from(hello: &Hello) -> Self {
        Self { min: hello.min, max: hello.max, features: hello.features, software: hello.software.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(min: u32, max: u32) -> Hello {
        Hello { min, max, ..Hello::current("brigade 0.1.0") }
    }

    #[test]
    fn peers_agree_on_the_highest_common_version() {
        assert_eq!(hello(1, 3).agree(&hello(2, 5)), Ok(3));
        assert_eq!(hello(2, 5).agree(&hello(1, 3)), Ok(3));
        assert_eq!(hello(1, 1).agree(&hello(1, 1)), Ok(1));
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let fault = hello(1, 2).agree(&hello(3, 4)).unwrap_err();

        assert_eq!(
            fault.to_string(),
            "no version in common: we (brigade 0.1.0) speak 1 to 2, they (brigade 0.1.0) speak 3 to 4"
        );
    }

    #[test]
    fn a_hello_of_no_version_or_for_no_terminal_is_refused() {
        let bell = Hello { software: "\u{7}".to_owned(), ..hello(1, 1) };

        assert_eq!(Hello::decode(&hello(0, 1).encode()), Err(BadMessage::OutOfRange { field: "hello versions" }));
        assert_eq!(Hello::decode(&hello(3, 2).encode()), Err(BadMessage::OutOfRange { field: "hello versions" }));
        assert_eq!(Hello::decode(&bell.encode()), Err(BadMessage::NotText { field: "hello software" }));
        assert!(matches!(Hello::decode(&[0; 257]), Err(BadMessage::TooLarge { limit: 256, got: 257, .. })));
    }
}
