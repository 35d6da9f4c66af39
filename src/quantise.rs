//! Quantiser 1: weights from any stored format to a smaller one, to the same bytes on every machine.
//!
//! A peer with little memory may hold a range at a smaller quantisation than the one it was published in. Peers that do
//! so from the same source hold the same weights to the last bit, so one id names them all. So everything here is a fixed
//! sequence of additions, subtractions, multiplications, divisions and square roots of IEEE 754 binary32, each rounded to
//! nearest even, none fused, denormals kept, and of integer operations; sums run in ascending order. What a compiler makes
//! side by side are whole parts, never one part's sum. Whatever changes a byte raises [`VERSION`]; golden hashes in the
//! tests hold it.
//!
//! | from | to | how |
//! |---|---|---|
//! | any format | `f32` | [`decode`]: GGUF's formulas |
//! | `f32` | `Q8_0`, `Q4_0` | [`encode`]: one scale from the largest weight, bit for bit as llama.cpp's reference |
//! | `f32` | `Q6_K`, `Q5_K`, `Q4_K` | [`encode`]: scales by weighted least squares over a few candidates, see `six` and `super_nibble` |
//!
//! Blocks never depend on each other, so a tensor may be fed in parts of any size that are whole blocks of both formats.

mod fault;
mod halves;
mod lanes;
mod six;
mod small;
mod stored;
mod super_nibble;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

use crate::quantise::fault::Fault;
use crate::shape::WeightFormat;

/// The version of the arithmetic: the same version makes the same bytes of the same weights, for ever.
pub const VERSION: u8 = 1;

/// What can be quantised to, from the most precise to the least.
pub const TARGETS: [WeightFormat; 5] =
    [WeightFormat::Q8_0, WeightFormat::Q6K, WeightFormat::Q5K, WeightFormat::Q4K, WeightFormat::Q4_0];

/// Why weights cannot be quantised. Elements are counted from the first of the weights given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantiseError {
    /// The bytes are not whole blocks.
    Ragged {
        /// The format that the bytes are of.
        format: WeightFormat,
        /// How many there are.
        bytes: usize,
    },
    /// The elements do not fill whole blocks.
    Unfilled {
        /// The format that they should fill.
        format: WeightFormat,
        /// How many there are.
        elements: usize,
    },
    /// The place for the elements has another size than they.
    WrongRoom {
        /// How many elements there are.
        expected: usize,
        /// How many there is room for.
        got: usize,
    },
    /// Nothing can be quantised to this format.
    NotATarget(WeightFormat),
    /// A weight is not a number, or infinite.
    NotFinite {
        /// The first such element.
        element: usize,
    },
    /// Weights are too large for the scales of their block, which are halves.
    TooLarge {
        /// The first element of the block.
        element: usize,
    },
}

impl fmt::Display for QuantiseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ragged { format, bytes } => write!(f, "{bytes} bytes are not whole blocks of {format}"),
            Self::Unfilled { format, elements } => write!(f, "{elements} elements do not fill blocks of {format}"),
            Self::WrongRoom { expected, got } => write!(f, "expected room for {expected} elements, got {got}"),
            Self::NotATarget(format) => write!(f, "nothing is quantised to {format}"),
            Self::NotFinite { element } => write!(f, "element {element} is not finite"),
            Self::TooLarge { element } => write!(f, "the block at element {element} is too large for its scales"),
        }
    }
}

impl std::error::Error for QuantiseError {}

/// Writes stored weights as `f32`: a multiplication and an addition for each, as GGUF has them.
///
/// - `data`: whole blocks of `format`
/// - `out`: as long as there are elements
///
/// A block whose scale is not finite gives what the operations give.
///
/// # Errors
/// `Ragged` and `WrongRoom` if the lengths do not fit.
pub fn decode(format: WeightFormat, data: &[u8], out: &mut [f32]) -> Result<(), QuantiseError> {
    let elements = elements(format, data.len())?;
    if out.len() != elements {
        return Err(QuantiseError::WrongRoom { expected: elements, got: out.len() });
    }
    stored::decode(format, data, out);
    Ok(())
}

