//! Single kernels of the engine, with data to run them on: for micro-benchmarks.

use std::cell::RefCell;
use std::fmt;
use std::hint::black_box;

use bytemuck::Zeroable;

use crate::amounts::Bytes;
use crate::engine::block::multiply;
use crate::engine::canonical::attention;
use crate::engine::canonical::attention::Scratch;
use crate::engine::canonical::attention::attend;
use crate::engine::canonical::cache::Cache;
use crate::engine::canonical::cache::Rows;
use crate::engine::canonical::exponential::Gate;
use crate::engine::canonical::exponential::gate_in_place;
use crate::engine::canonical::memory::Slab;
use crate::engine::canonical::norm::normalise;
use crate::engine::canonical::round::InputBlock;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::matrix::Matrix;
use crate::engine::matrix::Rounded;
use crate::engine::pool::Pool;
use crate::shape::WeightFormat;

/// Bytes that a memory-bound kernel goes through in a run: so many that caches are of no help (arbitrary).
const CACHE_FREE: usize = 256 << 20;

/// Outputs and inputs of the matrices: those of the feed-forward layer of Llama 3.2 1B.
const MATRIX: [usize; 2] = [8192, 2048];

/// Key/value heads, query heads on each, and elements of a head: those of Llama 3.2 1B.
const ATTENTION: [usize; 3] = [8, 4, 64];

/// Rows of a kernel over vectors: as many as stay in a cache of the second level.
const VECTORS: usize = 64;

thread_local! {
    /// What attention computes in.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Numbers within ±1.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

/// What a kernel does once.
type Run = dyn FnMut(InstructionSet, &Pool);

/// A kernel and data of its own.
pub struct Kernel {
    /// Bytes of memory that a run goes through, if that is what limits it.
    pub bytes: Bytes,
    /// Multiplications of a run.
    pub multiplications: u64,
    run: Box<Run>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({}, {} multiplications)", self.bytes, self.multiplications)
    }
}

impl Kernel {
    /// Runs it once.
    pub fn run(&mut self, set: InstructionSet, pool: &Pool) {
        (self.run)(set, pool);
    }

