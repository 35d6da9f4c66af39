//! What a request to the OpenAI endpoints asks for: every parameter is understood or refused.
//!
//! Accepted because they change nothing about an answer: `user`, `safety_identifier`, `prompt_cache_key`, `metadata`,
//! and the neutral values of `n`, `best_of`, `echo`, `store`, `tools`, `tool_choice`, `parallel_tool_calls`,
//! `response_format`, `modalities` and `service_tier`. `redundancy`, `patience` and `min_quant` are
//! additions of ours.

use serde_json::Value;
use serde_json::json;

use crate::amounts::Span;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::config::MAX_PATIENCE;
use crate::daemon::handle::ChatMessage;
use crate::daemon::handle::GenerateRequest;
use crate::daemon::handle::Prompt;
use crate::ids::Token;
use crate::node::io::Redundancy;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::wire::control::SamplingParameters;

/// What OpenAI's older endpoint generates where `max_tokens` is not given.
const COMPLETION_TOKENS: u32 = 16;

/// The most stop strings, as OpenAI's.
pub(crate) const MAX_STOPS: usize = 4;

/// The longest stop string, in bytes (arbitrary): the text that may have to be withheld.
pub(crate) const MAX_STOP_BYTES: usize = 256;

/// The most biased tokens.
pub(crate) const MAX_BIASES: usize = 1_024;

/// The most top log-probabilities per token, as OpenAI's.
const MAX_TOP: u32 = 20;

/// Which of the two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
}

/// How the answer is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// In one piece.
    Whole,
    /// As it comes.
    Stream,
    /// As it comes, with the usage at the end.
    StreamWithUsage,
}

/// A request, understood.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) request: GenerateRequest,
    pub(crate) delivery: Delivery,
}

impl Asked {
    /// # Errors
    /// 400 naming the first parameter that is unknown, ill-formed or asks for what is not offered.
    pub(crate) fn parse(form: Form, body: &[u8], random_seed: u64) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let prompt = match form {
            Form::Chat => Prompt::Chat(messages(&mut fields)?),
            Form::Completion => prompt(&mut fields)?,
        };
        let logprobs = match form {
            Form::Chat => chat_logprobs(&mut fields)?,
            Form::Completion => fields.integer("logprobs", 0..=MAX_TOP)?,
        };
        let request = GenerateRequest {
            model: fields.string("model")?,
            prompt,
            parameters: SamplingParameters {
                logprobs: logprobs.and_then(|top| u8::try_from(top).ok()),
                ..sampling(&mut fields, random_seed)?
            },
            max_tokens: max_tokens(form, &mut fields)?,
            stop: stop(&mut fields)?,
            wire: WireDtype::F32,
            trust: None,
            patience: fields.integer("patience", 0..=MAX_PATIENCE)?.map(|seconds| Span::seconds(seconds.into())),
            redundancy: redundancy(&mut fields)?,
            min_quant: fields.string("min_quant")?.map(|text| min_quant(&text)).transpose()?,
        };
        let delivery = delivery(&mut fields)?;
        take_neutral(form, &mut fields)?;
        fields.finish("")?;
        Ok(Self { request, delivery })
    }
}

/// Ours: how many chains compute the answer.
fn redundancy(fields: &mut Fields) -> Result<Redundancy, ApiError> {
    let chains = fields.integer("redundancy", 1..=Redundancy::MOST.into())?;
    Ok(chains.and_then(|chains| Redundancy::new(u8::try_from(chains).ok()?)).unwrap_or(Redundancy::NONE))
}

/// Ours: the coarsest format that weights may have.
pub(crate) fn min_quant(text: &str) -> Result<WeightFormat, ApiError> {
    let names = || WeightFormat::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    text.parse().map_err(|_| ApiError::invalid("min_quant", format!("min_quant must be one of {}", names())))
}

