//! Every route, as it is not meant to be used; made from the API's own description, so that new routes are in it by
//! themselves.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::{
    secrets::Class,
    world::{Tokens, Who, World},
};

/// An operation of the API's description: `GET /v1/things/{id}`, how many parameters its path has, and the fields of its body.
pub(super) struct Operation {
    pub(super) name: String,
    parameters: usize,
    fields: Vec<String>,
}

/// All operations.
pub(super) fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"] {
            let operation = &item[method];
            if operation.is_null() {
                continue;
            }
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let schema = match schema["$ref"].as_str() {
                Some(reference) => &document["components"]["schemas"][reference.rsplit_once('/').unwrap().1],
                None => schema,
            };
            let fields = schema["properties"].as_object().map(|fields| fields.keys().cloned().collect());
            all.push(Operation {
                name: format!("{} {path}", method.to_uppercase()),
                parameters: path.matches('{').count(),
                fields: fields.unwrap_or_default(),
            });
        }
    }
    all
}

/// Headers that tell secrets, and such that want to write into the log.
fn hostile_headers(w: &mut World, n: usize) -> HeaderMap {
    let ids: [&[u8]; 7] = [
        b"short",
        b"with spaces in it",
        b"\"},{\"level\":\"error\",\"message\":\"forged",
        b"tab\tand\xc2\x9bcontrol",
        b"%0d%0a%1b[31mforged",
        b"${jndi:ldap://127.0.0.1/x}",
        b"0123456789012345678901234567890123456789012345678901234567890123456789",
    ];
    let id = ids[n % ids.len()].to_vec();
    let cookie = w.secrets.new_value("a cookie", Class::Secret);
    let header = w.secrets.new_value("a header", Class::Secret);
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &[u8]| {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    };
    put("x-request-id", &id);
    put("cookie", format!("session={cookie}").as_bytes());
    put("x-secret", header.as_bytes());
    put("referer", format!("https://app.example.com/?code={header}").as_bytes());
    put("user-agent", b"evil\t\"}\xff{\"level\":\"error\"}");
    put("traceparent", b"00-00000000000000000000000000000000-\"\t-zz");
    put("x-forwarded-for", b"\"},{\"forged\":1");
    w.hostile_ids.push(id);
    headers
}

/// Asks every operation in ways that must fail, or must do no harm; never is the answer a 5xx.
pub(super) async fn every_route_is_abused(w: &mut World, operations: &[Operation]) {
    let mut victim = new_victim(w, 0).await;
    for (n, operation) in operations.iter().enumerate() {
        // It may have deleted its account or ended its session meanwhile.
        if w.ask(&victim.who, "GET /v1/me", &[], Value::Null).await.status != 200 {
            victim = new_victim(w, n + 1).await;
        }
        let bearer = Who::token(&w.secrets.new_value("a bearer token", Class::Secret));
        let key = Who::key(&format!("blst_{}", w.secrets.new_value("a bad key", Class::Secret)));
        let query = format!("?token={}", w.secrets.new_value("a query", Class::Secret));
        let parameter = w.secrets.new_value("a path", Class::Content);
        let parameters = vec![parameter.as_str(); operation.parameters];
        let mut body = json!({ "surplus": w.secrets.new_value("a surplus field", Class::Content) });
        for field in &operation.fields {
            let secret = ["password", "token", "secret", "key"].iter().any(|part| field.contains(part));
            let class = if secret { Class::Secret } else { Class::Content };
            // The name of a model is logged and traced, on purpose: it says what was paid for.
            body[field] = match field.as_str() {
                "model" => json!("no-such-model"),
                _ => json!(w.secrets.new_value(&format!("the field {field}"), class)),
            };
        }
        let whole = body.to_string().into_bytes();
        let torn = whole[..whole.len() - 5].to_vec();
        body.as_object_mut().unwrap().remove("surplus");
        let only_known = body.to_string().into_bytes();
        for who in [&Who::default(), &bearer, &key, &victim.who] {
            for bytes in [&whole, &torn, &only_known] {
                let headers = hostile_headers(w, n);
                let sent = if operation.name.starts_with("GET") { None } else { Some(bytes.clone()) };
                let answer = w.send(who, &operation.name, &parameters, &query, headers, sent).await;
                assert!(answer.status < 500, "{}: {} {}", operation.name, answer.status, answer.text);
                let id = answer.header("x-request-id");
                assert!(
                    id.len() >= 8 && !w.hostile_ids.iter().any(|hostile| hostile == id.as_bytes()),
                    "{id}"
                );
            }
        }
    }
}

async fn new_victim(w: &mut World, n: usize) -> Tokens {
    let email = format!("victim{n}@example.com");
    let password = w.register(&email).await;
    w.log_in(&email, &password).await
}
