//! The gate: nothing is public unless it stands in [`PUBLIC_ROUTES`].

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderMap, Uri, header},
};

use super::{ApiKeySecret, Claims};
use crate::{AppState, Error, openapi};

/// Every route that needs no credentials, by method and template. A test walks over all routes and holds them against this.
pub const PUBLIC_ROUTES: &[(&str, &str)] = &[
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/startupz"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/health/startup"),
    // Has a token of its own.
    ("GET", "/metrics"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/"),
    ("POST", "/v1/auth/sign-up"),
    ("POST", "/v1/auth/login"),
    ("POST", "/v1/auth/refresh"),
    ("POST", "/v1/auth/logout"),
    // Signed by its sender.
    ("POST", "/v1/webhooks/{source}"),
    // Have one-time tokens of their own.
    ("POST", "/v1/auth/register"),
    ("POST", "/v1/auth/verify-email"),
    ("POST", "/v1/auth/password/reset"),
    ("POST", "/v1/auth/password/forgot"),
];

/// Routes that take a ticket in the query instead, which the handler looks at.
const TICKET_ROUTES: &[(&str, &str)] = &[("GET", "/v1/runs/{id}/events")];

/// A credential that was presented and is genuine; whether it still holds is for admission to say.
#[derive(Clone)]
pub(crate) enum Credential {
    /// An access token with a good signature.
    Token(Arc<Claims>),
    /// A well-formed API key. Its secret is compared when the record is known.
    Key(ApiKeySecret),
}

/// Lets a request through to a public route, or with a genuine credential. `route` is the template of the one that was found,
/// if one was.
pub(crate) fn gate(state: &AppState, route: Option<&str>, request: &mut Request) -> Result<(), Error> {
    let Some(route) = route else { return Ok(()) };
    let method = if request.method() == "HEAD" { "GET" } else { request.method().as_str() };
    if PUBLIC_ROUTES.contains(&(method, route)) {
        return Ok(());
    }
    if TICKET_ROUTES.contains(&(method, route)) && brings_ticket(request.uri()) {
        let others = ["authorization", "x-api-key"];
        if others.iter().any(|name| request.headers().contains_key(*name)) {
            return Err(refuse("two credentials", "Send one credential, not two."));
        }
        return Ok(());
    }
    match authenticate(state, request.headers()) {
        Ok(credential) => {
            request.extensions_mut().insert(credential);
            Ok(())
        }
        // `GET /v1/auth/login` is told that there is no such method, not to log in.
        Err(_) if PUBLIC_ROUTES.iter().any(|(_, path)| *path == route) && !openapi::has(method, route) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn brings_ticket(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair.starts_with("ticket=")))
}

fn authenticate(state: &AppState, headers: &HeaderMap) -> Result<Credential, Error> {
    let presented = presented(headers)?;
    if ApiKeySecret::looks_like(presented) {
        return ApiKeySecret::parse(presented).map(Credential::Key).ok_or_else(|| {
            refuse("malformed api key", "The API key is mistyped: its checksum does not fit.")
        });
    }
    state.keyring.verify(presented).map(Credential::Token).map_err(|reason| {
        refuse(reason, "The access token is invalid or has expired: refresh it or log in again.")
    })
}

fn refuse(reason: &'static str, detail: &'static str) -> Error {
    metrics::counter!("auth_refused_total", "reason" => reason).increment(1);
    Error::unauthorized("invalid_token", detail)
}

/// The one credential of a request: `Authorization: Bearer`, or `X-API-Key`.
pub(super) fn presented(headers: &HeaderMap) -> Result<&str, Error> {
    let mut bearer = headers.get_all(header::AUTHORIZATION).iter();
    let mut key = headers.get_all("x-api-key").iter();
    let missing = Error::missing_credentials;
    let value = match (bearer.next(), key.next()) {
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| missing())?;
            let (scheme, token) = text.split_once(' ').ok_or_else(missing)?;
            // The scheme's case does not matter (RFC 9110, section 11.1).
            if scheme.eq_ignore_ascii_case("bearer") { token.trim() } else { return Err(missing()) }
        }
        (None, Some(value)) => {
            let text = value.to_str().map_err(|_| missing())?.trim();
            if ApiKeySecret::looks_like(text) {
                text
            } else {
                return Err(refuse("malformed api key", "This is not an API key."));
            }
        }
        (None, None) => return Err(missing()),
        (Some(_), Some(_)) => return Err(refuse("two credentials", "Send one credential, not two.")),
    };
    if bearer.next().is_some() || key.next().is_some() {
        return Err(refuse("two credentials", "Send one credential, not two."));
    }
    if value.is_empty() { Err(missing()) } else { Ok(value) }
}
