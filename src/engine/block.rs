//! One transformer block, over the rows of many sessions at once.
//!
//! Norms and products take all rows together, so that weights are read once for all; rotation and attention take each row with
//! its own position and cache. What a row gets depends on its session alone.

use std::sync::Arc;

use crate::engine::canonical::attention;
use crate::engine::canonical::attention::attend;
use crate::engine::canonical::cache::Rows;
use crate::engine::canonical::exponential::Gate;
use crate::engine::canonical::exponential::gate_in_place;
use crate::engine::canonical::norm::add;
use crate::engine::canonical::norm::normalise;
use crate::engine::canonical::norm::normalise_in_place;
use crate::engine::canonical::simd::InstructionSet;
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
    pub(super) fn apply(&self, pool: &Pool, set: InstructionSet, input: &[f32], output: &mut [f32]) {
        let width = self.weight.len();
        pool.for_each_chunk(output, width, input.len(), |row, output| {
            normalise(set, &input[row * width..(row + 1) * width], &self.weight, self.epsilon, output);
        });
    }

    /// Normalises rows in place.
    fn apply_in_place(&self, set: InstructionSet, rows: &mut [f32]) {
        normalise_in_place(set, rows, &self.weight, self.epsilon);
    }
}

/// A matrix and what is done to its products before they are rotated, where the family does it.
#[derive(Debug)]
pub(super) struct Projection<M = Matrix, N = Norm, V = Vec<f32>> {
    pub(super) matrix: M,
    /// Added to each row.
    pub(super) bias: Option<V>,
    /// Over each head of a row, after the bias.
    pub(super) head_norm: Option<N>,
}

/// The weights of a block, as a kind of stage keeps them.
#[derive(Debug)]
pub(super) struct Block<M = Matrix, N = Norm, V = Vec<f32>> {
    pub(super) attention_norm: N,
    pub(super) query: Projection<M, N, V>,
    pub(super) key: Projection<M, N, V>,
    pub(super) value: Projection<M, N, V>,
    pub(super) output: M,
    pub(super) feed_norm: N,
    pub(super) gate: M,
    pub(super) up: M,
    pub(super) down: M,
}

/// What a stage computes with beside the embedding, as a kind of stage keeps it.
#[derive(Debug)]
pub(super) struct Layers<M = Matrix, N = Norm, V = Vec<f32>> {
    /// The blocks of the range, ascending.
    pub(super) blocks: Vec<Block<M, N, V>>,
    /// If the range ends the model.
    pub(super) head: Option<Head<M, N>>,
}

/// The norm and the matrix that make logits.
#[derive(Debug)]
pub(super) struct Head<M = Matrix, N = Norm> {
    pub(super) norm: N,
    pub(super) output: Arc<M>,
}

impl Block {
    /// Runs the block over a pass' hidden states in place.
    ///
    /// - `index`: which of each session's caches is this block's
    ///
    /// Writes keys and values of all rows into the caches, which must have room.
    pub(super) fn forward(&self, pass: &mut Pass<'_, '_>, index: usize) {
        let Buffers { hidden, normed, rounded, queries, keys, values, .. } = pass.buffers;
        self.attention_norm.apply(pass.pool, pass.set, hidden, normed);
        let products = [(&self.query, queries), (&self.key, keys), (&self.value, values)];
        let products = products.map(|(projection, output)| (&projection.matrix, output));
        multiply(pass.pool, pass.set, rounded, normed, products);
        self.finish(pass);
        remember(pass, index);
        attend_all(pass, index);

        let Buffers { hidden, normed, rounded, attended, projected, gate, up, .. } = pass.buffers;
        multiply(pass.pool, pass.set, rounded, attended, [(&self.output, projected)]);
        add_to(pass.pool, pass.set, hidden, projected);
        self.feed_norm.apply(pass.pool, pass.set, hidden, normed);
        multiply(pass.pool, pass.set, rounded, normed, [(&self.gate, gate), (&self.up, up)]);
        gate_all(pass.pool, pass.set, gate, up);
        multiply(pass.pool, pass.set, rounded, gate, [(&self.down, projected)]);
        add_to(pass.pool, pass.set, hidden, projected);
    }

    /// Makes queries, keys and values of the products: biases, norms of heads, rotation.
    fn finish(&self, pass: &mut Pass<'_, '_>) {
        let (heads, set) = (pass.heads, pass.set);
        let Buffers { angles, queries, keys, values, .. } = pass.buffers;
        let (query, kv, work) = (heads.query * heads.dim, heads.kv * heads.dim, queries.len());
        pass.pool.for_each_chunk(queries, query, work, |row, query| {
            self.query.finish(set, query);
            angles.rotate(set, row, query, query.len(), heads.query, heads.dim);
        });
        pass.pool.for_each_chunk(keys, kv, work, |row, key| {
            self.key.finish(set, key);
            angles.rotate(set, row, key, key.len(), heads.kv, heads.dim);
        });
        if self.value.bias.is_some() {
            pass.pool.for_each_chunk(values, kv, work, |_, value| self.value.finish(set, value));
        }
    }
}

