//! Canonical arithmetic v1: the keys and values of one session, as halves.
//!
//! A key or value is rounded to the nearest half when written, ties to even; beyond the largest half it becomes the largest
//! half of its sign ([`Simd::store_halves`]). So the cache never holds an infinity. Not-a-number stays so.
//!
//! Memory comes in pages of 64 positions as positions come, and growing moves nothing. A page holds all blocks of a session, block
//! after block, so that it is as large as large pages of memory where models are. Of a block it holds, head after head:
//!
//! ```text
//! keys    [dim][64 positions]    lanes are positions: scores need no sum over lanes
//! values  [64 positions][dim]    lanes are dimensions
//! ```

use std::ops::Range;

use crate::amounts::Bytes;
use crate::engine::canonical::memory::LARGE_PAGE;
use crate::engine::canonical::memory::Slab;
use crate::engine::canonical::part::load_part;
use crate::engine::canonical::part::store_halves_part;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;
use crate::engine::pool::Pool;
use crate::shape::KV_PAGE;

/// Positions of a page.
pub(super) const PAGE: usize = KV_PAGE as usize;

/// Vectors of positions of a page.
pub(super) const VECTORS: usize = PAGE / LANES;

/// Keys and values of one session.
#[derive(Debug)]
pub(in crate::engine) struct Cache {
    blocks: usize,
    heads: usize,
    dim: usize,
    /// Pages that the capacity needs.
    limit: usize,
    slabs: Vec<Slab>,
    /// Of each page its slab, and which of its pages it is.
    pages: Vec<(usize, usize)>,
}

impl Cache {
    /// A cache of no positions.
    ///
    /// - `heads`: key/value heads of a block; `dim`: elements of one
    /// - `capacity`: positions for which the list of pages is made long enough; the pages come later
    pub(in crate::engine) fn new(blocks: usize, heads: usize, dim: usize, capacity: usize) -> Self {
        let limit = capacity.div_ceil(PAGE);
        let (slabs, pages) = (Vec::with_capacity(limit), Vec::with_capacity(limit));
        Self { blocks, heads, dim, limit, slabs, pages }
    }

    /// Makes room for positions `0..positions`. What is there stays where it is.
    pub(in crate::engine) fn reserve(&mut self, positions: usize) {
        // Small pages come together where that makes a large page of memory, and where they are not more than there are.
        let whole = LARGE_PAGE.div_ceil(self.page_bytes().max(1));
        while self.room() < positions {
            let together = if self.pages.len() < whole { 1 } else { whole.min(self.limit - self.pages.len()).max(1) };
            let slab = self.slabs.len();
            self.slabs.push(Slab::zeros(together * self.page_bytes()));
            self.pages.extend((0..together).map(|page| (slab, page)));
        }
    }

    /// Writes the keys and values of the positions `first..first + keys.count()` of a block, making room where there is none.
    ///
    /// - `keys`, `values`: `[positions, heads × dim]`, of the same positions
    pub(in crate::engine) fn write(
        &mut self,
        (pool, set): (&Pool, InstructionSet),
        block: usize,
        first: usize,
        keys: Rows<'_>,
        values: Rows<'_>,
    ) {
        let (dim, end) = (self.dim, first + keys.count());
        self.reserve(end);
        for page in first / PAGE..end.div_ceil(PAGE) {
            let positions = first.max(page * PAGE)..end.min((page + 1) * PAGE);
            let (keys, values) = (keys.from(positions.start - first), values.from(positions.start - first));
            let inside = positions.start - page * PAGE..positions.end - page * PAGE;
            // To write an element takes about as long as some multiplications.
            let work = 16 * inside.len() * self.heads * dim;
            pool.for_each_chunk(self.block_mut(page, block), 2 * PAGE * dim, work, |head, memory| {
                let memory = bytemuck::cast_slice_mut(memory);
                write_head(set, memory, inside.clone(), dim, keys.columns(head * dim), values.columns(head * dim));
            });
        }
    }

