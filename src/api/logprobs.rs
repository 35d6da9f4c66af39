//! Log-probabilities in OpenAI's two forms.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::daemon::handle::TokenView;

/// What stands for minus infinity, which JSON cannot say; OpenAI's own figure.
const LEAST: f32 = -9_999.0;

/// The chat form: a list with one object per token.
pub(crate) fn chat(tokens: &[TokenView]) -> Value {
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut one = entry(&token.bytes, token.logprob.unwrap_or(LEAST));
            one["top_logprobs"] = token.top.iter().map(|(_, bytes, logprob)| entry(bytes, *logprob)).collect();
            one
        })
        .collect();
    json!({ "content": content, "refusal": null })
}

/// The older form: parallel lists. `offset` counts the characters of text before these tokens.
pub(crate) fn completion(tokens: &[TokenView], offset: usize) -> Value {
    let (mut offsets, mut end) = (Vec::with_capacity(tokens.len()), offset);
    for token in tokens {
        offsets.push(end);
        end += text(&token.bytes).chars().count();
    }
    json!({
        "tokens": tokens.iter().map(|token| text(&token.bytes)).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| finite(token.logprob.unwrap_or(LEAST))).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// The chosen token stands among the top ones, also where it is not one of them.
fn top(token: &TokenView) -> Value {
    let chosen = (&token.bytes, token.logprob.unwrap_or(LEAST));
    let top = token.top.iter().map(|(_, bytes, logprob)| (bytes, *logprob)).chain([chosen]);
    Value::Object(top.map(|(bytes, logprob)| (text(bytes), json!(finite(logprob)))).collect::<Map<_, _>>())
}

fn entry(bytes: &[u8], logprob: f32) -> Value {
    json!({ "token": text(bytes), "logprob": finite(logprob), "bytes": bytes })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}
