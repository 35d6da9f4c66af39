//! Plain loops over slices: matrix products, norms, softmax, rotations. Everything runs on the
//! calling thread and in a fixed order, so the same input gives the same bits.

use gemm::Parallelism;

/// A strided view of a matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The first `rows` rows of `columns` values each.
    ///
    /// # Panics
    /// If `values` is too short.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(values.len() >= rows * columns, "matrix of {rows} x {columns} in {} values", values.len());
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The transposed view.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// What a product does with the values it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Overwrites them.
    Set,
    /// Adds to them.
    Add,
}

/// Writes `scale * left * right` to `out`, row after row.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn multiply(out: &mut [f32], write: Write, scale: f32, left: Matrix<'_>, right: Matrix<'_>) {
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert_eq!(inner, right.rows, "inner dimensions differ");
    assert!(out.len() >= rows * columns, "result of {rows} x {columns} in {} values", out.len());
    // SAFETY: `Matrix::new` checked that every element of both views lies in its slice, the assert
    // above does so for `out`, and `out` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns.cast_signed(),
            write == Write::Add,
            left.values.as_ptr(),
            left.column_stride.cast_signed(),
            left.row_stride.cast_signed(),
            right.values.as_ptr(),
            right.column_stride.cast_signed(),
            right.row_stride.cast_signed(),
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// The sum of products of `left` and `right`, over eight lanes.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    for (left, right) in left.chunks_exact(8).zip(right.chunks_exact(8)) {
        for lane in 0..8 {
            lanes[lane] += left[lane] * right[lane];
        }
    }
    let whole = left.len() / 8 * 8;
    let rest: f32 = left[whole..].iter().zip(&right[whole..]).map(|(left, right)| left * right).sum();
    lanes.iter().sum::<f32>() + rest
}

/// e to the power `x`, for `x` at most 80; relative error about 2e-7. Branch-free, so it vectorises.
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-80.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let power = shifted - ROUND;
    let rest = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let poly = 1.0
        + rest
            * (1.0
                + rest
                    * (0.5
                        + rest * (0.166_666_55 + rest * (0.041_665_8 + rest * (0.008_333_45 + rest * 0.001_398_2)))));
    let exponent = (shifted.to_bits() as i32).wrapping_sub(0x4b40_0000).wrapping_add(127) << 23;
    f32::from_bits(exponent.cast_unsigned()) * poly
}

/// Turns scores into weights that sum to one. Returns the logarithm of the sum of their powers.
pub(crate) fn softmax(scores: &mut [f32]) -> f32 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - max);
    }
    let sum = sum(scores);
    let inverse = 1.0 / sum;
    for score in scores.iter_mut() {
        *score *= inverse;
    }
    max + sum.ln()
}

/// The sum of `values`, over eight lanes.
pub(crate) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let chunks = values.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for lane in 0..8 {
            lanes[lane] += chunk[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Cosines and sines of rotary embedding, by position and pair.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    pairs: usize,
    turns: Vec<(f32, f32)>,
}

impl Rotation {
    /// Tabulates `positions` positions for heads of `width` values.
    pub(crate) fn new(positions: usize, width: usize, base: f32) -> Self {
        let pairs = width / 2;
        let angle = |position: usize, pair: usize| position as f32 * base.powf(-((2 * pair) as f32) / width as f32);
        let turns = (0..positions * pairs)
            .map(|index| angle(index / pairs, index % pairs))
            .map(|angle| (angle.cos(), angle.sin()))
            .collect();
        Self { pairs, turns }
    }

    /// Rotates neighbouring pairs of one head, forward.
    pub(crate) fn turn(&self, position: usize, head: &mut [f32]) {
        self.rotate(position, head, 1.0);
    }

    /// Rotates back: the transpose of [`Self::turn`], which carries gradients.
    pub(crate) fn turn_back(&self, position: usize, head: &mut [f32]) {
        self.rotate(position, head, -1.0);
    }

    fn rotate(&self, position: usize, head: &mut [f32], direction: f32) {
        let turns = &self.turns[position * self.pairs..(position + 1) * self.pairs];
        for (pair, (cos, sin)) in head.chunks_exact_mut(2).zip(turns) {
            let sin = sin * direction;
            let (first, second) = (pair[0], pair[1]);
            pair[0] = first * cos - second * sin;
            pair[1] = first * sin + second * cos;
        }
    }
}
