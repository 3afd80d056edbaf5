//! A Redis that a test may kill, pause, and tell to misbehave, and whose clock it may set.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::support::free_port;

pub(super) struct RedisServer {
    child: Child,
    port: u16,
    dir: TempDir,
    vars: Vec<(String, String)>,
}

impl RedisServer {
    pub(super) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With these environment variables.
    pub(super) async fn start_with(vars: &[(&str, &str)]) -> Self {
        let vars: Vec<_> =
            vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (port, dir) = (free_port(), TempDir::new().unwrap());
        let child = spawn(port, &dir, &vars, &[]);
        let server = Self { child, port, dir, vars };
        server.answers().await;
        server
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Takes its directory away, so that it can save nothing.
    pub(super) fn lose_directory(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Kills it without a word.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after it was killed, on the same port, without waiting for it.
    pub(super) fn start_again(&mut self, settings: &[&str]) {
        self.child = spawn(self.port, &self.dir, &self.vars, settings);
    }

    /// Waits until it answers.
    pub(super) async fn answers(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        let client = db::redis_client::Client::open(self.url()).unwrap();
        while client.get_multiplexed_async_connection().await.is_err() {
            assert!(Instant::now() < until, "no redis on port {}", self.port);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &TempDir, vars: &[(String, String)], settings: &[&str]) -> Child {
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let programs = ["redis-server", "valkey-server"].iter();
    let started = programs.filter_map(|program| {
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--dir"]);
        command.arg(&data).args(settings).envs(vars.iter().cloned());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
    });
    started.into_iter().next().expect("redis-server or valkey-server is installed")
}
