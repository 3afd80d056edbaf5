//! The API on a real socket, with a database and a Redis prefix of its own, the simulated engine behind it, and a worker
//! that runs jobs when it is told to.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use api::{AppState, auth::RefreshSecret};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use config::{ApiConfig, MapVars, ShutdownConfig, WorkerConfig};
use engine_sim::{Sim, SimConfig};
use reqwest::{Method, RequestBuilder};
use runtime::{Clock, Lifecycle, MetricsHandle};
use serde_json::{Value, json};
use test_support::{TestDatabase, TestRedis, test_redis};
use uuid::Uuid;

use super::{Answer, PASSWORD, contract, insert_user, mail_to, token_in};

pub(crate) struct TestApp {
    pub(crate) url: String,
    pub(crate) state: AppState,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) clock: Clock,
    pub(crate) engine: std::sync::Arc<Sim>,
    pub(crate) database: std::sync::Arc<TestDatabase>,
    pub(crate) redis: TestRedis,
    vars: MapVars,
}

/// Somebody who calls the API.
#[derive(Clone)]
pub(crate) struct Persona {
    client: reqwest::Client,
    url: String,
    credential: Option<(&'static str, String)>,
    forwarded_for: Option<String>,
    pub(crate) email: String,
    pub(crate) refresh_token: String,
}

impl TestApp {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With these variables on top of what development has.
    pub(crate) async fn with(overrides: &[(&str, &str)]) -> Self {
        let (database, redis) = tokio::join!(TestDatabase::create(), test_redis());
        let engine = Sim::start(SimConfig::instant()).await;
        let mut vars = MapVars::from([
            ("REDIS_URL", redis.url.as_str()),
            ("REDIS_KEY_PREFIX", &redis.prefix),
            ("DATABASE_POOL_SIZE", "5"),
            // A machine that also builds takes its time to connect.
            ("DATABASE_ACQUIRE_TIMEOUT", "10s"),
            ("ENGINE_URL", &format!("{}/v1", engine.url())),
            ("HOST", "127.0.0.1"),
            ("SHUTDOWN_BUDGET", "10s"),
        ]);
        for (name, value) in database.variables().iter().chain(overrides) {
            vars.set(name, value);
        }
        Self::replica_of(vars, database.into(), redis, engine.into(), Clock::system())
    }

    /// A second API over the same stores, as a second process would be.
    pub(crate) fn replica(&self) -> Self {
        self.replica_with(&[])
    }

    /// A second API over the same stores that got other settings: what a deploy puts in the place of the first.
    pub(crate) fn replica_with(&self, overrides: &[(&str, &str)]) -> Self {
        let (database, engine) = (self.database.clone(), self.engine.clone());
        let mut vars = self.vars.clone();
        for (name, value) in overrides {
            vars.set(name, value);
        }
        Self::replica_of(vars, database, self.redis.clone(), engine, self.clock.clone())
    }

    /// A second API over the same stores whose clock is off.
    pub(crate) fn replica_off_by(&self, offset: TimeDelta) -> Self {
        let (database, engine) = (self.database.clone(), self.engine.clone());
        let clock = Clock::system();
        clock.advance(offset);
        Self::replica_of(self.vars.clone(), database, self.redis.clone(), engine, clock)
    }

    fn replica_of(
        vars: MapVars,
        database: std::sync::Arc<TestDatabase>,
        redis: TestRedis,
        engine: std::sync::Arc<Sim>,
        clock: Clock,
    ) -> Self {
        runtime::install_crypto_provider();
        let config = ApiConfig::from_vars(&vars).unwrap_or_else(|problems| panic!("{problems}"));
        let times = ShutdownConfig { delay: Duration::ZERO, budget: config.runtime.shutdown.budget };
        let lifecycle = Lifecycle::new(times);
        let http = config.runtime.http.clone();
        let state =
            AppState::from_config(config, lifecycle.clone(), clock.clone(), MetricsHandle::detached())
                .unwrap();
        let listener = server::bind(http.host, 0).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = api::router(state.clone());
        lifecycle.spawn("http server", server::serve(listener, router, http, lifecycle.clone()));
        Self { url, state, lifecycle, clock, engine, database, redis, vars }
    }

