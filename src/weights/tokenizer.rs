//! Text to token ids and back.
//!
//! Some texts are *markers*: they stand for one token wherever they are recognised. Markers that were added to the
//! vocabulary as text (`<think>`) are recognised always; *special* ones (control tokens, ends of generation) only where
//! the caller says so, because they steer the model and a user must not be able to write them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use aho_corasick::AhoCorasickKind;
use aho_corasick::MatchKind;

use crate::ids::Token;
use crate::weights::bytepairs;
use crate::weights::bytepairs::BytePairs;
use crate::weights::sentencepiece;
use crate::weights::sentencepiece::SPACE;
use crate::weights::sentencepiece::SentencePiece;
use crate::weights::vocabulary::VocabularyError;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

/// Bytes of all markers of a vocabulary, which bounds the memory of searching for them; the largest known vocabularies
/// have about 100 KiB. Arbitrary.
const MAX_MARKERS: usize = 1 << 20;

/// What becomes of the texts of special tokens, such as `<|im_start|>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// They become their token: for text that the operator or the model's template wrote.
    Parse,
    /// They are text like any other: for what a user wrote.
    AsText,
}

/// Whether the beginning of sequence comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bos {
    /// Yes, if the model has one.
    Add,
    /// If the model asks for it.
    AsModelSays,
    /// No.
    Omit,
}

/// How [`Tokenizer::encode`] reads a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// What becomes of the texts of special tokens.
    pub specials: Specials,
    /// Whether the beginning of sequence comes first.
    pub bos: Bos,
}

impl EncodeOptions {
    /// For a raw prompt: nothing is parsed, and the beginning of sequence is as the model says.
    pub const RAW: Self = Self { specials: Specials::AsText, bos: Bos::AsModelSays };
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    algorithm: Algorithm,
    /// Special and added markers.
    all_markers: Markers,
    /// Added markers only.
    added_markers: Markers,
}

#[derive(Debug)]
enum Algorithm {
    SentencePiece(SentencePiece),
    BytePairs(Box<BytePairs>),
}

/// Finds markers in a text, leftmost and longest first.
#[derive(Debug)]
struct Markers {
    finder: Option<AhoCorasick>,
    tokens: Vec<u32>,
}

/// A piece of a text that was searched for markers.
enum Part<'text> {
    Text(&'text str),
    Marker(u32),
}

/// Where user text must be broken so that no special token can come out of it.
pub(super) struct SpecialStarts {
    first_bytes: [bool; 256],
}

