//! A simulated engine inside a test.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::plan::{Plan, parse_pairs};
use crate::server::{Engine, accept};
use crate::{SimConfig, Stats};

/// A simulated engine on a free port of the loopback interface. It ends, with all its connections, when dropped.
#[derive(Debug)]
pub struct Sim {
    address: SocketAddr,
    url: String,
    engine: Arc<Engine>,
    _server: JoinSet<()>,
}

impl Sim {
    /// Starts an engine.
    ///
    /// # Panics
    /// When the loopback interface has no free port, or outside a tokio runtime.
    pub async fn start(config: SimConfig) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port on 127.0.0.1");
        let address = listener.local_addr().expect("a bound listener has an address");
        let engine = Arc::new(Engine::new(config));
        let mut server = JoinSet::new();
        server.spawn({
            let engine = engine.clone();
            async move {
                if let Err(error) = accept(listener, engine, std::future::pending()).await {
                    tracing::error!(%error, "simulated engine ended");
                }
            }
        });
        Self { address, url: format!("http://{address}"), engine, _server: server }
    }

    /// `http://127.0.0.1:PORT`; OpenAI clients want `/v1` after it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The counters as they are now.
    pub fn stats(&self) -> Stats {
        self.engine.recorder.snapshot()
    }

    /// Waits until the counters fulfil a condition.
    ///
    /// # Panics
    /// When they do not within `timeout`.
    pub async fn wait_for(&self, timeout: Duration, condition: impl Fn(&Stats) -> bool) -> Stats {
        let deadline = Instant::now() + timeout;
        loop {
            let stats = self.stats();
            if condition(&stats) {
                return stats;
            }
            assert!(
                Instant::now() < deadline,
                "the engine's counters did not get there in {timeout:?}: {stats:#?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Sets defaults for all following requests, as `POST /control` does: `fault=status:503 times=1`.
    ///
    /// # Panics
    /// When a setting is unknown or malformed.
    pub fn set_defaults(&self, settings: &str) {
        let pairs = parse_pairs(settings);
        let set = pairs.and_then(|pairs| self.engine.control.set(pairs, Plan::new(&self.engine.config)));
        if let Err(problem) = set {
            panic!("{problem}");
        }
    }

    /// Back to the configuration; ends a refusal, too.
    pub fn clear_defaults(&self) {
        self.engine.control.clear();
    }
}
