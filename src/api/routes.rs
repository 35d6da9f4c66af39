//! The endpoints.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::body::Bytes;
use axum::extract::Path;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header;
use axum::middleware::Next;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::Event;
use axum::response::sse::KeepAlive;
use axum::response::sse::Sse;
use axum::routing::get;
use axum::routing::post;
use data_encoding::BASE64;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::amounts::Span;
use crate::api::MAX_BODY;
use crate::api::MAX_REQUESTS;
use crate::api::answer;
use crate::api::answer::Heading;
use crate::api::error::ApiError;
use crate::api::gate::Gate;
use crate::api::gate::Head;
use crate::api::internal::ChangeBody;
use crate::api::internal::DescribeBody;
use crate::api::internal::DescribedBody;
use crate::api::internal::EventBody;
use crate::api::internal::GenerateBody;
use crate::api::internal::ImportBody;
use crate::api::internal::InviteBody;
use crate::api::request::Asked;
use crate::api::request::Delivery;
use crate::api::request::Form;
use crate::clock;
use crate::daemon::describe::Description;
use crate::daemon::handle::ChangeError;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::Generation;
use crate::daemon::handle::ImportError;
use crate::daemon::handle::Peer;
use crate::daemon::views::ModelView;
use crate::telemetry;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

type Shared = axum::extract::State<Arc<State>>;
type Answer = Result<Response, ApiError>;

/// What the endpoints share.
#[derive(Debug)]
pub(crate) struct State {
    peer: Peer,
    gate: Gate,
    slots: Arc<Semaphore>,
    /// When the API began, for the `created` of models.
    started: u64,
    stop: CancellationToken,
}

impl State {
    pub(crate) fn new(peer: Peer, gate: Gate, stop: CancellationToken) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
        Self { peer, gate, slots, started: clock::unix_seconds(), stop }
    }

    fn slot(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            let message = format!("this peer answers {MAX_REQUESTS} requests at once");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "busy", message).retry_after(Span::seconds(1))
        })
    }
}

pub(crate) fn router(state: Arc<State>) -> Router {
    let router = Router::new();
    #[cfg(feature = "faults")]
    let router = router.route("/brigade/v1/faults", post(faults));
    router
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/brigade/v1/status", get(status))
        .route("/brigade/v1/peers", get(peers))
        .route("/brigade/v1/models", get(model_list))
        .route("/brigade/v1/credits", get(credits))
        .route("/brigade/v1/lies", get(lies))
        .route("/brigade/v1/import", post(import))
        .route("/brigade/v1/model", post(change))
        .route("/brigade/v1/describe", post(describe))
        .route("/brigade/v1/generate", post(generate))
        .route("/brigade/v1/invite", get(invite))
        .route("/brigade/v1/stop", post(stop))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
}

/// Refuses what the gate refuses, and says which web page may read the answer.
async fn guard(state: Shared, request: Request, next: Next) -> Response {
    let origin = state.gate.allowed_origin(request.headers());
    let head = Head { method: request.method(), uri: request.uri(), headers: request.headers() };
    let mut response = match state.gate.check(head) {
        Ok(()) if *request.method() == Method::OPTIONS => preflight(),
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
    response
}

fn preflight() -> Response {
    let allowed = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
    ];
    (StatusCode::NO_CONTENT, allowed).into_response()
}

async fn chat(state: Shared, body: Body) -> Answer {
    openai(&state, Form::Chat, body).await
}

async fn completion(state: Shared, body: Body) -> Answer {
    openai(&state, Form::Completion, body).await
}

async fn openai(state: &State, form: Form, body: Body) -> Answer {
    let slot = state.slot()?;
    let Asked { request, delivery } = Asked::parse(form, &read(body).await?, random()?)?;
    let logprobs = request.parameters.logprobs.is_some();
    let mut generation = state.peer.generate(request).await?;
    answer::started(&mut generation).await?;
    let prefix = match form {
        Form::Chat => "chatcmpl",
        Form::Completion => "cmpl",
    };
    let id = format!("{prefix}-{:016x}{:016x}", random()?, random()?);
    let heading = Heading { form, id, created: clock::unix_seconds(), model: generation.model.clone(), logprobs };
    match delivery {
        Delivery::Whole => answer::whole(&heading, generation).await,
        Delivery::Stream | Delivery::StreamWithUsage => Ok(answer::stream(heading, delivery, generation, slot)),
    }
}

async fn models(state: Shared) -> Answer {
    let mut models = state.peer.models().await?;
    // Clients tend to take the first.
    models.sort_by_key(|model| !model.covered);
    let data: Vec<Value> = models.iter().map(|model| openai_model(model, state.started)).collect();
    Ok(Json(json!({ "object": "list", "data": data })).into_response())
}

