//! `POST /v1/api-keys`.

use axum::{extract::State, http::StatusCode, response::IntoResponse};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{ApiKeyView, MOST, SCOPES};
use crate::{
    AppState, Error, Result, admission::Caller, auth::ApiKeySecret, error::Problem, extract, extract::Json,
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "nightly import", "scopes": ["ai", "jobs"], "expires_at": "2099-01-01T00:00:00Z"}))]
pub(super) struct NewApiKey {
    /// What you call it: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// What it may do: `ai`, `jobs`. Without this: everything a key may.
    scopes: Option<Vec<String>>,
    /// When it ends. Without this: never.
    expires_at: Option<DateTime<Utc>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct CreatedApiKey {
    /// The whole key. This is the only time it is shown.
    key: String,
    #[serde(flatten)]
    view: ApiKeyView,
}

/// Makes a key. Its text is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/api-keys", tag = "api keys", security(("bearer" = [])), request_body = NewApiKey,
    responses((status = 201, body = CreatedApiKey), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    caller: Caller,
    Json(body): Json<NewApiKey>,
) -> Result<impl IntoResponse> {
    let session_id = caller.require_live_session(&state).await?;
    let name = extract::text("name", &body.name, 1, 100)?;
    let scopes = body.scopes.unwrap_or_else(|| SCOPES.map(String::from).to_vec());
    if let Some(unknown) = scopes.iter().find(|s| !SCOPES.contains(&s.as_str())) {
        let shown: String = unknown.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(Error::invalid(
            "scopes",
            format!("there is no scope `{shown}`; there are: {}", SCOPES.join(", ")),
        ));
    }
    if body.expires_at.is_some_and(|end| end <= state.clock.now()) {
        return Err(Error::invalid("expires_at", "must be in the future"));
    }
    let key = ApiKeySecret::generate().map_err(Error::internal)?;
    let new = db::api_keys::NewApiKey {
        id: Uuid::now_v7(),
        user_id: caller.user_id,
        name: &name,
        public_id: key.public_id(),
        secret_hash: &key.hash(),
        scopes: &scopes,
        expires_at: body.expires_at,
    };
    let row = state
        .database
        .transaction::<_, Error>("api_keys.insert", async |c| {
            let row = db::api_keys::insert(c, &new, MOST).await?.ok_or_else(too_many)?;
            // The insertion holds the user's row, so a session that is ended at this moment is seen here, or sees the key.
            if !db::sessions::is_active(c, session_id).await? {
                return Err(Error::session_ended());
            }
            let event = db::audit::Event {
                event: "api_key_created",
                user_id: Some(caller.user_id),
                session_id: Some(session_id),
                ip: Some(caller.client.0),
                request_id: Some(&caller.request_id),
                detail: serde_json::json!({ "api_key_id": new.id }),
            };
            db::audit::insert(c, &event).await?;
            Ok(row)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(CreatedApiKey { key: key.text(), view: row.into() })))
}

fn too_many() -> Error {
    let detail = format!("At most {MOST} keys are in use at a time: revoke one first.");
    Error::conflict("too_many_api_keys", detail)
}
