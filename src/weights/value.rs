//! GGUF's metadata values.

use std::ops::Range;

use crate::weights::cursor::Cursor;
use crate::weights::gguf::GgufError;

/// How deep arrays may lie in arrays; no known key nests at all. Arbitrary.
const MAX_NESTING: u32 = 4;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any of the unsigned types.
    Unsigned(u64),
    /// Any of the signed types.
    Signed(i64),
    /// Either of the floating-point types.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array, which stays in the file.
    Array(ArrayValue),
}

/// An array's place in its file. Its elements were walked once when the file was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayValue {
    element: Kind,
    count: u64,
    place: Range<usize>,
}

/// GGUF's value types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Value {
    /// A short name of the type, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) => "an unsigned number",
            Self::Signed(_) => "a signed number",
            Self::Float(_) => "a floating-point number",
            Self::Bool(_) => "a truth value",
            Self::Text(_) => "a text",
            Self::Array(_) => "an array",
        }
    }

    /// The whole number of at least 0 that this is.
    pub fn as_unsigned(&self) -> Option<u64> {
        match self {
            Self::Unsigned(number) => Some(*number),
            Self::Signed(number) => u64::try_from(*number).ok(),
            Self::Float(_) | Self::Bool(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// The number that this is.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(*number as f64),
            Self::Signed(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Bool(_) | Self::Text(_) | Self::Array(_) => None,
        }
    }

    /// The array that this is.
    pub fn as_array(&self) -> Option<&ArrayValue> {
        match self {
            Self::Array(array) => Some(array),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Bool(_) | Self::Text(_) => None,
        }
    }

    /// Reads a type and a value of it.
    pub(super) fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        let kind = Kind::read(cursor, key)?;
        match kind {
            Kind::Text => cursor.text(key).map(Self::Text),
            Kind::Array => ArrayValue::read(cursor, key).map(Self::Array),
            Kind::Bool => match cursor.array::<1>(key)? {
                [0] => Ok(Self::Bool(false)),
                [1] => Ok(Self::Bool(true)),
                _ => Err(GgufError::Malformed { what: key.to_owned(), reason: "a truth value is neither 0 nor 1" }),
            },
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => kind.number(cursor, key),
            Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => kind.number(cursor, key),
            Kind::F32 | Kind::F64 => kind.number(cursor, key),
        }
    }
}

impl ArrayValue {
    /// How many elements.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The texts, or `None` if the elements are something else. Bytes that are not UTF-8 become U+FFFD.
    pub(super) fn texts(&self, file: &[u8]) -> Option<Vec<String>> {
        if self.element != Kind::Text {
            return None;
        }
        let mut cursor = Cursor::new(&file[self.place.clone()]);
        let text = |_| cursor.raw_text("").map(|bytes| String::from_utf8_lossy(bytes).into_owned()).ok();
        (0..self.count).map(text).collect()
    }

    /// The numbers, or `None` if the elements are something else.
    pub(super) fn floats(&self, file: &[u8]) -> Option<Vec<f64>> {
        let mut cursor = Cursor::new(&file[self.place.clone()]);
        let number = |_| self.element.number(&mut cursor, "").ok().and_then(|value| value.as_float());
        (0..self.count).map(number).collect()
    }

    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        let element = Kind::read(cursor, key)?;
        let count = cursor.u64(key)?;
        let start = cursor.position();
        element.skip(cursor, key, count, MAX_NESTING)?;
        Ok(Self { element, count, place: start..cursor.position() })
    }
}

impl Kind {
    fn read(cursor: &mut Cursor<'_>, key: &str) -> Result<Self, GgufError> {
        let code = cursor.u32(key)?;
        Self::from_code(code).ok_or_else(|| GgufError::ValueType { what: key.to_owned(), got: code })
    }

    const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of one value, where all have the same length.
    const fn width(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }

    /// Walks over `count` values. What is claimed costs nothing: each step needs bytes that are there.
    fn skip(self, cursor: &mut Cursor<'_>, key: &str, count: u64, nesting: u32) -> Result<(), GgufError> {
        if let Some(width) = self.width() {
            return cursor.take(key, count.saturating_mul(width)).map(|_| ());
        }
        for _ in 0..count {
            if self == Self::Text {
                cursor.raw_text(key)?;
                continue;
            }
            let Some(nesting) = nesting.checked_sub(1) else {
                let what = format!("arrays inside each other in {key}");
                return Err(GgufError::TooMany {
                    what,
                    limit: u64::from(MAX_NESTING),
                    got: u64::from(MAX_NESTING) + 1,
                });
            };
            let (element, inner) = (Self::read(cursor, key)?, cursor.u64(key)?);
            element.skip(cursor, key, inner, nesting)?;
        }
        Ok(())
    }

    /// Reads one number.
    fn number(self, cursor: &mut Cursor<'_>, key: &str) -> Result<Value, GgufError> {
        Ok(match self {
            Self::U8 => Value::Unsigned(u64::from(u8::from_le_bytes(cursor.array(key)?))),
            Self::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(cursor.array(key)?))),
            Self::U32 => Value::Unsigned(u64::from(cursor.u32(key)?)),
            Self::U64 => Value::Unsigned(cursor.u64(key)?),
            Self::I8 => Value::Signed(i64::from(i8::from_le_bytes(cursor.array(key)?))),
            Self::I16 => Value::Signed(i64::from(i16::from_le_bytes(cursor.array(key)?))),
            Self::I32 => Value::Signed(i64::from(i32::from_le_bytes(cursor.array(key)?))),
            Self::I64 => Value::Signed(i64::from_le_bytes(cursor.array(key)?)),
            Self::F32 => Value::Float(f64::from(f32::from_le_bytes(cursor.array(key)?))),
            Self::F64 => Value::Float(f64::from_le_bytes(cursor.array(key)?)),
            Self::Bool | Self::Text | Self::Array => {
                return Err(GgufError::Malformed { what: key.to_owned(), reason: "it is no number" });
            }
        })
    }
}
