//! What is behind the paths with an id.

use super::{World, request, send};
use crate::support::Operation;

/// How a resource comes about.
pub(super) enum Behind {
    /// Its owner sends this request, with the example for a body; the answer has the id here (a JSON pointer).
    Owned(&'static str, &'static str),
    /// It belongs to nobody in particular.
    Shared,
}

use Behind::{Owned, Shared};

/// By the beginning of the path; the first that fits.
///
/// A test fails when a path with an id has no line here. The line is enough: every operation below it is then tried by
/// somebody else, with a token and with an API key. What is not made by a request of its own can be found in a list:
/// `Owned("GET /v1/sessions", "/data/0/id")`.
const RESOURCES: &[(&str, Behind)] = &[
    ("/v1/api-keys/", Owned("POST /v1/api-keys", "/id")),
    ("/v1/jobs/", Owned("POST /v1/jobs", "/id")),
    ("/v1/runs/", Owned("POST /v1/runs", "/id")),
    ("/v1/admin/jobs/", Owned("POST /v1/jobs", "/id")),
    ("/v1/sessions/", Owned("GET /v1/sessions", "/data/0/id")),
    ("/v1/admin/api-keys/", Owned("POST /v1/api-keys", "/id")),
    // The operators'.
    ("/v1/admin/limits/", Shared),
    ("/v1/admin/invitations/", Shared),
    ("/v1/admin/queues/", Shared),
    ("/v1/credentials/", Owned("POST /v1/credentials", "/id")),
    ("/v1/documents/", Owned("POST /v1/documents", "/id")),
    ("/v1/webhook-endpoints/", Owned("POST /v1/webhook-endpoints", "/id")),
    // Whoever has the source's secret.
    ("/v1/webhooks/", Shared),
    // The engine's.
    ("/v1/models/", Shared),
    ("/v1/ai/", Shared),
];

/// What is behind an operation's path.
pub(super) fn behind(operation: &Operation) -> &'static Behind {
    let found = RESOURCES.iter().find(|(prefix, _)| operation.path.starts_with(prefix));
    let Some((_, behind)) = found else {
        let prefix = prefix(operation);
        panic!(
            "{operation} has an id in its path and no line in RESOURCES \
             (crates/ballast/tests/it/contract/resources.rs). Say how its owner makes what is behind it, for instance:\n    \
             (\"{prefix}\", Owned(\"POST {}\", \"/id\")),",
            prefix.trim_end_matches('/')
        );
    };
    behind
}

impl Behind {
    /// Makes one that belongs to the world's user; `None` when it belongs to nobody.
    pub(super) async fn make(&self, world: &World) -> Option<String> {
        let Self::Owned(route, pointer) = self else { return None };
        let operation = Operation::all().iter().find(|o| o.to_string() == *route);
        let operation =
            operation.unwrap_or_else(|| panic!("RESOURCES names {route}, which is not documented"));
        let answer = send(&world.user, request(operation, &world.user, operation.path)).await;
        assert!((200..300).contains(&answer.status), "{route}: {} {}", answer.status, answer.text);
        let body = answer.json();
        let id =
            body.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in the answer to {route}: {body}"));
        Some(id.as_str().map_or_else(|| id.to_string(), str::to_owned))
    }
}

/// The beginning of an operation's path, up to its first parameter.
pub(super) fn prefix(operation: &Operation) -> &'static str {
    operation.path.split('{').next().unwrap_or_default()
}

/// An id of the same form that nobody has.
pub(super) fn unknown(id: &str) -> String {
    if let Ok(number) = id.parse::<i64>() {
        return (number + 1_000_000_000).to_string();
    }
    assert!(id.parse::<uuid::Uuid>().is_ok(), "{id} is neither a number nor a UUID");
    uuid::Uuid::now_v7().to_string()
}
