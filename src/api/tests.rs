//! The API over a peer whose answers the test gives.

use axum::Router;
use axum::body::Body;
use axum::http::Method;
use axum::http::Request;
use axum::http::Response;
use axum::http::StatusCode;
use http_body_util::BodyExt;
use hyper::service::Service;
use serde_json::Value;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::amounts::Span;
use crate::api::request::Asked;
use crate::api::request::Form;
use crate::daemon::handle::Command;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::GenerateRequest;
use crate::daemon::handle::Generation;
use crate::daemon::handle::GenerationEvent;
use crate::daemon::handle::InviteError;
use crate::daemon::handle::Prompt;
use crate::daemon::handle::TokenView;
use crate::daemon::views::SummaryView;
use crate::ids::PeerKey;
use crate::ids::Token;
use crate::keys::invite::BadInvite;
use crate::node::io::GenerateFailure;
use crate::node::io::Redundancy;
use crate::units::UnitRange;
use crate::wire::control::DeclineReason;

const TOKEN: &str = "the-token-of-run-json";

/// The API, and what it asks of its peer.
fn api() -> (Router, mpsc::Receiver<Command>) {
    let settings = Api { address: "127.0.0.1:0".parse().unwrap(), key: None, hosts: vec![], origins: vec![] };
    let gate = Gate::new(settings.address, &settings, ApiKey::new(TOKEN).unwrap());
    let (sender, commands) = mpsc::channel(MAX_REQUESTS);
    let state = State::new(Peer { commands: sender }, gate, CancellationToken::new());
    (routes::router(Arc::new(state)), commands)
}

fn request(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
    request.header("authorization", format!("Bearer {TOKEN}")).body(Body::from(body.to_string())).unwrap()
}

async fn send(api: &Router, path: &str, body: &Value) -> Response<Body> {
    TowerToHyperService::new(api.clone()).call(request(path, body)).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn json_of(response: Response<Body>) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// Answers the next request with these events; gives back what was asked.
async fn answer(commands: &mut mpsc::Receiver<Command>, events: Vec<GenerationEvent>) -> GenerateRequest {
    let Some(Command::Generate(request, reply)) = commands.recv().await else { panic!("expected a request") };
    let (sender, receiver) = mpsc::channel(events.len().max(1));
    for event in events {
        sender.try_send(event).unwrap();
    }
    reply.send(Ok(Generation { model: "the-model".to_owned(), events: receiver })).unwrap();
    *request
}

fn piece(text: &str) -> GenerationEvent {
    let top = vec![(Token(1), text.as_bytes().to_vec(), -0.5), (Token(2), b"other".to_vec(), f32::NEG_INFINITY)];
    let token = TokenView { id: Token(1), bytes: text.as_bytes().to_vec(), logprob: Some(-0.5), top };
    GenerationEvent::Text { text: text.to_owned(), tokens: vec![token] }
}

fn started() -> GenerationEvent {
    GenerationEvent::Started(vec![("ab".repeat(32), "0..3".to_owned())])
}

fn finished(reason: &str) -> GenerationEvent {
    GenerationEvent::Finished(Box::new(SummaryView {
        model: "the-model".to_owned(),
        finish_reason: reason.to_owned(),
        prompt_tokens: 5,
        completion_tokens: 2,
        chain: Vec::new(),
        replicas: Vec::new(),
        lies: Vec::new(),
        lease_micros: 0,
        first_token_micros: 0,
        decode_micros: 0,
        mended: Vec::new(),
    }))
}

fn lost() -> GenerateError {
    let (peer, range) = (PeerKey::new([7; 32]), UnitRange::new(1, 3).unwrap());
    GenerateError::Failed(GenerateFailure::StageLost { peer, range })
}

fn chat(more: Value) -> Value {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hello" }] });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The data of each event of a stream.
fn events(stream: &str) -> Vec<String> {
    stream.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

/// What a body asks for, or the refusal.
fn understood(form: Form, body: &Value) -> Result<GenerateRequest, Value> {
    let asked = Asked::parse(form, body.to_string().as_bytes(), 0);
    asked.map(|asked| asked.request).map_err(|error| error.body()["error"].clone())
}

#[tokio::test]
async fn a_whole_answer_has_text_usage_and_reason() {
    let (api, mut commands) = api();
    let body = chat(json!({}));
    let events = vec![started(), piece("Hel"), piece("lo"), finished("length")];

    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, events));

    assert_eq!(response.status(), StatusCode::OK);
    let answer = json_of(response).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "the-model");
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7 }));
}

