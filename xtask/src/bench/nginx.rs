//! nginx with a fixed answer: what HTTP itself costs on this machine, by a server that does little else. And nginx as a proxy
//! without buffering: what passing a stream on costs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load;
use crate::http;

const START: Duration = Duration::from_secs(10);

/// The master and its workers; ended and deleted when dropped.
pub(super) struct Nginx {
    master: Child,
    dir: PathBuf,
    pub(super) port: u16,
}

impl Nginx {
    /// Starts one that answers everything with 200 and this many bytes; `None` where nginx is not installed.
    pub(super) fn start(body: usize) -> Result<Option<Self>> {
        Self::with(&format!("location / {{ return 200 {}; }}", "x".repeat(body)), "/")
    }

    /// Starts one that passes everything on to this port as it comes. It connects anew for each request.
    pub(super) fn proxy(port: u16) -> Result<Option<Self>> {
        let location = format!(
            "location = /up {{ return 200 up; }}
        location / {{
            proxy_pass http://127.0.0.1:{port};
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout 900s;
        }}"
        );
        Self::with(&location, "/up")
    }

    fn with(location: &str, probe: &'static str) -> Result<Option<Self>> {
        // Debian's is not in the path of those who are not root.
        let places = ["/usr/sbin/nginx", "/usr/local/bin/nginx", "/opt/homebrew/bin/nginx"];
        let Some(program) = places.iter().map(Path::new).find(|place| place.exists()) else {
            return Ok(None);
        };
        let port = devstack::ports::free_port(None)?;
        let dir = std::env::temp_dir().join(format!("bench-nginx-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let file = dir.join("nginx.conf");
        devstack::write_atomic(&file, &configuration(port, location))?;
        let mut command = Command::new(program);
        command.arg("-p").arg(&dir).arg("-c").arg(&file).args(["-e", "error.log"]);
        let master = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let master = master.with_context(|| format!("cannot start {}", program.display()))?;
        let mut nginx = Self { master, dir, port };
        nginx.wait_ready(probe)?;
        Ok(Some(nginx))
    }

    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = load::children(self.master.id())?;
        ensure!(!pids.is_empty(), "nginx runs without workers");
        pids.push(self.master.id());
        Ok(pids)
    }

    fn wait_ready(&mut self, probe: &str) -> Result<()> {
        let until = Instant::now() + START;
        while !http::get(self.port, probe).is_ok_and(|answer| answer.status == 200) {
            let ended = self.master.try_wait()?.is_some();
            let log = || std::fs::read_to_string(self.dir.join("error.log")).unwrap_or_default();
            ensure!(!ended && Instant::now() < until, "nginx does not answer:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not killed: its workers would stay.
        let _ = kill(Pid::from_raw(self.master.id().cast_signed()), Signal::SIGTERM);
        let _ = self.master.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn configuration(port: u16, location: &str) -> String {
    format!(
        "daemon off;
worker_processes auto;
pid nginx.pid;
error_log error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"
    )
}
