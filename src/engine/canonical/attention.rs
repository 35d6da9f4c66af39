//! Canonical arithmetic v1: grouped-query attention over a session's cache.
//!
//! All is f32; every operation rounds to nearest even and keeps denormals. `fma(a, b, c)` is a × b + c, rounded once; `sum` adds
//! sixteen lanes as a tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1 ([`Simd::sum`]). A *block* is a run of
//! 512 positions that begins at a multiple of 512. Keys and values are the halves of the cache, widened exactly.
//!
//! For one query head with query q at position P, over the positions p = 0 … P of its key/value head, or, where the model has a
//! window of W positions, over p = P − W + 1 … P as far as they are there. Other positions take no part, rather than being
//! masked, so that nothing in them can matter; lanes and blocks are those of the absolute positions all the same:
//!
//! 1. `score_p = a × (1 / √dim)`, where a begins at +0 and `a = fma(q_d, k_{p,d}, a)` for ascending d.
//! 2. `largest` is the largest score that is a number, −∞ if there is none.
//! 3. `weight_p = exp(score_p − largest)`, with `exp` of [`crate::engine::canonical::exponential`].
//! 4. In each block, sixteen lanes begin at +0; for ascending p, `lane[p mod 16] += weight_p`. The denominator begins at +0, and
//!    for ascending blocks `sum` of the block's lanes is added to it.
//! 5. In each block, for each dimension d, b begins at +0 and `b = fma(weight_p, v_{p,d}, b)` for ascending p. The total begins
//!    at +0, and for ascending blocks b is added to it.
//! 6. `out_d = total_d × (1 / denominator)`.
//!
//! So a head with a score that is +∞ or not a number is wholly not-a-number, and a weight of 0 times a value that is not a
//! number is not skipped either.
//!
//! # How it is computed
//!
//! A task is a run of query positions and one key/value head with all query heads that share it; no task depends on another, and
//! no bit on how positions are cut into tasks. Up to four rows (a row is one query head at one position) pass over a page of
//! the cache together, with their sums in registers. Many rows first widen a page to f32, few read the halves as they are.

use std::ops::Range;

use crate::engine::canonical::cache::BlockCache;
use crate::engine::canonical::cache::PAGE;
use crate::engine::canonical::cache::Rows;
use crate::engine::canonical::cache::VECTORS;
use crate::engine::canonical::exponential::exponential;
use crate::engine::canonical::part::load_halves_part;
use crate::engine::canonical::part::store_part;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;

/// Positions over which a sum runs.
const BLOCK: usize = 512;

/// Rows that use the halves as they are; more are worth widening them first (measured roughly; not critical).
const FEW_ROWS: usize = 8;

/// Attention of some query positions over one key/value head.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Task<'a> {
    /// Holds all positions up to the last query's.
    pub(in crate::engine) cache: BlockCache<'a>,
    /// Which key/value head.
    pub(in crate::engine) kv_head: usize,
    /// Query heads that share it.
    pub(in crate::engine) group: usize,
    /// How many positions a query sees at most, its own and the ones before.
    pub(in crate::engine) window: Option<usize>,
    /// Position of the first query.
    pub(in crate::engine) first: usize,
    /// One row per position, which begins with the `group × dim` rotated elements of this task's heads.
    pub(in crate::engine) queries: Rows<'a>,
}

/// Computes a task. Returns `[positions, group × dim]`, which lies in `scratch` until it is used again.
///
/// # Panics
/// If the cache has no room for the positions.
pub(in crate::engine) fn attend<'s>(set: InstructionSet, task: &Task<'_>, scratch: &'s mut Scratch) -> &'s [f32] {
    let plan = Plan::of(task);
    scratch.prepare(&plan, task);
    if plan.rows > 0 {
        attend_task(set, task, &plan, scratch);
    }
    &scratch.out[..plan.rows * plan.dim]
}

