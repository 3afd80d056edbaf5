//! What a request costs: seen by Redis itself, and with Postgres unplugged.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use test_support::{FaultProxy, Mode, OwnServices, TestDatabase};

use crate::{
    ai::{chat, open, whole},
    support::{Persona, TestApp, eventually},
};

/// Everything that a Redis is asked, in its order, as `MONITOR` tells it.
struct Monitor {
    seen: Arc<Mutex<Vec<String>>>,
    asking: db::redis_client::aio::MultiplexedConnection,
    marks: usize,
}

impl Monitor {
    async fn start(redis_url: &str) -> Self {
        let url = url::Url::parse(redis_url).unwrap();
        let address = (url.host_str().unwrap().to_owned(), url.port().unwrap());
        let mut stream = TcpStream::connect(address).await.unwrap();
        let hello = format!("AUTH {}\r\nMONITOR\r\n", url.password().unwrap());
        stream.write_all(hello.as_bytes()).await.unwrap();
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let lines = seen.clone();
        tokio::spawn(async move {
            let mut reader = BufReader::new(stream).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                // What a script does inside the server is no round trip.
                if !line.contains(" lua] ") {
                    lines.lock().unwrap().push(line);
                }
            }
        });
        let client = db::redis_client::Client::open(redis_url).unwrap();
        let mut monitor =
            Self { seen, asking: client.get_multiplexed_async_connection().await.unwrap(), marks: 0 };
        monitor.since_last().await;
        monitor
    }

    /// What was asked since the last call: so many scripts, and nothing else.
    async fn scripts_since_last(&mut self, what: &str, count: usize) {
        let asked = self.since_last().await;
        let scripts = asked.iter().filter(|line| line.contains("\"EVALSHA\"")).count();
        assert_eq!((asked.len(), scripts), (count, count), "{what}: {asked:#?}");
    }

    /// What was asked since the last call.
    async fn since_last(&mut self) -> Vec<String> {
        self.marks += 1;
        let mark = format!("mark-{}-", self.marks);
        let answered: String =
            db::redis_client::cmd("ECHO").arg(&mark).query_async(&mut self.asking).await.unwrap();
        assert_eq!(answered, mark);
        let seen = self.seen.clone();
        eventually("the monitor shows the mark", std::time::Duration::from_secs(5), async || {
            seen.lock().unwrap().iter().any(|line| line.contains(&mark))
        })
        .await;
        let mut lines = std::mem::take(&mut *self.seen.lock().unwrap());
        lines.retain(|line| !line.contains("\"ECHO\"") && !line.contains("mark-"));
        lines
    }
}

/// Case A12.
#[tokio::test(flavor = "multi_thread")]
async fn an_admitted_request_is_one_round_trip_to_redis_and_none_to_postgres_by_token_and_by_key() {
    const REQUESTS: usize = 40;
    let (services, database) = tokio::join!(OwnServices::start(), TestDatabase::create());
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    let app = TestApp::with(&[("DATABASE_URL", &url), ("REDIS_URL", &services.redis_url)]).await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    let ask = async |caller: &Persona, status: u16| {
        for i in 0..REQUESTS {
            caller.get(["/v1/models", "/v1/whoami"][i % 2]).await.expect(status);
        }
    };
    ask(&user, 200).await;
    ask(&key, 200).await;
    let mut redis = Monitor::start(&services.redis_url).await;

    // Whoever needs Postgres from here on fails.
    postgres.set(Mode::Refuse);
    user.get("/v1/me").await.problem(503, "database_unavailable");
    let (session, of_key) =
        (user.get("/v1/whoami").await.expect(200).json(), key.get("/v1/whoami").await.expect(200).json());
    assert_eq!(session["user_id"], of_key["user_id"]);
    assert!(session["session_id"].is_string() && of_key["api_key_id"].is_string(), "{session} {of_key}");
    assert_eq!((&session["scopes"], &of_key["scopes"]), (&Value::Null, &json!(["ai"])));
    redis.since_last().await;
    for caller in [&user, &key] {
        ask(caller, 200).await;
        let asked = redis.since_last().await;
        assert_eq!(asked.len(), REQUESTS, "{asked:#?}");
        assert!(asked.iter().all(|line| line.contains("\"EVALSHA\"")), "{asked:#?}");
    }

    // Case A12. What is not even a credential costs nobody anything.
    let genuine = key.api_key_text();
    let mistyped =
        format!("{}{}", &genuine[..genuine.len() - 1], if genuine.ends_with('0') { '1' } else { '0' });
    for forged in [mistyped.as_str(), "blst_0123456789abcdef_00", "a.b.c", &format!("{}x", user.token())] {
        ask(&app.anonymous().with_token(forged), 401).await;
        let asked = redis.since_last().await;
        assert!(asked.is_empty(), "{forged}: {asked:#?}");
    }
    assert_eq!(postgres.open(), 0, "nothing went round the proxy's refusal");
}

