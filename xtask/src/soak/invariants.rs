//! What must hold whatever broke: asked of the database when the load has ended.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::load::Accepted;
use super::stand::Stand;
use crate::interrupts;
use crate::ui::Ui;

/// A job that lost its worker waits for the lease, and then for the pause before another attempt.
const JOBS_DONE: Duration = Duration::from_secs(180);

pub(super) fn check(stand: &Stand, accepted: &Accepted, ui: &Ui) -> Result<()> {
    jobs(stand, accepted, ui)?;
    sessions(stand, ui)?;
    ticks(stand, ui)
}

/// No accepted job is lost, none ended twice, none was given up.
fn jobs(stand: &Stand, accepted: &Accepted, ui: &Ui) -> Result<()> {
    let deadline = Instant::now() + JOBS_DONE;
    while stand.sql("select count(*) from job where kind = 'echo'")? != "0" {
        interrupts::check()?;
        ensure!(Instant::now() < deadline, "jobs are left over after {JOBS_DONE:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    let mut ids = String::from("-1");
    for id in &accepted.jobs {
        let _ = write!(ids, ",{id}");
    }
    let completed = stand.sql(&format!(
        "select count(distinct id) from job_done where state = 'completed' and id = any('{{{ids}}}')"
    ))?;
    ensure!(
        completed == accepted.jobs.len().to_string(),
        "of {} accepted jobs {completed} are completed",
        accepted.jobs.len()
    );
    let twice = stand.sql("select count(*) - count(distinct id) from job_done")?;
    ensure!(twice == "0", "{twice} jobs ended twice");
    let again = stand.sql("select count(*) from job_done where kind = 'echo' and attempt > 1")?;
    ui.step(&format!(
        "jobs: {completed} accepted, as many completed, none twice; {again} needed another attempt"
    ));
    Ok(())
}

/// Case A5: one living refresh token for each session, and no session ended by a repeated refresh.
fn sessions(stand: &Stand, ui: &Ui) -> Result<()> {
    let several = stand.sql(
        "select count(*) from (select 1 from refresh_token t join session s on s.id = t.session_id \
         where t.used_at is null and s.revoked_at is null group by t.session_id having count(*) <> 1) x",
    )?;
    ensure!(several == "0", "{several} sessions have not exactly one living refresh token");
    let ended = stand.sql("select count(*) from session where revoked_at is not null")?;
    ensure!(ended == "0", "{ended} sessions were ended, and nobody asked for it");
    let used = stand.sql("select count(*) from refresh_token where used_at is not null")?;
    ui.step(&format!("sessions: {used} refreshes, one living token for each session, none ended"));
    Ok(())
}

/// Case W1: each minute has its tick, and each tick that was not skipped one job.
fn ticks(stand: &Stand, ui: &Ui) -> Result<()> {
    let ticks = "from cron_tick where name = 'heartbeat'";
    let missing = stand.sql(&format!(
        "select coalesce(extract(epoch from max(tick) - min(tick))::bigint / 60 + 1, 0) - count(*) {ticks}"
    ))?;
    ensure!(missing == "0", "{missing} ticks of `heartbeat` are missing");
    let made = stand.sql(&format!("select count(job_id) {ticks}"))?;
    let jobs = stand.sql(
        "select count(*) from (select id from job where kind = 'heartbeat' union all select id from job_done where kind = 'heartbeat') j",
    )?;
    ensure!(made == jobs, "{made} ticks of `heartbeat` made {jobs} jobs");
    ui.step(&format!("cron: {made} ticks of `heartbeat`, one job each, none missing"));
    Ok(())
}
