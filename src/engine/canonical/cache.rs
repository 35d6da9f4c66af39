//! Canonical arithmetic v1: the keys and values of one session in one block, as halves.
//!
//! A key or value is rounded to the nearest half when written, ties to even; beyond the largest half it becomes the largest
//! half of its sign ([`Simd::store_halves`]). So the cache never holds an infinity. Not-a-number stays so.
//!
//! Memory comes in pages of 64 positions as positions come, and growing moves nothing. A page holds, head after head:
//!
//! ```text
//! keys    four tiles of 16 positions, each [dim][16 positions]   lanes are positions: scores need no sum over lanes
//! values  [64 positions][dim]                                    lanes are dimensions
//! ```

use crate::amounts::Bytes;
use crate::engine::canonical::part::load_part;
use crate::engine::canonical::part::store_halves_part;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;
use crate::shape::KV_PAGE;

/// Positions of a page.
pub(super) const PAGE: usize = KV_PAGE as usize;

/// Positions of a tile of keys.
pub(super) const TILE: usize = LANES;

/// Tiles of a page.
pub(super) const TILES: usize = PAGE / TILE;

/// Bytes of a cache line.
const ALIGNMENT: usize = 64;

/// Keys and values of one session in one block.
#[derive(Debug)]
pub(in crate::engine) struct BlockCache {
    heads: usize,
    dim: usize,
    pages: Vec<Page>,
}

impl BlockCache {
    /// A cache of no positions.
    ///
    /// - `heads`: key/value heads; `dim`: elements of one
    /// - `capacity`: positions for which the list of pages is made long enough; the pages come later
    pub(in crate::engine) fn new(heads: usize, dim: usize, capacity: usize) -> Self {
        Self { heads, dim, pages: Vec::with_capacity(capacity.div_ceil(PAGE)) }
    }

    /// Makes room for positions `0..positions`. What is there stays where it is.
    pub(in crate::engine) fn reserve(&mut self, positions: usize) {
        while self.pages.len() * PAGE < positions {
            self.pages.push(Page::new(2 * PAGE * self.heads * self.dim));
        }
    }

    /// Writes the keys and values of the positions `first..first + keys.count()`, making room where there is none.
    ///
    /// - `keys`, `values`: `[positions, heads × dim]`, of the same positions
    pub(in crate::engine) fn write(&mut self, set: InstructionSet, first: usize, keys: Rows<'_>, values: Rows<'_>) {
        let (heads, dim) = (self.heads, self.dim);
        self.reserve(first + keys.count());
        for (position, (keys, values)) in (first..).zip(keys.iter().zip(values.iter())) {
            let page = self.pages[position / PAGE].halves_mut();
            write_position(set, page, position % PAGE, dim, &keys[..heads * dim], &values[..heads * dim]);
        }
    }

    /// Bytes of keys and values that there is room for: [`crate::shape::kv_bytes`] of the positions reserved or written.
    pub(in crate::engine) fn bytes(&self) -> Bytes {
        self.pages.iter().map(|page| Bytes(size_of_val(page.halves()) as u64)).sum()
    }

    /// Elements of a head.
    pub(in crate::engine) fn dim(&self) -> usize {
        self.dim
    }

    /// Positions that there is room for.
    pub(in crate::engine) fn room(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// The keys of a head in a page: four tiles of `dim × 16`.
    #[inline(always)]
    pub(super) fn keys(&self, page: usize, head: usize) -> &[[u16; LANES]] {
        self.head(page, head)[..PAGE * self.dim].as_chunks().0
    }

    /// The values of a head in a page: `[64, dim]`.
    #[inline(always)]
    pub(super) fn values(&self, page: usize, head: usize) -> &[u16] {
        &self.head(page, head)[PAGE * self.dim..]
    }

    #[inline(always)]
    fn head(&self, page: usize, head: usize) -> &[u16] {
        let size = 2 * PAGE * self.dim;
        &self.pages[page].halves()[head * size..][..size]
    }
}

/// Rows of numbers that may lie apart, as those of one kind among several in a fused product do.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Rows<'a> {
    /// From the first element of the first row on.
    pub(in crate::engine) elements: &'a [f32],
    /// Elements from one row's beginning to the next one's.
    pub(in crate::engine) stride: usize,
}

impl<'a> Rows<'a> {
    /// How many rows begin in the elements.
    pub(in crate::engine) fn count(self) -> usize {
        self.elements.len().div_ceil(self.stride)
    }

    /// The rows, each with what lies between it and the next.
    pub(in crate::engine) fn iter(self) -> impl Iterator<Item = &'a [f32]> {
        self.elements.chunks(self.stride)
    }
}

kernels! {
    fn write_position(page: &mut [u16], position: usize, dim: usize, keys: &[f32], values: &[f32]) = write_body;
}