impl Tokenizer {
    /// # Errors
    /// `Length` if the vocabulary's lists differ in length, `Pre` if its pre-tokenizer is not known, `Markers` if it has
    /// too many.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, VocabularyError> {
        let tokens = vocabulary.tokens.len();
        let lengths = [("types", vocabulary.types.len()), ("scores", vocabulary.scores.len())];
        for (key, got) in lengths {
            let may_be_empty = key == "scores" && got == 0;
            if got != tokens && !may_be_empty {
                return Err(VocabularyError::Length { key, tokens, got });
            }
        }
        let is_text = |index: usize| {
            let kind = vocabulary.types[index];
            kind != TokenType::Unknown && !is_special(&vocabulary, index)
        };
        let algorithm = match &vocabulary.kind {
            VocabularyKind::SentencePiece => Algorithm::SentencePiece(SentencePiece::new(&vocabulary, is_text)),
            VocabularyKind::BytePairs { pre } => {
                Algorithm::BytePairs(Box::new(BytePairs::new(&vocabulary, pre, is_text)?))
            }
        };
        let is_added = |index: usize| vocabulary.types[index] == TokenType::UserDefined && is_text(index);
        let added_markers = Markers::new(&vocabulary, is_added)?;
        let all_markers = Markers::new(&vocabulary, |index| is_added(index) || is_special(&vocabulary, index))?;
        Ok(Self { vocabulary, algorithm, all_markers, added_markers })
    }

    /// What it was made of.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The tokens of a text.
    ///
    /// A character that the vocabulary cannot express becomes its unknown token, or nothing if it has none.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<Token> {
        let mut tokens = Vec::new();
        let add_bos = match options.bos {
            Bos::Add => true,
            Bos::AsModelSays => self.vocabulary.add_bos,
            Bos::Omit => false,
        };
        if let Some(bos) = self.vocabulary.bos.filter(|_| add_bos) {
            tokens.push(bos.0);
        }
        let markers = match options.specials {
            Specials::Parse => &self.all_markers,
            Specials::AsText => &self.added_markers,
        };
        self.encode_parts(markers.split(text), &mut tokens);
        tokens.into_iter().map(Token).collect()
    }

    /// The tokens of a rendered chat, in which special tokens are parsed except where `mark` breaks their text.
    ///
    /// Marks are taken out. The beginning of sequence comes first if the model asks for it and the template did not
    /// write it.
    pub(super) fn encode_marked(&self, text: &str, mark: char) -> Vec<Token> {
        let mut tokens = Vec::new();
        for part in self.all_markers.split(text) {
            match part {
                Part::Marker(token) => tokens.push(token),
                Part::Text(text) => {
                    let text = text.replace(mark, "");
                    self.encode_parts(self.added_markers.split(&text), &mut tokens);
                }
            }
        }
        let bos = self.vocabulary.bos.filter(|_| self.vocabulary.add_bos);
        let missing = bos.filter(|bos| tokens.first() != Some(&bos.0));
        missing.into_iter().chain(tokens.into_iter().map(Token)).collect()
    }

    /// The bytes that a token adds to a text; nothing for one that is never text.
    ///
    /// The bytes of one token need not be whole characters.
    pub fn piece(&self, token: Token) -> Cow<'_, [u8]> {
        let index = token.0 as usize;
        let Some(&kind) = self.vocabulary.types.get(index) else {
            return Cow::Borrowed(&[]);
        };
        if kind == TokenType::Unknown || is_special(&self.vocabulary, index) {
            return Cow::Borrowed(&[]);
        }
        let text = &self.vocabulary.tokens[index];
        match (&self.algorithm, kind) {
            (_, TokenType::UserDefined) => Cow::Borrowed(text.as_bytes()),
            (Algorithm::SentencePiece(_), TokenType::Byte) => match sentencepiece::byte_of(text) {
                Some(byte) => Cow::Owned(vec![byte]),
                None => Cow::Borrowed(text.as_bytes()),
            },
            (Algorithm::SentencePiece(_), _) => Cow::Owned(text.replace(SPACE, " ").into_bytes()),
            (Algorithm::BytePairs(_), _) => Cow::Owned(bytepairs::raw(text)),
        }
    }

    /// As [`Tokenizer::piece`], but tokens that are never text show their name.
    pub fn named_piece(&self, token: Token) -> Cow<'_, [u8]> {
        let piece = self.piece(token);
        match self.vocabulary.tokens.get(token.0 as usize) {
            Some(name) if piece.is_empty() => Cow::Borrowed(name.as_bytes()),
            _ => piece,
        }
    }

    /// The text of tokens, without the space that SentencePiece puts before a text. Bytes that are not UTF-8 become
    /// U+FFFD.
    pub fn decode(&self, tokens: &[Token]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| self.piece(token).into_owned()).collect();
        let has_prefix = self.prefixes_space() && bytes.first() == Some(&b' ');
        String::from_utf8_lossy(&bytes[usize::from(has_prefix)..]).into_owned()
    }

    /// Whether the token ends a generation.
    pub fn ends_generation(&self, token: Token) -> bool {
        self.vocabulary.end_of_generation.binary_search(&token).is_ok()
    }

    /// The texts of special tokens begin with these bytes.
    pub(super) fn special_starts(&self) -> SpecialStarts {
        let mut first_bytes = [false; 256];
        for (index, text) in self.vocabulary.tokens.iter().enumerate() {
            if let Some(&first) = text.as_bytes().first().filter(|_| is_special(&self.vocabulary, index)) {
                first_bytes[usize::from(first)] = true;
            }
        }
        SpecialStarts { first_bytes }
    }

    /// Copies user text and puts `mark` behind every character with which a special token's text could begin, so that
    /// neither the text itself nor what a template makes of it can contain one. Added markers stay whole: any text may
    /// contain them, and templates look for them.
    pub(super) fn shield(&self, text: &str, starts: &SpecialStarts, mark: char) -> String {
        let mut shielded = String::with_capacity(text.len() + 16);
        for part in self.added_markers.split(text) {
            let text = match part {
                Part::Text(text) => text,
                Part::Marker(token) => {
                    shielded.push_str(&self.vocabulary.tokens[token as usize]);
                    continue;
                }
            };
            for character in text.chars() {
                shielded.push(character);
                let first = character.encode_utf8(&mut [0; 4]).as_bytes()[0];
                if starts.first_bytes[usize::from(first)] {
                    shielded.push(mark);
                }
            }
        }
        shielded
    }

    fn prefixes_space(&self) -> bool {
        matches!(self.algorithm, Algorithm::SentencePiece(_)) && self.vocabulary.add_space_prefix
    }

    fn encode_parts<'text>(&self, parts: impl IntoIterator<Item = Part<'text>>, tokens: &mut Vec<u32>) {
        for part in parts {
            match (part, &self.algorithm) {
                (Part::Marker(token), _) => tokens.push(token),
                // The prefix is a space before each stretch of text, as llama.cpp has it.
                (Part::Text(text), Algorithm::SentencePiece(model)) if self.prefixes_space() => {
                    model.encode(&format!(" {text}"), tokens);
                }
                (Part::Text(text), Algorithm::SentencePiece(model)) => model.encode(text, tokens),
                (Part::Text(text), Algorithm::BytePairs(model)) => model.encode(text, tokens),
            }
        }
    }
}

