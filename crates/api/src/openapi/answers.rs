//! What every route answers beside what is its own: the layers' and extractors' refusals, and the headers of all answers.
//!
//! A test that reads along in the whole suite (`crates/ballast/tests/it/support/contract.rs`) fails when a route answers with
//! a status that is not in the document.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::openapi::{
    Components, ContentBuilder, Header, Object, OpenApi, Ref, RefOr, Response, Type, path::Operation,
};

use super::operations;
use crate::edge;

/// Every error that there is a standard text for: status, name, when, headers.
const ERRORS: [(u16, &str, &str, &[&str]); 14] = [
    (400, "BadRequest", "The request cannot be understood: no JSON, or a parameter of the wrong type.", &[]),
    (
        401,
        "Unauthorized",
        "No credential, or one that is invalid, expired or revoked.",
        &["WWW-Authenticate"],
    ),
    (403, "Forbidden", "The credential is good, but may not do this.", &[]),
    (404, "NotFound", "There is nothing here, or it is somebody else's.", &[]),
    (408, "RequestTimeout", "The body did not arrive in time.", &[]),
    (409, "Conflict", "It contradicts what is there.", &[]),
    (413, "PayloadTooLarge", "The body is larger than this route accepts.", &[]),
    (415, "UnsupportedMediaType", "The body must be JSON, said to be so, and not compressed.", &[]),
    (
        422,
        "UnprocessableContent",
        "The request is understood, but a value is wrong: `errors` says which.",
        &[],
    ),
    (
        429,
        "TooManyRequests",
        "A limit is used up: wait as long as `Retry-After` says.",
        &["Retry-After", "RateLimit", "RateLimit-Policy"],
    ),
    (500, "InternalServerError", "Something went wrong on our side.", &[]),
    (502, "BadGateway", "The engine's answer cannot be used.", &[]),
    (
        503,
        "ServiceUnavailable",
        "Not available at the moment: try again after `Retry-After`.",
        &["Retry-After"],
    ),
    (504, "GatewayTimeout", "The engine took too long.", &["Retry-After"]),
];

const HEADERS: [(&str, &str, &str); 11] = [
    (
        "X-Request-Id",
        "The request's id: as the client sent it, or a new one. Quote it to ask about a request.",
        "",
    ),
    ("Retry-After", "Seconds to wait.", "integer"),
    (
        "RateLimit",
        "What is left, by policy: `\"global\";r=97;t=12` (draft-ietf-httpapi-ratelimit-headers).",
        "",
    ),
    ("RateLimit-Policy", "The limits, by policy: `\"global\";q=100;w=900`.", ""),
    ("X-RateLimit-Limit-Requests", "AI requests per minute.", "integer"),
    ("X-RateLimit-Remaining-Requests", "AI requests that are left.", "integer"),
    (
        "X-RateLimit-Reset-Requests",
        "Until all of them are there again, as OpenAI writes times: `1m30.5s`.",
        "",
    ),
    ("X-RateLimit-Limit-Tokens", "AI tokens per minute.", "integer"),
    ("X-RateLimit-Remaining-Tokens", "AI tokens that are left.", "integer"),
    ("X-RateLimit-Reset-Tokens", "Until all of them are there again, as OpenAI writes times: `1m30.5s`.", ""),
    ("WWW-Authenticate", "`Bearer`, with an error code when there was a credential (RFC 6750).", ""),
];

/// Completes what the handlers say.
pub(super) fn complete(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    add_components(components);
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            operation.operation_id = Some(operation_id(method, path));
            add_errors(operation, path);
            for (status, response) in &mut operation.responses.responses {
                *response = complete_response(response, status, operation.security.is_some(), method, path);
            }
        }
    }
}

/// `DELETE /v1/api-keys/{id}` is `delete_api_keys_by_id`: unique, because the route is.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split('/').filter(|part| !part.is_empty() && *part != "v1").map(|part| {
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) => format!("by_{name}"),
            None => part.trim_start_matches('.').replace(['-', '.'], "_"),
        }
    });
    let words = words.collect::<Vec<_>>().join("_");
    format!("{method}_{}", if words.is_empty() { "root" } else { &words })
}

