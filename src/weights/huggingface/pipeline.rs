//! What surrounds the merges in `tokenizer.json`: normaliser, pre-tokenizer and post-processor, recognised where they are what our
//! tokenizer does.

use serde_json::Value;

use crate::weights::huggingface::error::FolderError;
use crate::weights::sentencepiece::SPACE;
use crate::weights::splitter;
use crate::weights::splitter::Normal;

/// What is done to spaces and words before the merges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// Byte-level, with the name of the pre-tokenizer.
    Bytes {
        /// As GGUF has it.
        pre: &'static str,
    },
    /// SentencePiece's: spaces are a character like others.
    Whole {
        /// Whether one is put before a text.
        add_space_prefix: bool,
    },
}

/// Recognises the words.
///
/// - `whole_words`: whether words that are tokens are taken as they are
pub(super) fn words(
    normalizer: Option<&Value>,
    pre_tokenizer: Option<&Value>,
    whole_words: bool,
) -> Result<Words, FolderError> {
    let (normal, pre) = (steps(normalizer, "normalizers"), steps(pre_tokenizer, "pretokenizers"));
    if pre.last().is_some_and(|step| kind(step) == "ByteLevel") {
        return byte_level(&normal, &pre, whole_words);
    }
    let prefix = match (normal.as_slice(), pre.as_slice()) {
        ([replace], []) if replaces_spaces(replace) => false,
        ([prepend, replace], []) if prepends_space(prepend) && replaces_spaces(replace) => true,
        ([], [metaspace]) if kind(metaspace) == "Metaspace" => metaspace_prefix(metaspace)?,
        (normal, pre) => {
            let all: Vec<&str> = normal.iter().chain(pre).map(|step| kind(step)).collect();
            return Err(FolderError::tokenizer(format!("the steps {}", all.join(", "))));
        }
    };
    if whole_words {
        return Err(FolderError::tokenizer("merges that are ignored, without bytes"));
    }
    Ok(Words::Whole { add_space_prefix: prefix })
}

/// The token that the post-processor puts before a text, if it does nothing else.
pub(super) fn begins_with(post_processor: Option<&Value>) -> Result<Option<u32>, FolderError> {
    let mut begins = None;
    for step in steps(post_processor, "processors") {
        match kind(step) {
            "ByteLevel" => {}
            "TemplateProcessing" if begins.is_none() => begins = beginning(step)?,
            other => return Err(FolderError::tokenizer(format!("the post-processor {other}"))),
        }
    }
    Ok(begins)
}

/// A step, or the steps of a sequence, in order.
fn steps<'a>(step: Option<&'a Value>, list: &str) -> Vec<&'a Value> {
    match step {
        None | Some(Value::Null) => Vec::new(),
        Some(step) if kind(step) == "Sequence" => step[list].as_array().into_iter().flatten().collect(),
        Some(step) => vec![step],
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or("without a type")
}

/// Whether a setting is not there or false.
fn is_off(step: &Value, key: &str) -> bool {
    matches!(step[key], Value::Null | Value::Bool(false))
}

fn byte_level(normal: &[&Value], pre: &[&Value], whole_words: bool) -> Result<Words, FolderError> {
    let normal = match normal {
        [] => Normal::AsIs,
        [step] if kind(step) == "NFC" => Normal::Composed,
        [step, ..] => return Err(FolderError::tokenizer(format!("the normaliser {}", kind(step)))),
    };
    let (Some((last, splits)), true) = (pre.split_last(), pre.iter().all(|step| is_off(step, "add_prefix_space")))
    else {
        return Err(FolderError::tokenizer("a space before texts in bytes"));
    };
    let mut patterns = splits.iter().map(|step| pattern(step)).collect::<Result<Vec<_>, _>>()?;
    // Missing means true.
    if !matches!(last["use_regex"], Value::Bool(false)) {
        patterns.push(splitter::GPT2);
    }
    let pre = splitter::named(&patterns, whole_words, normal);
    let pre = pre.ok_or_else(|| FolderError::tokenizer(format!("the word patterns {patterns:?}")))?;
    Ok(Words::Bytes { pre })
}

fn pattern(step: &Value) -> Result<&str, FolderError> {
    match kind(step) {
        "Digits" if step["individual_digits"] == Value::Bool(true) => Ok(splitter::DIGIT),
        "Split" if step["behavior"] == "Isolated" && is_off(step, "invert") => step["pattern"]["Regex"]
            .as_str()
            .ok_or_else(|| FolderError::tokenizer("splits by a text instead of a pattern")),
        other => Err(FolderError::tokenizer(format!("the pre-tokenizer {other}"))),
    }
}

fn replaces_spaces(step: &Value) -> bool {
    kind(step) == "Replace" && step["pattern"]["String"] == " " && is_space(&step["content"])
}

fn prepends_space(step: &Value) -> bool {
    kind(step) == "Prepend" && is_space(&step["prepend"])
}

fn is_space(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.chars().eq([SPACE]))
}

