//! Pre-tokenizers of byte-level BPE: how a text is cut into words before bytes are merged inside each.
//!
//! A pre-tokenizer is a list of patterns; each one cuts what the ones before it left into its matches and the gaps
//! between.

use std::borrow::Cow;
use std::ops::Range;

use fancy_regex::Regex;
use icu_normalizer::ComposingNormalizerBorrowed;

use crate::weights::vocabulary::VocabularyError;

pub(super) const DIGIT: &str = r"\p{N}";
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// What becomes of a text before it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Normal {
    /// Nothing.
    AsIs,
    /// Characters and their marks are composed: Unicode's NFC.
    Composed,
}

/// One family of pre-tokenizers; the facts are those of the models' own tokenizer files and of llama.cpp.
#[derive(Debug)]
struct Family {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    adds_bos: bool,
    whole_words: bool,
    normal: Normal,
}

const FAMILIES: [Family; 12] = [
    Family {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"],
        patterns: &[GPT2],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family {
        names: &["llama-bpe", "llama-v3", "llama3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        adds_bos: true,
        whole_words: true,
        normal: Normal::AsIs,
    },
    Family {
        names: &["dbrx", "smaug-bpe"],
        patterns: &[LLAMA3],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family { names: &["qwen2"], patterns: &[QWEN2], adds_bos: false, whole_words: false, normal: Normal::Composed },
    Family {
        names: &["stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"],
        patterns: &[QWEN2],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[DIGIT, GPT2],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family { names: &["tekken"], patterns: &[TEKKEN], adds_bos: true, whole_words: true, normal: Normal::AsIs },
    Family {
        // GGUF's converter has the one above for these too; files of Hugging Face tell them apart.
        names: &["tekken-merged"],
        patterns: &[TEKKEN],
        adds_bos: true,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family {
        names: &["gpt-4o", "llama4"],
        patterns: &[GPT4O],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
    Family {
        names: &["deepseek-v3"],
        patterns: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        adds_bos: false,
        whole_words: false,
        normal: Normal::AsIs,
    },
];

/// Cuts texts into words.
#[derive(Debug)]
pub(super) struct Splitter {
    patterns: Vec<Regex>,
    whole_words: bool,
    normal: Normal,
}

impl Splitter {
    /// The pre-tokenizer of that name.
    pub(super) fn new(pre: &str) -> Result<Self, VocabularyError> {
        let family = family(pre)?;
        let compile =
            |pattern: &&str| Regex::new(pattern).expect("every pattern of the table compiles; a test does so");
        let Family { whole_words, normal, .. } = *family;
        Ok(Self { patterns: family.patterns.iter().map(compile).collect(), whole_words, normal })
    }

    /// The text as it is to be cut.
    pub(super) fn normalise<'text>(&self, text: &'text str) -> Cow<'text, str> {
        match self.normal {
            Normal::AsIs => Cow::Borrowed(text),
            Normal::Composed => ComposingNormalizerBorrowed::new_nfc().normalize(text),
        }
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

/// The name of the pre-tokenizer that does exactly this, if one is known.
pub(super) fn named(patterns: &[&str], whole_words: bool, normal: Normal) -> Option<&'static str> {
    let is_it =
        |family: &&Family| (family.patterns, family.whole_words, family.normal) == (patterns, whole_words, normal);
    FAMILIES.iter().find(is_it).and_then(|family| family.names.first()).copied()
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
    fn only_qwen_composes_characters() {
        let normal = |pre: &str| Splitter::new(pre).unwrap().normalise("e\u{301}").into_owned();

        assert_eq!((normal("qwen2").as_str(), normal("llama-bpe").as_str()), ("\u{e9}", "e\u{301}"));
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
