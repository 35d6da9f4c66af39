//! Products of weight matrices with inputs.
//!
//! Work is cut by groups of sixteen rows. What a task writes depends on its group and on each input row alone: not on the other
//! inputs, nor on who computes the other groups.

use std::ops::Range;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::round::Row;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;
use crate::engine::pool::Tile;
use crate::shape::WeightFormat;

/// A part of a product.
#[derive(Clone, Debug)]
pub(super) struct Task<'a> {
    pub(super) weights: &'a Packed,
    /// Rounded rows, one after the other.
    pub(super) inputs: &'a [i32],
    pub(super) groups: Range<usize>,
}

impl<'a> Task<'a> {
    pub(super) fn row(&self, index: usize) -> Row<'a> {
        let (rounding, columns) = (self.weights.rounding(), self.weights.columns());
        let words = rounding.row_words(columns);
        Row::new(rounding, columns, &self.inputs[index * words..(index + 1) * words])
    }

    /// Bytes from one rounded row to the next.
    pub(super) fn row_stride(&self) -> usize {
        4 * self.weights.rounding().row_words(self.weights.columns())
    }

    pub(super) fn count(&self) -> usize {
        self.inputs.len() / self.weights.rounding().row_words(self.weights.columns())
    }
}

/// Multiplies rows of input with those rows of a matrix that are the columns of a tile of its output.
///
/// - `inputs`: as `round::round` made them for the matrix's rounding
/// - `tile`: of `[inputs, rows of the matrix]`; all inputs, and columns from a multiple of 16 on
///
/// # Panics
/// If the tile begins within a group.
pub(in crate::engine) fn multiply(set: InstructionSet, weights: &Packed, inputs: &[i32], tile: &mut Tile<'_, f32>) {
    let columns = tile.columns();
    assert!(columns.start.is_multiple_of(LANES), "tiles are whole groups");
    let groups = columns.start / LANES..columns.end.div_ceil(LANES);
    let task = Task { weights, inputs, groups };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let skip = if set == InstructionSet::Amx { super::amx::multiply_tiles(&task, tile) } else { 0 };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let skip = 0;
    match weights.format() {
        WeightFormat::F32 => f32(set, &task, skip, tile),
        WeightFormat::F16 => f16(set, &task, skip, tile),
        WeightFormat::BF16 => bf16(set, &task, skip, tile),
        WeightFormat::Q4_0 => q4_0(set, &task, skip, tile),
        WeightFormat::Q4_1 => q4_1(set, &task, skip, tile),
        WeightFormat::Q5_0 => q5_0(set, &task, skip, tile),
        WeightFormat::Q5_1 => q5_1(set, &task, skip, tile),
        WeightFormat::Q8_0 => q8_0(set, &task, skip, tile),
        WeightFormat::Q4K => q4_k(set, &task, skip, tile),
        WeightFormat::Q5K => q5_k(set, &task, skip, tile),
        WeightFormat::Q6K => q6_k(set, &task, skip, tile),
    }
}

kernels! {
    fn f32(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::F32, _>;
    fn f16(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::F16, _>;
    fn bf16(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Bf16, _>;
    fn q4_0(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q4_0, _>;
    fn q4_1(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q4_1, _>;
    fn q5_0(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q5_0, _>;
    fn q5_1(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q5_1, _>;
    fn q8_0(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q8_0, _>;
    fn q4_k(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q4K, _>;
    fn q5_k(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q5K, _>;
    fn q6_k(task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) = run::<super::formats::Q6K, _>;
}

/// Multiplies inputs from `skip` on.
#[inline(always)]
fn run<F: Format, S: Simd>(s: S, task: &Task<'_>, skip: usize, output: &mut Tile<'_, f32>) {
    let count = task.count();
    for group in task.groups.clone() {
        let blocks = task.weights.group::<F>(group);
        let mut first = skip;
        while first < count {
            first += match count - first {
                8.. if S::TILE >= 8 => tile::<F, S, 8>(s, task, group, blocks, first, output),
                4.. => tile::<F, S, 4>(s, task, group, blocks, first, output),
                2.. => tile::<F, S, 2>(s, task, group, blocks, first, output),
                _ => tile::<F, S, 1>(s, task, group, blocks, first, output),
            };
        }
    }
}

/// Multiplies `N` inputs from `first` on; returns `N`.
#[inline(always)]
fn tile<F: Format, S: Simd, const N: usize>(
    s: S,
    task: &Task<'_>,
    group: usize,
    blocks: &[F::Block],
    first: usize,
    output: &mut Tile<'_, f32>,
) -> usize {
    let mut inputs = [Row { codes: &[], scales: &[], sums: &[] }; N];
    for (index, input) in inputs.iter_mut().enumerate() {
        *input = task.row(first + index);
    }
    let sums = F::product(s, blocks, &inputs);
    for (index, sum) in sums.iter().enumerate() {
        let mut values = [0.0; LANES];
        s.store(*sum, &mut values);
        write(output, first + index, group, &values);
    }
    N
}

/// Writes the products of a group with an input; those of rows that only fill the last group up are left out.
#[inline(always)]
pub(super) fn write(output: &mut Tile<'_, f32>, input: usize, group: usize, values: &[f32; LANES]) {
    let start = group * LANES - output.columns().start;
    let row = &mut output.row(input)[start..];
    let count = row.len().min(LANES);
    row[..count].copy_from_slice(&values[..count]);
}