fn metaspace_prefix(step: &Value) -> Result<bool, FolderError> {
    if !is_space(&step["replacement"]) || !matches!(step["split"], Value::Bool(false)) {
        return Err(FolderError::tokenizer("a Metaspace that cuts texts into words"));
    }
    match step["prepend_scheme"].as_str() {
        Some("always") => Ok(true),
        Some("never") => Ok(false),
        None if step["add_prefix_space"] == Value::Bool(false) => Ok(false),
        None if step["add_prefix_space"] == Value::Bool(true) => Ok(true),
        other => Err(FolderError::tokenizer(format!("the prefix scheme \"{}\"", other.unwrap_or("unknown")))),
    }
}

/// The token before the text in a template of nothing else.
fn beginning(step: &Value) -> Result<Option<u32>, FolderError> {
    let pieces = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_text = |piece: &Value| piece["Sequence"]["id"] == "A";
    match pieces {
        [text] if is_text(text) => Ok(None),
        [special, text] if is_text(text) => {
            let name = special["SpecialToken"]["id"].as_str().unwrap_or_default();
            let ids = step["special_tokens"][name]["ids"].as_array().map(Vec::as_slice).unwrap_or_default();
            let id = if ids.len() == 1 { ids[0].as_u64().and_then(|id| u32::try_from(id).ok()) } else { None };
            id.map(Some).ok_or_else(|| FolderError::words(format!("the token \"{name}\" before texts has no id")))
        }
        _ => Err(FolderError::tokenizer("a template around texts that is more than a beginning")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pre_tokenizers_of_bytes_are_known_by_their_patterns() {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        let sequence = |steps: &[Value]| json!({"type": "Sequence", "pretokenizers": steps});
        let of = |normal: Value, pre: Value, whole| words(Some(&normal), Some(&pre), whole);

        let llama = sequence(&[split(splitter::LLAMA3), bytes.clone()]);
        let qwen = sequence(&[split(splitter::QWEN2), bytes]);
        let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let digits = sequence(&[json!({"type": "Digits", "individual_digits": true}), plain.clone()]);
        let nfc = json!({"type": "NFC"});

        assert_eq!(of(json!(null), llama.clone(), true).unwrap(), Words::Bytes { pre: "llama-bpe" });
        assert_eq!(of(json!(null), llama, false).unwrap(), Words::Bytes { pre: "dbrx" });
        assert_eq!(of(nfc.clone(), qwen.clone(), false).unwrap(), Words::Bytes { pre: "qwen2" });
        assert_eq!(of(json!(null), qwen, false).unwrap(), Words::Bytes { pre: "stablelm2" });
        assert_eq!(of(json!(null), plain.clone(), false).unwrap(), Words::Bytes { pre: "gpt-2" });
        assert_eq!(of(json!(null), digits, false).unwrap(), Words::Bytes { pre: "smollm" });
        assert!(of(nfc, plain.clone(), false).is_err(), "no such family");
        assert!(of(json!({"type": "NFKC"}), plain.clone(), false).is_err());
        assert!(of(json!(null), sequence(&[split("x+"), plain]), false).is_err());
    }

    #[test]
    fn spaces_of_sentencepiece_are_known_in_every_form_that_ours_has() {
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let both = json!({"type": "Sequence", "normalizers": [prepend, replace]});
        let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        let pre = |step: Value| words(None, Some(&step), false);

        assert_eq!(words(Some(&both), None, false).unwrap(), Words::Whole { add_space_prefix: true });
        assert_eq!(words(Some(&replace), None, false).unwrap(), Words::Whole { add_space_prefix: false });
        assert_eq!(pre(metaspace("always", false)).unwrap(), Words::Whole { add_space_prefix: true });
        assert!(pre(metaspace("first", false)).unwrap_err().to_string().contains("\"first\""));
        assert!(pre(metaspace("always", true)).is_err());
        assert!(words(Some(&prepend), None, false).is_err());
        assert!(words(None, None, false).is_err());
    }

    #[test]
    fn a_template_may_put_one_token_before_a_text() {
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "special_tokens": {"<s>": {"ids": [1]}}});
        let (begin, text) = (json!({"SpecialToken": {"id": "<s>"}}), json!({"Sequence": {"id": "A"}}));
        let bytes = json!({"type": "ByteLevel"});
        let of = |steps: &[Value]| begins_with(Some(&json!({"type": "Sequence", "processors": steps})));

        assert_eq!(of(&[bytes, template(json!([begin, text]))]).unwrap(), Some(1));
        assert_eq!(of(&[template(json!([text]))]).unwrap(), None);
        assert_eq!(begins_with(None).unwrap(), None);
        assert!(of(&[template(json!([text, begin]))]).is_err());
        assert!(of(&[template(json!([{"SpecialToken": {"id": "<x>"}}, text]))]).is_err());
        assert!(of(&[json!({"type": "BertProcessing"})]).is_err());
    }
}
