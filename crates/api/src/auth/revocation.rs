//! Ended sessions and revoked keys, told to every replica through Redis.
//!
//! Postgres has the truth; a mark in Redis makes it known within a second, because admission looks at it with every request.
//! A mark can be missed: Redis was out, or a process died between its commit and its mark. And it can be forgotten: Redis was
//! full, or another one took its place. So a replica writes the marks of everything that ended lately once more when it starts,
//! whenever Redis comes back, and when it has forgotten anything. What nobody marked ends with its access tokens.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use limits::Limiter;
use runtime::Phase;
use tokio::time::Instant;
use uuid::Uuid;

use super::Record;
use crate::{AppState, Error, Result, admission::RECORD_TTL};

/// How often it is looked whether marks are missing; that costs nothing while none are.
const LOOK: Duration = Duration::from_secs(1);

/// How often Redis is asked whether it has forgotten anything.
const ASK: Duration = Duration::from_secs(5);

/// Longer than any access token lives. The configuration allows an hour, and some may be of before it was lowered.
const LONGEST_MARK: Duration = Duration::from_secs(3_660);

/// Whether marks are missing in Redis, as far as this process knows.
#[derive(Debug)]
pub struct Marks {
    missing: AtomicBool,
}

impl Default for Marks {
    /// Nobody knows what was missed before this process began.
    fn default() -> Self {
        Self { missing: AtomicBool::new(true) }
    }
}

/// What a session is called in an admission.
pub(crate) fn subject(session_id: Uuid) -> String {
    format!("session:{session_id}")
}

/// Marks a session as ended for every replica; the database must say so already.
pub(crate) async fn mark_session(state: &AppState, session_id: Uuid) {
    if let Err(error) = write_session(&state.limiter, session_id).await {
        missed(state, &error);
    }
}

/// As [`mark_session`], for as many as a user may have: those whose last access token has expired need no mark.
pub(crate) async fn mark_sessions(state: &AppState, ended: &[db::sessions::Revoked]) {
    let since = state.clock.now() - LONGEST_MARK;
    let recent = ended.iter().filter(|session| session.last_used_at > since);
    join_all(recent.map(|session| mark_session(state, session.id))).await;
}

/// Marks an API key as revoked for every replica; the database must say so already.
pub(crate) async fn mark_key(state: &AppState, public_id: &str) -> Result<()> {
    let dead = Record::nobody().encode().map_err(Error::internal)?;
    if let Err(error) = state.limiter.replace_record(public_id, &dead, RECORD_TTL).await {
        missed(state, &error);
    }
    Ok(())
}

/// Marks sessions and API keys of a user who was disabled; for the command line, which has no process that could do it later.
pub async fn mark_all(limiter: &Limiter, sessions: &[Uuid], keys: &[String]) -> anyhow::Result<()> {
    for session_id in sessions {
        write_session(limiter, *session_id).await?;
    }
    let dead = Record::nobody().encode()?;
    for public_id in keys {
        limiter.replace_record(public_id, &dead, RECORD_TTL).await?;
    }
    Ok(())
}

fn missed(state: &AppState, error: &db::RedisError) {
    state.marks.missing.store(true, Ordering::Relaxed);
    metrics::counter!("revocation_marks_lost_total").increment(1);
    tracing::warn!(%error, "a revocation could not be marked in redis; it is marked when redis is back");
}

async fn write_session(limiter: &Limiter, session_id: Uuid) -> Result<(), db::RedisError> {
    limiter.revoke(&subject(session_id), i64::MAX / 2_048, LONGEST_MARK).await
}

/// Writes missing marks for as long as the process serves.
pub(crate) async fn keep_marks(state: AppState) {
    tokio::select! {
        () = watch(&state) => {}
        () = state.lifecycle.reached(Phase::Closing) => {}
    }
}

async fn watch(state: &AppState) {
    let mut before = None;
    let mut ask_at = Some(Instant::now());
    loop {
        if state.redis.is_out() {
            // What others ended meanwhile is missing too, and a server that was replaced has forgotten everything.
            state.marks.missing.store(true, Ordering::Relaxed);
        } else if ask_at.is_some_and(|at| at <= Instant::now()) {
            ask_at = Some(Instant::now() + ASK);
            match state.redis.incarnation().await {
                Ok(None) => {
                    ask_at = None;
                    tracing::warn!(
                        "redis does not tell run_id and evicted_keys (INFO): marks that it forgets are not written again"
                    );
                }
                Ok(now) => {
                    if before.is_some() && before != now {
                        state.marks.missing.store(true, Ordering::Relaxed);
                    }
                    before = now;
                }
                Err(_) => {}
            }
        }
        // Redis first: while it is out, the database is not asked every second.
        if state.marks.missing.load(Ordering::Relaxed) && state.redis.check().await.is_ok() {
            state.marks.missing.store(false, Ordering::Relaxed);
            if let Err(error) = write_all(state).await {
                state.marks.missing.store(true, Ordering::Relaxed);
                tracing::debug!(error = error.detail(), "marks of revocations are still missing");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn write_all(state: &AppState) -> Result<()> {
    let (sessions, keys) = state
        .database
        .call::<_, db::Error>("revocations.recent", async |c| {
            let sessions = db::sessions::revoked_within(c, LONGEST_MARK).await?;
            Ok((sessions, db::api_keys::revoked_within(c, RECORD_TTL).await?))
        })
        .await?;
    let unavailable = |_| Error::unavailable("redis_unavailable", "Redis is out.", LOOK);
    for session_id in &sessions {
        write_session(&state.limiter, *session_id).await.map_err(unavailable)?;
    }
    let dead = Record::nobody().encode().map_err(Error::internal)?;
    for public_id in &keys {
        state.limiter.replace_record(public_id, &dead, RECORD_TTL).await.map_err(unavailable)?;
    }
    if !(sessions.is_empty() && keys.is_empty()) {
        tracing::info!(sessions = sessions.len(), keys = keys.len(), "revocations were marked once more");
    }
    Ok(())
}