kernels! {
    fn attend_task(task: &Task<'_>, plan: &Plan, scratch: &mut Scratch) = attend_body;
}

/// Working memory of one thread. It grows to what its largest task needs and is used again.
#[derive(Debug, Default)]
pub(in crate::engine) struct Scratch {
    /// `[rows, dim]`.
    queries: Vec<f32>,
    /// `[rows, stride]`: scores, page by page made weights.
    scores: Vec<f32>,
    /// A page of keys or values of one head.
    wide: Vec<[f32; LANES]>,
    /// `[rows]`: sums of the block's weights.
    lanes: Vec<[f32; LANES]>,
    /// `[rows, vectors]`: of the block.
    sums: Vec<[f32; LANES]>,
    /// `[rows, vectors]`: of all blocks.
    totals: Vec<[f32; LANES]>,
    /// `[rows]`.
    statistics: Vec<Statistics>,
    /// `[rows, dim]`.
    out: Vec<f32>,
}

impl Scratch {
    /// Room for tasks of up to `rows` query heads × positions over up to `positions`, which then allocate nothing.
    pub(in crate::engine) fn reserve(&mut self, rows: usize, dim: usize, positions: usize) {
        let vectors = dim.div_ceil(LANES);
        grow(&mut self.queries, rows * dim, 0.0);
        grow(&mut self.scores, rows * stride_of(positions), 0.0);
        grow(&mut self.wide, PAGE * vectors, [0.0; LANES]);
        grow(&mut self.sums, rows * vectors, [0.0; LANES]);
        grow(&mut self.totals, rows * vectors, [0.0; LANES]);
        grow(&mut self.lanes, rows, [0.0; LANES]);
        grow(&mut self.statistics, rows, Statistics::default());
        grow(&mut self.out, rows * dim, 0.0);
    }

    /// Numbers held.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        let numbers = self.queries.len() + self.scores.len() + 2 * self.statistics.len() + self.out.len();
        numbers + LANES * (self.wide.len() + self.lanes.len() + self.sums.len() + self.totals.len())
    }

    fn prepare(&mut self, plan: &Plan, task: &Task<'_>) {
        let width = plan.group * plan.dim;
        self.reserve(plan.rows, plan.dim, plan.first + plan.rows / plan.group);
        for (row, query) in self.queries.chunks_exact_mut(width).zip(task.queries.iter()) {
            row.copy_from_slice(&query[..width]);
        }
    }
}

/// What is known of a row's scores.
#[derive(Clone, Copy, Debug, Default)]
struct Statistics {
    largest: f32,
    denominator: f32,
}

fn grow<T: Copy>(buffer: &mut Vec<T>, length: usize, empty: T) {
    if buffer.len() < length {
        buffer.resize(length, empty);
    }
}

/// Elements from one row's scores to the next one's: whole pages, and a cache line so that rows do not meet in one cache set.
fn stride_of(positions: usize) -> usize {
    positions.next_multiple_of(PAGE) + LANES
}

/// The numbers of a task.
#[derive(Clone, Copy, Debug)]
struct Plan {
    dim: usize,
    /// Vectors of 16 that hold `dim` elements.
    vectors: usize,
    group: usize,
    rows: usize,
    first: usize,
    /// Positions that a row sees at most.
    window: usize,
    stride: usize,
    scale: f32,
}

impl Plan {
    fn of(task: &Task<'_>) -> Self {
        let (dim, group, count) = (task.cache.dim(), task.group, task.queries.count());
        let positions = task.first + count;
        assert!(positions <= task.cache.room(), "the cache has no room for position {positions}");
        Self {
            dim,
            vectors: dim.div_ceil(LANES),
            group,
            rows: group * count,
            first: task.first,
            window: task.window.unwrap_or(usize::MAX),
            stride: stride_of(positions),
            scale: 1.0 / (dim as f32).sqrt(),
        }
    }

    /// The end of the positions that a row attends to.
    #[inline(always)]
    fn seen(&self, row: usize) -> usize {
        self.first + row / self.group + 1
    }

    /// The first position that a row attends to.
    #[inline(always)]
    fn start(&self, row: usize) -> usize {
        self.seen(row).saturating_sub(self.window)
    }

    /// The end of the positions that the last row attends to.
    #[inline(always)]
    fn positions(&self) -> usize {
        self.seen(self.rows - 1)
    }

    /// Pages that any row attends to.
    #[inline(always)]
    fn pages(&self) -> Range<usize> {
        self.start(0) / PAGE..self.positions().div_ceil(PAGE)
    }