/// The warm path of the AI proxy: admission alone stands before the first byte; at the end the limits are settled.
#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_one_round_trip_before_its_first_byte_and_one_after_its_last() {
    const CHAT: &str = "/v1/chat/completions";
    let (services, database) = tokio::join!(OwnServices::start(), TestDatabase::create());
    let (postgres, url) = FaultProxy::in_front_of(database.url()).await;
    let app = TestApp::with(&[("DATABASE_URL", &url), ("REDIS_URL", &services.redis_url)]).await;
    let user = app.user().await;
    let key = app.api_key(&user, &["ai"]).await;
    let settled = async |redis: &mut Monitor, what: &str| {
        let seen = redis.seen.clone();
        eventually(what, std::time::Duration::from_secs(5), async || !seen.lock().unwrap().is_empty()).await;
        redis.scripts_since_last(what, 1).await;
    };
    for caller in [&user, &key] {
        caller.post(CHAT, whole(CHAT, "[[sim tokens=2]]")).await.expect(200);
    }
    eventually("both are settled", std::time::Duration::from_secs(5), async || app.state.ai.open() == 0)
        .await;
    assert!(app.state.ai.flush_usage().await);
    let mut redis = Monitor::start(&services.redis_url).await;

    // Whoever needs Postgres from here on fails.
    postgres.set(Mode::Refuse);
    user.get("/v1/me").await.problem(503, "database_unavailable");
    redis.since_last().await;
    for (who, caller) in [("token", &user), ("key", &key)] {
        let mut stream = open(caller, CHAT, chat("[[sim fault=stall:3]]")).await;
        stream.chunk().await.unwrap().unwrap();
        redis.scripts_since_last(&format!("a stream by {who}"), 1).await;
        drop(stream);
        settled(&mut redis, &format!("the end of a stream by {who}")).await;

        let answer = tokio::spawn({
            let request = caller.request(reqwest::Method::POST, CHAT);
            let request = request.json(&whole(CHAT, "[[sim fault=hang-before-headers]]"));
            async move { request.send().await }
        });
        app.engine.wait_for(std::time::Duration::from_secs(5), |stats| stats.requests_open == 1).await;
        redis.scripts_since_last(&format!("a question by {who}"), 1).await;
        answer.abort();
        settled(&mut redis, &format!("the end of a question by {who}")).await;
    }
    assert_eq!(postgres.open(), 0, "nothing went round the proxy's refusal");

    // These need Postgres. Of Redis they ask as little.
    postgres.set(Mode::Pass);
    eventually("Postgres is back", std::time::Duration::from_secs(10), async || {
        user.get("/v1/me").await.status == 200
    })
    .await;
    eventually("usage is written", std::time::Duration::from_secs(20), async || {
        app.state.ai.flush_usage().await
    })
    .await;
    redis.since_last().await;
    user.post("/v1/jobs", serde_json::json!({"kind": "echo", "args": {"message": "x"}})).await.expect(202);
    redis.scripts_since_last("a job", 1).await;
    let login = serde_json::json!({"email": user.email, "password": "a wrong password"});
    app.anonymous().post("/v1/auth/login", login).await.expect(401);
    redis.scripts_since_last("a login in vain", 1).await;
}
