//! Real nginx with `deploy/nginx`, in front of real replicas.
//!
//! The sample is used as it is shipped: only ports, addresses and paths are put in, which `site/` is there for.

mod answers;
mod balancing;
mod clients;
mod defaults;
mod limits;
mod smuggling;

use std::{
    fs::{self, Permissions},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, net::TcpSocket};

use crate::support::{
    TestApp, certificates, eventually, free_port,
    raw::{Reply, read},
};

const S: fn(u64) -> Duration = Duration::from_secs;
const MS: fn(u64) -> Duration = Duration::from_millis;
const NAME: &str = "api.example.com";

/// A running nginx; ended when it goes out of scope.
pub(crate) struct Nginx {
    child: Child,
    dir: TempDir,
    ca: String,
    tls: u16,
    /// The same server without TLS, for raw bytes.
    pub(crate) plain: SocketAddr,
    /// Where plain HTTP is sent away.
    http: u16,
}

impl Nginx {
    /// In front of these ports of 127.0.0.1.
    pub(crate) async fn start(replicas: &[u16]) -> Self {
        Self::with(replicas, "").await
    }

    /// With more directives inside `http`.
    async fn with(replicas: &[u16], more: &str) -> Self {
        Self::edited(replicas, more, |conf| conf).await
    }

    /// With another `nginx.conf`.
    async fn edited(replicas: &[u16], more: &str, edit: impl FnOnce(String) -> String) -> Self {
        let program = tokio::task::spawn_blocking(test_support::nginx).await.unwrap();
        let (dir, ca) = files();
        let (tls, plain, http) = (free_port(), free_port(), free_port());
        configure(dir.path(), replicas, (tls, plain, http), more, &program);
        let conf = dir.path().join("nginx.conf");
        fs::write(&conf, edit(fs::read_to_string(&conf).unwrap())).unwrap();
        let child = nginx(&program, dir.path()).args(["-g", "daemon off;"]).spawn().unwrap();
        let started = Self { child, dir, ca, tls, plain: ([127, 0, 0, 1], plain).into(), http };
        eventually("nginx listens", S(10), async || {
            tokio::net::TcpStream::connect(started.plain).await.is_ok()
        })
        .await;
        started
    }

    /// The public address.
    fn url(&self) -> String {
        format!("https://{NAME}:{}", self.tls)
    }

    /// A client at this address of the loopback network.
    fn client_at(&self, ip: &str) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(self.ca.as_bytes()).unwrap();
        reqwest::Client::builder()
            .tls_certs_only([ca])
            .resolve(NAME, ([127, 0, 0, 1], self.tls).into())
            .local_address(ip.parse::<IpAddr>().unwrap())
            .redirect(reqwest::redirect::Policy::none())
            .timeout(S(30))
            .build()
            .unwrap()
    }

    /// What it has logged, one object per request; a line that is being written has no end yet.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("log/access.log")).unwrap();
        let written = text.rfind('\n').map_or("", |end| &text[..end]);
        written
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

/// Where the app listens.
fn port(app: &TestApp) -> u16 {
    app.url.rsplit_once(':').unwrap().1.parse().unwrap()
}

fn terminate(nginx: &mut Child) {
    let _ = kill(Pid::from_raw(nginx.id().cast_signed()), Signal::SIGTERM);
    let _ = nginx.wait();
}

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nginx")
}

/// A directory that nginx's workers may enter, who are nobody when the tests run as root, with a certificate in it.
fn files() -> (TempDir, String) {
    let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    for sub in ["log", "tls", "site", "temp"] {
        fs::create_dir(dir.path().join(sub)).unwrap();
    }
    let made = certificates(NAME);
    fs::write(dir.path().join("tls/fullchain.pem"), &made.certificate).unwrap();
    fs::write(dir.path().join("tls/privkey.pem"), &made.key).unwrap();
    (dir, made.ca)
}

