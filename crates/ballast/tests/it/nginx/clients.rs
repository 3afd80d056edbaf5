//! Who the client is, told by nginx and believed by the API.

use serde_json::json;

use super::Nginx;
use crate::support::{Answer, PASSWORD, TestApp, insert_user};

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_address_reaches_audit_log_and_limits_through_nginx_and_forged_ones_do_not() {
    let app = TestApp::with(&[("TRUSTED_PROXY", "127.0.0.1/32"), ("RATE_LIMIT_SIGNUP", "2/1h")]).await;
    let nginx = Nginx::start(&[app.url.rsplit_once(':').unwrap().1.parse().unwrap()]).await;
    let post = async |ip: &str, path: &str, body: serde_json::Value, forged: &str| {
        let request = nginx.client_at(ip).post(format!("{}{path}", nginx.url())).json(&body);
        let request = request
            .header("x-forwarded-for", forged)
            .header("x-real-ip", forged)
            .header("forwarded", format!("for={forged}"));
        Answer::read(request.send().await.unwrap()).await
    };
    let address = |i: u8| json!({ "email": format!("edge{i}@example.com") });
    let mut seen = Vec::new();
    for i in 0..4 {
        // From another address each time, as far as the client's own headers go.
        seen.push(post("127.0.0.77", "/v1/auth/sign-up", address(i), &format!("10.1.1.{i}")).await.status);
    }
    assert_eq!(seen, [202, 202, 429, 429]);
    assert_eq!(post("127.0.0.78", "/v1/auth/sign-up", address(5), "127.0.0.77").await.status, 202);

    insert_user(app.database.pool(), "edge@example.com", "user").await;
    let account = json!({ "email": "edge@example.com", "password": PASSWORD });
    post("127.0.0.79", "/v1/auth/login", account, "9.9.9.9").await.expect(200);
    let ip: String =
        sqlx::query_scalar("select host(ip) from audit_log where event = 'login' order by id desc limit 1")
            .fetch_one(app.database.pool())
            .await
            .unwrap();
    assert_eq!(ip, "127.0.0.79");
}
