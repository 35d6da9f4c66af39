//! The `tojson` of chat templates: as Python's `json.dumps` writes it, which is what models were trained on.

use std::io;
use std::io::Write;

use minijinja::Error;
use minijinja::ErrorKind;
use minijinja::value::Kwargs;
use minijinja::value::Value;
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::ser::PrettyFormatter;
use serde_json::ser::Serializer;

/// The largest indentation that a template may ask for. Arbitrary.
const MAX_INDENT: usize = 16;

/// Writes a value as JSON: on one line with `", "` and `": "`, or indented by `indent=N`. Other arguments of Python's
/// are ignored.
pub(super) fn filter(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent = options.get::<Option<usize>>("indent")?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(MAX_INDENT));
            value
                .serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(spaces.as_bytes())))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, OneLine)),
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, "cannot be written as JSON").with_source(error))?;
    Ok(Value::from(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Python's separators.
struct OneLine;

impl OneLine {
    fn separate<W: Write + ?Sized>(target: &mut W, is_first: bool) -> io::Result<()> {
        if is_first { Ok(()) } else { target.write_all(b", ") }
    }
}

impl Formatter for OneLine {
    fn begin_array_value<W: Write + ?Sized>(&mut self, target: &mut W, first: bool) -> io::Result<()> {
        Self::separate(target, first)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, target: &mut W, first: bool) -> io::Result<()> {
        Self::separate(target, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, target: &mut W) -> io::Result<()> {
        target.write_all(b": ")
    }
}
