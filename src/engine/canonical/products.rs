//! Products of weight matrices with inputs.
//!
//! Work is cut by groups of sixteen rows. What a task writes depends on its group and on each input row alone: not on the other
//! inputs, nor on who computes the other groups.

use std::marker::PhantomData;
use std::ops::Range;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::round::Row;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;
use crate::shape::WeightFormat;

/// `[inputs, rows]` of f32 that several tasks fill at once, each other columns.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Output<'a> {
    start: *mut f32,
    inputs: usize,
    rows: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: as a mutable slice may go to another thread; that no two write one element is the promise of `multiply`'s callers.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// - `values`: `[inputs, rows]`
    ///
    /// # Panics
    /// If `values` are not whole rows.
    pub(in crate::engine) fn new(values: &'a mut [f32], rows: usize) -> Self {
        assert!(rows > 0 && values.len().is_multiple_of(rows), "outputs are whole rows");
        Self { start: values.as_mut_ptr(), inputs: values.len() / rows, rows, borrowed: PhantomData }
    }

    /// Writes the first of `values` that there are rows for from row `16 × group` on, for one input.
    ///
    /// # Safety
    /// Nobody else may read or write these elements at the same time.
    #[inline(always)]
    pub(super) unsafe fn write(&self, input: usize, group: usize, values: &[f32; LANES]) {
        let first = group * LANES;
        assert!(input < self.inputs && first < self.rows, "a task stays within its output");
        let count = LANES.min(self.rows - first);
        // SAFETY: the elements lie within the slice that this was made from, as just checked, and are the caller's alone.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(input * self.rows + first), count) }
    }
}

/// A part of a product.
#[derive(Clone, Debug)]
pub(super) struct Task<'a> {
    pub(super) weights: &'a Packed,
    /// Rounded rows, one after the other.
    pub(super) inputs: &'a [i32],
    pub(super) groups: Range<usize>,
    pub(super) output: Output<'a>,
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

/// Multiplies rows of input with some groups of a matrix's rows.
///
/// - `inputs`: as `round::round` made them for the matrix's rounding
/// - `output`: `[inputs, rows of the matrix]`
///
/// # Safety
/// While it runs, nobody else may read or write the columns of these groups in `output`.
pub(in crate::engine) unsafe fn multiply(
    set: InstructionSet,
    weights: &Packed,
    inputs: &[i32],
    groups: Range<usize>,
    output: Output<'_>,
) {
    assert_eq!(output.rows, weights.rows(), "the output has the matrix's rows");
    let task = Task { weights, inputs, groups, output };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let skip = if set == InstructionSet::Amx { super::amx::multiply_tiles(&task) } else { 0 };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let skip = 0;
    match weights.format() {
        WeightFormat::F32 => f32(set, &task, skip),
        WeightFormat::F16 => f16(set, &task, skip),
        WeightFormat::BF16 => bf16(set, &task, skip),
        WeightFormat::Q4_0 => q4_0(set, &task, skip),
        WeightFormat::Q4_1 => q4_1(set, &task, skip),
        WeightFormat::Q5_0 => q5_0(set, &task, skip),
        WeightFormat::Q5_1 => q5_1(set, &task, skip),
        WeightFormat::Q8_0 => q8_0(set, &task, skip),
        WeightFormat::Q4K => q4_k(set, &task, skip),
        WeightFormat::Q5K => q5_k(set, &task, skip),
        WeightFormat::Q6K => q6_k(set, &task, skip),
    }
}

kernels! {
    fn f32(task: &Task<'_>, skip: usize) = run::<super::formats::F32, _>;
    fn f16(task: &Task<'_>, skip: usize) = run::<super::formats::F16, _>;
    fn bf16(task: &Task<'_>, skip: usize) = run::<super::formats::Bf16, _>;
    fn q4_0(task: &Task<'_>, skip: usize) = run::<super::formats::Q4_0, _>;
    fn q4_1(task: &Task<'_>, skip: usize) = run::<super::formats::Q4_1, _>;
    fn q5_0(task: &Task<'_>, skip: usize) = run::<super::formats::Q5_0, _>;
    fn q5_1(task: &Task<'_>, skip: usize) = run::<super::formats::Q5_1, _>;
    fn q8_0(task: &Task<'_>, skip: usize) = run::<super::formats::Q8_0, _>;
    fn q4_k(task: &Task<'_>, skip: usize) = run::<super::formats::Q4K, _>;
    fn q5_k(task: &Task<'_>, skip: usize) = run::<super::formats::Q5K, _>;
    fn q6_k(task: &Task<'_>, skip: usize) = run::<super::formats::Q6K, _>;
}

/// Multiplies inputs from `skip` on.
#[inline(always)]
fn run<F: Format, S: Simd>(s: S, task: &Task<'_>, skip: usize) {
    let count = task.count();
    for group in task.groups.clone() {
        let blocks = task.weights.group::<F>(group);
        let mut first = skip;
        while first < count {
            first += match count - first {
                8.. if S::TILE >= 8 => tile::<F, S, 8>(s, task, group, blocks, first),
                4.. => tile::<F, S, 4>(s, task, group, blocks, first),
                2.. => tile::<F, S, 2>(s, task, group, blocks, first),
                _ => tile::<F, S, 1>(s, task, group, blocks, first),
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
) -> usize {
    let inputs: [Row<'_>; N] = std::array::from_fn(|index| task.row(first + index));
    for (index, sum) in F::product(s, blocks, &inputs).into_iter().enumerate() {
        let mut values = [0.0; LANES];
        s.store(sum, &mut values);
        // SAFETY: the groups of the task are its own, as `multiply`'s caller promises.
        unsafe { task.output.write(first + index, group, &values) };
    }
    N
}
