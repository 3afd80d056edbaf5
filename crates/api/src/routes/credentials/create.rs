//! `POST /v1/credentials`.

use axum::{extract::State, http::StatusCode};
use db::{
    PgConnection,
    credentials::{Credential, NewCredential},
};
use job_specs::CheckCredential;
use jobs::EnqueueOptions;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::CredentialView;
use crate::{AppState, Error, Result, admission::Caller, error::Problem, extract, extract::Json};

/// So many a user may store.
const MOST: i64 = 100;
/// From this length on the last four characters are shown: enough stays hidden.
const SHOW_FROM: usize = 20;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "production", "provider": "openai", "secret": "sk-0123456789abcdefghij"}))]
pub(super) struct CredentialBody {
    /// What you call it: 1 to 100 characters, once.
    name: String,
    /// Which system it is for: one of those that the deployment lists.
    provider: String,
    /// What the system asks for, such as its API key: 8 to 4096 visible ASCII characters. Never shown again.
    #[schema(value_type = String, format = Password, write_only)]
    secret: SecretString,
}

/// Stores a credential of another system, encrypted, and tries it soon: `status` tells what came of it.
#[utoipa::path(post, path = "/v1/credentials", tag = "credentials", security(("bearer" = [])),
    request_body = CredentialBody,
    responses((status = 201, body = CredentialView), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(body): Json<CredentialBody>,
) -> Result<(StatusCode, Json<CredentialView>)> {
    let session_id = caller.require_live_session(&state).await?;
    let name = extract::text("name", &body.name, 1, 100)?;
    check(&state, &body)?;
    let id = Uuid::now_v7();
    let sealed = state.sealing.seal(id, caller.user_id, &body.secret).map_err(Error::internal)?;
    let new = NewCredential {
        id,
        user_id: caller.user_id,
        name: &name,
        provider: &body.provider,
        sealed: &sealed,
        ends_with: ends_with(body.secret.expose_secret()),
    };
    let event = db::audit::Event {
        event: "credential_created",
        user_id: Some(caller.user_id),
        session_id: Some(session_id),
        ip: Some(caller.client.0),
        request_id: Some(&caller.request_id),
        detail: serde_json::json!({ "id": id, "provider": body.provider }),
    };
    let stored = state
        .database
        .transaction("credentials.insert", async |c| {
            let stored = insert(c, &new).await?;
            let options = EnqueueOptions { owner: Some(new.user_id), ..Default::default() };
            jobs::enqueue(c, &CheckCredential { credential_id: id }, options).await?;
            db::audit::insert(c, &event).await?;
            Ok::<_, Error>(stored)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(stored.into())))
}

async fn insert(c: &mut PgConnection, new: &NewCredential<'_>) -> Result<Credential> {
    match db::credentials::insert(c, new, MOST).await {
        Ok(Some(stored)) => Ok(stored),
        Ok(None) => {
            let detail = format!("At most {MOST} credentials are stored: delete one first.");
            Err(Error::conflict("too_many_credentials", detail))
        }
        Err(error) if error.constraint() == Some("credential_user_id_name_key") => Err(Error::conflict(
            "name_taken",
            "You have a credential of this name: delete it first, or take another name.",
        )),
        Err(error) => Err(error.into()),
    }
}

fn check(state: &AppState, body: &CredentialBody) -> Result<()> {
    let providers = &state.config.credentials.providers;
    if !providers.contains_key(&body.provider) {
        let known: Vec<&str> = providers.keys().map(String::as_str).collect();
        return Err(Error::invalid(
            "provider",
            format!("there is no such provider; there are: {}", known.join(", ")),
        ));
    }
    // It is sent in a header. Nothing of it may be in the answer.
    let secret = body.secret.expose_secret();
    if !(8..=4_096).contains(&secret.len()) || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid("secret", "must have 8 to 4096 visible ASCII characters, and no blanks"));
    }
    Ok(())
}

fn ends_with(secret: &str) -> Option<&str> {
    if secret.len() < SHOW_FROM { None } else { secret.get(secret.len() - 4..) }
}
