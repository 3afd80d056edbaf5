//! Documents: handed in, split, embedded by the engine, stored; and what happens when the engine does not play along.

use std::time::Duration;

use jobs::testing::fast_forward;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Persona, TestApp, eventually};

/// Paragraphs that say their number: 40 of them make more than one request to the engine.
fn text(paragraphs: usize) -> String {
    let paragraph = |n| format!("Paragraph {n}. {}\n\n", "It has something to say. ".repeat(50));
    (0..paragraphs).map(paragraph).collect::<Vec<_>>().concat()
}

async fn hand_in(user: &Persona, content: &str) -> Value {
    user.post("/v1/documents", json!({ "title": "Terms", "content": content })).await.expect(202).json()
}

async fn shown(user: &Persona, document: &Value) -> Value {
    user.get(&format!("/v1/documents/{}", document["id"].as_str().unwrap())).await.expect(200).json()
}

async fn chunks(app: &TestApp, document: &Value) -> Vec<(i32, String, i32)> {
    let id: Uuid = document["id"].as_str().unwrap().parse().unwrap();
    sqlx::query_as(
        "select position, content, array_length(embedding, 1) from document_chunk where document_id = $1 order by 1",
    )
    .bind(id)
    .fetch_all(app.database.pool())
    .await
    .unwrap()
}

#[tokio::test]
async fn a_document_is_split_embedded_and_stored_by_a_job_and_its_cost_is_counted() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let content = text(40);
    let made = hand_in(&user, &content).await;
    assert_eq!(
        (&made["state"], &made["chunks"], &made["chunks_stored"]),
        (&json!("pending"), &json!(null), &json!(0))
    );
    let job = format!("/v1/jobs/{}", made["job_id"].as_str().unwrap());
    assert_eq!(user.get(&job).await.expect(200).json()["kind"], "ingest_document", "its owner can watch it");
    app.run_pending_jobs().await;
    let ready = shown(&user, &made).await;
    assert_eq!((&ready["state"], &ready["error"]), (&json!("ready"), &json!(null)), "{ready}");
    assert!(ready["ingested_at"].is_string());
    let stored = chunks(&app, &made).await;
    assert_eq!(
        (ready["chunks"].as_u64(), ready["chunks_stored"].as_u64()),
        (Some(stored.len() as u64), Some(stored.len() as u64))
    );
    assert!(stored.len() > 32, "more than one request: {}", stored.len());
    assert!(stored.iter().all(|(_, piece, numbers)| piece.len() <= 1_500 && *numbers == 1536));
    let letters = |text: &str| text.split_whitespace().collect::<String>();
    let together: String = stored.iter().map(|(_, piece, _)| letters(piece)).collect();
    assert_eq!(together, letters(&content), "nothing is lost and nothing there twice");
    let done = user.get(&job).await.expect(200).json();
    assert_eq!(done["result"], json!({ "chunks": stored.len() }));
    let usage = user.get("/v1/usage").await.expect(200).json();
    assert!(usage["data"][0]["prompt_tokens"].as_u64().unwrap() > 1_000, "{usage}");
    assert_eq!(
        (&usage["data"][0]["model"], &usage["data"][0]["requests"]),
        (&json!("text-embedding-3-small"), &json!(2))
    );
}

