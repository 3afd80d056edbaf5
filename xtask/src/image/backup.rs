//! The backup's image against the production stack: a dump into a bucket, and the drill that restores it and logs in, as the
//! user that the image names.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::process::output_within;

use super::production::{EMAIL, PASSWORD, POSTGRES_PASSWORD, Production, said};
use crate::ui::Ui;
use crate::{cargo, interrupts};

const DRILL_TIMEOUT: Duration = Duration::from_secs(300);
/// What docs/runbooks/restore.md asks of a small database. Seconds.
const MAX_RTO: u64 = 300;

pub(super) fn image(production: &Production<'_>) -> String {
    format!("{}-backup", production.project)
}

pub(super) fn check(production: &Production<'_>, ui: &Ui) -> Result<()> {
    ui.step("building the backup's image");
    let image = image(production);
    let mut build = Command::new("docker");
    build.current_dir(production.compose.root()).args(["build", "--quiet", "--tag", &image]);
    build.args(["--file", "deploy/backup/Dockerfile", "--build-arg"]);
    cargo::run_ok(build.arg(format!("PROFILE={}", production.compose.profile())).arg("."))?;
    let user = production.compose.docker(&["image", "inspect", "--format", "{{.Config.User}}", &image])?;
    ensure!(user == "999:999", "the backup runs as {user}");

    let (network, bucket) =
        (format!("{}_backend", production.project), format!("{}-bucket", production.project));
    // Perl comes with Postgres's image.
    let serve = ["--entrypoint", "perl", &image, "-e", include_str!("bucket.pl")];
    let run =
        ["run", "--detach", "--rm", "--name", &bucket, "--network", &network, "--network-alias", "bucket"];
    production.compose.docker(&[&run[..], &serve[..]].concat())?;

    let database = format!("postgres://ballast:{POSTGRES_PASSWORD}@postgres:5432/ballast");
    let backup = |command: &str| -> Result<String> {
        interrupts::check()?;
        let mut docker = Command::new("docker");
        docker.args(["run", "--rm", "--network", &network]);
        for (name, value) in [
            ("DATABASE_URL", database.as_str()),
            ("S3_ENDPOINT", "http://bucket:9000"),
            ("S3_BUCKET", "backups"),
            ("S3_ACCESS_KEY_ID", "drill"),
            ("S3_SECRET_ACCESS_KEY", "a-secret-of-this-run"),
            ("DRILL_EMAIL", EMAIL),
            ("DRILL_PASSWORD", PASSWORD),
        ] {
            docker.args(["--env", &format!("{name}={value}")]);
        }
        let output = output_within(docker.args([&image, command]), DRILL_TIMEOUT)?;
        ensure!(output.status.success(), "backup {command} failed:\n{}", said(&output));
        Ok(said(&output))
    };
    backup("dump")?;
    let drilled = backup("drill")?;
    ensure!(drilled.contains("logged in on the restored data"), "the drill did not log in:\n{drilled}");
    let rto = rto(&drilled).with_context(|| format!("the drill prints no RTO:\n{drilled}"))?;
    ensure!(rto < MAX_RTO, "RTO {rto} s");
    ui.step(&format!("backup: dumped, restored and logged in on it, as user 999, in {rto} s"));
    Ok(())
}

/// `RTO n s`.
fn rto(text: &str) -> Option<u64> {
    text.split_once("RTO ")?.1.split_once(" s")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_drill_is_read_as_it_is_printed() {
        assert_eq!(
            rto("backup: RTO 12 s (fetch, restore, start, login); RPO 3 s (age of the data)"),
            Some(12)
        );
        assert_eq!(rto("backup: stored"), None);
    }
}
