//! Request smuggling through the sample.

use super::{MS, Nginx, S};
use crate::{
    smuggling::{PATIENCE, target, vectors},
    support::{eventually, exchange},
};

/// Case H6, through the sample edge: nginx and we must agree on every byte. What a handler has done stands in nginx's log as a
/// request of its own, which went through its limits; nothing reaches a handler behind its back.
#[tokio::test(flavor = "multi_thread")]
async fn through_nginx_no_handler_sees_a_request_that_nginx_did_not_see() {
    let target = target();
    let nginx = Nginx::start(&[target.address.port()]).await;
    let (mut before, mut once) = (0, 0);
    for (name, _, bytes) in vectors() {
        target.effects.lock().unwrap().clear();
        let mut reply = exchange(nginx.plain, bytes.as_bytes(), PATIENCE).await;
        while reply.statuses().contains(&429) {
            tokio::time::sleep(MS(100)).await;
            reply = exchange(nginx.plain, bytes.as_bytes(), PATIENCE).await;
        }
        let effects = target.effects.lock().unwrap().clone();
        // The log may come a moment after the answer.
        let mut logged = Vec::new();
        let mut lines = before;
        eventually("nginx has logged it", S(5), async || {
            let log = nginx.access_log();
            lines = log.len();
            let passed = log[before..].iter().filter(|line| line["upstream"] != "" && line["status"] != 429);
            logged = passed.map(|line| line["path"].as_str().unwrap().to_owned()).collect();
            logged.len() >= effects.len()
        })
        .await;
        before = lines;
        let told = format!("{name}: {bytes:.200?}\nhandlers {effects:?}, nginx {logged:?}, {reply:?}");
        assert!(effects.iter().all(|path| logged.contains(path)) && effects.len() <= logged.len(), "{told}");
        assert!(!effects.is_empty() || reply.text.is_empty() || reply.status() >= 400, "{told}");
        if effects.is_empty() && !reply.text.is_empty() {
            reply.problem(reply.status());
        }
        once += usize::from(effects.len() == 1);
    }
    assert!(once > 10, "what is fine passes: {once}");
}