impl Projection {
    /// Adds the bias to a row, and normalises its heads.
    fn finish(&self, set: InstructionSet, row: &mut [f32]) {
        if let Some(bias) = &self.bias {
            add(set, row, bias);
        }
        if let Some(norm) = &self.head_norm {
            norm.apply_in_place(set, row);
        }
    }
}

/// Writes keys and values into the caches of their sessions.
fn remember(pass: &mut Pass<'_, '_>, index: usize) {
    let (heads, set) = (pass.heads, pass.set);
    let Buffers { keys, values, .. } = pass.buffers;
    let kv = heads.kv * heads.dim;
    for segment in &pass.layout.segments {
        let keys = Rows { elements: &keys[segment.elements(kv)], stride: kv };
        let values = Rows { elements: &values[segment.elements(kv)], stride: kv };
        let cache = pass.steps[segment.step].session.cache();
        cache.write((pass.pool, set), index, segment.first, keys, values);
    }
}

/// Lets every row attend to the positions of its session up to its own.
fn attend_all(pass: &mut Pass<'_, '_>, index: usize) {
    let (heads, set) = (pass.heads, pass.set);
    let (layout, steps) = (pass.layout, &*pass.steps);
    let seen = |segment: &Segment| {
        let end = segment.first + segment.rows().len();
        segment.rows().len() * (end - heads.first_seen(segment.first))
    };
    let seen: usize = layout.segments.iter().map(seen).sum();
    let (width, part) = (heads.query * heads.dim, heads.group() * heads.dim);
    let rows = layout.cuts.windows(2).map(|cut| cut[1] - cut[0]).max().unwrap_or(0);
    let longest = layout.segments.iter().map(|segment| segment.first + segment.rows().len()).max().unwrap_or(0);
    pass.buffers.reserve_scores(rows * heads.group(), heads.dim, longest);
    let Buffers { queries, attended, scratch, .. } = pass.buffers;
    let mut grid = [Grid::new(attended, width, &layout.cuts, part)];
    pass.pool.for_each_tile_with(scratch, &mut grid, seen.saturating_mul(width), |scratch, _, mut tile| {
        let (rows, column) = (tile.rows(), tile.columns().start);
        let segment = &layout.segments[layout.owners[rows.start]];
        let task = attention::Task {
            cache: steps[segment.step].session.cached(index),
            kv_head: column / part,
            group: heads.group(),
            window: heads.window,
            first: segment.first + rows.start - segment.start,
            queries: Rows {
                elements: &queries[rows.start * width + column..(rows.end - 1) * width + column + part],
                stride: width,
            },
        };
        let results = attend(set, &task, scratch);
        for (row, result) in rows.zip(results.chunks_exact(part)) {
            tile.row(row).copy_from_slice(result);
        }
    });
}

/// Output columns of a tile are a multiple of this: what the widest registers hold twice.
const TILE: usize = 32;

/// Tiles of one dispatch for each thread, so that one that is held up holds up little (arbitrary).
const TILES_PER_THREAD: usize = 4;

/// Multiplies the rows of `input` with several matrices in one dispatch, each into its own output.
pub(super) fn multiply<const N: usize>(
    pool: &Pool,
    set: InstructionSet,
    rounded: &mut Rounded,
    input: &[f32],
    products: [(&Matrix, &mut Vec<f32>); N],
) {
    let matrices = products.each_ref().map(|(matrix, _)| *matrix);
    let Some(columns) = matrices.first().map(|matrix| matrix.columns()) else { return };
    let rows = [0, input.len() / columns];
    rounded.round(pool, set, input, &matrices);
    let outputs: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
    let work = matrices.iter().map(|matrix| matrix.work(rows[1])).sum();
    let tile = outputs.div_ceil(pool.threads() * TILES_PER_THREAD).next_multiple_of(TILE);
    let mut grids = products.map(|(matrix, output)| Grid::new(output, matrix.rows(), &rows, tile));
    let rounded = &*rounded;
    pool.for_each_tile(&mut grids, work, |product, mut tile| {
        matrices[product].multiply(set, input, rounded, &mut tile)
    });
}

/// Adds `from` to `to`, both `[rows, width]`.
fn add_to(pool: &Pool, set: InstructionSet, to: &mut [f32], from: &[f32]) {
    pool.for_each_chunk(to, ELEMENTS, from.len(), |number, to| add(set, to, &from[number * ELEMENTS..][..to.len()]));
}

/// The feed-forward gate over all rows.
fn gate_all(pool: &Pool, set: InstructionSet, gate: &mut [f32], up: &[f32]) {
    // An exponential costs about as much as 16 multiplications.
    let work = 16 * gate.len();
    pool.for_each_chunk(gate, ELEMENTS, work, |number, gate| {
        gate_in_place(set, Gate::Silu, gate, &up[number * ELEMENTS..][..gate.len()]);
    });
}

/// Elements of a chunk where elements don't depend on each other.
const ELEMENTS: usize = 4096;