#[tokio::test]
async fn a_stream_opens_with_the_role_and_ends_with_usage_and_done() {
    let (api, mut commands) = api();
    let body = chat(json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let made = vec![started(), piece("Hi"), finished("stop")];

    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = events(&text(response).await);
    let parts: Vec<Value> = events[..events.len() - 1].iter().map(|part| serde_json::from_str(part).unwrap()).collect();
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(parts.len(), 4);
    assert_eq!(parts[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    assert_eq!(parts[1]["choices"][0]["delta"], json!({ "content": "Hi" }));
    assert_eq!(parts[2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(parts[3]["choices"], json!([]));
    assert_eq!(parts[3]["usage"]["total_tokens"], 7);
    assert!(parts[..3].iter().all(|part| part["usage"].is_null() && part["id"] == parts[3]["id"]));
}

#[tokio::test]
async fn a_stream_that_fails_never_looks_finished() {
    let (api, mut commands) = api();
    let body = chat(json!({ "stream": true }));
    let made = vec![started(), piece("Hi"), GenerationEvent::Failed(lost())];

    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

    let events = events(&text(response).await);
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "stage_lost");
    assert!(!events.iter().any(|event| event == "[DONE]" || event.contains("\"finish_reason\":\"")));
}

#[tokio::test]
async fn a_peer_that_stops_in_mid_stream_is_a_failure_too() {
    let (api, mut commands) = api();
    let body = chat(json!({ "stream": true }));

    let (response, _) =
        tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, vec![started(), piece("Hi")]));

    let events = events(&text(response).await);
    assert!(events.last().unwrap().contains("\"error\""));
}

#[tokio::test]
async fn a_whole_answer_that_fails_is_an_error_and_no_text() {
    let (api, mut commands) = api();
    let made = vec![started(), piece("Hi"), GenerationEvent::Failed(lost())];

    let body = chat(json!({}));
    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(json_of(response).await["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_hole_in_the_cover_is_named_with_a_time_to_come_back() {
    let (api, mut commands) = api();
    let missing = vec![UnitRange::new(3, 5).unwrap()];
    let failure = GenerateFailure::NoCover { missing, held_by_untrusted: false };
    let made = vec![GenerationEvent::Failed(GenerateError::Failed(failure))];

    // A stream too: nothing was sent yet, so the status can still say it.
    let body = chat(json!({ "stream": true }));
    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(json_of(response).await["error"]["missing_units"], json!(["3..5"]));
}

#[tokio::test]
async fn where_all_holders_are_busy_the_client_hears_when_to_come_back() {
    for (reason, retry_after, code, seconds) in [
        (DeclineReason::Busy, Some(Span::millis(6_200)), "busy", "7"),
        (DeclineReason::NoMemory, None, "busy", "5"),
        (DeclineReason::Draining, None, "declined", "5"),
    ] {
        let (api, mut commands) = api();
        let (peer, range) = (PeerKey::new([7; 32]), UnitRange::new(3, 5).unwrap());
        let failure = GenerateFailure::Declined { peer, range, reason, retry_after };
        let made = vec![GenerationEvent::Failed(GenerateError::Failed(failure))];

        let body = chat(json!({ "stream": true }));
        let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], seconds);
        assert_eq!(json_of(response).await["error"]["code"], code);
    }
}

#[tokio::test]
async fn fewer_chains_than_were_asked_for_are_refused_with_both_figures() {
    let (api, mut commands) = api();
    let missing = vec![UnitRange::new(3, 5).unwrap()];
    let failure = GenerateFailure::TooFewReplicas { asked: 3, found: 2, missing };
    let made = vec![GenerationEvent::Failed(GenerateError::Failed(failure))];

    let body = chat(json!({ "redundancy": 3 }));
    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let error = json_of(response).await["error"].clone();
    assert_eq!((&error["code"], &error["missing_units"]), (&json!("too_few_replicas"), &json!(["3..5"])));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains('3') && message.contains('2'), "{message}");
}

#[tokio::test]
async fn more_than_the_context_is_refused_with_both_figures() {
    let (api, mut commands) = api();
    let failure = GenerateFailure::TooLong { prompt: 500, max_tokens: 100, context: 512 };
    let made = vec![GenerationEvent::Failed(GenerateError::Failed(failure))];

    let body = chat(json!({}));
    let (response, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made));

    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let error = json_of(response).await["error"].clone();
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("500") && message.contains("100") && message.contains("512"), "{message}");
}

