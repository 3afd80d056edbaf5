//! Reads Redis for all viewers of this replica.
//!
//! There is one reader, however many runs and viewers there are: it waits for all streams that somebody views, and hands each
//! entry to the viewers of its run. It runs only while there are viewers. A viewer that is too slow loses its place in the
//! channel, not its entries: it reads them from the stream itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::runs::{Entry, EventId, Events};
use db::RedisError;
use runtime::{Lifecycle, Phase};
use tokio::sync::broadcast;
use uuid::Uuid;

/// How long the reader waits for entries at a time. Within the time of a call to Redis; and a run that is viewed for the first
/// time is not waited for before the next round.
const WAIT: Duration = Duration::from_millis(100);
/// Entries that a viewer may be behind before it has to read for itself.
const BEHIND: usize = 256;
/// After a failure.
const PAUSE: Duration = Duration::from_millis(250);

/// Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    events: Events,
    lifecycle: Lifecycle,
    board: Mutex<Board>,
}

#[derive(Debug, Default)]
struct Board {
    topics: HashMap<Uuid, Topic>,
    has_reader: bool,
}

/// A run that is viewed here.
#[derive(Debug)]
struct Topic {
    /// The last entry that was handed on.
    cursor: EventId,
    viewers: broadcast::Sender<Arc<Entry>>,
}

impl Hub {
    pub(super) fn new(events: Events, lifecycle: Lifecycle) -> Self {
        Self { inner: Arc::new(Inner { events, lifecycle, board: Mutex::default() }) }
    }

    /// From now on every new entry of this run comes here. What was there before is for the caller to read, afterwards.
    pub(super) async fn subscribe(&self, run: Uuid) -> Result<broadcast::Receiver<Arc<Entry>>, RedisError> {
        let cursor = self.inner.events.last_id(run).await?;
        let mut board = self.inner.lock();
        let topic = board
            .topics
            .entry(run)
            .or_insert_with(|| Topic { cursor, viewers: broadcast::Sender::new(BEHIND) });
        let receiver = topic.viewers.subscribe();
        if !std::mem::replace(&mut board.has_reader, true) {
            let reader = Reader { inner: self.inner.clone() };
            self.inner.lifecycle.spawn_task(reader.run());
        }
        Ok(receiver)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the streams that are viewed were read to; `None` ends the reader.
    fn cursors(&self) -> Option<HashMap<Uuid, EventId>> {
        let mut board = self.lock();
        board.topics.retain(|_, topic| topic.viewers.receiver_count() > 0);
        board.has_reader = !board.topics.is_empty() && self.lifecycle.phase() < Phase::LastCall;
        board.has_reader.then(|| board.topics.iter().map(|(run, topic)| (*run, topic.cursor)).collect())
    }

    fn hand_on(&self, run: Uuid, entries: Vec<Entry>) {
        let mut board = self.lock();
        let Some(topic) = board.topics.get_mut(&run) else { return };
        for entry in entries {
            topic.cursor = entry.id;
            let _ = topic.viewers.send(Arc::new(entry));
        }
    }
}

/// The reader while it runs. Should it panic, the next viewer starts another one.
struct Reader {
    inner: Arc<Inner>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.inner.lock().has_reader = false;
        }
    }
}

impl Reader {
    async fn run(self) {
        while let Some(cursors) = self.inner.cursors() {
            match self.inner.events.wait(&cursors, WAIT).await {
                Ok(news) => news.into_iter().for_each(|(run, entries)| self.inner.hand_on(run, entries)),
                Err(error) => {
                    tracing::debug!(%error, "the events of runs could not be read");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
