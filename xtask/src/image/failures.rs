//! Releases that cannot be: deploy.sh takes itself back and says why, and the one that serves goes on serving, under load.

use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::load::Load;
use super::production::{Production, VERSIONS, said};
use crate::ui::Ui;
use crate::{interrupts, machine};

/// Without a program; and with everything but one role.
pub(super) const IMAGES: [&str; 3] = ["check-broken", "check-no-api", "check-no-worker"];
const REQUESTS_PER_SECOND: u32 = 50;
const STREAMS: usize = 10;

pub(super) fn check(production: &Production<'_>, key: &str, ui: &Ui) -> Result<()> {
    let load = Load::start(production.http, key, REQUESTS_PER_SECOND, STREAMS);
    let outcome = failures(production, ui);
    let served = load.end();
    outcome?;
    let served = served?;
    let enough = served.rate >= 0.8 * f64::from(REQUESTS_PER_SECOND) && served.streams >= STREAMS;
    ensure!(enough || machine::is_busy(), "too little load to say anything: {served:?}");
    ensure!(served.drained == 0, "streams of ten seconds were cut within a grace of forty: {served:?}");
    ui.step(&format!(
        "meanwhile no request of {} failed, none of {} streams was cut",
        served.requests, served.streams
    ));
    Ok(())
}

fn failures(production: &Production<'_>, ui: &Ui) -> Result<()> {
    let states = || -> Result<Vec<String>> {
        ["colour", "image", "previous", "since"].iter().map(|name| production.state(name)).collect()
    };
    let before = states()?;
    let image = production.state("image")?;
    let unchanged = |what: &str, output: &Output, wanted: &str| -> Result<()> {
        let said = said(output);
        ensure!(output.status.code() == Some(1), "{what}: ended with {}:\n{said}", output.status);
        ensure!(said.contains(wanted), "{what}: says nothing of `{wanted}`:\n{said}");
        ensure!(states()? == before, "{what}: something was replaced");
        production.serves().with_context(|| format!("after {what}"))?;
        for service in [format!("api-{}", before[0]), "worker".to_owned()] {
            runs(production, &service, &image).with_context(|| format!("after {what}"))?;
        }
        ui.step(&format!("deploy.sh with {what}: took itself back"));
        Ok(())
    };
    let deploy = |version: &str, more: (&str, &str)| production.deploy(&[], &[("VERSION", version), more]);
    let nothing_more = ("BUILD", "false");

    let [no_program, no_api, no_worker] = IMAGES;
    broken_image(production, no_program, "ENTRYPOINT [\"/there/is/none\"]\n")?;
    unchanged("a broken image", &deploy(no_program, nothing_more)?, "the migration failed")?;

    production.sql("update _sqlx_migrations set checksum = 'x' where version = 1")?;
    let output = deploy(VERSIONS[0], nothing_more)?;
    production.sql(
        "update _sqlx_migrations set checksum = (select checksum from kept_checksum) where version = 1",
    )?;
    unchanged("a migration that fails", &output, "the migration failed")?;

    // Nobody is healthy within a second: the first probe comes later.
    let output = deploy(VERSIONS[0], ("HEALTH_TIMEOUT", "1"))?;
    unchanged("a health check that fails", &output, "does not become ready; the old one serves as before")?;

    without(production, no_api, "api")?;
    let output = deploy(no_api, nothing_more)?;
    unchanged("an API that ends", &output, "does not become ready; the old one serves as before")?;

    // Where nobody answers: all is well, and cannot be seen from there.
    let output = deploy(VERSIONS[0], ("EDGE_URL", "http://127.0.0.1:1"))?;
    unchanged("an edge that does not answer", &output, "the old one serves again")?;

    without(production, no_worker, "worker")?;
    let output = deploy(no_worker, nothing_more)?;
    unchanged(
        "a worker that ends",
        &output,
        "the new worker does not become ready; the old release serves again",
    )
}

/// All containers of a service are of this image and run. A worker that was put back may still be starting.
fn runs(production: &Production<'_>, service: &str, image: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        interrupts::check()?;
        let listed = production.docker_compose(&["ps", "--all", "--quiet", service])?;
        let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
        let format = "{{.Config.Image}} {{.State.Status}} {{.State.Health.Status}}";
        let states: Vec<_> =
            ids.lines().map(|id| production.compose.inspect(id, format)).collect::<Result<_>>()?;
        let wanted = format!("{image} running healthy");
        if !states.is_empty() && states.iter().all(|state| *state == wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{service} is not {wanted}: {states:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// An image of this release in which one role ends at once. Ours has no shell; the edge's image has one.
fn without(production: &Production<'_>, version: &str, role: &str) -> Result<()> {
    let program = "/usr/local/bin/ballast";
    let script = format!(r#"[ \"$0\" != {role} ] || exit 1; exec {program} \"$0\" \"$@\""#);
    let lines = [
        format!("FROM ballast:{} AS ours", VERSIONS[0]),
        format!("FROM {}", production.nginx_image()?),
        format!("COPY --from=ours {program} {program}"),
        // As ours: outside development, as another user than root.
        "ENV APP_ENV=production PORT=8080".to_owned(),
        "USER 65532:65532".to_owned(),
        // nginx's is another one.
        "STOPSIGNAL SIGTERM".to_owned(),
        format!(r#"ENTRYPOINT ["/bin/sh", "-c", "{script}"]"#),
    ];
    build(production, version, &(lines.join("\n") + "\n"))
}

fn broken_image(production: &Production<'_>, version: &str, more: &str) -> Result<()> {
    build(production, version, &format!("FROM ballast:{}\n{more}", VERSIONS[0]))
}

fn build(production: &Production<'_>, version: &str, dockerfile: &str) -> Result<()> {
    let context = production.dir.join(version);
    fs::create_dir_all(&context)?;
    fs::write(context.join("Dockerfile"), dockerfile)?;
    let (tag, context) = (format!("ballast:{version}"), context.display().to_string());
    production.compose.docker(&["build", "--quiet", "--tag", &tag, &context]).map(drop)
}
