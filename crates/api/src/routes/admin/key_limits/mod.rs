//! Limits of their own that API keys have. Their owners may not set them: that is for administrators.

mod set;
mod show;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::AppState;

pub(super) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(show::show, set::set))
}

/// Limits of an API key's own.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"limits": {"global": "1000/15m", "concurrent-streams": "3"}}))]
pub(super) struct KeyLimits {
    /// Names of policies with limits such as `100/15m`, or for `concurrent-streams` such as `3`. For all others the key shares
    /// the limits of its user.
    limits: BTreeMap<String, String>,
}

impl KeyLimits {
    fn from_stored(stored: &serde_json::Value) -> Self {
        let text = |limit: &serde_json::Value| limit.as_str().unwrap_or_default().to_owned();
        let entries = stored.as_object().into_iter().flatten();
        Self { limits: entries.map(|(name, limit)| (name.clone(), text(limit))).collect() }
    }
}
