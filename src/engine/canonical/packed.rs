//! Weight matrices, repacked once so that lanes are output rows.
//!
//! Sixteen rows make a group. For each block of columns, a group holds the sixteen rows' blocks interleaved: the scales of the
//! sixteen rows side by side, and of their quants the four of columns `4j..4j + 4` side by side, row after row. So a product
//! reads one stretch of memory from its start to its end, its lanes are output rows, and the order of additions is the natural
//! one at every width. A group takes as many bytes as its rows do in a file; the last is filled up with zeros.

use std::fmt;
use std::ops::Range;

use bytemuck::Pod;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::with_format;
use crate::engine::canonical::memory::Slab;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::simd::LANES;
use crate::engine::pool::Pool;
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
    /// - `done`: told of bytes that will not be looked at again, by whichever thread
    ///
    /// # Panics
    /// If `columns` are not whole blocks or the length of `bytes` is not that of the matrix. The loader checks both.
    pub(in crate::engine) fn new(
        pool: &Pool,
        format: WeightFormat,
        [rows, columns]: [usize; 2],
        bytes: &[u8],
        done: &(dyn Fn(Range<usize>) + Sync),
    ) -> Self {
        let slab = with_format!(format, F => pack::<F>(pool, [rows, columns], bytes, done));
        Self { format, rows, columns, slab }
    }

    pub(in crate::engine) fn rows(&self) -> usize {
        self.rows
    }

    pub(in crate::engine) fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of its groups.
    pub(in crate::engine) fn bytes(&self) -> usize {
        self.slab.bytes().len()
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

/// Bytes of groups that one task packs: several large pages, so that threads seldom wait for the same one to be cleared.
const TASK: usize = 4 << 20;

/// Tasks of a matrix for each thread, so that one that is held up holds up little (arbitrary).
const TASKS_PER_THREAD: usize = 4;

fn pack<F: Format>(
    pool: &Pool,
    [rows, columns]: [usize; 2],
    bytes: &[u8],
    done: &(dyn Fn(Range<usize>) + Sync),
) -> Slab {
    assert!(columns.is_multiple_of(F::COLUMNS), "rows fill whole blocks");
    let row_bytes = columns / F::COLUMNS * size_of::<F::Stored>();
    assert_eq!(bytes.len(), rows * row_bytes, "bytes fill the matrix");
    let (group_bytes, groups) = (LANES * row_bytes, rows.div_ceil(LANES));
    let together = groups.div_ceil(pool.threads() * TASKS_PER_THREAD).min(TASK / group_bytes.max(1)).max(1);
    let pack = |start: usize, group: &mut [u8]| {
        let stored = &bytes[start..bytes.len().min(start + group_bytes)];
        pack_group::<F>(stored, row_bytes, bytemuck::cast_slice_mut(group));
    };
    Slab::write(pool, groups * group_bytes, [group_bytes, together], pack, |Range { start, end }| {
        done(start..end.min(bytes.len()));
    })
}

/// Bytes of a row that are copied together. The sixteen rows may begin at a multiple of the size of a cache's way from each other,
/// so that what is read of one row would drive out what follows in the others.
const STAGE: usize = 256;

/// Interleaves up to sixteen rows; where there are fewer, the others stay zeros.
fn pack_group<F: Format>(stored: &[u8], row_bytes: usize, group: &mut [F::Block]) {
    let size = size_of::<F::Stored>();
    let together = STAGE / size;
    let mut stage = [[0; STAGE]; LANES];
    for (part, blocks) in group.chunks_mut(together).enumerate() {
        let (start, length) = (part * together * size, blocks.len() * size);
        for (stage, row) in stage.iter_mut().zip(stored.chunks_exact(row_bytes)) {
            match row[start..].first_chunk() {
                Some(whole) => *stage = *whole,
                None => stage[..length].copy_from_slice(&row[start..start + length]),
            }
        }
        for (index, block) in blocks.iter_mut().enumerate() {
            let at = index * size;
            *block = F::pack(&stage.each_ref().map(|row| bytemuck::pod_read_unaligned(&row[at..at + size])));
        }
    }
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn threads_change_no_byte_and_are_done_with_every_stored_one_once() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap()).unwrap();
        for (format, rows) in
            WeightFormat::ALL.iter().flat_map(|format| [(*format, 1), (*format, 16), (*format, 1_003)])
        {
            let bytes: Vec<u8> = (0..format.bytes(rows * 512).unwrap().0).map(|at| (at * 7 % 251) as u8).collect();
            let size = [rows as usize, 512];
            let done = Mutex::new(Vec::new());

            let alone = Packed::new(&Pool::alone(), format, size, &bytes, &|_| ());
            let together = Packed::new(&pool, format, size, &bytes, &|range| done.lock().unwrap().push(range));

            assert!(alone.slab.bytes() == together.slab.bytes(), "{format}, {rows} rows");
            let mut done = done.into_inner().unwrap();
            done.sort_by_key(|range| range.start);
            assert!(done.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((done[0].start, done[done.len() - 1].end), (0, bytes.len()));
        }
    }
}
