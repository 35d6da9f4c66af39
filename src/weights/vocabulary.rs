//! From a GGUF's metadata to a [`Vocabulary`].

use std::collections::BTreeSet;

use thiserror::Error;

use crate::ids::Token;
use crate::weights::gguf::GgufError;
use crate::weights::gguf::GgufFile;
use crate::weights::splitter;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

/// Texts of control tokens that end a generation whether or not the metadata names their ids (as llama.cpp has them).
const END_TEXTS: [&str; 14] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
    "<eos>",
    "</s>",
];

/// Keys of the ids that end a generation: sequence, turn, message.
const END_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Why a GGUF's tokenizer is not one that can be used.
#[derive(Debug, Error)]
pub enum VocabularyError {
    /// The file itself is in the way.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A tokenizer of another kind.
    #[error("the tokenizer \"{got}\" is not supported; \"llama\" (SentencePiece) and \"gpt2\" (byte-level BPE) are")]
    Kind {
        /// `tokenizer.ggml.model`.
        got: String,
    },
    /// A pre-tokenizer that is not known.
    #[error("the pre-tokenizer \"{got}\" is not supported; known are {known}")]
    Pre {
        /// `tokenizer.ggml.pre`.
        got: String,
        /// Every name that is known.
        known: String,
    },
    /// Lists that should be equally long.
    #[error("the vocabulary has {tokens} tokens but {got} entries in \"{key}\"")]
    Length {
        /// The other list.
        key: &'static str,
        /// Tokens.
        tokens: usize,
        /// Entries of the other list.
        got: usize,
    },
    /// A token type that GGUF does not define.
    #[error("token {token} has the unknown type {got}")]
    Type {
        /// The token.
        token: Token,
        /// Its type.
        got: f64,
    },
    /// An id beyond the vocabulary.
    #[error("\"{key}\" is {got}, but the vocabulary has {tokens} tokens")]
    Id {
        /// Whose id.
        key: String,
        /// The id.
        got: u64,
        /// Tokens.
        tokens: usize,
    },
    /// Too much text of control and added tokens.
    #[error("the texts of control and added tokens have {got} bytes; at most {limit} are accepted")]
    Markers {
        /// The most bytes.
        limit: usize,
        /// Bytes of all of them.
        got: usize,
    },
    /// A score that is no number.
    #[error("token {token} has a score that is not finite")]
    Score {
        /// The token.
        token: Token,
    },
}

/// Reads the tokenizer and the chat template.
///
/// # Errors
/// What is missing, contradictory or not supported, by name.
pub fn read_vocabulary(file: &GgufFile) -> Result<Vocabulary, VocabularyError> {
    let kind = kind(file)?;
    let tokens = needed(file.texts("tokenizer.ggml.tokens")?, "tokenizer.ggml.tokens")?;
    let types = types(file, tokens.len())?;
    let is_spm = kind == VocabularyKind::SentencePiece;
    let scores = if is_spm { scores(file, tokens.len())? } else { Vec::new() };
    let merges_key = "tokenizer.ggml.merges";
    let merges = if is_spm { Vec::new() } else { needed(file.texts(merges_key)?, merges_key)? };
    Ok(Vocabulary {
        bos: id(file, "tokenizer.ggml.bos_token_id", tokens.len())?,
        add_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or_else(|| adds_bos(&kind)),
        add_space_prefix: file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(is_spm),
        end_of_generation: end_of_generation(file, &tokens, &types)?,
        chat_template: file.text("tokenizer.chat_template")?.map(str::to_owned),
        kind,
        tokens,
        types,
        scores,
        merges,
    })
}

fn needed<T>(value: Option<T>, key: &str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::Missing { key: key.to_owned() })
}

fn kind(file: &GgufFile) -> Result<VocabularyKind, VocabularyError> {
    let key = "tokenizer.ggml.model";
    match needed(file.text(key)?, key)? {
        "llama" => Ok(VocabularyKind::SentencePiece),
        "gpt2" => {
            let pre = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
            splitter::check(pre)?;
            Ok(VocabularyKind::BytePairs { pre: pre.to_owned() })
        }
        other => Err(VocabularyError::Kind { got: other.to_owned() }),
    }
}

fn adds_bos(kind: &VocabularyKind) -> bool {
    match kind {
        VocabularyKind::SentencePiece => true,
        VocabularyKind::BytePairs { pre } => splitter::adds_bos(pre),
    }
}

fn types(file: &GgufFile, tokens: usize) -> Result<Vec<TokenType>, VocabularyError> {
    let key = "tokenizer.ggml.token_type";
    let Some(codes) = file.floats(key)? else {
        return Ok(vec![TokenType::Normal; tokens]);
    };
    same_length(key, tokens, codes.len())?;
    codes.iter().zip(0..).map(|(&code, token)| token_type(code, Token(token))).collect()
}

fn token_type(code: f64, token: Token) -> Result<TokenType, VocabularyError> {
    Ok(match code as i64 {
        // Writers leave "undefined" where they know nothing better than text.
        0 | 1 => TokenType::Normal,
        2 => TokenType::Unknown,
        3 => TokenType::Control,
        4 => TokenType::UserDefined,
        5 => TokenType::Unused,
        6 => TokenType::Byte,
        _ => return Err(VocabularyError::Type { token, got: code }),
    })
}

