//! Sessions under races: many clients, two replicas, and the order that nobody planned.

use std::time::Duration;

use chrono::TimeDelta;
use futures_util::{StreamExt as _, future::join_all, stream};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::support::{Answer, PASSWORD, Persona, Process, TestApp, eventually, free_port, ready};

/// Room for thousands of requests from one address, and time for fifty that wait for one lock on a busy machine.
const ROOM: [(&str, &str); 5] = [
    ("RATE_LIMIT_GLOBAL", "1000000/1m"),
    ("RATE_LIMIT_REFRESH", "1000000/1m"),
    ("DATABASE_ACQUIRE_TIMEOUT", "20s"),
    // Each round comes from an address of its own: the burst shield counts by address.
    ("TRUSTED_PROXY", "127.0.0.0/8"),
    ("STREAM_HEARTBEAT", "100ms"),
];

fn address(round: usize) -> String {
    format!("10.{}.{}.1", round / 250, round % 250)
}

fn text(body: &Value, field: &str) -> String {
    body[field].as_str().unwrap_or_else(|| panic!("no {field}: {body}")).to_owned()
}

/// Of one session: unused tokens, tokens with a parent, and whether it was revoked.
async fn family(pool: &PgPool, session: Uuid) -> (i64, i64, bool) {
    sqlx::query_as(
        "select (select count(*) from refresh_token where session_id = s.id and used_at is null),
                (select count(*) from refresh_token where session_id = s.id and parent_hash is not null),
                s.revoked_at is not null
         from session s where s.id = $1",
    )
    .bind(session)
    .fetch_one(pool)
    .await
    .unwrap()
}

async fn audited(pool: &PgPool, event: &str, session: Uuid) -> i64 {
    sqlx::query_scalar("select count(*) from audit_log where event = $1 and session_id = $2")
        .bind(event)
        .bind(session)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Two processes of the real binary over the stores of `app`, and somebody who asks each of them.
async fn two_processes(app: &TestApp) -> ([Process; 2], [Persona; 2]) {
    let ports = [free_port(), free_port()];
    let processes = ports.map(|port| {
        let port = port.to_string();
        let mut vars = vec![
            ("PORT", port.as_str()),
            ("HOST", "127.0.0.1"),
            ("DATABASE_URL", app.database.url()),
            ("DATABASE_POOL_SIZE", "5"),
            ("REDIS_URL", app.redis.url.as_str()),
            ("REDIS_KEY_PREFIX", app.redis.prefix.as_str()),
            ("ENGINE_URL", "http://127.0.0.1:1/v1"),
        ];
        vars.extend(ROOM);
        Process::start(&["api"], &vars)
    });
    for port in ports {
        ready(port).await;
    }
    let client = reqwest::Client::new();
    (processes, ports.map(|port| app.anonymous().through(&client, &format!("http://127.0.0.1:{port}"))))
}

/// Case A5: over two processes, and after both were killed and started again.
#[tokio::test(flavor = "multi_thread")]
async fn one_refresh_token_fifty_times_at_once_on_two_replicas_has_one_child_in_each_of_100_rounds() {
    let app = TestApp::with(&ROOM).await;
    let user = app.user().await;
    let (processes, [here, there]) = two_processes(&app).await;
    let mut rounds = Vec::new();
    for round in 0..100 {
        let session = app.session_of(&user).await;
        let callers = [&here, &there].map(|caller| caller.behind(address(round)));
        let calls = (0..50).map(|i| callers[i % 2].refresh(&session.refresh_token));
        let answers: Vec<Value> =
            join_all(calls).await.into_iter().map(|answer| answer.expect(200).json()).collect();
        let child = text(&answers[0], "refresh_token");
        assert!(answers.iter().all(|answer| answer["refresh_token"] == child), "round {round}: two children");
        let found = family(app.database.pool(), session.session_id()).await;
        assert_eq!(found, (1, 1, false), "round {round}: leaves, children, revoked");
        rounds.push((session, child));
    }

    // Both are killed and replaced: nothing of this is in a process.
    drop(processes);
    let (_processes, [here, there]) = two_processes(&app).await;
    let look = async |(round, (session, child)): (usize, &(Persona, String))| {
        let [one, two] = [&here, &there].map(|caller| caller.behind(address(round)));
        let found = family(app.database.pool(), session.session_id()).await;
        assert_eq!(found, (1, 1, false), "round {round}: leaves, children, revoked");
        // The one child lives, on one; on the other its child again, because that is derived.
        let grandchild = text(&one.refresh(child).await.expect(200).json(), "refresh_token");
        let again = two.refresh(child).await.expect(200).json();
        assert_eq!(again["refresh_token"], grandchild, "round {round}");
        // And its parent is a stolen one by now.
        two.refresh(&session.refresh_token).await.problem(401, "invalid_token");
        for token in [&session.refresh_token, child, &grandchild] {
            one.refresh(token).await.problem(401, "invalid_token");
        }
        assert!(
            family(app.database.pool(), session.session_id()).await.2,
            "round {round}: revoked as a whole"
        );
    };
    stream::iter(rounds.iter().enumerate()).for_each_concurrent(10, look).await;
}

/// What ends a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theft {
    /// A token is used again after the grace.
    LateReuse,
    /// A token is used again within the grace, after its child was used.
    Grandparent,
}

