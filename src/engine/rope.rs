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

    /// Appends sines and cosines for the positions `first..first + count`. Computed once per step and used by all its blocks,
    /// which is cheaper than a table for the whole context and takes no memory.
    pub(super) fn append(&self, first: usize, count: usize, angles: &mut Angles) {
        let turn =
            |position: usize| self.frequencies.iter().map(move |frequency| (position as f64 * frequency).sin_cos());
        angles.per_position = self.frequencies.len();
        angles.pairs.extend((first..first + count).flat_map(turn).map(|(sin, cos)| (sin as f32, cos as f32)));
    }
}

/// Sines and cosines of the positions of some rows.
#[derive(Debug, Default)]
pub(super) struct Angles {
    pairs: Vec<(f32, f32)>,
    per_position: usize,
}

impl Angles {
    /// Forgets all rows.
    pub(super) fn clear(&mut self) {
        self.pairs.clear();
    }

    /// Turns the first dimensions of every head of `values`, `[heads, head_dim]`, of row `row`.
    pub(super) fn rotate(&self, row: usize, values: &mut [f32], head_dim: usize) {
        let angles = &self.pairs[row * self.per_position..(row + 1) * self.per_position];
        for head in values.chunks_exact_mut(head_dim) {
            for (pair, (sin, cos)) in head.chunks_exact_mut(2).zip(angles) {
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
            }
        }
    }
}
