//! `GET /v1/whoami`: whose credential is this?

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{admission::Caller, error::Problem, extract::Json};

#[derive(Serialize, ToSchema)]
pub(super) struct WhoAmI {
    user_id: Uuid,
    /// `user` or `admin`, as the credential says: a change shows when the token is renewed.
    role: String,
    /// The session, with an access token.
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<Uuid>,
    /// The key, with an API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<Uuid>,
    /// What the API key may do; absent for sessions, which may do everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
}

/// Whether a credential holds, and whose it is. The database is not asked, so that other services may ask for each of their
/// own requests.
#[utoipa::path(get, path = "/v1/whoami", tag = "auth", security(("bearer" = []), ("api_key" = [])),
    responses((status = 200, body = WhoAmI), (status = 401, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn whoami(caller: Caller) -> Json<WhoAmI> {
    let Caller { user_id, role, session_id, api_key_id, scopes, .. } = caller;
    Json(WhoAmI { user_id, role, session_id, api_key_id, scopes })
}