    pub(crate) fn anonymous(&self) -> Persona {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(30))
            .build()
            .unwrap();
        Persona {
            client,
            url: self.url.clone(),
            credential: None,
            forwarded_for: None,
            email: String::new(),
            refresh_token: String::new(),
        }
    }

    /// A new user with a session, both made in the database; [`Self::register`] is the way of people.
    pub(crate) async fn user(&self) -> Persona {
        self.somebody("user").await
    }

    /// A new administrator with a session.
    pub(crate) async fn admin(&self) -> Persona {
        self.somebody("admin").await
    }

    async fn somebody(&self, role: &str) -> Persona {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let email = format!("user{}@example.com", COUNT.fetch_add(1, Ordering::Relaxed));
        // The one that the API asks, which may be another than this test's.
        insert_user(self.state.database.pool(), &email, role).await;
        self.session(&email).await
    }

    /// A session of the account with this address, made in the database.
    pub(crate) async fn session(&self, email: &str) -> Persona {
        self.session_of(&Persona { email: email.to_owned(), ..self.anonymous() }).await
    }

    /// Registers as people do: asks for a mail, and sends its token with a password.
    pub(crate) async fn register(&self, email: &str, password: &str) -> Answer {
        let token = self.sign_up_token(email).await;
        let body = json!({ "email": email, "password": password, "invitation_token": token });
        self.anonymous().post("/v1/auth/register", body).await
    }

    /// The token that is mailed to who signs up.
    pub(crate) async fn sign_up_token(&self, email: &str) -> String {
        self.anonymous().post("/v1/auth/sign-up", json!({ "email": email })).await.expect(202);
        self.mailed_token(email).await
    }

    /// Runs what is due, and returns the token of the newest mail to this address.
    pub(crate) async fn mailed_token(&self, to: &str) -> String {
        self.run_pending_jobs().await;
        let mail = mail_to(self.database.pool(), to).await;
        token_in(&mail.unwrap_or_else(|| panic!("no mail to {to}")))
    }

    pub(crate) async fn log_in(&self, email: &str) -> Persona {
        let body = json!({ "email": email, "password": PASSWORD });
        let tokens = self.anonymous().post("/v1/auth/login", body).await.expect(200).json();
        let mut persona = self.anonymous().with_token(tokens["access_token"].as_str().unwrap());
        email.clone_into(&mut persona.email);
        tokens["refresh_token"].as_str().unwrap().clone_into(&mut persona.refresh_token);
        persona
    }

    /// One more session of this user, made in the database: a login without the cost of comparing a password.
    pub(crate) async fn session_of(&self, user: &Persona) -> Persona {
        let mut c = self.state.database.pool().acquire().await.unwrap();
        let found = db::users::find_by_email(&mut c, &user.email).await.unwrap().unwrap();
        let user_id = found.id;
        let (id, refresh) = (Uuid::now_v7(), RefreshSecret::generate().unwrap());
        let created_at = self.clock.now();
        let [longest, idle] =
            [self.state.config.auth.session_max_age, self.state.config.auth.refresh_token_ttl]
                .map(|duration| TimeDelta::from_std(duration).unwrap());
        let expires_at = created_at + longest;
        let refresh_expires = created_at + idle.min(longest);
        let ip = [127, 0, 0, 1].into();
        let new = db::sessions::NewSession { id, user_id, created_at, expires_at, user_agent: None, ip };
        db::sessions::insert(&mut c, &new).await.unwrap();
        db::sessions::insert_refresh_token(&mut c, &refresh.hash(), id, None, refresh_expires).await.unwrap();
        let access = self.state.keyring.sign(user_id, id, &found.role).unwrap();
        let session = Persona { refresh_token: refresh.text(), ..user.at(self) };
        session.with_token(&access.token)
    }

