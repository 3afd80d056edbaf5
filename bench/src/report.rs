//! Medians and ratios.

use std::{collections::BTreeMap, time::Duration};

/// Figures of one line: ours, the peer's.
type Pair = (Vec<f64>, Vec<f64>);

#[derive(Default)]
pub(crate) struct Report {
    order: Vec<String>,
    figures: BTreeMap<String, Pair>,
    idle: Option<f64>,
}

impl Report {
    pub(crate) fn ours(&mut self, what: &str, figure: f64) {
        self.line(what).0.push(figure);
        eprintln!("  {what}: ours {figure:.0}");
    }

    pub(crate) fn peer(&mut self, what: &str, figure: f64) {
        self.line(what).1.push(figure);
        eprintln!("  {what}: peer {figure:.0}");
    }

    pub(crate) fn latency(&mut self, ours: bool, mut latencies: Vec<Duration>) {
        latencies.sort_unstable();
        for (name, per_mille) in [("p50", 500), ("p99", 990)] {
            let at = latencies[(latencies.len() * per_mille / 1_000).min(latencies.len() - 1)];
            let what = format!("pick-up on an idle queue, {name}, us");
            let us = at.as_micros() as f64;
            if ours { self.ours(&what, us) } else { self.peer(&what, us) }
        }
    }

    pub(crate) fn idle(&mut self, part: f64) {
        self.idle = Some(part);
    }

    fn line(&mut self, what: &str) -> &mut Pair {
        if !self.figures.contains_key(what) {
            self.order.push(what.to_owned());
        }
        self.figures.entry(what.to_owned()).or_default()
    }

    pub(crate) fn print(&self) {
        println!("{:<58}{:>10}{:>17}{:>8}", "median", "ours", "graphile_worker", "ratio");
        for what in &self.order {
            let (ours, peer) = &self.figures[what];
            let ratio = match (median(ours), median(peer)) {
                (Some(ours), Some(peer)) => format!("{:.2}", ours / peer),
                _ => "-".to_owned(),
            };
            println!("{what:<58}{:>10}{:>17}{ratio:>8}", show(median(ours)), show(median(peer)));
        }
        if let Some(idle) = self.idle {
            println!("{:<58}{:>9.2}%", "idle worker, of one core", idle * 100.0);
        }
    }
}

fn show(figure: Option<f64>) -> String {
    figure.map_or_else(|| "-".to_owned(), |f| format!("{f:.0}"))
}

fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
