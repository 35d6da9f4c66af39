//! Grouped-query attention over one session's cache.

use crate::engine::cache::BlockCache;
use crate::engine::cache::PAGE;
use crate::engine::lanes::add_scaled;
use crate::engine::lanes::dot;
use crate::engine::lanes::exponentiate;
use crate::engine::lanes::widest;
use crate::engine::pool::Tile;

/// The heads of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl Heads {
    /// Query heads that share one key/value head.
    pub(super) fn group(self) -> usize {
        self.query / self.kv
    }
}

/// Makes room for the scores of up to `seen` positions: as for whole pages, so that it grows with the caches only.
pub(super) fn make_room(scores: &mut Vec<f32>, seen: usize, heads: Heads) {
    scores.clear();
    scores.reserve(heads.group() * seen.next_multiple_of(PAGE));
}

/// Lets positions attend to themselves and all before them, for one key/value head.
///
/// - `queries`: `[rows, query heads, dim]`, rotated, of all rows of the matrix that `tile` is of
/// - `cache`: holds keys and values of all positions up to the last row's
/// - `first`: the position of the tile's first row; its rows are consecutive positions of one session
/// - `tile`: the columns are the query heads of one key/value head
///
/// What a row gets depends on its query and the cache alone; later positions are skipped, never masked.
pub(super) fn attend(
    queries: &[f32],
    cache: &BlockCache,
    first: usize,
    heads: Heads,
    scores: &mut Vec<f32>,
    tile: &mut Tile<'_, f32>,
) {
    let (rows, columns, width) = (tile.rows(), tile.columns(), heads.query * heads.dim);
    let offset = columns.start / heads.group();
    for (seen, row) in (first + 1..).zip(rows) {
        let query = &queries[row * width..][columns.clone()];
        attend_group(query, cache, View { offset, dim: heads.dim, seen }, scores, tile.row(row));
    }
}

/// The part of a cache that a task looks at: one head of the first `seen` positions.
#[derive(Clone, Copy)]
struct View {
    offset: usize,
    dim: usize,
    seen: usize,
}

widest! {
    /// The query heads of one position that share a key/value head.
    fn attend_group(query: &[f32], cache: &BlockCache, view: View, scores: &mut Vec<f32>, out: &mut [f32]) = attend_body
}

#[inline(always)]
fn attend_body(query: &[f32], cache: &BlockCache, view: View, scores: &mut Vec<f32>, out: &mut [f32]) {
    let View { offset, dim, seen } = view;
    let scale = 1.0 / (dim as f32).sqrt();
    scores.clear();
    scores.resize(query.len() / dim * seen, 0.0);
    cache.keys.for_each(seen, |position, row| {
        let key = &row[offset..offset + dim];
        for (query, scores) in query.chunks_exact(dim).zip(scores.chunks_exact_mut(seen)) {
            scores[position] = dot(query, key) * scale;
        }
    });
    for scores in scores.chunks_exact_mut(seen) {
        let scale = 1.0 / exponentiate(scores);
        for score in scores {
            *score *= scale;
        }
    }
    out.fill(0.0);
    cache.values.for_each(seen, |position, row| {
        let value = &row[offset..offset + dim];
        for (out, scores) in out.chunks_exact_mut(dim).zip(scores.chunks_exact(seen)) {
            add_scaled(out, scores[position], value);
        }
    });
}