#[tokio::test]
async fn an_invite_that_cannot_be_made_is_an_error_and_no_invite() {
    let (api, mut commands) = api();
    let fault = BadInvite::Address { place: 2 };
    let (mut asked, words) = (request("/brigade/v1/invite", &Value::Null), fault.to_string());
    *asked.method_mut() = Method::GET;

    let (response, ()) = tokio::join!(TowerToHyperService::new(api.clone()).call(asked), async {
        let Some(Command::Invite(reply)) = commands.recv().await else { panic!("expected a request") };
        reply.send(Err(InviteError::Bad(fault))).unwrap();
    });

    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = json_of(response).await;
    assert_eq!((&body["error"]["code"], &body["invite"]), (&json!("no_invite"), &Value::Null));
    assert!(body["error"]["message"].as_str().unwrap().contains(&words), "{body}");
}

#[tokio::test]
async fn closing_the_connection_cancels_the_answer() {
    let (api, mut commands) = api();
    let body = chat(json!({ "stream": true }));
    let (sender, receiver) = mpsc::channel(8);
    sender.try_send(started()).unwrap();
    let (response, ()) = tokio::join!(send(&api, "/v1/chat/completions", &body), async {
        let Some(Command::Generate(_, reply)) = commands.recv().await else { panic!("expected a request") };
        reply.send(Ok(Generation { model: "m".to_owned(), events: receiver })).unwrap();
    });

    drop(response);

    assert!(sender.is_closed());
}

#[tokio::test]
async fn no_more_than_the_limit_is_answered_at_once() {
    let (api, mut commands) = api();
    let body = chat(json!({ "stream": true }));
    let mut open = Vec::new();
    for _ in 0..MAX_REQUESTS {
        let (response, _) =
            tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, vec![started()]));
        open.push(response);
    }

    let refused = send(&api, "/v1/chat/completions", &body).await;

    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    open.pop();
    let (next, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, vec![started()]));
    assert_eq!(next.status(), StatusCode::OK);
}

#[test]
fn every_parameter_arrives() {
    let body = chat(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": -1, "max_completion_tokens": 7,
        "repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": -0.3, "stop": ["a", "b"],
        "logit_bias": { "9": -100, "3": 1.5 }, "logprobs": true, "top_logprobs": 4, "redundancy": 2,
        "user": "u", "n": 1, "store": false, "response_format": { "type": "text" }, "metadata": {}
    }));

    let asked = understood(Form::Chat, &body).unwrap();

    let parameters = &asked.parameters;
    assert_eq!((parameters.temperature, parameters.top_p, parameters.top_k), (0.5, 0.9, 40));
    assert_eq!((parameters.min_p, parameters.seed, asked.max_tokens), (0.05, u64::MAX, Some(7)));
    assert_eq!(parameters.repetition_penalty, 1.1);
    assert_eq!((parameters.frequency_penalty, parameters.presence_penalty), (0.2, -0.3));
    assert_eq!(parameters.logit_bias, [(Token(3), 1.5), (Token(9), -100.0)]);
    assert_eq!(parameters.logprobs, Some(4));
    assert_eq!(asked.stop, ["a", "b"]);
    assert_eq!(Some(asked.redundancy), Redundancy::new(2));
}

#[test]
fn what_is_not_given_is_as_openai_has_it() {
    let chat = understood(Form::Chat, &chat(json!({}))).unwrap();
    let completion = understood(Form::Completion, &json!({ "prompt": "Once" })).unwrap();

    assert_eq!((chat.parameters.temperature, chat.parameters.top_p, chat.max_tokens), (1.0, 1.0, None));
    assert_eq!(completion.max_tokens, Some(16));
    assert_eq!((chat.redundancy, completion.redundancy), (Redundancy::NONE, Redundancy::NONE));
    assert!(matches!(completion.prompt, Prompt::Raw(text) if text == "Once"));
}

