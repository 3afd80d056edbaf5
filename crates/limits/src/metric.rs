//! What the metrics tell. Labels are names of policies and a few words: never a subject, which would be a series each.

use std::cell::RefCell;

use metrics::Counter;

use crate::{Admission, Admitted, Decision, Limited};

/// Policy (none: of all admissions), outcome and source.
type Labels = (Option<&'static str>, &'static str, &'static str);

thread_local! {
    /// Looking a metric up by its labels costs more than counting, and there are only so many.
    static COUNTERS: RefCell<Vec<(Labels, Counter)>> = const { RefCell::new(Vec::new()) };
}

/// Counts a decision, and what it means for each policy:
///
/// - `admission_total{outcome, source}`: outcome `admitted`, `limited`, `revoked` or `record` (an API key's record had to be
///   loaded first); source `redis`, or `local` while Redis is out.
/// - `rate_limit_total{policy, outcome, source}`: outcome `allowed` or `limited`.
pub(crate) fn record(admission: &Admission, decision: &Decision) {
    let (outcome, local) = match decision {
        Decision::Admitted(Admitted { local, .. }) => ("admitted", *local),
        Decision::Limited(Limited { local, .. }) => ("limited", *local),
        Decision::Revoked => ("revoked", false),
        Decision::RecordMissing | Decision::RecordChanged(_) => ("record", false),
    };
    let source = if local { "local" } else { "redis" };
    count((None, outcome, source));
    let count = |policy, outcome| count((Some(policy), outcome, source));
    match decision {
        Decision::Admitted(_) => {
            let permit = admission.permit.iter().map(|permit| permit.policy);
            for policy in admission.charges.iter().map(|charge| charge.policy.name).chain(permit) {
                count(policy, "allowed");
            }
        }
        Decision::Limited(limited) => count(limited.policy, "limited"),
        _ => {}
    }
}

fn count(labels: Labels) {
    COUNTERS.with_borrow_mut(|counters| {
        let known = counters.iter().position(|(known, _)| *known == labels);
        let at = known.unwrap_or_else(|| {
            let (policy, outcome, source) = labels;
            let counter = match policy {
                None => metrics::counter!("admission_total", "outcome" => outcome, "source" => source),
                Some(policy) => metrics::counter!(
                    "rate_limit_total", "policy" => policy, "outcome" => outcome, "source" => source
                ),
            };
            counters.push((labels, counter));
            counters.len() - 1
        });
        counters[at].1.increment(1);
    });
}
