//! Who may ask: what is checked of every request before anything else.

use std::net::IpAddr;
use std::net::SocketAddr;

use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::http::header;

use crate::api::error::ApiError;
use crate::config::Api;
use crate::config::key::ApiKey;

/// The names of this machine for itself.
const LOOPBACK_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The part of the API that is for this machine's own commands.
pub(crate) const INTERNAL: &str = "/brigade/";

/// Decides about requests by their headers alone.
#[derive(Debug)]
pub(crate) struct Gate {
    bound: IpAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
    key: Option<ApiKey>,
    token: ApiKey,
}

/// What of a request is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
}

impl Gate {
    /// A gate for an API that listens on `bound`; `token` lets this machine's own commands in.
    pub(crate) fn new(bound: SocketAddr, settings: &Api, token: ApiKey) -> Self {
        Self {
            bound: bound.ip(),
            hosts: settings.hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origins: settings.origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
            key: settings.key.clone(),
            token,
        }
    }

    /// # Errors
    /// 403 for a foreign `Host` or `Origin`, 401 without the key, 415 for a body that is not JSON.
    pub(crate) fn check(&self, head: Head<'_>) -> Result<(), ApiError> {
        self.check_host(head)?;
        self.check_origin(head.headers)?;
        // A browser asks before it sends, and cannot send the key with that.
        if *head.method == Method::OPTIONS {
            return Ok(());
        }
        self.check_key(head)?;
        check_content_type(head)
    }

    /// The origin of the request, if its scripts may read the answer.
    pub(crate) fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        self.origins.contains(&text).then(|| origin.clone())
    }

    /// Whether the request carries the key, or none is needed.
    pub(crate) fn is_trusted(&self, headers: &HeaderMap) -> bool {
        self.key.is_none() || self.has_key(headers)
    }

    /// A web page elsewhere can make a name of its own point to this machine, but not change the name that a browser
    /// sends.
    fn check_host(&self, head: Head<'_>) -> Result<(), ApiError> {
        let refused = || {
            let message = "the Host header does not name this API; `allow-host` adds a name";
            ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message)
        };
        let mut hosts = head.headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(refused()) };
        let host = host.to_str().map_err(|_| refused())?;
        let authority = head.uri.authority().map(axum::http::uri::Authority::as_str);
        if [Some(host), authority].into_iter().flatten().all(|host| self.is_ours(host)) {
            Ok(())
        } else {
            Err(refused())
        }
    }

    fn is_ours(&self, host_and_port: &str) -> bool {
        let host = without_port(host_and_port).to_ascii_lowercase();
        let address = host.parse::<IpAddr>();
        LOOPBACK_NAMES.contains(&host.as_str())
            || self.hosts.contains(&host)
            // An address is no name that somebody could point elsewhere.
            || address.is_ok_and(|address| self.bound.is_unspecified() || self.bound == address)
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if !headers.contains_key(header::ORIGIN) || self.allowed_origin(headers).is_some() {
            return Ok(());
        }
        let message = "this web page may not use the API; `allow-origin` lets it";
        Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
    }

    fn check_key(&self, head: Head<'_>) -> Result<(), ApiError> {
        let path = head.uri.path();
        let is_internal = path.starts_with(INTERNAL);
        if path == "/health" || (self.key.is_none() && !is_internal) || self.has_key(head.headers) {
            return Ok(());
        }
        let message = if is_internal {
            "this part of the API is for the peer's own commands and needs the token in run.json"
        } else {
            "expected the API key as `Authorization: Bearer KEY`"
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let Some(given) = given.and_then(bearer) else { return false };
        let is_key = self.key.as_ref().is_some_and(|key| key.matches(given));
        is_key | self.token.matches(given)
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii())
}

/// `host`, `host:1`, `[::1]` and `[::1]:1` without brackets and port.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or(rest, |(host, _)| host);
    }
    host.rsplit_once(':').map_or(host, |(host, _)| host)
}

