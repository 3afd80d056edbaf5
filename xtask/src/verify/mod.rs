//! `cargo verify`: every check, in three sizes. Each step is a command that one can run alone; the summary names it.

mod browser;
mod clients;
mod contract;
mod deployment;
mod own_stack;
mod python;
mod steps;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use devstack::Install;
use devstack::project::Project;

use crate::interrupts::{self, Interrupted};
use crate::throwaway::Throwaway;
use crate::ui::{self, Ui};

const EXAMPLES: &str = "\
Examples:
  cargo verify --quick        formatting, lints, tests that need no server: while working
  cargo verify                all checks and tests, on throw-away Postgres and Redis: before a commit
  cargo verify --full         also dependencies, third-party clients and the container image: what CI runs
  cargo verify --only docs    one step, as often as it takes
  cargo verify --keep-going   don't stop at the first failure
  cargo verify --list         name the steps and their commands

Servers that are missing are installed as for cargo stack. Exit codes: 0 all passed, 1 something failed, 2 something on
this machine has to be decided first.";

#[derive(Debug, clap::Args)]
#[command(override_usage = "cargo verify [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Only what needs no server
    #[arg(long, group = "tier")]
    quick: bool,
    /// Also third-party tools and clients, and the images
    #[arg(long, group = "tier")]
    full: bool,
    /// Only this step (repeatable); --list names them
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Run the other steps after a failure
    #[arg(long)]
    keep_going: bool,
    /// Name the steps and the commands that repeat them, run nothing
    #[arg(long)]
    list: bool,
    /// Install what is missing without asking
    #[arg(short, long)]
    yes: bool,
    /// Never install anything
    #[arg(long, conflicts_with = "yes")]
    no_install: bool,
}

/// How much to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    Quick,
    Normal,
    Full,
}

/// What a step has to say.
enum Outcome {
    Passed,
    /// Not possible here, and that is all right.
    Skipped(String),
}

/// One check.
struct Step {
    name: &'static str,
    /// The command that repeats it alone.
    repeat: String,
    run: fn(&mut Bench) -> Result<Outcome>,
}

/// What the steps share.
struct Bench {
    project: Project,
    ui: Ui,
    install: Install,
    throwaway: Option<Throwaway>,
}

impl Bench {
    /// Postgres and Redis for the tests, started by the first step that wants them.
    fn servers(&mut self) -> Result<&Throwaway> {
        if self.throwaway.is_none() {
            self.throwaway = Some(Throwaway::start(&self.project, self.install, &self.ui)?);
        }
        Ok(self.throwaway.as_ref().expect("it was just started"))
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let project = Project::find()?;
    let tier = match (args.quick, args.full) {
        (true, _) => Tier::Quick,
        (_, true) => Tier::Full,
        _ => Tier::Normal,
    };
    let steps = choose(steps::steps(tier, &project)?, &args.only)?;
    if args.list {
        for step in &steps {
            ui::print(&format!("{:<14} {}", step.name, step.repeat));
        }
        return Ok(ExitCode::SUCCESS);
    }
    interrupts::listen(false)?;
    let install = match (args.yes, args.no_install) {
        (_, true) => Install::Never,
        (true, false) => Install::Yes,
        (false, false) => Install::Ask,
    };
    let mut bench = Bench { project, ui: Ui::new(), install, throwaway: None };
    let results = run_steps(&steps, args.keep_going, &mut bench)?;
    // Before the verdict: nothing is said after it.
    bench.throwaway = None;
    Ok(conclude(&steps, &results, &bench.ui))
}

/// The named steps; all of them when none is named.
fn choose(steps: Vec<Step>, names: &[String]) -> Result<Vec<Step>> {
    for name in names {
        ensure!(
            steps.iter().any(|step| step.name == name),
            "there is no step `{name}` in this tier; --list names them"
        );
    }
    Ok(steps
        .into_iter()
        .filter(|step| names.is_empty() || names.iter().any(|name| step.name == name))
        .collect())
}

struct Measured {
    outcome: Result<Outcome>,
    took: Duration,
}

fn run_steps(steps: &[Step], keep_going: bool, bench: &mut Bench) -> Result<Vec<Measured>> {
    let mut results = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        bench.ui.title(&format!("\n[{}/{}] {}: {}", index + 1, steps.len(), step.name, step.repeat));
        let started = Instant::now();
        let outcome = (step.run)(bench);
        interrupts::check()?;
        if let Err(error) = &outcome {
            // Something that is missing here is to be decided first; with --keep-going it is a failure like any other.
            if error.is::<Interrupted>() || (error.is::<devstack::Unavailable>() && !keep_going) {
                return outcome.map(|_| results);
            }
            ui::error(&format!("{error:#}"));
        }
        let failed = outcome.is_err();
        results.push(Measured { outcome, took: started.elapsed() });
        if failed && !keep_going {
            break;
        }
    }
    Ok(results)
}