/// Appends weights as blocks of `format`, one of [`TARGETS`].
///
/// What blocks of `Q8_0` and `Q4_0` decode to becomes the same blocks again; other formats promise no such thing.
///
/// # Errors
/// `NotATarget`, `Unfilled`, `NotFinite` or `TooLarge`; `out` is then as it was.
pub fn encode(format: WeightFormat, values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantiseError> {
    check(format, values.len())?;
    let before = out.len();
    let encoded = append(format, values, out);
    if encoded.is_err() {
        out.truncate(before);
    }
    encoded
}

/// Appends stored weights in another format, one of [`TARGETS`]. What is in that format already is kept as it is.
///
/// - `data`: whole blocks of `from` whose elements fill whole blocks of `to`
///
/// Needs 16 KiB of memory beside `data` and `out`. The parts of a tensor, one after the other, give what the whole gives.
///
/// # Errors
/// `NotATarget`, `Ragged`, `Unfilled`, `NotFinite` or `TooLarge`; `out` is then as it was.
pub fn requantise(from: WeightFormat, to: WeightFormat, data: &[u8], out: &mut Vec<u8>) -> Result<(), QuantiseError> {
    let elements = elements(from, data.len())?;
    check(to, elements)?;
    let before = out.len();
    out.reserve(elements / to.block_elements() as usize * to.block_bytes() as usize);
    let done = append_stored(from, to, data, out);
    if done.is_err() {
        out.truncate(before);
    }
    done
}

/// Elements that are decoded before they are encoded: a multiple of every block, small enough for a processor's nearest cache.
const STEP: usize = 4096;

fn append_stored(from: WeightFormat, to: WeightFormat, data: &[u8], out: &mut Vec<u8>) -> Result<(), QuantiseError> {
    let mut values = [0.0; STEP];
    let bytes = STEP / from.block_elements() as usize * from.block_bytes() as usize;
    for (step, data) in data.chunks(bytes).enumerate() {
        let values = &mut values[..elements(from, data.len())?];
        stored::decode(from, data, values);
        let appended = if from == to { keep(data, values, out) } else { append(to, values, out) };
        appended.map_err(|error| error.moved(step * STEP))?;
    }
    Ok(())
}

/// Appends bytes that are in the wanted format already.
fn keep(data: &[u8], values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantiseError> {
    if let Some(element) = values.iter().position(|value| !value.is_finite()) {
        return Err(QuantiseError::NotFinite { element });
    }
    out.extend_from_slice(data);
    Ok(())
}

fn append(format: WeightFormat, values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantiseError> {
    match format {
        WeightFormat::Q8_0 => each_block(values, out, small::byte),
        WeightFormat::Q6K => each_block(values, out, six::encode),
        WeightFormat::Q5K => each_block(values, out, super_nibble::five),
        WeightFormat::Q4K => each_block(values, out, super_nibble::four),
        WeightFormat::Q4_0 => each_block(values, out, small::nibble),
        WeightFormat::F32
        | WeightFormat::F16
        | WeightFormat::BF16
        | WeightFormat::Q4_1
        | WeightFormat::Q5_0
        | WeightFormat::Q5_1 => Err(QuantiseError::NotATarget(format)),
    }
}

fn each_block<const ELEMENTS: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut Vec<u8>,
    encode: impl Fn(&[f32; ELEMENTS]) -> Result<[u8; BYTES], Fault>,
) -> Result<(), QuantiseError> {
    for (block, values) in values.as_chunks().0.iter().enumerate() {
        let bytes = encode(values).map_err(|fault| located(fault, values, block))?;
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

fn located<const ELEMENTS: usize>(fault: Fault, values: &[f32; ELEMENTS], block: usize) -> QuantiseError {
    let first = block * ELEMENTS;
    match fault {
        Fault::TooLarge => QuantiseError::TooLarge { element: first },
        Fault::NotFinite => {
            let index = values.iter().position(|value| !value.is_finite());
            QuantiseError::NotFinite { element: first + index.unwrap_or_default() }
        }
    }
}

impl QuantiseError {
    /// The same of elements that are counted from `by` earlier on.
    fn moved(self, by: usize) -> Self {
        match self {
            Self::NotFinite { element } => Self::NotFinite { element: element + by },
            Self::TooLarge { element } => Self::TooLarge { element: element + by },
            Self::Ragged { .. } | Self::Unfilled { .. } | Self::WrongRoom { .. } | Self::NotATarget(_) => self,
        }
    }
}

/// How many elements so many bytes are.
fn elements(format: WeightFormat, bytes: usize) -> Result<usize, QuantiseError> {
    let block = format.block_bytes() as usize;
    if !bytes.is_multiple_of(block) {
        return Err(QuantiseError::Ragged { format, bytes });
    }
    Ok(bytes / block * format.block_elements() as usize)
}

/// Checks that `elements` can become whole blocks of `format`.
fn check(format: WeightFormat, elements: usize) -> Result<(), QuantiseError> {
    if !TARGETS.contains(&format) {
        return Err(QuantiseError::NotATarget(format));
    }
    if !elements.is_multiple_of(format.block_elements() as usize) {
        return Err(QuantiseError::Unfilled { format, elements });
    }
    Ok(())
}
