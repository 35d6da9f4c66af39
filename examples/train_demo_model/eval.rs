//! How good a model is: loss on unseen documents, accuracy on held-out questions, and what it says.

use std::ops::Range;

use candle_core::Result;

use super::bpe::Bpe;
use super::bpe::END;
use super::chat::Part;
use super::chat::held_out_question;
use super::data::Lesson;
use super::encoded::ANSWER_WEIGHT;
use super::encoded::EVALUATION_SEED;
use super::encoded::Encoded;
use super::encoded::STORY_WEIGHT;
use super::encoded::unseen;
use super::model::Batch;
use super::model::CONTEXT;
use super::model::Model;
use super::ops::View;
use super::ops::cross_entropy;
use super::random::Random;

/// Documents run at once.
const DOCUMENTS: usize = 10;

/// Mean losses in nats per token, each over the tokens the model itself would say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Losses {
    /// Over stories and answers.
    pub(crate) all: f64,
    /// Over answers.
    pub(crate) answers: f64,
}

/// The losses over `count` unseen documents.
pub(crate) fn losses(model: &Model, bpe: &Bpe, count: u64) -> Result<Losses> {
    let mut sums = [(0.0, 0.0); 2];
    for index in 0..count {
        let encoded = unseen(bpe, index);
        if encoded.tokens.len() > CONTEXT {
            continue;
        }
        for (least, (loss, tokens)) in [STORY_WEIGHT, ANSWER_WEIGHT].into_iter().zip(&mut sums) {
            let mut counted = encoded.clone();
            counted.weights.iter_mut().for_each(|weight| *weight = f32::from(u8::from(*weight >= least)));
            let lesson = Lesson::new(&[counted]);
            *tokens += f64::from(lesson.weight());
            if lesson.weight() > 0.0 {
                let logits = model.forward(&lesson.batch)?.detach();
                *loss += f64::from(cross_entropy(&logits, lesson.targets)?.to_scalar::<f32>()?);
            }
        }
    }
    let [all, answers] = sums.map(|(loss, tokens)| loss / tokens);
    Ok(Losses { all, answers })
}

/// How many of `count` held-out questions are answered exactly right by greedy decoding.
///
/// Greedy decoding gives the right answer if and only if, after each right beginning of it, the
/// next right token has the highest score. So one pass over prompt and answer decides.
pub(crate) fn right_answers(model: &Model, bpe: &Bpe, count: usize) -> Result<usize> {
    let mut right = 0;
    for first in (0..count).step_by(DOCUMENTS) {
        let documents: Vec<Encoded> =
            (first..count.min(first + DOCUMENTS)).map(|index| question(bpe, index as u64)).collect();
        let lesson = Lesson::new(&documents);
        let best = best_tokens(model, &lesson.batch)?;
        let is_right = |rows: &Range<usize>| {
            rows.clone().all(|row| lesson.targets[row].1 < ANSWER_WEIGHT || lesson.targets[row].0 == best[row])
        };
        right += lesson.batch.documents.iter().filter(|rows| is_right(rows)).count();
    }
    Ok(right)
}

/// What the model answers to `parts`, greedily.
pub(crate) fn reply(model: &Model, bpe: &Bpe, parts: &[Part]) -> Result<String> {
    complete(model, bpe, Encoded::prompt(bpe, parts))
}

/// How the model goes on after `tokens`, greedily, until it ends or the context is full.
pub(crate) fn complete(model: &Model, bpe: &Bpe, mut tokens: Vec<u32>) -> Result<String> {
    let start = tokens.len();
    while tokens.len() < CONTEXT {
        let documents = std::iter::once(0..tokens.len()).collect();
        let best = best_tokens(model, &Batch { tokens: tokens.clone(), documents })?;
        match best.last() {
            Some(&token) if token != END => tokens.push(token),
            Some(_) | None => break,
        }
    }
    Ok(bpe.decode(&tokens[start..]))
}

fn question(bpe: &Bpe, index: u64) -> Encoded {
    let mut random = Random::stream(!EVALUATION_SEED, index);
    let (mut parts, question) = held_out_question(&mut random);
    parts.push(Part::Answer(question.answer));
    Encoded::new(bpe, &parts)
}

/// The token with the highest score after each token of `batch`; the first of equals.
pub(crate) fn best_tokens(model: &Model, batch: &Batch) -> Result<Vec<u32>> {
    let logits = model.forward(batch)?.detach();
    let view = View::of(&logits);
    let (_, vocabulary) = logits.dims2()?;
    let best = |row: &[f32]| {
        let better = |best: usize, index: usize| if row[index] > row[best] { index } else { best };
        (0..row.len()).fold(0, better) as u32
    };
    Ok(view.values()?.chunks_exact(vocabulary).map(best).collect())
}
