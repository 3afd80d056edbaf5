//! What the metrics tell. Labels are names of policies and a few words: never a subject, which would be a series each.

use crate::{Admission, Admitted, Decision, Limited};

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
    metrics::counter!("admission_total", "outcome" => outcome, "source" => source).increment(1);
    let count = |policy, outcome| {
        metrics::counter!("rate_limit_total", "policy" => policy, "outcome" => outcome, "source" => source)
            .increment(1);
    };
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
