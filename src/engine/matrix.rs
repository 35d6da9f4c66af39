//! Weight matrices and their products, cut into tiles for the pool.

use std::ops::Range;

use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::products::multiply;
use crate::engine::canonical::round::InputBlock;
use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::LargeBlock;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::pool::Pool;
use crate::engine::pool::Tile;
use crate::shape::WeightFormat;

/// A weight matrix: maps rows of `columns` elements to rows of `rows` elements.
#[derive(Debug)]
pub(super) struct Matrix(Packed);

impl Matrix {
    /// Repacks a matrix from its stored bytes.
    ///
    /// - `done`: told of bytes that will not be looked at again, by whichever thread
    ///
    /// # Panics
    /// If `columns` are not whole blocks or the length of `bytes` is not that of the matrix. The loader checks both.
    pub(super) fn new(
        pool: &Pool,
        format: WeightFormat,
        [rows, columns]: [usize; 2],
        bytes: &[u8],
        done: &(dyn Fn(Range<usize>) + Sync),
    ) -> Self {
        Self(Packed::new(pool, format, [rows, columns], bytes, done))
    }

    /// Writes row `index` as f32 into `out`, of `columns` elements.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        self.0.row(index, out);
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// About how many multiplications the products with `inputs` rows are.
    pub(super) fn work(&self, inputs: usize) -> usize {
        self.rows().saturating_mul(self.columns()).saturating_mul(inputs)
    }

    /// How many elements a product has.
    pub(super) fn rows(&self) -> usize {
        self.0.rows()
    }

    /// How many elements an input has.
    pub(super) fn columns(&self) -> usize {
        self.0.columns()
    }

    /// Writes a tile of the products `[inputs, rows]`.
    ///
    /// - `input`: `[inputs, columns]`, which [`Rounded::round`] has seen with this matrix
    pub(super) fn multiply(&self, set: InstructionSet, input: &[f32], rounded: &Rounded, tile: &mut Tile<'_, f32>) {
        let inputs = match self.0.rounding() {
            Rounding::None => Inputs::Plain(input),
            Rounding::Small => Inputs::Small(&rounded.small),
            Rounding::Large => Inputs::Large(&rounded.large),
        };
        multiply(set, &self.0, inputs, tile);
    }
}

/// Input rows rounded in every way that some matrix wants.
#[derive(Debug, Default)]
pub(super) struct Rounded {
    small: Vec<SmallBlock>,
    large: Vec<LargeBlock>,
}

impl Rounded {
    /// Rounds the rows of `input`, `[inputs, columns]`, for the products with these matrices, all of `columns`.
    pub(super) fn round(&mut self, pool: &Pool, set: InstructionSet, input: &[f32], matrices: &[&Matrix]) {
        let Some(columns) = matrices.first().map(|matrix| matrix.columns()) else { return };
        let wanted = |rounding| matrices.iter().any(|matrix| matrix.0.rounding() == rounding);
        if wanted(Rounding::Small) {
            round_rows(pool, set, input, columns, &mut self.small);
        }
        if wanted(Rounding::Large) {
            round_rows(pool, set, input, columns, &mut self.large);
        }
    }
}

fn round_rows<B: InputBlock>(pool: &Pool, set: InstructionSet, input: &[f32], columns: usize, blocks: &mut Vec<B>) {
    blocks.resize(input.len() / B::ELEMENTS, B::zeroed());
    pool.for_each_chunk(blocks, columns / B::ELEMENTS, input.len(), |row, blocks| {
        B::round(set, &input[row * columns..(row + 1) * columns], blocks);
    });
}
