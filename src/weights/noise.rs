//! Random weights in every storage format.

use half::bf16;
use half::f16;

use crate::shape::WeightFormat;

/// A stream of random bits (SplitMix64), one for each tensor.
#[derive(Debug)]
pub(super) struct Noise {
    state: u64,
}

impl Noise {
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        let mut state = [0; 8];
        state.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        Self { state: u64::from_le_bytes(state) }
    }

    /// Gains of a norm as F32: 0.9 to 1.1.
    pub(super) fn gains(&mut self, elements: u64) -> Vec<u8> {
        (0..elements).flat_map(|_| (1.0 + 0.1 * self.unit()).to_le_bytes()).collect()
    }

    /// Weights around 0 of about the standard deviation that is asked for, in whole blocks.
    pub(super) fn weights(&mut self, format: WeightFormat, elements: u64, deviation: f32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((elements / format.block_elements() * format.block_bytes()) as usize);
        for _ in 0..elements / format.block_elements() {
            self.block(format, deviation, &mut bytes);
        }
        bytes
    }

    /// Appends one block. The numbers are the standard deviations of the uniform integers that the format stores.
    fn block(&mut self, format: WeightFormat, deviation: f32, out: &mut Vec<u8>) {
        match format {
            WeightFormat::F32 => out.extend_from_slice(&self.plain(deviation).to_le_bytes()),
            WeightFormat::F16 => out.extend_from_slice(&f16::from_f32(self.plain(deviation)).to_le_bytes()),
            WeightFormat::BF16 => out.extend_from_slice(&bf16::from_f32(self.plain(deviation)).to_le_bytes()),
            WeightFormat::Q4_0 => {
                self.signed_scale(deviation / 4.61, out);
                self.bits(16, out);
            }
            WeightFormat::Q4_1 => {
                scales(deviation / 4.61, -7.5, out);
                self.bits(16, out);
            }
            WeightFormat::Q5_0 => {
                self.signed_scale(deviation / 9.23, out);
                self.bits(20, out);
            }
            WeightFormat::Q5_1 => {
                scales(deviation / 9.23, -15.5, out);
                self.bits(20, out);
            }
            WeightFormat::Q8_0 => {
                self.signed_scale(deviation / 73.9, out);
                self.bits(32, out);
            }
            // Sub-scales are 16 to 63, of root mean square 42; minima are subtracted.
            WeightFormat::Q4K => {
                scales(deviation / (42.0 * 4.61), 7.5, out);
                self.sub_scales(out);
                self.bits(128, out);
            }
            WeightFormat::Q5K => {
                scales(deviation / (42.0 * 9.23), 15.5, out);
                self.sub_scales(out);
                self.bits(32 + 128, out);
            }
            // Sub-scales are any signed byte, of the deviation 73.9.
            WeightFormat::Q6K => {
                self.bits(128 + 64 + 16, out);
                self.signed_scale(deviation / (18.5 * 73.9), out);
            }
        }
    }

    /// A uniform number of the deviation.
    fn plain(&mut self, deviation: f32) -> f32 {
        3_f32.sqrt() * deviation * self.unit()
    }

    /// A scale of either sign, so that the integers' own mean of -½ cancels over blocks.
    fn signed_scale(&mut self, scale: f32, out: &mut Vec<u8>) {
        let signed = if self.next().is_multiple_of(2) { scale } else { -scale };
        out.extend_from_slice(&f16::from_f32(signed).to_le_bytes());
    }

    fn bits(&mut self, count: usize, out: &mut Vec<u8>) {
        let end = out.len() + count;
        while out.len() < end {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(end);
    }

    /// The twelve bytes of eight sub-scales and eight sub-minima of six bits; each minimum equals its scale.
    fn sub_scales(&mut self, out: &mut Vec<u8>) {
        let word = self.next().to_le_bytes();
        let scales = word.map(|byte| 16 + byte % 48);
        let packed = |index: usize| scales[index] | scales[index + 4] >> 4 << 6;
        let low: [u8; 4] = std::array::from_fn(packed);
        let rest: [u8; 4] = std::array::from_fn(|index| scales[index + 4] & 15 | (scales[index + 4] & 15) << 4);
        out.extend_from_slice(&low);
        out.extend_from_slice(&low);
        out.extend_from_slice(&rest);
    }

    /// A uniform number from -1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A scale and a minimum that is `ratio` times the scale.
fn scales(scale: f32, ratio: f32, out: &mut Vec<u8>) {
    out.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
    out.extend_from_slice(&f16::from_f32(scale * ratio).to_le_bytes());
}
