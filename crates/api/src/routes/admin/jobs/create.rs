//! `POST /v1/admin/jobs`.

use axum::{extract::State, http::StatusCode, response::IntoResponse};

use super::super::actor;
use crate::{
    AppState, Result,
    admission::Admin,
    error::Problem,
    extract::Json,
    operator::{self, Enqueue, JobDetails},
};

/// Enqueues a job of any kind that this build knows. Of a unique kind, the answer may be the job that is there already.
#[utoipa::path(post, path = "/v1/admin/jobs", tag = "admin", security(("bearer" = [])), request_body = Enqueue,
    responses((status = 202, body = JobDetails), (status = 403, body = Problem)))]
pub(super) async fn create(
    State(state): State<AppState>,
    admin: Admin,
    Json(new): Json<Enqueue>,
) -> Result<impl IntoResponse> {
    let actor = actor(&admin);
    let enqueue = async |c: &mut db::PgConnection| operator::enqueue(c, new, &actor).await;
    Ok((StatusCode::ACCEPTED, Json(state.database.transaction("jobs.enqueue", enqueue).await?)))
}