#[tokio::test]
async fn a_document_waits_for_an_engine_that_is_out_and_asks_only_for_what_is_missing() {
    let app = TestApp::with(&[("ENGINE_RETRIES", "0")]).await;
    let user = app.user().await;
    let made = hand_in(&user, &text(40)).await;
    app.engine.set_defaults("fault=status:503");
    app.run_pending_jobs().await;
    let waiting = shown(&user, &made).await;
    assert_eq!((&waiting["state"], &waiting["chunks_stored"]), (&json!("pending"), &json!(0)));
    assert!(waiting["chunks"].as_u64().unwrap() > 32, "{waiting}");
    // The first request is answered, the second one is not.
    app.engine.clear_defaults();
    let mut c = app.database.pool().acquire().await.unwrap();
    sqlx::raw_sql(
        "create function only_32() returns trigger language plpgsql as
             $$ begin if new.position >= 32 then raise exception 'not now'; end if; return new; end $$;
         create trigger only_32 before insert on document_chunk for each row execute function only_32()",
    )
    .execute(&mut *c)
    .await
    .unwrap();
    fast_forward(&mut c, Duration::from_secs(3_600)).await;
    app.run_pending_jobs().await;
    let half = shown(&user, &made).await;
    assert_eq!((&half["state"], &half["chunks_stored"]), (&json!("pending"), &json!(32)));
    sqlx::raw_sql("drop trigger only_32 on document_chunk").execute(&mut *c).await.unwrap();
    let before = app.engine.stats().requests_total;
    fast_forward(&mut c, Duration::from_secs(3_600)).await;
    app.run_pending_jobs().await;
    assert_eq!(shown(&user, &made).await["state"], "ready");
    assert_eq!(app.engine.stats().requests_total - before, 1, "for the rest alone");
    let usage = user.get("/v1/usage").await.expect(200).json();
    assert_eq!(usage["data"][0]["requests"], 2, "what was not stored is not counted: {usage}");
}

