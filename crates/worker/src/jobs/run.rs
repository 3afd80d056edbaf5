//! `run`: makes a chat completion whose readers come and go (the crate `runs`).
//!
//! To delete it: see "Resumable runs" in `docs/removing-parts.md`.

mod generation;

use std::time::Duration;

use ::runs::{Held, Kind};
use anyhow::anyhow;
use db::{
    PgConnection,
    runs::{Begun, End, Ended},
};
use engine::Fault;
use job_specs::Run;
use jobs::{JobContext, JobError};
use runtime::backoff::Backoff;
use serde::Serialize;
use tokio::time::Instant;

use self::generation::{Generation, Problem};
use crate::Context;

/// How often the permit is renewed and the stream kept: its lease is several times as long.
const RENEWAL: Duration = Duration::from_secs(15);
/// How often the end is tried to be written before the whole run is made again.
const TRIES: u32 = 5;

/// What the job reports.
#[derive(Debug, Serialize)]
struct Made {
    state: &'static str,
}

/// An attempt that is cut off (its worker died, or was replaced by a deploy) is made once more, and says so in the stream.
/// Whatever the engine does wrong ends the run: somebody waits for it.
pub async fn run(context: Context, attempt: JobContext, job: Run) -> Result<(), JobError> {
    let begin = async |c: &mut PgConnection| db::runs::begin(c, job.run_id).await;
    let Some(begun) = context.database.call("runs.begin", begin).await? else { return Ok(()) };
    let started = Instant::now();
    let held: Held = serde_json::from_value(begun.held.clone()).map_err(JobError::discard)?;
    let permit = held.permit(context.limiter.policies());
    context.limiter.take_over(&permit);
    let mut generation = Generation::new(&context, job.run_id, begun.attempts);
    let outcome = tokio::select! {
        biased;
        () = attempt.cancelled().cancelled() => None,
        outcome = make(&mut generation, &begun) => Some(outcome),
        () = keep(&context, &job, &permit) => None,
    };
    let end = match outcome {
        Some(Ok(())) => End { state: "completed", outcome: "ok", ..End::default() },
        Some(Err(problem)) => failed(&problem, &generation.engine()),
        None if is_stopped(&context, &attempt).await => {
            End { state: "stopped", outcome: "client_abort", ..End::default() }
        }
        None => {
            // Another attempt, perhaps elsewhere, renews the permit and gives it back.
            context.limiter.hand_over(&permit);
            return Err(JobError::Retry(anyhow!("cut off in the middle")));
        }
    };
    let end = generation.account(end, &begun, started);
    let ended = finish(&context, &attempt, &job, &end).await?;
    if let Some(ended) = ended {
        tracing::info!(
            run = %job.run_id, request_id = %begun.request_id, model = %begun.model, engine = generation.engine(), outcome = end.outcome,
            fault = end.error_code, prompt_tokens = ended.tokens.0, completion_tokens = ended.tokens.1,
            estimated = end.estimated, duration_ms = end.duration_ms, first_token_ms = end.first_token_ms,
            "run ended"
        );
        generation.record(&begun, &end, ended.tokens);
        ::runs::end(&context.run_events, &context.limiter, job.run_id, &end, &ended).await;
    }
    Ok(())
}

async fn make(generation: &mut Generation<'_>, begun: &Begun) -> Result<(), Problem> {
    let kind = if begun.attempts == 1 { Kind::Started } else { Kind::Restarted };
    let data = serde_json::json!({ "attempt": begun.attempts }).to_string();
    generation.say(vec![(kind, data)]).await?;
    generation.make(begun).await
}

/// Keeps what the run holds, for as long as it is polled.
async fn keep(context: &Context, job: &Run, permit: &limits::Permit) {
    loop {
        context.limiter.renew(permit).await;
        let _ = context.run_events.keep(job.run_id).await;
        tokio::time::sleep(RENEWAL).await;
    }
}

/// Whether somebody wants this run to end. Otherwise it is the worker that ends.
async fn is_stopped(context: &Context, attempt: &JobContext) -> bool {
    let look = async |c: &mut PgConnection| jobs::find(c, attempt.id()).await.map_err(JobError::from);
    let job = context.database.call("jobs.find", look).await;
    job.ok().flatten().is_some_and(|job| job.cancel_requested)
}

fn failed(problem: &Problem, engine: &str) -> End {
    let (code, message, outcome) = match problem {
        Problem::Engine(fault) => {
            fault.record(engine);
            tracing::warn!(engine, fault = %fault.code(), cause = fault.cause(), "the engine failed a run");
            let outcome = if matches!(fault, Fault::Timeout(_)) { "timeout" } else { "engine_error" };
            (fault.code().into_owned(), fault.message().into_owned(), outcome)
        }
        Problem::InStream(code, message) => (code.clone(), message.clone(), "engine_error"),
        Problem::EventsLost => {
            let message = "The store of events was away for too long. Start the run again.";
            ("events_lost".to_owned(), message.to_owned(), "drained")
        }
        Problem::TooLong => {
            ("too_long".to_owned(), "The answer is longer than a run may be.".to_owned(), "engine_error")
        }
    };
    End { state: "failed", error_code: Some(code), error_message: Some(message), outcome, ..End::default() }
}

/// The run's end, its usage and the job's completion, in one transaction. The work is done, so a database that is away for a
/// moment is waited for.
async fn finish(
    context: &Context,
    attempt: &JobContext,
    job: &Run,
    end: &End,
) -> Result<Option<Ended>, JobError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    for tries_left in (0..TRIES).rev() {
        let write = async |c: &mut PgConnection| -> Result<Option<Ended>, JobError> {
            let ended = db::runs::end(c, job.run_id, end).await?;
            attempt.complete_in(c, &Made { state: end.state }).await?;
            Ok(ended)
        };
        match context.database.transaction("runs.end", write).await {
            Err(JobError::Retry(error)) if tries_left > 0 && error.is::<db::Error>() => {
                tracing::warn!(error = %format_args!("{error:#}"), "the end of a run waits for the database");
                tokio::time::sleep(backoff.next_delay()).await;
            }
            result => return result,
        }
    }
    Ok(None)
}
