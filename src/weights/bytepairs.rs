//! Byte-level BPE: a text is cut into words, and inside each word bytes are merged in the order of the merge list.

use std::collections::HashMap;

use crate::weights::merge::Join;
use crate::weights::merge::Symbol;
use crate::weights::merge::merge;
use crate::weights::splitter::Splitter;
use crate::weights::vocabulary::VocabularyError;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;

#[derive(Debug)]
pub(super) struct BytePairs {
    splitter: Splitter,
    by_bytes: HashMap<Vec<u8>, u32>,
    bytes: Vec<Option<u32>>,
    joins: HashMap<(u32, u32), Join>,
    unknown: Option<u32>,
}

impl BytePairs {
    /// `is_text` says which tokens may come out of plain text.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        pre: &str,
        is_text: impl Fn(usize) -> bool,
    ) -> Result<Self, VocabularyError> {
        let mut by_text = HashMap::new();
        let mut by_bytes = HashMap::new();
        for (index, text) in vocabulary.tokens.iter().enumerate().filter(|(index, _)| is_text(*index)) {
            by_text.entry(text.as_str()).or_insert(index as u32);
            by_bytes.entry(raw(text)).or_insert(index as u32);
        }
        let bytes = (0..=u8::MAX).map(|byte| by_bytes.get([byte].as_slice()).copied()).collect();
        let mut joins = HashMap::new();
        for (merge, cost) in vocabulary.merges.iter().zip(0..) {
            if let Some((pair, token)) = pair(merge, &by_text) {
                joins.entry(pair).or_insert(Join { cost, token });
            }
        }
        let unknown = vocabulary.types.iter().position(|&kind| kind == TokenType::Unknown).map(|index| index as u32);
        Ok(Self { splitter: Splitter::new(pre)?, by_bytes, bytes, joins, unknown })
    }

    /// Appends the tokens of `text`. A byte that is no token becomes the unknown token, or else nothing.
    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let text = &*self.splitter.normalise(text);
        for word in self.splitter.split(text) {
            let word = &text.as_bytes()[word];
            if self.splitter.takes_whole_words()
                && let Some(&token) = self.by_bytes.get(word)
            {
                tokens.push(token);
                continue;
            }
            let symbol =
                |(start, &byte): (usize, &u8)| Symbol { start, end: start + 1, token: self.bytes[usize::from(byte)] };
            let symbols = word.iter().enumerate().map(symbol).collect();
            let merged = merge(symbols, |left, right| self.joins.get(&(left.token?, right.token?)).copied());
            tokens.extend(merged.iter().filter_map(|symbol| symbol.token.or(self.unknown)));
        }
    }
}

/// The tokens that a line of the merge list joins, and what it makes of them; `None` if any is no token.
fn pair(merge: &str, by_text: &HashMap<&str, u32>) -> Option<((u32, u32), u32)> {
    let (left, right) = merge.split_once(' ')?;
    let whole = by_text.get(format!("{left}{right}").as_str())?;
    Some(((*by_text.get(left)?, *by_text.get(right)?), *whole))
}

/// The bytes that a token's text stands for: GPT-2's alphabet writes each byte as a visible character.
pub(super) fn raw(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Bytes that the alphabet writes as the character of the same number.
const fn is_visible(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character that GPT-2's alphabet writes for a byte: itself if visible, else the next free one from U+0100.
pub(super) fn character_of(byte: u8) -> char {
    if is_visible(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&other| !is_visible(other)).count();
    char::from_u32(0x100 + hidden_before as u32).expect("U+0100 to U+0143 are characters")
}

/// The byte that a character of the alphabet stands for.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    if let Ok(byte) = u8::try_from(code) {
        return is_visible(byte).then_some(byte);
    }
    match code.checked_sub(0x100)? {
        low @ 0..=0x20 => Some(low as u8),
        middle @ 0x21..=0x42 => Some((middle - 0x21) as u8 + 0x7f),
        0x43 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_reads_back_every_byte() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of(character_of(byte)), Some(byte));
        }
        assert_eq!((character_of(b' '), character_of(b'\n'), character_of(0xad)), ('Ġ', 'Ċ', 'Ń'));
    }

    #[test]
    fn characters_outside_the_alphabet_stand_for_themselves() {
        assert_eq!(raw("Ġ<｜"), " <｜".as_bytes());
    }
}
