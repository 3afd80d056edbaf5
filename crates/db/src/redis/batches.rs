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

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::FromRedisValue as _;
    use futures_util::future::join_all;
    use test_support::test_redis;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::mpsc,
        task::JoinSet,
    };

    use super::*;

    fn redis_at(url: &str) -> Redis {
        let config = config::RedisConfig { url: url.into(), key_prefix: String::new(), pool_size: 8 };
        Redis::from_config(&config).unwrap()
    }

    fn command(words: &[&str]) -> Cmd {
        let mut command = Cmd::new();
        command.arg(words);
        command
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn commands_that_go_together_get_their_own_answers_and_one_that_fails_fails_alone() {
        let server = test_redis().await;
        let redis = redis_at(&server.url);
        let text = format!("{}text", server.prefix);
        exchange(&redis, command(&["SET", &text, "x", "PX", "60000"])).await.unwrap();
        let ask = async |i: usize| {
            if i.is_multiple_of(10) {
                let error = exchange(&redis, command(&["INCR", &text])).await.unwrap_err();
                assert!(matches!(error, RedisError::Failed(_)), "{error:?}");
            } else {
                let answer = exchange(&redis, command(&["ECHO", &i.to_string()])).await.unwrap();
                assert_eq!(String::from_redis_value(answer).unwrap(), i.to_string());
            }
        };
        join_all((1..1_000).map(ask)).await;
    }

    /// A Redis that lets clients connect, answers no `ECHO`, and tells how many came in each piece that it read.
    async fn unanswering(listener: TcpListener, told: mpsc::UnboundedSender<(usize, usize)>) {
        let mut connections = JoinSet::new();
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let told = told.clone();
            connections.spawn(async move {
                let mut got = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = stream.read(&mut got).await {
                    let text = String::from_utf8_lossy(&got[..length]);
                    match text.matches("ECHO").count() {
                        // Commands are arrays, and nothing else in these begins with a star.
                        0 => {
                            let answers = "+OK\r\n".repeat(text.matches('*').count());
                            stream.write_all(answers.as_bytes()).await.unwrap();
                        }
                        count => told.send((connection, count)).unwrap(),
                    }
                }
            });
        }
    }

    #[tokio::test]
    async fn what_waits_goes_in_one_piece_and_an_exchange_that_takes_long_does_not_hold_up_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let redis = redis_at(&format!("redis://{}", listener.local_addr().unwrap()));
        let (told, mut pieces) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(unanswering(listener, told));
        let mut ask = |count| {
            for _ in 0..count {
                let redis = redis.clone();
                tasks.spawn(async move { drop(exchange(&redis, command(&["ECHO", "1"])).await) });
            }
        };
        ask(50);
        assert_eq!(pieces.recv().await, Some((0, 50)));
        ask(1);
        assert_eq!(
            pieces.recv().await,
            Some((0, 1)),
            "over the same connection, so before the first have failed"
        );
    }

    /// Whoever gave up was told something else meanwhile: charging them would be wrong.
    #[tokio::test]
    async fn a_command_whose_caller_left_before_it_was_sent_is_not_sent() {
        let server = test_redis().await;
        let redis = redis_at(&server.url);
        let key = format!("{}left", server.prefix);
        let mut left = Box::pin(exchange(&redis, command(&["SET", &key, "x", "PX", "60000"])));
        assert!(futures_util::poll!(&mut left).is_pending());
        drop(left);
        let answer = exchange(&redis, command(&["EXISTS", &key])).await.unwrap();
        assert!(!bool::from_redis_value(answer).unwrap());
    }
}
