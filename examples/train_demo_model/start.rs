//! The weights training starts from.
//!
//! A small network learns to look things up only after a long time without visible progress, because
//! two layers must fit before either is of use. So attention starts with that circuit roughly in place:
//!
//! * Half of the hidden values belong to the token itself, the other half to the eight tokens before it.
//!   In the first block, head `n` looks `n + 1` tokens back and writes a short code of what it sees.
//! * In the other blocks a head compares codes: it looks where the token some places back is the one it
//!   has itself somewhat fewer places back, and copies the token found there. That continues a text as
//!   it went on before, the "induction head" of the literature.
//!
//! Everything else is random, and all of it is trained.

use std::ops::Range;

use super::kernels::Rotation;
use super::kernels::dot;
use super::model::BLOCKS;
use super::model::HEADS;
use super::model::HIDDEN;
use super::model::Parameter;
use super::model::ROPE_BASE;
use super::model::parameters;
use super::random::Random;

/// Spread of random weights. Usual for networks of this size.
const SPREAD: f32 = 0.04;
/// Hidden values that belong to the token itself at the start.
const OWN: usize = HIDDEN / 2;
/// Values in the code of a token; with one code per query head they fill the other half.
const CODE: usize = OWN / HEADS.queries;
/// Spread of the token's own values, and of the others.
const EMBEDDING: (f32, f32) = (0.057, 0.005);
/// Length of the part common to all embeddings. Through it a head can see positions.
const COMMON: f32 = 0.45;
/// How sharply the heads of the first block look, as the length of a rotated pair per common vector.
const SHARPNESS: f32 = 0.65;
/// Spread of the projection that makes codes: codes then have values near 1.
const ENCODE: f32 = 0.077;
/// Weight with which codes are written, and read again to be as large as fresh ones.
const WRITE_READ: (f32, f32) = (0.03, 1.8);
/// Weight of the codes in queries and keys.
const GAIN: f32 = 1.6;
/// Weight of the transposed values in the outputs.
const COPY: f32 = 0.2;
/// How many tokens back the queries and the keys look, by block from the second, and key head.
const COMPARE: [[(usize, usize); HEADS.keys]; BLOCKS - 1] =
    [[(0, 1), (3, 4)], [(2, 3), (1, 2)], [(3, 4), (2, 3)], [(0, 1), (3, 5)], [(0, 2), (4, 5)]];

/// Draws the values training starts from, in the order of [`parameters`].
pub(crate) fn initial_values(vocabulary: usize, seed: u64) -> Vec<Vec<f32>> {
    let parameters = parameters(vocabulary);
    let draw = |(parameter, index): (&Parameter, u64)| random_values(parameter, seed, index);
    let mut values: Vec<Vec<f32>> = parameters.iter().zip(0..).map(draw).collect();
    let mut random = Random::stream(seed, parameters.len() as u64);
    let common = direction(&mut random);
    embed(&mut values[0], &common);
    let mut code: Vec<f32> = (0..CODE * OWN).map(|_| random.normal() * ENCODE).collect();
    code.chunks_exact_mut(OWN).for_each(|row| ignore(row, &common));
    for block in 0..BLOCKS {
        // The embedding comes first, then six parameters per block, of which these are the second and third.
        let (before, after) = values.split_at_mut(3 + 6 * block);
        let (projection, output) = (&mut before[2 + 6 * block], &mut after[0]);
        match block.checked_sub(1) {
            None => look_back(projection, output, &common, &code),
            Some(later) => compare(projection, output, &code, &common, COMPARE[later]),
        }
    }
    values
}

fn random_values(parameter: &Parameter, seed: u64, index: u64) -> Vec<f32> {
    if !parameter.is_matrix() {
        return vec![1.0; parameter.len()];
    }
    // What is added to the residual stream starts smaller, so that its sum over blocks does not grow.
    let adds = parameter.name.ends_with("attention_output") || parameter.name.ends_with("down");
    let spread = if adds { SPREAD / 40.0 } else { SPREAD };
    let mut random = Random::stream(seed, index);
    (0..parameter.len()).map(|_| random.normal() * spread).collect()
}

/// A random direction among the token's own values.
fn direction(random: &mut Random) -> Vec<f32> {
    let vector: Vec<f32> = (0..OWN).map(|_| random.normal()).collect();
    let length = dot(&vector, &vector).sqrt();
    vector.into_iter().map(|value| value / length).collect()
}

/// Takes out of `row` what answers to `common`.
fn ignore(row: &mut [f32], common: &[f32]) {
    let along = dot(&row[..OWN], common);
    row.iter_mut().zip(common).for_each(|(value, common)| *value -= along * common);
}