fn sampling(fields: &mut Fields, random_seed: u64) -> Result<SamplingParameters, ApiError> {
    let none = SamplingParameters::default();
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
    Ok(SamplingParameters {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_k: fields.integer("top_k", 0..=u32::MAX)?.unwrap_or(none.top_k),
        // OpenAI's 0 leaves the most probable token only, as any fraction below its probability does.
        top_p: top_p.max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(none.min_p),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?.unwrap_or(none.repetition_penalty),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(none.frequency_penalty),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(none.presence_penalty),
        penalty_window: none.penalty_window,
        logit_bias: logit_bias(fields)?,
        logprobs: None,
        seed: seed(fields)?.unwrap_or(random_seed),
    })
}

/// Any 64-bit integer; a negative one counts as its two's complement.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
    seed.map(Some).ok_or_else(|| ApiError::invalid("seed", "seed must be a 64-bit integer"))
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(Token, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    let Some(value) = fields.take(NAME) else { return Ok(Vec::new()) };
    let bad = || ApiError::invalid(NAME, "logit_bias must map token ids to numbers between -100 and 100");
    let biases = value.as_object().ok_or_else(bad)?;
    if biases.len() > MAX_BIASES {
        return Err(ApiError::invalid(NAME, format!("logit_bias has at most {MAX_BIASES} tokens")));
    }
    let mut pairs = Vec::with_capacity(biases.len());
    for (token, bias) in biases {
        let token = token.parse().map_err(|_| bad())?;
        let bias = bias.as_f64().map(|bias| bias as f32).filter(|bias| (-100.0..=100.0).contains(bias));
        pairs.push((Token(token), bias.ok_or_else(bad)?));
    }
    pairs.sort_by_key(|(token, _)| *token);
    if pairs.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(ApiError::invalid(NAME, "logit_bias names a token twice"));
    }
    Ok(pairs)
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true")),
    }
}

fn max_tokens(form: Form, fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let old = fields.integer("max_tokens", 1..=u32::MAX)?;
    match form {
        Form::Completion => Ok(Some(old.unwrap_or(COMPLETION_TOKENS))),
        Form::Chat => match (old, fields.integer("max_completion_tokens", 1..=u32::MAX)?) {
            (Some(old), Some(new)) if old != new => {
                let message = "max_tokens and max_completion_tokens are two names of one limit, and differ";
                Err(ApiError::invalid("max_tokens", message))
            }
            (old, new) => Ok(new.or(old)),
        },
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "stop";
    let bad = || ApiError::invalid(NAME, "stop must be a string or a list of strings");
    let stops = match fields.take(NAME) {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(texts)) => {
            texts.into_iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(bad)).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(bad()),
    };
    check_stops(&stops)?;
    Ok(stops)
}

/// # Errors
/// 400 if there are too many, or one is empty or too long.
pub(crate) fn check_stops(stops: &[String]) -> Result<(), ApiError> {
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("stop has at most {MAX_STOPS} strings, got {}", stops.len())));
    }
    if stops.iter().any(|stop| !(1..=MAX_STOP_BYTES).contains(&stop.len())) {
        return Err(ApiError::invalid("stop", format!("a stop string has 1 to {MAX_STOP_BYTES} bytes")));
    }
    Ok(())
}

fn delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    const NAME: &str = "stream_options";
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let Some(options) = fields.take(NAME) else {
        return Ok(if stream { Delivery::Stream } else { Delivery::Whole });
    };
    let Value::Object(options) = options else {
        return Err(ApiError::invalid(NAME, "stream_options must be an object"));
    };
    if !stream {
        return Err(ApiError::invalid(NAME, "stream_options needs stream to be true"));
    }
    let mut options = Fields::of(options);
    let usage = options.boolean("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false)])?;
    options.finish(NAME)?;
    Ok(if usage { Delivery::StreamWithUsage } else { Delivery::Stream })
}