fn scores(file: &GgufFile, tokens: usize) -> Result<Vec<f32>, VocabularyError> {
    let key = "tokenizer.ggml.scores";
    let scores = needed(file.floats(key)?, key)?;
    same_length(key, tokens, scores.len())?;
    let narrow = |(&score, token): (&f64, u32)| {
        let narrow = score as f32;
        if narrow.is_finite() { Ok(narrow) } else { Err(VocabularyError::Score { token: Token(token) }) }
    };
    scores.iter().zip(0..).map(narrow).collect()
}

fn same_length(key: &'static str, tokens: usize, got: usize) -> Result<(), VocabularyError> {
    if got == tokens { Ok(()) } else { Err(VocabularyError::Length { key, tokens, got }) }
}

fn id(file: &GgufFile, key: &str, tokens: usize) -> Result<Option<Token>, VocabularyError> {
    let Some(got) = file.unsigned(key)? else {
        return Ok(None);
    };
    match u32::try_from(got) {
        Ok(id) if (id as usize) < tokens => Ok(Some(Token(id))),
        _ => Err(VocabularyError::Id { key: key.to_owned(), got, tokens }),
    }
}

fn end_of_generation(file: &GgufFile, tokens: &[String], types: &[TokenType]) -> Result<Vec<Token>, VocabularyError> {
    let mut ends = BTreeSet::new();
    for key in END_KEYS {
        ends.extend(id(file, key, tokens.len())?);
    }
    ends.extend(named_ends(tokens, types));
    Ok(ends.into_iter().collect())
}

/// The tokens that end a generation by their text, ascending.
pub(super) fn named_ends(tokens: &[String], types: &[TokenType]) -> impl Iterator<Item = Token> {
    let can_end = |kind: &TokenType| matches!(kind, TokenType::Control | TokenType::UserDefined);
    let ends = move |(text, kind): (&String, &TokenType)| can_end(kind) && END_TEXTS.contains(&text.as_str());
    tokens.iter().zip(types).zip(0..).filter(move |(token, _)| ends(*token)).map(|(_, token)| Token(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::fixture::RandomModel;
    use crate::weights::writer::GgufWriter;

    fn read(writer: &GgufWriter) -> Result<Vocabulary, VocabularyError> {
        read_vocabulary(&file(writer))
    }

    fn file(writer: &GgufWriter) -> GgufFile {
        let mut bytes = Vec::new();
        writer.write_tables(&mut bytes).unwrap();
        GgufFile::from_bytes(bytes).unwrap()
    }

    #[test]
    fn sentencepiece_adds_bos_and_a_space_unless_told_otherwise() {
        let mut writer = GgufWriter::new();
        writer.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &["<s>", "</s>", "a"]);
        writer.floats("tokenizer.ggml.scores", &[0.0, 0.0, -1.0]).numbers("tokenizer.ggml.token_type", &[3, 3, 1]);
        writer.number("tokenizer.ggml.bos_token_id", 0).number("tokenizer.ggml.eos_token_id", 1);

        let vocabulary = read(&writer).unwrap();

        assert!(vocabulary.add_bos && vocabulary.add_space_prefix);
        assert_eq!((vocabulary.bos, vocabulary.end_of_generation), (Some(Token(0)), vec![Token(1)]));
    }

    #[test]
    fn tokens_that_end_a_turn_are_known_by_their_text_if_they_are_no_plain_text() {
        let mut writer = GgufWriter::new();
        writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "llama-bpe");
        writer.texts("tokenizer.ggml.tokens", &["<|eot_id|>", "</s>", "a"]).texts::<&str>("tokenizer.ggml.merges", &[]);
        writer.numbers("tokenizer.ggml.token_type", &[3, 1, 1]);

        let vocabulary = read(&writer).unwrap();

        assert_eq!(vocabulary.end_of_generation, vec![Token(0)]);
        assert!(vocabulary.add_bos && !vocabulary.add_space_prefix);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let mut other_kind = GgufWriter::new();
        other_kind.text("tokenizer.ggml.model", "bert");
        let mut other_pre = GgufWriter::new();
        other_pre.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "martian");

        let (kind, pre) = (read(&other_kind).unwrap_err(), read(&other_pre).unwrap_err());

        assert!(kind.to_string().contains("\"bert\""), "{kind}");
        assert!(pre.to_string().contains("\"martian\""), "{pre}");
    }

    #[test]
    fn an_id_beyond_the_vocabulary_is_refused() {
        let mut writer = GgufWriter::new();
        writer.text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", &["a"]);
        writer.texts::<&str>("tokenizer.ggml.merges", &[]).number("tokenizer.ggml.bos_token_id", 1);

        assert!(matches!(read(&writer), Err(VocabularyError::Id { got: 1, tokens: 1, .. })));
    }

    #[test]
    fn the_fixture_has_a_vocabulary() {
        let file = GgufFile::from_bytes(RandomModel::tiny().bytes()).unwrap();

        let vocabulary = read_vocabulary(&file).unwrap();

        assert_eq!(vocabulary.tokens.len(), RandomModel::tiny().vocab as usize);
    }
}
