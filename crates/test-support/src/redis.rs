//! A part of Redis for each test.

use deadpool_redis::redis::Client;
use deadpool_redis::redis::aio::MultiplexedConnection;
use uuid::Uuid;

use crate::services::services;

/// The test Redis and a key prefix that no other test has.
#[derive(Debug, Clone)]
pub struct TestRedis {
    /// Address, password included.
    pub url: String,
    /// To be put in front of every key; ends with a colon.
    pub prefix: String,
}

/// The test Redis with a new prefix.
pub async fn test_redis() -> TestRedis {
    let url = services().await.redis_url.clone();
    TestRedis { url, prefix: format!("test:{}:", Uuid::new_v4().simple()) }
}

impl TestRedis {
    /// A connection for looking at keys.
    pub async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.url.as_str()).expect("the URL of the test Redis");
        client.get_multiplexed_async_connection().await.expect("the test Redis answers")
    }
}