/// The table and the verdict, which is the last line.
fn conclude(steps: &[Step], results: &[Measured], ui: &Ui) -> ExitCode {
    ui.title("\nSummary");
    for (index, step) in steps.iter().enumerate() {
        ui::print(&row(step, results.get(index)));
    }
    let verdict = verdict(steps, results);
    let success = results.len() == steps.len() && results.iter().all(|result| result.outcome.is_ok());
    ui::print(&format!("{verdict} ({})", human(ui.elapsed())));
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn row(step: &Step, result: Option<&Measured>) -> String {
    let (word, took, remark) = match result {
        None => ("not run", String::new(), String::new()),
        Some(Measured { outcome, took }) => match outcome {
            Ok(Outcome::Passed) => ("passed", human(*took), String::new()),
            Ok(Outcome::Skipped(reason)) => ("skipped", human(*took), reason.clone()),
            Err(_) => ("FAILED", human(*took), format!("repeat it: {}", step.repeat)),
        },
    };
    format!("  {word:<8} {:<14} {took:>10}  {remark}", step.name).trim_end().to_owned()
}

fn verdict(steps: &[Step], results: &[Measured]) -> String {
    let count = |test: fn(&Measured) -> bool| results.iter().filter(|result| test(result)).count();
    let passed = count(|result| matches!(result.outcome, Ok(Outcome::Passed)));
    let skipped = count(|result| matches!(result.outcome, Ok(Outcome::Skipped(_))));
    let failed: Vec<&str> = steps
        .iter()
        .zip(results)
        .filter(|(_, result)| result.outcome.is_err())
        .map(|(step, _)| step.name)
        .collect();
    let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    if failed.is_empty() {
        format!("verify: {passed} steps passed{skipped}")
    } else {
        format!("verify: FAILED: {} ({passed} steps passed{skipped})", failed.join(", "))
    }
}

fn human(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &'static str) -> Step {
        Step { name, repeat: format!("cargo {name}"), run: |_| Ok(Outcome::Passed) }
    }

    fn measured(outcome: Result<Outcome>) -> Measured {
        Measured { outcome, took: Duration::from_millis(61_500) }
    }

    #[test]
    fn the_last_line_counts_the_steps_that_passed() {
        let steps = [step("a"), step("b")];
        let all = [measured(Ok(Outcome::Passed)), measured(Ok(Outcome::Passed))];
        assert_eq!(verdict(&steps, &all), "verify: 2 steps passed");
        let skipped = [measured(Ok(Outcome::Passed)), measured(Ok(Outcome::Skipped("no Docker".to_owned())))];
        assert_eq!(verdict(&steps, &skipped), "verify: 1 steps passed, 1 skipped");
    }

    #[test]
    fn a_failure_is_named_with_the_command_that_repeats_it() {
        let steps = [step("a"), step("b"), step("c")];
        let results = [measured(Ok(Outcome::Passed)), measured(Err(anyhow::anyhow!("broken")))];
        assert_eq!(verdict(&steps, &results), "verify: FAILED: b (1 steps passed)");
        assert_eq!(
            row(&steps[1], results.get(1)),
            "  FAILED   b               1 min 1 s  repeat it: cargo b"
        );
        assert_eq!(row(&steps[2], results.get(2)), "  not run  c");
    }

    #[test]
    fn steps_can_be_chosen_by_name() {
        let chosen = choose(vec![step("a"), step("b")], &["b".to_owned()]).unwrap();
        assert_eq!(chosen.iter().map(|step| step.name).collect::<Vec<_>>(), ["b"]);
        assert_eq!(choose(vec![step("a"), step("b")], &[]).unwrap().len(), 2);
        let error = choose(vec![step("a")], &["c".to_owned()]).err().unwrap();
        assert!(error.to_string().contains("no step `c`"), "{error}");
    }

    #[test]
    fn what_is_missing_ends_it_all_unless_it_is_to_keep_going() {
        let project = || Project::find().unwrap();
        let bench = || Bench { project: project(), ui: Ui::new(), install: Install::Never, throwaway: None };
        let missing =
            Step { run: |_| Err(devstack::Unavailable("no browser".to_owned()).into()), ..step("a") };
        let steps = [missing, step("b")];
        let ended = run_steps(&steps, false, &mut bench()).err().unwrap();
        assert!(ended.is::<devstack::Unavailable>(), "{ended}");
        let results = run_steps(&steps, true, &mut bench()).unwrap();
        assert_eq!(verdict(&steps, &results), "verify: FAILED: a (1 steps passed)");
    }

    #[test]
    fn larger_tiers_do_at_least_what_smaller_ones_do() {
        let project = Project::find().unwrap();
        let names =
            |tier| steps::steps(tier, &project).unwrap().iter().map(|step| step.name).collect::<Vec<_>>();
        let (quick, normal, full) = (names(Tier::Quick), names(Tier::Normal), names(Tier::Full));
        // The quick tests are a part of all tests.
        assert!(
            quick.iter().all(|name| *name == "quick tests" || normal.contains(name)),
            "{quick:?} {normal:?}"
        );
        assert!(full.starts_with(&normal), "{normal:?} {full:?}");
    }
}
