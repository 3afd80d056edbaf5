//! Keeping the tables small: a partition of finished jobs for each day, dropped when its time is over.

use std::time::Duration;

use chrono::{Days, NaiveDate};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::Error;

/// Partitions are made for so many days ahead, so that a week without upkeep does no harm.
const DAYS_AHEAD: u64 = 7;

/// What [`keep_partitions`] and [`prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Kept {
    /// Days that got a partition.
    pub created: Vec<NaiveDate>,
    /// Days whose partition was dropped.
    pub dropped: Vec<NaiveDate>,
}

/// Makes the partitions of `job_done` for the coming days, moves what the default partition caught into partitions of
/// its own, and drops those older than the retention. Any number of workers may call it; one at a time does the work.
///
/// Each partition is changed in a transaction of its own that waits two seconds at most for each of its two locks:
/// acknowledgements wait behind it for that long, and while the rows move.
pub async fn keep_partitions(conn: &mut PgConnection, retention: Duration) -> Result<Kept, Error> {
    let mut kept = Kept::default();
    let today = sqlx::query_scalar!(r#"select (now() at time zone 'utc')::date as "today!""#)
        .fetch_one(&mut *conn)
        .await?;
    let caught = sqlx::query_scalar!(
        r#"select distinct (finished_at at time zone 'utc')::date as "day!" from job_done_default order by 1"#
    )
    .fetch_all(&mut *conn)
    .await?;
    let there = partitions(conn).await?;
    let ahead = (0..=DAYS_AHEAD).filter_map(|n| today.checked_add_days(Days::new(n)));
    for day in caught.into_iter().chain(ahead) {
        if !there.contains(&day) && !kept.created.contains(&day) && create(conn, day).await? {
            kept.created.push(day);
        }
    }
    let days = Days::new(retention.as_secs().div_ceil(24 * 3_600));
    let Some(oldest) = today.checked_sub_days(days) else { return Ok(kept) };
    for day in partitions(conn).await?.into_iter().filter(|day| *day < oldest) {
        if drop_partition(conn, day).await? {
            kept.dropped.push(day);
        }
    }
    Ok(kept)
}

/// Deletes what else has served its time: expired unique keys, rows of workers long gone, ticks older than a week (the
/// last tick of each line stays, it is where the line goes on). Returns the number of rows.
pub async fn prune(conn: &mut PgConnection) -> Result<u64, Error> {
    let keys = sqlx::query!("delete from job_unique where expires_at <= now()").execute(&mut *conn).await?;
    let workers = sqlx::query!("delete from worker where lease_until < now() - interval '1 hour'")
        .execute(&mut *conn)
        .await?;
    let ticks = sqlx::query!(
        "delete from cron_tick t
         where tick < now() - interval '7 days'
           and exists (select from cron_tick later where later.name = t.name and later.tick > t.tick)"
    )
    .execute(conn)
    .await?;
    Ok(keys.rows_affected() + workers.rows_affected() + ticks.rows_affected())
}

/// The days that have a partition.
async fn partitions(conn: &mut PgConnection) -> Result<Vec<NaiveDate>, Error> {
    let names = sqlx::query_scalar!(
        r#"select c.relname::text as "name!" from pg_inherits i join pg_class c on c.oid = i.inhrelid
           where i.inhparent = 'job_done'::regclass order by 1"#
    )
    .fetch_all(conn)
    .await?;
    let day = |name: &String| NaiveDate::parse_from_str(name.strip_prefix("job_done_")?, "%Y%m%d").ok();
    Ok(names.iter().filter_map(day).collect())
}

fn table(day: NaiveDate) -> String {
    format!("job_done_{}", day.format("%Y%m%d"))
}

/// Made apart and attached, because the default partition may hold rows of the day: they must move first. The lock on the whole
/// comes first of all: whoever ends a job waits there, before Postgres looks for the partition that the row belongs to.
async fn create(conn: &mut PgConnection, day: NaiveDate) -> Result<bool, Error> {
    let Some(next) = day.succ_opt() else { return Ok(false) };
    let name = table(day);
    change(
        conn,
        &name,
        false,
        &format!(
            "lock table only job_done in share row exclusive mode;
             lock table job_done_default in access exclusive mode;
             create table {name} (like job_done including defaults including constraints);
             with moved as (
                 delete from job_done_default
                 where finished_at >= '{day} 00:00Z' and finished_at < '{next} 00:00Z' returning *
             )
             insert into {name} select * from moved;
             alter table job_done attach partition {name} for values from ('{day} 00:00Z') to ('{next} 00:00Z');"
        ),
    )
    .await
}

async fn drop_partition(conn: &mut PgConnection, day: NaiveDate) -> Result<bool, Error> {
    let name = table(day);
    change(conn, &name, true, &format!("drop table {name};")).await
}

/// Runs the DDL if the day's partition is there or not there as expected. False when it is not, or when another worker is
/// at it.
async fn change(conn: &mut PgConnection, name: &str, there: bool, ddl: &str) -> Result<bool, Error> {
    let mut tx = conn.begin().await?;
    let mine = sqlx::query_scalar!(
        r#"select pg_try_advisory_xact_lock(hashtextextended('job_done', 0)) as "mine!""#
    )
    .fetch_one(&mut *tx)
    .await?;
    // Looked at again under the lock: the list that led here may be old.
    let due = mine
        && sqlx::query_scalar!(r#"select (to_regclass($1) is not null) = $2 as "due!""#, name, there)
            .fetch_one(&mut *tx)
            .await?;
    if due {
        // Names and dates come from this file and the database's calendar: DDL takes no parameters.
        let sql = AssertSqlSafe(format!("set local lock_timeout = '2s'; {ddl}"));
        sqlx::raw_sql(sql).execute(&mut *tx).await?;
        tx.commit().await?;
    }
    Ok(due)
}
