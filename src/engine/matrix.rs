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

use std::cell::RefCell;

use candle_core::quantized::GgmlType;
use candle_core::quantized::k_quants::BlockQ4_0;
use candle_core::quantized::k_quants::BlockQ4_1;
use candle_core::quantized::k_quants::BlockQ4K;
use candle_core::quantized::k_quants::BlockQ5_0;
use candle_core::quantized::k_quants::BlockQ5_1;
use candle_core::quantized::k_quants::BlockQ5K;
use candle_core::quantized::k_quants::BlockQ6K;
use candle_core::quantized::k_quants::BlockQ8_0;
use candle_core::quantized::k_quants::BlockQ8_1;
use candle_core::quantized::k_quants::BlockQ8K;
use half::bf16;
use half::f16;

use crate::engine::pool::Pool;
use crate::engine::pool::Tile;
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

    /// About how many multiplications the products with `inputs` rows are.
    pub(super) fn work(&self, inputs: usize) -> usize {
        self.rows.saturating_mul(self.columns).saturating_mul(inputs)
    }

    /// How many elements a product has.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// How many elements an input has.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Writes a tile of the products `[inputs, rows]`. A row of the input that is not finite gives a row of NaN.
    ///
    /// - `input`: `[inputs, columns]`, which [`Rounded::round`] has seen with this matrix
    pub(super) fn multiply(&self, input: &[f32], rounded: &Rounded, tile: &mut Tile<'_, f32>) {
        self.weights.multiply(input, rounded, tile);
        // Rounding an input to blocks of integers loses that it was not finite.
        for index in tile.rows().filter(|index| !rounded.finite[*index]) {
            tile.row(index).fill(f32::NAN);
        }
    }
}

/// Input rows as the formats' dot products want them.
#[derive(Default)]
pub(super) struct Rounded {
    finite: Vec<bool>,
    q8_0: Vec<BlockQ8_0>,
    q8_1: Vec<BlockQ8_1>,
    q8k: Vec<BlockQ8K>,
}

impl Rounded {
    /// Rounds the rows of `input`, `[inputs, columns]`, for the products with these matrices, all of `columns`.
    pub(super) fn round(&mut self, pool: &Pool, input: &[f32], matrices: &[&Matrix]) {
        let Some(columns) = matrices.first().map(|matrix| matrix.columns) else { return };
        self.finite.clear();
        self.finite.extend(input.chunks_exact(columns).map(|row| row.iter().all(|value| value.is_finite())));
        let wanted = |partner| matrices.iter().any(|matrix| matrix.weights.partner() == partner);
        if wanted(Partner::Q8_0) {
            rounded(pool, input, columns, &mut self.q8_0);
        }
        if wanted(Partner::Q8_1) {
            rounded(pool, input, columns, &mut self.q8_1);
        }
        if wanted(Partner::Q8K) {
            rounded(pool, input, columns, &mut self.q8k);
        }
    }
}

fn rounded<T: GgmlType>(pool: &Pool, input: &[f32], columns: usize, blocks: &mut Vec<T>) {
    let per_row = columns / T::BLCK_SIZE;
    blocks.resize(input.len() / T::BLCK_SIZE, T::zeros());
    pool.for_each_chunk(blocks, per_row, input.len(), |row, blocks| {
        T::from_float(&input[row * columns..(row + 1) * columns], blocks);
    });
}

/// What an input is rounded to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Partner {
    Plain,
    Q8_0,
    Q8_1,
    Q8K,
}

/// A format of inputs.
trait Input: GgmlType {
    const PARTNER: Partner;

    fn of<'a>(input: &'a [f32], rounded: &'a Rounded) -> &'a [Self];
}

impl Input for f32 {
    const PARTNER: Partner = Partner::Plain;

    fn of<'a>(input: &'a [f32], _: &'a Rounded) -> &'a [Self] {
        input
    }
}

impl Input for BlockQ8_0 {
    const PARTNER: Partner = Partner::Q8_0;

