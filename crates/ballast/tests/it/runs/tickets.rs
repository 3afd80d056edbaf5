//! Case A13: tickets for EventSource.

use reqwest::Method;
use serde_json::Value;

use super::{S, names, parse, rest, some, start};
use crate::support::{Persona, TestApp, eventually};

async fn ticket(user: &Persona, path: &str) -> String {
    let made = user.post(&format!("{path}/ticket"), Value::Null).await.expect(201).json();
    let (ticket, url) = (made["ticket"].as_str().unwrap(), made["url"].as_str().unwrap());
    assert_eq!(url, format!("{path}/events?ticket={ticket}"));
    url.to_owned()
}

/// Case A13.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_its_own_run_on_every_replica_as_often_as_its_holder_comes_back() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=10 token-interval-ms=50]]").await;
    let url = ticket(&user, &path).await;
    app.start_worker().await;
    let mut first = app.anonymous().request(Method::GET, &url).send().await.unwrap();
    assert_eq!(first.status(), 200);
    let mut events = some(&mut first, 3).await;
    drop(first);
    // EventSource comes back to the same address.
    let again =
        other.anonymous().request(Method::GET, &url).header("last-event-id", &events.last().unwrap().id);
    events.extend(rest(again.send().await.unwrap()).await);
    assert_eq!(names(&events), ["queued", "started", "", "end"]);
    let over =
        app.anonymous().request(Method::GET, &url).header("last-event-id", "end").send().await.unwrap();
    assert_eq!(over.status(), 204);
    // It reads, and does nothing else.
    let query = url.split_once('?').unwrap().1;
    app.anonymous().get(&format!("{path}?{query}")).await.problem(401, "missing_credentials");
    app.anonymous().delete(&format!("{path}?{query}")).await.problem(401, "missing_credentials");
    app.anonymous()
        .post(&format!("{path}/ticket?{query}"), Value::Null)
        .await
        .problem(401, "missing_credentials");
}

/// Case A13.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_nothing_but_its_run_and_ends_with_what_it_came_from() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "1s")]).await;
    let (user, stranger) = (app.user().await, app.user().await);
    let (path, other_run, theirs) =
        (start(&user, "x").await, start(&user, "x").await, start(&stranger, "x").await);
    let refused = async |url: &str| drop(app.anonymous().get(url).await.problem(401, "invalid_ticket"));
    let query = |url: &str| url.split_once('?').unwrap().1.to_owned();

    // Another run, another user's run, nobody's run; a mistyped one; and a run of somebody else gets no ticket.
    let url = ticket(&user, &path).await;
    for elsewhere in [&other_run, &theirs, &format!("/v1/runs/{}", uuid::Uuid::now_v7())] {
        refused(&format!("{elsewhere}/events?{}", query(&url))).await;
    }
    for bad in ["", "tk_", "x", &"A".repeat(5_000), &format!("tk_{}", "A".repeat(43)), "tk_%00"] {
        refused(&format!("{path}/events?ticket={bad}")).await;
    }
    stranger.post(&format!("{path}/ticket"), Value::Null).await.problem(404, "not_found");
    stranger.delete(&format!("{path}/ticket")).await.problem(404, "not_found");
    // Not beside a credential.
    user.get(&url).await.problem(401, "invalid_token");

    // Revoked: at once for whoever comes, within seconds for who is there.
    let watching = app.anonymous().request(Method::GET, &url).send().await.unwrap();
    assert_eq!(watching.status(), 200);
    user.delete(&format!("{path}/ticket")).await.expect(204);
    refused(&url).await;
    assert_eq!(names(&rest(watching).await).last(), Some(&"revoked"));

    // The session that asked for it ends; another one of the same user does not matter.
    let session = app.session_of(&user).await;
    let (of_session, of_user) = (ticket(&session, &path).await, ticket(&user, &path).await);
    session.logout(&session.refresh_token).await.expect(204);
    refused(&of_session).await;
    let fine = app.anonymous().request(Method::GET, &of_user).send().await.unwrap();
    assert_eq!(fine.status(), 200);
    drop(fine);

    // The API key.
    let key = app.api_key(&user, &["ai"]).await;
    let of_key = ticket(&key, &path).await;
    let id = user.get("/v1/api-keys").await.expect(200).json()["data"][0]["id"].as_str().unwrap().to_owned();
    user.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    refused(&of_key).await;

    // The user.
    let their_ticket = ticket(&stranger, &theirs).await;
    sqlx::query("update users set disabled_at = now() where email = $1")
        .bind(&stranger.email)
        .execute(app.database.pool())
        .await
        .unwrap();
    refused(&their_ticket).await;
    refused(&their_ticket.replace("tk_", "ot_")).await;
}

/// Case A13.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_expires_with_the_events_of_its_run() {
    let app = TestApp::with(&[("RUN_STREAM_TTL", "2s")]).await;
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=3]]").await;
    let url = ticket(&user, &path).await;
    app.run_pending_jobs().await;
    let read = app.anonymous().request(Method::GET, &url).send().await.unwrap();
    assert_eq!(names(&parse(&read.text().await.unwrap())).last(), Some(&"end"));
    eventually("it expires", S(20), async || app.anonymous().get(&url).await.status == 401).await;
    app.anonymous().get(&url).await.problem(401, "invalid_ticket");
}
