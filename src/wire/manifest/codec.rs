//! The manifest's door.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::ids::BlobHash;
use crate::quantise;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::wire::bad::BadMessage;
use crate::wire::bad::ascending;
use crate::wire::bad::at_most;
use crate::wire::bad::positive;
use crate::wire::bad::within;
use crate::wire::fetch::MAX_TENSOR;
use crate::wire::layout::Reader;
use crate::wire::layout::put_count;
use crate::wire::layout::put_short;
use crate::wire::manifest::MAX_BLOCKS;
use crate::wire::manifest::MAX_CONTEXT;
use crate::wire::manifest::MAX_DIMENSIONS;
use crate::wire::manifest::MAX_MANIFEST;
use crate::wire::manifest::MAX_TENSOR_NAME;
use crate::wire::manifest::MAX_TENSORS;
use crate::wire::manifest::MAX_VOCAB;
use crate::wire::manifest::MAX_WIDTH;
use crate::wire::manifest::Manifest;
use crate::wire::manifest::TensorEntry;
use crate::wire::manifest::derived;

const MARK: [u8; 4] = *b"BRGM";

/// The version of models of the architecture `llama` with interleaved pairs and no window.
const FIRST: u16 = 1;

/// The version of all others that are their own source.
const SECOND: u16 = 2;

/// The version of models that are made from another one.
const DERIVED: u16 = 3;

/// The fewest bytes of an encoded tensor: name of one byte, one unit, one dimension.
const MIN_TENSOR: usize = 2 + 4 + 9 + 4 + 8 + 32;

impl Manifest {
    /// Reads a manifest and checks all of it.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMessage> {
        let got = bytes.len();
        if got > MAX_MANIFEST {
            return Err(BadMessage::TooLarge { message: "Manifest", limit: MAX_MANIFEST, got });
        }
        let mut reader = Reader::new("Manifest", bytes);
        match reader.begin_one_of(MARK, FIRST..=DERIVED)? {
            DERIVED => read_derived(reader),
            version => Self::read(reader, version),
        }
    }

    /// Reads what follows the version of a model that is its own source.
    fn read(mut reader: Reader<'_>, version: u16) -> Result<Self, BadMessage> {
        let shape = read_shape(&mut reader, version)?;
        let vocabulary = BlobHash::new(reader.array("vocabulary hash")?);
        let count = reader.u32("tensor count")? as usize;
        let count = reader.count("tensors", count, MAX_TENSORS, MIN_TENSOR)?;
        let tensors = (0..count).map(|_| read_tensor(&mut reader)).collect::<Result<_, _>>()?;
        reader.end()?;
        let manifest = Self { shape, vocabulary, tensors, derivation: None };
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest's one encoding. Other peers accept it if [`check`](Self::check) does.
    pub fn encode(&self) -> bytes::Bytes {
        if let Some(derivation) = &self.derivation {
            return put_derived(&derivation.source.encode(), derivation.format);
        }
        let mut out = Vec::with_capacity(256 + 160 * self.tensors.len());
        out.extend_from_slice(&MARK);
        out.extend_from_slice(&version_of(&self.shape).to_le_bytes());
        put_shape(&mut out, &self.shape);
        out.extend_from_slice(self.vocabulary.as_bytes());
        put_count(&mut out, self.tensors.len());
        for tensor in &self.tensors {
            put_tensor(&mut out, tensor);
        }
        out.into()
    }

    /// Checks what whoever builds a manifest promises: a sound shape, tensors in order that agree with it.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn check(&self) -> Result<(), BadMessage> {
        if let Some(derivation) = &self.derivation {
            derivation.source.check()?;
            let is_it = derivation.source.derive(derivation.format).is_some_and(|derived| derived == *self);
            return if is_it { Ok(()) } else { Err(BadMessage::OutOfRange { field: "derived format" }) };
        }
        check_shape(&self.shape)?;
        if self.tensors.is_empty() {
            return Err(BadMessage::Missing { field: "tensors" });
        }
        at_most("tensors", self.tensors.len(), MAX_TENSORS)?;
        ascending("tensors", &self.tensors, |tensor| tensor.name.clone())?;
        self.tensors.iter().try_for_each(|tensor| check_tensor(tensor, self.shape.units()))?;
        // So many bytes can be counted: sums over tensors need no further care.
        self.tensors
            .iter()
            .try_fold(0_u64, |sum, tensor| sum.checked_add(tensor.bytes.0))
            .map(|_| ())
            .ok_or(BadMessage::OutOfRange { field: "tensor bytes" })
    }
}