    fn of<'a>(_: &'a [f32], rounded: &'a Rounded) -> &'a [Self] {
        &rounded.q8_0
    }
}

impl Input for BlockQ8_1 {
    const PARTNER: Partner = Partner::Q8_1;

    fn of<'a>(_: &'a [f32], rounded: &'a Rounded) -> &'a [Self] {
        &rounded.q8_1
    }
}

impl Input for BlockQ8K {
    const PARTNER: Partner = Partner::Q8K;

    fn of<'a>(_: &'a [f32], rounded: &'a Rounded) -> &'a [Self] {
        &rounded.q8k
    }
}

trait Weights: Send + Sync {
    fn row(&self, index: usize, out: &mut [f32]);

    fn partner(&self) -> Partner;

    fn multiply(&self, input: &[f32], rounded: &Rounded, tile: &mut Tile<'_, f32>);
}

/// Input rows that stay in the first-level cache while a tile's weights pass (as in candle).
const TILE_INPUTS: usize = 16;

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

fn direct<T: GgmlType + 'static>(rows: usize, columns: usize, bytes: &[u8]) -> Box<dyn Weights>
where
    T::VecDotType: Input,
{
    Box::new(Direct(Blocks::<T>::new(rows, columns, bytes)))
}

fn widened<T: GgmlType + 'static>(rows: usize, columns: usize, bytes: &[u8]) -> Box<dyn Weights> {
    Box::new(Widened(Blocks::<T>::new(rows, columns, bytes)))
}

/// Multiplies blocks as they are with inputs rounded to the format's partner.
struct Direct<T>(Blocks<T>);

impl<T: GgmlType> Weights for Direct<T>
where
    T::VecDotType: Input,
{
    fn row(&self, index: usize, out: &mut [f32]) {
        T::to_float(self.0.row_of(index), out);
    }

    fn partner(&self) -> Partner {
        T::VecDotType::PARTNER
    }

    fn multiply(&self, input: &[f32], rounded: &Rounded, tile: &mut Tile<'_, f32>) {
        let weights = &self.0;
        let (columns, inputs) = (weights.columns, T::VecDotType::of(input, rounded));
        let input_blocks = columns / T::VecDotType::BLCK_SIZE;
        let (rows, outputs) = (tile.rows(), tile.columns());
        for start in rows.clone().step_by(TILE_INPUTS) {
            let end = rows.end.min(start + TILE_INPUTS);
            for quad in outputs.clone().step_by(4) {
                for index in start..end {
                    let input = &inputs[index * input_blocks..(index + 1) * input_blocks];
                    let row = |offset: usize| weights.row_of(quad + offset);
                    let out = &mut tile.row(index)[quad - outputs.start..];
                    if let Some(out) = out.first_chunk_mut::<4>() {
                        let (a, b, c, d) = T::vec_dot_4(columns, row(0), row(1), row(2), row(3), input);
                        *out = [a, b, c, d];
                    } else {
                        for (offset, out) in out.iter_mut().enumerate() {
                            *out = T::vec_dot(columns, row(offset), input);
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies weights widened to f32, row by row, with inputs as they are.
struct Widened<T>(Blocks<T>);

impl<T: GgmlType> Weights for Widened<T> {
    fn row(&self, index: usize, out: &mut [f32]) {
        T::to_float(self.0.row_of(index), out);
    }

    fn partner(&self) -> Partner {
        Partner::Plain
    }

    fn multiply(&self, input: &[f32], _: &Rounded, tile: &mut Tile<'_, f32>) {
        thread_local! {
            static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        let columns = self.0.columns;
        ROW.with_borrow_mut(|widened| {
            widened.resize(columns, 0.0);
            for (offset, row) in tile.columns().enumerate() {
                T::to_float(self.0.row_of(row), widened);
                for index in tile.rows() {
                    let input = &input[index * columns..(index + 1) * columns];
                    tile.row(index)[offset] = f32::vec_dot(columns, widened, input);
                }
            }
        });
    }
}
