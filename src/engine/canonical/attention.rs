//! Canonical arithmetic v1: grouped-query attention over a session's cache.
//!
//! All is f32; every operation rounds to nearest even and keeps denormals. `fma(a, b, c)` is a × b + c, rounded once; `sum` adds
//! sixteen lanes as a tree: lanes i and i + 8, then i and i + 4, i and i + 2, i and i + 1 ([`Simd::sum`]). A *block* is a run of
//! 512 positions that begins at a multiple of 512. Keys and values are the halves of the cache, widened exactly.
//!
//! For one query head with query q at position P, over the positions p = 0 … P of its key/value head; later positions take no
//! part, rather than being masked, so that nothing in them can matter:
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

use crate::engine::canonical::cache::BlockCache;
use crate::engine::canonical::cache::PAGE;
use crate::engine::canonical::cache::Rows;
use crate::engine::canonical::cache::TILE;
use crate::engine::canonical::cache::TILES;
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
    pub(in crate::engine) cache: &'a BlockCache,
    /// Which key/value head.
    pub(in crate::engine) kv_head: usize,
    /// Query heads that share it.
    pub(in crate::engine) group: usize,
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
    /// `[rows, stride]`: scores, then weights.
    scores: Vec<f32>,
    /// A page of keys or values of one head.
    wide: Vec<[f32; LANES]>,
    /// `[rows, vectors]`: of the block.
    sums: Vec<[f32; LANES]>,
    /// `[rows, vectors]`: of all blocks.
    totals: Vec<[f32; LANES]>,
    /// `[rows]`: 1 / denominator.
    factors: Vec<f32>,
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
        grow(&mut self.factors, rows, 0.0);
        grow(&mut self.out, rows * dim, 0.0);
    }

    /// Numbers held.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        let numbers = self.queries.len() + self.scores.len() + self.factors.len() + self.out.len();
        numbers + LANES * (self.wide.len() + self.sums.len() + self.totals.len())
    }

    fn prepare(&mut self, plan: &Plan, task: &Task<'_>) {
        let width = plan.group * plan.dim;
        self.reserve(plan.rows, plan.dim, plan.first + plan.rows / plan.group);
        for (row, query) in self.queries.chunks_exact_mut(width).zip(task.queries.iter()) {
            row.copy_from_slice(&query[..width]);
        }
    }
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
            stride: stride_of(positions),
            scale: 1.0 / (dim as f32).sqrt(),
        }
    }

    /// Positions that a row attends to.
    #[inline(always)]
    fn seen(&self, row: usize) -> usize {
        self.first + row / self.group + 1
    }

    /// Positions that the last row attends to.
    #[inline(always)]
    fn positions(&self) -> usize {
        self.seen(self.rows - 1)
    }

    /// The first row that attends to `position`.
    #[inline(always)]
    fn first_row(&self, position: usize) -> usize {
        position.saturating_sub(self.first) * self.group
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
    let Scratch { queries, scores, wide, sums, totals, factors, out } = scratch;
    for page in 0..plan.positions().div_ceil(PAGE) {
        score_page(s, task, plan, page, queries, wide, scores);
    }
    for (row, scores) in scores.chunks_exact_mut(plan.stride).take(plan.rows).enumerate() {
        factors[row] = weigh(s, scores, plan.seen(row));
    }
    totals[..plan.rows * plan.vectors].fill([0.0; LANES]);
    for block in 0..plan.positions().div_ceil(BLOCK) {
        let active = plan.first_row(block * BLOCK) * plan.vectors..plan.rows * plan.vectors;
        sums[active.clone()].fill([0.0; LANES]);
        let end = plan.positions().min((block + 1) * BLOCK).div_ceil(PAGE);
        for page in block * BLOCK / PAGE..end {
            gather_page(s, task, plan, page, scores, wide, sums);
        }
        for (total, sum) in totals[active.clone()].iter_mut().zip(&sums[active]) {
            s.store(s.add(s.load(total), s.load(sum)), total);
        }
    }
    let totals = totals.chunks_exact(plan.vectors).zip(factors.iter());
    for (out, (totals, factor)) in out.chunks_exact_mut(plan.dim).zip(totals).take(plan.rows) {
        for (out, total) in out.chunks_mut(LANES).zip(totals) {
            store_part(s, s.mul(s.load(total), s.splat(*factor)), out);
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
        let last = plan.positions().div_ceil(PAGE) - 1;
        let ahead = task.cache.keys(last.min(page + 1), task.kv_head);
        return score_rows(s, plan, page, keys, ahead, queries, scores);
    }
    let tiles = (plan.positions() - page * PAGE).div_ceil(TILE).min(TILES);
    for (wide, keys) in wide.iter_mut().zip(&keys[..tiles * plan.dim]) {
        s.store(s.load_halves(keys), wide);
    }
    let wide = &wide[..TILES * plan.dim];
    score_rows(s, plan, page, wide, wide, queries, scores);
}

#[inline(always)]
fn score_rows<S: Simd, E: Element>(
    s: S,
    plan: &Plan,
    page: usize,
    keys: &[[E; LANES]],
    ahead: &[[E; LANES]],
    queries: &[f32],
    scores: &mut [f32],
) {
    let mut row = plan.first_row(page * PAGE);
    while row < plan.rows {
        match plan.rows - row {
            1 => score_some::<S, E, 1>(s, plan, page, row, keys, ahead, queries, scores),
            2 => score_some::<S, E, 2>(s, plan, page, row, keys, ahead, queries, scores),
            3 => score_some::<S, E, 3>(s, plan, page, row, keys, ahead, queries, scores),
            _ => score_some::<S, E, 4>(s, plan, page, row, keys, ahead, queries, scores),
        }
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
    keys: &[[E; LANES]],
    ahead: &[[E; LANES]],
    queries: &[f32],
    scores: &mut [f32],
) {
    let Plan { dim, stride, scale, .. } = *plan;
    let tiles = (plan.seen(row + R - 1) - page * PAGE).div_ceil(TILE).min(TILES);
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[(row + r) * dim..][..dim]);
    let at = row * stride + page * PAGE;
    if tiles == TILES && (S::ROOMY || R == 1) {
        return score_tiles::<S, E, R, TILES>(s, queries, keys, ahead, scale, &mut scores[at..], stride);
    }
    for tile in 0..tiles {
        let (keys, ahead) = (&keys[tile * dim..], &ahead[tile * dim..]);
        score_tiles::<S, E, R, 1>(s, queries, keys, ahead, scale, &mut scores[at + tile * TILE..], stride);
    }
}

/// Scores of `R` rows over `T` tiles.
#[inline(always)]
fn score_tiles<S: Simd, E: Element, const R: usize, const T: usize>(
    s: S,
    queries: [&[f32]; R],
    keys: &[[E; LANES]],
    ahead: &[[E; LANES]],
    scale: f32,
    scores: &mut [f32],
    stride: usize,
) {
    let dim = queries[0].len();
    let queries: [&[f32]; R] = std::array::from_fn(|r| &queries[r][..dim]);
    let tiles: [&[[E; LANES]]; T] = std::array::from_fn(|tile| &keys[tile * dim..][..dim]);
    let mut sums = [[s.splat(0.0); T]; R];
    let next: [&[[E; LANES]]; T] = std::array::from_fn(|tile| &ahead[tile * dim..][..dim]);
    for d in 0..dim {
        if E::STREAMED && d % 2 == 0 {
            // Two tile rows are one cache line.
            for tile in next {
                s.prefetch_at(&tile[d]);
            }
        }
        let mut keys = [s.splat(0.0); T];
        for tile in 0..T {
            keys[tile] = E::load(s, &tiles[tile][d]);
        }
        for r in 0..R {
            let query = s.splat(queries[r][d]);
            for tile in 0..T {
                sums[r][tile] = s.fma(query, keys[tile], sums[r][tile]);
            }
        }
    }
    for r in 0..R {
        for tile in 0..T {
            store_part(s, s.mul(sums[r][tile], s.splat(scale)), &mut scores[r * stride + tile * TILE..][..TILE]);
        }
    }
}

/// Turns a row's scores into weights. Returns 1 / denominator.
#[inline(always)]
fn weigh<S: Simd>(s: S, scores: &mut [f32], seen: usize) -> f32 {
    // These have the weight +0, which changes no sum of weights, and are not read afterwards.
    scores[seen..seen.next_multiple_of(LANES)].fill(f32::NEG_INFINITY);
    let lanes = scores[..seen.next_multiple_of(LANES)].as_chunks_mut::<LANES>().0;
    let largest = s.splat(largest(s, lanes));
    let mut denominator = 0.0;
    for block in lanes.chunks_mut(BLOCK / LANES) {
        let mut sum = s.splat(0.0);
        for lanes in block {
            let weight = exponential(s, s.sub(s.load(lanes), largest));
            s.store(weight, lanes);
            sum = s.add(sum, weight);
        }
        denominator += s.sum(sum);
    }
    1.0 / denominator
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
        let last = plan.positions().div_ceil(PAGE) - 1;
        let ahead = task.cache.values(last.min(page + 1), task.kv_head).as_chunks().0;
        return gather_rows(s, plan, page, whole, ahead, weights, sums);
    }
    let positions = (plan.positions() - page * PAGE).min(PAGE);
    for (row, wide) in values.chunks_exact(plan.dim).take(positions).zip(wide.chunks_exact_mut(plan.vectors)) {
        for (part, wide) in row.chunks(LANES).zip(wide) {
            s.store(load_halves_part(s, part), wide);
        }
    }
    let wide = &wide[..PAGE * plan.vectors];
    gather_rows(s, plan, page, wide, wide, weights, sums);
}

