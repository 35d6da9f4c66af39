//! The header of a safetensors file: which tensor lies where.
//!
//! Eight bytes of length, JSON, data. Every length and offset is compared with the file before it is used; the data must be covered
//! by tensors without gaps and overlaps, as the format asks for.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::Visitor;
use thiserror::Error;

use crate::shape::WeightFormat;
use crate::weights::files::Place;
use crate::weights::gguf::data_length;

/// Bytes of a header; some thousand tensors take some hundred thousand. Arbitrary.
const MAX_HEADER: u64 = 16 << 20;

/// Tensors in one file. Arbitrary.
const MAX_TENSORS: usize = 1 << 16;

/// Dimensions of one tensor, as GGUF's.
const MAX_DIMENSIONS: usize = 4;

/// The key that stands for no tensor.
const METADATA: &str = "__metadata__";

/// Why a file is no safetensors file that can be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The file ends before its header does.
    #[error("the header needs {expected} bytes, got {got}")]
    Truncated {
        /// Bytes that the file should have at least.
        expected: u64,
        /// Bytes that it has.
        got: u64,
    },
    /// A header beyond any sensible file.
    #[error("headers of at most {limit} bytes are accepted, got {got}")]
    TooLong {
        /// The most bytes.
        limit: u64,
        /// What the file says.
        got: u64,
    },
    /// A header that is not the JSON that it should be.
    #[error("the header is malformed: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: String,
    },
    /// The same name twice.
    #[error("the tensor \"{tensor}\" appears twice")]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// Data that does not begin where the last one ended.
    #[error("the data of tensor \"{tensor}\" should begin at {expected} and end later, got {start} to {end}")]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Where the data before it ends.
        expected: u64,
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// The file is shorter or longer than its tensors.
    #[error("the tensors have {expected} bytes, the file has {got} for them")]
    Length {
        /// Bytes of all tensors.
        expected: u64,
        /// Bytes behind the header.
        got: u64,
    },
    /// A tensor in a format that the engine does not read.
    #[error("tensor \"{tensor}\" is stored as {format}, which is not supported; F32, F16 and BF16 are")]
    Format {
        /// The tensor.
        tensor: String,
        /// The format.
        format: String,
    },
    /// A tensor whose dimensions make no sense.
    #[error("tensor \"{tensor}\" has the dimensions {dimensions:?}: {reason}")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// As read, the slowest-varying first; the first few of many.
        dimensions: Vec<u64>,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A tensor with more or fewer bytes than its dimensions ask for.
    #[error("tensor \"{tensor}\" should have {expected} bytes, got {got}")]
    TensorLength {
        /// The tensor.
        tensor: String,
        /// By format and dimensions.
        expected: u64,
        /// By the offsets.
        got: u64,
    },
}

/// A tensor as the header has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: String,
    format: String,
    /// The slowest-varying first.
    dimensions: Vec<u64>,
    /// From the beginning of the file.
    start: u64,
    length: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct Table(Vec<(String, Entry)>);

/// Reads the header of a file; no tensor reaches beyond it.
pub(super) fn rows(file: &[u8]) -> Result<Vec<Row>, HeaderError> {
    let got = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(HeaderError::Truncated { expected: 8, got });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(HeaderError::TooLong { limit: MAX_HEADER, got: length });
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(HeaderError::Truncated { expected: 8 + length, got });
    };
    let malformed = |error: serde_json::Error| HeaderError::Malformed { reason: error.to_string() };
    let Table(mut entries) = serde_json::from_slice(header).map_err(malformed)?;
    entries.sort_by(|one, other| (one.1.data_offsets, &one.0).cmp(&(other.1.data_offsets, &other.0)));
    lay_out(entries, 8 + length, data.len() as u64)
}

/// Finds every tensor's data, one behind the other.
fn lay_out(entries: Vec<(String, Entry)>, data_start: u64, data_length: u64) -> Result<Vec<Row>, HeaderError> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut expected = 0;
    for (name, Entry { dtype, shape, data_offsets: [start, end] }) in entries {
        if start != expected || end <= start {
            return Err(HeaderError::Offsets { tensor: name, expected, start, end });
        }
        if end > data_length {
            return Err(HeaderError::Length { expected: end, got: data_length });
        }
        expected = end;
        let row = Row {
            name: name.clone(),
            format: dtype,
            dimensions: shape,
            start: data_start + start,
            length: end - start,
        };
        if rows.insert(name.clone(), row).is_some() {
            return Err(HeaderError::Duplicate { tensor: name });
        }
    }
    if expected != data_length {
        return Err(HeaderError::Length { expected, got: data_length });
    }
    Ok(rows.into_values().collect())
}

