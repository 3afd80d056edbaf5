//! The exchange of signing keys, as the runbook says it (docs/runbooks/key-rotation.md), while requests run.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use tokio::sync::RwLock;

use crate::{
    cli::run,
    support::{Persona, TestApp},
};

/// `JWT_SIGNING_KEY` and its public half, fresh from keygen.
fn signing_key(kid: &str) -> (String, String) {
    let value = |text: &str| text.trim_end().split_once('=').unwrap().1.to_owned();
    let signing = value(&run(&["keygen", "--only", "JWT_SIGNING_KEY", "--kid", kid], &[]).1);
    let public = value(&run(&["keygen", "--public-half"], &[("JWT_SIGNING_KEY", &signing)]).1);
    (signing, public)
}

async fn published(app: &TestApp) -> BTreeSet<String> {
    let jwks = app.anonymous().get("/.well-known/jwks.json").await.expect(200).json();
    jwks["keys"].as_array().unwrap().iter().map(|k| k["kid"].as_str().unwrap().to_owned()).collect()
}

/// What stands behind the balancer at this moment, and the time, which must not move during a request.
struct Fleet {
    replicas: RwLock<[TestApp; 2]>,
    stop: AtomicBool,
    requests: AtomicUsize,
}

impl Fleet {
    /// A client as a good one is: refreshes in time, asks now this replica and now that one, and takes no 401.
    async fn client(&self, mut user: Persona, mut since: DateTime<Utc>) {
        for n in 0_usize.. {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let replicas = self.replicas.read().await;
            let replica = &replicas[n % 2];
            if replica.clock.now() - since > TimeDelta::minutes(10) {
                let body = json!({ "refresh_token": user.refresh_token });
                let tokens = replica.anonymous().post("/v1/auth/refresh", body).await.expect(200).json();
                since = replica.clock.now();
                user = user.with_token(tokens["access_token"].as_str().unwrap());
                tokens["refresh_token"].as_str().unwrap().clone_into(&mut user.refresh_token);
            }
            user.at(replica).get("/v1/me").await.expect(200);
            self.requests.fetch_add(1, Ordering::Relaxed);
            drop(replicas);
            tokio::task::yield_now().await;
        }
    }

    /// Replaces one replica after the other, with requests in between.
    async fn deploy(&self, vars: &[(&str, &str)]) {
        for n in 0..2 {
            let fresh = self.replicas.read().await[n].replica_with(vars);
            let old = std::mem::replace(&mut self.replicas.write().await[n], fresh);
            drop(old);
            self.some_requests().await;
        }
    }

    async fn some_requests(&self) {
        let target = self.requests.load(Ordering::Relaxed) + 20;
        let patience = std::time::Duration::from_secs(20);
        crate::support::eventually("requests go on", patience, async || {
            self.requests.load(Ordering::Relaxed) >= target
        })
        .await;
    }

    async fn published(&self) -> BTreeSet<String> {
        let replicas = self.replicas.read().await;
        let (one, other) = (published(&replicas[0]).await, published(&replicas[1]).await);
        assert_eq!(one, other, "both replicas publish the same");
        one
    }
}

/// Case A4.
#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_are_exchanged_in_four_steps_over_two_replicas_without_a_stray_401() {
    let ((first, first_public), (second, second_public)) =
        tokio::task::block_in_place(|| (signing_key("first"), signing_key("second")));
    let limits = [("RATE_LIMIT_GLOBAL", "1000000/15m"), ("RATE_LIMIT_REFRESH", "1000000/15m")];
    let app = TestApp::with(&[&limits[..], &[("JWT_SIGNING_KEY", &first)]].concat()).await;
    let mut users = Vec::new();
    for _ in 0..4 {
        users.push(app.user().await);
    }
    let old_token = app.log_in(&users[0].email).await;
    let clock = app.clock.clone();
    let kids = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let other = app.replica();
    let fleet = Arc::new(Fleet {
        replicas: RwLock::new([app, other]),
        stop: AtomicBool::default(),
        requests: AtomicUsize::default(),
    });
    let started = clock.now();
    let mut clients: Vec<_> = users
        .into_iter()
        .map(|user| {
            let fleet = fleet.clone();
            tokio::spawn(async move { fleet.client(user, started).await })
        })
        .collect();
    let advance = async |minutes: i64| {
        let held = fleet.replicas.write().await;
        clock.advance(TimeDelta::minutes(minutes));
        drop(held);
        fleet.some_requests().await;
    };
    fleet.some_requests().await;
    assert_eq!(fleet.published().await, kids(&["first"]));
    // 1. Publish: everybody knows the next key before anybody signs with it.
    fleet.deploy(&[("JWT_SIGNING_KEY", &first), ("JWT_VERIFY_KEYS", &second_public)]).await;
    assert_eq!(fleet.published().await, kids(&["first", "second"]));
    // 2. Sign with it; what the first one signed is still good.
    fleet.deploy(&[("JWT_SIGNING_KEY", &second), ("JWT_VERIFY_KEYS", &first_public)]).await;
    assert_eq!(fleet.published().await, kids(&["first", "second"]));
    old_token.at(&fleet.replicas.read().await[0]).get("/v1/me").await.expect(200);
    // 3. Retire: a token's life later nobody holds one of the first key.
    advance(11).await;
    advance(6).await;
    fleet.deploy(&[("JWT_SIGNING_KEY", &second), ("JWT_VERIFY_KEYS", "")]).await;
    // 4. Gone.
    assert_eq!(fleet.published().await, kids(&["second"]));
    fleet.stop.store(true, Ordering::Relaxed);
    for client in &mut clients {
        client.await.expect("no client saw anything but 200");
    }
    // Not for its age: with the clock back at its time, a token of the first key is refused for its key.
    clock.advance(TimeDelta::minutes(-17));
    for replica in fleet.replicas.read().await.iter() {
        old_token.at(replica).get("/v1/me").await.problem(401, "invalid_token");
    }
    assert!(fleet.requests.load(Ordering::Relaxed) > 200);
}

/// Case A4. `SERVER_SECRET` derives the next refresh token from the last: another one ends no session.
#[tokio::test]
async fn another_server_secret_ends_no_session() {
    let app = TestApp::start().await;
    let user = app.user().await;
    let secret = "11".repeat(31) + "22";
    let other = app.replica_with(&[("SERVER_SECRET", &secret)]);
    let mut token = user.refresh_token.clone();
    for replica in [&app, &other, &app, &other, &other] {
        let body = json!({ "refresh_token": token });
        let tokens = replica.anonymous().post("/v1/auth/refresh", body).await.expect(200).json();
        tokens["refresh_token"].as_str().unwrap().clone_into(&mut token);
        user.at(replica).get("/v1/me").await.expect(200);
    }
}
