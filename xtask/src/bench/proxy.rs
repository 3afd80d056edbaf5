//! Time to first token: the same request to the engine directly and through the API, in turn, on fresh connections, so that
//! what the machine does meanwhile hits both.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::stand::Stand;
use crate::interrupts;
use crate::ui::{self, Ui};

const WARM_UP: usize = 50;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests each way
    #[arg(long, default_value_t = 1_000)]
    requests: usize,
    /// Cargo's profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let stand = Stand::start(&args.profile, &ui)?;
    let (engine_port, api_port) = (stand.engine_port, stand.api_port);
    std::thread::sleep(Duration::from_secs(1));
    let idle = resident_kib(stand.api.id());

    ui.step(&format!("{} requests each way, in turn", args.requests));
    let (mut direct, mut proxied) = (Vec::new(), Vec::new());
    for i in 0..WARM_UP + args.requests {
        interrupts::check()?;
        let (one, other) = (first_token(engine_port, "")?, first_token(api_port, &stand.demo.api_key)?);
        if i >= WARM_UP {
            direct.push(one);
            proxied.push(other);
        }
    }
    direct.sort_unstable();
    proxied.sort_unstable();
    ui::print(&format!("\ntime to first token over {} requests ({} build)\n", args.requests, args.profile));
    ui::print(&row("", "direct", "through the API", "added"));
    for (name, per_mille) in [("p50", 500), ("p90", 900), ("p99", 990)] {
        let at = |sorted: &[Duration]| sorted[(sorted.len() * per_mille / 1_000).min(sorted.len() - 1)];
        let (one, other) = (at(&direct), at(&proxied));
        ui::print(&row(name, &us(one), &us(other), &us(other.saturating_sub(one))));
    }
    if let Some(idle) = idle {
        ui::print(&format!("\nresident memory of the idle API: {:.1} MiB", idle as f64 / 1_024.0));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, one: &str, other: &str, added: &str) -> String {
    format!("{name:<6}{one:>12}{other:>18}{added:>12}")
}

fn us(d: Duration) -> String {
    format!("{} us", d.as_micros())
}

/// From the request's last byte to the first event's first.
fn first_token(port: u16, key: &str) -> Result<Duration> {
    let body = r#"{"model":"sim-small","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;
    let authorization =
        if key.is_empty() { String::new() } else { format!("authorization: Bearer {key}\r\n") };
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{authorization}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let sent = Instant::now();
    let (mut answer, mut first, mut piece) = (Vec::new(), None, [0; 16 * 1024]);
    loop {
        let read = stream.read(&mut piece).context("the stream broke off")?;
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        if first.is_none() && answer.windows(6).any(|window| window == b"data: ") {
            first = Some(sent.elapsed());
        }
    }
    let text = String::from_utf8_lossy(&answer);
    ensure!(text.contains("[DONE]"), "not a whole stream:\n{text}");
    first.context("a stream without an event")
}

/// `VmRSS` of a process; `None` where there is no /proc.
fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}
