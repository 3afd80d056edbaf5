//! Helpers for tests of code that enqueues or runs jobs.
//!
//! They panic with the reason when something is not as it should be: in a test there is nothing better to do.

use std::time::Duration;

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    JobSpec, Worker,
    ack::{self, Ack},
    claim,
    execute::{self, Stops},
    floor::Levels,
    held::Held,
    lease::Session,
};

/// Runs everything that is due, one job at a time in the test's own task, until nothing is. What these jobs enqueue is run
/// too; retries wait for their time (see [`fast_forward`]). Returns how many attempts ran.
pub async fn drain_until_empty(worker: &Worker) -> usize {
    let session = Session { id: Uuid::new_v4(), lost: CancellationToken::new() };
    let mut conn = worker.pool.acquire().await.expect("a connection for the test");
    sqlx::query!(
        "insert into worker (id, name, version, queues, lease_until)
         values ($1, 'drain_until_empty', '', '{}', now() + interval '1 hour')",
        session.id
    )
    .execute(&mut *conn)
    .await
    .expect("the worker is registered");
    let kinds: Vec<String> = worker.handlers.0.keys().map(|kind| (*kind).to_owned()).collect();
    let mut attempts = 0;
    loop {
        let queues = sqlx::query_scalar!(r#"select distinct queue from job where state = 'ready'"#)
            .fetch_all(&mut *conn)
            .await
            .expect("queues are listed");
        let before = attempts;
        for queue in queues {
            for job in claim::claim(&mut conn, session.id, &queue, &kinds, &Levels::FRONT, 1)
                .await
                .expect("jobs are claimed")
            {
                attempts += 1;
                let handler = worker.handlers.0[job.kind.as_str()].clone();
                let held = Held::default().add(job.key).expect("the only one");
                let (pool, stops) = (worker.pool.clone(), Stops::default());
                let pending = execute::run(job, held, handler, session.clone(), stops, pool).await;
                match pending.map(|p| p.ack) {
                    Some(Ack::Final(ack)) => {
                        ack::finish(&mut conn, &[&ack]).await.expect("acknowledged");
                    }
                    Some(Ack::Back(ack) | Ack::Confirm(ack)) => {
                        ack::give_back(&mut conn, &[&ack]).await.expect("acknowledged");
                    }
                    None => {}
                }
            }
        }
        if attempts == before {
            sqlx::query!("delete from worker where id = $1", session.id)
                .execute(&mut *conn)
                .await
                .expect("deleted");
            return attempts;
        }
    }
}

/// The payload of the newest live job of this kind; panics when there is none.
pub async fn assert_enqueued<J: JobSpec>(conn: &mut PgConnection) -> J {
    let args = sqlx::query_scalar!("select args from job where kind = $1 order by id desc limit 1", J::NAME)
        .fetch_optional(conn)
        .await
        .expect("jobs are listed");
    let Some(args) = args else { panic!("no {} job is enqueued", J::NAME) };
    serde_json::from_value(args).unwrap_or_else(|e| panic!("the {} job's payload does not fit: {e}", J::NAME))
}

/// Panics when a live job of this kind is there.
pub async fn assert_not_enqueued<J: JobSpec>(conn: &mut PgConnection) {
    let n = sqlx::query_scalar!(r#"select count(*) as "n!" from job where kind = $1"#, J::NAME)
        .fetch_one(conn)
        .await
        .expect("jobs are counted");
    assert_eq!(n, 0, "{} {} jobs are enqueued", n, J::NAME);
}

/// Moves the queue's clock: everything is as it would be after this time, without waiting. Leases are left alone, and of the
/// decided ticks only the last of each line is kept.
pub async fn fast_forward(conn: &mut PgConnection, time: Duration) {
    let seconds = time.as_secs_f64();
    sqlx::query!("update job set run_at = run_at - $1::float8 * interval '1 s'", seconds)
        .execute(&mut *conn)
        .await
        .expect("jobs are moved");
    sqlx::query!("update job_unique set expires_at = expires_at - $1::float8 * interval '1 s'", seconds)
        .execute(&mut *conn)
        .await
        .expect("unique keys are moved");
    // A moved tick would collide with its predecessor. Whole seconds, as ticks are.
    sqlx::query!(
        "delete from cron_tick t
         where exists (select from cron_tick later where later.name = t.name and later.tick > t.tick)"
    )
    .execute(&mut *conn)
    .await
    .expect("old ticks are deleted");
    sqlx::query!("update cron_tick set tick = tick - floor($1::float8) * interval '1 s'", seconds)
        .execute(&mut *conn)
        .await
        .expect("ticks are moved");
    sqlx::query!("update cron_line set registered_at = registered_at - $1::float8 * interval '1 s'", seconds)
        .execute(conn)
        .await
        .expect("cron lines are moved");
}