/// Reads what follows the version of a derived model.
fn read_derived(mut reader: Reader<'_>) -> Result<Manifest, BadMessage> {
    let quantiser = reader.u8("quantiser")?;
    if quantiser != quantise::VERSION {
        return Err(BadMessage::Unknown { field: "quantiser", got: quantiser.into() });
    }
    let code = reader.u32("derived format")?;
    let format =
        WeightFormat::from_code(code).ok_or(BadMessage::Unknown { field: "derived format", got: code.into() })?;
    // The source is derived from none, or else a few megabytes of nested headers would be read one inside the other.
    let version = reader.begin_one_of(MARK, FIRST..=SECOND)?;
    let source = Arc::new(Manifest::read(reader, version)?);
    source.derive(format).ok_or(BadMessage::OutOfRange { field: "derived format" })
}

fn put_derived(source: &[u8], format: WeightFormat) -> bytes::Bytes {
    let mut out = Vec::with_capacity(derived::HEADER + source.len());
    out.extend_from_slice(&MARK);
    out.extend_from_slice(&DERIVED.to_le_bytes());
    out.push(quantise::VERSION);
    out.extend_from_slice(&format.code().to_le_bytes());
    out.extend_from_slice(source);
    out.into()
}

/// The version in which a model of this shape is written.
fn version_of(shape: &ModelShape) -> u16 {
    let is_first = shape.architecture == Architecture::Llama
        && shape.rope.pairs == RopePairs::Interleaved
        && shape.window.is_none();
    if is_first { FIRST } else { SECOND }
}

fn check_shape(shape: &ModelShape) -> Result<(), BadMessage> {
    within("blocks", shape.blocks, 1..=MAX_BLOCKS)?;
    within("width", shape.width, 1..=MAX_WIDTH)?;
    within("feed-forward width", shape.feed_forward, 1..=MAX_WIDTH)?;
    within("heads", shape.heads, 1..=MAX_WIDTH)?;
    within("key/value heads", shape.kv_heads, 1..=shape.heads)?;
    within("head dimension", shape.head_dim, 1..=MAX_WIDTH)?;
    within("width of all heads", u64::from(shape.heads) * u64::from(shape.head_dim), 1..=u64::from(MAX_WIDTH))?;
    if !shape.heads.is_multiple_of(shape.kv_heads) {
        return Err(BadMessage::OutOfRange { field: "key/value heads" });
    }
    within("vocabulary size", shape.vocab, 1..=MAX_VOCAB)?;
    within("context", shape.context, 1..=MAX_CONTEXT)?;
    if let Some(window) = shape.window {
        within("window", window, 1..=shape.context - 1)?;
    }
    if !shape.architecture.rotates(shape.rope.pairs) {
        return Err(BadMessage::OutOfRange { field: "rotated pairs" });
    }
    within("norm epsilon", positive("norm epsilon", shape.norm_eps)?, 0.0..=1.0)?;
    check_rope(&shape.rope, shape.head_dim)
}

fn check_rope(rope: &Rope, head_dim: u32) -> Result<(), BadMessage> {
    within("rope dimensions", rope.dimensions, 2..=head_dim)?;
    if !rope.dimensions.is_multiple_of(2) {
        return Err(BadMessage::OutOfRange { field: "rope dimensions" });
    }
    positive("rope base", rope.base)?;
    match rope.scaling {
        RopeScaling::None | RopeScaling::Tensor => Ok(()),
        RopeScaling::Linear { factor } => positive("rope factor", factor).map(|_| ()),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            positive("rope factor", factor)?;
            positive("rope low frequency factor", low_freq_factor)?;
            positive("rope high frequency factor", high_freq_factor)?;
            if high_freq_factor <= low_freq_factor {
                return Err(BadMessage::OutOfRange { field: "rope high frequency factor" });
            }
            within("rope original context", original_context, 1..=MAX_CONTEXT).map(|_| ())
        }
    }
}

