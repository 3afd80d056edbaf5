//! The refresh token in a cookie, for browsers.

use reqwest::Method;
use serde_json::json;

use super::{login, refresh};
use crate::support::{Answer, PASSWORD, TestApp};

const ORIGIN: &str = "https://app.example.com";
const LISTED: &[(&str, &str)] = &[("CORS_ALLOWED_ORIGINS", ORIGIN), ("RATE_LIMIT_REFRESH", "1000/1h")];

async fn send(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = app.anonymous().request(Method::POST, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.anonymous().send(request).await
}

async fn cookie_login(app: &TestApp, email: &str) -> Answer {
    let body = json!({ "email": email, "password": PASSWORD, "cookie": true });
    let request =
        app.anonymous().request(Method::POST, "/v1/auth/login").header("origin", ORIGIN).json(&body);
    app.anonymous().send(request).await
}

/// What the browser will send: the cookie without its attributes.
fn cookie(answer: &Answer) -> String {
    answer.header("set-cookie").split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_browser_gets_the_refresh_token_in_a_cookie_and_nowhere_else() {
    let app = TestApp::with(LISTED).await;
    let user = app.user().await;
    let entered = cookie_login(&app, &user.email).await.expect(200);
    let set = entered.header("set-cookie").to_owned();
    assert!(set.starts_with("__Host-refresh_token=rt_"), "{set}");
    let (attributes, rest) = set.split_once("; Max-Age=").unwrap();
    let (seconds, rest) = rest.split_once("; ").unwrap();
    assert!(attributes.ends_with("; Path=/") && rest == "Secure; HttpOnly; SameSite=Strict", "{set}");
    // The 30 days of a refresh token, but for what the login took.
    assert!((2_591_900..=2_592_000).contains(&seconds.parse::<u32>().unwrap()), "{set}");
    assert_eq!(entered.header("access-control-allow-credentials"), "true");
    assert!(
        entered.json().get("refresh_token").is_none() && !entered.text.contains("rt_"),
        "{}",
        entered.text
    );

    let first = cookie(&entered);
    let renewed = send(&app, "/v1/auth/refresh", &[("cookie", &first), ("origin", ORIGIN)]).await.expect(200);
    let second = cookie(&renewed);
    assert!(second != first && !renewed.text.contains("rt_"), "{}", renewed.text);
    let me = app.anonymous().with_token(renewed.json()["access_token"].as_str().unwrap());
    me.get("/v1/me").await.expect(200);

    // Beside other cookies, and from a page of the API itself.
    let beside = format!("theme=dark; {second}; lang=en");
    let headers = [("cookie", beside.as_str()), ("origin", "http://localhost:8080")];
    let third = cookie(&send(&app, "/v1/auth/refresh", &headers).await.expect(200));
    let left = send(&app, "/v1/auth/logout", &[("cookie", &third), ("origin", ORIGIN)]).await.expect(204);
    assert!(
        left.header("set-cookie").starts_with("__Host-refresh_token=; Path=/; Max-Age=0;"),
        "{:?}",
        left.headers
    );
    me.get("/v1/me").await.problem(401, "revoked");
    send(&app, "/v1/auth/refresh", &[("cookie", &third), ("origin", ORIGIN)])
        .await
        .problem(401, "invalid_token");
}

#[tokio::test]
async fn a_page_that_is_not_ours_gets_nothing_out_of_the_cookie() {
    let app = TestApp::with(LISTED).await;
    let user = app.user().await;
    let entered = cookie_login(&app, &user.email).await.expect(200);
    let cookie = cookie(&entered);
    let strange = [
        "https://evil.example",
        "null",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://app.example.com.evil.example",
        "https://evil-app.example.com",
        "https://APP.example.com",
        "https://app.example.com/",
        "",
    ];
    for path in ["/v1/auth/refresh", "/v1/auth/logout"] {
        for origin in strange {
            let headers = [("cookie", cookie.as_str()), ("origin", origin)];
            send(&app, path, &headers).await.problem(403, "origin_refused");
        }
        send(&app, path, &[("cookie", &cookie)]).await.problem(403, "origin_refused");
        let twice = [("cookie", cookie.as_str()), ("origin", ORIGIN), ("origin", ORIGIN)];
        send(&app, path, &twice).await.problem(403, "origin_refused");
        // A form of another site can send this content type without asking.
        let form =
            [("cookie", cookie.as_str()), ("origin", "https://evil.example"), ("content-type", "text/plain")];
        send(&app, path, &form).await.problem(403, "origin_refused");
    }
    let body = json!({ "email": user.email, "password": PASSWORD, "cookie": true });
    app.anonymous().post("/v1/auth/login", body).await.problem(403, "origin_refused");
    // None of them used the token or ended the session.
    send(&app, "/v1/auth/refresh", &[("cookie", &cookie), ("origin", ORIGIN)]).await.expect(200);
}

#[tokio::test]
async fn two_cookies_are_refused_and_a_token_in_the_body_goes_before_any() {
    let app = TestApp::with(LISTED).await;
    let user = app.user().await;
    let cookie = cookie(&cookie_login(&app, &user.email).await.expect(200));
    let twice = format!("{cookie}; {cookie}");
    for path in ["/v1/auth/refresh", "/v1/auth/logout"] {
        send(&app, path, &[("cookie", &twice), ("origin", ORIGIN)]).await.problem(400, "duplicate_cookie");
        send(&app, path, &[("origin", ORIGIN)]).await.problem(422, "invalid");
        send(&app, path, &[("cookie", "__host-refresh_token=x; refresh_token=y"), ("origin", ORIGIN)])
            .await
            .problem(422, "invalid");
    }
    let garbage = [("cookie", "__Host-refresh_token=garbage"), ("origin", ORIGIN)];
    send(&app, "/v1/auth/refresh", &garbage).await.problem(401, "invalid_token");
    send(&app, "/v1/auth/logout", &garbage).await.expect(204);

    // The body decides, whatever the browser adds: no cookie is read, and none is set.
    let request = app.anonymous().request(Method::POST, "/v1/auth/refresh").header("cookie", &twice);
    let body = json!({ "refresh_token": user.refresh_token });
    let answer = app.anonymous().send(request.json(&body)).await.expect(200);
    assert!(answer.header("set-cookie").is_empty() && answer.json()["refresh_token"].is_string());
    send(&app, "/v1/auth/refresh", &[("cookie", &cookie), ("origin", ORIGIN)]).await.expect(200);
}

#[tokio::test]
async fn without_the_wish_for_a_cookie_nothing_has_changed() {
    let app = TestApp::with(LISTED).await;
    let user = app.user().await;
    let (status, tokens) = login(&app, &user.email, PASSWORD).await;
    assert_eq!(status, 200);
    let (status, renewed) = refresh(&app, tokens["refresh_token"].as_str().unwrap()).await;
    assert_eq!((status, renewed["refresh_token"].is_string()), (200, true));
    for body in [json!({ "refresh_token": 1 }), json!({ "token": "x" }), json!([]), json!(null), json!({})] {
        app.anonymous().post("/v1/auth/refresh", body).await.problem(422, "invalid");
    }
    let not_json = app.anonymous().request(Method::POST, "/v1/auth/refresh").body("refresh_token=x");
    app.anonymous().send(not_json).await.problem(415, "unsupported_media_type");
}