async fn model(state: Shared, Path(id): Path<String>) -> Answer {
    let models = state.peer.models().await?;
    match models.iter().find(|model| model.id == id || model.alias.as_deref() == Some(&id)) {
        Some(model) => Ok(Json(openai_model(model, state.started)).into_response()),
        None => {
            let message = "there is no such model";
            Err(ApiError::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model"))
        }
    }
}

/// OpenAI's fields, and beside them what tells people which model it is and whether it can be used.
fn openai_model(model: &ModelView, created: u64) -> Value {
    json!({
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": "brigade",
        "title": model.title,
        "context": model.context,
        "covered": model.covered,
        "missing_units": model.missing,
    })
}

async fn health(state: Shared, headers: HeaderMap) -> Answer {
    let models = state.peer.models().await?;
    let covered = models.iter().filter(|model| model.covered);
    let mut body = json!({ "status": "ok", "models_covered": covered.clone().count() });
    if state.gate.is_trusted(&headers) {
        body["models"] = covered.map(|model| model.id.as_str()).collect();
    }
    Ok(Json(body).into_response())
}

async fn metrics(state: Shared) -> Answer {
    let text = telemetry::prometheus(&state.peer.metrics().await?);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn status(state: Shared) -> Answer {
    Ok(Json(state.peer.status().await?).into_response())
}

async fn peers(state: Shared) -> Answer {
    Ok(Json(state.peer.peers().await?).into_response())
}

async fn model_list(state: Shared) -> Answer {
    Ok(Json(state.peer.models().await?).into_response())
}

async fn credits(state: Shared) -> Answer {
    Ok(Json(state.peer.credits().await?).into_response())
}

async fn lies(state: Shared) -> Answer {
    Ok(Json(state.peer.lies().await?).into_response())
}

async fn invite(state: Shared) -> Answer {
    Ok(Json(InviteBody { invite: state.peer.invite().await? }).into_response())
}

async fn import(state: Shared, body: Body) -> Answer {
    let _slot = state.slot()?;
    let ImportBody { path } = parse(&read(body).await?)?;
    let imported = state.peer.import(path).await.map_err(|error| match error {
        ImportError::Refused(message) => ApiError::new(StatusCode::BAD_REQUEST, "import_refused", message),
        ImportError::Stopped => GenerateError::Stopped.into(),
    })?;
    Ok(Json(imported).into_response())
}

async fn describe(state: Shared, body: Body) -> Answer {
    let _slot = state.slot()?;
    let DescribeBody { model } = parse(&read(body).await?)?;
    let Description { id, title, manifest } = state.peer.describe(model).await?;
    let manifest = BASE64.encode(&manifest.encode());
    Ok(Json(DescribedBody { id: id.to_string(), title, manifest }).into_response())
}

async fn change(state: Shared, body: Body) -> Answer {
    let _slot = state.slot()?;
    let ChangeBody { model, change } = parse(&read(body).await?)?;
    let changed = state.peer.change(model, change).await.map_err(|error| match error {
        ChangeError::Refused(message) => ApiError::new(StatusCode::BAD_REQUEST, "change_refused", message),
        ChangeError::Stopped => GenerateError::Stopped.into(),
    })?;
    Ok(Json(changed).into_response())
}

async fn generate(state: Shared, body: Body) -> Answer {
    let slot = state.slot()?;
    let body: GenerateBody = parse(&read(body).await?)?;
    let mut generation = state.peer.generate(body.checked(random()?)?).await?;
    let chain = answer::started(&mut generation).await?;
    let first = EventBody::Started { model: generation.model.clone(), chain };
    let events = futures::stream::unfold((Some(first), Some(generation), slot), |(first, generation, slot)| async {
        let (event, generation) = match (first, generation) {
            (Some(first), generation) => (first, generation),
            (None, Some(generation)) => next_event(generation).await,
            (None, None) => return None,
        };
        Some((sse(&event), (None, generation, slot)))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// The next event, and the generation if more can come.
async fn next_event(mut generation: Generation) -> (EventBody, Option<Generation>) {
    let event = match generation.events.recv().await {
        Some(event) => EventBody::of(event, &generation.model),
        None => EventBody::failed(GenerateError::Stopped.into()),
    };
    let is_last = matches!(event, EventBody::Finished { .. } | EventBody::Failed { .. });
    (event, (!is_last).then_some(generation))
}

fn sse(event: &EventBody) -> Result<Event, Infallible> {
    // Every field of an event can be said in JSON, so this cannot fail; an empty event would end the client's patience.
    Ok(Event::default().data(serde_json::to_string(event).unwrap_or_default()))
}

async fn stop(state: Shared) -> Answer {
    state.stop.cancel();
    Ok(Json(json!({ "stopping": true })).into_response())
}

#[cfg(feature = "faults")]
async fn faults(state: Shared, body: Body) -> Answer {
    state.peer.faults(parse(&read(body).await?)?).await?;
    Ok(Json(json!({})).into_response())
}

async fn not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is no such endpoint")
}

async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", "this endpoint has no such method")
}

/// Reads a body of bounded size in bounded time.
async fn read(body: Body) -> Result<Bytes, ApiError> {
    let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow_body", "the body did not arrive in time");
    let large = |_| {
        let message = format!("the body is longer than {MAX_BODY} bytes, or was cut off");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    within(BODY_TIMEOUT, axum::body::to_bytes(body, MAX_BODY)).await.map_err(slow)?.map_err(large)
}

async fn within<F: Future>(time: Duration, future: F) -> Result<F::Output, tokio::time::error::Elapsed> {
    tokio::time::timeout(time, future).await
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|fault| {
        let message = format!("the body is not of the expected form: line {}, column {}", fault.line(), fault.column());
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    })
}

fn random() -> Result<u64, ApiError> {
    let failed = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "no_random", "the system gives no random bytes");
    getrandom::u64().map_err(failed)
}
