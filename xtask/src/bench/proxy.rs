//! Event streams through the API, beside nginx without buffering and a direct connection to the engine, in one run.

use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::load::percentile;
use super::nginx::Nginx;
use super::stand::Stand;
use super::streams::{Counters, Way};
use crate::interrupts;
use crate::ui::{self, Ui};

const WARM_UP: usize = 50;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests each way for the time to the first token
    #[arg(long, default_value_t = 1_000)]
    requests: usize,
    /// Streams that go on beside these requests
    #[arg(long, default_value_t = 50)]
    beside: usize,
    /// Idle streams for the memory that one takes; each takes two open files of the API
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
    /// Streams of ten events a second, for the CPU per event
    #[arg(long, default_value_t = 500)]
    paced: usize,
    /// Streams as fast as they go, for the events per second
    #[arg(long, default_value_t = 64)]
    unthrottled: usize,
    /// Only this part (repeatable)
    #[arg(long)]
    only: Vec<Part>,
    /// Cargo's profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    FirstToken,
    Idle,
    Paced,
    Unthrottled,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    // As many open files as there may be: two for each stream.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let stand = Stand::start(&args.profile, &ui)?;
    let nginx = Nginx::proxy(stand.engine_port)?;
    let ways = ways(&stand, nginx.as_ref())?;
    if nginx.is_none() {
        ui.warn("nginx is not installed, so its column is left out (Debian: apt-get install nginx-light)");
    }
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    std::thread::sleep(Duration::from_secs(1));
    let mut rows = Vec::new();
    // First: what was freed later would hide what is taken.
    if wanted(Part::Idle) {
        ui.step(&format!("{} idle streams each way", args.idle));
        rows.push(row(&ways, &format!("memory of one of {} idle streams, KiB", args.idle), |way| {
            Ok(if way.pids.is_empty() { None } else { Some(way.idle(args.idle)? as f64 / 1_024.0) })
        })?);
    }
    if wanted(Part::Paced) {
        ui.step(&format!("{} streams of ten events a second", args.paced));
        rows.push(row(&ways, &format!("CPU per event, {} streams, us", args.paced), |way| {
            Ok(if way.pids.is_empty() { None } else { Some(way.paced(args.paced)?.as_secs_f64() * 1e6) })
        })?);
    }
    if wanted(Part::Unthrottled) {
        ui.step(&format!("{} streams as fast as they go", args.unthrottled));
        let name = format!("events per second, {} streams, thousands", args.unthrottled);
        rows.push(row(&ways, &name, |way| Ok(Some(way.unthrottled(args.unthrottled, 20_000)? / 1e3)))?);
    }
    if wanted(Part::FirstToken) {
        ui.step(&format!("{} requests each way in turn, {} streams beside", args.requests, args.beside));
        rows.extend(first_tokens(&ways, args)?);
    }
    let names = ways.iter().map(|way| format!("{:>12}", way.name)).collect::<Vec<_>>().concat();
    ui::print(&format!("\n{:<52}{names}", format!("{} build", args.profile)));
    for row in &rows {
        ui::print(row);
    }
    Ok(ExitCode::SUCCESS)
}

fn ways(stand: &Stand, nginx: Option<&Nginx>) -> Result<Vec<Way>> {
    let mut ways = vec![Way { name: "direct", port: stand.engine_port, key: None, pids: Vec::new() }];
    if let Some(nginx) = nginx {
        ways.push(Way { name: "nginx", port: nginx.port, key: None, pids: nginx.pids()? });
    }
    let key = Some(stand.demo.api_key.clone());
    ways.push(Way { name: "API", port: stand.api_port, key, pids: vec![stand.api.id()] });
    Ok(ways)
}

/// One figure for each way.
fn row(ways: &[Way], name: &str, figure: impl Fn(&Way) -> Result<Option<f64>>) -> Result<String> {
    let figures = ways.iter().map(&figure).collect::<Result<Vec<_>>>()?;
    Ok(line(name, &figures))
}

fn line(name: &str, figures: &[Option<f64>]) -> String {
    let columns = figures.iter().map(|figure| match figure {
        Some(figure) => format!("{figure:>12.1}"),
        None => format!("{:>12}", "-"),
    });
    format!("{name:<52}{}", columns.collect::<Vec<_>>().concat())
}

/// The same request each way in turn, on fresh connections, so that what the machine does meanwhile hits all of them.
fn first_tokens(ways: &[Way], args: &Args) -> Result<Vec<String>> {
    let mut times = vec![Vec::new(); ways.len()];
    let busy = ways.last().context("there is a way")?;
    busy.beside(&Counters::default(), args.beside, 50, || {
        for i in 0..WARM_UP + args.requests {
            interrupts::check()?;
            for (way, times) in ways.iter().zip(&mut times) {
                let time = first_token(way)?;
                if i >= WARM_UP {
                    times.push(time);
                }
            }
        }
        Ok(())
    })?;
    for times in &mut times {
        times.sort_unstable();
    }
    let at = |per_mille: usize| -> Vec<_> {
        times.iter().map(|sorted| Some(percentile(sorted, per_mille).as_secs_f64() * 1e6)).collect()
    };
    let name = |which: &str| format!("time to first token beside {} streams, {which}, us", args.beside);
    Ok(vec![line(&name("p50"), &at(500)), line(&name("p99"), &at(990))])
}

/// From the request's last byte to the first event's first.
fn first_token(way: &Way) -> Result<Duration> {
    let mut stream = way.open("tokens=1 token-interval-ms=0")?;
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
