//! CPU per request: nginx with a fixed answer, a probe, a small GET without authentication and limits, and one that is
//! authenticated and limited, in turn, so that what the machine does meanwhile hits all of them.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::load::{Cost, Target};
use super::nginx::Nginx;
use super::stand::Stand;
use crate::smoke::Demo;
use crate::ui::{self, Ui};
use crate::{http, interrupts};

const ROUNDS: usize = 3;
/// Authentication, the limits with their round trip to Redis, and the line in the log; neither Postgres nor the engine.
const ADMITTED: &str = "/v1/whoami";
/// The same way through the API, with the line in the log and JSON of the same kind, but nobody is asked who they are and nothing
/// is counted.
const OPEN: &str = "/";

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench api                    CPU per request, three rounds, the lowest counts
  cargo xtask bench api --requests 200000  finer, and longer: CPU is counted in steps of 10 ms
  cargo xtask bench api --connections 1    without the savings of handling several at once

The CPU is that of the server's processes, in the program and in the kernel. That of the load
and of Redis is not counted. Requests per second: the machine makes the load itself.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Requests per route and round, after a tenth of that as warm-up
    #[arg(long, default_value_t = 50_000, value_parser = at_least_one)]
    requests: usize,
    /// Connections, kept alive, each with one request at a time
    #[arg(long, default_value_t = 50, value_parser = at_least_one)]
    connections: usize,
    /// Cargo's profile to build with
    #[arg(long, default_value = "release")]
    profile: String,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "at least 1".to_owned())
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let stand = Stand::start(&args.profile, &ui)?;
    let mut targets = routes(&stand)?;
    let size = targets[3].body()?.len();
    let nginx = Nginx::start(size)?;
    match &nginx {
        Some(nginx) => targets.insert(0, fixed(nginx)?),
        None => {
            ui.warn("nginx is not installed, so its row is left out (Debian: apt-get install nginx-light)");
        }
    }
    let mut best: Vec<Option<Cost>> = vec![None; targets.len()];
    for round in 1..=ROUNDS {
        ui.step(&format!("round {round} of {ROUNDS}: {} requests each", args.requests));
        for (target, best) in targets.iter().zip(&mut best) {
            let cost = target.measure(args.connections, args.requests)?;
            let known = best.unwrap_or(cost);
            *best = Some(Cost { cpu: known.cpu.min(cost.cpu), wall: known.wall.min(cost.wall) });
        }
    }
    let best = best.into_iter().collect::<Option<Vec<_>>>().context("every route was measured")?;
    ui::print(&format!(
        "\nthe best of {ROUNDS} rounds of {} requests over {} connections ({} build; bodies of {size} bytes, /livez's of {}, the open one's of {})\n",
        args.requests,
        args.connections,
        args.profile,
        targets[usize::from(nginx.is_some())].body()?.len(),
        targets[1 + usize::from(nginx.is_some())].body()?.len(),
    ));
    table(&targets, &best, nginx.is_some(), args.requests);
    Ok(ExitCode::SUCCESS)
}

/// The API's, the public one first.
fn routes(stand: &Stand) -> Result<Vec<Target>> {
    let api = |name, path, status, token| Target {
        name,
        port: stand.api_port,
        path,
        status,
        token,
        pids: vec![stand.api.id()],
    };
    let token = login(stand.api_port, &stand.demo)?;
    Ok(vec![
        api("GET /livez, not logged", "/livez", 200, None),
        api("neither known nor limited", OPEN, 200, None),
        api("admitted by access token", ADMITTED, 200, Some(token)),
        api("admitted by API key", ADMITTED, 200, Some(stand.demo.api_key.clone())),
    ])
}

fn fixed(nginx: &Nginx) -> Result<Target> {
    let (port, pids) = (nginx.port, nginx.pids()?);
    Ok(Target { name: "nginx, fixed answer", port, path: "/", status: 200, token: None, pids })
}

fn login(port: u16, demo: &Demo) -> Result<String> {
    let credentials = format!(r#"{{"email":"{}","password":"{}"}}"#, demo.email, demo.password);
    let answer = http::request(port, "POST", "/v1/auth/login", &[], &credentials)?;
    ensure!(answer.status == 200, "the login is answered with {}:\n{}", answer.status, answer.body);
    http::string_field(&answer.body, "access_token").context("the login answers without access_token")
}

fn table(targets: &[Target], best: &[Cost], with_nginx: bool, requests: usize) {
    let row = |cells: [&str; 5]| {
        let [name, cpu, public, nginx, rate] = cells;
        ui::print(&format!("{name:<26}{cpu:>16}{public:>12}{nginx:>12}{rate:>14}"));
    };
    row(["", "CPU us/request", "to open", "to nginx", "requests/s"]);
    let per_request = |cost: &Cost| cost.cpu.as_secs_f64() * 1e6 / requests as f64;
    let open = per_request(&best[1 + usize::from(with_nginx)]);
    for (target, cost) in targets.iter().zip(best) {
        let cpu = per_request(cost);
        let nginx = if with_nginx { format!("{:.2}", cpu / per_request(&best[0])) } else { "-".to_owned() };
        let rate = requests as f64 / cost.wall.as_secs_f64();
        row([
            target.name,
            &format!("{cpu:.1}"),
            &format!("{:.2}", cpu / open),
            &nginx,
            &format!("{rate:.0}"),
        ]);
    }
}