/// Scales the embeddings and gives all of them the same part along `common`.
fn embed(embedding: &mut [f32], common: &[f32]) {
    for row in embedding.chunks_exact_mut(HIDDEN) {
        let (own, others) = row.split_at_mut(OWN);
        own.iter_mut().for_each(|value| *value *= EMBEDDING.0 / SPREAD);
        others.iter_mut().for_each(|value| *value *= EMBEDDING.1 / SPREAD);
        ignore(own, common);
        own.iter_mut().zip(common).for_each(|(value, common)| *value += common * COMMON);
    }
}

/// Makes head `n` look `n + 1` tokens back: its query is turned against the key by as many positions.
/// What it finds is encoded and written to the head's own part of the hidden values.
fn look_back(projection: &mut [f32], output: &mut [f32], common: &[f32], code: &[f32]) {
    for row in 0..(HEADS.queries + HEADS.keys) * HEADS.width {
        let (head, inside) = (row / HEADS.width, row % HEADS.width);
        let back = if head < HEADS.queries { head + 1 } else { 0 };
        let mut pair = vec![0.0; HEADS.width];
        (0..HEADS.width).step_by(2).for_each(|even| pair[even] = SHARPNESS);
        Rotation::new(back + 1, HEADS.width, ROPE_BASE).turn_back(back, &mut pair);
        let weights = &mut projection[row * HIDDEN..(row + 1) * HIDDEN];
        weights.iter_mut().for_each(|weight| *weight *= 0.2);
        weights.iter_mut().zip(common).for_each(|(weight, common)| *weight += pair[inside] * common);
    }
    for group in 0..HEADS.keys {
        let values = value_rows(group);
        for (row, code) in values.take(CODE).zip(code.chunks_exact(OWN)) {
            projection[row * HIDDEN..(row + 1) * HIDDEN].fill(0.0);
            projection[row * HIDDEN..row * HIDDEN + OWN].copy_from_slice(code);
        }
    }
    let columns = HEADS.queries * HEADS.width;
    output.iter_mut().for_each(|weight| *weight *= 0.2);
    for index in 0..HEADS.queries * CODE {
        let column = index / CODE * HEADS.width + index % CODE;
        output[(OWN + index) * columns + column] = WRITE_READ.0;
    }
}

/// Makes queries and keys compare codes from some tokens back, and outputs copy the token found.
fn compare(
    projection: &mut [f32],
    output: &mut [f32],
    code: &[f32],
    common: &[f32],
    back: [(usize, usize); HEADS.keys],
) {
    let columns = HEADS.queries * HEADS.width;
    let shared = HEADS.queries / HEADS.keys;
    output.iter_mut().for_each(|weight| *weight *= 0.5);
    for (group, (query_back, key_back)) in back.into_iter().enumerate() {
        let queries = (group * shared..(group + 1) * shared).map(|head| (head, query_back));
        for (head, back) in queries.chain([(HEADS.queries + group, key_back)]) {
            let rows = head * HEADS.width..(head + 1) * HEADS.width;
            projection[rows.start * HIDDEN..rows.end * HIDDEN].iter_mut().for_each(|weight| *weight *= 0.4);
            // The last rows turn slowest with the distance.
            read_code(&mut projection[(rows.end - CODE) * HIDDEN..rows.end * HIDDEN], code, back);
        }
        for (inside, value) in value_rows(group).enumerate() {
            let row = &mut projection[value * HIDDEN..(value + 1) * HIDDEN];
            row[OWN..].iter_mut().for_each(|weight| *weight *= 0.3);
            ignore(row, common);
            for head in group * shared..(group + 1) * shared {
                let column = head * HEADS.width + inside;
                (0..OWN).for_each(|input| output[input * columns + column] += row[input] * COPY);
            }
        }
    }
}

/// Adds to `rows` what reads the code of the token `back` tokens before.
fn read_code(rows: &mut [f32], code: &[f32], back: usize) {
    for (index, row) in rows.chunks_exact_mut(HIDDEN).enumerate() {
        match back.checked_sub(1) {
            None => {
                let code = &code[index * OWN..(index + 1) * OWN];
                row.iter_mut().zip(code).for_each(|(weight, code)| *weight += code * GAIN);
            }
            Some(head) => row[OWN + head * CODE + index] += WRITE_READ.1 * GAIN,
        }
    }
}

/// The rows of a key head's values in the joint projection.
fn value_rows(group: usize) -> Range<usize> {
    let start = (HEADS.queries + HEADS.keys + group) * HEADS.width;
    start..start + HEADS.width
}
