//! SentencePiece as Llama 1 and 2 use it: characters are joined by the score of what they make, and what is no token is
//! spelt in bytes.

use std::collections::HashMap;

use crate::weights::merge::Join;
use crate::weights::merge::Symbol;
use crate::weights::merge::merge;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;

/// What stands for a space inside tokens (U+2581).
pub(super) const SPACE: char = '▁';

#[derive(Debug)]
pub(super) struct SentencePiece {
    by_text: HashMap<String, u32>,
    scores: Vec<f32>,
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    longest: usize,
}

impl SentencePiece {
    /// `is_text` says which tokens may come out of plain text.
    pub(super) fn new(vocabulary: &Vocabulary, is_text: impl Fn(usize) -> bool) -> Self {
        let mut by_text = HashMap::new();
        let mut bytes = vec![None; 256];
        for (index, text) in vocabulary.tokens.iter().enumerate() {
            let token = index as u32;
            if let Some(byte) = byte_of(text) {
                bytes[usize::from(byte)].get_or_insert(token);
            }
            if is_text(index) && vocabulary.types[index] != TokenType::Byte && !text.is_empty() {
                by_text.entry(text.clone()).or_insert(token);
            }
        }
        let unknown = vocabulary.types.iter().position(|&kind| kind == TokenType::Unknown).map(|index| index as u32);
        let longest = vocabulary.tokens.iter().map(String::len).max().unwrap_or(0);
        Self { by_text, scores: vocabulary.scores.clone(), bytes, unknown, longest }
    }

    /// Appends the tokens of `text`, in which spaces are spaces.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let text = text.replace(' ', SPACE.encode_utf8(&mut [0; 4]));
        let characters = text.char_indices().map(|(start, character)| {
            let end = start + character.len_utf8();
            Symbol { start, end, token: self.by_text.get(&text[start..end]).copied() }
        });
        let merged = merge(characters.collect(), |left, right| self.join(&text, left, right));
        for symbol in merged {
            match symbol.token {
                Some(token) => tokens.push(token),
                None => self.spell(&text[symbol.start..symbol.end], tokens),
            }
        }
    }

    fn join(&self, text: &str, left: &Symbol, right: &Symbol) -> Option<Join> {
        if right.end - left.start > self.longest {
            return None;
        }
        let token = *self.by_text.get(&text[left.start..right.end])?;
        let score = self.scores.get(token as usize).copied().unwrap_or(0.0);
        Some(Join { cost: -ordered(score), token })
    }

    /// Spells a character that is no token: its bytes, or else the unknown token, or else nothing.
    fn spell(&self, character: &str, tokens: &mut Vec<u32>) {
        let spelt: Option<Vec<u32>> = character.bytes().map(|byte| self.bytes[usize::from(byte)]).collect();
        match spelt {
            Some(bytes) => tokens.extend(bytes),
            None => tokens.extend(self.unknown),
        }
    }
}

/// A whole number that orders as the (finite) float does.
fn ordered(score: f32) -> i64 {
    // Adding 0 makes one zero out of two.
    let bits = i64::from((score + 0.0).to_bits());
    if bits < 1 << 31 { bits } else { (1 << 31) - bits }
}

/// The byte that a token such as `<0x0A>` stands for.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_order_as_whole_numbers() {
        let scores = [f32::MIN, -3.5, -1.0, -0.0, 0.0, 1e-30, 2.0, f32::MAX];

        assert!(scores.is_sorted_by_key(|&score| ordered(score)));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }

    #[test]
    fn only_the_exact_form_is_a_byte() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!([byte_of("<0x+A>"), byte_of("<0xA>"), byte_of("0x0A"), byte_of("<0x0A>>")], [None; 4]);
    }
}
