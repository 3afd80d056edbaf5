//! What the person at the terminal sees. Output that nobody can read any more (a closed terminal, a pipe whose reader
//! left) is dropped: stopping the stack in order matters more.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Colors of the log prefixes: cyan, magenta, yellow, green, blue.
const COLORS: [u8; 5] = [36, 35, 33, 32, 34];

/// Step lines with the time since the start.
#[derive(Debug, Clone)]
pub(crate) struct Ui {
    started: Instant,
    color: bool,
}

impl Ui {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), color: colored() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// `  12.3s  text`
    pub(crate) fn step(&self, text: &str) {
        let time = format!("{:>6.1}s", self.elapsed().as_secs_f64());
        print(&format!("{}  {text}", self.paint(2, &time)));
    }

    /// Bold text.
    pub(crate) fn title(&self, text: &str) {
        print(&self.paint(1, text));
    }

    /// Something that went wrong and does not end the command.
    pub(crate) fn warn(&self, text: &str) {
        print(&self.paint(33, text));
    }

    /// A line of a child's log.
    pub(crate) fn log(&self, name: &str, color: usize, line: &str) {
        let prefix = self.paint(COLORS[color % COLORS.len()], &format!("{name:<8}|"));
        print(&format!("{prefix} {line}"));
    }

    fn paint(&self, code: u8, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Whether to use colors: a terminal, and nobody objects (<https://no-color.org>).
fn colored() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !set("NO_COLOR") && std::env::var("TERM").as_deref() != Ok("dumb")
}

/// Whether a person reads the output.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// A line on standard output.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// An error on standard error.
pub(crate) fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "error: {text}");
}
