//! Commands of many requests in one exchange: what comes while one is on its way goes together with the next.
//!
//! Alone a command goes at once. Under load the packets, the wake-ups and the reading are shared by all that wait, in this
//! process and in Redis (its manual calls it pipelining).

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use deadpool_redis::redis::{Cmd, Pipeline, Value};
use tokio::sync::oneshot;

use super::{Redis, RedisError};

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

/// Ends the sending whatever happens: a panic, or the end of the runtime. Who waits is told by the end of their channels.
struct Sending<'a>(&'a Batches);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.sending = false;
        queue.waiting.clear();
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
        tokio::spawn(send_all(redis.clone()));
    }
    answered.await.unwrap_or(Err(RedisError::Timeout))
}

/// Sends what waits until nothing does.
#[expect(clippy::disallowed_methods, reason = "it lives as long as somebody waits for it")]
async fn send_all(redis: Redis) {
    let sending = Sending(&redis.inner.batches);
    loop {
        let batch = {
            let mut queue = redis.inner.batches.lock();
            if queue.waiting.is_empty() {
                queue.sending = false;
                // From here on somebody else may send.
                std::mem::forget(sending);
                return;
            }
            let count = queue.waiting.len().min(LARGEST);
            queue.waiting.drain(..count).collect()
        };
        let sent = tokio::spawn(send(redis.clone(), batch));
        let _ = tokio::time::timeout(PATIENCE, sent).await;
    }
}

async fn send(redis: Redis, batch: Vec<Waiting>) {
    let mut pipeline = Pipeline::with_capacity(batch.len());
    let mut answers = Vec::with_capacity(batch.len());
    // Who has given up by now is not charged.
    for Waiting { command, answer } in batch.into_iter().filter(|waiting| !waiting.answer.is_closed()) {
        pipeline.add_command(command);
        answers.push(answer);
    }
    if answers.is_empty() {
        return;
    }
    match redis.exchange(&pipeline).await {
        Ok(values) => {
            for (answer, value) in answers.into_iter().zip(values) {
                let value = value.extract_error().map_err(RedisError::Failed);
                redis.inner.batched.heed(&value);
                let _ = answer.send(value);
            }
        }
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(error.clone()));
            }
        }
    }
}
