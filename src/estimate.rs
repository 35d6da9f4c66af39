//! How much memory a model takes at a peer: the one answer for import, plan, placement, admission and loader.
//!
//! What is counted:
//!
//! | what | how many bytes |
//! |---|---|
//! | weights | of a matrix its rows as stored, filled up to groups of 16: repacking changes their order and not their size. Of a vector 4 an element. A tied embedding is there once where both ends are held ([`Footprint::weights`]) |
//! | keys and values | of every block and session those of whole pages of 64 positions ([`Footprint::cache`]) |
//! | scratch | what a pass computes in, at its largest, and the scores of every thread ([`Footprint::scratch`]); logits where the model ends ([`Footprint::logits`]) |
//! | journals | hidden states that a stage may have to send again ([`Footprint::journal`]) |
//! | the process | [`PROCESS`], and [`TOKEN`] for each token of a vocabulary ([`Footprint::resident`]) |
//!
//! A peer offers memory (`--memory`) for the first four; the process itself lies beside that, whatever is offered. `tests/meshes/memory.rs`
//! compares the sum with what processes have.
//!
//! Not counted are pages of files, be it the program's or weights on disk: the system takes them back when it needs the memory,
//! and those of weights are given back as soon as they are repacked. Nor is what allocations are rounded up to: a matrix of a large
//! page (2 MiB) or more begins on one and ends in a small one, so that is below 4 KiB each.

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::shape::KV_PAGE;
use crate::shape::ModelShape;
use crate::shape::WeightFormat;
use crate::shape::kv_bytes;
use crate::units::UnitRange;

/// The process itself, without any model but the demo's vocabulary: what it takes once it has answered (measured with two threads of the
/// runtime and one of the engine). 20 MiB of it are the store's: sled allocates 40 histograms of 512 KiB whether or not it counts.
pub const PROCESS: Bytes = Bytes::mib(28);

/// A token of a model's vocabulary in the tokenizer: its text, its bytes and the table that finds it (measured). A merge of byte pairs
/// takes about 80 bytes more, but how many there are a manifest does not say.
pub const TOKEN: Bytes = Bytes(140);

/// Rows of a matrix that are kept together; the last group is filled up.
const GROUP: u64 = 16;

/// Rows of a prompt that one thread lets attend at a time, for each head that shares keys.
const ATTENTION_ROWS: u32 = 16;

/// A tensor, as far as its size goes.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// The units that need it, ascending.
    pub units: &'a [u16],
    /// Elements per dimension, the fastest-varying first.
    pub dimensions: &'a [u64],
    /// How its elements are stored.
    pub format: WeightFormat,
}

impl Tensor<'_> {
    /// Bytes of it as it is computed with.
    pub fn bytes(&self) -> Bytes {
        match self.dimensions {
            [columns, rows @ ..] if !rows.is_empty() => {
                let groups = product(rows).div_ceil(GROUP);
                self.format.bytes(*columns).unwrap_or_default().times(GROUP).times(groups)
            }
            vector => Bytes(4).times(product(vector)),
        }
    }
}

fn product(sizes: &[u64]) -> u64 {
    sizes.iter().fold(1, |product: u64, size| product.saturating_mul(*size))
}

/// What one unit takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Its weights.
    pub weights: Bytes,
    /// Weights that are read for one position: of an embedding one row, of a mixture the experts that are asked.
    pub active: Bytes,
    /// Keys and values of one position.
    pub position: Bytes,
    /// Multiplications with weights, each with an addition, that one position takes.
    pub multiplications: u64,
}

/// What a pass works in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Bytes of each row.
    pub row: Bytes,
    /// Bytes of the scores of one position, of each thread.
    pub scores: Bytes,
    /// Bytes of each row of logits.
    pub logits: Bytes,
}

/// The passes that an engine makes, at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// Threads that compute.
    pub threads: u32,
    /// Rows: positions of prompts and steps of readers together.
    pub rows: u32,
    /// Rows of which logits are computed.
    pub logits: u32,
    /// Positions of the longest session.
    pub positions: Position,
}

/// What a model takes in memory, unit by unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Of each unit.
    pub units: Vec<Unit>,
    /// Bytes that the first and the last unit share (a tied embedding).
    pub shared_ends: Bytes,
    /// What a pass works in.
    pub scratch: Scratch,
    /// A hidden state as it is sent, at full precision.
    pub hidden: Bytes,
    /// Token ids.
    pub vocab: u32,
}

