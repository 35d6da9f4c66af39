//! The vocabulary's door.

use crate::ids::Token;
use crate::wire::bad::BadMessage;
use crate::wire::bad::ascending;
use crate::wire::bad::at_most;
use crate::wire::bad::finite;
use crate::wire::fetch::MAX_BLOB;
use crate::wire::layout::Reader;
use crate::wire::layout::put_count;
use crate::wire::layout::put_long;
use crate::wire::layout::put_short;
use crate::wire::manifest::MAX_VOCAB;
use crate::wire::text::is_printable;
use crate::wire::vocabulary::MAX_ENDS;
use crate::wire::vocabulary::MAX_MERGES;
use crate::wire::vocabulary::MAX_PRE;
use crate::wire::vocabulary::MAX_TEMPLATE;
use crate::wire::vocabulary::MAX_TOKEN_TEXT;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

const MARK: [u8; 4] = *b"BRGV";
const VERSION: u16 = 1;

impl TokenType {
    /// GGUF's number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// The type of GGUF's number, if it is one.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

impl Vocabulary {
    /// Reads a vocabulary and checks all of it.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMessage> {
        let (limit, got) = (MAX_BLOB as usize, bytes.len());
        if got > limit {
            return Err(BadMessage::TooLarge { message: "Vocabulary", limit, got });
        }
        let mut reader = Reader::new("Vocabulary", bytes);
        reader.begin(MARK, VERSION)?;
        let kind = read_kind(&mut reader)?;
        let tokens = read_texts(&mut reader, "tokens", MAX_VOCAB as usize)?;
        let types = reader.take("token types", tokens.len())?.iter().map(|&code| read_type(code));
        let vocabulary = Self {
            kind,
            types: types.collect::<Result<_, _>>()?,
            scores: read_scores(&mut reader, tokens.len())?,
            tokens,
            merges: read_texts(&mut reader, "merges", MAX_MERGES)?,
            bos: if reader.flag("bos")? { Some(Token(reader.u32("bos")?)) } else { None },
            add_bos: reader.flag("add bos")?,
            add_space_prefix: reader.flag("add space prefix")?,
            end_of_generation: read_ends(&mut reader)?,
            chat_template: read_template(&mut reader)?,
        };
        reader.end()?;
        vocabulary.check()?;
        Ok(vocabulary)
    }

    /// The vocabulary's one encoding. Other peers accept it if [`check`](Self::check) does.
    pub fn encode(&self) -> bytes::Bytes {
        let mut out = Vec::with_capacity(64 + 16 * (self.tokens.len() + self.merges.len()));
        out.extend_from_slice(&MARK);
        out.extend_from_slice(&VERSION.to_le_bytes());
        match &self.kind {
            VocabularyKind::SentencePiece => out.push(0),
            VocabularyKind::BytePairs { pre } => {
                out.push(1);
                put_short(&mut out, pre.as_bytes());
            }
        }
        put_texts(&mut out, &self.tokens);
        out.extend(self.types.iter().map(|kind| kind.code()));
        out.push((!self.scores.is_empty()).into());
        out.extend(self.scores.iter().flat_map(|score| score.to_le_bytes()));
        put_texts(&mut out, &self.merges);
        out.push(self.bos.is_some().into());
        out.extend(self.bos.iter().flat_map(|token| token.0.to_le_bytes()));
        out.push(self.add_bos.into());
        out.push(self.add_space_prefix.into());
        out.push(u8::try_from(self.end_of_generation.len()).unwrap_or(u8::MAX));
        out.extend(self.end_of_generation.iter().flat_map(|token| token.0.to_le_bytes()));
        out.push(self.chat_template.is_some().into());
        if let Some(template) = &self.chat_template {
            put_count(&mut out, template.len());
            out.extend_from_slice(template.as_bytes());
        }
        out.into()
    }

    /// Checks what whoever builds a vocabulary promises: lists of matching lengths, ids that exist, texts of bounded
    /// length.
    ///
    /// # Errors
    /// [`BadMessage`] with the first fault found.
    pub fn check(&self) -> Result<(), BadMessage> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(BadMessage::Missing { field: "tokens" });
        }
        at_most("tokens", count, MAX_VOCAB as usize)?;
        at_most("merges", self.merges.len(), MAX_MERGES)?;
        same_length("token types", count, self.types.len())?;
        if !self.scores.is_empty() {
            same_length("token scores", count, self.scores.len())?;
        }
        for &score in &self.scores {
            finite("token scores", score)?;
        }
        for text in self.tokens.iter().chain(&self.merges) {
            at_most("token text", text.len(), MAX_TOKEN_TEXT)?;
        }
        self.check_kind()?;
        at_most("end of generation", self.end_of_generation.len(), MAX_ENDS)?;
        ascending("end of generation", &self.end_of_generation, |&token| token)?;
        if self.end_of_generation.iter().chain(&self.bos).any(|token| token.0 as usize >= count) {
            return Err(BadMessage::OutOfRange { field: "special tokens" });
        }
        at_most("chat template", self.chat_template.as_ref().map_or(0, String::len), MAX_TEMPLATE)
    }

    fn check_kind(&self) -> Result<(), BadMessage> {
        match &self.kind {
            VocabularyKind::SentencePiece if self.merges.is_empty() => Ok(()),
            VocabularyKind::SentencePiece => Err(BadMessage::Unexpected { field: "merges" }),
            VocabularyKind::BytePairs { pre } => {
                at_most("pre-tokenizer", pre.len(), MAX_PRE)?;
                if !is_printable(pre) {
                    return Err(BadMessage::NotText { field: "pre-tokenizer" });
                }
                let pair = |merge: &String| merge.split_once(' ').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty());
                if self.merges.iter().all(pair) { Ok(()) } else { Err(BadMessage::NotText { field: "merges" }) }
            }
        }
    }
}