fn take_neutral(form: Form, fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.string(name)?;
    }
    fields.only("n", &[json!(1)])?;
    match form {
        Form::Completion => {
            fields.only("best_of", &[json!(1)])?;
            fields.only("echo", &[json!(false)])?;
            fields.only("suffix", &[json!("")])
        }
        Form::Chat => {
            if fields.take("metadata").is_some_and(|value| !value.is_object()) {
                return Err(ApiError::invalid("metadata", "metadata must be an object"));
            }
            fields.only("store", &[json!(false)])?;
            fields.only("tools", &[json!([])])?;
            fields.only("tool_choice", &[json!("none")])?;
            fields.only("parallel_tool_calls", &[json!(true), json!(false)])?;
            fields.only("response_format", &[json!({ "type": "text" })])?;
            fields.only("modalities", &[json!(["text"])])?;
            fields.only("service_tier", &[json!("auto"), json!("default")])
        }
    }
}

fn prompt(fields: &mut Fields) -> Result<Prompt, ApiError> {
    const NAME: &str = "prompt";
    let bad = || ApiError::invalid(NAME, "prompt must be a string or a list of token ids");
    match fields.take(NAME) {
        None => Err(ApiError::invalid(NAME, "prompt is missing")),
        Some(Value::String(text)) => Ok(Prompt::Raw(text)),
        Some(Value::Array(items)) => match items.first() {
            None => Err(bad()),
            Some(Value::Number(_)) => tokens(&items).map(Prompt::Tokens).ok_or_else(bad),
            Some(_) if items.len() > 1 => {
                Err(ApiError::unsupported(NAME, "several prompts in one request are not supported"))
            }
            Some(_) => match (items[0].as_str(), items[0].as_array()) {
                (Some(text), _) => Ok(Prompt::Raw(text.to_owned())),
                (_, Some(ids)) if !ids.is_empty() => tokens(ids).map(Prompt::Tokens).ok_or_else(bad),
                _ => Err(bad()),
            },
        },
        Some(_) => Err(bad()),
    }
}

fn tokens(ids: &[Value]) -> Option<Vec<Token>> {
    ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).map(Token)).collect()
}

fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    const NAME: &str = "messages";
    match fields.take(NAME) {
        None => Err(ApiError::invalid(NAME, "messages is missing")),
        Some(Value::Array(items)) if !items.is_empty() => {
            items.into_iter().enumerate().map(|(index, item)| message(&format!("{NAME}[{index}]"), item)).collect()
        }
        Some(_) => Err(ApiError::invalid(NAME, "messages must be a list of at least one message")),
    }
}

fn message(place: &str, item: Value) -> Result<ChatMessage, ApiError> {
    let Value::Object(item) = item else {
        return Err(ApiError::invalid(place, format!("{place} must be an object")));
    };
    let mut fields = Fields::of(item);
    let param = format!("{place}.role");
    let role = match fields.take("role").as_ref().and_then(Value::as_str) {
        // OpenAI's newer name for the system's role.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool" | "function") => return Err(ApiError::unsupported(&param, "tools are not supported")),
        _ => return Err(ApiError::invalid(&param, "role must be system, developer, user or assistant")),
    };
    let content = content(&format!("{place}.content"), fields.take("content"))?;
    for empty in ["name", "refusal", "audio", "function_call"] {
        fields.only(empty, &[]).map_err(|error| error.about(&format!("{place}.{empty}")))?;
    }
    for empty in ["tool_calls", "annotations"] {
        fields.only(empty, &[json!([])]).map_err(|error| error.about(&format!("{place}.{empty}")))?;
    }
    fields.finish(place)?;
    Ok(ChatMessage { role: role.to_owned(), content })
}

fn content(place: &str, value: Option<Value>) -> Result<String, ApiError> {
    let bad = || ApiError::invalid(place, format!("{place} must be a string or a list of text parts"));
    match value {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut whole = String::new();
            for part in parts {
                let Value::Object(part) = part else { return Err(bad()) };
                let mut part = Fields::of(part);
                match part.take("type").as_ref().and_then(Value::as_str) {
                    Some("text") => whole.push_str(&part.string("text")?.ok_or_else(bad)?),
                    Some(_) => return Err(ApiError::unsupported(place, "only parts of type text are supported")),
                    None => return Err(bad()),
                }
                part.finish(place)?;
            }
            Ok(whole)
        }
        _ => Err(bad()),
    }
}
