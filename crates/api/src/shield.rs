//! The burst shield: a limit in the process, before anything costs a round trip. The limits that count are in Redis.
//!
//! tower-governor's own layer is not used, only its limiter: its extractors believe the leftmost X-Forwarded-For, which any
//! client can write, and take each address of an IPv6 subscriber for a client.

use std::time::Duration;

use axum::http::StatusCode;
use governor::{clock::QuantaInstant, middleware::NoOpMiddleware};
use runtime::Phase;
use tower_governor::{
    governor::{GovernorConfig, GovernorConfigBuilder},
    key_extractor::PeerIpKeyExtractor,
};

use crate::{AppState, Result, client_ip::ClientIp, edge};

/// For each client's network one request after the other, 200 a second, with bursts of 1000.
pub(crate) struct Shield(GovernorConfig<PeerIpKeyExtractor, NoOpMiddleware<QuantaInstant>>);

impl Default for Shield {
    fn default() -> Self {
        let config = GovernorConfigBuilder::default()
            .period(Duration::from_millis(5))
            .burst_size(1_000)
            .finish()
            .expect("burst and period are not zero");
        Self(config)
    }
}

impl Shield {
    /// Counts one request of this client.
    pub(crate) fn pass(&self, client: ClientIp) -> Result<()> {
        self.0
            .limiter()
            .check_key(&client.network())
            .map_err(|_| edge::bare(StatusCode::TOO_MANY_REQUESTS).with_retry_after(Duration::from_secs(1)))
    }
}

/// By number, not by time alone: a flood of addresses must not fill the memory until the next look.
pub(crate) async fn keep_small(state: AppState) {
    let buckets = state.shield.0.limiter();
    for second in 1_u64.. {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = state.lifecycle.reached(Phase::Closing) => return,
        }
        if second.is_multiple_of(30) || buckets.len() > 10_000 {
            buckets.retain_recent();
        }
    }
}