    /// The rows that attend to any of the positions `first..first + count`, of which some row sees one.
    #[inline(always)]
    fn rows_of(&self, first: usize, count: usize) -> Range<usize> {
        let start = first.saturating_sub(self.first) * self.group;
        // The last position that sees the last of these.
        let last = (first + count - 1).saturating_add(self.window - 1);
        let end = if last < self.first { 0 } else { (last - self.first).saturating_add(1).saturating_mul(self.group) };
        start..end.min(self.rows)
    }

    /// The positions of a page that a row attends to, counted from the page's first; empty if there are none.
    #[inline(always)]
    fn inside(&self, row: usize, page: usize) -> Range<usize> {
        let start = self.start(row).saturating_sub(page * PAGE);
        start..(self.seen(row).saturating_sub(page * PAGE)).min(PAGE)
    }
}

/// An element of a page: a half, or a half already widened.
trait Element: Copy {
    /// Whether it comes from memory, so that asking for what follows is worth it.
    const STREAMED: bool;

    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F;
}

impl Element for u16 {
    const STREAMED: bool = true;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load_halves(from)
    }
}

impl Element for f32 {
    const STREAMED: bool = false;

    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[Self; LANES]) -> S::F {
        s.load(from)
    }
}

#[inline(always)]
fn attend_body<S: Simd>(s: S, task: &Task<'_>, plan: &Plan, scratch: &mut Scratch) {
    let Scratch { queries, scores, wide, lanes, sums, totals, statistics, out } = scratch;
    for page in plan.pages() {
        score_page(s, task, plan, page, queries, wide, scores);
    }
    for ((row, scores), statistics) in
        scores.chunks_exact_mut(plan.stride).take(plan.rows).enumerate().zip(&mut *statistics)
    {
        let seen = plan.start(row)..plan.seen(row);
        *statistics = Statistics { largest: largest_score(s, scores, seen), denominator: 0.0 };
    }
    totals[..plan.rows * plan.vectors].fill([0.0; LANES]);
    for block in plan.start(0) / BLOCK..plan.positions().div_ceil(BLOCK) {
        let rows = plan.rows_of(block * BLOCK, BLOCK);
        let active = rows.start * plan.vectors..rows.end * plan.vectors;
        sums[active.clone()].fill([0.0; LANES]);
        lanes[rows.clone()].fill([0.0; LANES]);
        let pages = plan.pages();
        for page in pages.start.max(block * BLOCK / PAGE)..pages.end.min((block + 1) * BLOCK / PAGE) {
            weigh_page(s, plan, page, statistics, scores, lanes);
            gather_page(s, task, plan, page, scores, wide, sums);
        }
        for (statistics, lanes) in statistics[rows.clone()].iter_mut().zip(&lanes[rows]) {
            statistics.denominator += s.sum(s.load(lanes));
        }
        for (total, sum) in totals[active.clone()].iter_mut().zip(&sums[active]) {
            s.store(s.add(s.load(total), s.load(sum)), total);
        }
    }
    let totals = totals.chunks_exact(plan.vectors).zip(statistics.iter());
    for (out, (totals, statistics)) in out.chunks_exact_mut(plan.dim).zip(totals).take(plan.rows) {
        let factor = s.splat(1.0 / statistics.denominator);
        for (out, total) in out.chunks_mut(LANES).zip(totals) {
            store_part(s, s.mul(s.load(total), factor), out);
        }
    }
}

/// Scores of all rows over a page.
#[inline(always)]
fn score_page<S: Simd>(
    s: S,
    task: &Task<'_>,
    plan: &Plan,
    page: usize,
    queries: &[f32],
    wide: &mut [[f32; LANES]],
    scores: &mut [f32],
) {
    let keys = task.cache.keys(page, task.kv_head);
    if plan.rows <= FEW_ROWS {
        let pages = plan.pages();
        let ahead = if page + 1 < pages.end {
            task.cache.keys(page + 1, task.kv_head).as_flattened()
        } else {
            task.cache.values(pages.start, task.kv_head).as_chunks().0
        };
        return score_rows(s, plan, page, keys, ahead, queries, scores);
    }
    for (wide, keys) in wide.iter_mut().zip(keys.as_flattened()) {
        s.store(s.load_halves(keys), wide);
    }
    score_rows(s, plan, page, wide[..VECTORS * plan.dim].as_chunks().0, &[], queries, scores);
}