fn check_tensor(tensor: &TensorEntry, units: u16) -> Result<(), BadMessage> {
    at_most("tensor name", tensor.name.len(), MAX_TENSOR_NAME)?;
    if tensor.name.is_empty() || !tensor.name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(BadMessage::NotText { field: "tensor name" });
    }
    ascending("tensor units", &tensor.units, |&unit| unit)?;
    match tensor.units.last() {
        Some(&last) if last < units => {}
        Some(_) => return Err(BadMessage::OutOfRange { field: "tensor units" }),
        None => return Err(BadMessage::Missing { field: "tensor units" }),
    }
    at_most("tensor dimensions", tensor.dimensions.len(), MAX_DIMENSIONS)?;
    let Some(&row) = tensor.dimensions.first() else {
        return Err(BadMessage::Missing { field: "tensor dimensions" });
    };
    let elements = tensor.dimensions.iter().try_fold(1_u64, |product, &one| product.checked_mul(one));
    let wrong = BadMessage::OutOfRange { field: "tensor dimensions" };
    let elements = elements.filter(|&elements| elements > 0).ok_or(wrong.clone())?;
    // Blocks never reach over the end of a row.
    let expected = tensor.format.bytes(row).and_then(|_| tensor.format.bytes(elements)).ok_or(wrong)?.0;
    let got = within("tensor bytes", tensor.bytes.0, 1..=MAX_TENSOR)?;
    if expected != got {
        return Err(BadMessage::Length { field: "tensor bytes", expected, got });
    }
    Ok(())
}

fn read_shape(reader: &mut Reader<'_>, version: u16) -> Result<ModelShape, BadMessage> {
    let length = usize::from(reader.u8("architecture")?);
    let name = reader.text("architecture", length)?;
    let mut shape = ModelShape {
        // Only names are unknown here, never numbers, so there is none to report.
        architecture: name.parse().map_err(|_| BadMessage::OutOfRange { field: "architecture" })?,
        blocks: reader.u16("blocks")?,
        width: reader.u32("width")?,
        heads: reader.u32("heads")?,
        kv_heads: reader.u32("key/value heads")?,
        head_dim: reader.u32("head dimension")?,
        feed_forward: reader.u32("feed-forward width")?,
        vocab: reader.u32("vocabulary size")?,
        context: reader.u32("context")?,
        window: None,
        norm_eps: reader.f32("norm epsilon")?,
        rope: Rope {
            dimensions: reader.u32("rope dimensions")?,
            pairs: RopePairs::Interleaved,
            base: reader.f32("rope base")?,
            scaling: read_scaling(reader)?,
        },
        tied: false,
    };
    if version == SECOND {
        shape.rope.pairs = read_pairs(reader)?;
        shape.window = Some(reader.u32("window")?).filter(|window| *window > 0);
    }
    shape.tied = reader.flag("tied")?;
    if version_of(&shape) != version {
        let expected = version_of(&shape);
        return Err(BadMessage::Version { message: "Manifest", expected, got: version });
    }
    Ok(shape)
}

fn read_pairs(reader: &mut Reader<'_>) -> Result<RopePairs, BadMessage> {
    match reader.u8("rotated pairs")? {
        0 => Ok(RopePairs::Interleaved),
        1 => Ok(RopePairs::Halves),
        got => Err(BadMessage::Unknown { field: "rotated pairs", got: got.into() }),
    }
}

fn read_scaling(reader: &mut Reader<'_>) -> Result<RopeScaling, BadMessage> {
    Ok(match reader.u8("rope scaling")? {
        0 => RopeScaling::None,
        1 => RopeScaling::Linear { factor: reader.f32("rope factor")? },
        2 => RopeScaling::Llama3 {
            factor: reader.f32("rope factor")?,
            low_freq_factor: reader.f32("rope low frequency factor")?,
            high_freq_factor: reader.f32("rope high frequency factor")?,
            original_context: reader.u32("rope original context")?,
        },
        3 => RopeScaling::Tensor,
        got => return Err(BadMessage::Unknown { field: "rope scaling", got: got.into() }),
    })
}

