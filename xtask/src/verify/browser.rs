//! A real browser: `examples/runs.html` in a headless Chromium, with its EventSource and its fetch, against a stack of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use devstack::Unavailable;

use super::own_stack::OwnStack;
use super::{Bench, Outcome};
use crate::cargo;

pub(super) fn run(bench: &mut Bench) -> Result<Outcome> {
    if Command::new("chromedriver").arg("--version").output().is_err() {
        let text = "this step needs Chromium and its driver\n  - Debian: apt-get install chromium chromium-driver, or\n  \
                    - name the other steps with --only (--list shows them)";
        return Err(Unavailable(text.to_owned()).into());
    }
    let page = serve(bench.project.root().join("examples/runs.html"))?;
    let driver = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    // As long as the process: so is the server of the page.
    let vars = vec![("CORS_ALLOWED_ORIGINS", &*page.clone().leak())].leak();
    let stack = OwnStack::start_with(bench, vars)?;
    bench.ui.step("examples/runs.html in a browser");
    let mut command = Command::new("python3");
    command.arg(bench.project.root().join("xtask/browser/check.py"));
    command.envs(stack.exports.iter().map(|(name, value)| (name, value)));
    command.env("PAGE_URL", &page).env("DRIVER_PORT", driver);
    cargo::run_ok(&mut command)?;
    Ok(Outcome::Passed)
}

/// Answers every request with this page, for as long as the process lives; returns its origin.
fn serve(page: PathBuf) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    let origin = format!("http://127.0.0.1:{}", listener.local_addr()?.port());
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let page = fs::read(&page).unwrap_or_default();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                page.len()
            );
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&page));
        }
    });
    Ok(origin)
}
