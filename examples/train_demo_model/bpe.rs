//! Byte-level byte-pair encoding as GPT-2 does it: learnt here, and written to the file in its form.

use std::collections::BTreeMap;

/// Special tokens, in the order of their ids.
pub(crate) const SPECIALS: [&str; 6] = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"];
/// Starts every sequence.
pub(crate) const BEGIN: u32 = 0;
/// Ends every turn, and every story.
pub(crate) const END: u32 = 1;
/// Starts a user's turn.
pub(crate) const USER: u32 = 2;
/// Starts the model's turn.
pub(crate) const ASSISTANT: u32 = 3;
/// Starts the system message.
pub(crate) const SYSTEM: u32 = 4;
/// Fills up rows; never seen by the model.
pub(crate) const PAD: u32 = 5;

type Pair = (u32, u32);

/// A vocabulary with its merges.
#[derive(Clone, Debug)]
pub(crate) struct Bpe {
    tokens: Vec<Vec<u8>>,
    merges: Vec<Pair>,
    ranks: BTreeMap<Pair, u32>,
}

impl Bpe {
    /// Learns a vocabulary of `size` tokens from words and how often they occur. Pairs equally
    /// frequent are merged in the order of their ids.
    pub(crate) fn learn(words: &BTreeMap<String, usize>, size: usize) -> Self {
        let mut bpe = Self::bytes();
        let mut words: Vec<(Vec<u32>, usize)> = words.iter().map(|(word, count)| (bytes_of(word), *count)).collect();
        while bpe.tokens.len() < size {
            let Some(pair) = most_frequent(&words) else { break };
            let id = bpe.add(pair);
            for (word, _) in &mut words {
                merge(word, pair, id);
            }
        }
        bpe
    }

    /// Takes a vocabulary and its merges as a file has them.
    pub(crate) fn from_parts(tokens: &[String], merges: &[String]) -> Option<Self> {
        let mut bpe = Self::bytes();
        let ids: BTreeMap<&str, u32> = tokens.iter().map(String::as_str).zip(0..).collect();
        for merge in merges {
            let (left, right) = merge.split_once(' ')?;
            bpe.add((*ids.get(left)?, *ids.get(right)?));
        }
        (bpe.token_texts() == tokens).then_some(bpe)
    }

    /// Encodes plain text; special tokens in it are not recognised.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        split(text).into_iter().flat_map(|word| self.encode_word(word)).collect()
    }

    /// Decodes tokens; special tokens are left out.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        let plain = ids.iter().filter(|id| **id as usize >= SPECIALS.len());
        let bytes: Vec<u8> = plain.flat_map(|id| &self.tokens[*id as usize]).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The number of tokens.
    pub(crate) fn size(&self) -> usize {
        self.tokens.len()
    }

    /// All tokens in GPT-2's alphabet, in the order of their ids.
    pub(crate) fn token_texts(&self) -> Vec<String> {
        let specials = SPECIALS.iter().map(|&special| special.to_owned());
        specials.chain(self.tokens[SPECIALS.len()..].iter().map(|token| printable(token))).collect()
    }

    /// All merges in GPT-2's alphabet, most important first.
    pub(crate) fn merge_texts(&self) -> Vec<String> {
        let text = |id: u32| printable(&self.tokens[id as usize]);
        self.merges.iter().map(|(left, right)| format!("{} {}", text(*left), text(*right))).collect()
    }

    fn bytes() -> Self {
        let specials = SPECIALS.iter().map(|special| special.as_bytes().to_vec());
        let tokens = specials.chain((0..=255u8).map(|byte| vec![byte])).collect();
        Self { tokens, merges: Vec::new(), ranks: BTreeMap::new() }
    }

    fn add(&mut self, pair: Pair) -> u32 {
        let id = self.tokens.len() as u32;
        self.ranks.insert(pair, self.merges.len() as u32);
        self.merges.push(pair);
        self.tokens.push([self.tokens[pair.0 as usize].as_slice(), &self.tokens[pair.1 as usize]].concat());
        id
    }

    fn encode_word(&self, word: &str) -> Vec<u32> {
        let mut ids = bytes_of(word);
        let rank = |ids: &[u32]| ids.windows(2).filter_map(|pair| self.ranks.get(&(pair[0], pair[1]))).min().copied();
        while let Some(rank) = rank(&ids) {
            let first = self.tokens.len() - self.merges.len();
            merge(&mut ids, self.merges[rank as usize], first as u32 + rank);
        }
        ids
    }
}