#[inline(always)]
fn gather_rows<S: Simd, E: Element>(
    s: S,
    plan: &Plan,
    page: usize,
    values: &[[E; LANES]],
    ahead: &[[E; LANES]],
    weights: &[f32],
    sums: &mut [[f32; LANES]],
) {
    let mut row = plan.first_row(page * PAGE);
    while row < plan.rows {
        match plan.rows - row {
            1 => gather_some::<S, E, 1>(s, plan, page, row, values, ahead, weights, sums),
            2 => gather_some::<S, E, 2>(s, plan, page, row, values, ahead, weights, sums),
            3 => gather_some::<S, E, 3>(s, plan, page, row, values, ahead, weights, sums),
            _ => gather_some::<S, E, 4>(s, plan, page, row, values, ahead, weights, sums),
        }
        row += 4;
    }
}

/// Adds a page's weighted values to the sums of `R` rows: together as far as all of them see, then each for itself.
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
    let start = page * PAGE;
    let end = |row: usize| (plan.seen(row) - start).min(PAGE);
    let common = end(row);
    let weights: [&[f32]; R] = std::array::from_fn(|r| &weights[(row + r) * plan.stride + start..][..PAGE]);
    let sums = &mut sums[row * vectors..(row + R) * vectors];
    let together = weights.map(|weights| &weights[..common]);
    gather_strips::<S, E, R>(s, together, values, ahead, vectors, sums);
    for r in 1..R {
        let alone = [&weights[r][common..end(row + r)]];
        if !alone[0].is_empty() {
            let from = common * vectors;
            gather_strips::<S, E, 1>(s, alone, &values[from..], &ahead[from..], vectors, &mut sums[r * vectors..]);
        }
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
        let (values, ahead, sums) = (&values[column..], &ahead[column..], &mut sums[column..]);
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
        if E::STREAMED {
            // Two vectors are one cache line.
            for at in ahead[position * vectors..][..C].iter().step_by(2) {
                s.prefetch_at(at);
            }
        }
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
