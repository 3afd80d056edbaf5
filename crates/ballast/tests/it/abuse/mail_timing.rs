//! Does the time of a request for a mail tell whether there is an account?

use std::time::Duration;

use serde_json::json;

use super::timing::assert_alike;
use crate::support::TestApp;

/// As case A9, for the other two routes that a stranger asks about any address.
#[tokio::test(flavor = "multi_thread")]
async fn neither_the_answer_nor_the_time_tells_who_asks_for_a_mail_whether_there_is_an_account() {
    let app = TestApp::with(&[
        ("RATE_LIMIT_ACCOUNT_MAIL", "1000000/15m"),
        ("RATE_LIMIT_SIGNUP", "1000000/15m"),
        ("RATE_LIMIT_GLOBAL", "1000000/15m"),
    ])
    .await;
    let (known, disabled) = (app.user().await, app.user().await);
    let disable = sqlx::query("update users set disabled_at = now() where email = $1").bind(&disabled.email);
    disable.execute(app.database.pool()).await.unwrap();
    let caller = app.anonymous();
    for path in ["/v1/auth/sign-up", "/v1/auth/password/forgot"] {
        // They take a few milliseconds, which a busy machine can double for either.
        let expected = (202, Duration::from_millis(5));
        assert_alike(path, ["known", "unknown", "disabled"], expected, async |kind, round| {
            let email = match kind {
                0 => known.email.clone(),
                1 => format!("nobody{round}@example.com"),
                _ => disabled.email.clone(),
            };
            caller.post(path, json!({ "email": email })).await
        })
        .await;
    }
}
