//! Does the time of a refused login tell whether there is an account?

use std::time::Duration;

use serde_json::json;

use super::timing::assert_alike;
use crate::support::{PASSWORD, TestApp};

/// Hashed with less memory than ours: as an older release might have stored it.
const WEAKER: &str = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

/// Case A9.
#[tokio::test(flavor = "multi_thread")]
async fn neither_the_answer_nor_the_time_of_a_login_tells_whether_there_is_an_account() {
    let app =
        TestApp::with(&[("RATE_LIMIT_LOGIN", "1000000/15m"), ("RATE_LIMIT_GLOBAL", "1000000/15m")]).await;
    let (known, disabled, weaker) = (app.user().await, app.user().await, app.user().await);
    for (sql, user) in [
        ("update users set disabled_at = now() where email = $1", &disabled),
        (&*format!("update users set password_hash = '{WEAKER}' where email = $1"), &weaker),
    ] {
        let update = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).bind(&user.email);
        update.execute(app.database.pool()).await.unwrap();
    }
    let caller = app.anonymous();
    // Without the dummy hash an unknown account would be told twenty times as quickly; one with a weaker hash was.
    let expected = (401, Duration::ZERO);
    let kinds = ["known", "unknown", "disabled, with its right password", "known, with a weaker hash"];
    assert_alike("login refused", kinds, expected, async |kind, round| {
        let (email, password) = match kind {
            0 => (known.email.clone(), "a wrong password"),
            1 => (format!("nobody{round}@example.com"), "a wrong password"),
            // Everything but the last step is as for a login that succeeds.
            2 => (disabled.email.clone(), PASSWORD),
            _ => (weaker.email.clone(), "a wrong password"),
        };
        let answer = caller.post("/v1/auth/login", json!({ "email": email, "password": password })).await;
        answer.problem(401, "invalid_credentials")
    })
    .await;
}
