//! Weight matrices, repacked once so that lanes are output rows.
//!
//! Sixteen rows make a group. For each block of columns, a group holds the sixteen rows' blocks interleaved: the scales of the
//! sixteen rows side by side, and of their quants the four of columns `4j..4j + 4` side by side, row after row. So a product
//! reads one stretch of memory from its start to its end, its lanes are output rows, and the order of additions is the natural
//! one at every width. A group takes as many bytes as its rows do in a file; the last is filled up with zeros.

use std::fmt;

use bytemuck::Pod;
use bytemuck::Zeroable;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::with_format;
use crate::engine::canonical::memory::Slab;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::simd::LANES;
use crate::shape::WeightFormat;

/// A weight matrix: maps rows of `columns` elements to rows of `rows` elements.
pub(in crate::engine) struct Packed {
    format: WeightFormat,
    rows: usize,
    columns: usize,
    slab: Slab,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({}, {}×{})", self.format, self.rows, self.columns)
    }
}

impl Packed {
    /// Repacks a matrix from its stored bytes.
    ///
    /// # Panics
    /// If `columns` are not whole blocks or the length of `bytes` is not that of the matrix. The loader checks both.
    pub(in crate::engine) fn new(format: WeightFormat, rows: usize, columns: usize, bytes: &[u8]) -> Self {
        let slab = with_format!(format, F => pack::<F>(rows, columns, bytes));
        Self { format, rows, columns, slab }
    }

    pub(in crate::engine) fn rows(&self) -> usize {
        self.rows
    }

    pub(in crate::engine) fn columns(&self) -> usize {
        self.columns
    }

    pub(super) fn format(&self) -> WeightFormat {
        self.format
    }

    /// How inputs must be rounded.
    pub(in crate::engine) fn rounding(&self) -> Rounding {
        with_format!(self.format, F => F::ROUNDING)
    }

    /// Writes row `index` as f32 into `out`, of `columns` elements.
    pub(in crate::engine) fn row(&self, index: usize, out: &mut [f32]) {
        with_format!(self.format, F => self.unpack::<F>(index, out));
    }

    fn unpack<F: Format>(&self, index: usize, out: &mut [f32]) {
        let blocks = self.group::<F>(index / LANES);
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(F::COLUMNS)) {
            F::unpack(block, index % LANES, out);
        }
    }

    /// The blocks of a group, in the order of columns.
    pub(super) fn group<F: Format>(&self, group: usize) -> &[F::Block] {
        let blocks: &[F::Block] = bytemuck::cast_slice(self.slab.bytes());
        let row_blocks = self.columns / F::COLUMNS;
        &blocks[group * row_blocks..(group + 1) * row_blocks]
    }
}

fn pack<F: Format>(rows: usize, columns: usize, bytes: &[u8]) -> Slab {
    assert!(columns.is_multiple_of(F::COLUMNS), "rows fill whole blocks");
    let row_bytes = columns / F::COLUMNS * size_of::<F::Stored>();
    assert_eq!(bytes.len(), rows * row_bytes, "bytes fill the matrix");
    let mut slab = Slab::new(rows.div_ceil(LANES) * LANES * row_bytes);
    let groups = bytemuck::cast_slice_mut::<u8, F::Block>(slab.bytes_mut()).chunks_exact_mut(columns / F::COLUMNS);
    for (group, stored) in groups.zip(bytes.chunks(LANES * row_bytes)) {
        for (index, block) in group.iter_mut().enumerate() {
            let mut rows = [F::Stored::zeroed(); LANES];
            for (row, stored) in rows.iter_mut().zip(stored.chunks_exact(row_bytes)) {
                let start = index * size_of::<F::Stored>();
                *row = bytemuck::pod_read_unaligned(&stored[start..start + size_of::<F::Stored>()]);
            }
            *block = F::pack(&rows);
        }
    }
    slab
}

/// Sixteen halves, one of each row.
pub(super) type Halves = [u16; LANES];

/// Bytes of four columns of sixteen rows, row after row.
pub(super) type Quads = [u8; 4 * LANES];

/// One byte of each of sixteen rows.
pub(super) type Bytes = [u8; LANES];

/// Checks at compile time that a block of a group is as large as sixteen stored ones.
pub(super) const fn same_size<Block: Pod, Stored: Pod>() {
    assert!(size_of::<Block>() == LANES * size_of::<Stored>(), "a group is as large as its rows");
}