/// What a peer has of one model at some moment.
#[derive(Clone, Copy, Debug)]
pub struct Resident<'a> {
    /// What is loaded.
    pub ranges: &'a [UnitRange],
    /// The sessions: on which units, and how many positions.
    pub sessions: &'a [(UnitRange, Position)],
    /// The largest passes made.
    pub passes: Passes,
    /// What may have to be sent again.
    pub journals: Bytes,
}

impl Footprint {
    /// Of a model of that shape with these tensors.
    pub fn of<'a>(shape: &ModelShape, tensors: impl IntoIterator<Item = Tensor<'a>>) -> Self {
        let units = (0..shape.units()).map(|unit| Unit { position: position(shape, unit), ..Unit::default() });
        let mut footprint = Self {
            units: units.collect(),
            shared_ends: Bytes::ZERO,
            scratch: Scratch::default(),
            hidden: Bytes(4).times(shape.width.into()),
            vocab: shape.vocab,
        };
        let ends = [0, shape.head_unit()];
        let mut rounded = Rounded::default();
        for tensor in tensors {
            footprint.add(&tensor);
            rounded.add(tensor.format);
            if tensor.units == ends {
                footprint.shared_ends = footprint.shared_ends.plus(tensor.bytes());
            }
        }
        footprint.scratch = scratch(shape, rounded);
        footprint
    }

    /// Counts a tensor in all of its units.
    fn add(&mut self, tensor: &Tensor<'_>) {
        for &number in tensor.units {
            let Some(unit) = self.units.get_mut(usize::from(number)) else { continue };
            unit.weights = unit.weights.plus(tensor.bytes());
            // Of the embedding a row is looked up; every other matrix is multiplied with.
            let (active, multiplications) = match tensor.dimensions {
                [columns, _, ..] if number == 0 => (tensor.format.bytes(*columns).unwrap_or_default(), 0),
                [_, _, ..] => (tensor.bytes(), product(tensor.dimensions)),
                _ => (tensor.bytes(), 0),
            };
            unit.active = unit.active.plus(active);
            unit.multiplications = unit.multiplications.saturating_add(multiplications);
        }
    }

    /// How many units there are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.units.len()).unwrap_or(u16::MAX)
    }

    /// All of them; `None` if there are none.
    pub fn whole(&self) -> Option<UnitRange> {
        UnitRange::whole(self.count()).ok()
    }

    /// Bytes of the weights of a range.
    pub fn weights(&self, range: UnitRange) -> Bytes {
        let sum: Bytes = self.of_range(range).map(|unit| unit.weights).sum();
        let both_ends = range.start() == 0 && range.end() == self.count() && self.count() > 1;
        if both_ends { sum.minus(self.shared_ends) } else { sum }
    }

    /// Bytes of the keys and values of one session of so many positions on a range.
    pub fn cache(&self, range: UnitRange, positions: Position) -> Bytes {
        let each: Bytes = self.of_range(range).map(|unit| unit.position).sum();
        each.times(u64::from(positions.0.div_ceil(KV_PAGE)) * u64::from(KV_PAGE))
    }

    /// Bytes that passes work in, whatever is held.
    pub fn scratch(&self, passes: &Passes) -> Bytes {
        let rows = self.scratch.row.times(passes.rows.into());
        let positions = u64::from(passes.positions.0.next_multiple_of(KV_PAGE));
        let together = passes.rows.clamp(1, ATTENTION_ROWS);
        rows.plus(self.scratch.scores.times(u64::from(together) * u64::from(passes.threads)).times(positions))
    }

    /// Bytes of the logits, where the model ends.
    pub fn logits(&self, passes: &Passes) -> Bytes {
        self.scratch.logits.times(passes.logits.into())
    }

    /// Bytes of what a stage may have to send again of so many positions.
    pub fn journal(&self, positions: Position) -> Bytes {
        self.hidden.times(positions.0.into())
    }

    /// Bytes that a unit takes of a peer that is ready for `passes`: weights, keys and values of one session of the longest, logits.
    ///
    /// Those of a range are the sum of its units', without [`Self::shared_ends`] if it is the whole; [`Self::scratch`] comes once on top.
    pub fn unit(&self, number: u16, passes: &Passes) -> Bytes {
        let Ok(range) = UnitRange::new(number, number.saturating_add(1)) else { return Bytes::ZERO };
        let logits = if range.end() == self.count() { self.logits(passes) } else { Bytes::ZERO };
        self.weights(range).plus(self.cache(range, passes.positions)).plus(logits)
    }

    /// Bytes of ranges at a peer whose passes are those, without any session: weights, logits, and what passes work in.
    pub fn idle(&self, ranges: &[UnitRange], passes: &Passes) -> Bytes {
        let weights: Bytes = ranges.iter().map(|range| self.weights(*range)).sum();
        let ends = ranges.iter().any(|range| range.end() == self.count());
        let logits = if ends { self.logits(passes) } else { Bytes::ZERO };
        weights.plus(logits).plus(self.scratch(passes))
    }

    /// Bytes of a range at a peer that is ready for `passes`: with one session of the longest.
    pub fn ready(&self, range: UnitRange, passes: &Passes) -> Bytes {
        self.idle(&[range], passes).plus(self.cache(range, passes.positions))
    }

    /// The resident size of a process with that in memory.
    pub fn resident(&self, state: &Resident<'_>) -> Bytes {
        let caches: Bytes = state.sessions.iter().map(|(range, positions)| self.cache(*range, *positions)).sum();
        let model = self.idle(state.ranges, &state.passes).plus(caches).plus(state.journals);
        PROCESS.plus(TOKEN.times(self.vocab.into())).plus(model)
    }

    fn of_range(&self, range: UnitRange) -> impl Iterator<Item = &Unit> {
        let end = usize::from(range.end()).min(self.units.len());
        self.units[usize::from(range.start()).min(end)..end].iter()
    }
}