    /// A machine with an API key of `owner`.
    pub(crate) async fn api_key(&self, owner: &Persona, scopes: &[&str]) -> Persona {
        let body = json!({ "name": "test", "scopes": scopes });
        let key = owner.post("/v1/api-keys", body).await.expect(201).json();
        let credential = Some(("x-api-key", key["key"].as_str().unwrap().to_owned()));
        Persona { credential, ..self.anonymous() }
    }

    /// Runs every job that is due, and those that these enqueue, on a worker of this test.
    pub(crate) async fn run_pending_jobs(&self) -> usize {
        jobs::testing::drain_until_empty(&worker::worker(&self.worker_context())).await
    }

    /// Starts a worker in the background, schedule included; it ends with the app.
    pub(crate) async fn start_worker(&self) -> worker::Handle {
        worker::start(self.worker_context(), &self.lifecycle).await.unwrap()
    }

    /// What jobs of this deployment work with.
    pub(crate) fn worker_context(&self) -> worker::Context {
        let config = WorkerConfig::from_vars(&self.vars).unwrap_or_else(|problems| panic!("{problems}"));
        let http = reqwest::Client::builder().build().unwrap();
        worker::Context::new(self.state.database.clone(), config, http)
    }

    pub(crate) fn advance_clock(&self, by: TimeDelta) {
        self.clock.advance(by);
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.lifecycle.stop_now();
    }
}

impl Persona {
    /// Somebody with this access token, at an address that is no [`TestApp`]'s.
    pub(crate) fn at_url(url: &str, token: &str) -> Self {
        let nobody = Self {
            client: reqwest::Client::new(),
            url: url.to_owned(),
            credential: None,
            forwarded_for: None,
            email: String::new(),
            refresh_token: String::new(),
        };
        nobody.with_token(token)
    }

    pub(crate) fn with_token(mut self, token: &str) -> Self {
        self.credential = Some(("authorization", format!("Bearer {token}")));
        self
    }

    /// The same person, asking through a client and an address of the test's own.
    pub(crate) fn through(&self, client: &reqwest::Client, url: &str) -> Self {
        Self { client: client.clone(), url: url.to_owned(), ..self.clone() }
    }

    /// The same person, asking another replica.
    pub(crate) fn at(&self, app: &TestApp) -> Self {
        Self { url: app.url.clone(), ..self.clone() }
    }

    /// The same person behind a proxy that names this address; for apps that trust the loopback networks.
    pub(crate) fn behind(&self, address: impl Into<String>) -> Self {
        Self { forwarded_for: Some(address.into()), ..self.clone() }
    }

    /// Exchanges a refresh token.
    pub(crate) async fn refresh(&self, refresh_token: &str) -> Answer {
        self.post("/v1/auth/refresh", json!({ "refresh_token": refresh_token })).await
    }

    /// Ends the session of a refresh token.
    pub(crate) async fn logout(&self, refresh_token: &str) -> Answer {
        self.post("/v1/auth/logout", json!({ "refresh_token": refresh_token })).await
    }

    /// The session's id, which its access token names.
    pub(crate) fn session_id(&self) -> Uuid {
        let claims = URL_SAFE_NO_PAD.decode(self.token().split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        claims["sid"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn token(&self) -> &str {
        self.credential.as_ref().and_then(|(_, v)| v.strip_prefix("Bearer ")).unwrap()
    }

    /// The API key of [`TestApp::api_key`].
    pub(crate) fn api_key_text(&self) -> &str {
        self.credential.as_ref().map(|(_, key)| key.as_str()).unwrap()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(address) = &self.forwarded_for {
            request = request.header("x-forwarded-for", address);
        }
        match &self.credential {
            Some((name, value)) => request.header(*name, value),
            None => request,
        }
    }

    /// Sends it, and holds the answer against the API's description.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Answer {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let answer = Answer::read(self.client.execute(request).await.unwrap()).await;
        contract::check(&method, &path, &answer);
        answer
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(self.request(Method::POST, path).json(&body)).await
    }
}
