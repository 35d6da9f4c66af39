//! The fields of a request's body, taken one by one; what nobody took is refused.

use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::Map;
use serde_json::Value;

use crate::api::error::ApiError;

/// A JSON object whose fields are taken as they are read. `null` counts as absent.
#[derive(Debug)]
pub(crate) struct Fields {
    fields: Map<String, Value>,
}

impl Fields {
    /// # Errors
    /// 400 if `body` is no JSON object. What it says is not repeated.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let bad = |what: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", what);
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self { fields }),
            Ok(_) => Err(bad("the body must be a JSON object".to_owned())),
            Err(fault) => Err(bad(format!("the body is not JSON: line {}, column {}", fault.line(), fault.column()))),
        }
    }

    pub(crate) const fn of(fields: Map<String, Value>) -> Self {
        Self { fields }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| ApiError::invalid(name, format!("{name} must be a number")))?;
        in_range(name, number as f32, range).map(Some)
    }

    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None if *range.end() == u32::MAX => {
                Err(ApiError::invalid(name, format!("{name} must be an integer of at least {}", range.start())))
            }
            None => {
                let message = format!("{name} must be an integer of {} to {}", range.start(), range.end());
                Err(ApiError::invalid(name, message))
            }
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| ApiError::invalid(name, format!("{name} must be true or false")))
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::invalid(name, format!("{name} must be a string"))),
        }
    }

    /// Takes a parameter of which only values that change nothing are accepted.
    pub(crate) fn only(&mut self, name: &str, neutral: &[Value]) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !neutral.contains(&value) => {
                if neutral.is_empty() {
                    return Err(ApiError::unsupported(name, format!("{name} is not supported")));
                }
                let values = neutral.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
                Err(ApiError::unsupported(name, format!("{name} is not supported, except as {values}")))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// 400 naming a field that nobody took.
    pub(crate) fn finish(self, inside: &str) -> Result<(), ApiError> {
        let Some(name) = self.fields.keys().next() else { return Ok(()) };
        let name = if inside.is_empty() { name.clone() } else { format!("{inside}.{name}") };
        Err(ApiError::unsupported(&name, "this parameter is not supported"))
    }
}

/// # Errors
/// 400 if `number` is outside `range` or not finite.
pub(crate) fn in_range(name: &str, number: f32, range: RangeInclusive<f32>) -> Result<f32, ApiError> {
    if range.contains(&number) {
        return Ok(number);
    }
    Err(ApiError::invalid(name, format!("{name} must be between {} and {}", range.start(), range.end())))
}
