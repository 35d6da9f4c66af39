//! Vectors whose length is no multiple of 16.

use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;

/// The first 16 elements, or as many as there are, followed by +0.
#[inline(always)]
pub(super) fn load_part<S: Simd>(s: S, from: &[f32]) -> S::F {
    if let Some(lanes) = from.first_chunk() {
        return s.load(lanes);
    }
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    s.load(&lanes)
}

/// The first 16 lanes, or as many as there is room for.
#[inline(always)]
pub(super) fn store_part<S: Simd>(s: S, value: S::F, to: &mut [f32]) {
    if let Some(lanes) = to.first_chunk_mut() {
        return s.store(value, lanes);
    }
    let mut lanes = [0.0; LANES];
    s.store(value, &mut lanes);
    let count = to.len();
    to.copy_from_slice(&lanes[..count]);
}

/// As [`load_part`], of halves.
#[inline(always)]
pub(super) fn load_halves_part<S: Simd>(s: S, from: &[u16]) -> S::F {
    if let Some(lanes) = from.first_chunk() {
        return s.load_halves(lanes);
    }
    let mut lanes = [0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    s.load_halves(&lanes)
}

/// As [`store_part`], to halves.
#[inline(always)]
pub(super) fn store_halves_part<S: Simd>(s: S, value: S::F, to: &mut [u16]) {
    if let Some(lanes) = to.first_chunk_mut() {
        return s.store_halves(value, lanes);
    }
    let mut lanes = [0; LANES];
    s.store_halves(value, &mut lanes);
    let count = to.len();
    to.copy_from_slice(&lanes[..count]);
}