/// A form on a web page can send anything but JSON without being asked.
fn check_content_type(head: Head<'_>) -> Result<(), ApiError> {
    if *head.method != Method::POST {
        return Ok(());
    }
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "expected a body of Content-Type application/json";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "the-token-of-run-json";
    const KEY: &str = "0123456789abcdef";

    fn gate(bound: &str, key: Option<&str>) -> Gate {
        let settings = Api {
            address: bound.parse().unwrap(),
            key: key.map(|key| ApiKey::new(key).unwrap()),
            hosts: vec!["Chat.lan".to_owned()],
            origins: vec!["https://page.example".to_owned()],
        };
        Gate::new(settings.address, &settings, ApiKey::new(TOKEN).unwrap())
    }

    fn status(gate: &Gate, method: Method, path: &str, headers: &[(&str, &str)]) -> u16 {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        let uri = path.parse().unwrap();
        let verdict = gate.check(Head { method: &method, uri: &uri, headers: &headers });
        verdict.map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    fn get(gate: &Gate, path: &str, headers: &[(&str, &str)]) -> u16 {
        status(gate, Method::GET, path, headers)
    }

    #[test]
    fn a_name_that_is_not_ours_is_refused() {
        let loopback = gate("127.0.0.1:2745", None);
        for host in ["localhost", "localhost:2745", "127.0.0.1:1", "[::1]:2745", "LOCALHOST", "chat.lan"] {
            assert_eq!(get(&loopback, "/v1/models", &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example", "evil.example:2745", "localhost.evil.example", "10.0.0.1", ""] {
            assert_eq!(get(&loopback, "/v1/models", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(get(&loopback, "/v1/models", &[]), 403);
        assert_eq!(get(&loopback, "/v1/models", &[("host", "localhost"), ("host", "localhost")]), 403);
        assert_eq!(get(&loopback, "http://evil.example/v1/models", &[("host", "localhost")]), 403);
    }

    #[test]
    fn an_api_on_every_address_answers_to_addresses_but_not_to_foreign_names() {
        let open = gate("0.0.0.0:2745", None);

        assert_eq!(get(&open, "/v1/models", &[("host", "192.168.1.7:2745")]), 200);
        assert_eq!(get(&open, "/v1/models", &[("host", "evil.example")]), 403);
    }

    #[test]
    fn a_web_page_needs_to_be_allowed() {
        let gate = gate("127.0.0.1:2745", None);
        let with = |origin| get(&gate, "/v1/models", &[("host", "localhost"), ("origin", origin)]);

        assert_eq!(with("https://page.example"), 200);
        assert_eq!(with("https://page.example.evil"), 403);
        assert_eq!(with("null"), 403);
    }

    #[test]
    fn the_key_is_asked_for_everywhere_but_for_health() {
        let gate = gate("0.0.0.0:2745", Some(KEY));
        let with = |path: &str, value: &str| get(&gate, path, &[("host", "localhost"), ("authorization", value)]);

        assert_eq!(get(&gate, "/health", &[("host", "localhost")]), 200);
        assert_eq!(get(&gate, "/v1/models", &[("host", "localhost")]), 401);
        assert_eq!(with("/v1/models", &format!("Bearer {KEY}")), 200);
        assert_eq!(with("/v1/models", &format!("bearer {TOKEN}")), 200);
        assert_eq!(with("/metrics", "Bearer wrong-key-0123456"), 401);
        assert_eq!(with("/v1/models", KEY), 401);
    }

    #[test]
    fn the_peers_own_commands_need_its_token_even_without_a_key() {
        let gate = gate("127.0.0.1:2745", None);
        let with = |value: &str| get(&gate, "/brigade/v1/status", &[("host", "localhost"), ("authorization", value)]);

        assert_eq!(get(&gate, "/brigade/v1/status", &[("host", "localhost")]), 401);
        assert_eq!(with(&format!("Bearer {TOKEN}")), 200);
        assert_eq!(with("Bearer "), 401);
    }

    #[test]
    fn a_body_is_json() {
        let gate = gate("127.0.0.1:2745", None);
        let with =
            |kind| status(&gate, Method::POST, "/v1/completions", &[("host", "localhost"), ("content-type", kind)]);

        assert_eq!(with("application/json; charset=utf-8"), 200);
        assert_eq!(with("text/plain"), 415);
        assert_eq!(status(&gate, Method::POST, "/v1/completions", &[("host", "localhost")]), 415);
    }
}
