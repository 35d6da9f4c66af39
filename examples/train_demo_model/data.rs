//! From documents to tokens: the chat format, and what each token weighs in training.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::bpe::ASSISTANT;
use super::bpe::BEGIN;
use super::bpe::Bpe;
use super::bpe::END;
use super::bpe::SYSTEM;
use super::bpe::USER;
use super::bpe::split;
use super::chat::Part;
use super::chat::Stage;
use super::chat::document;
use super::model::Batch;
use super::model::CONTEXT;
use super::random::Random;

/// Weight of a token of an answer. Answers are few among the tokens, and the point of it all.
pub(crate) const ANSWER_WEIGHT: f32 = 3.0;
/// Weight of a token of a story the model tells.
const STORY_WEIGHT: f32 = 1.0;
/// Weight of a token the user says: enough to learn the language from it.
const USER_WEIGHT: f32 = 0.1;
/// Documents from which the vocabulary is learnt.
const VOCABULARY_DOCUMENTS: u64 = 6000;

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

/// Documents to run at once, with the token to predict after each token and its weight.
#[derive(Clone, Debug)]
pub(crate) struct Lesson {
    /// The input.
    pub(crate) batch: Batch,
    /// For each row, the token that follows and what predicting it weighs.
    pub(crate) targets: Arc<[(u32, f32)]>,
}

impl Lesson {
    /// Lays documents end to end.
    pub(crate) fn new(documents: &[Encoded]) -> Self {
        let mut tokens = Vec::new();
        let mut targets = Vec::new();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for document in documents {
            let start = tokens.len();
            tokens.extend_from_slice(&document.tokens[..document.tokens.len() - 1]);
            targets.extend(document.tokens.iter().copied().zip(document.weights.iter().copied()).skip(1));
            ranges.push(start..tokens.len());
        }
        Self { batch: Batch { tokens, documents: ranges.into() }, targets: targets.into() }
    }

    /// Draws training documents until they fill `size` tokens.
    pub(crate) fn draw(bpe: &Bpe, random: &mut Random, stage: Stage, size: usize) -> Self {
        let mut documents = Vec::new();
        let mut filled = 0;
        while filled < size {
            let encoded = Encoded::new(bpe, &document(random, stage));
            if encoded.tokens.len() <= CONTEXT {
                filled += encoded.tokens.len();
                documents.push(encoded);
            }
        }
        Self::new(&documents)
    }

    /// What all tokens weigh together.
    pub(crate) fn weight(&self) -> f32 {
        self.targets.iter().map(|(_, weight)| weight).sum()
    }
}

/// Learns the vocabulary from training documents.
pub(crate) fn learn_vocabulary(seed: u64, size: usize) -> Bpe {
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..VOCABULARY_DOCUMENTS {
        let mut random = Random::stream(seed, index);
        for part in document(&mut random, Stage::at(usize::MAX)) {
            let (Part::System(text) | Part::User(text) | Part::Answer(text) | Part::Story(text) | Part::Plain(text)) =
                part;
            for word in split(&text) {
                *words.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    Bpe::learn(&words, size)
}