fn put_shape(out: &mut Vec<u8>, shape: &ModelShape) {
    put_short(out, shape.architecture.name().as_bytes());
    out.extend_from_slice(&shape.blocks.to_le_bytes());
    let ModelShape { width, heads, kv_heads, head_dim, feed_forward, vocab, context, .. } = *shape;
    for number in [width, heads, kv_heads, head_dim, feed_forward, vocab, context] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&shape.norm_eps.to_le_bytes());
    out.extend_from_slice(&shape.rope.dimensions.to_le_bytes());
    out.extend_from_slice(&shape.rope.base.to_le_bytes());
    match shape.rope.scaling {
        RopeScaling::None => out.push(0),
        RopeScaling::Linear { factor } => {
            out.push(1);
            out.extend_from_slice(&factor.to_le_bytes());
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            out.push(2);
            for number in [factor, low_freq_factor, high_freq_factor] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&original_context.to_le_bytes());
        }
        RopeScaling::Tensor => out.push(3),
    }
    if version_of(shape) == SECOND {
        out.push(match shape.rope.pairs {
            RopePairs::Interleaved => 0,
            RopePairs::Halves => 1,
        });
        out.extend_from_slice(&shape.window.unwrap_or_default().to_le_bytes());
    }
    out.push(shape.tied.into());
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<TensorEntry, BadMessage> {
    let length = usize::from(reader.u8("tensor name")?);
    let name = reader.text("tensor name", length)?;
    let count = usize::from(reader.u16("tensor units")?);
    let count = reader.count("tensor units", count, usize::from(MAX_BLOCKS) + 2, 2)?;
    let units = (0..count).map(|_| reader.u16("tensor units")).collect::<Result<_, _>>()?;
    let count = usize::from(reader.u8("tensor dimensions")?);
    let count = reader.count("tensor dimensions", count, MAX_DIMENSIONS, 8)?;
    let dimensions = (0..count).map(|_| reader.u64("tensor dimensions")).collect::<Result<_, _>>()?;
    let code = reader.u32("tensor format")?;
    let format =
        WeightFormat::from_code(code).ok_or(BadMessage::Unknown { field: "tensor format", got: code.into() })?;
    let bytes = Bytes(reader.u64("tensor bytes")?);
    let hash = BlobHash::new(reader.array("tensor hash")?);
    Ok(TensorEntry { name, units, dimensions, format, bytes, hash })
}

