//! Subscriptions: what Stripe's events say, in whatever order they come, and the check of renewals.

use chrono::{DateTime, Utc};
use jobs::{EnqueueOptions, JobState};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    support::{Persona, TestApp},
    webhooks::{STRIPE, app, jobs_of, send_stripe},
};

const BEGIN: i64 = 1_767_225_600;

async fn id_of(user: &Persona) -> Uuid {
    user.get("/v1/me").await.expect(200).json()["id"].as_str().unwrap().parse().unwrap()
}

fn event(kind: &str, created: i64, object: Value) -> Value {
    let id = format!("evt_{}", Uuid::new_v4().simple());
    let mut event = json!({ "id": id, "object": "event", "type": kind, "created": created, "data": {} });
    event["data"]["object"] = object;
    event
}

fn subscription(id: &str, user: Uuid, status: &str, period_end: i64) -> Value {
    json!({ "id": id, "object": "subscription", "customer": "cus_1", "status": status, "cancel_at_period_end": false,
            "metadata": { "user_id": user },
            "items": { "data": [{ "current_period_end": period_end, "price": { "id": "price_1" } }] } })
}

fn invoice(subscription: &str, status: &str) -> Value {
    json!({ "id": "in_1", "object": "invoice", "customer": "cus_1", "status": status,
            "parent": { "subscription_details": { "subscription": subscription } } })
}

async fn send(app: &TestApp, event: &Value) {
    send_stripe(app, STRIPE, &event.to_string()).await.expect(200);
}

async fn shown(user: &Persona) -> Value {
    user.get("/v1/subscription").await.expect(200).json()["subscription"].clone()
}

/// The life of a subscription: each second of it with several events, as Stripe sends them.
fn life(id: &str, user: Uuid) -> Vec<Value> {
    let (first, second) = (BEGIN + 2_592_000, BEGIN + 5_184_000);
    vec![
        event("customer.subscription.created", BEGIN, subscription(id, user, "incomplete", first)),
        event("invoice.created", BEGIN, invoice(id, "draft")),
        event("invoice.finalized", BEGIN, invoice(id, "open")),
        event("invoice.paid", BEGIN, invoice(id, "paid")),
        event("customer.subscription.updated", BEGIN, subscription(id, user, "active", first)),
        event("invoice.created", first, invoice(id, "draft")),
        event("invoice.payment_failed", first + 60, invoice(id, "open")),
        event("customer.subscription.updated", first + 60, subscription(id, user, "past_due", second)),
    ]
}