/// Keys and values of one position of a unit, of which only blocks have any.
fn position(shape: &ModelShape, unit: u16) -> Bytes {
    let is_block = unit > 0 && unit < shape.head_unit();
    let page = kv_bytes(shape.kv_width(), Position(KV_PAGE));
    if is_block { Bytes(page.0 / u64::from(KV_PAGE)) } else { Bytes::ZERO }
}

/// How inputs are rounded for a model's matrices.
#[derive(Clone, Copy, Debug, Default)]
struct Rounded {
    /// In blocks of 32, which take 48 bytes.
    small: bool,
    /// In blocks of 256, which take 336 bytes.
    large: bool,
}

impl Rounded {
    fn add(&mut self, format: WeightFormat) {
        self.small |= format.block_elements() == 32;
        self.large |= format.block_elements() == 256;
    }

    /// Bytes of a row of so many elements.
    fn bytes(self, elements: u64) -> u64 {
        let small = if self.small { elements.div_ceil(32) * 48 } else { 0 };
        let large = if self.large { elements.div_ceil(256) * 336 } else { 0 };
        small + large
    }
}

/// What a pass works in.
///
/// It keeps all of its matrices at a time: hidden states, their norm and what is added to them; queries, keys, values and what was
/// attended; gate and up; the widest input rounded; the angles of the rotation. Any thread may do any task of attention, so each has
/// room for the scores of the largest: of the heads that share keys, for 16 rows.
fn scratch(shape: &ModelShape, rounded: Rounded) -> Scratch {
    let (width, feed) = (u64::from(shape.width), u64::from(shape.feed_forward));
    let query = u64::from(shape.heads) * u64::from(shape.head_dim);
    let elements = 3 * width + 2 * query + 2 * u64::from(shape.kv_width()) + 2 * feed;
    let angles = 2 * u64::from(shape.rope.dimensions);
    let rounded = rounded.bytes(width.max(query).max(feed));
    Scratch {
        row: Bytes(4).times(elements.saturating_add(angles)).plus(Bytes(rounded)),
        scores: Bytes(4).times(u64::from(shape.heads / shape.kv_heads.max(1))),
        logits: Bytes(4).times(shape.vocab.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Architecture;
    use crate::shape::Rope;
    use crate::shape::RopePairs;
    use crate::shape::RopeScaling;

    const SHAPE: ModelShape = ModelShape {
        architecture: Architecture::Llama,
        blocks: 2,
        width: 64,
        heads: 8,
        kv_heads: 2,
        head_dim: 8,
        feed_forward: 96,
        vocab: 1_000,
        context: 512,
        window: None,
        norm_eps: 1e-5,
        rope: Rope { dimensions: 8, pairs: RopePairs::Halves, base: 10_000.0, scaling: RopeScaling::None },
        tied: true,
    };

    const PASSES: Passes = Passes { threads: 2, rows: 20, logits: 3, positions: Position(65) };

    fn range(start: u16, end: u16) -> UnitRange {
        UnitRange::new(start, end).unwrap()
    }

    fn footprint() -> Footprint {
        let tensor = |units, dimensions, format| Tensor { units, dimensions, format };
        Footprint::of(
            &SHAPE,
            [
                tensor(&[0, 3], &[64, 1_000], WeightFormat::Q8_0),
                tensor(&[1], &[64, 96], WeightFormat::Q8_0),
                tensor(&[2], &[64, 97], WeightFormat::F16),
                tensor(&[2], &[64], WeightFormat::F16),
                tensor(&[3], &[64], WeightFormat::F32),
            ],
        )
    }

    #[test]
    fn matrices_are_filled_up_to_whole_groups_and_vectors_are_wide() {
        let footprint = footprint();

        assert_eq!(footprint.weights(range(1, 2)), Bytes(96 * 68));
        assert_eq!(footprint.weights(range(2, 3)), Bytes(112 * 128 + 64 * 4), "97 rows are 7 groups of 16");
        assert_eq!(footprint.units[0].active, Bytes(68), "one row is looked up");
        assert_eq!(footprint.units[3].active, Bytes(1_008 * 68 + 256));
        assert_eq!([0, 3].map(|unit| footprint.units[unit].multiplications), [0, 64 * 1_000]);
    }

    #[test]
    fn a_tied_embedding_is_there_once_where_both_ends_are() {
        let footprint = footprint();
        let parts = [range(0, 2), range(2, 4)].map(|range| footprint.weights(range));

        assert_eq!(footprint.shared_ends, Bytes(1_008 * 68));
        assert_eq!(footprint.weights(range(0, 4)), parts[0].plus(parts[1]).minus(footprint.shared_ends));
        let units: Bytes = (0..4).map(|unit| footprint.unit(unit, &PASSES)).sum();
        let whole = footprint.ready(range(0, 4), &PASSES);
        assert_eq!(whole, units.minus(footprint.shared_ends).plus(footprint.scratch(&PASSES)));
    }

    #[test]
    fn keys_and_values_are_those_of_the_shape_in_whole_pages() {
        let footprint = footprint();

        for (range, positions) in [(range(0, 4), 1), (range(0, 2), 65), (range(3, 4), 10), (range(1, 3), 128)] {
            let positions = Position(positions);
            assert_eq!(footprint.cache(range, positions), SHAPE.kv_bytes(range, positions));
        }
    }

    #[test]
    fn scores_grow_with_threads_and_positions_and_rows_with_what_a_pass_takes() {
        let footprint = footprint();
        let of = |passes: Passes| footprint.scratch(&passes).0;

        let scores = 4 * 4 * 16 * 128;
        assert_eq!(of(Passes { threads: 3, ..PASSES }) - of(PASSES), scores);
        assert_eq!(of(Passes { rows: 21, ..PASSES }) - of(PASSES), footprint.scratch.row.0);
        assert_eq!(of(Passes { positions: Position(128), ..PASSES }), of(PASSES), "pages are whole");
        assert_eq!(footprint.logits(&PASSES), Bytes(3 * 4 * 1_000));
    }

    #[test]
    fn what_is_resident_is_the_sum_of_all_that_is_there() {
        let footprint = footprint();
        let (held, session) = (range(2, 4), (range(2, 4), Position(70)));
        let state = Resident { ranges: &[held], sessions: &[session; 2], passes: PASSES, journals: Bytes(5) };

        let of_model = footprint.resident(&state).minus(PROCESS).minus(TOKEN.times(1_000));

        let caches = footprint.cache(held, Position(70)).times(2);
        let work = footprint.scratch(&PASSES).plus(footprint.logits(&PASSES));
        assert_eq!(of_model, footprint.weights(held).plus(caches).plus(work).plus(Bytes(5)));
    }
}
