//! Errors in OpenAI's form.

use axum::Json;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;

use crate::amounts::Span;
use crate::daemon::handle::GenerateError;
use crate::daemon::handle::InviteError;
use crate::daemon::handle::Stopped;
use crate::node::io::GenerateFailure;
use crate::wire::control::DeclineReason;

/// How long to wait before asking again where nobody said so: about as long as a peer takes to load a lost range.
const RETRY_AFTER: Span = Span::seconds(5);

/// The longest name of a parameter that is repeated to its sender.
const MAX_NAME: usize = 64;

/// Why a request is refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `code`, for programs.
    pub(crate) code: &'static str,
    /// The parameter at fault.
    pub(crate) param: Option<String>,
    /// For people. Never holds anything of a prompt.
    pub(crate) message: String,
    pub(crate) retry_after: Option<Span>,
    /// Units that no peer serves.
    pub(crate) missing: Vec<String>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let (message, missing) = (message.into(), Vec::new());
        Self { status, code, param: None, message, retry_after: None, missing }
    }

    /// A parameter of the wrong type or out of its range.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).about(param)
    }

    /// A parameter that is not known, or whose value asks for something that is not offered.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported_parameter", message).about(param)
    }

    pub(crate) fn about(mut self, param: &str) -> Self {
        self.param = Some(param.chars().take(MAX_NAME).collect());
        self
    }

    pub(crate) fn retry_after(mut self, span: Span) -> Self {
        self.retry_after = Some(span);
        self
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body, also sent as the last event of a stream that fails.
    pub(crate) fn body(&self) -> Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        });
        if !self.missing.is_empty() {
            error["missing_units"] = json!(self.missing);
        }
        json!({ "error": error })
    }

    fn unavailable(code: &'static str, message: String, retry_after: Option<Span>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after(retry_after.unwrap_or(RETRY_AFTER))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(span) = self.retry_after {
            let seconds = span.0.div_ceil(1_000_000).max(1);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Stopped> for ApiError {
    fn from(stopped: Stopped) -> Self {
        Self::unavailable("stopped", stopped.to_string(), None)
    }
}

impl From<InviteError> for ApiError {
    fn from(error: InviteError) -> Self {
        match error {
            InviteError::Bad(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_invite", error.to_string()),
            InviteError::Stopped => Self::from(Stopped),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let message = error.to_string();
        match error {
            GenerateError::Model(_) => Self::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model"),
            GenerateError::Prompt(_) => Self::new(StatusCode::BAD_REQUEST, "invalid_prompt", message),
            GenerateError::Fetch(_) => Self::unavailable("model_not_fetched", message, None),
            GenerateError::Failed(failure) => Self::from(failure),
            GenerateError::SlowReader => Self::new(StatusCode::REQUEST_TIMEOUT, "slow_reader", message),
            GenerateError::Stopped => Self::from(Stopped),
        }
    }
}

impl From<GenerateFailure> for ApiError {
    fn from(failure: GenerateFailure) -> Self {
        let message = failure.to_string();
        match failure {
            GenerateFailure::NoCover { missing, held_by_untrusted } => {
                let message = if held_by_untrusted {
                    format!("{message} that this prompt may go to; others do, and trust `open` would let it go there")
                } else {
                    message
                };
                let missing = missing.iter().map(ToString::to_string).collect();
                Self { missing, ..Self::unavailable("no_cover", message, None) }
            }
            GenerateFailure::TooCoarse { .. } => Self::unavailable("too_coarse", message, None).about("min_quant"),
            GenerateFailure::UnknownModel(_) => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", message).about("model")
            }
            GenerateFailure::NothingAsked => Self::new(StatusCode::BAD_REQUEST, "nothing_asked", message),
            GenerateFailure::TooLong { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).about("max_tokens")
            }
            GenerateFailure::Declined {
                reason: DeclineReason::Busy | DeclineReason::NoMemory, retry_after, ..
            } => Self::unavailable("busy", message, retry_after),
            GenerateFailure::Declined { retry_after, .. } => Self::unavailable("declined", message, retry_after),
            GenerateFailure::Unreachable { .. } => Self::unavailable("unreachable", message, None),
            GenerateFailure::HopFailed { .. } => Self::unavailable("hop_failed", message, None),
            GenerateFailure::StageLost { .. } => Self::new(StatusCode::BAD_GATEWAY, "stage_lost", message),
            GenerateFailure::StageFailed { .. } => Self::new(StatusCode::BAD_GATEWAY, "stage_failed", message),
            GenerateFailure::Misbehaved { .. } => Self::new(StatusCode::BAD_GATEWAY, "stage_misbehaved", message),
            GenerateFailure::TooFewReplicas { missing, .. } => {
                let missing = missing.iter().map(ToString::to_string).collect();
                Self { missing, ..Self::unavailable("too_few_replicas", message, None).about("redundancy") }
            }
            GenerateFailure::Disputed { .. } => Self::new(StatusCode::BAD_GATEWAY, "disputed", message),
            GenerateFailure::Cancelled => Self::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled", message),
            GenerateFailure::Busy => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message).retry_after(Span::seconds(1))
            }
            GenerateFailure::Draining => Self::unavailable("draining", message, None),
        }
    }
}