#[tokio::test]
async fn events_in_any_order_and_more_than_once_lead_to_the_state_of_the_last_one() {
    let app = app().await;
    for round in 0..12_usize {
        let user = app.user().await;
        let id = format!("sub_{round}");
        let mut events = life(&id, id_of(&user).await);
        // As they happened, backwards, and ten other orders, each with one event twice.
        match round {
            0 => {}
            1 => events.reverse(),
            _ => events.sort_by_key(|event| {
                (round * 31 + event.to_string().len() * 7) % 11 + event["id"].to_string().len()
            }),
        }
        if round > 1 {
            let n = events.len();
            events.rotate_left(round % n);
            events.swap(round % n, (round * 5 + 3) % n);
        }
        events.push(events[round % 8].clone());
        for event in &events {
            send(&app, event).await;
        }
        app.run_pending_jobs().await;
        let order: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        let expected = json!({
            "id": id, "status": "past_due", "active": true, "price_id": "price_1",
            "current_period_end": "2026-03-02T00:00:00Z", "cancel_at_period_end": false,
            "invoice_status": "payment_failed",
        });
        assert_eq!(shown(&user).await, expected, "{order:?}");
    }
    let jobs = jobs_of(&app).await;
    assert_eq!(jobs.len(), 50, "a page of them");
    assert!(jobs.iter().all(|job| job.state == JobState::Completed), "{jobs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_processed_at_the_same_time_lead_to_the_state_of_the_last_one() {
    let app = app().await;
    let user = app.user().await;
    let id = id_of(&user).await;
    for event in life("sub_1", id) {
        send(&app, &event).await;
    }
    let last = event(
        "customer.subscription.deleted",
        BEGIN + 5_184_000,
        subscription("sub_1", id, "canceled", BEGIN),
    );
    send(&app, &last).await;
    app.start_worker().await;
    crate::support::eventually("all events are processed", std::time::Duration::from_secs(30), async || {
        jobs_of(&app).await.iter().all(|job| job.state == JobState::Completed)
    })
    .await;
    let shown = shown(&user).await;
    assert_eq!((&shown["status"], &shown["active"]), (&json!("canceled"), &json!(false)), "{shown}");
}

#[tokio::test]
async fn a_subscription_is_its_users_alone_and_finds_its_user_later_too() {
    let app = app().await;
    let (user, other) = (app.user().await, app.user().await);
    assert_eq!(shown(&user).await, Value::Null, "there never was one");
    // An older form of the event, with the period at the top; and nobody of ours.
    let mut first = subscription("sub_1", Uuid::new_v4(), "trialing", BEGIN);
    first["current_period_end"] = json!(BEGIN + 60);
    first["items"] = json!({ "data": [] });
    send(&app, &event("customer.subscription.created", BEGIN, first)).await;
    app.run_pending_jobs().await;
    assert_eq!(shown(&user).await, Value::Null);
    let mine = subscription("sub_1", id_of(&user).await, "active", BEGIN + 120);
    send(&app, &event("customer.subscription.updated", BEGIN + 1, mine)).await;
    // What does not name the user takes nothing away.
    let mut nameless = subscription("sub_1", Uuid::nil(), "active", BEGIN + 180);
    nameless["metadata"] = json!({});
    nameless["cancel_at_period_end"] = json!(true);
    send(&app, &event("customer.subscription.updated", BEGIN + 2, nameless)).await;
    app.run_pending_jobs().await;
    let mine = shown(&user).await;
    assert_eq!(
        (&mine["current_period_end"], &mine["cancel_at_period_end"]),
        (&json!("2026-01-01T00:03:00Z"), &json!(true))
    );
    assert_eq!(shown(&other).await, Value::Null);
    app.anonymous().get("/v1/subscription").await.problem(401, "missing_credentials");
}

#[tokio::test]
async fn an_event_that_does_not_fit_is_given_up_with_the_reason_and_changes_nothing() {
    let app = app().await;
    let user = id_of(&app.user().await).await;
    let good = || subscription("sub_1", user, "active", BEGIN);
    let with = |key: &str, value: Value| {
        let mut object = good();
        object[key] = value;
        object
    };
    let bad = [
        event("customer.subscription.updated", BEGIN, json!(null)),
        event("customer.subscription.updated", BEGIN, json!([])),
        event("customer.subscription.updated", -1, good()),
        event("customer.subscription.updated", i64::MAX, good()),
        event("customer.subscription.updated", BEGIN, with("id", json!("a\u{0}b"))),
        event("customer.subscription.updated", BEGIN, with("id", json!(""))),
        event("customer.subscription.updated", BEGIN, with("status", json!("x".repeat(65)))),
        event("customer.subscription.updated", BEGIN, with("current_period_end", json!(i64::MIN))),
        event("customer.subscription.updated", BEGIN, with("customer", json!({ "id": "cus_1" }))),
        event("invoice.paid", BEGIN, invoice("sub 1", "paid")),
    ];
    for event in &bad {
        send(&app, event).await;
    }
    app.run_pending_jobs().await;
    let jobs = jobs_of(&app).await;
    assert_eq!(jobs.len(), bad.len());
    for job in jobs {
        assert_eq!((job.state, job.attempt, job.errors.len()), (JobState::Discarded, 1, 1), "{job:?}");
    }
    // An invoice of something else is no mistake.
    send(
        &app,
        &event(
            "invoice.paid",
            BEGIN,
            json!({ "id": "in_2", "customer": "cus_1", "status": "paid", "parent": null }),
        ),
    )
    .await;
    send(&app, &event("invoice.upcoming", BEGIN, json!({ "customer": "cus_1", "subscription": "sub_1" })))
        .await;
    app.run_pending_jobs().await;
    assert!(jobs_of(&app).await[..2].iter().all(|job| job.state == JobState::Completed));
    let rows: i64 =
        sqlx::query_scalar("select count(*) from subscription").fetch_one(app.database.pool()).await.unwrap();
    assert_eq!(rows, 0);
}

/// Runs the check, and shows its result and to whom mail went since the last time.
async fn check(app: &TestApp) -> (Value, Vec<Value>) {
    let mut c = app.database.pool().acquire().await.unwrap();
    let job = jobs::enqueue(&mut c, &job_specs::CheckRenewals {}, EnqueueOptions::default()).await.unwrap();
    app.run_pending_jobs().await;
    let done = jobs::find(&mut c, job.id()).await.unwrap().unwrap();
    assert_eq!(done.state, JobState::Completed, "{done:?}");
    let sql = "select args from job_done where kind = 'send_email' and id > $1 order by id";
    let mails: Vec<Value> = sqlx::query_scalar(sql).bind(job.id()).fetch_all(&mut *c).await.unwrap();
    (done.result.unwrap(), mails)
}

#[tokio::test]
async fn a_renewal_is_announced_once_for_each_period_however_often_the_check_runs() {
    let app = app().await;
    let now: DateTime<Utc> = app.clock.now();
    let at = |days: i64| now.timestamp() + days * 86_400;
    let (soon, later, ends, disabled) =
        (app.user().await, app.user().await, app.user().await, app.user().await);
    let mut ending = subscription("sub_ends", id_of(&ends).await, "active", at(3));
    ending["cancel_at_period_end"] = json!(true);
    for object in [
        subscription("sub_soon", id_of(&soon).await, "active", at(3)),
        subscription("sub_later", id_of(&later).await, "active", at(20)),
        subscription("sub_disabled", id_of(&disabled).await, "active", at(3)),
        subscription("sub_nobody", Uuid::new_v4(), "active", at(3)),
        ending,
    ] {
        send(&app, &event("customer.subscription.updated", at(0), object)).await;
    }
    app.run_pending_jobs().await;
    sqlx::query("update users set disabled_at = now() where email = $1")
        .bind(&disabled.email)
        .execute(app.database.pool())
        .await
        .unwrap();
    let (result, mails) = check(&app).await;
    assert_eq!(result, json!({ "reminded": 1, "lapsed": 0 }));
    assert_eq!(mails.len(), 1, "{mails:?}");
    assert_eq!(mails[0]["to"], soon.email.as_str());
    for _ in 0..2 {
        let (result, mails) = check(&app).await;
        assert_eq!((result, mails.len()), (json!({ "reminded": 0, "lapsed": 0 }), 0));
    }
    let renewed = subscription("sub_soon", id_of(&soon).await, "active", at(5));
    send(&app, &event("customer.subscription.updated", at(0) + 1, renewed)).await;
    app.run_pending_jobs().await;
    assert_eq!(check(&app).await.1.len(), 1, "the next period is announced again");
}

#[tokio::test]
async fn a_renewal_that_was_never_heard_of_ends_the_subscription_until_the_next_event() {
    let app = app().await;
    let user = app.user().await;
    let (id, now) = (id_of(&user).await, app.clock.now().timestamp());
    let of_period = |end: i64| subscription("sub_1", id, "active", end);
    send(&app, &event("customer.subscription.updated", now - 40 * 86_400, of_period(now - 3 * 86_400))).await;
    app.run_pending_jobs().await;
    assert_eq!(check(&app).await.0["lapsed"], 0, "Stripe may still try");
    assert_eq!(shown(&user).await["active"], true);
    send(&app, &event("customer.subscription.updated", now - 39 * 86_400, of_period(now - 5 * 86_400))).await;
    app.run_pending_jobs().await;
    assert_eq!(check(&app).await.0["lapsed"], 1);
    assert_eq!(shown(&user).await["active"], false);
    assert_eq!(check(&app).await.0["lapsed"], 0, "once for each period");
    send(&app, &event("customer.subscription.updated", now, of_period(now + 30 * 86_400))).await;
    app.run_pending_jobs().await;
    assert_eq!(shown(&user).await["active"], true);
}
