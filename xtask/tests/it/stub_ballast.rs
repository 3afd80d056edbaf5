//! A stand-in for the `ballast` program, so that the tests of `cargo stack` can make a part die, hang or drain slowly.
//!
//! `STUB_EVENTS` names a file that gets a line per event; `STUB_DIE=worker:7` lets the worker die with code 7 once
//! everything is up, `STUB_FAIL=migrate` lets that command fail, `STUB_STUBBORN=api` lets the API ignore SIGTERM.
#![expect(clippy::disallowed_methods, reason = "a stand-in for tests, driven by its environment")]

use std::env;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let role = arguments.first().map(String::as_str).unwrap_or_default();
    event(&format!("{role} started"));
    if variable("STUB_FAIL") == role {
        write(&mut std::io::stderr(), "this is why");
        return ExitCode::from(4);
    }
    match role {
        "migrate" => ExitCode::SUCCESS,
        "seed" => {
            let account = r#"{"email":"demo@example.com","password":"demo password","api_key":"stub-key"}"#;
            write(&mut std::io::stdout(), account);
            ExitCode::SUCCESS
        }
        "engine-sim" => serve(role, &arguments[2]),
        "api" | "worker" => serve(role, &variable("PORT")),
        _ => ExitCode::from(64),
    }
}

fn serve(role: &str, port: &str) -> ExitCode {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("the port is free");
    write(&mut std::io::stdout(), &format!("{role} listens on {port} as {}", variable("APP_ENV")));
    if let Some(code) = variable("STUB_DIE").strip_prefix(&format!("{role}:")) {
        let code = code.parse().expect("a number");
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(2));
            std::process::exit(code);
        });
    }
    let role_name = role.to_owned();
    std::thread::spawn(move || {
        let mut signals = Signals::new([SIGTERM]).expect("signals can be listened to");
        for _ in signals.forever() {
            event(&format!("{role_name} asked to stop"));
            if variable("STUB_STUBBORN") != role_name {
                std::thread::sleep(Duration::from_millis(300));
                event(&format!("{role_name} drained"));
                std::process::exit(0);
            }
        }
    });
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut line = String::new();
        let _ = BufReader::new(&stream).read_line(&mut line);
        write(&mut stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nok");
    }
    ExitCode::SUCCESS
}

fn write(to: &mut impl Write, line: &str) {
    // In one piece: several of us append to the same file.
    let _ = to.write_all(format!("{line}\n").as_bytes());
}

fn event(text: &str) {
    let Some(path) = env::var_os("STUB_EVENTS") else { return };
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).expect("the events file can be written");
    write(&mut file, text);
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
