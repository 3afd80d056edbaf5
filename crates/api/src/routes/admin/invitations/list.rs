//! `GET /v1/admin/invitations`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::InvitationView;
use crate::{AppState, Result, admission::Admin, error::Problem, extract::Json};

/// Older ones are not shown.
const MOST: i64 = 200;

#[derive(Serialize, ToSchema)]
pub(super) struct Invitations {
    data: Vec<InvitationView>,
}

/// The newest invitations, whatever became of them; at most 200.
#[utoipa::path(get, path = "/v1/admin/invitations", tag = "admin", security(("bearer" = [])),
    responses((status = 200, body = Invitations), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn list(State(state): State<AppState>, _: Admin) -> Result<Json<Invitations>> {
    let invitations =
        state.database.call("invitations.list", async |c| db::invitations::list(c, MOST).await).await?;
    let now = state.clock.now();
    let data = invitations.into_iter().map(|i| InvitationView::new(i, now)).collect();
    Ok(Json(Invitations { data }))
}
