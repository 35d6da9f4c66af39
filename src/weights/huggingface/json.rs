//! JSON files of bounded size, and numbers in them that are what they should be.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Map;
use serde_json::Value;

use crate::weights::files::FileError;
use crate::weights::huggingface::error::FolderError;
use crate::weights::llama::ModelError;
use crate::weights::llama::positive;

/// Bytes of a file of settings, or of a template; real ones have some thousand. Arbitrary.
const MAX_SETTINGS: u64 = 4 << 20;

/// Bytes of a tokenizer or of an index; the largest of the families that are read have 17 MB. Arbitrary.
pub(super) const MAX_TABLE: u64 = 48 << 20;

/// The bytes of a file that may have at most so many.
pub(super) fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>, FolderError> {
    let file = File::open(path).map_err(FileError::on("open", path))?;
    let got = file.metadata().map_err(FileError::on("look at", path))?.len();
    if got > limit {
        return Err(FolderError::TooLarge { path: path.to_owned(), limit, got });
    }
    let mut bytes = Vec::new();
    // A file that grows meanwhile is cut off and then malformed.
    file.take(limit).read_to_end(&mut bytes).map_err(FileError::on("read", path))?;
    Ok(bytes)
}

/// A file of settings as text; none if there is no such file.
pub(super) fn text(path: &Path) -> Result<Option<String>, FolderError> {
    if !path.exists() {
        return Ok(None);
    }
    let text = String::from_utf8(bytes(path, MAX_SETTINGS)?);
    text.map(Some).map_err(|error| malformed(path, error))
}

/// Reads a table.
pub(super) fn table<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    serde_json::from_slice(&bytes(path, MAX_TABLE)?).map_err(|error| malformed(path, error))
}

fn malformed(path: &Path, error: impl ToString) -> FolderError {
    FolderError::Malformed { path: path.to_owned(), reason: error.to_string() }
}

/// A file of settings, or an object in one.
#[derive(Clone, Debug, Default)]
pub(super) struct Object(Map<String, Value>);

impl Object {
    pub(super) fn read(path: &Path) -> Result<Self, FolderError> {
        let object = serde_json::from_slice(&bytes(path, MAX_SETTINGS)?);
        object.map(Self).map_err(|error| malformed(path, error))
    }

    /// As [`Self::read`]; a file that is not there is empty.
    pub(super) fn read_if_there(path: &Path) -> Result<Self, FolderError> {
        if path.exists() { Self::read(path) } else { Ok(Self::default()) }
    }

    pub(super) fn of(value: &Value) -> Option<Self> {
        value.as_object().cloned().map(Self)
    }

    /// The value of a key, even if it is null.
    pub(super) fn raw(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The value of a key, unless it is null.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A text, if it is there.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A truth value, if it is there.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A number, if it is there.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number above 0, if it is there.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.float(key)?.map(|number| positive(key, number)).transpose()
    }

    /// A whole number of 1 to 2³² − 1, if it is there.
    pub(super) fn number(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let whole = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|&it| it > 0);
        self.typed(key, "a whole number above 0 of 32 bits", whole)
    }

    /// As [`Self::number`], and it must be there.
    pub(super) fn needed(&self, key: &str) -> Result<u32, ModelError> {
        self.number(key)?.ok_or_else(|| ModelError::wrong(key, "a whole number", "nothing"))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        take: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        take(value).map(Some).ok_or_else(|| ModelError::wrong(key, expected, short(value)))
    }
}

/// A value for people.
fn short(value: &Value) -> String {
    if value.is_array() {
        return "a list".to_owned();
    }
    if value.is_object() { "an object".to_owned() } else { value.to_string().chars().take(60).collect() }
}