/// Splits text as GPT-2's pattern does: contractions, and runs of letters, of digits and of other
/// marks, each with the space before it; other white space by itself.
pub(crate) fn split(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(word_length(rest));
        words.push(word);
        rest = after;
    }
    words
}

fn word_length(text: &str) -> usize {
    if let Some(contraction) = CONTRACTIONS.iter().find(|contraction| text.starts_with(**contraction)) {
        return contraction.len();
    }
    let body = text.strip_prefix(' ').unwrap_or(text);
    let space = text.len() - body.len();
    let run = |class: fn(char) -> bool| body.find(|letter| !class(letter)).unwrap_or(body.len());
    let length = [letter, digit, mark].into_iter().map(run).find(|length| *length > 0);
    length.map_or_else(|| white_length(text), |length| space + length)
}

/// The length of a run of white space; its last character is left to the word after it.
fn white_length(text: &str) -> usize {
    let run = text.find(|letter: char| !letter.is_whitespace()).unwrap_or(text.len());
    let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
    if run < text.len() && run > last { run - last } else { run }
}

fn letter(character: char) -> bool {
    character.is_alphabetic()
}

fn digit(character: char) -> bool {
    character.is_numeric()
}

fn mark(character: char) -> bool {
    !character.is_whitespace() && !letter(character) && !digit(character)
}

const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

fn bytes_of(word: &str) -> Vec<u32> {
    word.bytes().map(|byte| SPECIALS.len() as u32 + u32::from(byte)).collect()
}

fn most_frequent(words: &[(Vec<u32>, usize)]) -> Option<Pair> {
    let mut counts: BTreeMap<Pair, usize> = BTreeMap::new();
    for (word, count) in words {
        for pair in word.windows(2) {
            *counts.entry((pair[0], pair[1])).or_default() += count;
        }
    }
    // The last of equals is the maximum, so the order is turned round.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(pair, _)| pair)
}

fn merge(word: &mut Vec<u32>, pair: Pair, id: u32) {
    let mut index = 0;
    while index + 1 < word.len() {
        if (word[index], word[index + 1]) == pair {
            word.splice(index..index + 2, [id]);
        }
        index += 1;
    }
}

/// Writes bytes in GPT-2's alphabet, in which every byte is a visible character.
fn printable(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| character(*byte)).collect()
}

fn character(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !visible(*byte)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_encoding() {
        let words = BTreeMap::from([(" ball".to_owned(), 3), ("ball".to_owned(), 2)]);
        let bpe = Bpe::learn(&words, 300);

        let text = "Zoë's  ball,\n\n12 balls \u{1f3d0} ";

        assert_eq!(bpe.decode(&bpe.encode(text)), text);
        assert_eq!(bpe.encode(" ball").len(), 1);
    }

    #[test]
    fn splitting_follows_gpt_2() {
        assert_eq!(
            split("I'm  here, at 10\n\nnow "),
            ["I", "'m", " ", " here", ",", " at", " 10", "\n", "\n", "now", " "]
        );
    }

    #[test]
    fn a_file_gives_the_vocabulary_back() {
        let bpe = Bpe::learn(&BTreeMap::from([("banana".to_owned(), 1)]), 270);

        let read = Bpe::from_parts(&bpe.token_texts(), &bpe.merge_texts()).unwrap();

        assert_eq!(read.encode("bananas"), bpe.encode("bananas"));
    }
}
