//! Answers in OpenAI's forms: in one piece or as a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::Event;
use axum::response::sse::KeepAlive;
use axum::response::sse::Sse;
use serde_json::Value;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::api::error::ApiError;
use crate::api::logprobs;
use crate::api::request::Delivery;
use crate::api::request::Form;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::Generation;
use crate::daemon::handle::GenerationEvent;
use crate::daemon::handle::TokenView;
use crate::daemon::views::SummaryView;

/// What stands in every part of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    pub(crate) form: Form,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) logprobs: bool,
}

/// Waits for the chain to be leased, so that what fails before has a status of its own.
///
/// # Errors
/// The failure, if there was one.
pub(crate) async fn started(generation: &mut Generation) -> Result<Vec<(String, String)>, ApiError> {
    match generation.events.recv().await {
        Some(GenerationEvent::Started(chain)) => Ok(chain),
        Some(GenerationEvent::Failed(error)) => Err(error.into()),
        Some(
            GenerationEvent::Text { .. }
            | GenerationEvent::Waiting(_)
            | GenerationEvent::Mended(_)
            | GenerationEvent::Finished(_),
        )
        | None => Err(GenerateError::Stopped.into()),
    }
}

/// The whole answer, once it is complete.
///
/// # Errors
/// The failure: a part of an answer is not an answer.
pub(crate) async fn whole(heading: &Heading, mut generation: Generation) -> Result<Response, ApiError> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match generation.events.recv().await {
            Some(GenerationEvent::Started(_) | GenerationEvent::Waiting(_) | GenerationEvent::Mended(_)) => {}
            Some(GenerationEvent::Text { text: more, tokens: new }) => {
                text.push_str(&more);
                tokens.extend(new);
            }
            Some(GenerationEvent::Finished(summary)) => {
                return Ok(Json(heading.whole(&text, &tokens, &summary)).into_response());
            }
            Some(GenerationEvent::Failed(error)) => return Err(error.into()),
            None => return Err(GenerateError::Stopped.into()),
        }
    }
}

