//! What the processes hold, looked at when all is well, and whether it grows.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stand::Stand;
use crate::ui::Ui;

/// A median may move by so much of itself,
const FLAT: f64 = 0.05;
/// or by this, where that is more: an allocator, and requests that happen to be under way.
const SLACK: [(&str, f64); 5] = [
    ("MiB", 4.0),
    ("files", 8.0),
    ("threads", 2.0),
    ("postgres connections", 4.0),
    ("redis connections", 4.0),
];

/// A thing that is measured, and its figures in the order in which they were taken.
#[derive(Debug)]
struct Series {
    of: &'static str,
    what: &'static str,
    figures: Vec<f64>,
}

/// See the module.
pub(super) struct Watch {
    series: Vec<Series>,
}

impl Watch {
    pub(super) fn new(stand: &Stand) -> Result<Self> {
        let mut watch = Self { series: Vec::new() };
        watch.look(stand).context("a soak needs Linux: it reads /proc")?;
        // The first look is before the load.
        watch.series.iter_mut().for_each(|series| series.figures.clear());
        Ok(watch)
    }

    pub(super) fn look(&mut self, stand: &Stand) -> Result<()> {
        for (name, pid) in stand.survivors() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let field = |wanted: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'));
                line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
            };
            self.note(name, "MiB", field("VmRSS").context("no VmRSS")? / 1024.0);
            self.note(name, "threads", field("Threads").context("no Threads")?);
            let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
            self.note(name, "files", files as f64);
        }
        let query = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
        let connections = stand.sql(query)?.parse().context("no number of connections")?;
        self.note("postgres", "postgres connections", connections);
        self.note("redis", "redis connections", redis_connections(&stand.throwaway.services.redis.url)?);
        Ok(())
    }

    fn note(&mut self, of: &'static str, what: &'static str, figure: f64) {
        if let Some(series) = self.series.iter_mut().find(|series| (series.of, series.what) == (of, what)) {
            series.figures.push(figure);
        } else {
            self.series.push(Series { of, what, figures: vec![figure] });
        }
    }

    /// The newest figures.
    pub(super) fn last(&self) -> String {
        let told = self.series.iter().filter_map(|series| {
            series.figures.last().map(|figure| format!("{} {figure:.0} {}", series.of, series.what))
        });
        told.collect::<Vec<_>>().join(", ")
    }

    /// Compares the second third of the run with the last; the first is for caches to fill.
    pub(super) fn verdict(&self, ui: &Ui) -> Result<()> {
        let mut grown = Vec::new();
        for series in &self.series {
            let (before, after) = series.medians().context("too few looks to say anything")?;
            ui.step(&format!(
                "{}: {before:.1} {} in the middle, {after:.1} at the end",
                series.of, series.what
            ));
            if !series.is_flat() {
                grown.push(format!("{} {}: from {before:.1} to {after:.1}", series.of, series.what));
            }
        }
        ensure!(grown.is_empty(), "it grows: {}", grown.join("; "));
        Ok(())
    }
}

impl Series {
    fn medians(&self) -> Option<(f64, f64)> {
        let third = self.figures.len() / 3;
        let middle = self.figures.get(third..2 * third).filter(|figures| !figures.is_empty())?;
        Some((median(middle), median(&self.figures[2 * third..])))
    }

    fn is_flat(&self) -> bool {
        let slack = SLACK.iter().find(|(what, _)| *what == self.what).map_or(0.0, |(_, slack)| *slack);
        self.medians().is_some_and(|(before, after)| after <= before + (before * FLAT).max(slack))
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// By Redis's own word (`INFO clients`), without this connection.
fn redis_connections(url: &str) -> Result<f64> {
    let rest = url.strip_prefix("redis://").context("no address of Redis")?;
    let (user, address) = rest.rsplit_once('@').unwrap_or(("", rest));
    let password = user.rsplit_once(':').map_or(user, |(_, password)| password);
    let port = address.split('/').next().and_then(|address| address.rsplit_once(':')?.1.parse::<u16>().ok());
    let port = port.context("no port of Redis")?;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("Redis does not answer")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    if !password.is_empty() {
        write!(stream, "AUTH {password}\r\n")?;
    }
    write!(stream, "INFO clients\r\nQUIT\r\n")?;
    for line in BufReader::new(stream).lines() {
        if let Some(count) = line?.strip_prefix("connected_clients:") {
            return Ok(count.trim().parse::<f64>()? - 1.0);
        }
    }
    anyhow::bail!("Redis does not say how many clients it has")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(what: &'static str, figures: impl IntoIterator<Item = u32>) -> Series {
        Series { of: "it", what, figures: figures.into_iter().map(f64::from).collect() }
    }

    #[test]
    fn what_grows_all_the_time_is_told_and_what_fills_up_at_first_is_not() {
        assert!(!series("MiB", (0..90).map(|look| 100 + look)).is_flat());
        assert!(series("MiB", (0..90).map(|look| 100 + look.min(30))).is_flat());
        assert!(!series("files", (0..90).map(|look| 20 + look / 2)).is_flat());
    }

    #[test]
    fn a_few_requests_under_way_are_no_leak_and_less_is_never_one() {
        assert!(series("files", (0..90).map(|look| 20 + look % 7)).is_flat());
        assert!(series("MiB", (0..90).map(|look| 200 - look)).is_flat());
    }

    #[test]
    fn too_few_looks_say_nothing() {
        assert!(!series("MiB", [1, 1]).is_flat());
    }
}
