//! What is shown of what was counted.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{chat, read, whole};
use crate::support::{Persona, TestApp};

/// A row as the writer would write it.
async fn row(app: &TestApp, user: Uuid, days_ago: i64, model: &str, tokens: i64) {
    let event = db::usage::UsageEvent {
        id: Uuid::now_v7(),
        occurred_at: Utc::now() - TimeDelta::days(days_ago),
        user_id: user,
        api_key_id: None,
        request_id: "r".into(),
        route: "/v1/chat/completions".into(),
        model: model.into(),
        engine: "e".into(),
        prompt_tokens: tokens,
        completion_tokens: 2 * tokens,
        estimated: false,
        cached: false,
        outcome: "ok",
        first_token_ms: None,
        duration_ms: 1,
    };
    let mut c = app.database.pool().acquire().await.unwrap();
    db::usage::insert(&mut c, &[event]).await.unwrap();
}

async fn id_of(app: &TestApp, user: &Persona) -> Uuid {
    sqlx::query_scalar("select id from users where email = $1")
        .bind(&user.email)
        .fetch_one(app.database.pool())
        .await
        .unwrap()
}

async fn roll_up(app: &TestApp) {
    let mut c = app.database.pool().acquire().await.unwrap();
    while db::usage::roll_up(&mut c, 3).await.unwrap() > 0 {}
}

fn total(report: &Value) -> i64 {
    report["data"].as_array().unwrap().iter().map(|row| row["total_tokens"].as_i64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_by_day_and_model_is_the_same_before_while_and_after_it_is_rolled_up() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let id = id_of(&app, &user).await;
    for (days_ago, model, tokens) in
        [(0, "a", 1), (0, "b", 10), (1, "a", 100), (1, "a", 1_000), (40, "a", 10_000)]
    {
        row(&app, id, days_ago, model, tokens).await;
    }
    let day = |ago: i64| (Utc::now() - TimeDelta::days(ago)).format("%Y-%m-%d").to_string();
    let look = async || {
        let report = user.get("/v1/usage").await.expect(200).json();
        let rows = report["data"].as_array().unwrap().clone();
        let shown = rows.into_iter().map(|row| {
            let text = |field: &str| row[field].as_str().unwrap().to_owned();
            let number = |field: &str| row[field].as_i64().unwrap();
            assert_eq!(number("prompt_tokens") + number("completion_tokens"), number("total_tokens"));
            (text("day"), text("model"), number("requests"), number("total_tokens"))
        });
        shown.collect::<Vec<_>>()
    };
    let expected =
        [(day(0), "a".to_owned(), 1, 3), (day(0), "b".to_owned(), 1, 30), (day(1), "a".to_owned(), 2, 3_300)];
    assert_eq!(look().await, expected);
    let mut c = app.database.pool().acquire().await.unwrap();
    assert_eq!(db::usage::roll_up(&mut c, 2).await.unwrap(), 2);
    assert_eq!(look().await, expected, "a part is rolled up");
    drop(c);
    roll_up(&app).await;
    assert_eq!(look().await, expected);
    row(&app, id, 0, "a", 5).await;
    assert_eq!(look().await[0].2, 2, "and what came after it");
    assert_eq!(total(&user.get("/v1/usage?days=60").await.expect(200).json()), 33_333 + 15);
    assert_eq!(total(&user.get("/v1/usage?days=366").await.expect(200).json()), 33_333 + 15);
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_everybodys_usage_page_by_page() {
    let app = TestApp::start().await;
    let (admin, one, two) = (app.admin().await, app.user().await, app.user().await);
    let (first, second) = (id_of(&app, &one).await, id_of(&app, &two).await);
    for days_ago in 0..5 {
        for model in ["a", "b", "漢 %/&"] {
            row(&app, first, days_ago, model, 1).await;
            row(&app, second, days_ago, model, 10).await;
        }
        if days_ago == 2 {
            roll_up(&app).await;
        }
    }
    let whole_list = admin.get("/v1/admin/usage?limit=1000").await.expect(200).json();
    assert_eq!((whole_list["data"].as_array().unwrap().len(), &whole_list["next"]), (30, &Value::Null));
    assert_eq!(whole_list["complete"], true);
    assert_eq!(total(&whole_list), 5 * 3 * 33);
    // The same in pages.
    let (mut pages, mut all, mut after) = (0, vec![], None::<String>);
    loop {
        let more = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let page = admin.get(&format!("/v1/admin/usage?limit=7{more}")).await.expect(200).json();
        all.extend(page["data"].as_array().unwrap().clone());
        pages += 1;
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    assert_eq!((pages, &Value::Array(all)), (5, &whole_list["data"]));
    let keys: Vec<_> = whole_list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                std::cmp::Reverse(row["day"].as_str().unwrap()),
                row["user_id"].as_str().unwrap(),
                row["model"].as_str().unwrap(),
            )
        })
        .collect();
    assert!(keys.is_sorted(), "{keys:?}");
    // One user, one model, some days.
    let of =
        async |query: &str| total(&admin.get(&format!("/v1/admin/usage?{query}")).await.expect(200).json());
    assert_eq!(of(&format!("user={first}")).await, 5 * 3 * 3);
    assert_eq!(of("model=a").await, 5 * 33);
    // The hour in which the day began counts as a whole: yesterday's row was made in it.
    assert_eq!(of(&format!("user={second}&model=b&days=1")).await, 2 * 30);
    assert_eq!(of(&format!("user={}", Uuid::new_v4())).await, 0);
    // What a request costs is there at once.
    read(&one, "/v1/chat/completions", chat("[[sim tokens=7]]")).await;
    let now = admin.get(&format!("/v1/admin/usage?user={first}&model=sim-small")).await.expect(200).json();
    assert_eq!((&now["data"][0]["completion_tokens"], &now["data"][0]["requests"]), (&json!(7), &json!(1)));
    assert_eq!(now["data"][0]["user_id"], json!(first));
    one.post("/v1/chat/completions", whole("/v1/chat/completions", "x")).await.expect(200);

    for (query, field) in [
        ("days=0", "days"),
        ("days=367", "days"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("after=x", "after"),
        ("model=%00", "model"),
    ] {
        let refused = admin.get(&format!("/v1/admin/usage?{query}")).await.problem(422, "invalid");
        assert!(refused.text.contains(field), "{query}: {}", refused.text);
    }
    admin.get("/v1/admin/usage?user=nobody").await.problem(400, "invalid_query");
    one.get("/v1/admin/usage").await.problem(403, "admin_required");
    app.anonymous().get("/v1/admin/usage").await.problem(401, "missing_credentials");
}
