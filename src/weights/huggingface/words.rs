//! The vocabulary of a folder: tokens, types, ends and the chat template, from the files that each say a part of it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::ids::Token;
use crate::weights::huggingface::GENERATION;
use crate::weights::huggingface::TEMPLATE;
use crate::weights::huggingface::TOKENIZER;
use crate::weights::huggingface::TOKENIZER_CONFIG;
use crate::weights::huggingface::error::FolderError;
use crate::weights::huggingface::json;
use crate::weights::huggingface::json::Object;
use crate::weights::huggingface::pipeline;
use crate::weights::huggingface::pipeline::Words;
use crate::weights::huggingface::scores::scores;
use crate::weights::huggingface::tokenizer::File;
use crate::weights::huggingface::tokenizer::Merge;
use crate::weights::sentencepiece::byte_of;
use crate::weights::vocabulary::named_ends;
use crate::wire::manifest::MAX_VOCAB;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

/// Reads the vocabulary.
///
/// - `count`: token ids of the model, of which the last may have no token
pub(super) fn read(folder: &Path, config: &Object, count: u32) -> Result<Vocabulary, FolderError> {
    if count > MAX_VOCAB {
        return Err(FolderError::words(format!("at most {MAX_VOCAB} tokens are accepted, got {count}")));
    }
    let file = File::read(&folder.join(TOKENIZER))?;
    let settings = Object::read_if_there(&folder.join(TOKENIZER_CONFIG))?;
    let words = pipeline::words(file.normalizer.as_ref(), file.pre_tokenizer.as_ref(), file.model.ignore_merges)?;
    let (tokens, types) = tokens(&file, &words, count as usize)?;
    let beginning = beginning(&file, &settings, config, &tokens)?;
    let (scores, merges) = match &words {
        Words::Bytes { .. } => (Vec::new(), lines(&file.model.merges)?),
        Words::Whole { .. } => (scores(&file.model.vocab, &file.model.merges, &types)?, Vec::new()),
    };
    Ok(Vocabulary {
        kind: match words {
            Words::Bytes { pre } => VocabularyKind::BytePairs { pre: pre.to_owned() },
            Words::Whole { .. } => VocabularyKind::SentencePiece,
        },
        end_of_generation: ends(folder, config, &settings, &tokens, &types)?,
        chat_template: chat_template(folder, &settings)?,
        bos: beginning.token,
        add_bos: beginning.is_added,
        add_space_prefix: words == Words::Whole { add_space_prefix: true },
        tokens,
        types,
        scores,
        merges,
    })
}

/// The text and the type of each token.
fn tokens(file: &File, words: &Words, count: usize) -> Result<(Vec<String>, Vec<TokenType>), FolderError> {
    let is_whole = matches!(words, Words::Whole { .. });
    let mut tokens: Vec<Option<(&str, TokenType)>> = vec![None; count];
    for (text, id) in &file.model.vocab {
        let kind = if is_whole && byte_of(text).is_some() { TokenType::Byte } else { TokenType::Normal };
        let slot = slot(&mut tokens, text, *id)?;
        if slot.replace((text, kind)).is_some() {
            return Err(FolderError::words(format!("two tokens have the id {id}")));
        }
    }
    for added in &file.added_tokens {
        if is_whole && added.normalized && !added.special {
            return Err(FolderError::tokenizer(format!("the token \"{}\" that is looked for late", added.content)));
        }
        let kind = if added.special { TokenType::Control } else { TokenType::UserDefined };
        *slot(&mut tokens, &added.content, added.id)? = Some((&added.content, kind));
    }
    if let Some(unknown) = &file.model.unk_token {
        let unknown = tokens.iter_mut().flatten().find(|(text, _)| text == unknown);
        unknown.into_iter().for_each(|(_, kind)| *kind = TokenType::Unknown);
    }
    let bytes = tokens.iter().flatten().filter(|(_, kind)| *kind == TokenType::Byte).count();
    if is_whole && !(file.model.byte_fallback && bytes == 256) {
        return Err(FolderError::tokenizer("unknown characters that are not spelt in bytes"));
    }
    let named = |(id, token): (usize, Option<(&str, TokenType)>)| match token {
        Some((text, kind)) => (text.to_owned(), kind),
        // As GGUF's converter calls the rows of an embedding that is larger than the vocabulary.
        None => (format!("[PAD{id}]"), TokenType::Unused),
    };
    Ok(tokens.into_iter().enumerate().map(named).unzip())
}

