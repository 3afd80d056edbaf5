//! What comes through, and what nginx itself answers.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{MS, NAME, Nginx, S, port};
use crate::support::{Answer, PASSWORD, TestApp, exchange, free_port};

/// Exactly once, whoever answers: a header that edge and API both add would be there twice.
fn has_each_header_once(answer: &Answer) {
    for name in [
        "strict-transport-security",
        "x-content-type-options",
        "content-security-policy",
        "referrer-policy",
        "cross-origin-resource-policy",
        "cache-control",
        "x-request-id",
    ] {
        assert_eq!(answer.headers.get_all(name).iter().count(), 1, "{name}: {:?}", answer.headers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_a_login_works_a_stream_arrives_token_by_token_and_only_ordinary_answers_are_compressed()
{
    let app = TestApp::start().await;
    let nginx = Nginx::start(&[port(&app)]).await;
    let client = nginx.client_at("127.0.0.1");
    let registered = app.user().await;
    let login = json!({ "email": registered.email, "password": PASSWORD });
    let tokens = registered.through(&client, &nginx.url()).post("/v1/auth/login", login).await.expect(200);
    let user =
        registered.through(&client, &nginx.url()).with_token(tokens.json()["access_token"].as_str().unwrap());
    has_each_header_once(&user.get("/v1/me").await.expect(200));

    // 40 tokens, one each 25 ms: a proxy that collects them would deliver all at once.
    let body = json!({
        "model": "sim-small", "stream": true,
        "messages": [{"role": "user", "content": "[[sim tokens=40 token-interval-ms=25]]"}],
    });
    let request = user.request(reqwest::Method::POST, "/v1/chat/completions").json(&body);
    let mut stream = request.header("accept-encoding", "gzip, br").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    assert_eq!(stream.headers().get("content-encoding"), None);
    let (started, mut pieces, mut text) = (std::time::Instant::now(), Vec::new(), String::new());
    while let Some(piece) = stream.chunk().await.unwrap() {
        pieces.push(started.elapsed());
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(pieces.len() > 20 && pieces[0] < *pieces.last().unwrap() / 2, "{pieces:?}");

    let request = user.request(reqwest::Method::GET, "/openapi.json").header("accept-encoding", "gzip");
    let page = request.send().await.unwrap();
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()["content-encoding"], "gzip");
    assert_eq!(page.headers()["vary"], "Accept-Encoding");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nginx_itself_answers_reads_like_the_apis_errors() {
    let nobody = free_port();
    let nginx = Nginx::start(&[nobody]).await;
    let client = nginx.client_at("127.0.0.1");
    let send = async |request: reqwest::RequestBuilder| Answer::read(request.send().await.unwrap()).await;
    let url = nginx.url();

    let down = send(client.get(format!("{url}/v1/me"))).await.problem(502, "unavailable");
    assert_eq!(down.header("retry-after"), "2");
    has_each_header_once(&down);
    let down = send(client.post(format!("{url}/v1/chat/completions")).body("{}")).await.expect(502);
    assert_eq!(down.header("content-type"), "application/json");
    let error = &down.json()["error"];
    assert_eq!(
        (&error["type"], &error["request_id"]),
        (&json!("server_error"), &json!(down.header("x-request-id")))
    );

    for (path, size, limit) in
        [("/v1/jobs", 300, "256 KiB"), ("/v1/auth/login", 5, "4 KiB"), ("/v1/responses", 9_000, "8 MiB")]
    {
        let answer = send(client.post(format!("{url}{path}")).body(vec![b'x'; size * 1024])).await;
        assert_eq!(answer.status, 413, "{path} has a limit of {limit}: {}", answer.text);
        has_each_header_once(&answer);
    }
    let long = send(client.get(format!("{url}/{}", "x".repeat(9_000)))).await;
    long.problem(414, "refused");
    let large = send(client.get(format!("{url}/")).header("x-large", "x".repeat(9_000))).await;
    large.problem(431, "refused");
    let broken = exchange(nginx.plain, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", S(3)).await;
    broken.problem(400);

    // Plain HTTP is sent to TLS, and who asks for another name gets no handshake.
    let redirect = client.get(format!("http://127.0.0.1:{}/v1/me?x=1", nginx.http)).send().await.unwrap();
    assert_eq!(redirect.status(), 308);
    assert_eq!(redirect.headers()["location"], "https://127.0.0.1/v1/me?x=1");
    let stranger = client.get(format!("https://127.0.0.1:{}/", nginx.tls)).send().await;
    assert!(stranger.is_err(), "{stranger:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_id_goes_through_nginx_the_api_and_both_logs() {
    let app = TestApp::start().await;
    let nginx = Nginx::start(&[port(&app)]).await;
    let client = nginx.client_at("127.0.0.1");
    let ask = async |id: &str| {
        let request = client.get(format!("{}/nope?secret=canary", nginx.url())).header("x-request-id", id);
        Answer::read(request.send().await.unwrap()).await.problem(404, "not_found")
    };
    let kept = ask("trace-0123.ABC_def").await;
    assert_eq!(kept.header("x-request-id"), "trace-0123.ABC_def");
    let replaced = ask("\"},{\"level\":\"error").await;
    let id = replaced.header("x-request-id").to_owned();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "nginx's own: {id}");
    let log = nginx.access_log();
    let ids: Vec<&str> = log.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["trace-0123.ABC_def", &id]);
    assert!(!format!("{log:?}").contains("canary"), "the query is in the log");
    assert!(log.iter().all(|line| line["path"] == "/nope" && line["status"] == 404), "{log:?}");
}

/// Takes one connection: answers 101 and echoes when it is asked for a WebSocket, otherwise 200 with the request's head.
async fn upgrading(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let head = String::from_utf8(head).unwrap();
            if head.to_ascii_lowercase().contains("upgrade: websocket") {
                let switch =
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.unwrap();
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            } else {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{head}",
                    head.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_to_websocket_passes_nginx_and_one_to_h2c_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap().port();
    tokio::spawn(upgrading(listener));
    let nginx = Nginx::start(&[upstream]).await;

    let mut socket = TcpStream::connect(nginx.plain).await.unwrap();
    let ask =
        format!("GET /socket HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n");
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 4096];
    let n = tokio::time::timeout(S(5), socket.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&buffer[..n]));
    socket.write_all(b"both ways").await.unwrap();
    let n = tokio::time::timeout(S(5), socket.read(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..n], b"both ways");

    let h2c = format!(
        "GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
    );
    let reply = exchange(nginx.plain, h2c.as_bytes(), MS(1_000)).await;
    assert_eq!(reply.status(), 200, "{reply:?}");
    let seen = reply.text.rsplit_once("\r\n\r\nGET ").unwrap().1.to_ascii_lowercase();
    assert!(!seen.contains("h2c") && !seen.contains("connection: upgrade"), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_only_for_the_addresses_that_site_http_conf_names() {
    let app = TestApp::start().await;
    let nginx = Nginx::start(&[port(&app)]).await;
    let inside = nginx.client_at("127.0.0.1").get(format!("{}/metrics", nginx.url())).send().await.unwrap();
    assert_eq!(inside.status(), 200, "development asks for no token");
    let outside = nginx.client_at("127.0.0.2").get(format!("{}/metrics", nginx.url())).send().await.unwrap();
    Answer::read(outside).await.problem(403, "forbidden");
    // No other way to write the path leads there.
    for path in [
        "//metrics",
        "/%6Detrics",
        "/./metrics",
        "/v1/../metrics",
        "/metrics/",
        "/metrics?x",
        "/livez/../metrics",
        "http://x/metrics",
        "/metrics;x",
        "/metrics%00",
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
        let reply = super::exchange_from("127.0.0.2", nginx.plain, head.as_bytes(), S(3)).await;
        assert!(matches!(reply.status(), 400 | 403 | 404), "{path}: {reply:?}");
    }
    let _: Value = app.anonymous().get("/health").await.expect(200).json();
}
