//! `POST /v1/auth/login`: e-mail and password for a pair of tokens.

use axum::{
    extract::State,
    http::{HeaderMap, header},
};
use db::sessions::NewSession;
use unicode_normalization::UnicodeNormalization as _;
use uuid::Uuid;

use super::{EmailAndPassword, Tokens, delta, normalize_email, pseudonym, tokens};
use crate::{
    AppState, Error, Result, admission::Anonymous, auth::RefreshSecret, error::Problem, extract::Json,
};

/// Logs in. The same answer, in the same time, whether the account does not exist, is disabled, or the password is wrong.
#[utoipa::path(post, path = "/v1/auth/login", tag = "auth", request_body = EmailAndPassword,
    responses((status = 200, body = Tokens), (status = 401, body = Problem), (status = 422, body = Problem),
              (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn login(
    State(state): State<AppState>,
    anonymous: Anonymous,
    headers: HeaderMap,
    Json(body): Json<EmailAndPassword>,
) -> Result<Json<Tokens>> {
    let email = normalize_email(&body.email)?;
    let subject = format!("{}:{}", anonymous.client.bucket(), pseudonym(&state, &email));
    anonymous.admit(&state.limiter.policies().login, &subject).await?;
    if body.password.nfc().count() > 128 {
        return Err(Error::invalid("password", "must have 8 to 128 characters"));
    }
    let found =
        state.database.call("users.credentials", async |c| db::users::credentials(c, &email).await).await?;
    let hash = found.as_ref().map(|f| f.password_hash.clone());
    let matches = state.passwords.verify(&body.password, hash).await?;
    let Some(user) = found.filter(|f| matches && !f.disabled) else {
        return Err(refused(&state, &email));
    };
    let refresh = RefreshSecret::generate().map_err(Error::internal)?;
    let user_agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
    let user_agent: Option<String> = user_agent.map(|v| v.chars().take(200).collect());
    let now = state.clock.now();
    let session = NewSession {
        id: Uuid::now_v7(),
        user_id: user.user_id,
        expires_at: now + delta(state.config.auth.session_max_age),
        user_agent: user_agent.as_deref(),
        ip: anonymous.client.0,
    };
    let refresh_expires = session.expires_at.min(now + delta(state.config.auth.refresh_token_ttl));
    let made = state
        .database
        .transaction::<_, db::Error>("sessions.insert", async |c| {
            if !db::users::hold_credentials(c, user.user_id, &user.password_hash).await? {
                return Ok(false);
            }
            db::sessions::insert(c, &session).await?;
            db::sessions::insert_refresh_token(c, &refresh.hash(), session.id, None, refresh_expires).await?;
            let event = db::audit::Event {
                event: "login",
                user_id: Some(session.user_id),
                session_id: Some(session.id),
                ip: Some(session.ip),
                request_id: Some(&anonymous.request_id),
                ..Default::default()
            };
            db::audit::insert(c, &event).await?;
            Ok(true)
        })
        .await?;
    if !made {
        return Err(refused(&state, &email));
    }
    Ok(Json(tokens(&state, user.user_id, session.id, &user.role, &refresh)?))
}

fn refused(state: &AppState, email: &str) -> Error {
    tracing::info!(account = pseudonym(state, email), "login refused");
    Error::unauthorized("invalid_credentials", "E-mail address or password is wrong.")
}
