//! Documents as lessons, and the vocabulary that is learnt from them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::bpe::Bpe;
use super::bpe::split;
use super::chat::Part;
use super::chat::Stage;
use super::chat::document;
use super::encoded::Encoded;
use super::model::Batch;
use super::model::CONTEXT;
use super::random::Random;

/// Documents from which the vocabulary is learnt.
const VOCABULARY_DOCUMENTS: u64 = 6000;

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