    /// Reads memory on large pages from its start to its end: what memory-bound kernels are compared with.
    pub fn read() -> Self {
        let mut memory = Slab::zeros(CACHE_FREE);
        memory.bytes_mut().fill(1);
        let run = move |_: InstructionSet, pool: &Pool| {
            let parts = pool.threads() * 64;
            let length = CACHE_FREE / parts;
            pool.run(parts, &|_, part| {
                let words: &[u64] = bytemuck::cast_slice(&memory.bytes()[part * length..(part + 1) * length]);
                let mut sums = [0_u64; 32];
                for words in words.as_chunks::<32>().0 {
                    for (sum, word) in sums.iter_mut().zip(words) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                black_box(sums);
            });
        };
        Self { bytes: Bytes(CACHE_FREE as u64), multiplications: 0, run: Box::new(run) }
    }

    /// Multiplies `inputs` rows with matrices of 8192 × 2048: with so many that none stays in a cache where there are fewer than 64 rows,
    /// else with one. Rounding the rows is part of it.
    ///
    /// - `stored`: the bytes of the matrix, [`Self::matrix_elements`] in the format
    pub fn product(format: WeightFormat, stored: &[u8], inputs: usize) -> Self {
        let [rows, columns] = MATRIX;
        let copies = if inputs < 64 { CACHE_FREE.div_ceil(stored.len()) } else { 1 };
        let pack = |_| Matrix::new(&Pool::alone(), format, [rows, columns], stored, &|_| ());
        let matrices: Vec<Matrix> = (0..copies).map(pack).collect();
        let input = numbers(inputs * columns);
        let (mut rounded, mut output) = (Rounded::default(), vec![0.0; inputs * rows]);
        let run = move |set, pool: &Pool| {
            for matrix in &matrices {
                multiply(pool, set, &mut rounded, &input, [(matrix, &mut output)]);
            }
            black_box(&output);
        };
        let multiplications = (copies * inputs * rows * columns) as u64;
        Self { bytes: Bytes((copies * stored.len()) as u64), multiplications, run: Box::new(run) }
    }

    /// Repacks a matrix of 8192 × 2048 as loading does.
    ///
    /// - `stored`: as in [`Self::product`]
    pub fn packing(format: WeightFormat, stored: Vec<u8>) -> Self {
        let [rows, columns] = MATRIX;
        let bytes = Bytes(stored.len() as u64);
        let run = move |_: InstructionSet, pool: &Pool| {
            black_box(Matrix::new(pool, format, [rows, columns], &stored, &|_| ()));
        };
        Self { bytes, multiplications: 0, run: Box::new(run) }
    }

    /// Lets one position attend to `depth` before it, with 8 key/value heads of 64 elements and 4 query heads on each, in so many
    /// blocks that no key stays in a cache.
    pub fn attention(depth: usize) -> Self {
        let [kv_heads, group, dim] = ATTENTION;
        let row = kv_heads * dim;
        let bytes = depth * row * 2 * size_of::<u16>();
        let blocks = CACHE_FREE.div_ceil(bytes);
        let mut cache = Cache::new(blocks, kv_heads, dim, depth);
        let numbers = numbers(depth * row);
        let rows = Rows { elements: &numbers, stride: row };
        for block in 0..blocks {
            cache.write((&Pool::alone(), InstructionSet::best()), block, 0, rows, rows);
        }
        let queries = self::numbers(row * group);
        let run = move |set, pool: &Pool| {
            pool.run(blocks * kv_heads, &|_, task| {
                let kv_head = task % kv_heads;
                let queries = Rows { elements: &queries[kv_head * group * dim..][..group * dim], stride: row * group };
                let cache = cache.block(task / kv_heads);
                let task = attention::Task { cache, kv_head, group, window: None, first: depth - 1, queries };
                SCRATCH.with_borrow_mut(|scratch| black_box(attend(set, &task, scratch).first().copied()));
            });
        };
        let multiplications = (2 * blocks * depth * row * group) as u64;
        Self { bytes: Bytes((blocks * bytes) as u64), multiplications, run: Box::new(run) }
    }

    /// Rounds rows of 2048 to blocks of 32, as the input of products.
    pub fn rounding() -> Self {
        let input = numbers(VECTORS * MATRIX[1]);
        let mut blocks = vec![SmallBlock::zeroed(); input.len() / SmallBlock::ELEMENTS];
        Self::of_vectors(move |set| {
            SmallBlock::round(set, &input, &mut blocks);
            black_box(&blocks);
        })
    }

    /// Normalises rows of 2048.
    pub fn norm() -> Self {
        let (input, weight) = (numbers(VECTORS * MATRIX[1]), numbers(MATRIX[1]));
        let mut output = input.clone();
        Self::of_vectors(move |set| {
            for (input, output) in input.chunks_exact(MATRIX[1]).zip(output.chunks_exact_mut(MATRIX[1])) {
                normalise(set, input, &weight, 1e-5, output);
            }
            black_box(&output);
        })
    }

    /// The gate of the feed-forward layer, SiLU.
    pub fn gate() -> Self {
        let (input, up) = (numbers(VECTORS * MATRIX[1]), numbers(VECTORS * MATRIX[1]));
        let mut gate = input.clone();
        Self::of_vectors(move |set| {
            gate.copy_from_slice(&input);
            gate_in_place(set, Gate::Silu, &mut gate, &up);
            black_box(&gate);
        })
    }

    /// A kernel over rows of 2048 that stay in a cache; counted as what it reads.
    fn of_vectors(mut run: impl FnMut(InstructionSet) + 'static) -> Self {
        let bytes = Bytes((VECTORS * MATRIX[1] * size_of::<f32>()) as u64);
        Self { bytes, multiplications: 0, run: Box::new(move |set, _| run(set)) }
    }

    /// Elements of the matrices that products are measured with.
    pub fn matrix_elements() -> u64 {
        (MATRIX[0] * MATRIX[1]) as u64
    }
}
