//! Case H8: which pages of other origins may read answers.

use reqwest::{Method, header::HeaderMap};

use super::{NOBODYS, ROOMY, request, send};
use crate::support::{Answer, Operation, Persona, TestApp};

const LISTED: [&str; 2] = ["https://app.example.com", "http://localhost:5173"];

/// Like a listed one, but not the same.
const OTHERS: [&str; 17] = [
    "http://app.example.com",
    "https://app.example.com:443",
    "https://app.example.com:8443",
    "https://app.example.com/",
    "https://app.example.com.evil.com",
    "https://evil-app.example.com",
    "https://evilapp.example.com",
    "https://sub.app.example.com",
    "https://example.com",
    "https://app.example.com@evil.com",
    "HTTPS://APP.EXAMPLE.COM",
    "https://app.example.co",
    "http://localhost",
    "http://localhost:51730",
    "https://localhost:5173",
    "null",
    "*",
];

async fn app() -> TestApp {
    let origins = LISTED.join(",");
    TestApp::with(&[&ROOMY[..], &[("CORS_ALLOWED_ORIGINS", &origins)]].concat()).await
}

/// The answer may be read by a page of `origin`, or by none.
#[track_caller]
fn assert_readable(answer: &Answer, origin: Option<&str>, why: &str) {
    let all =
        |name: &str| answer.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    let allowed: Vec<&str> = origin.into_iter().collect();
    assert_eq!(all("access-control-allow-origin"), allowed, "{why}: {}", answer.status);
    assert!(varies_by_origin(&answer.headers), "{why}: a cache would mix origins up: {:?}", answer.headers);
    if origin.is_some() {
        assert_eq!(all("access-control-allow-credentials"), ["true"], "{why}");
    }
}

fn varies_by_origin(headers: &HeaderMap) -> bool {
    let values = headers.get_all("vary").iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|name| name.trim().eq_ignore_ascii_case("origin"))
}

async fn preflight(who: &Persona, path: &str, origin: &str, method: &str) -> Answer {
    let request = who.request(Method::OPTIONS, path).header("origin", origin);
    let request = request.header("access-control-request-method", method);
    send(who, request.header("access-control-request-headers", "authorization,content-type,x-api-key")).await
}

#[tokio::test]
async fn only_pages_of_listed_origins_read_answers_of_any_route_and_status() {
    let app = app().await;
    let (user, anonymous) = (app.user().await, app.anonymous());
    for operation in Operation::all() {
        let path = operation.at(NOBODYS);
        for who in [&user, &anonymous] {
            for origin in LISTED {
                let answer = send(who, request(operation, who, &path).header("origin", origin)).await;
                assert_readable(&answer, Some(origin), &format!("{operation} from {origin}"));
                let exposed = answer.header("access-control-expose-headers");
                for name in ["x-request-id", "retry-after", "ratelimit", "ratelimit-policy", "location"] {
                    assert!(exposed.split(',').any(|e| e.trim() == name), "{operation}: {exposed}");
                }
            }
            let answer = send(who, request(operation, who, &path).header("origin", OTHERS[0])).await;
            assert_readable(&answer, None, &format!("{operation} from {}", OTHERS[0]));
        }
        let without = send(&anonymous, request(operation, &anonymous, &path)).await;
        assert_readable(&without, None, &format!("{operation} without an origin"));
    }
    // The origins in full on a few answers of each kind. By somebody who is still logged in.
    let user = app.user().await;
    for (method, path, status) in [
        (Method::GET, "/v1/me", 200),
        (Method::GET, "/v1/jobs/0", 404),
        (Method::GET, "/nope", 404),
        (Method::PUT, "/v1/me", 405),
        (Method::POST, "/v1/jobs", 415),
        (Method::GET, "/livez", 200),
    ] {
        for origin in OTHERS {
            let answer =
                send(&user, user.request(method.clone(), path).header("origin", origin)).await.expect(status);
            assert_readable(&answer, None, &format!("{method} {path} from {origin}"));
        }
    }
}

#[tokio::test]
async fn a_preflight_is_answered_without_credentials_for_listed_origins_alone() {
    let app = app().await;
    let anonymous = app.anonymous();
    for operation in Operation::all() {
        let (path, method) = (operation.at(NOBODYS), operation.method.as_str());
        let answer = preflight(&anonymous, &path, LISTED[0], method).await.expect(200);
        assert_readable(&answer, Some(LISTED[0]), &format!("preflight of {operation}"));
        let listed = |name: &str, item: &str| {
            answer.header(name).split(',').any(|part| part.trim().eq_ignore_ascii_case(item))
        };
        assert!(listed("access-control-allow-methods", method), "{operation}: {:?}", answer.headers);
        for name in ["authorization", "content-type", "x-api-key", "x-request-id", "last-event-id"] {
            assert!(listed("access-control-allow-headers", name), "{operation}: {name}");
        }
        assert!(!answer.header("access-control-allow-headers").contains('*'));
        assert_eq!(answer.header("access-control-max-age"), "600");
        assert_eq!(answer.text, "");
    }
    for origin in OTHERS {
        let answer = preflight(&anonymous, "/v1/me", origin, "GET").await;
        assert_readable(&answer, None, &format!("preflight from {origin}"));
    }
}

#[tokio::test]
async fn refusals_by_a_limit_can_be_read_and_are_never_given_to_a_preflight() {
    let origins = LISTED.join(",");
    let app = TestApp::with(&[("CORS_ALLOWED_ORIGINS", &origins), ("RATE_LIMIT_GLOBAL", "3/1h")]).await;
    let user = app.user().await;
    let mut last = 0;
    for _ in 0..5 {
        let answer = user.send(user.request(Method::GET, "/v1/me").header("origin", LISTED[0])).await;
        assert_readable(&answer, Some(LISTED[0]), "a limited route");
        last = answer.status;
    }
    assert_eq!(last, 429);
    for _ in 0..10 {
        preflight(&user, "/v1/me", LISTED[0], "GET").await.expect(200);
    }
    let refused =
        user.send(user.request(Method::GET, "/v1/me").header("origin", OTHERS[0])).await.expect(429);
    assert_readable(&refused, None, "a limited route from elsewhere");
}

#[tokio::test]
async fn without_listed_origins_there_is_no_cors_at_all() {
    let app = TestApp::start().await;
    let anonymous = app.anonymous();
    for operation in Operation::all() {
        let path = operation.at(NOBODYS);
        let answers = [
            send(&anonymous, request(operation, &anonymous, &path).header("origin", LISTED[0])).await,
            preflight(&anonymous, &path, LISTED[0], operation.method.as_str()).await,
        ];
        for answer in answers {
            let cors = answer.headers.keys().find(|name| name.as_str().starts_with("access-control-"));
            assert_eq!(cors, None, "{operation}");
        }
    }
}
