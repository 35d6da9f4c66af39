//! Pre-tokenizers of byte-level BPE: how a text is cut into words before bytes are merged inside each.
//!
//! A pre-tokenizer is a list of patterns; each one cuts what the ones before it left into its matches and the gaps
//! between.

use std::ops::Range;

use fancy_regex::Regex;

use crate::weights::vocabulary::VocabularyError;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// One family of pre-tokenizers; the facts are those of the models' own tokenizer files and of llama.cpp.
#[derive(Debug)]
struct Family {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    adds_bos: bool,
    whole_words: bool,
}

const FAMILIES: [Family; 10] = [
    Family {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        adds_bos: false,
        whole_words: false,
    },
    Family {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
        patterns: &[GPT2],
        adds_bos: false,
        whole_words: false,
    },
    Family {
        names: &["llama-bpe", "llama-v3", "llama3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        adds_bos: true,
        whole_words: true,
    },
    Family { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], adds_bos: false, whole_words: false },
    Family {
        names: &["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"],
        patterns: &[QWEN2],
        adds_bos: false,
        whole_words: false,
    },
    Family {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        adds_bos: false,
        whole_words: false,
    },
    Family { names: &["tekken"], patterns: &[TEKKEN], adds_bos: true, whole_words: true },
    Family { names: &["gpt-4o", "llama4"], patterns: &[GPT4O], adds_bos: false, whole_words: false },
    Family {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        adds_bos: false,
        whole_words: false,
    },
    Family {
        names: &["deepseek-v3"],
        patterns: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        adds_bos: false,
        whole_words: false,
    },
];

/// Cuts texts into words.
#[derive(Debug)]
pub(super) struct Splitter {
    patterns: Vec<Regex>,
    whole_words: bool,
}

impl Splitter {
    /// The pre-tokenizer of that name.
    pub(super) fn new(pre: &str) -> Result<Self, VocabularyError> {
        let family = family(pre)?;
        let compile =
            |pattern: &&str| Regex::new(pattern).expect("every pattern of the table compiles; a test does so");
        Ok(Self { patterns: family.patterns.iter().map(compile).collect(), whole_words: family.whole_words })
    }

    /// Whether a word that is a token is taken as it is, whatever the merges say.
    pub(super) fn takes_whole_words(&self) -> bool {
        self.whole_words
    }

    /// The words, which lie end to start and make up the whole text.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let whole: Vec<_> = (!text.is_empty()).then_some(0..text.len()).into_iter().collect();
        self.patterns
            .iter()
            .fold(whole, |words, pattern| words.into_iter().flat_map(|word| cut(pattern, text, word)).collect())
    }
}

/// Cuts one word into matches and gaps. A look-ahead sees no further than the word.
fn cut(pattern: &Regex, text: &str, word: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut end = word.start;
    // A match fails when it would take too many steps or too much memory (megabytes of spaces do): the rest stays one
    // word.
    for found in pattern.find_iter(&text[word.clone()]).map_while(Result::ok) {
        let (start, stop) = (word.start + found.start(), word.start + found.end());
        parts.extend([end..start, start..stop]);
        end = stop;
    }
    parts.push(end..word.end);
    parts.retain(|part| !part.is_empty());
    parts
}

fn family(pre: &str) -> Result<&'static Family, VocabularyError> {
    let known = || FAMILIES.iter().flat_map(|family| family.names).copied().collect::<Vec<_>>().join(", ");
    let found = FAMILIES.iter().find(|family| family.names.contains(&pre));
    found.ok_or_else(|| VocabularyError::Pre { got: pre.to_owned(), known: known() })
}

/// Whether a pre-tokenizer of that name is known.
pub(super) fn check(pre: &str) -> Result<(), VocabularyError> {
    family(pre).map(|_| ())
}

/// Whether models with it put the beginning of sequence first where the file says nothing.
pub(super) fn adds_bos(pre: &str) -> bool {
    family(pre).is_ok_and(|family| family.adds_bos)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words<'text>(pre: &str, text: &'text str) -> Vec<&'text str> {
        Splitter::new(pre).unwrap().split(text).into_iter().map(|word| &text[word]).collect()
    }

    #[test]
    fn every_known_name_compiles() {
        for name in FAMILIES.iter().flat_map(|family| family.names) {
            assert_eq!(words(name, "a").concat(), "a", "{name}");
        }
    }

    #[test]
    fn digits_and_contractions_are_cut_as_each_family_does() {
        let text = "It's 12345 O'CLOCK'S\n\n  end ";

        assert_eq!(words("gpt-2", text), ["It", "'s", " 12345", " O", "'", "CLOCK", "'", "S", "\n\n ", " end", " "]);
        assert_eq!(
            words("llama-bpe", text),
            ["It", "'s", " ", "123", "45", " O", "'CLOCK", "'S", "\n\n", " ", " end", " "]
        );
        assert_eq!(words("qwen2", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(words("smollm", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(words("tekken", "helloWorld"), ["hello", "World"]);
    }

    #[test]
    fn megabytes_of_spaces_are_cut_in_time() {
        let text = format!("{}x", " ".repeat(3 << 20));

        assert_eq!(words("llama-bpe", &text).concat().len(), text.len());
    }

    proptest! {
        #[test]
        fn words_make_up_the_text(text in "\\PC*|[ \\n\\ta'1-]*", index in 0..FAMILIES.len()) {
            prop_assert_eq!(words(FAMILIES[index].names[0], &text).concat(), text);
        }
    }
}
