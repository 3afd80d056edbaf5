//! Watching a run.

use std::time::Instant;

use db::redis_client::cmd;
use futures_util::future::join_all;
use test_support::OwnServices;

use super::{S, names, open, parse, read, rest, some, start, state, text, until, usage};
use crate::support::{Deployment, TestApp, eventually, free_port, metric, ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_made_by_a_worker_and_read_from_its_begin_as_often_as_one_likes() {
    let app = TestApp::start().await;
    let (user, stranger) = (app.user().await, app.user().await);
    let path = start(&user, "[[sim tokens=5]]").await;
    assert_eq!(state(&user, &path).await, "queued");
    app.start_worker().await;
    let events = read(&user, &path, None).await;
    assert_eq!(names(&events), ["queued", "started", "", "end"]);
    assert!(!text(&events).is_empty());
    let end = events.last().unwrap();
    assert_eq!((end.id.as_str(), end.json()["state"].as_str()), ("end", Some("completed")));
    let run = user.get(&path).await.expect(200).json();
    assert_eq!((run["state"].as_str(), run["attempts"].as_i64()), (Some("completed"), Some(1)));
    assert_eq!(run["usage"], end.json()["usage"]);
    assert_eq!(run["usage"]["completion_tokens"], 5);
    assert_eq!(read(&user, &path, None).await, events, "once more, all of it");
    assert_eq!(open(&user, &path, Some("end")).await.status(), 204, "EventSource stops");
    let rows = usage(&app).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].0.as_str(), rows[0].2, rows[0].3), ("ok", 5, false));
    for suffix in ["", "/events"] {
        stranger.get(&format!("{path}{suffix}")).await.problem(404, "not_found");
    }
    let request: Option<Vec<u8>> =
        sqlx::query_scalar("select request from run").fetch_one(app.database.pool()).await.unwrap();
    assert_eq!(request, None, "what was asked is not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_comes_exactly_on_another_replica() {
    let app = TestApp::start().await;
    let other = app.replica();
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=30 token-interval-ms=20]]").await;
    app.start_worker().await;
    // Left in the middle, taken up elsewhere.
    let mut first = open(&user, &path, None).await;
    let before = some(&mut first, 7).await;
    drop(first);
    let after = read(&user.at(&other), &path, Some(&before.last().unwrap().id)).await;
    let all = read(&user, &path, None).await;
    assert_eq!([before, after].concat(), all);
    // And from every event of it, when it is over.
    for (n, event) in all.iter().enumerate().take(all.len() - 1) {
        assert_eq!(read(&user.at(&other), &path, Some(&event.id)).await, all[n + 1..], "after {n}");
    }
    for bad in ["x", "1", "1-", "1-2-3", "end2"] {
        let request =
            user.request(reqwest::Method::GET, &format!("{path}/events")).header("last-event-id", bad);
        user.send(request).await.problem(400, "invalid_last_event_id");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_viewers_of_two_runs_see_the_same_and_redis_sees_one_reader() {
    let services = OwnServices::start().await;
    let vars = [("REDIS_URL", services.redis_url.as_str()), ("AI_CONCURRENT_STREAMS", "100")];
    let app = TestApp::with(&vars).await;
    let user = app.user().await;
    let paths = [
        start(&user, "[[sim tokens=40 token-interval-ms=50]] a").await,
        start(&user, "[[sim tokens=40 token-interval-ms=50]] b").await,
    ];
    let viewers = join_all((0..20).map(|n| open(&user, &paths[n % 2], None))).await;
    app.start_worker().await;
    let client = db::redis_client::Client::open(services.redis_url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let reading = tokio::spawn(join_all(viewers.into_iter().map(rest)));
    let mut most = 0;
    while !reading.is_finished() {
        let clients: String = cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
        let blocked = clients.lines().filter(|line| line.contains(" flags=b ")).count();
        most = most.max(blocked);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let seen = reading.await.unwrap();
    for (n, events) in seen.iter().enumerate() {
        assert_eq!(events, &seen[n % 2], "viewer {n}");
        assert_eq!(names(events), ["queued", "started", "", "end"]);
    }
    assert_eq!(most, 1, "connections that wait for entries");
    eventually("nobody reads for nobody", S(10), async || {
        let clients: String = cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
        !clients.contains(" flags=b ")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_takes_nothing_holds_nobody_up_and_misses_nothing() {
    let app = TestApp::start().await;
    let user = app.user().await;
    // Far more than the sockets between, and than the hub keeps for anybody.
    let path = start(&user, "[[sim tokens=8000]]").await;
    let vars = [("RUN_STREAM_EVENTS", "100000")];
    let slow_app = app.replica_with(&vars);
    let slow = open(&user, &path, None).await;
    let quick = open(&user, &path, None).await;
    slow_app.start_worker().await;
    let started = Instant::now();
    let quick = rest(quick).await;
    println!("the quick one has {} events after {:?}", quick.len(), started.elapsed());
    assert_eq!(quick.last().unwrap().json()["state"], "completed");
    assert!(!quick.iter().any(|event| event.name == "trimmed"));
    let slow = rest(slow).await;
    assert!(slow == quick, "{} and {} events", slow.len(), quick.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_no_longer_kept_are_told_to_be_missing() {
    let app = TestApp::with(&[("RUN_STREAM_EVENTS", "10")]).await;
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=100 token-interval-ms=5]]").await;
    let mut early = open(&user, &path, None).await;
    app.start_worker().await;
    let seen = some(&mut early, 3).await;
    drop(early);
    until(&user, &path, "completed").await;
    for after in [None, Some(seen.last().unwrap().id.as_str())] {
        let events = read(&user, &path, after).await;
        assert_eq!(names(&events), ["trimmed", "", "end"], "after {after:?}");
        assert!(events.len() <= 11, "{}", events.len());
    }
    // All of it gone: the end is in the database, and EventSource stops all the same.
    let mut redis = app.redis.connection().await;
    let key = format!("{}v1:run:{}:events", app.redis.prefix, path.rsplit_once('/').unwrap().1);
    let () = cmd("DEL").arg(key).query_async(&mut redis).await.unwrap();
    let events = read(&user, &path, None).await;
    assert_eq!(names(&events), ["trimmed", "end"]);
    assert_eq!(events[1].json()["state"], "completed");
    assert_eq!(open(&user, &path, Some(&events[1].id)).await.status(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_shuts_down_lets_its_viewers_go_on_elsewhere() {
    let app = TestApp::start().await;
    let (leaving, worker) = (app.replica(), app.replica());
    let user = app.user().await;
    let path = start(&user, "[[sim tokens=40 token-interval-ms=50]]").await;
    worker.start_worker().await;
    let mut response = open(&user.at(&leaving), &path, None).await;
    let mut seen = some(&mut response, 3).await;
    let lifecycle = leaving.lifecycle.clone();
    lifecycle.begin_shutdown();
    let started = Instant::now();
    let stopping = tokio::spawn(async move { lifecycle.run_until_stopped().await });
    seen.extend(parse(&response.text().await.unwrap()));
    assert_eq!(stopping.await.unwrap(), 0, "no task had to be cut");
    assert!(started.elapsed() < S(5), "{:?}", started.elapsed());
    assert_ne!(seen.last().unwrap().name, "end", "it is not over");
    seen.extend(read(&user, &path, Some(&seen.last().unwrap().id.clone())).await);
    assert_eq!(seen, read(&user, &path, None).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_run_has_heartbeats_and_ends_with_the_session_or_key_that_watches_it() {
    let app = TestApp::with(&[("STREAM_HEARTBEAT", "100ms")]).await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    let path = start(&user, "Hello!").await;
    let (mut by_session, mut by_key) = (open(&user, &path, None).await, open(&key, &path, None).await);
    for response in [&mut by_session, &mut by_key] {
        let mut text = String::new();
        while !text.contains(": ping") {
            text.push_str(std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap());
        }
    }
    let id = user.get("/v1/api-keys").await.expect(200).json()["data"][0]["id"].as_str().unwrap().to_owned();
    user.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    assert_eq!(names(&rest(by_key).await).last(), Some(&"revoked"));
    user.logout(&user.refresh_token).await.expect(204);
    assert_eq!(names(&rest(by_session).await).last(), Some(&"revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_viewers_that_leave_leave_nothing_behind() {
    let stack = Deployment::new().await;
    let port = free_port();
    let limits = [
        ("AI_CONCURRENT_STREAMS", "1000"),
        ("RATE_LIMIT_GLOBAL", "100000/1m"),
        // A hundred at once wait for five connections.
        ("DATABASE_ACQUIRE_TIMEOUT", "20s"),
    ];
    let _api = stack.start("api", port, &limits);
    ready(port).await;
    let user = stack.user_at(port).await;
    // No worker is there: it waits, and so do its viewers.
    let path = start(&user, "x").await;
    let mut redis = stack.redis.connection().await;
    let mut permits = async || {
        let pattern = format!("{}*:sem:*watch:*", stack.redis.prefix);
        let keys: Vec<String> = cmd("KEYS").arg(pattern).query_async(&mut redis).await.unwrap();
        let mut count = 0;
        for key in keys {
            count += cmd("ZCARD").arg(key).query_async::<u64>(&mut redis).await.unwrap();
        }
        count
    };
    for round in 0..5 {
        let viewers = join_all((0..100).map(|_| open(&user, &path, None))).await;
        let statuses: Vec<_> = viewers.iter().map(|viewer| viewer.status().as_u16()).collect();
        assert_eq!(statuses, [200; 100], "{round}");
        assert_eq!(metric(port, "run_viewers", "").await as u64, 100, "{round}");
        assert_eq!(permits().await, 100, "{round}");
        drop(viewers);
        eventually("the viewers are gone", S(5), async || metric(port, "run_viewers", "").await as u64 == 0)
            .await;
        eventually("their permits are back", S(5), async || permits().await == 0).await;
    }
}