/// Writes one position of all heads.
#[inline(always)]
fn write_body<S: Simd>(s: S, page: &mut [u16], position: usize, dim: usize, keys: &[f32], values: &[f32]) {
    let heads = page.chunks_exact_mut(2 * PAGE * dim);
    for ((head, key), value) in heads.zip(keys.chunks_exact(dim)).zip(values.chunks_exact(dim)) {
        let (tiles, rows) = head.split_at_mut(PAGE * dim);
        let tile = &mut tiles[position / TILE * TILE * dim..][..TILE * dim];
        let (lane, columns) = (position % TILE, tile.as_chunks_mut::<TILE>().0);
        for (key, columns) in key.chunks(LANES).zip(columns.chunks_mut(LANES)) {
            let mut halves = [0; LANES];
            s.store_halves(load_part(s, key), &mut halves);
            columns.iter_mut().zip(halves).for_each(|(column, half)| column[lane] = half);
        }
        let row = &mut rows[position * dim..][..dim];
        for (value, row) in value.chunks(LANES).zip(row.chunks_mut(LANES)) {
            store_halves_part(s, load_part(s, value), row);
        }
    }
}

/// Halves that begin with a cache line, so that no tile row is spread over two.
#[derive(Debug)]
struct Page {
    buffer: Box<[u16]>,
    start: usize,
    length: usize,
}

impl Page {
    fn new(length: usize) -> Self {
        let spare = ALIGNMENT / size_of::<u16>();
        let buffer = vec![0; length + spare].into_boxed_slice();
        // Where the offset cannot be told, alignment is lost and nothing else.
        let start = buffer.as_ptr().align_offset(ALIGNMENT).min(spare);
        Self { buffer, start, length }
    }

    #[inline(always)]
    fn halves(&self) -> &[u16] {
        &self.buffer[self.start..self.start + self.length]
    }

    fn halves_mut(&mut self) -> &mut [u16] {
        &mut self.buffer[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::amounts::Position;
    use crate::shape::kv_bytes;

    #[test]
    fn every_element_is_found_where_the_layout_says_on_every_instruction_set() {
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            for (heads, dim) in [(1, 1), (2, 8), (3, 17), (2, 64)] {
                let width = heads * dim;
                let element = |position: usize, column: usize| (position * 1_000 + column) as f32 * 0.37 - 900.0;
                let rows = |sign: f32| -> Vec<f32> {
                    let stride = width + 3;
                    (0..70 * stride).map(|index| sign * element(index / stride, index % stride)).collect()
                };
                let (keys, values) = (rows(1.0), rows(-1.0));
                let mut cache = BlockCache::new(heads, dim, 70);

                let part = |all: &[f32], positions: std::ops::Range<usize>| {
                    all[positions.start * (width + 3)..positions.end * (width + 3)].to_vec()
                };
                for positions in [0..13, 13..66, 66..70] {
                    let (keys, values) = (part(&keys, positions.clone()), part(&values, positions.clone()));
                    let view = |elements| Rows { elements, stride: width + 3 };
                    cache.write(set, positions.start, view(&keys), view(&values));
                }

                for position in 0..70 {
                    for column in 0..width {
                        let (head, d) = (column / dim, column % dim);
                        let (page, inside) = (position / PAGE, position % PAGE);
                        let key = cache.keys(page, head)[inside / TILE * dim + d][inside % TILE];
                        let value = cache.values(page, head)[inside * dim + d];
                        let expected = f16::from_f32(element(position, column).clamp(-65_504.0, 65_504.0));
                        assert_eq!(f16::from_bits(key), expected);
                        assert_eq!(f16::from_bits(value), -expected);
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_estimator_and_growing_moves_nothing() {
        let mut cache = BlockCache::new(4, 8, 300);
        assert_eq!(cache.bytes(), Bytes::ZERO);
        let row = vec![1.0; 32];
        let rows = Rows { elements: &row, stride: 32 };

        cache.write(InstructionSet::Plain, 0, rows, rows);
        let place = cache.pages[0].halves().as_ptr();
        assert_eq!(place.align_offset(ALIGNMENT), 0);
        assert_eq!(cache.bytes(), kv_bytes(32, Position(1)));
        cache.write(InstructionSet::Plain, 64, rows, rows);
        assert_eq!(cache.bytes(), kv_bytes(32, Position(65)));
        cache.reserve(300);

        assert_eq!(cache.bytes(), kv_bytes(32, Position(300)));
        assert_eq!(cache.pages[0].halves().as_ptr(), place);
        assert_eq!(cache.pages.capacity(), 5);
    }

    #[test]
    fn what_is_too_large_for_a_half_saturates() {
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            let mut cache = BlockCache::new(1, 4, 1);
            let row = [1e30, -1e30, f32::INFINITY, f32::NAN];
            let rows = Rows { elements: &row, stride: 4 };

            cache.write(set, 0, rows, rows);

            let values = cache.values(0, 0)[..4].iter().map(|bits| f16::from_bits(*bits)).collect::<Vec<_>>();
            assert_eq!(values[..3], [f16::MAX, f16::MIN, f16::MAX]);
            assert!(values[3].is_nan());
        }
    }
}
