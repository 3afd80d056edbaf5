//! Wake-ups: notifications of new work and of cancellations. They only make things quick; what gets lost is found by the
//! poll.

use std::{collections::HashMap, sync::Arc, time::Duration};

use runtime::backoff::Backoff;
use sqlx::{
    Executor as _, PgPool,
    postgres::{PgConnectOptions, PgListener, PgNotification, PgPoolOptions},
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::held::Held;

/// Payload: the queue.
const JOBS: &str = "jobs";
/// Payload: the job's id.
const CANCEL: &str = "jobs_cancel";
/// A silent connection is tried after this long: nothing else would notice that the server has vanished.
const SILENCE: Duration = Duration::from_secs(30);

/// Who is to be woken.
pub(crate) struct Wakes {
    pub(crate) queues: HashMap<String, Arc<Notify>>,
    pub(crate) held: Held,
}

impl Wakes {
    /// Nobody knows what was not heard.
    fn everyone(&self) {
        self.queues.values().for_each(|queue| queue.notify_one());
        self.held.look_for_cancellations();
    }

    fn by(&self, notification: &PgNotification) {
        match (notification.channel(), notification.payload()) {
            (JOBS, queue) => {
                if let Some(queue) = self.queues.get(queue) {
                    queue.notify_one();
                }
            }
            (_, id) => {
                if let Ok(id) = id.parse() {
                    self.held.cancel(id);
                }
            }
        }
    }
}

/// Listens until stopped, and connects again whatever happens. Needs a connection to Postgres itself: a transaction
/// pooler does not pass notifications on.
pub(crate) async fn run(options: PgConnectOptions, wakes: Wakes, stop: CancellationToken) {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(options);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let work = async {
        loop {
            let Err(error) = listen(&pool, &wakes, &mut backoff).await;
            tracing::warn!(%error, "not listening for new jobs, the poll goes on");
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

async fn listen(
    pool: &PgPool,
    wakes: &Wakes,
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([JOBS, CANCEL]).await?;
    backoff.reset();
    // What came before we listened was not heard.
    wakes.everyone();
    loop {
        match timeout(SILENCE, listener.try_recv()).await {
            Ok(notification) => match notification? {
                Some(notification) => wakes.by(&notification),
                // The connection was lost and made again.
                None => wakes.everyone(),
            },
            Err(_silent) => {
                let alive = timeout(Duration::from_secs(5), listener.execute("select 1")).await;
                alive.map_err(|_| sqlx::Error::PoolTimedOut)??;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn after_a_time_of_deafness_both_work_and_cancellations_are_looked_for() {
        let (queue, held) = (Arc::new(Notify::new()), Held::default());
        let wakes = Wakes { queues: [("default".to_owned(), queue.clone())].into(), held: held.clone() };
        wakes.everyone();
        assert!(queue.notified().now_or_never().is_some());
        assert!(held.looked_for().now_or_never().is_some());
    }
}