#[test]
fn what_is_unknown_or_would_change_the_answer_is_refused_by_name() {
    for (more, param) in [
        (json!({ "tempersture": 1 }), "tempersture"),
        (json!({ "n": 2 }), "n"),
        (json!({ "tools": [{ "type": "function" }] }), "tools"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (json!({ "reasoning_effort": "low" }), "reasoning_effort"),
        (json!({ "temperature": 3 }), "temperature"),
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "top_p": -0.1 }), "top_p"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": 1.5 }), "max_tokens"),
        (json!({ "max_tokens": 1, "max_completion_tokens": 2 }), "max_tokens"),
        (json!({ "stop": ["1", "2", "3", "4", "5"] }), "stop"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "logprobs": true, "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "stream_options": {} }), "stream_options"),
        (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options.x"),
        (json!({ "seed": 0.5 }), "seed"),
        (json!({ "redundancy": 0 }), "redundancy"),
        (json!({ "redundancy": 4 }), "redundancy"),
        (json!({ "redundancy": "2" }), "redundancy"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "tool", "content": "" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user", "content": "", "name": "n" }] }), "messages[0].name"),
        (json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }), "messages[0].content"),
    ] {
        let error = understood(Form::Chat, &chat(more)).unwrap_err();
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    for (body, param) in [
        (json!({ "prompt": "p", "echo": true }), "echo"),
        (json!({ "prompt": ["a", "b"] }), "prompt"),
        (json!({ "prompt": [-1] }), "prompt"),
        (json!({}), "prompt"),
        (json!({ "prompt": "p", "max_completion_tokens": 1 }), "max_completion_tokens"),
    ] {
        assert_eq!(understood(Form::Completion, &body).unwrap_err()["param"], param);
    }
}

#[test]
fn null_is_as_good_as_absent() {
    let body = chat(json!({ "temperature": null, "stop": null, "tools": null, "logit_bias": null }));

    assert_eq!(understood(Form::Chat, &body).unwrap().parameters.temperature, 1.0);
}

#[test]
fn text_parts_are_put_together() {
    let parts = json!([{ "type": "text", "text": "one " }, { "type": "text", "text": "two" }]);
    let body = json!({ "messages": [{ "role": "developer", "content": parts }] });

    let Prompt::Chat(messages) = understood(Form::Chat, &body).unwrap().prompt else { panic!() };

    assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("system", "one two"));
}

#[test]
fn token_ids_are_taken_as_they_are() {
    let asked = understood(Form::Completion, &json!({ "prompt": [1, 2, 3] })).unwrap();

    assert!(matches!(asked.prompt, Prompt::Tokens(tokens) if tokens == [Token(1), Token(2), Token(3)]));
}

#[tokio::test]
async fn log_probabilities_come_in_both_forms() {
    let (api, mut commands) = api();
    let made = || vec![started(), piece("Hi"), piece("!"), finished("stop")];

    let body = chat(json!({ "logprobs": true, "top_logprobs": 2 }));
    let (new, _) = tokio::join!(send(&api, "/v1/chat/completions", &body), answer(&mut commands, made()));
    let body = json!({ "prompt": "p", "logprobs": 2 });
    let (old, _) = tokio::join!(send(&api, "/v1/completions", &body), answer(&mut commands, made()));

    let new = json_of(new).await["choices"][0]["logprobs"].clone();
    assert_eq!(new["content"][0]["token"], "Hi");
    assert_eq!(new["content"][0]["top_logprobs"][1]["logprob"], -9999.0);
    let old = json_of(old).await["choices"][0]["logprobs"].clone();
    assert_eq!(old["tokens"], json!(["Hi", "!"]));
    assert_eq!(old["text_offset"], json!([0, 2]));
    assert_eq!(old["top_logprobs"][0]["Hi"], -0.5);
}

#[tokio::test]
async fn what_is_no_json_or_too_long_is_refused_without_being_repeated() {
    let (api, _commands) = api();
    let post = |body: String| {
        let head = Request::post("/v1/completions").header("host", "localhost");
        head.header("content-type", "application/json").body(Body::from(body)).unwrap()
    };

    let broken = TowerToHyperService::new(api.clone()).call(post("{\"prompt\": \"my secret".to_owned())).await.unwrap();
    let long = TowerToHyperService::new(api.clone()).call(post(" ".repeat(MAX_BODY + 1))).await.unwrap();

    assert_eq!(broken.status(), StatusCode::BAD_REQUEST);
    assert!(!text(broken).await.contains("secret"));
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn what_is_not_there_says_so_in_the_same_form() {
    let (api, _commands) = api();
    let missing = send(&api, "/v1/embeddings", &json!({})).await;
    let wrong = send(&api, "/v1/models", &json!({})).await;

    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert_eq!(json_of(missing).await["error"]["code"], "not_found");
    assert_eq!(wrong.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_stopped_peer_is_unavailable() {
    let (api, commands) = api();
    drop(commands);

    let response = send(&api, "/v1/completions", &json!({ "prompt": "p" })).await;

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}
