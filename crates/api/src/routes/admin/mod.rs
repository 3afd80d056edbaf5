//! What administrators see and do.

mod audit;
mod cron;
mod invitations;
mod jobs;
mod key_limits;
mod limits;
mod mails;
mod queues;
mod usage;

use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{AppState, admission::Admin};

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(audit::audit))
        .routes(routes!(cron::cron))
        .routes(routes!(mails::mails))
        .routes(routes!(usage::usage))
        .merge(invitations::router())
        .merge(jobs::router())
        .merge(key_limits::router())
        .merge(limits::router())
        .merge(queues::router())
}

/// Who does it, for the audit log.
fn actor(admin: &Admin) -> db::audit::Event<'_> {
    db::audit::Event {
        user_id: Some(admin.0.user_id),
        session_id: admin.0.session_id,
        ip: Some(admin.0.client.0),
        request_id: Some(&admin.0.request_id),
        ..Default::default()
    }
}
