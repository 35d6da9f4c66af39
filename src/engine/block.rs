//! One transformer block, over the rows of many sessions at once.
//!
//! Norms and products take all rows together, so that weights are read once for all; rotation and attention take each row with
//! its own position and cache. What a row gets depends on its session alone.

use crate::engine::attention::attend;
use crate::engine::attention::make_room;
use crate::engine::lanes::add;
use crate::engine::lanes::gate_in_place;
use crate::engine::lanes::normalise;
use crate::engine::matrix::Matrix;
use crate::engine::matrix::Rounded;
use crate::engine::pool::Grid;
use crate::engine::pool::Pool;
use crate::engine::workspace::Buffers;
use crate::engine::workspace::Pass;
use crate::engine::workspace::Segment;

/// A root-mean-square norm.
#[derive(Debug)]
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) epsilon: f32,
}

impl Norm {
    /// Normalises each row of `input` (`[rows, width]`) into `output` of the same shape.
    pub(super) fn apply(&self, pool: &Pool, input: &[f32], output: &mut [f32]) {
        let width = self.weight.len();
        pool.for_each_chunk(output, width, input.len(), |row, output| {
            normalise(&input[row * width..(row + 1) * width], &self.weight, self.epsilon, output);
        });
    }
}

/// The weights of a block of the Llama family.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) query: Matrix,
    pub(super) key: Matrix,
    pub(super) value: Matrix,
    pub(super) output: Matrix,
    pub(super) feed_norm: Norm,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

impl Block {
    /// Runs the block over a pass' hidden states in place.
    ///
    /// - `index`: which of each session's caches is this block's
    ///
    /// Writes keys and values of all rows into the caches, which must have room.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>, index: usize) {
        let Buffers { hidden, normed, rounded, queries, keys, values, .. } = pass.buffers;
        self.attention_norm.apply(pass.pool, hidden, normed);
        let products = [(&self.query, queries), (&self.key, keys), (&self.value, values)];
        multiply(pass.pool, rounded, normed, products);
        remember(pass, index);
        attend_all(pass, index);

        let Buffers { hidden, normed, rounded, attended, projected, gate, up, .. } = pass.buffers;
        multiply(pass.pool, rounded, attended, [(&self.output, projected)]);
        add_to(pass.pool, hidden, projected);
        self.feed_norm.apply(pass.pool, hidden, normed);
        multiply(pass.pool, rounded, normed, [(&self.gate, gate), (&self.up, up)]);
        gate_all(pass.pool, gate, up);
        multiply(pass.pool, rounded, gate, [(&self.down, projected)]);
        add_to(pass.pool, hidden, projected);
    }
}

/// Rotates queries and keys, and writes keys and values into the caches of their sessions.
fn remember(pass: &mut Pass<'_, '_>, index: usize) {
    let heads = pass.heads;
    let Buffers { angles, queries, keys, values, .. } = pass.buffers;
    let (query, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
    let work = queries.len();
    pass.pool.for_each_chunk(queries, query, work, |row, query| angles.rotate(row, query, heads.dim));
    pass.pool.for_each_chunk(keys, kv, work, |row, key| angles.rotate(row, key, heads.dim));
    for segment in &pass.layout.segments {
        let cache = pass.steps[segment.step].session.cache(index);
        cache.keys.write(segment.first, &keys[segment.elements(kv)]);
        cache.values.write(segment.first, &values[segment.elements(kv)]);
    }
}

/// Lets every row attend to the positions of its session up to its own.
fn attend_all(pass: &mut Pass<'_, '_>, index: usize) {
    let heads = pass.heads;
    let Buffers { queries, attended, scores, .. } = pass.buffers;
    let (layout, steps) = (pass.layout, &*pass.steps);
    let seen = |segment: &Segment| segment.rows().len() * (segment.first + segment.rows().len());
    let seen: usize = layout.segments.iter().map(seen).sum();
    let longest = layout.segments.iter().map(|segment| segment.first + segment.rows().len()).max().unwrap_or(0);
    // For every thread, since any may do any task.
    scores.iter_mut().for_each(|scores| make_room(scores, longest, heads));
    let width = heads.query * heads.dim;
    let mut grid = [Grid::new(attended, width, &layout.cuts, heads.group() * heads.dim)];
    pass.pool.for_each_tile_with(scores, &mut grid, seen.saturating_mul(width), |scores, _, mut tile| {
        let start = tile.rows().start;
        let segment = &layout.segments[layout.owners[start]];
        let cache = steps[segment.step].session.cached(index);
        attend(queries, cache, segment.first + start - segment.start, heads, scores, &mut tile);
    });
}

/// Output columns of a tile are a multiple of this: what the widest registers hold twice.
const TILE: usize = 32;

/// Tiles of one dispatch for each thread, so that one that is held up holds up little (arbitrary).
const TILES_PER_THREAD: usize = 4;

/// Multiplies the rows of `input` with several matrices in one dispatch, each into its own output.
pub(super) fn multiply<const N: usize>(
    pool: &Pool,
    rounded: &mut Rounded,
    input: &[f32],
    products: [(&Matrix, &mut Vec<f32>); N],
) {
    let matrices = products.each_ref().map(|(matrix, _)| *matrix);
    let Some(columns) = matrices.first().map(|matrix| matrix.columns()) else { return };
    let rows = [0, input.len() / columns];
    rounded.round(pool, input, &matrices);
    let outputs: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
    let work = matrices.iter().map(|matrix| matrix.work(rows[1])).sum();
    let tile = outputs.div_ceil(pool.threads() * TILES_PER_THREAD).next_multiple_of(TILE);
    let mut grids = products.map(|(matrix, output)| Grid::new(output, matrix.rows(), &rows, tile));
    let rounded = &*rounded;
    pool.for_each_tile(&mut grids, work, |product, mut tile| matrices[product].multiply(input, rounded, &mut tile));
}

/// Adds `from` to `to`, both `[rows, width]`.
fn add_to(pool: &Pool, to: &mut [f32], from: &[f32]) {
    pool.for_each_chunk(to, ELEMENTS, from.len(), |number, to| add(to, &from[number * ELEMENTS..][..to.len()]));
}

/// The feed-forward gate over all rows.
fn gate_all(pool: &Pool, gate: &mut [f32], up: &[f32]) {
    // An exponential costs about as much as 16 multiplications.
    let work = 16 * gate.len();
    pool.for_each_chunk(gate, ELEMENTS, work, |number, gate| {
        gate_in_place(gate, &up[number * ELEMENTS..][..gate.len()]);
    });
}

/// Elements of a chunk where elements don't depend on each other.
const ELEMENTS: usize = 4096;
