//! What every answer of every route has, however it came about.

use std::collections::BTreeSet;

use reqwest::Method;
use test_support::{FaultProxy, Mode, TestDatabase};

use super::{NOBODYS, ROOMY, World, assert_error_body, request, resources::behind, send};
use crate::support::{Answer, Operation, TestApp};

const ALWAYS: [(&str, &str); 5] = [
    ("strict-transport-security", "max-age=63072000; includeSubDomains"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
];

/// What was seen, to say that the table is not empty.
#[derive(Default)]
struct Book {
    statuses: BTreeSet<u16>,
    ids: BTreeSet<String>,
    answers: usize,
}

impl Book {
    fn check(&mut self, operation: &Operation, answer: &Answer, why: &str) {
        let at = format!("{operation}, {why}: {}", answer.status);
        for (name, value) in ALWAYS {
            assert_eq!(answer.header(name), value, "{at}: {name}");
        }
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{at}"
        );
        let inline = policy.contains("unsafe") || policy.contains("script");
        assert!(!inline && (operation.path == "/docs" || !policy.contains("style")), "{at}: {policy}");
        for name in ["server", "x-powered-by", "via"] {
            assert_eq!(answer.header(name), "", "{at}: {name}");
        }
        if answer.status >= 400 || !operation.is_public() {
            let kept = answer.header("cache-control");
            // An event stream says that nobody may change it either.
            assert!(kept.contains("no-store") || kept.contains("no-cache"), "{at}: cache-control {kept:?}");
        }
        let report = operation.value["tags"][0] == "health" && answer.status == 503;
        if answer.status >= 400 && !report {
            assert_error_body(operation, answer, why);
        }
        if matches!(answer.status, 429 | 503) && !report {
            assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|s| s > 0), "{at}: no Retry-After");
        }
        assert!(self.ids.insert(answer.header("x-request-id").to_owned()), "{at}: a request id twice");
        self.statuses.insert(answer.status);
        self.answers += 1;
    }
}

/// Case H9: what works, what is not allowed, what is not there, what is wrong.
#[tokio::test]
async fn every_answer_of_every_route_has_its_headers_and_errors_their_format() {
    let world = World::start().await;
    let mut book = Book::default();
    for operation in Operation::all() {
        let who = world.who_may(operation);
        let id = if operation.has_parameter() { behind(operation).make(&world).await } else { None };
        world.app.run_pending_jobs().await;
        let path = operation.at(id.as_deref().unwrap_or("sim-small"));
        let answer = send(who, request(operation, who, &path)).await;
        book.check(operation, &answer, "as documented");
        let exists = answer.status != 404;
        let anonymous = &world.anonymous;
        book.check(operation, &send(anonymous, request(operation, anonymous, &path)).await, "anonymous");
        // Strangers are told 401 about methods that are not public.
        let wrong = world.user.request(Method::from_bytes(b"PROPFIND").unwrap(), &path);
        let answer = send(&world.user, wrong).await.expect(405);
        assert!(
            answer.header("allow").contains(operation.method.as_str()),
            "{operation}: {:?}",
            answer.headers
        );
        book.check(operation, &answer, "another method");
        // On a path of its own, so in the format of ordinary routes.
        let nowhere =
            send(who, who.request(operation.method.clone(), &format!("/nope{path}"))).await.expect(404);
        assert_eq!(nowhere.header("content-type"), "application/problem+json", "{operation}");
        if exists && operation.body().is_some() {
            let text =
                who.request(operation.method.clone(), &path).body("x").header("content-type", "text/plain");
            book.check(operation, &send(who, text).await.expect(415), "not JSON");
            let cut = who
                .request(operation.method.clone(), &path)
                .body("{")
                .header("content-type", "application/json");
            book.check(operation, &send(who, cut).await.expect(400), "cut off");
        }
        if operation.has_parameter() {
            book.check(
                operation,
                &send(who, request(operation, who, &operation.at("nope"))).await,
                "unknown id",
            );
        }
    }
    for status in [200, 201, 202, 204, 400, 401, 404, 405, 415] {
        assert!(book.statuses.contains(&status), "never saw {status}: {:?}", book.statuses);
    }
    assert!(book.answers > 80, "only {}", book.answers);
}

/// Case H9, 503: without the database.
#[tokio::test]
async fn answers_without_the_database_have_their_headers_too() {
    let database = TestDatabase::create().await;
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    let app =
        TestApp::with(&[&ROOMY[..], &[("DATABASE_URL", &url), ("DATABASE_ACQUIRE_TIMEOUT", "2s")]].concat())
            .await;
    let (user, anonymous) = (app.user().await, app.anonymous());
    let world = World { admin: user.clone(), leaver: user.clone(), app, user, anonymous };
    postgres.set(Mode::Refuse);
    let mut book = Book::default();
    for operation in Operation::all() {
        let who = world.who_may(operation);
        book.check(
            operation,
            &send(who, request(operation, who, &operation.at(NOBODYS))).await,
            "no database",
        );
    }
    assert!(book.statuses.contains(&503) && !book.statuses.contains(&500), "{:?}", book.statuses);
}

/// Case H9, 429: with every limit used up.
#[tokio::test]
async fn answers_beyond_the_limit_have_their_headers_too() {
    let limits =
        ["GLOBAL", "SIGNUP", "LOGIN", "REFRESH", "AI_REQUESTS"].map(|name| format!("RATE_LIMIT_{name}"));
    let app = TestApp::with(&ROOMY).await;
    let (user, admin) = (app.user().await, app.admin().await);
    let strict: Vec<(&str, &str)> = limits.iter().map(|name| (name.as_str(), "1/1h")).collect();
    let app = app.replica_with(&strict);
    let (user, admin) = (user.at(&app), admin.at(&app));
    let world = World { anonymous: app.anonymous(), leaver: user.clone(), app, user, admin };
    let mut book = Book::default();
    for operation in Operation::all() {
        let who = world.who_may(operation);
        for _ in 0..3 {
            let answer = send(who, request(operation, who, &operation.at(NOBODYS))).await;
            book.check(operation, &answer, "again and again");
            let limited = operation.path.starts_with("/v1/");
            assert!(limited || answer.status != 429, "{operation}");
        }
        if operation.path.starts_with("/v1/") {
            let answer = send(who, request(operation, who, &operation.at(NOBODYS))).await;
            assert_eq!(answer.status, 429, "{operation} is not limited: {}", answer.text);
        }
    }
}
