//! What administrators see and set of the limits.

use reqwest::Method;
use serde_json::{Value, json};

use super::knock;
use crate::support::{Answer, Persona, TestApp};

async fn put(who: &Persona, path: &str, body: Value) -> Answer {
    who.send(who.request(Method::PUT, path).json(&body)).await
}

/// Looks at a bucket.
async fn look(admin: &Persona, policy: &str, key: &str) -> Value {
    admin.get(&format!("/v1/admin/limits/{policy}?key={key}")).await.expect(200).json()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_looks_at_every_kind_of_bucket_and_resets_it() {
    let app = TestApp::with(&[
        ("RATE_LIMIT_LOGIN", "2/15m"),
        ("RATE_LIMIT_REFRESH", "1/1h"),
        ("RATE_LIMIT_USER_JOBS", "1/1h"),
        ("AI_CONCURRENT_STREAMS", "1"),
        ("TRUSTED_PROXY", "127.0.0.0/8"),
    ])
    .await;
    let (admin, user) = (app.admin().await, app.user().await);
    let user_id = user.get("/v1/me").await.expect(200).json()["id"].as_str().unwrap().to_owned();
    let of_user = format!("user:{user_id}");

    // What is used up, how one notices, and how the administrator calls it.
    let stranger = app.anonymous().behind("2001:db8:5:6::9");
    let login = json!({ "email": "Ann@Example.com", "password": "wrong password" });
    let job = json!({ "kind": "echo", "args": { "message": "x" } });
    let stream = user
        .request(Method::POST, "/v1/chat/completions")
        .json(&json!({"model": "sim-small", "stream": true, "messages": [{"role": "user", "content": "[[sim fault=stall:2]]"}]}))
        .send()
        .await
        .unwrap();
    assert_eq!(stream.status(), 200);
    for _ in 0..2 {
        stranger.post("/v1/auth/login", login.clone()).await.expect(401);
    }
    knock(&stranger).await.expect(401);
    user.post("/v1/jobs", job.clone()).await.expect(202);
    let buckets = [
        ("login", "ip:2001:db8:5:6::1,email:ann@example.com"),
        ("refresh", "ip:2001:db8:5:6::1"),
        ("user-jobs", of_user.as_str()),
        ("concurrent-streams", of_user.as_str()),
    ];
    for (policy, key) in buckets {
        let found = look(&admin, policy, key).await;
        assert_eq!(found["remaining"], 0, "{found}");
        let path = format!("/v1/admin/limits/{policy}?key={key}");
        assert_eq!(admin.delete(&path).await.expect(200).json()["was_used"], true, "{policy}");
        assert_eq!(admin.delete(&path).await.expect(200).json()["was_used"], false, "{policy}");
        let found = look(&admin, policy, key).await;
        assert_eq!(found["remaining"], found["limit"], "{found}");
    }
    stranger.post("/v1/auth/login", login).await.expect(401);
    knock(&stranger).await.expect(401);
    user.post("/v1/jobs", job).await.expect(202);
    let quota = look(&admin, "ai-tokens-daily", &of_user).await;
    assert!(
        quota["remaining"].as_u64() < quota["limit"].as_u64() && quota["period_seconds"] == 86_400.0,
        "{quota}"
    );
    drop(stream);

    let audited: Vec<Value> =
        sqlx::query_scalar("select detail from audit_log where event = 'limit_reset' order by id")
            .fetch_all(app.database.pool())
            .await
            .unwrap();
    assert_eq!(audited.len(), 8);
    let login_key = audited[0]["key"].as_str().unwrap();
    assert!(login_key.starts_with("2001:db8:5:6::/64:") && !login_key.contains('@'), "{login_key}");
}

#[tokio::test]
async fn what_is_no_bucket_is_refused_with_what_there_is() {
    let app = TestApp::start().await;
    let (admin, user) = (app.admin().await, app.user().await);
    let listed = admin.get("/v1/admin/limits").await.expect(200).json();
    let names: Vec<_> =
        listed["data"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"global") && names.contains(&"concurrent-streams"), "{listed}");
    for method in [Method::GET, Method::DELETE] {
        let ask = async |path: &str| admin.send(admin.request(method.clone(), path)).await;
        let unknown = ask("/v1/admin/limits/globl?key=ip:203.0.113.9").await.problem(404, "unknown_policy");
        assert!(names.iter().all(|name| unknown.text.contains(name)), "{}", unknown.text);
        for (policy, key) in [
            ("global", ""),
            ("global", "203.0.113.9"),
            ("global", "ip:nonsense"),
            ("global", "user:nonsense"),
            ("refresh", "user:00000000-0000-7000-8000-000000000000"),
            ("ai-tokens", "ip:203.0.113.9"),
            ("login", "ip:203.0.113.9"),
            ("login", "ip:203.0.113.9,email:nobody"),
            ("login", "ip:nonsense,email:ann@example.com"),
        ] {
            let refused = ask(&format!("/v1/admin/limits/{policy}?key={key}")).await.problem(422, "invalid");
            assert!(refused.text.contains("expected"), "{}", refused.text);
        }
        ask("/v1/admin/limits/global").await.problem(400, "invalid_query");
        ask("/v1/admin/limits/global?key=key:00000000-0000-7000-8000-000000000000")
            .await
            .problem(404, "not_found");
        let path = "/v1/admin/limits/global?key=ip:203.0.113.9";
        user.send(user.request(method.clone(), path)).await.problem(403, "admin_required");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_keys_own_limits_hold_from_its_next_request_and_nobody_elses_change() {
    let app = TestApp::with(&[("RATE_LIMIT_USER_JOBS", "5/1h"), ("RATE_LIMIT_GLOBAL", "1000/1h")]).await;
    let other = app.replica();
    let (admin, user) = (app.admin().await, app.user().await);
    let made = user.post("/v1/api-keys", json!({ "name": "partner" })).await.expect(201).json();
    let (id, key) = (made["id"].as_str().unwrap(), app.anonymous().with_token(made["key"].as_str().unwrap()));
    let path = format!("/v1/admin/api-keys/{id}/limits");
    let job = json!({ "kind": "echo", "args": { "message": "x" } });
    let left = |answer: &Answer, policy: &str| {
        let (_, rest) = answer.header("ratelimit").split_once(&format!("\"{policy}\";r=")).unwrap();
        rest.split(';').next().unwrap().parse::<u64>().unwrap()
    };

    // At first it shares its user's bucket.
    assert_eq!(left(&user.post("/v1/jobs", job.clone()).await.expect(202), "user-jobs"), 4);
    assert_eq!(left(&key.post("/v1/jobs", job.clone()).await.expect(202), "user-jobs"), 3);
    assert_eq!(admin.get(&path).await.expect(200).json(), json!({ "limits": {} }));

    let limits = json!({ "limits": { "user-jobs": "2/1h", "global": "20/1h" } });
    assert_eq!(put(&admin, &path, limits.clone()).await.expect(200).json(), limits);
    assert_eq!(admin.get(&path).await.expect(200).json(), limits);
    let first = key.at(&other).post("/v1/jobs", job.clone()).await.expect(202);
    assert_eq!((left(&first, "user-jobs"), left(&first, "global")), (1, 19), "at once, on every replica");
    key.post("/v1/jobs", job.clone()).await.expect(202);
    key.at(&other).post("/v1/jobs", job.clone()).await.problem(429, "rate_limited");
    let users = user.post("/v1/jobs", job.clone()).await.expect(202);
    assert_eq!(
        (left(&users, "user-jobs"), left(&users, "global") > 900),
        (2, true),
        "its user has a bucket apart"
    );
    let found = look(&admin, "user-jobs", &format!("key:{id}")).await;
    assert_eq!((&found["limit"], &found["remaining"]), (&json!(2), &json!(0)));
    admin.delete(&format!("/v1/admin/limits/user-jobs?key=key:{id}")).await.expect(200);
    key.post("/v1/jobs", job.clone()).await.expect(202);
    admin.get(&format!("/v1/admin/limits/ai-tokens?key=key:{id}")).await.problem(422, "invalid");

    put(&admin, &path, json!({ "limits": {} })).await.expect(200);
    assert_eq!(left(&key.post("/v1/jobs", job.clone()).await.expect(202), "user-jobs"), 1, "shared again");
    let audited: i64 =
        sqlx::query_scalar("select count(*) from audit_log where event = 'api_key_limits_changed'")
            .fetch_one(app.database.pool())
            .await
            .unwrap();
    assert_eq!(audited, 2);

    user.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    put(&admin, &path, limits).await.problem(404, "not_found");
    key.get("/v1/me").await.problem(401, "invalid_token");
}

#[tokio::test]
async fn a_limit_that_is_none_is_refused_and_one_in_the_database_is_ignored() {
    let app = TestApp::with(&[("RATE_LIMIT_GLOBAL", "1000/1h")]).await;
    let (admin, user) = (app.admin().await, app.user().await);
    let made = user.post("/v1/api-keys", json!({ "name": "partner" })).await.expect(201).json();
    let (id, key) = (made["id"].as_str().unwrap(), app.anonymous().with_token(made["key"].as_str().unwrap()));
    let path = format!("/v1/admin/api-keys/{id}/limits");
    let refused =
        put(&admin, &path, json!({ "limits": { "global": "many", "login": "9/1h", "user-jobs": "3/1h" } }))
            .await;
    let body = refused.problem(422, "invalid").json();
    let told: Vec<_> =
        body["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(told, ["limits.global", "limits.login"], "{body}");
    assert!(
        body.to_string().contains("LIMIT/PERIOD") && body.to_string().contains("there are: global"),
        "{body}"
    );
    for body in [
        json!({}),
        json!({ "limits": { "global": 5 } }),
        json!({ "limits": [] }),
        json!({ "limits": {}, "more": 1 }),
        json!({ "limits": { "global": "1/1h\0" } }),
        json!({ "limits": { "\0": "1/1h" } }),
        json!({ "limits": { "concurrent-streams": "-1" } }),
    ] {
        put(&admin, &path, body).await.problem(422, "invalid");
    }
    assert_eq!(admin.get(&path).await.expect(200).json(), json!({ "limits": {} }), "all or nothing");
    put(&user, &path, json!({ "limits": {} })).await.problem(403, "admin_required");
    put(&key, &path, json!({ "limits": {} })).await.problem(403, "session_required");

    sqlx::query("update api_key set policy = '{\"global\": \"nonsense\", \"user-jobs\": 7}'")
        .execute(app.database.pool())
        .await
        .unwrap();
    let answer = key.get("/v1/me").await.expect(200);
    assert!(answer.header("ratelimit-policy").contains(r#""global";q=1000;w=3600"#), "{:?}", answer.headers);
}
