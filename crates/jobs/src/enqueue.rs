//! Enqueueing: plain inserts on the caller's connection, so that a job exists exactly when the caller's transaction
//! commits.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::{Error, JobId, JobSpec, Priority, json};

/// Larger payloads are refused: put the document somewhere and its key into the job.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// A century; what Postgres cannot add to a timestamp would spoil the caller's transaction.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What differs from the kind's own rules for one job.
#[derive(Debug, Clone, Default)]
pub struct EnqueueOptions {
    /// Run at this time, by the database's clock; at once when absent or past.
    pub run_at: Option<DateTime<Utc>>,
    /// Run this long from now, by the database's clock. Added to `run_at` when both are given.
    pub delay: Option<Duration>,
    /// Another queue.
    pub queue: Option<String>,
    /// Another priority.
    pub priority: Option<Priority>,
    /// Another number of attempts.
    pub max_attempts: Option<i16>,
    /// Another time limit for an attempt.
    pub timeout: Option<Duration>,
    /// At most one such job.
    pub unique: Option<Unique>,
    /// The user whose job this is.
    pub owner: Option<Uuid>,
}

/// When two jobs of a kind count as the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Unique {
    by: UniqueBy,
    period: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
enum UniqueBy {
    Kind,
    Args,
    Fields(&'static [&'static str]),
    Key(String),
}

impl Unique {
    /// One job of the kind, whatever its payload.
    pub const fn by_kind() -> Self {
        Self { by: UniqueBy::Kind, period: None }
    }

    /// One job for each payload.
    pub const fn by_args() -> Self {
        Self { by: UniqueBy::Args, period: None }
    }

    /// One job for each value of these top-level fields of the payload.
    pub const fn by_fields(fields: &'static [&'static str]) -> Self {
        Self { by: UniqueBy::Fields(fields), period: None }
    }

    /// One job of the kind for each key, for example `"2026-01-31"` or a webhook's event id.
    pub fn by_key(key: impl Into<String>) -> Self {
        Self { by: UniqueBy::Key(key.into()), period: None }
    }

    /// Counts for this long from the first enqueue, even when the job has ended. Without a period the key is free again
    /// as soon as the job has ended.
    pub const fn for_period(mut self, period: Duration) -> Self {
        self.period = Some(period);
        self
    }

    /// What the database hashes together with the kind.
    fn of(&self, args: &Value) -> Value {
        match &self.by {
            UniqueBy::Kind => Value::Null,
            UniqueBy::Args => args.clone(),
            UniqueBy::Fields(fields) => fields
                .iter()
                .map(|f| ((*f).to_owned(), args.get(f).cloned().unwrap_or(Value::Null)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            UniqueBy::Key(key) => Value::from(vec![key.clone()]),
        }
    }
}

/// What became of an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// A new job with this id.
    New(JobId),
    /// A unique job with this id was there already; nothing was written.
    Duplicate(JobId),
}

impl Enqueued {
    /// The job's id, new or not.
    pub const fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Duplicate(id) => id,
        }
    }

    /// True for a new job.
    pub const fn is_new(self) -> bool {
        matches!(self, Self::New(_))
    }
}

/// A job that is ready to be enqueued, its type erased: what [`enqueue`] makes of a payload.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub(crate) kind: String,
    pub(crate) queue: String,
    pub(crate) priority: Priority,
    pub(crate) max_attempts: i16,
    pub(crate) timeout: Duration,
    pub(crate) args: Value,
    pub(crate) unique: Option<Unique>,
    pub(crate) run_at: Option<DateTime<Utc>>,
    pub(crate) delay: Duration,
    pub(crate) owner: Option<Uuid>,
}

impl NewJob {
    /// A job with the rules of its kind.
    pub fn of<J: JobSpec>(job: &J) -> Result<Self, Error> {
        let args = payload(job)?;
        Self {
            kind: J::NAME.to_owned(),
            queue: J::QUEUE.to_owned(),
            priority: J::PRIORITY,
            max_attempts: J::MAX_ATTEMPTS,
            timeout: J::TIMEOUT,
            args,
            unique: job.unique(),
            run_at: None,
            delay: Duration::ZERO,
            owner: None,
        }
        .checked()
    }

    /// A job of a kind that this binary need not know; the rules that `options` leaves out are the general ones.
    pub fn raw(kind: &str, args: Value) -> Result<Self, Error> {
        check_payload(&args)?;
        Self {
            kind: kind.to_owned(),
            queue: "default".to_owned(),
            priority: Priority::Normal,
            max_attempts: 10,
            timeout: Duration::from_secs(60),
            args,
            unique: None,
            run_at: None,
            delay: Duration::ZERO,
            owner: None,
        }
        .checked()
    }

