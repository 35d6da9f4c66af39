//! Weight matrices in the format they are stored in, and their products.
//!
//! The blocks and their dot products are candle's. The loop around them is ours, for three reasons: candle's runs on a pool of
//! the whole process whose size only environment variables set, so a peer could not keep to the threads it was
//! given; it repacks weights at first use, which more than doubles the memory that was budgeted; and it takes other
//! kernels for one row than for many, so that a result would depend on how a prompt was cut into chunks. Here each output
//! is the dot product of one weight row and one input row, whatever runs beside it.
//!
//! What that costs until we have kernels of our own, in 10⁹ multiplications per second of one thread, candle's loop against this
//! one, for 1 and for 128 input rows and a matrix of 8192 × 2048 (measured on a shared Xeon of 2.1 GHz with AVX-512):
//!
//! | format | 1 row | 128 rows |
//! |---|---|---|
//! | `Q8_0` | 12.6 / 5.6 | 36.7 / 7.6 |
//! | `Q4_0` | 6.3 / 6.3 | 7.0 / 6.8 |
//! | `Q4_K` | 10.0 / 7.6 | 44.5 / 10.6 |
//! | `Q6_K` | 6.0 / 5.6 | 32.2 / 7.8 |
//! | `F32` | 1.3 / 1.5 | 17.9 / 3.7 |
//! | `F16` | 1.3 / 1.2 | 17.6 / 3.7 |

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::BlockQ4_0;
use candle_core::quantized::k_quants::BlockQ4_1;
use candle_core::quantized::k_quants::BlockQ4K;
use candle_core::quantized::k_quants::BlockQ5_0;
use candle_core::quantized::k_quants::BlockQ5_1;
use candle_core::quantized::k_quants::BlockQ5K;
use candle_core::quantized::k_quants::BlockQ6K;
use candle_core::quantized::k_quants::BlockQ8_0;
use half::bf16;
use half::f16;
use rayon::prelude::*;

use crate::shape::WeightFormat;

// GGUF's blocks are little-endian and are used as they lie.
const _: () = assert!(cfg!(target_endian = "little"), "the engine runs on little-endian machines only");

/// A weight matrix: maps rows of `columns` elements to rows of `rows` elements.
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    weights: Box<dyn Weights>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({}×{})", self.rows, self.columns)
    }
}

impl Matrix {
    /// Copies a matrix out of its stored bytes.
    ///
    /// # Panics
    /// If `columns` are not whole blocks or the length of `bytes` is not that of the matrix. The loader checks both.
    pub(super) fn new(format: WeightFormat, rows: usize, columns: usize, bytes: &[u8]) -> Self {
        // candle's dot products of these formats take blocks in pairs.
        let paired = (columns / 32).is_multiple_of(2);
        let weights: Box<dyn Weights> = match format {
            WeightFormat::F32 => direct::<f32>(rows, columns, bytes),
            // candle would round the input to 16 bits; widening the weights loses nothing.
            WeightFormat::F16 => widened::<f16>(rows, columns, bytes),
            WeightFormat::BF16 => widened::<bf16>(rows, columns, bytes),
            WeightFormat::Q4_0 => direct::<BlockQ4_0>(rows, columns, bytes),
            WeightFormat::Q4_1 if paired => direct::<BlockQ4_1>(rows, columns, bytes),
            WeightFormat::Q5_0 if paired => direct::<BlockQ5_0>(rows, columns, bytes),
            WeightFormat::Q5_1 if paired => direct::<BlockQ5_1>(rows, columns, bytes),
            WeightFormat::Q4_1 => widened::<BlockQ4_1>(rows, columns, bytes),
            WeightFormat::Q5_0 => widened::<BlockQ5_0>(rows, columns, bytes),
            WeightFormat::Q5_1 => widened::<BlockQ5_1>(rows, columns, bytes),
            WeightFormat::Q8_0 => direct::<BlockQ8_0>(rows, columns, bytes),
            WeightFormat::Q4K => direct::<BlockQ4K>(rows, columns, bytes),
            WeightFormat::Q5K => direct::<BlockQ5K>(rows, columns, bytes),
            WeightFormat::Q6K => direct::<BlockQ6K>(rows, columns, bytes),
        };
        Self { rows, columns, weights }
    }