    /// The keys and values of a block.
    pub(in crate::engine) fn block(&self, block: usize) -> BlockCache<'_> {
        BlockCache { cache: self, block }
    }

    /// How many blocks there are.
    pub(in crate::engine) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Positions that there is room for.
    pub(in crate::engine) fn room(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Bytes of keys and values that there is room for: [`crate::shape::kv_bytes`] of the positions reserved or written.
    pub(in crate::engine) fn bytes(&self) -> Bytes {
        Bytes((self.pages.len() * self.page_bytes()) as u64)
    }

    fn page_bytes(&self) -> usize {
        self.blocks * self.block_bytes()
    }

    fn block_bytes(&self) -> usize {
        2 * PAGE * self.heads * self.dim * size_of::<u16>()
    }

    /// Where a block begins in the slab of a page.
    #[inline(always)]
    fn place(&self, page: usize, block: usize) -> (usize, usize) {
        let (slab, inside) = self.pages[page];
        (slab, inside * self.page_bytes() + block * self.block_bytes())
    }

    fn block_mut(&mut self, page: usize, block: usize) -> &mut [u16] {
        let ((slab, start), length) = (self.place(page, block), self.block_bytes());
        bytemuck::cast_slice_mut(&mut self.slabs[slab].bytes_mut()[start..start + length])
    }
}

/// Keys and values of one session in one block.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct BlockCache<'a> {
    cache: &'a Cache,
    block: usize,
}

impl<'a> BlockCache<'a> {
    /// The hash (blake3) of the keys and values of the first `length` positions: of each position and head its key, then its value,
    /// as little-endian halves. It does not depend on how the cache is laid out.
    pub(in crate::engine) fn hash(self, length: usize) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for position in 0..length {
            let (page, at) = (position / PAGE, position % PAGE);
            for head in 0..self.cache.heads {
                let keys = self.keys(page, head).iter().map(|columns| columns[at / LANES][at % LANES]);
                let values = &self.values(page, head)[at * self.dim()..][..self.dim()];
                for half in keys.chain(values.iter().copied()) {
                    hasher.update(&half.to_le_bytes());
                }
            }
        }
        hasher.finalize().into()
    }

    /// Elements of a head.
    pub(in crate::engine) fn dim(self) -> usize {
        self.cache.dim
    }

    /// Positions that there is room for.
    pub(in crate::engine) fn room(self) -> usize {
        self.cache.room()
    }

    /// The keys of a head in a page: of each dimension 64 positions.
    #[inline(always)]
    pub(super) fn keys(self, page: usize, head: usize) -> &'a [[[u16; LANES]; VECTORS]] {
        self.head(page, head)[..PAGE * self.dim()].as_chunks().0.as_chunks().0
    }

    /// The values of a head in a page: `[64, dim]`.
    #[inline(always)]
    pub(super) fn values(self, page: usize, head: usize) -> &'a [u16] {
        &self.head(page, head)[PAGE * self.dim()..]
    }

    #[inline(always)]
    fn head(self, page: usize, head: usize) -> &'a [u16] {
        let bytes = 2 * PAGE * self.dim() * size_of::<u16>();
        let (slab, start) = self.cache.place(page, self.block);
        bytemuck::cast_slice(&self.cache.slabs[slab].bytes()[start + head * bytes..][..bytes])
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

    /// The rows from number `first` on.
    fn from(self, first: usize) -> Self {
        Self { elements: &self.elements[first * self.stride..], ..self }
    }

    /// The rows from column `first` on.
    fn columns(self, first: usize) -> Self {
        Self { elements: &self.elements[first..], ..self }
    }

    /// The rows, each with what lies between it and the next.
    pub(in crate::engine) fn iter(self) -> impl Iterator<Item = &'a [f32]> {
        self.elements.chunks(self.stride)
    }
}

kernels! {
    fn write_head(
        memory: &mut [u16], positions: Range<usize>, dim: usize, keys: Rows<'_>, values: Rows<'_>,
    ) = write_body;
}

