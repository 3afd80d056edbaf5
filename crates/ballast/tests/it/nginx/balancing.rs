//! Several replicas behind nginx.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use nix::sys::signal::Signal;

use super::{Nginx, S};
use crate::support::{Deployment, eventually, free_port, ready};

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_the_death_of_a_replica_fails_no_get_and_it_is_used_again_when_it_is_back() {
    let deployment = Deployment::new().await;
    let (one, two) = (free_port(), free_port());
    let roomy = [
        ("RATE_LIMIT_GLOBAL", "1000000/1m"),
        ("TRUSTED_PROXY", "127.0.0.1/32"),
        // Ten ask at a time, and there are five connections.
        ("DATABASE_ACQUIRE_TIMEOUT", "20s"),
    ];
    let start = |port| deployment.start("api", port, &roomy);
    let (_first, mut second) = (start(one), start(two));
    tokio::join!(ready(one), ready(two));
    let nginx = Nginx::start(&[one, two]).await;
    let url = nginx.url();
    let token = deployment.user_at(one).await.token().to_owned();

    // Ten clients with a hundred requests each, which is what the zone lets through at once.
    let done = AtomicUsize::new(0);
    let killing = async {
        eventually("the load is under way", S(20), async || done.load(Ordering::Relaxed) > 300).await;
        second.signal(Signal::SIGKILL);
        second.wait(S(5)).await;
        done.load(Ordering::Relaxed)
    };
    let load = join_all((0..10).map(|i| {
        let client = nginx.client_at(&format!("127.0.1.{}", i + 1));
        let (url, token, done) = (&url, &token, &done);
        async move {
            let mut statuses = BTreeSet::new();
            for _ in 0..100 {
                let request = client.get(format!("{url}/v1/me")).bearer_auth(token);
                statuses.insert(request.send().await.unwrap().status().as_u16());
                done.fetch_add(1, Ordering::Relaxed);
            }
            statuses
        }
    }));
    let (before, statuses) = tokio::join!(killing, load);
    assert!(before < 900, "it was killed under load: {before} were done");
    assert!(statuses.iter().all(|seen| *seen == BTreeSet::from([200])), "{statuses:?}");

    let log = nginx.access_log();
    let asked = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        log.iter().filter(|line| line["upstream"] == address && line["path"] == "/v1/me").count()
    };
    assert!(asked(one) > 300 && asked(two) > 50, "both were asked: {} and {}", asked(one), asked(two));
    let twice = log.iter().filter(|line| line["upstream"].as_str().unwrap().contains(", ")).count();
    assert!(twice >= 1, "who met the dead one was sent to the other");
    assert!(twice <= 60, "after three failures nobody is sent to the dead one for ten seconds: {twice}");

    let _back = start(two);
    ready(two).await;
    let probe = nginx.client_at("127.0.2.1");
    eventually("the replica is asked again", S(20), async || {
        let request = probe.get(format!("{url}/v1/me")).bearer_auth(&token);
        assert_eq!(request.send().await.unwrap().status(), 200);
        let last = nginx.access_log().pop().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(80)).await;
        last["upstream"] == format!("127.0.0.1:{two}")
    })
    .await;
}