/// Adds the refusals that no handler has a say in.
fn add_errors(operation: &mut Operation, path: &str) {
    let mut missing = Vec::new();
    let has_path = path.contains('{');
    let has_query = operation.parameters.iter().flatten().any(|parameter| {
        matches!(parameter, RefOr::T(p) if matches!(p.parameter_in, utoipa::openapi::path::ParameterIn::Query))
    });
    let health = operation.tags.iter().flatten().any(|tag| tag == "health");
    // The gate and admission.
    if operation.security.is_some() && !health {
        missing.extend([401]);
    }
    if has_path {
        missing.extend([404]);
    }
    if has_query {
        missing.extend([400]);
    }
    if operation.request_body.is_some() {
        missing.extend([400, 408, 413, 415]);
        // OpenAI has no 422 of its own; the engine's is told where it is forwarded.
        if !edge::speaks_openai(path) {
            missing.extend([422]);
        }
    }
    // The scope, and what the engine does: its refusals of the client's mistakes are passed on.
    if edge::speaks_openai(path) {
        missing.extend([403, 502, 504]);
        let refusal = Response::new("The engine's refusal of what it was asked, with its status and text.");
        operation.responses.responses.entry("4XX".to_owned()).or_insert_with(|| refusal.into());
    }
    // The time limit, and what is stored.
    if path.starts_with("/v1/") {
        missing.extend([503]);
    }
    // The burst shield, and a handler that panics. Probes are spared the first; the second they have too, but say so in
    // their own words.
    if !health {
        missing.extend([429, 500]);
    }
    for status in missing {
        let responses = &mut operation.responses.responses;
        responses.entry(u16::to_string(&status)).or_insert_with(|| Response::default().into());
    }
}

/// The error body of the route's dialect, the headers of all answers, and words where there are none.
fn complete_response(
    response: &RefOr<Response>,
    status: &str,
    secured: bool,
    method: &str,
    path: &str,
) -> RefOr<Response> {
    let RefOr::T(response) = response else { return response.clone() };
    let mut response = response.clone();
    let openai = edge::speaks_openai(path);
    response.headers.entry("X-Request-Id".to_owned()).or_insert_with(|| header("X-Request-Id"));
    if status.starts_with('2') || status.starts_with('3') {
        if secured && path.starts_with("/v1/") {
            for name in ["RateLimit", "RateLimit-Policy"] {
                response.headers.entry(name.to_owned()).or_insert_with(|| header(name));
            }
            // Only what asks the engine for tokens is charged so.
            if openai && method == "post" {
                let names =
                    HEADERS.iter().map(|(name, ..)| *name).filter(|name| name.starts_with("X-RateLimit"));
                response.headers.extend(names.map(|name| (name.to_owned(), header(name))));
            }
        }
        if response.description.is_empty() {
            "Done.".clone_into(&mut response.description);
        }
        return response.into();
    }
    // A report of its own, as the probes have.
    if !response.content.is_empty() && !has_error_body(&response) {
        return response.into();
    }
    let standard = ERRORS.iter().find(|(code, ..)| code.to_string() == status);
    match standard {
        Some((_, name, ..)) if response.description.is_empty() => {
            Ref::from_response_name(component_name(name, openai)).into()
        }
        Some((code, _, _, headers)) => {
            response.headers.extend(headers.iter().map(|name| ((*name).to_owned(), header(name))));
            with_error_body(response, *code, openai).into()
        }
        None => with_error_body(response, 400, openai).into(),
    }
}

fn has_error_body(response: &Response) -> bool {
    response.content.values().all(|content| {
        let RefOr::T(content) = content else { return false };
        matches!(&content.schema, Some(RefOr::Ref(schema))
            if schema.ref_location.ends_with("/Problem") || schema.ref_location.ends_with("/OpenAiError"))
    })
}

fn with_error_body(mut response: Response, status: u16, openai: bool) -> Response {
    let (media_type, schema) =
        if openai { ("application/json", "OpenAiError") } else { ("application/problem+json", "Problem") };
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .example(Some(example(status, openai)))
        .build();
    response.content.clear();
    response.content.insert(media_type.to_owned(), content.into());
    response
}

/// An error as it really looks: the texts are those of the code.
fn example(status: u16, openai: bool) -> Value {
    let status = axum::http::StatusCode::from_u16(status).expect("the table has statuses only");
    let error = match status.as_u16() {
        401 => crate::Error::missing_credentials(),
        422 => crate::Error::invalid("name", "must have 1 to 100 characters"),
        _ => edge::bare(status),
    };
    let id = "0198c6f27b9e7d9a8f3b6f0e5d4c3b2a";
    if openai { error.openai(id) } else { error.problem(id) }
}

fn component_name(name: &str, openai: bool) -> String {
    if openai { format!("OpenAi{name}") } else { name.to_owned() }
}

fn header(name: &str) -> RefOr<Header> {
    RefOr::Ref(Ref::new(format!("#/components/headers/{name}")))
}

fn add_components(components: &mut Components) {
    for (name, description, kind) in HEADERS {
        let kind = if kind == "integer" { Type::Integer } else { Type::String };
        let mut header = Header::new(Object::with_type(kind));
        header.description = Some(description.to_owned());
        components.headers.insert(name.to_owned(), header.into());
    }
    for (status, name, description, headers) in ERRORS {
        for openai in [false, true] {
            let names = headers.iter().copied().chain(["X-Request-Id"]);
            let mut response = Response::new(description);
            response.headers = names.map(|name| (name.to_owned(), header(name))).collect::<BTreeMap<_, _>>();
            let response = with_error_body(response, status, openai);
            components.responses.insert(component_name(name, openai), response.into());
        }
    }
}
