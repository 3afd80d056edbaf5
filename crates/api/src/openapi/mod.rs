//! The contract: the OpenAPI document, made from the handlers' own descriptions.
//!
//! A handler's `#[utoipa::path]` says what is its own: what it does, its body with an example, its answers. What every route
//! of its sort answers as well, because a layer or an extractor does, is added here, in `answers`, once. The document is the
//! same whatever the configuration; `docs/openapi.json` is a copy of it, and a test says when that is out of date.

mod answers;

use std::{collections::HashSet, sync::LazyLock};

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use utoipa::{
    Modify, OpenApi as _,
    openapi::{
        OpenApi, RefOr, Schema, Type,
        path::{Operation, PathItem},
        schema::SchemaType,
        security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{AppState, app, docs};

/// What is said before any route is described.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Ballast",
        description = "A production backend: identity, an AI proxy, jobs.\n\nErrors are problem documents (RFC 9457), or \
                       OpenAI's error object on the routes that speak OpenAI; `code` tells them apart. Every answer has an \
                       `X-Request-Id`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    tags(
        (name = "auth", description = "Accounts, sessions and tokens."),
        (name = "api keys", description = "Keys for machines."),
        (name = "credentials", description = "Credentials of other systems, for your jobs to use."),
        (name = "ai", description = "The AI engine, as OpenAI's SDKs speak to it."),
        (name = "runs", description = "Chat completions that outlive their connection."),
        (name = "jobs", description = "Work that is done in the background."),
        (name = "documents", description = "Texts that are split and turned into embeddings."),
        (name = "subscription", description = "What you pay for."),
        (name = "webhooks", description = "Events from other systems, and to them."),
        (name = "admin", description = "For administrators."),
        (name = "health", description = "For probes and dashboards."),
        (name = "meta", description = "About the API."),
    ),
    modifiers(&Security)
)]
struct Base;

struct Security;

impl Modify for Security {
    fn modify(&self, openapi: &mut OpenApi) {
        let bearer = |format: &str, description: &str| {
            let scheme = Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format(format);
            SecurityScheme::Http(scheme.description(Some(description)).build())
        };
        let key = ApiKeyValue::with_description("X-API-Key", "A key from `POST /v1/api-keys`.");
        let ticket =
            ApiKeyValue::with_description("ticket", "From `POST /v1/runs/{id}/ticket`, for EventSource.");
        let schemes = [
            (
                "bearer",
                bearer("JWT", "An access token from `POST /v1/auth/login`. An API key is accepted too."),
            ),
            ("api_key", SecurityScheme::ApiKey(ApiKey::Header(key))),
            ("ticket", SecurityScheme::ApiKey(ApiKey::Query(ticket))),
            ("metrics_token", bearer("opaque", "`METRICS_TOKEN`, where it is set.")),
        ];
        let components = openapi.components.get_or_insert_default();
        for (name, scheme) in schemes {
            components.add_security_scheme(name, scheme);
        }
    }
}

/// Where the description of the routes begins.
pub(crate) fn base() -> OpenApi {
    Base::openapi()
}

/// The whole document.
pub fn document() -> OpenApi {
    let mut document = app::routes(|ordinary| ordinary).into_openapi();
    document.merge(health::openapi());
    // OpenAPI has no word for "the rest of the path".
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    document.paths.paths.values_mut().flat_map(operations).for_each(|(_, operation)| never_null(operation));
    answers::complete(&mut document);
    document
}

/// A parameter that is not sent is absent, never null: in an address or a header that would be a text of four letters.
fn never_null(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
            && let SchemaType::Array(types) = &object.schema_type
            && let [one] = types.iter().filter(|one| **one != Type::Null).collect::<Vec<_>>()[..]
        {
            object.schema_type = SchemaType::Type(one.clone());
        }
    }
}

/// The document as text: `docs/openapi.json`.
pub fn document_json() -> String {
    let mut json = document().to_pretty_json().expect("the document serialises");
    json.push('\n');
    json
}

/// Whether the document has this method of this path.
pub(crate) fn has(method: &str, path: &str) -> bool {
    static ALL: LazyLock<HashSet<(String, String)>> = LazyLock::new(|| {
        let mut all = HashSet::new();
        for (path, mut item) in document().paths.paths {
            all.extend(operations(&mut item).map(|(method, _)| (method.to_uppercase(), path.clone())));
        }
        all
    });
    ALL.contains(&(method.to_owned(), path.to_owned()))
}

/// The operations of a path with their methods.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("post", &mut item.post),
        ("put", &mut item.put),
        ("patch", &mut item.patch),
        ("delete", &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// The document and the page, for machines and for people.
pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(openapi_json)).routes(routes!(docs::page))
}

/// One event of an event stream (as the WHATWG's HTML standard defines them), for the description of answers.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "streams are forwarded as text")]
pub(crate) struct ServerSentEvent {
    /// Its name; without one it is a `message`.
    event: Option<String>,
    /// What is in it.
    data: String,
    /// Its id, for `Last-Event-ID`.
    id: Option<String>,
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "meta", responses((status = 200, body = serde_json::Value)))]
async fn openapi_json() -> Response {
    static JSON: LazyLock<Bytes> = LazyLock::new(|| document_json().into());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300")),
    ];
    (headers, JSON.clone()).into_response()
}
