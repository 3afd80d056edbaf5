//! The OpenAPI document as the tests use it: a list of operations, and a judge that reads along.
//!
//! Every answer that a [`Persona`](super::Persona) receives, in whatever test, is held against the document: its status must
//! be there for this operation, in this media type, and a JSON body must fit its schema.

use std::sync::LazyLock;

use reqwest::Method;
use serde_json::{Map, Value};

use super::Answer;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(api::openapi::document()).unwrap());

static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, value) in item.as_object().unwrap() {
            all.push(Operation { method: method.to_uppercase().parse().unwrap(), path, value });
        }
    }
    all
});

/// One method of one route.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// The template, with `{id}`.
    pub(crate) path: &'static str,
    pub(crate) value: &'static Value,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Operation {
    /// Everything the document describes.
    pub(crate) fn all() -> &'static [Self] {
        &OPERATIONS
    }

    /// Works without credentials.
    pub(crate) fn is_public(&self) -> bool {
        let no_need = |way: &Value| way.as_object().is_some_and(Map::is_empty);
        self.value["security"].as_array().is_none_or(|ways| ways.iter().any(no_need))
    }

    pub(crate) fn is_for_admins(&self) -> bool {
        self.path.starts_with("/v1/admin/")
    }

    /// Speaks OpenAI's dialect, errors included.
    pub(crate) fn speaks_openai(&self) -> bool {
        self.value["responses"]["500"]["$ref"].as_str().is_some_and(|r| r.contains("/OpenAi"))
    }

    pub(crate) fn has_parameter(&self) -> bool {
        self.path.contains('{')
    }

    /// The path with this in the place of every parameter.
    pub(crate) fn at(&self, id: &str) -> String {
        let parts = self.path.split('/').map(|part| if part.starts_with('{') { id } else { part });
        parts.collect::<Vec<_>>().join("/")
    }

    /// The schema of the JSON body.
    pub(crate) fn body_schema(&self) -> Option<&'static Value> {
        Some(resolve(self.body_content()?.get("schema")?))
    }

    /// The example of the JSON body: with it the request is well-formed.
    pub(crate) fn body(&self) -> Option<Value> {
        let content = self.body_content()?;
        let example = content.get("example").or_else(|| resolve(&content["schema"]).get("example"));
        Some(example.unwrap_or_else(|| panic!("the body of {self} has no example")).clone())
    }

    fn body_content(&self) -> Option<&'static Value> {
        self.value["requestBody"]["content"].get("application/json")
    }

    /// Names of the parameters in `place`: `query` or `header`.
    pub(crate) fn parameters(&self, place: &str) -> impl Iterator<Item = &'static str> {
        let parameters = self.value["parameters"].as_array().into_iter().flatten();
        parameters.filter(move |p| p["in"] == place).filter_map(|p| p["name"].as_str())
    }

    /// The operation that a request was for.
    fn find(method: &Method, path: &str) -> Option<&'static Self> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let candidates = Self::all().iter().filter(|o| o.method == *method && o.fits(path));
        candidates.min_by_key(|o| o.path.matches('{').count())
    }

    fn fits(&self, path: &str) -> bool {
        let template: Vec<&str> = self.path.split('/').collect();
        let parts: Vec<&str> = path.split('/').collect();
        // Names of models and the engine's paths may have slashes in them.
        let rest = matches!(template[..], ["", "v1", "models" | "ai", _]) && parts.len() > template.len();
        let same = |(template, part): (&&str, &&str)| template.starts_with('{') || template == part;
        (rest || template.len() == parts.len()) && template.iter().zip(&parts).all(same)
    }
}

/// Holds an answer against the document.
#[track_caller]
pub(super) fn check(method: &Method, path: &str, answer: &Answer) {
    // Without an id it was made by the HTTP server, before there was a route.
    let routed = answer.headers.contains_key("x-request-id");
    let Some(operation) = Operation::find(method, path).filter(|_| routed) else { return };
    let status = answer.status.to_string();
    let responses = &operation.value["responses"];
    let documented = responses.get(&status).or_else(|| responses.get(format!("{}XX", &status[..1])));
    let Some(response) = documented.map(resolve) else {
        panic!(
            "{operation} answers {status}, which is not documented: add it to its #[utoipa::path], or to \
             crates/api/src/openapi/answers.rs when every such route can.\n{}",
            answer.text
        );
    };
    if answer.text.is_empty() || method == Method::HEAD {
        return;
    }
    let media_type = answer.header("content-type").split(';').next().unwrap_or_default();
    let Some(content) = response["content"].get(media_type) else {
        panic!("{operation} answers {status} as `{media_type}`, which is not documented:\n{}", answer.text);
    };
    if media_type.ends_with("json")
        && let Some(mismatch) = mismatch(&content["schema"], &answer.json(), "the body")
    {
        panic!(
            "{operation} answers {status} with something else than documented: {mismatch}\n{}",
            answer.text
        );
    }
}

fn resolve(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(reference) => resolve(DOCUMENT.pointer(reference.trim_start_matches('#')).unwrap()),
        None => value,
    }
}

/// What does not fit, in the part of JSON schema that utoipa writes.
fn mismatch(schema: &'static Value, value: &Value, at: &str) -> Option<String> {
    let schema = resolve(schema);
    for key in ["oneOf", "anyOf"] {
        if let Some(choices) = schema[key].as_array() {
            let fits = choices.iter().any(|choice| mismatch(choice, value, at).is_none());
            return (!fits).then(|| format!("{at} is none of the choices"));
        }
    }
    let kinds = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is(kind)) {
        return Some(format!("{at} should be {}", kinds.join(" or ")));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        return Some(format!("{at} is `{value}`, which is not listed"));
    }
    match value {
        Value::Object(object) => object_mismatch(schema, object, at),
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items
                .filter(|_| schema["items"].is_object())
                .find_map(|(i, item)| mismatch(&schema["items"], item, &format!("{at}[{i}]")))
        }
        _ => None,
    }
}

fn object_mismatch(schema: &'static Value, object: &Map<String, Value>, at: &str) -> Option<String> {
    // A flattened struct is written as `allOf`.
    let parts =
        || std::iter::once(schema).chain(schema["allOf"].as_array().into_iter().flatten().map(resolve));
    let mut required = parts().flat_map(|part| part["required"].as_array().into_iter().flatten());
    if let Some(name) = required.find(|name| !object.contains_key(name.as_str().unwrap())) {
        return Some(format!("{at} has no {name}"));
    }
    let closed = parts().any(|part| part["properties"].is_object());
    object.iter().find_map(|(name, value)| {
        let at = format!("{at}.{name}");
        let known = parts().find_map(|part| part["properties"].get(name));
        match known.or_else(|| parts().find_map(|part| part.get("additionalProperties"))) {
            Some(schema) => mismatch(schema, value, &at),
            None => closed.then(|| format!("{at} is not documented")),
        }
    })
}
