//! `PUT /v1/admin/api-keys/{id}/limits`.

use axum::extract::State;
use limits::OverrideProblem;
use serde_json::json;
use uuid::Uuid;

use super::{super::actor, KeyLimits};
use crate::{
    AppState, Error, Result,
    admission::{Admin, RECORD_TTL},
    auth::{Record, overrides},
    error::{FieldError, Problem},
    extract::{Json, Path},
};

/// Gives an API key limits of its own, in place of those it had, from its next request on. An empty object: none.
#[utoipa::path(put, path = "/v1/admin/api-keys/{id}/limits", tag = "admin", security(("bearer" = [])),
    params(("id" = Uuid, Path)), request_body = KeyLimits,
    responses((status = 200, body = KeyLimits), (status = 403, body = Problem),
              (status = 422, description = "No such policy, or no limit: `errors` says which.", body = Problem)))]
pub(super) async fn set(
    State(state): State<AppState>,
    admin: Admin,
    Path(id): Path<Uuid>,
    Json(body): Json<KeyLimits>,
) -> Result<Json<KeyLimits>> {
    let limits = json!(body.limits);
    let (_, problems) = overrides(state.limiter.policies(), &limits);
    if !problems.is_empty() {
        return Err(Error::invalid_fields(problems.into_iter().take(20).map(field).collect()));
    }
    state.to_the_end(store(state.clone(), admin, id, limits)).await?;
    Ok(Json(body))
}

fn field(OverrideProblem { policy, message }: OverrideProblem) -> FieldError {
    let name: String = policy.chars().filter(|c| !c.is_control()).take(40).collect();
    FieldError { field: format!("limits.{name}").into(), message: message.into() }
}

async fn store(state: AppState, admin: Admin, id: Uuid, limits: serde_json::Value) -> Result<()> {
    state
        .database
        .transaction::<_, Error>("api_keys.set_limits", async |c| {
            let public_id = db::api_keys::set_limits(c, id, &limits).await?.ok_or_else(Error::not_found)?;
            let event = db::audit::Event {
                event: "api_key_limits_changed",
                detail: json!({ "api_key_id": id, "limits": limits }),
                ..actor(&admin)
            };
            db::audit::insert(c, &event).await?;
            // Written while the key's row is locked: whoever revokes the key now has the last word in Redis, too.
            let row = db::api_keys::record(c, &public_id).await?.ok_or_else(Error::not_found)?;
            let record = Record::from_row(row).encode().map_err(Error::internal)?;
            state.limiter.replace_record(&public_id, &record, RECORD_TTL).await.map_err(|error| {
                let detail = "Redis is out: the replicas could not be told.";
                Error::unavailable("limits_unavailable", detail, std::time::Duration::from_secs(2))
                    .with_source(error)
            })
        })
        .await
}
