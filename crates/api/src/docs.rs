//! `GET /docs`: the API's description for people, rendered once from the OpenAPI document. No script, nothing
//! from elsewhere; its content policy allows the one style sheet in the page, by hash.

use std::{fmt::Write as _, sync::LazyLock};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{auth::PUBLIC_ROUTES, openapi};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    code{font:14px ui-monospace,monospace}h2{margin-top:2rem;border-bottom:1px solid #ccc}\
    summary{cursor:pointer;padding:.2rem 0}.m{display:inline-block;min-width:4.5rem;font-weight:600}\
    .p{color:#666}pre{background:#f4f4f4;padding:.7rem;overflow-x:auto}td,th{text-align:left;padding-right:1.5rem}\
    @media(prefers-color-scheme:dark){body{background:#111;color:#ddd}pre{background:#222}a{color:#8bf}}";

/// The API's description for people.
#[utoipa::path(get, path = "/docs", tag = "meta", responses((status = 200, body = String, content_type = "text/html")))]
pub(crate) async fn page() -> Response {
    static PAGE: LazyLock<(HeaderValue, Bytes)> = LazyLock::new(|| {
        let document = serde_json::to_value(openapi::document()).expect("the document serialises");
        (policy(), render(&document).into())
    });
    let (policy, page) = &*PAGE;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, policy.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300")),
    ];
    (headers, page.clone()).into_response()
}

/// Allows the one style sheet, by hash, and nothing else.
fn policy() -> HeaderValue {
    let hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    let policy =
        format!("default-src 'none'; style-src 'sha256-{hash}'; frame-ancestors 'none'; base-uri 'none'");
    HeaderValue::from_str(&policy).expect("base64 is a header value")
}

fn render(document: &Value) -> String {
    let mut by_tag: Vec<(String, String)> = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let tag = operation["tags"][0].as_str().unwrap_or("other").to_owned();
            let entry = entry(document, &method.to_uppercase(), path, operation);
            match by_tag.iter_mut().find(|(t, _)| *t == tag) {
                Some((_, entries)) => entries.push_str(&entry),
                None => by_tag.push((tag, entry)),
            }
        }
    }
    let title = escape(document["info"]["title"].as_str().unwrap_or("API"));
    let version = escape(document["info"]["version"].as_str().unwrap_or_default());
    let mut out = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{title}</title><style>{STYLE}</style><h1>{title} <small class=p>{version}</small></h1>\
         <p>Send <code>Authorization: Bearer TOKEN</code> or <code>X-API-Key: KEY</code>, except where it says public. \
         The same as OpenAPI: <a href=/openapi.json>/openapi.json</a>."
    );
    for (tag, entries) in by_tag {
        let _ = write!(out, "<h2>{}</h2>{entries}", escape(&tag));
    }
    out
}

fn entry(document: &Value, method: &str, path: &str, operation: &Value) -> String {
    let public = if PUBLIC_ROUTES.contains(&(method, path)) { " <span class=p>public</span>" } else { "" };
    let summary = escape(operation["summary"].as_str().unwrap_or_default());
    let mut out = format!(
        "<details><summary><span class=m>{method}</span><code>{}</code>{public} <span class=p>{summary}</span></summary>",
        escape(path)
    );
    if let Some(description) = operation["description"].as_str() {
        let _ = write!(out, "<p>{}", escape(description));
    }
    let body = &operation["requestBody"]["content"]["application/json"];
    if let Some(schema) = body.get("schema") {
        let _ = write!(out, "<p>Body:<pre>{}</pre>", escape(&shape(document, schema, 0)));
    }
    if let Some(example) = body.get("example").or(resolve(document, &body["schema"]).get("example")) {
        let _ = write!(out, "<p>For example:<pre>{}</pre>", escape(&format!("{example:#}")));
    }
    out.push_str("<table><tr><th>Status<th>When<th>Answer</tr>");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let response = resolve(document, response);
        let when = response["description"].as_str().unwrap_or_default();
        let schema =
            response["content"].as_object().and_then(|c| c.values().next()).and_then(|c| c.get("schema"));
        let shape = schema.map(|s| shape(document, s, 0)).unwrap_or_default();
        let (status, when, shape) = (escape(status), escape(when), escape(&shape));
        let _ = write!(out, "<tr><td>{status}<td>{when}<td><pre>{shape}</pre></tr>");
    }
    out + "</table></details>"
}

/// What a reference leads to.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let target = value["$ref"].as_str().and_then(|r| document.pointer(r.trim_start_matches('#')));
    target.unwrap_or(value)
}

/// A schema as one would write an example: names and types.
fn shape(document: &Value, schema: &Value, depth: usize) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return match name {
            "Problem" => "problem document (RFC 9457)".to_owned(),
            "OpenAiError" => "OpenAI's error object".to_owned(),
            _ if depth > 3 => name.to_owned(),
            _ => shape(document, &document["components"]["schemas"][name], depth),
        };
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        if let Some(parts) = schema[key].as_array() {
            let parts: Vec<String> = parts.iter().map(|p| shape(document, p, depth)).collect();
            return parts.join(if key == "allOf" { " and " } else { " or " });
        }
    }
    if let Some(properties) = schema["properties"].as_object() {
        return object(document, schema, properties, depth);
    }
    if schema["items"].is_object() {
        return format!("[{}]", shape(document, &schema["items"], depth));
    }
    let name = match &schema["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    };
    schema["format"].as_str().map_or(name.clone(), |format| format!("{name} ({format})"))
}

fn object(document: &Value, schema: &Value, properties: &Map<String, Value>, depth: usize) -> String {
    let indent = "  ".repeat(depth + 1);
    let required = |name: &str| schema["required"].as_array().is_some_and(|r| r.iter().any(|n| n == name));
    let mut out = "{\n".to_owned();
    for (name, property) in properties {
        let optional = if required(name) { "" } else { "?" };
        let _ = writeln!(out, "{indent}{name}{optional}: {}", shape(document, property, depth + 1));
    }
    let _ = write!(out, "{}}}", "  ".repeat(depth));
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
