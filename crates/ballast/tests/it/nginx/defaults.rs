//! nginx as somebody has it who never thought of event streams: `proxy_pass` and nothing else.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Instant,
};

use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{MS, S, port};
use crate::support::{Persona, TestApp, eventually, free_port};

struct Plain {
    child: Child,
    _dir: TempDir,
    url: String,
}

impl Plain {
    /// Buffering as it is by default, compression on, and a read timeout that is shorter than an engine may be silent.
    async fn start(upstream: u16) -> Self {
        let program = tokio::task::spawn_blocking(test_support::nginx).await.unwrap();
        let (dir, _) = super::files();
        let (at, port) = (dir.path().display(), free_port());
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {at}/temp/{kind};\n"))
            .concat();
        let config = format!(
            "worker_processes 1;
             error_log {at}/log/error.log;
             events {{}}
             http {{
                 access_log off;
                 {temp}
                 gzip on;
                 gzip_proxied any;
                 server {{
                     listen 127.0.0.1:{port};
                     location / {{
                         proxy_pass http://127.0.0.1:{upstream};
                         proxy_read_timeout 20s;
                     }}
                 }}
             }}"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command: Command = super::nginx(&program, dir.path());
        let child = command.args(["-g", "daemon off;"]).stderr(Stdio::null()).spawn().unwrap();
        eventually("nginx listens", S(10), async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self { child, _dir: dir, url: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        super::terminate(&mut self.child);
    }
}

async fn open(user: &Persona, url: &str, settings: &str, accepted: &str) -> Response {
    let body: Value = json!({
        "model": "sim-small", "stream": true,
        "messages": [{"role": "user", "content": format!("[[sim {settings}]] 漢字😀")}],
    });
    let request = Client::new().post(format!("{url}/v1/chat/completions")).bearer_auth(user.token());
    let response = request.header("accept-encoding", accepted).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("content-encoding"), "{accepted}");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_with_default_buffering_events_arrive_as_they_come_whatever_encoding_is_accepted() {
    let app = TestApp::start().await;
    let nginx = Plain::start(port(&app)).await;
    let user = app.user().await;
    let mut texts = vec![];
    for accepted in ["identity", "zstd", "br", "gzip", "zstd, br, gzip"] {
        let mut response = open(&user, &nginx.url, "tokens=20 token-interval-ms=100", accepted).await;
        let (started, mut arrivals, mut text) = (Instant::now(), vec![], vec![]);
        while let Some(chunk) = response.chunk().await.unwrap() {
            arrivals.push(started.elapsed());
            text.extend_from_slice(&chunk);
        }
        // Two seconds of tokens: collected by a buffer, they would come together.
        assert!(arrivals.len() >= 15, "{accepted}: {arrivals:?}");
        let (first, last) = (arrivals[0], arrivals[arrivals.len() - 1]);
        assert!(last.checked_sub(first).unwrap() > MS(1_400), "{accepted}: {arrivals:?}");
        let longest = arrivals.windows(2).map(|pair| pair[1].checked_sub(pair[0]).unwrap()).max().unwrap();
        assert!(longest < MS(1_000), "{accepted}: {arrivals:?}");
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        texts.push(text);
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_nginx_with_a_read_timeout_of_20_s_a_stream_survives_45_s_of_silence() {
    let app = TestApp::start().await;
    let nginx = Plain::start(port(&app)).await;
    let user = app.user().await;
    let read = async |settings: &str| {
        let started = Instant::now();
        let text = open(&user, &nginx.url, settings, "gzip").await.text().await.unwrap();
        assert!(started.elapsed() > S(44), "{settings}: {:?}", started.elapsed());
        assert!(text.ends_with("data: [DONE]\n\n"), "{settings}: {text}");
        assert!(text.matches(": ping\n\n").count() >= 2, "{settings}: {text}");
        assert!(!text.contains("error"), "{settings}: {text}");
    };
    // Before the first token, and in the middle.
    tokio::join!(read("first-token-ms=45000 tokens=2"), read("tokens=2 token-interval-ms=45000"));
    assert_eq!(app.state.ai.open(), 0);
}