impl Row {
    /// Where the tensor lies in its file, if it is one that the engine reads.
    pub(super) fn place(self) -> Result<Place, HeaderError> {
        let Self { name: tensor, format, mut dimensions, start, length } = self;
        let known = [WeightFormat::F32, WeightFormat::F16, WeightFormat::BF16];
        let Some(format) = known.into_iter().find(|known| known.name() == format) else {
            return Err(HeaderError::Format { tensor, format });
        };
        if dimensions.len() > MAX_DIMENSIONS {
            dimensions.truncate(MAX_DIMENSIONS + 1);
            return Err(HeaderError::Dimensions { tensor, dimensions, reason: "at most four are accepted" });
        }
        dimensions.reverse();
        let expected = match data_length(format, &dimensions) {
            Ok(expected) => expected,
            Err(reason) => {
                dimensions.reverse();
                return Err(HeaderError::Dimensions { tensor, dimensions, reason });
            }
        };
        if expected != length {
            return Err(HeaderError::TensorLength { tensor, expected, got: length });
        }
        // Both are below the file's length, which is that of a slice.
        Ok(Place { format, dimensions, start: start as usize, length: length as usize, part: 0 })
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("it has more than {MAX_TENSORS} tensors")));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Table(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_found_where_the_header_says() {
        let file = file(
            r#"{"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}"#,
            12,
        );

        let mut rows = rows(&file).unwrap().into_iter();
        let (a, b) = (rows.next().unwrap(), rows.next().unwrap());

        assert_eq!((a.name.as_str(), b.name.as_str()), ("a", "b"));
        let place = b.place().unwrap();
        assert_eq!((place.format, place.dimensions.as_slice()), (WeightFormat::F32, [1, 2].as_slice()));
        assert_eq!((place.start, place.length), (file.len() - 8, 8));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#, 12);

        assert!(rows(&file).is_ok());
        for length in 0..file.len() {
            assert!(rows(&file[..length]).is_err(), "{length}");
        }
        assert_eq!(rows(&[file.as_slice(), &[0]].concat()), Err(HeaderError::Length { expected: 12, got: 13 }));
    }

    #[test]
    fn lengths_that_lie_are_refused_before_anything_is_read() {
        let with_length = |length: u64| rows(&[length.to_le_bytes().as_slice(), b"{}"].concat());

        assert_eq!(with_length(3), Err(HeaderError::Truncated { expected: 11, got: 10 }));
        assert_eq!(with_length(u64::MAX), Err(HeaderError::TooLong { limit: MAX_HEADER, got: u64::MAX }));
        assert_eq!(with_length(2), Ok(Vec::new()));
    }

    #[test]
    fn offsets_that_lie_are_refused() {
        let with = |entries: &str| rows(&file(&format!("{{{entries}}}"), 8));
        let one = |name: &str, start: u64, end: u64| {
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{start},{end}]}}"#)
        };

        assert!(matches!(with(&one("a", 1, 8)), Err(HeaderError::Offsets { expected: 0, start: 1, .. })));
        assert!(matches!(with(&one("a", 8, 0)), Err(HeaderError::Offsets { .. })));
        assert!(matches!(with(&one("a", 0, 0)), Err(HeaderError::Offsets { .. })));
        assert!(matches!(with(&one("a", 0, u64::MAX)), Err(HeaderError::Length { expected: u64::MAX, got: 8 })));
        assert!(matches!(with(&one("a", 0, 4)), Err(HeaderError::Length { expected: 4, got: 8 })));
        let overlap = [one("a", 0, 5), one("b", 4, 8)].join(",");
        assert!(matches!(with(&overlap), Err(HeaderError::Offsets { expected: 5, start: 4, .. })));
        let twice = [one("a", 0, 4), one("a", 4, 8)].join(",");
        assert_eq!(with(&twice), Err(HeaderError::Duplicate { tensor: "a".to_owned() }));
        // Together they come to 2⁶⁴.
        let half = u64::MAX / 2 + 1;
        assert!(with(&[one("a", 0, half), one("b", half, u64::MAX)].join(",")).is_err());
    }

    #[test]
    fn dimensions_and_formats_that_cannot_be_are_refused() {
        let place = |dtype: &str, shape: &str| {
            let header = format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,8]}}}}"#);
            rows(&file(&header, 8))?.remove(0).place().map(|place| place.dimensions)
        };

        assert_eq!(place("F16", "[2,2]"), Ok(vec![2, 2]));
        assert!(matches!(place("F8_E4M3", "[8]"), Err(HeaderError::Format { format, .. }) if format == "F8_E4M3"));
        assert!(matches!(place("F32", "[3]"), Err(HeaderError::TensorLength { expected: 12, got: 8, .. })));
        for shape in ["[]", "[0]", "[1,1,1,1,2]", "[4294967296,4294967296,4294967296]"] {
            assert!(matches!(place("F32", shape), Err(HeaderError::Dimensions { .. })), "{shape}");
        }
        for shape in ["[-1]", "[1.5]", "{}", "[18446744073709551616]"] {
            assert!(matches!(place("F32", shape), Err(HeaderError::Malformed { .. })), "{shape}");
        }
    }

    #[test]
    fn what_is_no_table_of_tensors_is_refused() {
        let deep = "[".repeat(100_000);
        for header in ["", "[]", "{", r#"{"a":1}"#, r#"{"a":{"dtype":"F32"}}"#, "\u{fffd}", deep.as_str()] {
            assert!(matches!(rows(&file(header, 0)), Err(HeaderError::Malformed { .. })), "{header:.20}");
        }
        let many: Vec<String> = (0..=MAX_TENSORS)
            .map(|number| format!(r#""{number}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#))
            .collect();
        let error = rows(&file(&format!("{{{}}}", many.join(",")), 1)).unwrap_err();
        assert!(error.to_string().contains("more than 65536 tensors"), "{error}");
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
    }
}
