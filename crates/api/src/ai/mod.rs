//! The AI proxy.

use crate::AppState;
use utoipa_axum::router::OpenApiRouter;

/// The AI proxy.
#[derive(Debug, Clone)]
pub struct Ai;

impl Ai {
    /// Placeholder until the module is complete.
    pub fn from_config(
        _: &config::AiConfig,
        _: &runtime::Lifecycle,
        _: db::Database,
        _: limits::Limiter,
        _: runtime::Clock,
    ) -> anyhow::Result<Self> {
        Ok(Self)
    }
    /// Health check of the engine.
    pub async fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
}