#[tokio::test]
async fn a_document_that_the_engine_refuses_fails_with_the_reason_and_one_that_it_cannot_take_now_does_not() {
    let app = TestApp::with(&[("ENGINE_RETRIES", "0")]).await;
    let user = app.user().await;
    app.engine.set_defaults("fault=status:400 times=1");
    let refused = hand_in(&user, "Some text.").await;
    app.run_pending_jobs().await;
    let refused = shown(&user, &refused).await;
    assert_eq!(refused["state"], "failed");
    assert!(refused["error"].is_string(), "{refused}");
    for fault in ["status:429", "status:500", "html", "gzip", "close-before-headers"] {
        app.engine.set_defaults(&format!("fault={fault} times=1"));
        let made = hand_in(&user, "Some text.").await;
        app.run_pending_jobs().await;
        assert_eq!(shown(&user, &made).await["state"], "pending", "{fault}");
        let mut c = app.database.pool().acquire().await.unwrap();
        fast_forward(&mut c, Duration::from_secs(3_600)).await;
        app.run_pending_jobs().await;
        assert_eq!(shown(&user, &made).await["state"], "ready", "{fault}");
    }
    // When no attempt is left its owner is told so.
    app.engine.set_defaults("fault=status:500");
    let made = hand_in(&user, "Some text.").await;
    sqlx::query("update job set max_attempts = 1").execute(app.database.pool()).await.unwrap();
    app.run_pending_jobs().await;
    let failed = shown(&user, &made).await;
    assert_eq!(
        (&failed["state"], &failed["error"]),
        (&json!("failed"), &json!("the engine was not available"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_ingests_three_documents_at_a_time_and_no_more() {
    let app = TestApp::start().await;
    let user = app.user().await;
    // Nobody is answered, so everybody who may be at it is.
    app.engine.set_defaults("fault=hang-before-headers");
    for _ in 0..7 {
        hand_in(&user, "Some text.").await;
    }
    app.start_worker().await;
    app.engine.wait_for(Duration::from_secs(60), |stats| stats.requests_open == 3).await;
    // More than two polls later the others still wait.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(app.engine.stats().requests_total, 3);
}

#[tokio::test]
async fn documents_are_listed_and_deleted_with_their_pieces_and_a_job_of_one_that_is_gone_does_nothing() {
    let app = TestApp::start().await;
    let user = app.user().await;
    app.run_pending_jobs().await; // the mail to a new account
    let documents =
        [hand_in(&user, "One.").await, hand_in(&user, "Two.").await, hand_in(&user, "Three.").await];
    let first = user.get("/v1/documents?limit=2").await.expect(200).json();
    assert_eq!(
        (&first["data"][0]["id"], &first["data"][1]["id"]),
        (&documents[2]["id"], &documents[1]["id"])
    );
    let next = first["next"].as_str().unwrap();
    let last = user.get(&format!("/v1/documents?before={next}")).await.expect(200).json();
    assert_eq!((last["data"].as_array().unwrap().len(), &last["next"]), (1, &json!(null)));
    let path = |n: usize| format!("/v1/documents/{}", documents[n]["id"].as_str().unwrap());
    // Before its job has run: that is cancelled.
    user.delete(&path(0)).await.expect(204);
    assert_eq!(app.run_pending_jobs().await, 2);
    user.get(&path(0)).await.problem(404, "not_found");
    user.delete(&path(0)).await.problem(404, "not_found");
    assert_eq!(chunks(&app, &documents[1]).await.len(), 1);
    user.delete(&path(1)).await.expect(204);
    assert_eq!(chunks(&app, &documents[1]).await.len(), 0);
    // Deleted behind its job's back, and run again when it is ready: nothing is asked.
    let before = app.engine.stats().requests_total;
    let mut c = app.database.pool().acquire().await.unwrap();
    for document in [&documents[1], &documents[2]] {
        let document_id = document["id"].as_str().unwrap().parse().unwrap();
        let job = job_specs::IngestDocument { document_id };
        jobs::enqueue(&mut c, &job, jobs::EnqueueOptions::default()).await.unwrap();
    }
    app.run_pending_jobs().await;
    assert_eq!(app.engine.stats().requests_total, before);
    let other = app.user().await;
    assert_eq!(other.get("/v1/documents").await.expect(200).json()["data"], json!([]));
    other.delete(&path(2)).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_document_whose_job_was_cancelled_has_failed() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let made = hand_in(&user, "Some text.").await;
    let job = made["job_id"].as_str().unwrap();
    user.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await.expect(200);
    let failed = shown(&user, &made).await;
    assert_eq!(
        (&failed["state"], &failed["error"]),
        (&json!("failed"), &json!("its job was cancelled or given up"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_is_deleted_while_it_is_ingested_leaves_nothing() {
    let app = TestApp::start().await;
    let user = app.user().await;
    // The deletion ends the request.
    app.engine.set_defaults("fault=hang-before-headers");
    let made = hand_in(&user, "Some text.").await;
    app.start_worker().await;
    app.engine.wait_for(Duration::from_secs(60), |stats| stats.requests_open == 1).await;
    user.delete(&format!("/v1/documents/{}", made["id"].as_str().unwrap())).await.expect(204);
    eventually("the job ends", Duration::from_secs(20), async || {
        let left = "select count(*) from job where kind = 'ingest_document'";
        sqlx::query_scalar::<_, i64>(left).fetch_one(app.database.pool()).await.unwrap() == 0
    })
    .await;
    let left: i64 = sqlx::query_scalar("select count(*) from document_chunk")
        .fetch_one(app.database.pool())
        .await
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_is_no_document_is_refused_and_a_text_that_just_fits_is_not() {
    let app = TestApp::with(&[("RATE_LIMIT_AI_TOKENS", "100000/1m")]).await;
    let user = app.user().await;
    app.run_pending_jobs().await; // the mail to a new account
    for body in [
        json!({}),
        json!({ "title": "", "content": "x" }),
        json!({ "title": "x".repeat(201), "content": "x" }),
        json!({ "title": "a\0b", "content": "x" }),
        json!({ "title": "x", "content": "" }),
        json!({ "title": "x", "content": " \n\t " }),
        json!({ "title": "x", "content": "a\0b" }),
        json!({ "title": "x", "content": "x".repeat(200_001) }),
        json!({ "title": "x", "content": 1 }),
        json!({ "title": "x", "content": "x", "more": 1 }),
    ] {
        user.post("/v1/documents", body).await.problem(422, "invalid");
    }
    user.post("/v1/documents", json!({ "title": "x", "content": "x".repeat(300 * 1024) }))
        .await
        .problem(413, "body_too_large");
    assert_eq!(app.run_pending_jobs().await, 0);
    hand_in(&user, &"ü".repeat(100_000)).await;
    assert_eq!(app.run_pending_jobs().await, 1);
    // Its tokens are charged when it comes: 66 667 of the 100 000 a minute are gone.
    let again = json!({ "title": "x", "content": "y".repeat(200_000) });
    user.post("/v1/documents", again).await.problem(429, "rate_limited");
    let key = app.api_key(&user, &["jobs"]).await;
    key.get("/v1/documents").await.problem(403, "missing_scope");
    key.post("/v1/documents", json!({ "title": "x", "content": "x" })).await.problem(403, "missing_scope");
}
