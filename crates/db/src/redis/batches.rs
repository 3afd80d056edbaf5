//! Commands of many requests in one exchange: what comes while one is on its way goes together with the next.
//!
//! Alone a command goes at once. Under load the packets, the wake-ups and the reading are shared by all that wait, in this
//! process and in Redis (its manual calls it pipelining).

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use deadpool_redis::redis::{Cmd, Pipeline, Value, aio::ConnectionLike as _};
use tokio::sync::oneshot;

use super::{CALL, Redis, RedisError, blames_connection};

/// More than this do not go at once.
const LARGEST: usize = 256;
/// From then on the next exchange does not wait for this one: a server that is far away would take twice its time.
const PATIENCE: Duration = Duration::from_millis(2);

/// A command and who waits for its answer.
struct Waiting {
    command: Cmd,
    answer: oneshot::Sender<Result<Value, RedisError>>,
}

#[derive(Default)]
pub(super) struct Batches(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Somebody sends them.
    sending: bool,
}

impl Batches {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody sends. It ends whatever happens, a panic or the end of the runtime included: who waits is told by the end of their
/// channels.
struct Sending {
    redis: Redis,
    over: bool,
}

impl Sending {
    /// What waits now. Without anything the sending is over, and whoever comes next begins it anew.
    fn next(&mut self) -> Option<Vec<Waiting>> {
        let mut queue = self.redis.inner.batches.lock();
        let count = queue.waiting.len().min(LARGEST);
        (queue.sending, self.over) = (count > 0, count == 0);
        (count > 0).then(|| queue.waiting.drain(..count).collect())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.over {
            let mut queue = self.redis.inner.batches.lock();
            queue.sending = false;
            queue.waiting.clear();
        }
    }
}

/// Has this command sent, and returns its answer, which may be an error of Redis's.
#[expect(clippy::disallowed_methods, reason = "it lives as long as somebody waits for it")]
pub(super) async fn exchange(redis: &Redis, command: Cmd) -> Result<Value, RedisError> {
    let (answer, answered) = oneshot::channel();
    let first = {
        let mut queue = redis.inner.batches.lock();
        queue.waiting.push(Waiting { command, answer });
        !std::mem::replace(&mut queue.sending, true)
    };
    if first {
        tokio::spawn(send_all(Sending { redis: redis.clone(), over: false }));
    }
    answered.await.unwrap_or(Err(RedisError::Timeout))
}

/// Sends what waits until nothing does.
#[expect(clippy::disallowed_methods, reason = "it lives as long as somebody waits for it")]
async fn send_all(mut sending: Sending) {
    while let Some(batch) = sending.next() {
        let mut sent = Box::pin(send(sending.redis.clone(), batch));
        if tokio::time::timeout(PATIENCE, &mut sent).await.is_err() {
            tokio::spawn(sent);
        }
    }
}

async fn send(redis: Redis, batch: Vec<Waiting>) {
    let mut answers = Vec::with_capacity(batch.len());
    let exchanged = async {
        let mut connection = redis.hot_connection(&redis.inner.batched).await?;
        let mut pipeline = Pipeline::with_capacity(batch.len());
        // Who has given up by now is not charged.
        for Waiting { command, answer } in batch.into_iter().filter(|waiting| !waiting.answer.is_closed()) {
            pipeline.add_command(command);
            answers.push(answer);
        }
        if answers.is_empty() {
            return Ok(Vec::new());
        }
        let count = pipeline.len();
        connection.req_packed_commands(&pipeline, 0, count).await.map_err(RedisError::Failed)
    };
    let exchanged = tokio::time::timeout(CALL, exchanged).await.unwrap_or(Err(RedisError::Timeout));
    let answered: Vec<_> = match exchanged {
        Ok(values) => {
            values.into_iter().map(|value| value.extract_error().map_err(RedisError::Failed)).collect()
        }
        Err(error) => answers.iter().map(|_| Err(error.clone())).collect(),
    };
    // Once, however many tell the same of their connection.
    if answered.iter().any(blames_connection) {
        redis.inner.batched.set(None);
    }
    for (answer, answered) in answers.into_iter().zip(answered) {
        let _ = answer.send(answered);
    }
}
