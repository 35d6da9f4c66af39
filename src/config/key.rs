//! The API's key.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The shortest key (arbitrary; `openssl rand -hex 16` gives 32).
pub const MIN_LENGTH: usize = 16;

/// A secret that HTTP requests carry. Compared in constant time, wiped when dropped, never shown.
#[derive(Clone)]
pub struct ApiKey(Zeroizing<String>);

/// A text that is no key for an API. The text itself is not shown.
#[derive(Debug, thiserror::Error)]
pub enum BadApiKey {
    /// Too easily guessed.
    #[error("expected at least {MIN_LENGTH} characters, got {got}")]
    Short {
        /// Characters given.
        got: usize,
    },
    /// It could not stand in a header.
    #[error("expected visible ASCII characters without blanks")]
    Characters,
    /// Its file cannot be read.
    #[error("{} cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ApiKey {
    /// # Errors
    /// [`BadApiKey::Short`] or [`BadApiKey::Characters`].
    pub fn new(text: &str) -> Result<Self, BadApiKey> {
        if text.len() < MIN_LENGTH {
            return Err(BadApiKey::Short { got: text.len() });
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadApiKey::Characters);
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// A key from 32 bytes of the operating system's random source.
    pub fn from_random(random: &[u8; 32]) -> Self {
        Self(Zeroizing::new(data_encoding::HEXLOWER.encode(random)))
    }

    /// Whether `given` is this key; takes as long whatever the difference.
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }

    /// The key itself, for whoever must send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// Reads a key from `file`; blanks around it don't matter.
///
/// # Errors
/// [`BadApiKey::Read`].
pub fn read(file: &Path) -> Result<String, BadApiKey> {
    let text = std::fs::read_to_string(file).map_err(|source| BadApiKey::Read { file: file.to_owned(), source })?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_matches_itself_only_and_is_not_shown() {
        let key = ApiKey::new("0123456789abcdef").unwrap();

        assert!(key.matches(b"0123456789abcdef"));
        assert!(!key.matches(b"0123456789abcdeg") && !key.matches(b"0123456789abcde") && !key.matches(b""));
        assert_eq!(format!("{key:?}"), "ApiKey(hidden)");
    }

    #[test]
    fn a_key_that_is_short_or_has_blanks_is_refused() {
        assert!(matches!(ApiKey::new("short"), Err(BadApiKey::Short { got: 5 })));
        assert!(matches!(ApiKey::new("sixteen and more !"), Err(BadApiKey::Characters)));
    }
}
