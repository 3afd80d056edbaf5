//! `POST /v1/auth/login`: e-mail and password for a pair of tokens.

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
};
use db::sessions::NewSession;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Issued, Tokens, delta, normalize_email, pseudonym};
use crate::{
    AppState, Error, Result,
    admission::Anonymous,
    auth::{Compared, RefreshSecret, require_listed_origin},
    error::Problem,
    extract::Json,
};

/// E-mail and password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"email": "ann@example.com", "password": "correct horse battery staple"}))]
pub(super) struct Login {
    /// The account's address.
    email: String,
    /// Its password.
    #[schema(max_length = 128)]
    password: String,
    /// For browsers: the refresh token comes in the cookie `__Host-refresh_token`, which no script can read, and not in the
    /// body. The request's Origin must be listed.
    #[serde(default)]
    cookie: bool,
}

/// Logs in. The same answer, in the same time, whether the account does not exist, is disabled, or the password is wrong.
#[utoipa::path(post, path = "/v1/auth/login", tag = "auth", request_body = Login,
    responses((status = 200, body = Tokens), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn login(
    State(state): State<AppState>,
    anonymous: Anonymous,
    headers: HeaderMap,
    Json(body): Json<Login>,
) -> Result<impl IntoResponse> {
    if body.cookie {
        require_listed_origin(&state, &headers)?;
    }
    let email = normalize_email(&body.email)?;
    let account = pseudonym(&state, &email);
    let subject = format!("{}:{account}", anonymous.client.bucket());
    anonymous.admit(&state.limiter.policies().login, &subject).await?;
    let refresh = RefreshSecret::generate().map_err(Error::internal)?;
    let mut attempt = attempt(&state, &anonymous, &headers, (&email, &body.password), &refresh).await?;
    if attempt.changed_meanwhile() {
        // Another login renewed the hash while we compared with the old one; or the password is another one by now.
        attempt = self::attempt(&state, &anonymous, &headers, (&email, &body.password), &refresh).await?;
    }
    match attempt.session {
        Some(session) => session.answer(&state, &refresh, body.cookie),
        None => Err(refuse(&state, &anonymous, &account, attempt.found.as_ref(), attempt.matches).await?),
    }
}

struct Attempt {
    found: Option<db::users::Credentials>,
    matches: bool,
    session: Option<Issued>,
}

impl Attempt {
    fn changed_meanwhile(&self) -> bool {
        self.session.is_none() && self.matches && self.found.as_ref().is_some_and(|user| !user.disabled)
    }
}

async fn attempt(
    state: &AppState,
    anonymous: &Anonymous,
    headers: &HeaderMap,
    (email, password): (&str, &str),
    refresh: &RefreshSecret,
) -> Result<Attempt> {
    let found =
        state.database.call("users.credentials", async |c| db::users::credentials(c, email).await).await?;
    let hash = found.as_ref().map(|f| f.password_hash.clone());
    let Compared { matches, renewed } = state.passwords.verify("password", password, hash).await?;
    let mut session = None;
    if let Some(user) = found.as_ref().filter(|user| matches && !user.disabled) {
        session = begin_session(state, anonymous, headers, user, refresh).await?;
        if session.is_some() {
            renew(state, user, renewed).await;
        }
    }
    Ok(Attempt { found, matches, session })
}

/// Stores the password's hash of today's parameters. Not worth failing a login for: the next one tries again.
async fn renew(state: &AppState, user: &db::users::Credentials, renewed: Option<String>) {
    let Some(hash) = renewed else { return };
    let replace =
        async |c: &mut _| db::users::replace_password_hash(c, user.user_id, &user.password_hash, &hash).await;
    match state.database.call("users.renew_password_hash", replace).await {
        Ok(_) => {
            tracing::info!(user_id = %user.user_id, "a password was hashed anew with today's parameters");
        }
        Err(error) => tracing::warn!(%error, "a password could not be hashed anew"),
    }
}

/// Notes why, and says the same whatever it was. The event is written for unknown accounts too: it takes time.
async fn refuse(
    state: &AppState,
    anonymous: &Anonymous,
    account: &str,
    found: Option<&db::users::Credentials>,
    matches: bool,
) -> Result<Error> {
    let reason = match found {
        None => "unknown account",
        Some(_) if !matches => "wrong password",
        Some(user) if user.disabled => "disabled account",
        Some(_) => "changed meanwhile",
    };
    tracing::info!(account, "login refused");
    let event = db::audit::Event {
        event: "login_failed",
        user_id: found.map(|f| f.user_id),
        ip: Some(anonymous.client.0),
        request_id: Some(&anonymous.request_id),
        detail: json!({ "reason": reason, "account": account }),
        ..Default::default()
    };
    state.database.call("audit.insert", async |c| db::audit::insert(c, &event).await).await?;
    Ok(Error::unauthorized("invalid_credentials", "E-mail address or password is wrong."))
}

/// Stores the session; `None` when the password was changed, or the account disabled, while we compared.
async fn begin_session(
    state: &AppState,
    anonymous: &Anonymous,
    headers: &HeaderMap,
    user: &db::users::Credentials,
    refresh: &RefreshSecret,
) -> Result<Option<Issued>> {
    let user_agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
    let user_agent: Option<String> = user_agent.map(|v| v.chars().take(200).collect());
    let now = state.clock.now();
    let session = NewSession {
        id: Uuid::now_v7(),
        user_id: user.user_id,
        created_at: now,
        expires_at: now + delta(state.config.auth.session_max_age),
        user_agent: user_agent.as_deref(),
        ip: anonymous.client.0,
    };
    let refresh_expires = session.expires_at.min(now + delta(state.config.auth.refresh_token_ttl));
    let stored = state
        .database
        .transaction::<_, db::Error>("sessions.insert", async |c| {
            if !db::users::hold_credentials(c, user.user_id, &user.password_hash).await? {
                return Ok(false);
            }
            db::sessions::insert(c, &session).await?;
            db::sessions::insert_refresh_token(c, &refresh.hash(), session.id, None, refresh_expires).await?;
            let event = db::audit::Event {
                session_id: Some(session.id),
                ..anonymous.event("login", session.user_id)
            };
            db::audit::insert(c, &event).await?;
            Ok(true)
        })
        .await?;
    Ok(stored.then(|| Issued {
        user_id: user.user_id,
        session_id: session.id,
        role: user.role.clone(),
        refresh_expires,
    }))
}
