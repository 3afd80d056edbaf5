//! How runs end.

use db::{
    Database, PgConnection,
    runs::{End, Ended, Lost},
};
use limits::Limiter;
use uuid::Uuid;

use crate::{Events, Held, Kind, Place};

/// What a client is told at the end.
fn last_words(end: &End, ended: &Ended) -> String {
    let (prompt, completion) = ended.tokens;
    let error =
        end.error_code.as_ref().map(|code| serde_json::json!({ "code": code, "message": end.error_message }));
    serde_json::json!({
        "state": end.state,
        "error": error,
        "usage": { "prompt_tokens": prompt, "completion_tokens": completion, "estimated": end.estimated },
    })
    .to_string()
}

/// Makes known that a run has ended, after the transaction in which [`db::runs::end`] said so: tells its readers, and gives back
/// what it held. Best effort: readers look at the database too, and what is held ends by itself.
pub async fn end(events: &Events, limiter: &Limiter, id: Uuid, end: &End, ended: &Ended) {
    metrics::counter!("runs_ended_total", "state" => end.state).increment(1);
    // Behind everything that this attempt can have said.
    let place = Place { attempt: ended.attempts, number: u64::from(u32::MAX) };
    if let Err(error) = events.append(id, place, &[(Kind::End, last_words(end, ended))]).await {
        tracing::warn!(%error, run = %id, "the readers of a run find its end in the database only");
    }
    if let Ok(held) = serde_json::from_value::<Held>(ended.held.clone()) {
        let used = (ended.tokens.0 + ended.tokens.1).unsigned_abs();
        limiter.settle(held.settlement(limiter.policies(), used)).await;
    }
}

/// Ends runs that nobody else will: their job is over. Either somebody cancelled it before a worker had it, or its workers died
/// until its attempts were used up. This run, or all; returns how many.
pub async fn end_lost(
    database: &Database,
    events: &Events,
    limiter: &Limiter,
    only: Option<Uuid>,
) -> db::Result<usize> {
    let lost = database.call("runs.lost", async |c| db::runs::lost(c, only).await).await?;
    let mut count = 0;
    for run in lost {
        let how = how_it_ends(run);
        let ended = database
            .transaction("runs.end", async |c: &mut PgConnection| db::runs::end(c, run.id, &how).await)
            .await?;
        if let Some(ended) = ended {
            count += 1;
            tracing::info!(run = %run.id, state = how.state, "a run that nobody works at was ended");
            end(events, limiter, run.id, &how, &ended).await;
        }
    }
    Ok(count)
}

fn how_it_ends(run: Lost) -> End {
    if run.cancelled {
        return End { state: "stopped", outcome: "client_abort", estimated: true, ..End::default() };
    }
    End {
        state: "failed",
        error_code: Some("worker_lost".to_owned()),
        error_message: Some("The workers that made this run died. Start it again.".to_owned()),
        outcome: "drained",
        estimated: true,
        ..End::default()
    }
}
