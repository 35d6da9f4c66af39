//! Models that are made from another one by quantising it.
//!
//! Quantising is deterministic ([`quantise`](crate::quantise)), so that who made such a model does not matter: its manifest is that of its source
//! with the format asked for, and every peer that knows the source can name it, without a byte of weights. The same holds of its tensors:
//! the name of one follows from the hash of what it is made of.

use std::sync::Arc;

use crate::ids::BlobHash;
use crate::quantise;
use crate::shape::WeightFormat;
use crate::wire::manifest::MAX_MANIFEST;
use crate::wire::manifest::Manifest;
use crate::wire::manifest::TensorEntry;

/// Bytes before the source's manifest: mark, version, quantiser, format.
pub(super) const HEADER: usize = 4 + 2 + 1 + 4;

/// What the names of derived tensors are hashed under.
const NAMES: &str = "brigade 2026-11 derived tensor";

/// How a model was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Derivation {
    /// The model that it was made from, which was made from none.
    pub source: Arc<Manifest>,
    /// The format asked for, one of [`quantise::TARGETS`]. Some tensors have another (see [`Manifest::derive`]).
    pub format: WeightFormat,
}

impl Manifest {
    /// The model that quantising this one gives. `None` if it is as coarse already, if that would save less than a twentieth, or if this
    /// one is itself derived.
    ///
    /// Matrices get the format asked for; the one that makes logits at least `Q6_K`, since all of its rounding shows in every token. Where
    /// rows are no whole super-blocks it is `Q8_0`. Vectors, and what would not become smaller, stay as they are.
    pub fn derive(self: &Arc<Self>, format: WeightFormat) -> Option<Self> {
        let is_coarser = self.main_format().is_some_and(|main| format.precision() < main.precision());
        let is_possible = self.derivation.is_none() && is_coarser && quantise::TARGETS.contains(&format);
        if !is_possible || self.encode().len() + HEADER > MAX_MANIFEST {
            return None;
        }
        let head = self.shape.head_unit();
        let tensors: Vec<TensorEntry> = self.tensors.iter().map(|tensor| derived(tensor, head, format)).collect();
        let derivation = Some(Derivation { source: Arc::clone(self), format });
        let made = Self { shape: self.shape, vocabulary: self.vocabulary, tensors, derivation };
        let (before, after) = (u128::from(self.total_bytes().0), u128::from(made.total_bytes().0));
        (20 * after <= 19 * before).then_some(made)
    }

    /// What a tensor of this model is quantised from: the source's tensor of the same name. `None` if it is not.
    pub fn made_from(&self, tensor: &TensorEntry) -> Option<&TensorEntry> {
        let source = &self.derivation.as_ref()?.source.tensors;
        let found = source.binary_search_by(|entry| entry.name.as_str().cmp(&tensor.name)).ok()?;
        source.get(found).filter(|entry| entry.hash != tensor.hash)
    }
}

fn derived(tensor: &TensorEntry, head: u16, format: WeightFormat) -> TensorEntry {
    let Some(format) = format_of(tensor, head, format) else { return tensor.clone() };
    let elements = tensor.dimensions.iter().product();
    let Some(bytes) = format.bytes(elements) else { return tensor.clone() };
    TensorEntry { format, bytes, hash: name(tensor, format), ..tensor.clone() }
}

/// The format of a tensor that is to have `wanted`; `None` if it stays as it is.
fn format_of(tensor: &TensorEntry, head: u16, wanted: WeightFormat) -> Option<WeightFormat> {
    let [row, _, ..] = tensor.dimensions[..] else { return None };
    let makes_logits = tensor.units.contains(&head);
    let wanted = if makes_logits { wanted.max_precision(WeightFormat::Q6K) } else { wanted };
    let fitting = [wanted, WeightFormat::Q8_0].into_iter().find(|format| format.bytes(row).is_some())?;
    let is_smaller = fitting.bytes(row)? < tensor.format.bytes(row)?;
    is_smaller.then_some(fitting)
}

