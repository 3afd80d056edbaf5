//! Who may touch what: somebody else's is as if it were not there.

use std::collections::BTreeMap;

use reqwest::{Method, header::HeaderMap};
use serde_json::Value;

use super::{
    NOBODYS, World, request,
    resources::{Behind, behind, prefix, unknown},
    send,
};
use crate::support::{Answer, Operation};

/// What of an answer must not depend on whether the id exists.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    headers: Vec<String>,
    content_type: String,
    body: String,
}

fn seen(answer: &Answer, id: &str) -> Seen {
    let names = |headers: &HeaderMap| {
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let body = match serde_json::from_str::<Value>(&answer.text) {
        Ok(mut body) => {
            for at in ["/request_id", "/error/request_id"] {
                if let Some(request_id) = body.pointer_mut(at) {
                    *request_id = Value::Null;
                }
            }
            body.to_string()
        }
        Err(_) => answer.text.clone(),
    };
    Seen {
        status: answer.status,
        headers: names(&answer.headers),
        content_type: answer.header("content-type").to_owned(),
        body: body.replace(&format!("\"{id}\""), "{id}"),
    }
}

/// The operations on a resource, by what is behind them, those that destroy it last.
fn with_ids() -> Vec<(&'static Operation, &'static Behind)> {
    let mut all: Vec<_> =
        Operation::all().iter().filter(|o| o.has_parameter()).map(|o| (o, behind(o))).collect();
    all.sort_by_key(|(o, _)| (o.method == Method::DELETE, o.method != Method::GET));
    all
}

/// Case H12.
#[tokio::test]
async fn what_belongs_to_somebody_else_answers_as_if_it_were_not_there() {
    let world = World::start().await;
    let other = world.app.user().await;
    let key = world.app.api_key(&other, &api::routes::api_keys::SCOPES).await;
    let mut tried = 0;
    for (operation, behind) in with_ids() {
        let Some(id) = behind.make(&world).await else { continue };
        let unknown = unknown(&id);
        for (name, who) in [("token", &other), ("API key", &key)] {
            let theirs = send(who, request(operation, who, &operation.at(&id))).await;
            let nothing = send(who, request(operation, who, &operation.at(&unknown))).await;
            assert!(
                matches!(theirs.status, 401 | 403 | 404),
                "{operation} lets somebody else in, with {name}: {} {}",
                theirs.status,
                theirs.text
            );
            assert_eq!(
                seen(&theirs, &id),
                seen(&nothing, &unknown),
                "{operation} with {name} tells somebody else's (left) from what is not there (right)"
            );
            tried += 1;
        }
    }
    assert!(tried >= 6, "only {tried}");
}

#[tokio::test]
async fn routes_for_administrators_refuse_everybody_else() {
    let world = World::start().await;
    let key_of_admin = world.app.api_key(&world.admin, &api::routes::api_keys::SCOPES).await;
    let for_admins = || Operation::all().iter().filter(|o| o.is_for_admins());
    assert!(for_admins().count() >= 2);
    for operation in for_admins() {
        let path = operation.at(NOBODYS);
        let by_user = send(&world.user, request(operation, &world.user, &path)).await;
        assert_eq!(by_user.problem(403, "admin_required").status, 403, "{operation}");
        let by_key = send(&key_of_admin, request(operation, &key_of_admin, &path)).await;
        assert_eq!(by_key.problem(403, "session_required").status, 403, "{operation}");
    }
}

/// Case A12.
#[tokio::test]
async fn api_keys_may_do_what_the_document_says_and_nothing_else_and_without_a_scope_nothing() {
    let world = World::start().await;
    let all = world.app.api_key(&world.user, &api::routes::api_keys::SCOPES).await;
    let none = world.app.api_key(&world.user, &[]).await;
    let (mut may, mut may_not) = (0, 0);
    for operation in Operation::all().iter().filter(|o| !o.is_public()) {
        let ways = operation.value["security"].as_array().unwrap();
        let id = if operation.has_parameter() { behind(operation).make(&world).await } else { None };
        let path = operation.at(id.as_deref().unwrap_or(NOBODYS));
        // A stream of a job ends when the job is over.
        world.app.run_pending_jobs().await;
        let refused = send(&none, request(operation, &none, &path)).await;
        let needs_no_scope = ["GET /v1/me", "GET /v1/whoami"].contains(&operation.to_string().as_str());
        assert!(
            refused.status == 403 || needs_no_scope,
            "{operation} takes a key without scopes: {}",
            refused.text
        );
        let answer = send(&all, request(operation, &all, &path)).await;
        if ways.iter().any(|way| way.get("api_key").is_some()) {
            assert_ne!(answer.status, 403, "{operation} refuses a key with every scope: {}", answer.text);
            may += 1;
        } else {
            assert_eq!(answer.status, 403, "{operation} takes API keys, and the document does not say so");
            may_not += 1;
        }
    }
    assert!(may > 5 && may_not > 3, "{may}, {may_not}");
}

/// Case H12. Without this the first test could pass because nothing is ever found.
#[tokio::test]
async fn what_belongs_to_somebody_answers_to_its_owner_after_others_have_tried() {
    let world = World::start().await;
    let other = world.app.user().await;
    let mut owned = BTreeMap::<&str, String>::new();
    for (operation, behind) in with_ids() {
        let prefix = prefix(operation);
        let id = match owned.get(prefix) {
            Some(id) => id.clone(),
            None => match behind.make(&world).await {
                Some(id) => id,
                None => continue,
            },
        };
        owned.insert(prefix, id.clone());
        // A stream of a job ends when the job is over.
        world.app.run_pending_jobs().await;
        send(&other, request(operation, &other, &operation.at(&id))).await;
        let who = world.who_may(operation);
        let answer = send(who, request(operation, who, &operation.at(&id))).await;
        assert!(
            answer.status < 500 && !matches!(answer.status, 401 | 403 | 404),
            "{operation} does not know what is there: {} {}",
            answer.status,
            answer.text
        );
    }
    assert!(owned.len() >= 2, "{owned:?}");
}

/// Case H12.
#[tokio::test]
async fn no_list_shows_what_belongs_to_somebody_else() {
    let world = World::start().await;
    let other = world.app.user().await;
    let mut ids = Vec::new();
    for (_, behind) in with_ids() {
        ids.extend(behind.make(&world).await);
    }
    let lists = Operation::all().iter().filter(|o| o.method == Method::GET && !o.has_parameter());
    let mut shown = false;
    for operation in lists.filter(|o| !o.is_public() && !o.is_for_admins()) {
        let to_other = send(&other, request(operation, &other, operation.path)).await.text;
        assert!(!ids.iter().any(|id| to_other.contains(&format!("\"{id}\""))), "{operation}: {to_other}");
        let to_owner = send(&world.user, request(operation, &world.user, operation.path)).await.text;
        shown |= ids.iter().any(|id| to_owner.contains(&format!("\"{id}\"")));
    }
    assert!(shown, "the owner sees them");
}