/// Case A6.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_refresh_token_ends_tokens_leaves_and_streams_on_both_replicas_and_is_audited() {
    let app = TestApp::with(&ROOM).await;
    let other = app.replica();
    let user = app.user().await;
    let neighbour = app.session_of(&user).await;
    for theft in [Theft::LateReuse, Theft::Grandparent] {
        let session = app.session_of(&user).await;
        let first = app.anonymous().refresh(&session.refresh_token).await.expect(200).json();
        let child = text(&first, "refresh_token");
        let mut leaves = vec![child.clone()];
        if theft == Theft::Grandparent {
            let second = other.anonymous().refresh(&child).await.expect(200).json();
            leaves.push(text(&second, "refresh_token"));
        } else {
            app.advance_clock(TimeDelta::seconds(11));
        }
        let newest = app.anonymous().with_token(&text(&first, "access_token"));
        let stream = newest.at(&other).request(reqwest::Method::POST, "/v1/chat/completions").json(
            &serde_json::json!({
                "model": "sim-small", "stream": true,
                "messages": [{ "role": "user", "content": "[[sim tokens=1000 token-interval-ms=100]]" }],
            }),
        );
        let mut stream = stream.send().await.unwrap();
        stream.chunk().await.unwrap();

        app.anonymous().refresh(&session.refresh_token).await.problem(401, "invalid_token");
        for replica in [&app, &other] {
            for token in [session.token(), newest.token()] {
                replica.anonymous().with_token(token).get("/v1/me").await.problem(401, "revoked");
            }
            for leaf in &leaves {
                replica.anonymous().refresh(leaf).await.problem(401, "invalid_token");
            }
        }
        assert!(family(app.database.pool(), session.session_id()).await.2, "{theft:?}");
        assert_eq!(audited(app.database.pool(), "refresh_reuse", session.session_id()).await, 1, "{theft:?}");
        let rest = tokio::time::timeout(Duration::from_secs(10), stream.text()).await;
        let rest = rest.expect("the stream ends").unwrap();
        assert!(rest.contains("revoked") && !rest.contains("[DONE]"), "{theft:?}: {rest}");
    }
    neighbour.get("/v1/me").await.expect(200);
    neighbour.at(&other).get("/v1/me").await.expect(200);
}

/// Every token that a session was ever given.
#[derive(Default)]
struct Issued {
    access: Vec<String>,
    refresh: Vec<String>,
}

impl Issued {
    fn add(&mut self, answer: &Answer) {
        // A refusal is fine: the other side was quicker.
        if answer.status == 200 {
            let tokens = answer.json();
            self.access.push(text(&tokens, "access_token"));
            self.refresh.push(text(&tokens, "refresh_token"));
        } else {
            assert_eq!(answer.status, 401, "{}", answer.text);
        }
    }

    async fn all_dead(&self, caller: &Persona, what: &str) {
        for token in &self.access {
            let answer = caller.clone().with_token(token).get("/v1/me").await;
            assert_eq!(answer.status, 401, "{what}: an access token lives: {}", answer.text);
        }
        for token in &self.refresh {
            let answer = caller.refresh(token).await;
            assert_eq!(answer.status, 401, "{what}: a refresh token lives: {}", answer.text);
        }
    }
}