/// - `ahead`: what is needed next
#[inline(always)]
fn score_rows<S: Simd, E: Element>(
    s: S,
    plan: &Plan,
    page: usize,
    keys: &[[[E; LANES]; VECTORS]],
    mut ahead: &[[E; LANES]],
    queries: &[f32],
    scores: &mut [f32],
) {
    let Range { start: mut row, end } = plan.rows_of(page * PAGE, PAGE);
    while row < end {
        match end - row {
            1 => score_some::<S, E, 1>(s, plan, page, row, keys, ahead, queries, scores),
            2 => score_some::<S, E, 2>(s, plan, page, row, keys, ahead, queries, scores),
            3 => score_some::<S, E, 3>(s, plan, page, row, keys, ahead, queries, scores),
            _ => score_some::<S, E, 4>(s, plan, page, row, keys, ahead, queries, scores),
        }
        // To ask once is enough.
        ahead = &[];
        row += 4;
    }
}

/// Scores of `R` rows over a page. Those of positions that a row does not see are never read.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the inner part of a loop")]
fn score_some<S: Simd, E: Element, const R: usize>(
    s: S,
    plan: &Plan,
    page: usize,
    row: usize,
    keys: &[[[E; LANES]; VECTORS]],
    ahead: &[[E; LANES]],
    queries: &[f32],
    scores: &mut [f32],
) {
    let Plan { dim, stride, scale, .. } = *plan;
    // From the first position that the first row sees to the last one that the last row does.
    let vectors = plan.inside(row, page).start / LANES..plan.inside(row + R - 1, page).end.div_ceil(LANES);
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[(row + r) * dim..][..dim]);
    let scores = &mut scores[row * stride + page * PAGE..];
    if vectors == (0..VECTORS) && (S::ROOMY || R == 1) {
        return score_vectors::<S, E, R, VECTORS>(s, queries, keys, 0, ahead, scale, scores, stride);
    }
    for vector in vectors {
        score_vectors::<S, E, R, 1>(s, queries, keys, vector, ahead, scale, scores, stride);
    }
}