/// The name of a derived tensor, in the place of its hash.
fn name(source: &TensorEntry, format: WeightFormat) -> BlobHash {
    let mut hasher = blake3::Hasher::new_derive_key(NAMES);
    hasher.update(source.hash.as_bytes()).update(&source.format.code().to_le_bytes());
    hasher.update(&[quantise::VERSION]).update(&format.code().to_le_bytes());
    BlobHash::new(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amounts::Bytes;
    use crate::units::UnitRange;
    use crate::wire::bad::BadMessage;
    use crate::wire::samples;

    fn source() -> Arc<Manifest> {
        Arc::new(samples::manifest_of_halves())
    }

    #[test]
    fn matrices_are_quantised_and_vectors_are_not() {
        let source = source();
        let of = |format| {
            let derived = source.derive(format).unwrap();
            derived.check().unwrap();
            derived.tensors.iter().map(|tensor| tensor.format).collect::<Vec<_>>()
        };

        // Rows of 256 and of 32, a vector, and the matrix of logits.
        use WeightFormat::*;
        assert_eq!(of(Q8_0), [Q8_0, Q8_0, F32, Q8_0]);
        assert_eq!(of(Q4K), [Q4K, Q8_0, F32, Q6K]);
        assert_eq!(of(Q4_0), [Q4_0, Q4_0, F32, Q6K]);
        assert_eq!(source.derive(F16), None, "no target");
        assert_eq!(Arc::new(samples::manifest()).derive(Q8_0), None, "it is as coarse already");
        assert_eq!(Arc::new(samples::manifest()).derive(Q6K), None, "rows of 32 stay");
    }

    #[test]
    fn everybody_who_knows_the_source_gives_the_same_names() {
        let (one, other) = (source(), source());
        let (first, second) = (one.derive(WeightFormat::Q4K).unwrap(), other.derive(WeightFormat::Q4K).unwrap());
        let coarser = one.derive(WeightFormat::Q4_0).unwrap();

        assert_eq!(first.id(), second.id());
        assert_ne!(first.id(), coarser.id());
        assert_ne!(first.id(), one.id());
        let made = |manifest: &Manifest, index: usize| manifest.made_from(&manifest.tensors[index]).cloned();
        assert_eq!(made(&first, 0).as_ref(), Some(&one.tensors[0]));
        assert_eq!(made(&first, 2), None, "a vector is the source's own");
        assert_eq!(made(&one, 0), None);
        assert_ne!(first.tensors[0].hash, coarser.tensors[0].hash);
        assert_eq!(first.tensors[1].hash, one.derive(WeightFormat::Q8_0).unwrap().tensors[1].hash, "made alike");
        assert!(first.weight_bytes(UnitRange::new(0, 4).unwrap()) < one.total_bytes());
    }

    #[test]
    fn a_derived_manifest_has_one_encoding() {
        let derived = source().derive(WeightFormat::Q5K).unwrap();
        let bytes = derived.encode();
        let with = |place: usize, value| {
            let mut changed = bytes.to_vec();
            changed[place] = value;
            Manifest::decode(&changed)
        };

        assert_eq!(Manifest::decode(&bytes), Ok(derived.clone()));
        assert_eq!(derived.id().as_bytes(), blake3::hash(&bytes).as_bytes());
        assert!(matches!(with(6, 9), Err(BadMessage::Unknown { field: "quantiser", .. })));
        assert!(matches!(with(7, 1), Err(BadMessage::OutOfRange { field: "derived format" })), "F16 is no target");
        assert!(matches!(with(7, 5), Err(BadMessage::Unknown { field: "derived format", .. })));
        // A derived model cannot be derived from.
        let nested = [&bytes[..HEADER], &bytes].concat();
        assert!(Manifest::decode(&nested).is_err());
        assert_eq!(Arc::new(derived).derive(WeightFormat::Q4_0), None);
        let plain = [&bytes[..HEADER], &samples::manifest().encode()].concat();
        assert_eq!(Manifest::decode(&plain), Err(BadMessage::OutOfRange { field: "derived format" }));
    }

    #[test]
    fn what_was_changed_in_a_derived_manifest_is_refused() {
        let mut derived = source().derive(WeightFormat::Q8_0).unwrap();
        derived.tensors[0].bytes = Bytes(1);

        assert!(derived.check().is_err());
    }
}