fn same_length(field: &'static str, expected: usize, got: usize) -> Result<(), BadMessage> {
    if expected == got {
        return Ok(());
    }
    Err(BadMessage::Length { field, expected: expected as u64, got: got as u64 })
}

fn read_kind(reader: &mut Reader<'_>) -> Result<VocabularyKind, BadMessage> {
    match reader.u8("kind")? {
        0 => Ok(VocabularyKind::SentencePiece),
        1 => {
            let length = usize::from(reader.u8("pre-tokenizer")?);
            Ok(VocabularyKind::BytePairs { pre: reader.text("pre-tokenizer", length)? })
        }
        got => Err(BadMessage::Unknown { field: "kind", got: got.into() }),
    }
}

fn read_type(code: u8) -> Result<TokenType, BadMessage> {
    TokenType::from_code(code).ok_or(BadMessage::Unknown { field: "token types", got: code.into() })
}

fn read_texts(reader: &mut Reader<'_>, field: &'static str, limit: usize) -> Result<Vec<String>, BadMessage> {
    let count = reader.u32(field)? as usize;
    let count = reader.count(field, count, limit, 2)?;
    let mut texts = Vec::with_capacity(count);
    for _ in 0..count {
        let length = usize::from(reader.u16(field)?);
        at_most("token text", length, MAX_TOKEN_TEXT)?;
        texts.push(reader.text(field, length)?);
    }
    Ok(texts)
}

fn put_texts(out: &mut Vec<u8>, texts: &[String]) {
    put_count(out, texts.len());
    for text in texts {
        put_long(out, text.as_bytes());
    }
}

fn read_scores(reader: &mut Reader<'_>, tokens: usize) -> Result<Vec<f32>, BadMessage> {
    if !reader.flag("token scores")? {
        return Ok(Vec::new());
    }
    let count = reader.count("token scores", tokens, MAX_VOCAB as usize, 4)?;
    // A vocabulary without tokens has no scores to announce; `check` refuses it.
    (0..count).map(|_| reader.f32("token scores")).collect()
}

fn read_ends(reader: &mut Reader<'_>) -> Result<Vec<Token>, BadMessage> {
    let count = usize::from(reader.u8("end of generation")?);
    let count = reader.count("end of generation", count, MAX_ENDS, 4)?;
    (0..count).map(|_| reader.u32("end of generation").map(Token)).collect()
}

fn read_template(reader: &mut Reader<'_>) -> Result<Option<String>, BadMessage> {
    if !reader.flag("chat template")? {
        return Ok(None);
    }
    let length = reader.u32("chat template")? as usize;
    at_most("chat template", length, MAX_TEMPLATE)?;
    reader.text("chat template", length).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::samples;

    fn refused(change: impl FnOnce(&mut Vocabulary)) -> bool {
        let mut vocabulary = samples::vocabulary();
        change(&mut vocabulary);
        if vocabulary.check().is_ok() {
            assert_eq!(Vocabulary::decode(&vocabulary.encode()), Ok(vocabulary.clone()));
        }
        vocabulary.check().is_err()
    }

    #[test]
    fn both_kinds_read_back_what_they_say() {
        assert!(!refused(|_| {}));
        assert!(!refused(|vocabulary| {
            vocabulary.kind = VocabularyKind::SentencePiece;
            vocabulary.merges.clear();
            vocabulary.scores = vec![-0.0, 1.5, -1e9];
            (vocabulary.bos, vocabulary.chat_template) = (None, None);
        }));
    }

    #[test]
    fn lists_match_and_ids_exist() {
        let changes: [fn(&mut Vocabulary); 10] = [
            |vocabulary| vocabulary.tokens.clear(),
            |vocabulary| vocabulary.types.truncate(1),
            |vocabulary| vocabulary.scores = vec![1.0],
            |vocabulary| vocabulary.scores = vec![f32::NAN; 3],
            |vocabulary| vocabulary.bos = Some(Token(3)),
            |vocabulary| vocabulary.end_of_generation = vec![Token(3)],
            |vocabulary| vocabulary.end_of_generation = vec![Token(2), Token(1)],
            |vocabulary| vocabulary.merges = vec!["ab".to_owned()],
            |vocabulary| vocabulary.kind = VocabularyKind::SentencePiece,
            |vocabulary| vocabulary.tokens[0] = "a".repeat(MAX_TOKEN_TEXT + 1),
        ];

        for (place, change) in changes.into_iter().enumerate() {
            assert!(refused(change), "change {place}");
        }
    }

    #[test]
    fn a_count_without_its_bytes_is_refused_before_anything_is_allocated() {
        let mut bytes = samples::vocabulary().encode().to_vec();
        let count = 4 + 2 + 1 + 1 + "llama-bpe".len();
        bytes[count..count + 4].copy_from_slice(&2_000_000_u32.to_le_bytes());

        let fault = Vocabulary::decode(&bytes);

        assert!(matches!(fault, Err(BadMessage::Truncated { field: "tokens", .. })), "{fault:?}");
    }

    #[test]
    fn every_token_type_has_ggufs_number() {
        for code in 1..=6 {
            assert_eq!(TokenType::from_code(code).map(TokenType::code), Some(code));
        }
        assert_eq!(TokenType::from_code(0), None);
        assert_eq!(TokenType::from_code(7), None);
    }
}