    /// The same job with other rules.
    pub fn with(mut self, options: EnqueueOptions) -> Result<Self, Error> {
        let EnqueueOptions { run_at, delay, queue, priority, max_attempts, timeout, unique, owner } = options;
        self.run_at = run_at.map(storable).or(self.run_at);
        self.delay = delay.unwrap_or(self.delay).min(MAX_DELAY);
        self.queue = queue.unwrap_or(self.queue);
        self.priority = priority.unwrap_or(self.priority);
        self.max_attempts = max_attempts.unwrap_or(self.max_attempts).max(1);
        self.timeout = timeout.unwrap_or(self.timeout);
        self.unique = unique.or(self.unique);
        self.owner = owner.or(self.owner);
        self.checked()
    }

    /// The kind's name.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The payload.
    pub fn args(&self) -> &Value {
        &self.args
    }

    fn checked(self) -> Result<Self, Error> {
        check_name(&self.kind)?;
        check_name(&self.queue)?;
        if let Some(Unique { by: UniqueBy::Key(key), .. }) = &self.unique
            && (key.len() > 1024 || key.contains('\0'))
        {
            return Err(Error::InvalidPayload("a unique key has at most 1024 bytes and no NUL".to_owned()));
        }
        Ok(self)
    }

    /// Inserts the job on the caller's connection; see [`enqueue`].
    pub async fn insert(&self, conn: &mut PgConnection) -> Result<Enqueued, Error> {
        let Some(unique) = &self.unique else {
            return Ok(Enqueued::New(self.insert_plain(conn).await?));
        };
        let key = unexpired_key(conn, &self.kind, &unique.of(&self.args)).await?;
        // The holder of the key may end between the two statements; then the key is free and we go round again.
        loop {
            if let Some(id) = self.insert_unique(conn, &key, unique.period).await? {
                return Ok(Enqueued::New(id));
            }
            let holder = sqlx::query_scalar!("select job_id from job_unique where key = $1", key)
                .fetch_optional(&mut *conn)
                .await?;
            if let Some(id) = holder {
                return Ok(Enqueued::Duplicate(id));
            }
        }
    }

    async fn insert_plain(&self, conn: &mut PgConnection) -> Result<JobId, Error> {
        let row = sqlx::query!(
            r#"with new as (
                   insert into job (queue, kind, priority, run_at, args, max_attempts, timeout_ms, owner, trace)
                   values ($1, $2, $3, greatest(coalesce($4, now()), now()) + $5::float8 * interval '1 ms',
                           $6, $7, $8, $9, $10)
                   returning id
               )
               select id as "id!", pg_notify('jobs', $1) is null as notified from new"#,
            self.queue,
            self.kind,
            self.priority as i16,
            self.run_at,
            self.delay.as_secs_f64() * 1_000.0,
            self.args,
            self.max_attempts,
            millis(self.timeout),
            self.owner,
            trace(),
        )
        .fetch_one(conn)
        .await?;
        count(&self.kind);
        Ok(row.id)
    }

    /// `None` when the key is taken.
    async fn insert_unique(
        &self,
        conn: &mut PgConnection,
        key: &str,
        period: Option<Duration>,
    ) -> Result<Option<JobId>, Error> {
        let row = sqlx::query!(
            r#"with slot as (
                   insert into job_unique as u (key, job_id, expires_at)
                   values ($1, nextval(pg_get_serial_sequence('job', 'id')),
                           coalesce(clock_timestamp() + $2::float8 * interval '1 ms', 'infinity'))
                   on conflict (key) do nothing
                   returning u.job_id
               ), new as (
                   insert into job (id, queue, kind, priority, run_at, args, max_attempts, timeout_ms, owner, trace,
                                    unique_key)
                   select job_id, $3, $4, $5, greatest(coalesce($6, now()), now()) + $7::float8 * interval '1 ms',
                          $8, $9, $10, $11, $12, case when $2 is null then $1 end
                   from slot
                   returning id
               )
               select id as "id!", pg_notify('jobs', $3) is null as notified from new"#,
            key,
            period.map(|p| p.as_secs_f64() * 1_000.0),
            self.queue,
            self.kind,
            self.priority as i16,
            self.run_at,
            self.delay.as_secs_f64() * 1_000.0,
            self.args,
            self.max_attempts,
            millis(self.timeout),
            self.owner,
            trace(),
        )
        .fetch_optional(conn)
        .await?;
        if row.is_some() {
            count(&self.kind);
        }
        Ok(row.map(|r| r.id))
    }
}

/// Enqueues a job on the caller's connection. Inside a transaction the job exists, and workers hear of it, when that
/// commits; if it rolls back there never was one.
///
/// A unique job that is there already is reported as [`Enqueued::Duplicate`] and leaves the transaction usable. Two
/// transactions that enqueue the same unique job wait for each other, so enqueue late in a long transaction; in
/// isolation levels above READ COMMITTED Postgres may answer a serialization failure instead.
pub async fn enqueue<J: JobSpec>(
    conn: &mut PgConnection,
    job: &J,
    options: EnqueueOptions,
) -> Result<Enqueued, Error> {
    NewJob::of(job)?.with(options)?.insert(conn).await
}

/// Enqueues a job by the name of its kind, for callers that do not have its type.
pub async fn enqueue_raw(
    conn: &mut PgConnection,
    kind: &str,
    args: Value,
    options: EnqueueOptions,
) -> Result<Enqueued, Error> {
    NewJob::raw(kind, args)?.with(options)?.insert(conn).await
}

