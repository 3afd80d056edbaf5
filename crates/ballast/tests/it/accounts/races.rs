//! What must hold when two things happen to an account at the same moment. Case A7 and its neighbours.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use super::{audited, count, login, refresh, reset_token};
use crate::support::{PASSWORD, Persona, TestApp, mail_to, token_in};

const ROUNDS: usize = 100;

fn app() -> impl Future<Output = TestApp> {
    let roomy = [
        ("RATE_LIMIT_LOGIN", "10000/1h"),
        ("RATE_LIMIT_REFRESH", "10000/1h"),
        ("RATE_LIMIT_SIGNUP", "10000/1h"),
        ("RATE_LIMIT_ACCOUNT_MAIL", "10000/1h"),
        ("PASSWORD_HASH_CONCURRENCY", "8"),
    ];
    async move { TestApp::with(&roomy).await }
}

/// One for each round, each with a token to reset the password; the mails go out together.
async fn users_with_reset_tokens(app: &TestApp) -> Vec<(Persona, String)> {
    let mut users = Vec::new();
    for _ in 0..ROUNDS {
        let user = app.user().await;
        user.post("/v1/auth/password/forgot", json!({ "email": user.email })).await.expect(202);
        users.push(user);
    }
    app.run_pending_jobs().await;
    let mut ready = Vec::new();
    for user in users {
        let mail = mail_to(app.database.pool(), &user.email).await.unwrap();
        ready.push((user, token_in(&mail)));
    }
    ready
}

/// After a password is changed or reset, nobody is in who came with the old one.
async fn is_out(app: &TestApp, tokens: &serde_json::Value) {
    let access = app.anonymous().with_token(tokens["access_token"].as_str().unwrap());
    access.get("/v1/me").await.expect(401);
    assert_eq!(refresh(app, tokens["refresh_token"].as_str().unwrap()).await.0, 401);
}

/// Case A7, a hundred rounds over two replicas.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_with_the_old_password_does_not_outlive_its_reset() {
    let app = app().await;
    let other = app.replica();
    for (user, token) in users_with_reset_tokens(&app).await {
        let body = json!({ "token": token, "password": "another password" });
        let stranger = app.anonymous();
        let (done, logins) = tokio::join!(
            stranger.post("/v1/auth/password/reset", body),
            join_all((0..2).map(|_| login(&other, &user.email, PASSWORD))),
        );
        done.expect(204);
        for (status, tokens) in logins {
            assert!(status == 200 || status == 401, "{status}: {tokens}");
            if status == 200 {
                is_out(&other, &tokens).await;
            }
        }
    }
}

/// Case A7: a hundred rounds over two replicas, and what came of them after the restart of both.
#[tokio::test(flavor = "multi_thread")]
async fn refresh_may_race_with_a_change_of_the_password_but_the_change_wins() {
    let app = app().await;
    let other = app.replica();
    let user = app.user().await;
    let (mut now, mut next) = (PASSWORD, "another password");
    let mut refreshed = Vec::new();
    for round in 0..ROUNDS as u64 {
        let (status, elsewhere) = login(&app, &user.email, now).await;
        assert_eq!(status, 200, "{elsewhere}");
        let token = elsewhere["refresh_token"].as_str().unwrap();
        let body = json!({ "current_password": now, "new_password": next });
        // Before the change, in the middle of it, and after it.
        let late = Duration::from_millis(round % 20 * 5);
        let refreshing = async {
            tokio::time::sleep(late).await;
            refresh(&other, token).await
        };
        let ((status, tokens), changed) = tokio::join!(refreshing, user.post("/v1/auth/password", body));
        changed.expect(204);
        if status == 200 {
            is_out(&other, &tokens).await;
            refreshed.push(tokens);
        } else {
            assert_eq!(status, 401, "{tokens}");
        }
        user.get("/v1/me").await.expect(200);
        (now, next) = (next, now);
    }
    let first = refreshed.len();
    assert!((1..ROUNDS).contains(&first), "each side was first now and then: the refresh {first} times");
    let restarted = [app.replica(), other.replica()];
    drop((app, other));
    for tokens in &refreshed {
        for replica in &restarted {
            is_out(replica, tokens).await;
        }
    }
}

/// Case A7.
#[tokio::test(flavor = "multi_thread")]
async fn one_reset_token_sets_one_password_however_many_try_at_once() {
    let app = app().await;
    let other = app.replica();
    let user = app.user().await;
    let token = reset_token(&app, &user.email).await;
    let password = |i: usize| format!("password number {i}");
    let answers = join_all((0..10).map(|i| {
        let body = json!({ "token": token, "password": password(i) });
        let replica = if i % 2 == 0 { &app } else { &other };
        async move { replica.anonymous().post("/v1/auth/password/reset", body).await.status }
    }))
    .await;
    let winners: Vec<_> = (0..10).filter(|i| answers[*i] == 204).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    assert!(answers.iter().all(|s| [204, 403, 503].contains(s)), "{answers:?}");
    for i in 0..10 {
        let status = login(&app, &user.email, &password(i)).await.0;
        assert_eq!(status == 200, i == winners[0], "{i}: {status}");
    }
    assert_eq!(audited(&app, "password_reset").await, 1);
}

/// Case A7, a hundred rounds over two replicas.
#[tokio::test(flavor = "multi_thread")]
async fn everything_that_ends_sessions_at_once_ends_them_and_deadlocks_nobody() {
    let app = app().await;
    let other = app.replica();
    for (user, token) in users_with_reset_tokens(&app).await {
        let mut sessions = vec![user.clone()];
        for _ in 0..3 {
            sessions.push(app.session_of(&user).await);
        }
        let reset = json!({ "token": token, "password": "another password" });
        let change = json!({ "current_password": PASSWORD, "new_password": "a third password" });
        let (stranger, one, two) = (app.anonymous(), sessions[1].at(&other), sessions[2].at(&other));
        let answers = tokio::join!(
            stranger.post("/v1/auth/password/reset", reset),
            sessions[0].post("/v1/auth/password", change),
            one.post("/v1/auth/logout-all", json!({})),
            two.post("/v1/auth/logout-all", json!({})),
            refresh(&other, &sessions[3].refresh_token),
        );
        let statuses = [answers.0.status, answers.1.status, answers.2.status, answers.3.status, answers.4.0];
        assert!(statuses.iter().all(|s| [200, 204, 401, 403, 409].contains(s)), "{statuses:?}");
        // Either the password was reset, or the change came first and voided the mail.
        assert!(statuses[0] == 204 || statuses[1] == 204, "{statuses:?}");
        // Every session ended, but that of who changed the password last.
        let left = count(
            &app,
            &format!(
                "session s join users u on u.id = s.user_id where s.revoked_at is null and u.email = '{}'",
                user.email
            ),
        )
        .await;
        assert!(left <= 1, "{statuses:?}");
        for session in &sessions[1..] {
            session.get("/v1/me").await.expect(401);
        }
    }
}
