//! `ballast engine-sim`.

use std::{net::IpAddr, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use super::{say, tool};

/// Serve a simulated OpenAI-compatible AI engine, for development and tests.
///
/// It says in every answer that it is a simulation. For a real engine set ENGINE_URL and ENGINE_API_KEY instead.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ballast engine-sim --port 9100\n  ballast engine-sim --port 9100 --first-token-ms 0 --token-interval-ms 1 --tokens 500"
)]
pub(crate) struct EngineSim {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 9100)]
    port: u16,
    #[command(flatten)]
    sim: engine_sim::SimArgs,
}

impl EngineSim {
    pub(crate) fn run(self) -> ExitCode {
        tool(async || {
            let listener = server::bind(self.host, self.port)?;
            say(format_args!("simulated AI engine on http://{}/v1", listener.local_addr()?));
            let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            let stop = async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            };
            engine_sim::serve(listener, self.sim.into(), stop).await?;
            anyhow::Ok(ExitCode::SUCCESS)
        })
    }
}