/// Scores of `R` rows over `T` vectors of positions, from vector `first` on.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the inner part of a loop")]
fn score_vectors<S: Simd, E: Element, const R: usize, const T: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: &[[[E; LANES]; VECTORS]],
    first: usize,
    ahead: &[[E; LANES]],
    scale: f32,
    scores: &mut [f32],
    stride: usize,
) {
    let dim = queries[0].len();
    let (queries, keys): ([&[f32]; R], _) = (queries.map(|query| &query[..dim]), &keys[..dim]);
    let mut sums = [[s.splat(0.0); T]; R];
    for d in 0..dim {
        ask::<S, E, T>(s, ahead, first * dim + d * T);
        let mut vectors = [s.splat(0.0); T];
        for t in 0..T {
            vectors[t] = E::load(s, &keys[d][first + t]);
        }
        for r in 0..R {
            let query = s.splat(queries[r][d]);
            for t in 0..T {
                sums[r][t] = s.fma(query, vectors[t], sums[r][t]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (t, sum) in sums.iter().enumerate() {
            let at = r * stride + (first + t) * LANES;
            store_part(s, s.mul(*sum, s.splat(scale)), &mut scores[at..at + LANES]);
        }
    }
}

/// Asks for `T` vectors from number `first` on, as far as there are so many. Two are a cache line.
#[inline(always)]
fn ask<S: Simd, E: Element, const T: usize>(s: S, ahead: &[[E; LANES]], first: usize) {
    if !E::STREAMED || (T == 1 && first % 2 == 1) {
        return;
    }
    for t in 0..T.div_ceil(2) {
        if let Some(vector) = ahead.get(first + 2 * t) {
            s.prefetch_at(vector);
        }
    }
}

/// Turns all rows' scores of a page into weights, and adds them to the lanes of their block.
#[inline(always)]
fn weigh_page<S: Simd>(
    s: S,
    plan: &Plan,
    page: usize,
    statistics: &[Statistics],
    scores: &mut [f32],
    lanes: &mut [[f32; LANES]],
) {
    for row in plan.rows_of(page * PAGE, PAGE) {
        let scores = &mut scores[row * plan.stride + page * PAGE..][..PAGE];
        let inside = plan.inside(row, page);
        let vectors = inside.start / LANES..inside.end.div_ceil(LANES);
        let (largest, mut sum) = (s.splat(statistics[row].largest), s.load(&lanes[row]));
        for scores in &mut scores.as_chunks_mut().0[vectors] {
            let weight = exponential(s, s.sub(s.load(scores), largest));
            s.store(weight, scores);
            sum = s.add(sum, weight);
        }
        s.store(sum, &mut lanes[row]);
    }
}

/// The largest of a row's scores that is a number.
#[inline(always)]
fn largest_score<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>) -> f32 {
    let whole = seen.start / LANES * LANES..seen.end.next_multiple_of(LANES);
    // These have the weight +0, which changes no sum of weights, and are not read afterwards. (If no score is above −∞, their weight
    // is no number, and neither is that of any other.)
    scores[whole.start..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..whole.end].fill(f32::NEG_INFINITY);
    largest(s, scores[whole].as_chunks::<LANES>().0)
}

/// The largest element that is a number.
#[inline(always)]
fn largest<S: Simd>(s: S, scores: &[[f32; LANES]]) -> f32 {
    // Several, since each waits for its last comparison; the order of comparisons does not matter.
    let mut largest = [s.splat(f32::NEG_INFINITY); 4];
    for scores in scores.chunks(4) {
        for (largest, scores) in largest.iter_mut().zip(scores) {
            *largest = s.max(s.load(scores), *largest);
        }
    }
    let [a, b, c, d] = largest;
    let mut lanes = [0.0; LANES];
    s.store(s.max(s.max(a, b), s.max(c, d)), &mut lanes);
    lanes.iter().fold(f32::NEG_INFINITY, |largest, lane| if *lane > largest { *lane } else { largest })
}

/// Adds a page's weighted values to the block's sums of all rows.
#[inline(always)]
fn gather_page<S: Simd>(
    s: S,
    task: &Task<'_>,
    plan: &Plan,
    page: usize,
    weights: &[f32],
    wide: &mut [[f32; LANES]],
    sums: &mut [[f32; LANES]],
) {
    let values = task.cache.values(page, task.kv_head);
    let (whole, rest) = values.as_chunks();
    if plan.rows <= FEW_ROWS && rest.is_empty() && plan.dim.is_multiple_of(LANES) {
        let next = page + 1;
        let ahead = if next < plan.pages().end { task.cache.values(next, task.kv_head).as_chunks().0 } else { &[] };
        return gather_rows(s, plan, page, whole, ahead, weights, sums);
    }
    let positions = (plan.positions() - page * PAGE).min(PAGE);
    for (row, wide) in values.chunks_exact(plan.dim).take(positions).zip(wide.chunks_exact_mut(plan.vectors)) {
        for (part, wide) in row.chunks(LANES).zip(wide) {
            s.store(load_halves_part(s, part), wide);
        }
    }
    let wide = &wide[..PAGE * plan.vectors];
    gather_rows(s, plan, page, wide, &[], weights, sums);
}

#[inline(always)]
fn gather_rows<S: Simd, E: Element>(
    s: S,
    plan: &Plan,
    page: usize,
    values: &[[E; LANES]],
    mut ahead: &[[E; LANES]],
    weights: &[f32],
    sums: &mut [[f32; LANES]],
) {
    let Range { start: mut row, end } = plan.rows_of(page * PAGE, PAGE);
    while row < end {
        match end - row {
            1 => gather_some::<S, E, 1>(s, plan, page, row, values, ahead, weights, sums),
            2 => gather_some::<S, E, 2>(s, plan, page, row, values, ahead, weights, sums),
            3 => gather_some::<S, E, 3>(s, plan, page, row, values, ahead, weights, sums),
            _ => gather_some::<S, E, 4>(s, plan, page, row, values, ahead, weights, sums),
        }
        ahead = &[];
        row += 4;
    }
}

/// Adds a page's weighted values to the sums of `R` rows: together what all of them see, and each for itself what comes before that
/// and what comes after.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the inner part of a loop")]
fn gather_some<S: Simd, E: Element, const R: usize>(
    s: S,
    plan: &Plan,
    page: usize,
    row: usize,
    values: &[[E; LANES]],
    ahead: &[[E; LANES]],
    weights: &[f32],
    sums: &mut [[f32; LANES]],
) {
    let vectors = plan.vectors;
    let inside: [Range<usize>; R] = std::array::from_fn(|r| plan.inside(row + r, page));
    // Later rows begin and end later. Where they share nothing, this is empty.
    let common = inside[R - 1].start..inside[0].end.max(inside[R - 1].start);
    let weights: [&[f32]; R] = std::array::from_fn(|r| &weights[(row + r) * plan.stride + page * PAGE..][..PAGE]);
    let sums = &mut sums[row * vectors..(row + R) * vectors];
    let together = weights.map(|weights| &weights[common.clone()]);
    for r in 0..R {
        gather_alone(s, weights[r], inside[r].start..inside[r].end.min(common.start), values, r, vectors, sums);
    }
    gather_strips::<S, E, R>(s, together, &values[common.start * vectors..], ahead, vectors, sums);
    for r in 0..R {
        gather_alone(s, weights[r], common.end..inside[r].end, values, r, vectors, sums);
    }
}

/// Adds the weighted values of some positions of a page to the sums of row `r`.
#[inline(always)]
fn gather_alone<S: Simd, E: Element>(
    s: S,
    weights: &[f32],
    seen: Range<usize>,
    values: &[[E; LANES]],
    r: usize,
    vectors: usize,
    sums: &mut [[f32; LANES]],
) {
    if !seen.is_empty() {
        let values = &values[seen.start * vectors..];
        gather_strips::<S, E, 1>(s, [&weights[seen]], values, &[], vectors, &mut sums[r * vectors..]);
    }
}

#[inline(always)]
fn gather_strips<S: Simd, E: Element, const R: usize>(
    s: S,
    weights: [&[f32]; R],
    values: &[[E; LANES]],
    ahead: &[[E; LANES]],
    vectors: usize,
    sums: &mut [[f32; LANES]],
) {
    let mut column = 0;
    while column < vectors {
        let (values, ahead) = (&values[column..], ahead.get(column * PAGE..).unwrap_or_default());
        let sums = &mut sums[column..];
        let left = vectors - column;
        column += if left >= 4 && (S::ROOMY || R == 1) {
            gather_strip::<S, E, R, 4>(s, weights, values, ahead, vectors, sums)
        } else if left >= 2 && (S::ROOMY || R <= 2) {
            gather_strip::<S, E, R, 2>(s, weights, values, ahead, vectors, sums)
        } else {
            gather_strip::<S, E, R, 1>(s, weights, values, ahead, vectors, sums)
        };
    }
}

/// Adds weighted values to the sums of `R` rows in the first `C` vectors. Returns `C`.
#[inline(always)]
fn gather_strip<S: Simd, E: Element, const R: usize, const C: usize>(
    s: S,
    weights: [&[f32]; R],
    values: &[[E; LANES]],
    ahead: &[[E; LANES]],
    vectors: usize,
    sums: &mut [[f32; LANES]],
) -> usize {
    let count = weights[0].len();
    let weights: [&[f32]; R] = std::array::from_fn(|r| &weights[r][..count]);
    let mut lanes = [[s.splat(0.0); C]; R];
    for r in 0..R {
        for column in 0..C {
            lanes[r][column] = s.load(&sums[r * vectors + column]);
        }
    }
    for position in 0..count {
        let row = &values[position * vectors..][..C];
        ask::<S, E, C>(s, ahead, position * C);
        let mut values = [s.splat(0.0); C];
        for column in 0..C {
            values[column] = E::load(s, &row[column]);
        }
        for r in 0..R {
            let weight = s.splat(weights[r][position]);
            for column in 0..C {
                lanes[r][column] = s.fma(weight, values[column], lanes[r][column]);
            }
        }
    }
    for r in 0..R {
        for column in 0..C {
            s.store(lanes[r][column], &mut sums[r * vectors + column]);
        }
    }
    C
}
