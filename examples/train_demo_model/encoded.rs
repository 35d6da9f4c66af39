//! From documents to tokens: the chat format, and what each token weighs in training.

use super::bpe::ASSISTANT;
use super::bpe::BEGIN;
use super::bpe::Bpe;
use super::bpe::END;
use super::bpe::SYSTEM;
use super::bpe::USER;
use super::chat::Part;
use super::chat::Stage;
use super::chat::document;
use super::random::Random;

/// Weight of a token of an answer. Answers are few among the tokens, and the point of it all.
pub(crate) const ANSWER_WEIGHT: f32 = 3.0;
/// Weight of a token of a story the model tells.
pub(crate) const STORY_WEIGHT: f32 = 1.0;
/// Weight of a token the user says: enough to learn the language from it.
const USER_WEIGHT: f32 = 0.1;
/// The stream of evaluation documents; training never draws from it.
pub(crate) const EVALUATION_SEED: u64 = 0x6576_616c;

/// Document `index` of those that training never saw.
pub(crate) fn unseen(bpe: &Bpe, index: u64) -> Encoded {
    let mut random = Random::stream(EVALUATION_SEED, index);
    Encoded::new(bpe, &document(&mut random, Stage::at(usize::MAX)))
}

/// Tokens with the weight of predicting each, as the model sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encoded {
    /// Token ids, starting with [`BEGIN`].
    pub(crate) tokens: Vec<u32>,
    /// For each token, what predicting it weighs.
    pub(crate) weights: Vec<f32>,
}

impl Encoded {
    /// Encodes `parts` as the chat template does.
    pub(crate) fn new(bpe: &Bpe, parts: &[Part]) -> Self {
        let mut encoded = Self::default();
        encoded.push(&[BEGIN], 0.0);
        for part in parts {
            match part {
                Part::System(text) => encoded.turn(bpe, SYSTEM, text, 0.0),
                Part::User(text) => encoded.turn(bpe, USER, text, USER_WEIGHT),
                Part::Answer(text) => encoded.turn(bpe, ASSISTANT, text, ANSWER_WEIGHT),
                Part::Story(text) => encoded.turn(bpe, ASSISTANT, text, STORY_WEIGHT),
                Part::Plain(text) => {
                    encoded.push(&bpe.encode(text), STORY_WEIGHT);
                    encoded.push(&[END], STORY_WEIGHT);
                }
            }
        }
        encoded
    }

    /// Encodes `parts` and opens the model's turn.
    pub(crate) fn prompt(bpe: &Bpe, parts: &[Part]) -> Vec<u32> {
        let mut tokens = Self::new(bpe, parts).tokens;
        tokens.push(ASSISTANT);
        tokens
    }

    fn turn(&mut self, bpe: &Bpe, speaker: u32, text: &str, weight: f32) {
        self.push(&[speaker], 0.0);
        self.push(&bpe.encode(text), weight);
        self.push(&[END], if speaker == ASSISTANT { weight } else { 0.0 });
    }

    fn push(&mut self, tokens: &[u32], weight: f32) {
        self.tokens.extend_from_slice(tokens);
        self.weights.resize(self.tokens.len(), weight);
    }
}