fn put_tensor(out: &mut Vec<u8>, tensor: &TensorEntry) {
    put_short(out, tensor.name.as_bytes());
    out.extend_from_slice(&u16::try_from(tensor.units.len()).unwrap_or(u16::MAX).to_le_bytes());
    for unit in &tensor.units {
        out.extend_from_slice(&unit.to_le_bytes());
    }
    out.push(u8::try_from(tensor.dimensions.len()).unwrap_or(u8::MAX));
    for dimension in &tensor.dimensions {
        out.extend_from_slice(&dimension.to_le_bytes());
    }
    out.extend_from_slice(&tensor.format.code().to_le_bytes());
    out.extend_from_slice(&tensor.bytes.0.to_le_bytes());
    out.extend_from_slice(tensor.hash.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::UnitRange;
    use crate::wire::samples;

    fn refused(change: impl FnOnce(&mut Manifest)) -> bool {
        let mut manifest = samples::manifest();
        change(&mut manifest);
        assert_eq!(manifest.check().is_err(), Manifest::decode(&manifest.encode()).is_err());
        manifest.check().is_err()
    }

    #[test]
    fn a_manifest_has_one_encoding_and_one_id() {
        let manifest = samples::manifest();

        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest.clone()));
        assert_eq!(manifest.id().as_bytes(), blake3::hash(&manifest.encode()).as_bytes());
    }

    #[test]
    fn what_one_version_says_the_other_does_not() {
        let first = samples::manifest();
        let second = samples::manifest_of_a_window();
        let with = |manifest: &Manifest, change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = manifest.encode().to_vec();
            change(&mut bytes);
            Manifest::decode(&bytes)
        };
        // After mark, version, name, sizes, epsilon, rope and linear scaling.
        let place = 6 + 6 + 2 + 28 + 4 + 8 + 5;

        assert_eq!((first.encode()[4], second.encode()[4]), (1, 2));
        assert_eq!(Manifest::decode(&second.encode()), Ok(second.clone()));
        let plain = with(&first, &|bytes| {
            bytes[4] = 2;
            bytes.splice(place..place, [0; 5]);
        });
        assert_eq!(plain, Err(BadMessage::Version { message: "Manifest", expected: 1, got: 2 }));
        let hidden = with(&first, &|bytes| drop(bytes.splice(6..12, *b"\x05qwen3")));
        assert_eq!(hidden, Err(BadMessage::Version { message: "Manifest", expected: 2, got: 1 }));
        let pairs = with(&second, &|bytes| bytes[place] = 2);
        assert!(matches!(pairs, Err(BadMessage::Unknown { field: "rotated pairs", got: 2 })), "{pairs:?}");
    }

    #[test]
    fn a_tied_embedding_is_counted_once() {
        let manifest = samples::manifest();
        let bytes = |start, end| manifest.weight_bytes(UnitRange::new(start, end).unwrap());
        let (embedding, block, norm) = (Bytes(34 * 64), Bytes(18 * 32), Bytes(4 * 32));

        assert_eq!(bytes(0, 1), embedding);
        assert_eq!(bytes(1, 2), block);
        assert_eq!(bytes(3, 4), embedding.plus(norm));
        assert_eq!(bytes(0, 4), manifest.total_bytes());
        assert_eq!(manifest.tensors_of(UnitRange::new(1, 3).unwrap()).count(), 2);
        assert_eq!(manifest.main_format(), Some(WeightFormat::Q8_0));
    }

    #[test]
    fn a_shape_is_sound() {
        let changes: [fn(&mut ModelShape); 20] = [
            |shape| shape.window = Some(512),
            |shape| shape.window = Some(u32::MAX),
            |shape| shape.architecture = Architecture::Qwen2,
            |shape| shape.blocks = 0,
            |shape| shape.blocks = MAX_BLOCKS + 1,
            |shape| shape.width = 0,
            |shape| shape.heads = 0,
            |shape| shape.kv_heads = 0,
            |shape| shape.kv_heads = 3,
            |shape| shape.head_dim = MAX_WIDTH,
            |shape| shape.feed_forward = 0,
            |shape| shape.vocab = MAX_VOCAB + 1,
            |shape| shape.context = MAX_CONTEXT + 1,
            |shape| shape.norm_eps = f32::NAN,
            |shape| shape.norm_eps = 0.0,
            |shape| shape.rope.dimensions = 3,
            |shape| shape.rope.dimensions = 1_000,
            |shape| shape.rope.base = f32::INFINITY,
            |shape| shape.rope.scaling = RopeScaling::Linear { factor: -1.0 },
            |shape| {
                let (factor, low_freq_factor, high_freq_factor) = (8.0, 4.0, 1.0);
                let original_context = 8_192;
                shape.rope.scaling =
                    RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
            },
        ];

        assert!(!refused(|_| {}));
        assert!(!refused(|manifest| manifest.shape.window = Some(511)));
        for (place, change) in changes.into_iter().enumerate() {
            assert!(refused(|manifest| change(&mut manifest.shape)), "change {place}");
        }
    }

    #[test]
    fn tensors_are_in_order_and_agree_with_the_shape() {
        let changes: [fn(&mut Manifest); 13] = [
            |manifest| manifest.tensors.clear(),
            |manifest| manifest.tensors.swap(0, 1),
            |manifest| manifest.tensors[1] = manifest.tensors[0].clone(),
            |manifest| manifest.tensors[0].name.clear(),
            |manifest| manifest.tensors[0].name = "a".repeat(65),
            |manifest| manifest.tensors[0].name = "a b".to_owned(),
            |manifest| manifest.tensors[0].units.clear(),
            |manifest| manifest.tensors[0].units = vec![2, 1],
            |manifest| manifest.tensors[0].units = vec![4],
            |manifest| manifest.tensors[0].dimensions.clear(),
            |manifest| manifest.tensors[0].dimensions = vec![0],
            |manifest| manifest.tensors[0].dimensions = vec![1 << 40, 1 << 40],
            |manifest| manifest.tensors[0].bytes = Bytes(1),
        ];

        for (place, change) in changes.into_iter().enumerate() {
            assert!(refused(change), "change {place}");
        }
        // Half a block per row, though the whole is a number of blocks.
        assert!(refused(|manifest| manifest.tensors[0].dimensions = vec![16, 64]));
    }

    #[test]
    fn a_count_without_its_bytes_is_refused_before_anything_is_allocated() {
        let mut bytes = samples::manifest().encode().to_vec();
        let count = bytes.len()
            - samples::manifest()
                .tensors
                .iter()
                .map(|tensor| {
                    let mut one = Vec::new();
                    put_tensor(&mut one, tensor);
                    one.len()
                })
                .sum::<usize>()
            - 4;
        bytes[count..count + 4].copy_from_slice(&10_000_u32.to_le_bytes());

        let fault = Manifest::decode(&bytes);

        assert!(matches!(fault, Err(BadMessage::Truncated { field: "tensors", .. })), "{fault:?}");
    }

    #[test]
    fn another_mark_version_or_more_bytes_are_refused() {
        let bytes = samples::manifest().encode();
        let with = |place: usize, value| {
            let mut changed = bytes.to_vec();
            changed[place] = value;
            Manifest::decode(&changed)
        };

        assert_eq!(with(0, b'X'), Err(BadMessage::Mark { message: "Manifest" }));
        assert_eq!(with(4, 4), Err(BadMessage::Version { message: "Manifest", expected: 3, got: 4 }));
        assert_eq!(with(4, 0), Err(BadMessage::Version { message: "Manifest", expected: 3, got: 0 }));
        assert_eq!(
            Manifest::decode(&[&bytes[..], &[0]].concat()),
            Err(BadMessage::Trailing { message: "Manifest", got: 1 })
        );
    }
}
