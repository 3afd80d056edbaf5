//! Whom the scenario asks, what it knows, and what it has seen.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use super::secrets::{Class, Place, Secrets};
use crate::support::{Answer, eventually};

/// Somebody who asks: with one header that says who, or none.
#[derive(Debug, Clone, Default)]
pub(super) struct Who(Option<(&'static str, String)>);

impl Who {
    pub(super) fn token(token: &str) -> Self {
        Self(Some(("authorization", format!("Bearer {token}"))))
    }

    pub(super) fn key(key: &str) -> Self {
        Self(Some(("x-api-key", key.to_owned())))
    }
}

/// A login.
#[derive(Debug, Clone)]
pub(super) struct Tokens {
    pub(super) who: Who,
    pub(super) refresh: String,
}

pub(super) struct World {
    pub(super) url: String,
    pub(super) secrets: Secrets,
    pub(super) pool: PgPool,
    client: reqwest::Client,
    /// What each operation has answered so far.
    pub(super) statuses: BTreeMap<String, BTreeSet<u16>>,
    pub(super) hostile_ids: Vec<Vec<u8>>,
    /// With which the sender `crm` signs.
    pub(super) webhook_secret: String,
}

impl World {
    pub(super) fn new(url: String, pool: PgPool) -> Self {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(std::time::Duration::from_secs(30))
            .build()
            .unwrap();
        Self {
            url,
            secrets: Secrets::default(),
            pool,
            client,
            statuses: BTreeMap::new(),
            hostile_ids: Vec::new(),
            webhook_secret: String::new(),
        }
    }

    /// Asks: `GET /v1/things/{id}`, with a value for each parameter and a JSON body unless it is null. The answer must hold
    /// nothing that is known by now.
    pub(super) async fn ask(
        &mut self,
        who: &Who,
        operation: &str,
        parameters: &[&str],
        body: Value,
    ) -> Answer {
        let bytes = if body.is_null() { None } else { Some(body.to_string().into_bytes()) };
        self.send(who, operation, parameters, "", HeaderMap::new(), bytes).await
    }

    /// As [`Self::ask`], and it must work.
    pub(super) async fn ok(
        &mut self,
        who: &Who,
        operation: &str,
        parameters: &[&str],
        body: Value,
    ) -> Answer {
        let answer = self.ask(who, operation, parameters, body).await;
        assert!((200..300).contains(&answer.status), "{operation}: {} {}", answer.status, answer.text);
        answer
    }

    /// The whole of it: a query, more headers, any bytes.
    pub(super) async fn send(
        &mut self,
        who: &Who,
        operation: &str,
        parameters: &[&str],
        query: &str,
        headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Answer {
        let (method, template) = operation.split_once(' ').unwrap();
        let mut values = parameters.iter();
        let path: Vec<String> =
            template
                .split('/')
                .map(|part| {
                    if part.starts_with('{') { (*values.next().unwrap()).to_owned() } else { part.to_owned() }
                })
                .collect();
        let url = format!("{}{}{query}", self.url, path.join("/"));
        let mut request = self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        if let Some((name, value)) = &who.0 {
            request = request.header(*name, value);
        }
        let answer = Answer::read(request.headers(headers).send().await.unwrap()).await;
        let shown = format!("{:?}\n{}", answer.headers, answer.text);
        let found = self.secrets.found_in(Place::Answer, operation, &shown);
        assert!(found.is_empty(), "{}", found.join("\n"));
        self.statuses.entry(operation.to_owned()).or_default().insert(answer.status);
        answer
    }

    /// A new account with a password that nobody else has.
    pub(super) async fn register(&mut self, email: &str) -> String {
        let password = self.secrets.new_value(&format!("password of {email}"), Class::Secret);
        self.ok(&Who::default(), "POST /v1/auth/sign-up", &[], json!({ "email": email })).await;
        let account = json!({ "email": email, "password": password });
        self.spend_mailed_token("invite", "invitation_token", email, "POST /v1/auth/register", account).await;
        password
    }

    /// Spends a token as it is mailed. A mail that goes out at the same time voids it, so it may take more than one.
    pub(super) async fn spend_mailed_token(
        &mut self,
        purpose: &str,
        field: &str,
        email: &str,
        operation: &str,
        mut body: Value,
    ) {
        let pool = self.pool.clone();
        let found = db::users::find_by_email(&mut pool.acquire().await.unwrap(), email).await.unwrap();
        eventually(operation, std::time::Duration::from_secs(20), async || {
            let bytes = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat();
            let token = format!("ot_{}", URL_SAFE_NO_PAD.encode(&bytes));
            let hash = digest(&SHA256, &bytes).as_ref().to_vec();
            let sql = "insert into one_time_token (hash, purpose, user_id, email, expires_at)
                       values ($1, $2, $3, $4, now() + interval '1 hour')";
            let insert = sqlx::query(sql).bind(hash).bind(purpose).bind(found.as_ref().map(|user| user.id));
            insert.bind(email).execute(&pool).await.unwrap();
            self.secrets.learn("a mailed token", &token, Class::Secret);
            body[field] = json!(token);
            let answer = self.ask(&Who::default(), operation, &[], body.clone()).await;
            (200..300).contains(&answer.status)
        })
        .await;
    }

    pub(super) async fn log_in(&mut self, email: &str, password: &str) -> Tokens {
        let account = json!({ "email": email, "password": password });
        let answer = self.ok(&Who::default(), "POST /v1/auth/login", &[], account).await;
        self.learn_tokens(&answer)
    }

    pub(super) fn learn_tokens(&mut self, answer: &Answer) -> Tokens {
        let body = answer.json();
        let [access, refresh] =
            ["access_token", "refresh_token"].map(|name| body[name].as_str().unwrap().to_owned());
        self.secrets.learn("an access token", &access, Class::Secret);
        self.secrets.learn("a refresh token", &refresh, Class::Secret);
        Tokens { who: Who::token(&access), refresh }
    }
}
