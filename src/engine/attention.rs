//! Grouped-query attention over one session's cache.

use rayon::prelude::*;

use crate::engine::cache::BlockCache;
use crate::engine::lanes::add_scaled;
use crate::engine::lanes::dot;
use crate::engine::lanes::exponentiate;
use crate::engine::lanes::widest;

/// The heads of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl Heads {
    /// Query heads that share one key/value head.
    fn group(self) -> usize {
        self.query / self.kv
    }
}

/// Multiplications below which waking other threads costs more than it saves (measured roughly; not critical).
const WORTH_SHARING: usize = 1 << 15;

/// Lets each position attend to itself and all before it.
///
/// - `queries`: `[positions, query heads, dim]`, rotated; the first is position `first`
/// - `cache`: holds keys and values of all positions up to the last of `queries`
///
/// Returns the same shape. One task is one position and one key/value head, and what it computes depends on nothing
/// else; later positions are skipped, never masked.
pub(super) fn attend(queries: &[f32], cache: &BlockCache, first: usize, heads: Heads) -> Vec<f32> {
    let task_width = heads.group() * heads.dim;
    let mut output = vec![0.0; queries.len()];
    let work = queries.len() * (first + queries.len() / (heads.query * heads.dim));
    let task = |scores: &mut Vec<f32>, index: usize, out: &mut [f32]| {
        let query = &queries[index * task_width..(index + 1) * task_width];
        let view = View { offset: index % heads.kv * heads.dim, dim: heads.dim, seen: first + index / heads.kv + 1 };
        attend_group(query, cache, view, scores, out);
    };
    if work < WORTH_SHARING || rayon::current_num_threads() == 1 {
        let mut scores = Vec::new();
        output.chunks_mut(task_width).enumerate().for_each(|(index, out)| task(&mut scores, index, out));
    } else {
        let tasks = output.par_chunks_mut(task_width).enumerate();
        tasks.for_each_init(Vec::new, |scores, (index, out)| task(scores, index, out));
    }
    output
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