/// The answer as it comes. When the client closes the connection the stream is dropped, and the generation with it.
pub(crate) fn stream(
    heading: Heading,
    delivery: Delivery,
    generation: Generation,
    slot: OwnedSemaphorePermit,
) -> Response {
    let mut ready = VecDeque::new();
    if heading.form == Form::Chat {
        let opening = json!({ "role": "assistant", "content": "" });
        ready.push_back(heading.chunk(heading.choice("delta", opening, None, None), delivery));
    }
    let answer =
        Answer { heading, delivery, generation, offset: 0, ready, remark: None, state: Progress::Open, _slot: slot };
    let events = futures::stream::unfold(answer, |mut answer| async move {
        let event = answer.next().await?;
        Some((Ok::<_, Infallible>(event), answer))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// Whether an object is all of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Chunk,
}

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// More comes.
    Open,
    /// Complete; only `[DONE]` is missing.
    Complete,
    /// Nothing comes any more.
    Over,
}

/// A stream of events under way.
#[derive(Debug)]
struct Answer {
    heading: Heading,
    delivery: Delivery,
    generation: Generation,
    /// Characters sent so far, for the older form's `text_offset`.
    offset: usize,
    /// Made but not yet sent; at most two at a time.
    ready: VecDeque<Value>,
    /// What goes on behind the answer, for whoever looks at the stream itself; clients skip it.
    remark: Option<String>,
    state: Progress,
    /// Counts the request as long as it streams.
    _slot: OwnedSemaphorePermit,
}

impl Answer {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(value) = self.ready.pop_front() {
                return Some(Event::default().data(value.to_string()));
            }
            if let Some(remark) = self.remark.take() {
                return Some(Event::default().comment(remark));
            }
            match self.state {
                Progress::Open => self.advance().await,
                Progress::Complete => {
                    self.state = Progress::Over;
                    return Some(Event::default().data("[DONE]"));
                }
                Progress::Over => return None,
            }
        }
    }

    async fn advance(&mut self) {
        match self.generation.events.recv().await {
            Some(GenerationEvent::Started(_)) => {}
            Some(GenerationEvent::Text { text, tokens }) => self.on_text(&text, &tokens),
            Some(GenerationEvent::Waiting(failure)) => self.remark = Some(format!("waiting: {failure}")),
            Some(GenerationEvent::Mended(_)) => self.remark = Some("goes on in another chain".to_owned()),
            Some(GenerationEvent::Finished(summary)) => self.on_finished(&summary),
            Some(GenerationEvent::Failed(error)) => self.on_failed(error.into()),
            None => self.on_failed(GenerateError::Stopped.into()),
        }
    }

    fn on_text(&mut self, text: &str, tokens: &[TokenView]) {
        if text.is_empty() && !self.heading.logprobs {
            return;
        }
        let logprobs = self.heading.logprobs(tokens, self.offset);
        self.offset += text.chars().count();
        let choice = match self.heading.form {
            Form::Chat => self.heading.choice("delta", json!({ "content": text }), logprobs, None),
            Form::Completion => self.heading.choice("text", json!(text), logprobs, None),
        };
        self.ready.push_back(self.heading.chunk(choice, self.delivery));
    }

    fn on_finished(&mut self, summary: &SummaryView) {
        let reason = Some(summary.finish_reason.as_str());
        let choice = match self.heading.form {
            Form::Chat => self.heading.choice("delta", json!({}), None, reason),
            Form::Completion => self.heading.choice("text", json!(""), None, reason),
        };
        self.ready.push_back(self.heading.chunk(choice, self.delivery));
        if self.delivery == Delivery::StreamWithUsage {
            let mut last = self.heading.envelope(Part::Chunk);
            last["choices"] = json!([]);
            last["usage"] = usage(summary);
            self.ready.push_back(last);
        }
        self.state = Progress::Complete;
    }

    /// The error is the last event: no finish reason and no `[DONE]` follow, so that no client takes the answer for
    /// complete.
    fn on_failed(&mut self, error: ApiError) {
        self.ready.push_back(error.body());
        self.state = Progress::Over;
    }
}

impl Heading {
    fn whole(&self, text: &str, tokens: &[TokenView], summary: &SummaryView) -> Value {
        let reason = Some(summary.finish_reason.as_str());
        let logprobs = self.logprobs(tokens, 0);
        let choice = match self.form {
            Form::Chat => {
                let message = json!({ "role": "assistant", "content": text, "refusal": null });
                self.choice("message", message, logprobs, reason)
            }
            Form::Completion => self.choice("text", json!(text), logprobs, reason),
        };
        let mut answer = self.envelope(Part::Whole);
        answer["choices"] = json!([choice]);
        answer["usage"] = usage(summary);
        answer
    }

    fn chunk(&self, choice: Value, delivery: Delivery) -> Value {
        let mut chunk = self.envelope(Part::Chunk);
        chunk["choices"] = json!([choice]);
        if delivery == Delivery::StreamWithUsage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn envelope(&self, part: Part) -> Value {
        let object = match (self.form, part) {
            (Form::Chat, Part::Whole) => "chat.completion",
            (Form::Chat, Part::Chunk) => "chat.completion.chunk",
            (Form::Completion, _) => "text_completion",
        };
        json!({ "id": self.id, "object": object, "created": self.created, "model": self.model })
    }

    fn choice(&self, name: &str, content: Value, logprobs: Option<Value>, reason: Option<&str>) -> Value {
        let mut choice = json!({ "index": 0 });
        choice[name] = content;
        choice["logprobs"] = logprobs.unwrap_or(Value::Null);
        choice["finish_reason"] = json!(reason);
        choice
    }

    fn logprobs(&self, tokens: &[TokenView], offset: usize) -> Option<Value> {
        self.logprobs.then(|| match self.form {
            Form::Chat => logprobs::chat(tokens),
            Form::Completion => logprobs::completion(tokens, offset),
        })
    }
}

fn usage(summary: &SummaryView) -> Value {
    json!({
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "total_tokens": summary.prompt_tokens + summary.completion_tokens,
    })
}
