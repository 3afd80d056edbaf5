//! What is mounted, what is documented and what is public are the same list.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};

use super::{NOBODYS, World, request, send};
use crate::support::{Operation, TestApp};

/// Every path that the router knows: axum shows them in its debug output and nowhere else.
fn mounted(router: &axum::Router) -> BTreeSet<String> {
    let debug = format!("{router:?}");
    let entries = debug.split("RouteId(").filter_map(|rest| rest.split_once("): \""));
    let paths = entries.filter(|(id, _)| id.bytes().all(|b| b.is_ascii_digit()));
    let paths = paths.filter_map(|(_, rest)| Some(rest.split_once('"')?.0.to_owned()));
    // What answers where there is nothing is a route too.
    paths.filter(|path| !path.contains("__private__")).collect()
}

#[tokio::test]
async fn every_mounted_route_is_documented_and_every_documented_route_is_mounted() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let mut there = BTreeSet::new();
    for path in mounted(&api::router(app.state.clone())) {
        let path = path.replace("{*", "{");
        let concrete: Vec<&str> =
            path.split('/').map(|p| if p.starts_with('{') { NOBODYS } else { p }).collect();
        // A method that nothing has: the answer names those that there are (RFC 9110, section 15.5.6).
        let request = user.request(Method::from_bytes(b"PROPFIND").unwrap(), &concrete.join("/"));
        let answer = user.send(request).await;
        assert_eq!(answer.status, 405, "{path}: {}", answer.text);
        for method in answer.header("allow").split(',').filter(|method| *method != "HEAD") {
            there.insert(format!("{method} {path}"));
        }
    }
    let documented: BTreeSet<String> = Operation::all().iter().map(ToString::to_string).collect();
    assert!(documented.len() > 20, "{documented:?}");
    assert_eq!(
        there, documented,
        "left: mounted; right: documented. Mount routes with `.routes(routes!(handler))`"
    );
}

#[tokio::test]
async fn without_credentials_every_route_but_the_public_ones_answers_401() {
    let app = TestApp::start().await;
    for operation in Operation::all() {
        let anonymous = app.anonymous();
        let answer = send(&anonymous, request(operation, &anonymous, &operation.at(NOBODYS))).await;
        if operation.is_public() {
            assert!(
                answer.status != StatusCode::UNAUTHORIZED || answer.text.contains("invalid_"),
                "{operation} is public"
            );
        } else {
            assert_eq!(answer.status, 401, "{operation}: {}", answer.text);
            assert_eq!(answer.header("www-authenticate"), "Bearer", "{operation}");
        }
    }
}

#[tokio::test]
async fn every_route_charges_the_global_limit() {
    let world = World::start().await;
    for operation in Operation::all().iter().filter(|o| !o.is_public()) {
        let who = world.who_may(operation);
        let answer = send(who, request(operation, who, &operation.at(NOBODYS))).await;
        let charged = answer.header("ratelimit").contains("\"global\"");
        // A refusal of the arguments may come before or after admission; what went through was charged.
        assert!(
            charged || (400..500).contains(&answer.status),
            "{operation}: {} {}",
            answer.status,
            answer.text
        );
    }
}
