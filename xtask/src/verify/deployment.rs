//! The files that no test of ours can judge alone: Railway's TypeScript, workflows, shell scripts, compose files, Prometheus.
//! Each is given to the tool that its readers use, in the version that `deploy/check/requirements.txt` pins.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use devstack::process::output_within;

use devstack::Unavailable;

use super::{Bench, Outcome, python};
use crate::cargo;

const REQUIREMENTS: &str = "deploy/check/requirements.txt";
/// What railway.ts describes, committed: the tests of `xtask` hold it against the program.
const EVALUATED: &str = ".railway/evaluated.json";

/// Where nothing can be installed without a question, and nobody is there to answer it, the step is left out: everything in
/// these files has tests of ours, too.
pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    match check(bench) {
        Err(error) if error.is::<Unavailable>() => {
            let reason = error.to_string();
            Ok(Outcome::Skipped(reason.lines().next().unwrap_or_default().to_owned()))
        }
        other => other,
    }
}

fn check(bench: &Bench) -> Result<Outcome> {
    let tools = Tools {
        bin: python::environment(bench, "check", REQUIREMENTS)?,
        root: bench.project.root().to_owned(),
    };
    bench.ui.step("railway.ts");
    tools.railway()?;
    bench.ui.step("shell scripts");
    let scripts = tools.tracked(&["*.sh", ".ci/run"])?;
    tools.run("shellcheck", &["--external-sources"], &scripts)?;
    bench.ui.step("workflows");
    let workflows = tools.tracked(&[".github/workflows/*.yml"])?;
    tools.run("check-jsonschema", &["--builtin-schema", "vendor.github-workflows"], &workflows)?;
    // Offline: what it would ask GitHub about, the pins of actions, our own tests look at.
    tools.run("zizmor", &["--offline", "--quiet"], &workflows)?;
    bench.ui.step("the load script");
    tools.load_script()?;
    bench.ui.step("compose files");
    let compose = tools.tracked(&["docker-compose*.yml"])?;
    tools.run("check-jsonschema", &["--builtin-schema", "vendor.compose-spec"], &compose)?;
    bench.ui.step("Prometheus and Grafana");
    let Some(promtool) = promtool(&bench.project.data_dir()?)? else {
        let remark = "all but Prometheus's files: promtool is missing (Debian, Ubuntu: apt-get install prometheus; macOS: brew install prometheus)";
        return Ok(Outcome::Skipped(remark.to_owned()));
    };
    tools.prometheus(&promtool)?;
    Ok(Outcome::Passed)
}

struct Tools {
    bin: PathBuf,
    root: PathBuf,
}

impl Tools {
    /// A tool of the environment, which finds the others there, too (npm its node).
    fn command(&self, tool: &str, directory: &Path) -> Command {
        let mut path = OsString::from(&self.bin);
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut command = Command::new(self.bin.join(tool));
        command.current_dir(directory).env("PATH", path);
        command
    }

    fn run(&self, tool: &str, options: &[&str], files: &[String]) -> Result<()> {
        ensure!(!files.is_empty(), "{tool} has nothing to look at");
        let mut command = self.command(tool, &self.root);
        cargo::run_ok(command.args(options).args(files))
    }

    /// Files under version control that match.
    fn tracked(&self, patterns: &[&str]) -> Result<Vec<String>> {
        let mut git = Command::new("git");
        git.current_dir(&self.root)
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "--"])
            .args(patterns);
        let out = output_within(&mut git, Duration::from_secs(30))?;
        ensure!(out.status.success(), "git cannot list files: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_owned).collect())
    }

    /// Types, and what comes out. No package runs scripts of its own here.
    fn railway(&self) -> Result<()> {
        let directory = self.root.join(".railway");
        let npm = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
        cargo::run_ok(self.command("npm", &directory).args(npm))?;
        cargo::run_ok(self.command("npx", &directory).args(["--no-install", "tsc"]))?;
        let mut node = self.command("node", &directory);
        let out = output_within(node.arg("evaluate.mjs"), Duration::from_secs(60))?;
        ensure!(out.status.success(), "evaluate.mjs failed: {}", String::from_utf8_lossy(&out.stderr));
        let path = self.root.join(EVALUATED);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            return fs::write(&path, &out.stdout).with_context(|| format!("cannot write {EVALUATED}"));
        }
        let committed = fs::read(&path).with_context(|| format!("cannot read {EVALUATED}"))?;
        if committed != out.stdout {
            bail!(
                "{EVALUATED} is not what railway.ts describes: UPDATE_DOCS=1 cargo verify --only deployment, and commit it"
            );
        }
        Ok(())
    }

    /// A module, which node takes for one by its ending.
    fn load_script(&self) -> Result<()> {
        let module = self.bin.parent().context("bin is in a directory")?.join("load.mjs");
        fs::copy(self.root.join("deploy/k6/load.js"), &module).context("cannot copy the load script")?;
        cargo::run_ok(self.command("node", &self.root).arg("--check").arg(&module))
    }

    fn prometheus(&self, promtool: &Path) -> Result<()> {
        let directory = self.root.join("deploy/prometheus");
        let mut queries = self.command("python", &self.root);
        queries.args(["deploy/check/dashboard_rules.py", "deploy/grafana/dashboards"]);
        let out = output_within(&mut queries, Duration::from_secs(60))?;
        ensure!(out.status.success(), "dashboard_rules.py failed: {}", String::from_utf8_lossy(&out.stderr));
        let rules = tempfile(&self.bin)?;
        fs::write(&rules, &out.stdout).context("cannot write the dashboards' queries")?;
        for arguments in [
            &["check", "config", "prometheus.yml"][..],
            &["test", "rules", "alerts.test.yml"],
            &["check", "rules", rules.to_str().context("a path that is no UTF-8")?],
        ] {
            cargo::run_ok(Command::new(promtool).current_dir(&directory).args(arguments))?;
        }
        Ok(())
    }
}

/// Beside the environment's programs, which is this checkout's own place.
fn tempfile(bin: &Path) -> Result<PathBuf> {
    Ok(bin.parent().context("bin is in a directory")?.join("dashboards.rules.json"))
}

/// Prometheus's own checker. Debian has it in the server's package: that is unpacked, not installed, so that no server starts and
/// nobody has to be root.
fn promtool(data: &Path) -> Result<Option<PathBuf>> {
    if Command::new("promtool").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return Ok(Some(PathBuf::from("promtool")));
    }
    let directory = data.join("promtool");
    let unpacked = directory.join("usr/bin/promtool");
    if !unpacked.exists() {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let script = "apt-get download --quiet prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb";
        let mut fetch = Command::new("sh");
        fetch.current_dir(&directory).args(["-c", script]);
        if !output_within(&mut fetch, Duration::from_secs(180)).is_ok_and(|out| out.status.success()) {
            return Ok(None);
        }
    }
    Ok(Some(unpacked))
}
