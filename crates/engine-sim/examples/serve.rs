//! A simulated engine on its own: `cargo run -p engine-sim --example serve -- --port 9100 --token-interval-ms 5`

use clap::Parser;
use engine_sim::{SimArgs, serve};

/// A simulated OpenAI-compatible AI engine
#[derive(Parser)]
struct Args {
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 9100)]
    port: u16,
    #[command(flatten)]
    sim: SimArgs,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", args.port)).await?;
    eprintln!("simulated engine on http://{}", listener.local_addr()?);
    let stop = async {
        // Without a signal handler the default action ends the process as well.
        let _ = tokio::signal::ctrl_c().await;
    };
    serve(listener, args.sim.into(), stop).await
}