/// Enqueues many jobs of a kind with one statement and one notification; returns their ids in order. Unique kinds are
/// refused, because a batch cannot tell which one was the duplicate.
pub async fn enqueue_many<J: JobSpec>(
    conn: &mut PgConnection,
    jobs: &[J],
    options: &EnqueueOptions,
) -> Result<Vec<JobId>, Error> {
    let Some(first) = jobs.first() else { return Ok(Vec::new()) };
    let rules = NewJob::of(first)?.with(options.clone())?;
    let mut args = Vec::with_capacity(jobs.len());
    for job in jobs {
        if rules.unique.is_some() || job.unique().is_some() {
            return Err(Error::InvalidPayload("unique jobs are enqueued one by one".to_owned()));
        }
        args.push(payload(job)?);
    }
    // One statement, so that there is one commit to wait for when the caller has no transaction; and one row, because
    // thousands of small ones cost as much as the index does.
    let new = sqlx::query!(
        r#"with new as (
               insert into job (queue, kind, priority, run_at, args, max_attempts, timeout_ms, owner, trace)
               select $1, $2, $3, greatest(coalesce($4, now()), now()) + $5::float8 * interval '1 ms',
                      a.args, $7, $8, $9, $10
               from unnest($6::jsonb[]) with ordinality as a (args, n)
               order by a.n
               returning id
           )
           select array_agg(id order by id) as "ids!", pg_notify('jobs', $1) is null as notified from new"#,
        rules.queue,
        rules.kind,
        rules.priority as i16,
        rules.run_at,
        rules.delay.as_secs_f64() * 1_000.0,
        &args,
        rules.max_attempts,
        millis(rules.timeout),
        rules.owner,
        trace(),
    )
    .fetch_one(conn)
    .await?;
    metrics::counter!("jobs_enqueued_total", "kind" => rules.kind).increment(new.ids.len() as u64);
    Ok(new.ids)
}

/// The payload as it is stored, if it can be.
fn payload<J: JobSpec>(job: &J) -> Result<Value, Error> {
    let args = serde_json::to_value(job).map_err(|e| Error::InvalidPayload(e.to_string()))?;
    check_payload(&args)?;
    Ok(args)
}

fn check_payload(args: &Value) -> Result<(), Error> {
    json::check(args).map_err(|reason| Error::InvalidPayload(reason.to_owned()))?;
    let bytes = json::len(args);
    if bytes > MAX_PAYLOAD_BYTES { Err(Error::PayloadTooLarge { bytes }) } else { Ok(()) }
}

/// The key, and away with its row when that has expired. Apart from the insert, and not `on conflict do update`: that
/// would lock a row that is still good until the caller's transaction ends, and its job could not be acknowledged.
async fn unexpired_key(conn: &mut PgConnection, kind: &str, of: &Value) -> Result<String, Error> {
    // The database hashes, because `jsonb` has one text for equal values whatever the order of their keys.
    let key = sqlx::query_scalar!(
        r#"with wanted as (
               select $1::text || ':' || encode(sha256(convert_to($2::jsonb::text, 'UTF8')), 'hex') as key
           ), expired as (
               delete from job_unique using wanted
               where job_unique.key = wanted.key and job_unique.expires_at <= clock_timestamp()
           )
           select key as "key!" from wanted"#,
        kind,
        of
    )
    .fetch_one(conn)
    .await?;
    Ok(key)
}

fn check_name(name: &str) -> Result<(), Error> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > 100 || !name.bytes().all(legal) {
        return Err(Error::InvalidName(name.chars().take(100).collect()));
    }
    Ok(())
}

pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// A time that is past anyway, for one that Postgres' calendar does not have (before 4714 BC).
pub(crate) fn storable(time: DateTime<Utc>) -> DateTime<Utc> {
    time.max(DateTime::UNIX_EPOCH)
}

fn trace() -> Option<Value> {
    runtime::trace_context::current().map(|parent| serde_json::json!({ "traceparent": parent }))
}

pub(crate) fn count(kind: &str) {
    metrics::counter!("jobs_enqueued_total", "kind" => kind.to_owned()).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_confuse_a_log_or_a_metric_are_refused() {
        for good in ["default", "send_email", "a.b-c9"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\n", "ü", "a\0b", &"x".repeat(101)] {
            assert!(matches!(check_name(bad), Err(Error::InvalidName(_))), "{bad}");
        }
    }

    #[test]
    fn a_payload_over_256_kib_or_with_nul_is_refused_before_the_database_sees_it() {
        let big = NewJob::raw("k", Value::from("x".repeat(MAX_PAYLOAD_BYTES)));
        assert!(matches!(big, Err(Error::PayloadTooLarge { bytes }) if bytes == MAX_PAYLOAD_BYTES + 2));
        let nul = NewJob::raw("k", serde_json::json!({ "a": ["\0"] }));
        assert!(matches!(nul, Err(Error::InvalidPayload(_))));
    }
}