impl Markers {
    fn new(vocabulary: &Vocabulary, is_marker: impl Fn(usize) -> bool) -> Result<Self, VocabularyError> {
        let mut texts = BTreeMap::new();
        for (index, text) in vocabulary.tokens.iter().enumerate() {
            // A marker of one character would let no text be shielded against it.
            if is_marker(index) && text.chars().nth(1).is_some() {
                texts.entry(text.as_str()).or_insert(index as u32);
            }
        }
        let tokens = texts.values().copied().collect();
        if texts.is_empty() {
            return Ok(Self { finder: None, tokens });
        }
        let got = texts.keys().map(|text| text.len()).sum();
        let too_many = || VocabularyError::Markers { limit: MAX_MARKERS, got };
        if got > MAX_MARKERS {
            return Err(too_many());
        }
        let mut builder = AhoCorasick::builder();
        // The kind whose size is proportional to the texts.
        builder.match_kind(MatchKind::LeftmostLongest).kind(Some(AhoCorasickKind::ContiguousNFA));
        let finder = builder.build(texts.keys()).map_err(|_| too_many())?;
        Ok(Self { finder: Some(finder), tokens })
    }

    fn split<'text>(&self, text: &'text str) -> Vec<Part<'text>> {
        let mut parts = Vec::new();
        let mut end = 0;
        for found in self.finder.iter().flat_map(|finder| finder.find_iter(text)) {
            if end < found.start() {
                parts.push(Part::Text(&text[end..found.start()]));
            }
            parts.push(Part::Marker(self.tokens[found.pattern().as_usize()]));
            end = found.end();
        }
        if end < text.len() {
            parts.push(Part::Text(&text[end..]));
        }
        parts
    }
}

/// Whether the token steers the model: a control token, an end of generation, or an added one that looks like a control
/// token (some files mark `<|im_start|>` as added text).
fn is_special(vocabulary: &Vocabulary, index: usize) -> bool {
    let text = &vocabulary.tokens[index];
    let looks_special = |(open, close): (&str, &str)| text.starts_with(open) && text.ends_with(close);
    match vocabulary.types[index] {
        TokenType::Control => true,
        TokenType::UserDefined if [("<|", "|>"), ("<｜", "｜>")].into_iter().any(looks_special) => true,
        TokenType::Normal | TokenType::Unknown | TokenType::UserDefined | TokenType::Unused | TokenType::Byte => {
            vocabulary.end_of_generation.binary_search(&Token(index as u32)).is_ok()
        }
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
