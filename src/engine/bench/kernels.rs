//! Single kernels of the engine, with data to run them on: for micro-benchmarks.

use std::fmt;
use std::hint::black_box;

use crate::amounts::Bytes;
use crate::engine::block::multiply;
use crate::engine::canonical::memory::Slab;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::matrix::Matrix;
use crate::engine::matrix::Rounded;
use crate::engine::pool::Pool;
use crate::shape::WeightFormat;

/// Bytes that a memory-bound kernel goes through in a run: so many that caches are of no help (arbitrary).
const CACHE_FREE: usize = 256 << 20;

/// Outputs and inputs of the matrices: those of the feed-forward layer of Llama 3.2 1B.
const MATRIX: [usize; 2] = [8192, 2048];

/// A kernel and data of its own.
pub struct Kernel {
    /// Bytes of memory that a run goes through, if that is what limits it.
    pub bytes: Bytes,
    /// Multiplications of a run.
    pub multiplications: u64,
    run: Box<dyn FnMut(InstructionSet, &Pool)>,
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
        let mut memory = Slab::new(CACHE_FREE);
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
        let matrices: Vec<Matrix> = (0..copies).map(|_| Matrix::new(format, rows, columns, stored)).collect();
        let input: Vec<f32> = (0..inputs * columns).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
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
        let run = move |_: InstructionSet, _: &Pool| {
            black_box(Matrix::new(format, rows, columns, &stored));
        };
        Self { bytes, multiplications: 0, run: Box::new(run) }
    }

    /// Elements of the matrices that products are measured with.
    pub fn matrix_elements() -> u64 {
        (MATRIX[0] * MATRIX[1]) as u64
    }
}
