//! Products of weight matrices with inputs.
//!
//! Work is cut by groups of sixteen rows. What a task writes depends on its group and on each input row alone: not on the other
//! inputs, nor on who computes the other groups.

use std::ops::Range;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::part::store_part;
use crate::engine::canonical::round::Inputs;
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
    /// Rows of input, one after the other.
    pub(super) inputs: Inputs<'a>,
    pub(super) groups: Range<usize>,
}

impl<'a> Task<'a> {
    /// The rows of input of a matrix of format `F`.
    pub(super) fn rows<F: Format>(&self) -> std::slice::ChunksExact<'a, F::Input> {
        let blocks = F::inputs(self.inputs).expect("inputs are rounded as the matrix wants them");
        blocks.chunks_exact(self.weights.columns() / F::COLUMNS)
    }
}

/// Multiplies rows of input with those rows of a matrix that are the columns of a tile of its output.
///
/// - `inputs`: rounded as the matrix wants them
/// - `tile`: of `[inputs, rows of the matrix]`; all inputs, and columns from a multiple of 16 on
///
/// # Panics
/// If the tile begins within a group, or the inputs are rounded in another way.
pub(in crate::engine) fn multiply(set: InstructionSet, weights: &Packed, inputs: Inputs<'_>, tile: &mut Tile<'_, f32>) {
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
    let count = task.rows::<F>().len();
    for group in task.groups.clone().step_by(2) {
        // Two streams of memory are read faster than one. A last group without a second is its own.
        let pair = [group, task.groups.end.min(group + 2) - 1];
        let mut first = skip;
        while first < count {
            first += match count - first {
                8.. if S::TILE >= 8 => each::<F, S, 8>(s, task, pair, first, output),
                4.. if S::TILE >= 8 => tile::<F, S, 2, 4>(s, task, pair, first, output),
                4.. => each::<F, S, 4>(s, task, pair, first, output),
                2.. => tile::<F, S, 2, 2>(s, task, pair, first, output),
                _ => tile::<F, S, 2, 1>(s, task, pair, first, output),
            };
        }
    }
}

/// As [`tile`], one group after the other: with as many inputs as there are registers for.
#[inline(always)]
fn each<F: Format, S: Simd, const N: usize>(
    s: S,
    task: &Task<'_>,
    [start, last]: [usize; 2],
    first: usize,
    output: &mut Tile<'_, f32>,
) -> usize {
    for group in start..=last {
        tile::<F, S, 1, N>(s, task, [group], first, output);
    }
    N
}

/// Multiplies `G` groups with `N` inputs from number `first` on; returns `N`.
#[inline(always)]
fn tile<F: Format, S: Simd, const G: usize, const N: usize>(
    s: S,
    task: &Task<'_>,
    numbers: [usize; G],
    first: usize,
    output: &mut Tile<'_, f32>,
) -> usize {
    let mut groups = [task.weights.group::<F>(numbers[0]); G];
    let length = groups[0].len();
    for g in 1..G {
        groups[g] = &task.weights.group::<F>(numbers[g])[..length];
    }
    let mut inputs: [&[F::Input]; N] = [&[]; N];
    for (input, row) in inputs.iter_mut().zip(task.rows::<F>().skip(first)) {
        // As long as the blocks, so that nothing needs to be checked block by block.
        *input = &row[..length];
    }
    for (group, sums) in numbers.into_iter().zip(&F::product(s, groups, &inputs)) {
        for (input, sum) in (first..).zip(sums) {
            write(s, output, input, group, *sum);
        }
    }
    N
}

/// Writes the products of a group with an input; those of rows that only fill the last group up are left out.
#[inline(always)]
pub(super) fn write<S: Simd>(s: S, output: &mut Tile<'_, f32>, input: usize, group: usize, sums: S::F) {
    let start = group * LANES - output.columns().start;
    let row = &mut output.row(input)[start..];
    let count = row.len().min(LANES);
    store_part(s, sums, &mut row[..count]);
}
