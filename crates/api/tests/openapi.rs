//! The contract as a document: complete, consistent, and the same as its copy in `docs/`.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test; UPDATE_DOCS is for it, not for the program"
)]

use std::{collections::BTreeSet, path::Path};

use api::auth::PUBLIC_ROUTES;
use serde_json::Value;

struct Operation {
    method: String,
    path: String,
    value: Value,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

fn document() -> Value {
    serde_json::to_value(api::openapi::document()).unwrap()
}

fn operations(document: &Value) -> Vec<Operation> {
    let paths = document["paths"].as_object().unwrap().iter();
    let all = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(|(method, value)| Operation {
            method: method.to_uppercase(),
            path: path.clone(),
            value: value.clone(),
        })
    });
    all.collect()
}

#[test]
fn the_copy_in_docs_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let wanted = api::openapi::document_json();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    assert!(
        found == wanted,
        "docs/openapi.json is out of date: run `UPDATE_DOCS=1 cargo test -p api --test openapi`"
    );
}

#[test]
fn the_document_is_the_same_each_time() {
    assert_eq!(api::openapi::document_json(), api::openapi::document_json());
}

#[test]
fn public_routes_are_those_without_security() {
    let document = document();
    // An empty requirement among others: without credentials it works too, or answers as if it were not there.
    let needs_none = |value: &Value| match value["security"].as_array() {
        Some(ways) => ways.iter().any(|way| way.as_object().is_some_and(serde_json::Map::is_empty)),
        None => true,
    };
    let documented: BTreeSet<String> =
        operations(&document).iter().filter(|o| needs_none(&o.value)).map(ToString::to_string).collect();
    let allowed: BTreeSet<String> =
        PUBLIC_ROUTES.iter().map(|(method, path)| format!("{method} {path}")).collect();
    assert_eq!(documented, allowed, "left: without `security(...)` in #[utoipa::path]; right: PUBLIC_ROUTES");
}

#[test]
fn every_operation_says_what_it_does_and_names_a_tag_that_is_described() {
    let document = document();
    let tags: BTreeSet<&str> =
        document["tags"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    let mut ids = BTreeSet::new();
    for operation in operations(&document) {
        let value = &operation.value;
        assert!(value["summary"].as_str().is_some_and(|s| s.len() > 10), "{operation} needs a doc comment");
        let tag = value["tags"][0].as_str().unwrap_or_default();
        assert!(tags.contains(tag), "{operation}: describe the tag `{tag}` in crates/api/src/openapi/mod.rs");
        let id = value["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id), "{operation} shares its operationId with another");
    }
}

#[test]
fn every_parameter_in_a_path_is_declared() {
    for operation in operations(&document()) {
        let in_path: BTreeSet<&str> =
            operation.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}')).collect();
        let parameters = operation.value["parameters"].as_array().cloned().unwrap_or_default();
        let declared: BTreeSet<&str> = parameters
            .iter()
            .filter(|p| p["in"] == "path")
            .map(|p| p["name"].as_str().unwrap_or_default())
            .collect();
        assert_eq!(in_path, declared, "{operation}: params(...) in #[utoipa::path]");
    }
}

/// What follows from how a route is built must be among its answers, in the error format of the route.
#[test]
fn every_operation_documents_the_refusals_of_its_layers() {
    let document = document();
    for operation in operations(&document) {
        let value = &operation.value;
        let responses = value["responses"].as_object().unwrap();
        let mut expected = Vec::new();
        if value["security"].is_array() {
            expected.push("401");
        }
        if operation.path.contains('{') {
            expected.push("404");
        }
        if value["requestBody"].is_object() {
            expected.extend(["400", "413", "415"]);
        }
        if operation.path.starts_with("/v1/") {
            expected.extend(["429", "500", "503"]);
        }
        for status in expected {
            assert!(responses.contains_key(status), "{operation} does not document {status}");
        }
        assert!(responses.keys().any(|s| s.starts_with('2')), "{operation} documents no success");
        for (status, response) in responses {
            let response = match response["$ref"].as_str() {
                Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
                None => response,
            };
            assert!(response["description"].as_str().is_some_and(|d| !d.is_empty()), "{operation} {status}");
            assert!(response["headers"]["X-Request-Id"].is_object(), "{operation} {status}");
            if status.starts_with('2') || value["tags"][0] == "health" && status == "503" {
                continue;
            }
            let openai = ["/v1/chat/", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/ai/"];
            let (media_type, schema) = if openai.iter().any(|prefix| operation.path.starts_with(prefix)) {
                ("application/json", "OpenAiError")
            } else {
                ("application/problem+json", "Problem")
            };
            let content = response["content"].as_object().unwrap();
            assert_eq!(content.keys().collect::<Vec<_>>(), [media_type], "{operation} {status}");
            let reference = format!("#/components/schemas/{schema}");
            assert_eq!(content[media_type]["schema"]["$ref"], *reference, "{operation} {status}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(document: &Value, value: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    let target = document.pointer(reference.trim_start_matches('#'));
                    assert!(target.is_some(), "{reference} leads nowhere");
                }
                map.values().for_each(|value| walk(document, value));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(document, value)),
            _ => {}
        }
    }
    let document = document();
    walk(&document, &document);
}

#[test]
fn every_body_has_an_example() {
    let document = document();
    for operation in operations(&document) {
        let Some(content) = operation.value["requestBody"]["content"].as_object() else { continue };
        for content in content.values() {
            let schema = &content["schema"];
            let schema = match schema["$ref"].as_str() {
                Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
                None => schema,
            };
            assert!(
                content.get("example").or(schema.get("example")).is_some(),
                "{operation}: give its body an example, `#[schema(example = json!(...))]`"
            );
        }
    }
}