    /// Writes row `index` as f32 into `out`, of `columns` elements.
    pub(super) fn row(&self, index: usize, out: &mut [f32]) {
        self.weights.row(index, out);
    }

    /// Multiplies every row of `input` (`[inputs, columns]`, f32) with the matrix; returns `[inputs, rows]`. A row that is not
    /// finite gives a row of NaN.
    pub(super) fn multiply(&self, input: &[f32]) -> Vec<f32> {
        let inputs = input.len() / self.columns;
        let mut by_row = vec![0.0; self.rows * inputs];
        self.weights.multiply(input, inputs, &mut by_row);
        let mut output = if inputs == 1 { by_row } else { self.by_input(&by_row, inputs) };
        // Rounding an input to blocks of integers loses that it was not finite.
        for (input, output) in input.chunks_exact(self.columns).zip(output.chunks_exact_mut(self.rows)) {
            if !input.iter().all(|value| value.is_finite()) {
                output.fill(f32::NAN);
            }
        }
        output
    }

    /// `[rows, inputs]` to `[inputs, rows]`.
    fn by_input(&self, by_row: &[f32], inputs: usize) -> Vec<f32> {
        let mut output = vec![0.0; by_row.len()];
        for (row, values) in by_row.chunks_exact(inputs).enumerate() {
            for (index, value) in values.iter().enumerate() {
                output[index * self.rows + row] = *value;
            }
        }
        output
    }
}

trait Weights: Send + Sync {
    fn row(&self, index: usize, out: &mut [f32]);

    /// `input`: `[inputs, columns]`; `by_row`: `[rows, inputs]`.
    fn multiply(&self, input: &[f32], inputs: usize, by_row: &mut [f32]);
}

/// Weight rows that one task multiplies with all inputs. A multiple of 4, the most that candle takes at once.
const TILE_ROWS: usize = 32;

/// Input rows that stay in the first-level cache while a tile's weights pass (as in candle).
const TILE_INPUTS: usize = 16;

/// Multiplications below which waking other threads costs more than it saves (measured roughly; not critical).
const WORTH_SHARING: usize = 1 << 16;

/// Runs `task(first row, its outputs)` for every tile of rows, on all threads of the current pool if that is worth it.
fn for_each_tile(work: usize, inputs: usize, by_row: &mut [f32], task: impl Fn(usize, &mut [f32]) + Sync) {
    let tile = TILE_ROWS * inputs;
    if work < WORTH_SHARING || rayon::current_num_threads() == 1 {
        by_row.chunks_mut(tile).enumerate().for_each(|(index, out)| task(index * TILE_ROWS, out));
    } else {
        by_row.par_chunks_mut(tile).enumerate().for_each(|(index, out)| task(index * TILE_ROWS, out));
    }
}

/// Rows of `row_blocks` blocks each.
struct Blocks<T> {
    blocks: Vec<T>,
    row_blocks: usize,
    columns: usize,
}

impl<T: GgmlType> Blocks<T> {
    fn new(rows: usize, columns: usize, bytes: &[u8]) -> Self {
        let row_blocks = columns / T::BLCK_SIZE;
        let count = rows * row_blocks;
        assert!(columns.is_multiple_of(T::BLCK_SIZE), "rows fill whole blocks");
        assert_eq!(bytes.len(), count * size_of::<T>(), "bytes fill the matrix");
        let mut blocks = vec![T::zeros(); count];
        // SAFETY: both sides are `bytes.len()` bytes long, as just checked, and do not overlap. candle's blocks are `repr(C)`
        // structures of integers and halves, for which every pattern of bytes is a value.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), blocks.as_mut_ptr().cast::<u8>(), bytes.len()) };
        Self { blocks, row_blocks, columns }
    }