/// Writes some positions of a page of one head.
#[inline(always)]
fn write_body<S: Simd>(
    s: S,
    memory: &mut [u16],
    positions: Range<usize>,
    dim: usize,
    keys: Rows<'_>,
    values: Rows<'_>,
) {
    let (columns, rows) = memory.split_at_mut(PAGE * dim);
    // Sixteen positions together, since their halves are neighbours.
    for (number, columns) in columns.as_chunks_mut::<PAGE>().0.chunks_mut(LANES).enumerate() {
        let d = number * LANES..number * LANES + columns.len();
        let mut start = positions.start;
        while start < positions.end {
            let end = positions.end.min((start / LANES + 1) * LANES);
            let mut halves = [[0; LANES]; LANES];
            for (halves, key) in halves.iter_mut().zip(keys.from(start - positions.start).iter()).take(end - start) {
                s.store_halves(load_part(s, &key[d.clone()]), halves);
            }
            for (i, column) in columns.iter_mut().enumerate() {
                for (to, halves) in column[start..end].iter_mut().zip(&halves) {
                    *to = halves[i];
                }
            }
            start = end;
        }
    }
    for (row, value) in rows.chunks_exact_mut(dim).skip(positions.start).zip(values.iter()).take(positions.len()) {
        for (value, row) in value[..dim].chunks(LANES).zip(row.chunks_mut(LANES)) {
            store_halves_part(s, load_part(s, value), row);
        }
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
                let mut cache = Cache::new(2, heads, dim, 70);

                let part = |all: &[f32], positions: std::ops::Range<usize>| {
                    all[positions.start * (width + 3)..positions.end * (width + 3)].to_vec()
                };
                for positions in [0..13, 13..66, 66..70] {
                    let (keys, values) = (part(&keys, positions.clone()), part(&values, positions.clone()));
                    let view = |elements| Rows { elements, stride: width + 3 };
                    cache.write((&Pool::alone(), set), 1, positions.start, view(&keys), view(&values));
                }

                for position in 0..70 {
                    for column in 0..width {
                        let (head, d) = (column / dim, column % dim);
                        let (page, inside) = (position / PAGE, position % PAGE);
                        let key = cache.block(1).keys(page, head)[d][inside / LANES][inside % LANES];
                        let value = cache.block(1).values(page, head)[inside * dim + d];
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
        let mut cache = Cache::new(3, 4, 8, 300);
        assert_eq!(cache.bytes(), Bytes::ZERO);
        let row = vec![1.0; 32];
        let rows = Rows { elements: &row, stride: 32 };
        let with = (&Pool::alone(), InstructionSet::Plain);
        let expected = |positions| Bytes(3 * kv_bytes(32, Position(positions)).0);

        cache.write(with, 0, 0, rows, rows);
        let place = cache.block(0).keys(0, 0).as_ptr();
        assert_eq!(place.align_offset(64), 0);
        assert_eq!(cache.bytes(), expected(1));
        cache.write(with, 2, 64, rows, rows);
        assert_eq!(cache.bytes(), expected(65));
        cache.reserve(300);

        assert_eq!(cache.bytes(), expected(300));
        assert_eq!(cache.block(0).keys(0, 0).as_ptr(), place);
        assert_eq!(cache.pages.capacity(), 5);
    }

    #[test]
    fn pages_that_are_small_come_together_when_there_are_many_and_never_beyond_the_capacity() {
        // Four make a large page of memory.
        let mut cache = Cache::new(2, 16, 64, 64 * 9);

        let rooms = (0..9 * PAGE).map(|position| {
            cache.reserve(position + 1);
            cache.room() / PAGE
        });
        let mut rooms: Vec<usize> = rooms.collect();
        rooms.dedup();

        assert_eq!(rooms, [1, 2, 3, 4, 8, 9]);
        assert_eq!(cache.bytes(), Bytes(2 * kv_bytes(16 * 64, Position(64 * 9)).0));
        let places = (0..9).map(|page| cache.block(1).values(page, 15).as_ptr());
        assert_eq!(places.collect::<std::collections::BTreeSet<_>>().len(), 9);
    }

    #[test]
    fn what_is_too_large_for_a_half_saturates() {
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            let mut cache = Cache::new(1, 1, 4, 1);
            let row = [1e30, -1e30, f32::INFINITY, f32::NAN];
            let rows = Rows { elements: &row, stride: 4 };

            cache.write((&Pool::alone(), set), 0, 0, rows, rows);

            let values = cache.block(0).values(0, 0)[..4].iter().map(|bits| f16::from_bits(*bits)).collect::<Vec<_>>();
            assert_eq!(values[..3], [f16::MAX, f16::MIN, f16::MAX]);
            assert!(values[3].is_nan());
        }
    }
}