/// Copies the sample, with these ports in the places that `site/` has for them.
fn configure(dir: &Path, replicas: &[u16], (tls, plain, http): (u16, u16, u16), more: &str, program: &Path) {
    let at = dir.display();
    let servers: Vec<String> = replicas
        .iter()
        .map(|port| format!("server 127.0.0.1:{port} max_fails=3 fail_timeout=10s;\n"))
        .collect();
    let temp: Vec<String> = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {at}/temp/{kind};\n"))
        .collect();
    let copy = |file: &str, changes: &[(&str, &str)], more: &str| {
        let mut text = fs::read_to_string(sample().join(file)).unwrap();
        for (from, to) in changes {
            assert!(text.contains(from), "{file} has no `{from}`");
            text = text.replace(from, to);
        }
        fs::write(dir.join(file), text + more).unwrap();
    };
    copy("nginx.conf", &[("/var/log/nginx", &format!("{at}/log"))], "");
    copy("answers.conf", &[], "");
    copy("problem.conf", &[], "");
    let changes = [
        ("    listen [::]:80 default_server;\n", ""),
        ("    listen [::]:443 ssl default_server;\n", ""),
        ("listen 80", &format!("listen 127.0.0.1:{http}")),
        ("listen 443", &format!("listen 127.0.0.1:{tls}")),
    ];
    copy("site/http.conf", &changes, &(temp.concat() + more));
    let sample_servers = [
        ("server api-1:8080 max_fails=3 fail_timeout=10s;\n", ""),
        ("server api-2:8080 max_fails=3 fail_timeout=10s;\n", &servers.concat()),
    ];
    copy("site/replicas.conf", &sample_servers, "");
    let (listen, more) = if takes_http2_in_listen(program) {
        (format!("listen 127.0.0.1:{tls} ssl http2"), String::new())
    } else {
        (format!("listen 127.0.0.1:{tls} ssl"), "http2 on;\n".to_owned())
    };
    let changes = [
        ("listen [::]:443 ssl http2;\n", ""),
        ("listen 443 ssl http2", listen.as_str()),
        ("/etc/nginx/tls", &format!("{at}/tls")),
    ];
    copy("site/server.conf", &changes, &format!("{more}listen 127.0.0.1:{plain};\n"));
}

/// As the comment in `site/server.conf` says: until 1.25.1.
fn takes_http2_in_listen(program: &Path) -> bool {
    let said = Command::new(program).arg("-v").output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let version = said.split_once("nginx/").map_or("", |(_, rest)| rest.trim());
    let mut numbers = version.split(['.', ' ']).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (1, 25, 1)
}

fn nginx(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    // The errors of the start, before the configuration says where they go.
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("log/start.log"));
    command.arg("-g").arg(format!("pid {};", dir.join("nginx.pid").display())).stdin(Stdio::null());
    command
}

#[test]
fn the_sample_for_nginx_passes_nginxs_own_check_without_a_warning() {
    let program = test_support::nginx();
    let (dir, _) = files();
    configure(dir.path(), &[8080, 8081], (free_port(), free_port(), free_port()), "", &program);
    let checked = nginx(&program, dir.path()).arg("-t").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.contains("test is successful"), "{said}");
    for level in ["[warn]", "[error]", "[crit]", "[alert]", "[emerg]"] {
        assert!(!said.contains(level), "{said}");
    }
}

/// What only the edge is asked for.
impl Reply {
    /// The last status, 0 without one.
    fn status(&self) -> u16 {
        self.statuses().last().copied().unwrap_or(0)
    }

    /// Asserts that the last answer is a problem document with this status.
    #[track_caller]
    fn problem(&self, status: u16) {
        assert_eq!(self.status(), status, "{self:?}");
        let head = self.text.to_ascii_lowercase();
        assert!(head.contains("content-type: application/problem+json"), "{self:?}");
        for name in ["x-request-id: ", "x-content-type-options: nosniff", "cache-control: no-store"] {
            assert!(head.contains(name), "no {name} in {self:?}");
        }
        let body = self.text.rsplit("\r\n\r\n").next().unwrap_or_default();
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert_eq!(body["status"], status, "{body}");
        assert!(!body["request_id"].as_str().unwrap_or_default().is_empty(), "{body}");
    }
}

/// As [`crate::support::exchange`], from another address of the loopback network.
async fn exchange_from(ip: &str, address: SocketAddr, bytes: &[u8], patience: Duration) -> Reply {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip.parse().unwrap(), 0)).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    read(stream, patience).await
}