fn slot<'a, T>(tokens: &'a mut [T], text: &str, id: u32) -> Result<&'a mut T, FolderError> {
    let count = tokens.len();
    let beyond = || FolderError::words(format!("the token \"{text}\" has the id {id}, the model has {count}"));
    tokens.get_mut(id as usize).ok_or_else(beyond)
}

fn lines(merges: &[Merge]) -> Result<Vec<String>, FolderError> {
    let line = |merge: &Merge| {
        let (left, right) = merge.pair()?;
        // Where one of the two had a space, nobody could read the line.
        (!left.contains(' ') && !right.contains(' ')).then(|| format!("{left} {right}"))
    };
    let lines = merges.iter().map(line).collect::<Option<_>>();
    lines.ok_or_else(|| FolderError::words("a merge is not of two tokens"))
}

/// What comes before a text.
struct Beginning {
    token: Option<Token>,
    is_added: bool,
}

fn beginning(file: &File, settings: &Object, config: &Object, tokens: &[String]) -> Result<Beginning, FolderError> {
    if settings.flag("add_eos_token")? == Some(true) {
        return Err(FolderError::tokenizer("an end behind every text"));
    }
    let added = pipeline::begins_with(file.post_processor.as_ref())?.map(Token);
    let named = match settings.raw("bos_token") {
        Some(value) => named(value, tokens)?,
        None => config.value("bos_token_id").and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()).map(Token),
    };
    let token = added.or(named);
    if let Some(Token(id)) = token.filter(|token| token.0 as usize >= tokens.len()) {
        return Err(FolderError::words(format!("texts begin with token {id}, the model has {}", tokens.len())));
    }
    let is_added = settings.flag("add_bos_token")?.unwrap_or(added.is_some()) && token.is_some();
    Ok(Beginning { token, is_added })
}

/// The token of a text, which is given as such or as an object with it; none for null.
fn named(value: &Value, tokens: &[String]) -> Result<Option<Token>, FolderError> {
    let Some(text) = value.as_str().or_else(|| value["content"].as_str()) else { return Ok(None) };
    let found = tokens.iter().position(|token| token == text).map(|index| Token(index as u32));
    found.map(Some).ok_or_else(|| FolderError::words(format!("there is no token \"{text}\"")))
}

/// Ids that end a generation, by whichever file names them, and those that are known by their text.
fn ends(
    folder: &Path,
    config: &Object,
    settings: &Object,
    tokens: &[String],
    types: &[TokenType],
) -> Result<Vec<Token>, FolderError> {
    let generation = Object::read_if_there(&folder.join(GENERATION))?;
    let mut ends: BTreeSet<Token> = named_ends(tokens, types).collect();
    for file in [config, &generation] {
        match file.value("eos_token_id") {
            None => {}
            Some(Value::Array(ids)) => {
                ends.extend(ids.iter().map(|id| end(id, tokens.len())).collect::<Result<Vec<_>, _>>()?)
            }
            Some(id) => ends.extend([end(id, tokens.len())?]),
        }
    }
    if let Some(value) = settings.value("eos_token") {
        ends.extend(named(value, tokens)?);
    }
    Ok(ends.into_iter().collect())
}

fn end(id: &Value, count: usize) -> Result<Token, FolderError> {
    let known = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < count);
    known.map(Token).ok_or_else(|| FolderError::words(format!("{id} ends a generation, the model has {count} tokens")))
}

/// The template of chats, from its own file or from among the settings.
fn chat_template(folder: &Path, settings: &Object) -> Result<Option<String>, FolderError> {
    if let Some(template) = json::text(&folder.join(TEMPLATE))? {
        return Ok(Some(template));
    }
    let is_default = |template: &&Value| template["name"] == "default";
    Ok(match settings.value("chat_template") {
        Some(Value::Array(templates)) => {
            templates.iter().find(is_default).and_then(|template| template["template"].as_str()).map(str::to_owned)
        }
        template => template.and_then(Value::as_str).map(str::to_owned),
    })
}