/// Repeatable disorder (xorshift, Marsaglia 2003).
struct Disorder(u64);

impl Disorder {
    fn below(&mut self, limit: u64) -> u64 {
        for (left, shift) in [(true, 13), (false, 7), (true, 17)] {
            self.0 ^= if left { self.0 << shift } else { self.0 >> shift };
        }
        self.0 % limit
    }
}

async fn pause(ms: u64) {
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// Exchanges a token on both replicas at once, then its child, and so on, until somebody ends the session.
async fn refresh_in_two_tabs(tabs: [&Persona; 2], first: &str, issued: &mut Issued) {
    let mut token = first.to_owned();
    for _ in 0..3 {
        let (one, two) = tokio::join!(tabs[0].refresh(&token), tabs[1].refresh(&token));
        issued.add(&one);
        issued.add(&two);
        let Some(next) = [one, two].into_iter().find(|answer| answer.status == 200) else { return };
        token = text(&next.json(), "refresh_token");
    }
}

/// Case A7.
#[tokio::test(flavor = "multi_thread")]
async fn in_200_races_of_refresh_and_logout_no_token_survives_the_logout_nor_a_restart() {
    let app = TestApp::with(&ROOM).await;
    let other = app.replica();
    let user = app.user().await;
    let replicas = [app.anonymous(), other.anonymous()];
    let mut disorder = Disorder(0x5eed_cafe);
    let (mut rounds, mut quick) = (Vec::new(), 0);
    for round in 0..200 {
        let session = app.session_of(&user).await;
        let mut issued = Issued { access: vec![session.token().to_owned()], refresh: Vec::new() };
        let callers = [0, 1].map(|i| replicas[(i + round) % 2].behind(address(round)));
        let delays = [disorder.below(15), disorder.below(15)];
        let logout = async {
            pause(delays[0]).await;
            callers[1].logout(&session.refresh_token).await.expect(204);
        };
        let refreshes = async {
            pause(delays[1]).await;
            refresh_in_two_tabs([&callers[0], &callers[1]], &session.refresh_token, &mut issued).await;
        };
        tokio::join!(logout, refreshes);
        quick += usize::from(issued.refresh.is_empty());
        issued.all_dead(&callers[round / 2 % 2], &format!("round {round}, delays {delays:?}")).await;
        rounds.push(issued);
    }
    assert!((5..195).contains(&quick), "each side was quicker now and then: logout {quick} times of 200");

    let (one, two) = (app.replica(), app.replica());
    drop((app, other));
    for (round, issued) in rounds.iter().enumerate() {
        for replica in [&one, &two] {
            issued.all_dead(&replica.anonymous().behind(address(round)), "after the restart").await;
        }
    }
    let reasons: Vec<(Option<String>, i64)> =
        sqlx::query_as("select revoked_reason, count(*) from session group by 1 order by 2")
            .fetch_all(one.database.pool())
            .await
            .unwrap();
    assert_eq!(reasons, [(None, 1), (Some("logout".to_owned()), 200)], "the user's own lives, no other one");
}

/// Case A7. A login that compared the old password while the change of it was under way: had it been let in, it would be the
/// one session that the change did not end. The same for an account that is disabled.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_overlaps_a_change_of_the_password_is_refused() {
    let app = TestApp::start().await;
    let another = api::auth::hash_password("another password").unwrap();
    for change in [&format!("password_hash = '{another}'"), "disabled_at = now()"] {
        let user = app.user().await;
        let mut changing = app.database.pool().begin().await.unwrap();
        let sql = format!("update users set {change} where email = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&user.email).execute(&mut *changing).await.unwrap();
        let body = serde_json::json!({ "email": user.email, "password": PASSWORD });
        let caller = app.anonymous();
        let login = tokio::spawn(async move { caller.post("/v1/auth/login", body).await });
        eventually("the login waits for the change", Duration::from_secs(10), async || {
            let waiting: bool = sqlx::query_scalar(
                "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')",
            )
            .fetch_one(app.database.pool())
            .await
            .unwrap();
            waiting
        })
        .await;
        changing.commit().await.unwrap();
        login.await.unwrap().problem(401, "invalid_credentials");
    }
}
