//! `ballast healthcheck`.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use config::{EnvVars, RuntimeConfig};

use super::{refuse_configuration, say};

/// Ask the role that runs on PORT of this machine for its health: exit 0 when it answers 200.
///
/// For `HEALTHCHECK` in an image that has no shell and no curl.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ballast healthcheck\n  ballast healthcheck --path /livez\n  PORT=8081 ballast healthcheck"
)]
pub(crate) struct Healthcheck {
    /// Which route to ask
    #[arg(long, default_value = "/readyz")]
    path: String,
    /// Give up after so many milliseconds
    #[arg(long, default_value_t = 3_000, value_name = "MS")]
    timeout_ms: u64,
}

impl Healthcheck {
    #[expect(clippy::print_stderr, reason = "this is a command's answer to a person")]
    pub(crate) fn run(self) -> ExitCode {
        let config = match RuntimeConfig::from_vars(&EnvVars) {
            Ok(config) => config,
            Err(problems) => return refuse_configuration(&problems),
        };
        let host = config.http.host;
        let host = if host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { host };
        match self.ask(SocketAddr::new(host, config.http.port)) {
            Ok(line) => {
                say(line);
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("unhealthy: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    /// A few lines of HTTP by hand: a runtime and a client would cost more than the request.
    fn ask(&self, address: SocketAddr) -> anyhow::Result<String> {
        let timeout = Duration::from_millis(self.timeout_ms);
        let mut stream = TcpStream::connect_timeout(&address, timeout)
            .with_context(|| format!("nothing listens on {address}"))?;
        stream.set_read_timeout(Some(timeout))?;
        write!(stream, "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", self.path)?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer).context("no answer in time")?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
        if status == "200" { Ok(body.to_owned()) } else { bail!("{} answers {status} {body}", self.path) }
    }
}