    fn row_of(&self, index: usize) -> &[T] {
        &self.blocks[index * self.row_blocks..(index + 1) * self.row_blocks]
    }
}

fn direct<T: GgmlType + 'static>(rows: usize, columns: usize, bytes: &[u8]) -> Box<dyn Weights> {
    Box::new(Direct(Blocks::<T>::new(rows, columns, bytes)))
}

fn widened<T: GgmlType + 'static>(rows: usize, columns: usize, bytes: &[u8]) -> Box<dyn Weights> {
    Box::new(Widened(Blocks::<T>::new(rows, columns, bytes)))
}

/// Multiplies blocks as they are with inputs rounded to the format's partner.
struct Direct<T>(Blocks<T>);

impl<T: GgmlType> Direct<T> {
    /// The products of weight rows `first..` with all inputs into `out`, `[rows of the tile, inputs]`.
    fn tile(&self, first: usize, rounded: &[T::VecDotType], inputs: usize, out: &mut [f32]) {
        let weights = &self.0;
        let columns = weights.columns;
        let input_blocks = rounded.len() / inputs;
        let rows = out.len() / inputs;
        for start in (0..inputs).step_by(TILE_INPUTS) {
            let end = inputs.min(start + TILE_INPUTS);
            for quad in (0..rows).step_by(4) {
                for index in start..end {
                    let input = &rounded[index * input_blocks..(index + 1) * input_blocks];
                    let row = |offset: usize| weights.row_of(first + quad + offset);
                    if quad + 4 <= rows {
                        let (a, b, c, d) = T::vec_dot_4(columns, row(0), row(1), row(2), row(3), input);
                        for (offset, value) in [a, b, c, d].into_iter().enumerate() {
                            out[(quad + offset) * inputs + index] = value;
                        }
                    } else {
                        for offset in 0..rows - quad {
                            out[(quad + offset) * inputs + index] = T::vec_dot(columns, row(offset), input);
                        }
                    }
                }
            }
        }
    }
}

impl<T: GgmlType> Weights for Direct<T> {
    fn row(&self, index: usize, out: &mut [f32]) {
        T::to_float(self.0.row_of(index), out);
    }

    fn multiply(&self, input: &[f32], inputs: usize, by_row: &mut [f32]) {
        let columns = self.0.columns;
        let input_blocks = columns / T::VecDotType::BLCK_SIZE;
        let mut rounded = vec![T::VecDotType::zeros(); inputs * input_blocks];
        for (row, rounded) in input.chunks_exact(columns).zip(rounded.chunks_exact_mut(input_blocks)) {
            T::VecDotType::from_float(row, rounded);
        }
        for_each_tile(by_row.len() * columns, inputs, by_row, |first, out| self.tile(first, &rounded, inputs, out));
    }
}

/// Multiplies weights widened to f32, row by row, with inputs as they are.
struct Widened<T>(Blocks<T>);

impl<T: GgmlType> Weights for Widened<T> {
    fn row(&self, index: usize, out: &mut [f32]) {
        T::to_float(self.0.row_of(index), out);
    }

    fn multiply(&self, input: &[f32], inputs: usize, by_row: &mut [f32]) {
        let columns = self.0.columns;
        for_each_tile(by_row.len() * columns, inputs, by_row, |first, out| {
            let mut row = vec![0.0; columns];
            for (offset, out) in out.chunks_exact_mut(inputs).enumerate() {
                T::to_float(self.0.row_of(first + offset), &mut row);
                for (input, out) in input.chunks_exact(columns).zip(out) {
                    *out = f32::vec_dot(columns, &row, input);
                }
            }
        });
    }
}
