//! `cargo xtask soak`: the stack under mixed load for hours, while something breaks every 20 seconds (case O2).
//!
//! Two API replicas, two workers, an engine, Postgres and Redis, all real processes on the loopback interface. The first of each
//! pair lives through everything: what it holds (memory, files, threads) must not grow. The second is killed, ended and
//! paused, as are the stores and the engine. What breaks, when, and for how long follows from a seed, so that a run can be repeated.
//!
//! A fault may cost requests while it lasts and for [`RECOVERY`] after it. Outside of that, nothing may fail; a wrong answer
//! (401 to a good token, a 500, garbage) is a failure whenever it comes.

mod faults;
mod invariants;
mod load;
mod stand;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use devstack::Install;

use self::faults::Dice;
pub(crate) use self::load::Load;
use self::stand::Stand;
use self::watch::Watch;
use crate::interrupts;
use crate::smoke;
use crate::ui::Ui;

/// From the end of a fault until everything works again.
const RECOVERY: Duration = Duration::from_secs(10);
/// The longest fault.
const LONGEST: u64 = 8;
/// `RATE_LIMIT_LOGIN` in development.
const LOGIN_LIMIT: usize = 50;

const EXAMPLES: &str = "\
Examples:
  cargo xtask soak                      two hours; for nights and before a release
  cargo xtask soak --minutes 10         a short one
  cargo xtask soak --seed 7             the same faults in the same order as another run with this seed
  cargo xtask soak --profile release    the program as it ships

Needs Linux (it reads /proc). Everything stays on the loopback interface and is gone afterwards.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo xtask soak [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How long the load lasts
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(2..=1440))]
    minutes: u64,
    /// Seconds from fault to fault
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(20..=600))]
    every: u64,
    /// What decides which fault comes when (default: another one each time)
    #[arg(long)]
    seed: Option<u64>,
    /// Cargo profile of the program
    #[arg(long, default_value = "dev", value_parser = ["dev", "local", "release"])]
    profile: String,
    /// Install missing servers without asking
    #[arg(short, long)]
    yes: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    interrupts::listen(false)?;
    let ui = Ui::new();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let seed = args.seed.unwrap_or(clock.as_secs());
    ui.step(&format!("{} minutes, a fault every {} s, seed {seed}", args.minutes, args.every));
    let install = if args.yes { Install::Yes } else { Install::Ask };
    let mut stand = Stand::start(&args.profile, install, &ui)?;
    let outcome = soak(args, &mut stand, Dice::new(seed), &ui);
    if outcome.is_err() {
        ui.step(&format!("repeat it: cargo xtask soak --minutes {} --seed {seed}", args.minutes));
        stand.keep_logs(&ui);
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn soak(args: &Args, stand: &mut Stand, mut dice: Dice, ui: &Ui) -> Result<()> {
    smoke::one_login_limit(&stand.api_ports, "first@example.com", LOGIN_LIMIT)?;
    let load = Load::start(&stand.api_ports, &stand.demo);
    let mut watch = Watch::new(stand)?;
    // Everybody comes at once, to pools that are empty.
    let first = load.trouble();
    pause_until(Instant::now() + Duration::from_secs(args.every) / 2)?;
    load.over(first);
    pause_until(Instant::now() + Duration::from_secs(args.every) / 2)?;
    let (started, duration) = (Instant::now(), Duration::from_secs(args.minutes * 60));
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    while started.elapsed() < duration {
        let next = Instant::now() + Duration::from_secs(args.every);
        let fault = dice.fault();
        let time = Duration::from_secs(dice.between(1, LONGEST - 2));
        let open = load.trouble();
        fault.happen(stand, time).with_context(|| format!("{} for {} s", fault.name(), time.as_secs()))?;
        load.over(open);
        *counts.entry(fault.name()).or_default() += 1;
        // What is measured is measured when all is well again.
        pause_until(next.checked_sub(Duration::from_secs(1)).unwrap_or(next))?;
        watch.look(stand)?;
        stand.alive()?;
        load.check()?;
        pause_until(next)?;
        if counts.values().sum::<usize>() % 15 == 0 {
            ui.step(&format!(
                "{} min: {}; {}",
                started.elapsed().as_secs() / 60,
                load.summary(),
                watch.last()
            ));
        }
    }
    let accepted = load.end()?;
    let told: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    ui.step(&format!("faults: {}", told.join(", ")));
    ui.step(&format!("load: {}", accepted.summary));
    invariants::check(stand, &accepted, ui)?;
    smoke::one_login_limit(&stand.api_ports, "last@example.com", LOGIN_LIMIT)?;
    ui.step(&format!(
        "limits: both replicas together let exactly {LOGIN_LIMIT} logins through, before and after"
    ));
    watch.verdict(ui)?;
    stand.end()?;
    let panics = stand.panics()?;
    ensure!(panics.is_empty(), "there were panics:\n{}", panics.join("\n"));
    ui.step("every process ended in order, none panicked");
    Ok(())
}

fn pause_until(then: Instant) -> Result<()> {
    while Instant::now() < then {
        interrupts::check()?;
        std::thread::sleep(Duration::from_millis(100).min(then.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
