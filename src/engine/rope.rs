//! The rotary position embedding on interleaved pairs.

use crate::shape::Rope;
use crate::shape::RopeScaling;

/// The angle per position of each rotated pair.
#[derive(Debug)]
pub(super) struct Rotation {
    frequencies: Vec<f64>,
}

impl Rotation {
    /// - `divisors`: the values of `rope_freqs.weight`, one per pair; used if the scaling is `Tensor`
    ///
    /// Source: Su et al., "RoFormer" (2021), §3.2.2; the scaling is described at [`RopeScaling`].
    pub(super) fn new(rope: &Rope, divisors: Option<&[f32]>) -> Self {
        let pairs = rope.dimensions / 2;
        let frequency = |pair: u32| {
            let plain = f64::from(rope.base).powf(-2.0 * f64::from(pair) / f64::from(rope.dimensions));
            match rope.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear { factor } => plain / f64::from(factor),
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                    let turns = f64::from(original_context) * plain / std::f64::consts::TAU;
                    let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    plain * kept + plain / f64::from(factor) * (1.0 - kept)
                }
                RopeScaling::Tensor => {
                    let divisor = divisors.and_then(|divisors| divisors.get(pair as usize));
                    plain / f64::from(divisor.copied().unwrap_or(1.0))
                }
            }
        };
        Self { frequencies: (0..pairs).map(frequency).collect() }
    }

    /// Sines and cosines for the positions `first..first + count`. Computed once per step and used by all its blocks,
    /// which is cheaper than a table for the whole context and takes no memory.
    pub(super) fn angles(&self, first: usize, count: usize) -> Angles {
        let positions = first..first + count;
        let turn =
            |position: usize| self.frequencies.iter().map(move |frequency| (position as f64 * frequency).sin_cos());
        let pairs = positions.flat_map(turn).map(|(sin, cos)| (sin as f32, cos as f32)).collect();
        Angles { pairs, per_position: self.frequencies.len() }
    }
}

/// Sines and cosines of some positions, position by position.
#[derive(Debug)]
pub(super) struct Angles {
    pairs: Vec<(f32, f32)>,
    per_position: usize,
}

impl Angles {
    /// Turns the first dimensions of every head of `rows`, `[positions, heads, head_dim]`.
    pub(super) fn rotate(&self, rows: &mut [f32], heads: usize, head_dim: usize) {
        let positions = self.pairs.chunks_exact(self.per_position);
        for (row, angles) in rows.chunks_exact_mut(heads * head_dim).zip(positions) {
            for head in row.chunks_exact_mut(head_dim) {
                for (pair, (sin, cos)) in head.chunks_exact_mut(2).zip(angles) {
                    (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
                }
            }
        }
    }
}
