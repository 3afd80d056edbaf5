//! The headers that tell where the limits stand, on refusals too.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use limits::{Admitted, ChargeState, Limited};

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// Headers of this module, and those beside them, for scripts of other origins to read (CORS).
pub(crate) const EXPOSED: [&str; 10] = [
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

/// Where admission leaves the state of the limits, for the answer's headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct LimitStates(Arc<Mutex<Vec<ChargeState>>>);

impl LimitStates {
    /// What stands after an admission.
    pub(crate) fn admitted(&self, admitted: &Admitted) {
        self.set(admitted.states.clone());
    }

    /// What stands after a refusal. The policy that refused is over when Retry-After is.
    pub(crate) fn limited(&self, limited: &Limited) {
        let mut states = limited.states.clone();
        for state in states.iter_mut().filter(|state| state.policy == limited.policy) {
            state.reset = limited.retry_after.unwrap_or(state.reset);
        }
        if limited.period.is_zero() {
            let Limited { policy, limit, period, .. } = *limited;
            let reset = limited.retry_after.unwrap_or_default();
            states.push(ChargeState { policy, limit, period, remaining: 0, reset });
        }
        self.set(states);
    }

    fn set(&self, states: Vec<ChargeState>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }

    /// Writes the headers, those of OpenAI where its dialect is spoken.
    pub(crate) fn write(&self, headers: &mut HeaderMap, openai: bool) {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standard(headers, &states);
        if openai {
            openai_headers(headers, &states);
        }
    }
}

/// The fields of draft-ietf-httpapi-ratelimit-headers-10, one item per policy.
fn standard(headers: &mut HeaderMap, states: &[ChargeState]) {
    if states.is_empty() {
        return;
    }
    let room = 48 * states.len();
    let (mut policies, mut current) = (String::with_capacity(room), String::with_capacity(room));
    for state in states {
        let ChargeState { policy, limit, remaining, .. } = state;
        let comma = if policies.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = if state.period.is_zero() {
            write!(policies, "{comma}\"{policy}\";q={limit};qu=\"concurrent-requests\"")
        } else {
            write!(policies, "{comma}\"{policy}\";q={limit};w={}", state.period.as_secs().max(1))
        };
        let reset = state.reset.as_millis().div_ceil(1_000);
        let _ = write!(current, "{comma}\"{policy}\";r={remaining};t={reset}");
    }
    for (name, items) in [(RATELIMIT_POLICY, policies), (RATELIMIT, current)] {
        if let Ok(value) = HeaderValue::try_from(items) {
            headers.insert(name, value);
        }
    }
}

/// OpenAI's rate-limit headers, which its users' programs read.
fn openai_headers(headers: &mut HeaderMap, states: &[ChargeState]) {
    for (policy, unit) in [("ai-requests", "requests"), ("ai-tokens", "tokens")] {
        let Some(state) = states.iter().find(|state| state.policy == policy) else { continue };
        let ChargeState { limit, remaining, reset, .. } = state;
        for (what, value) in
            [("limit", limit.to_string()), ("remaining", remaining.to_string()), ("reset", duration(*reset))]
        {
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{unit}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// As OpenAI writes durations: `12ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn duration(duration: Duration) -> String {
    let ms = duration.as_micros().div_ceil(1_000);
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (seconds, rest) = (ms / 1_000, ms % 1_000);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match (seconds / 3_600, seconds / 60 % 60) {
        (0, 0) => Ok(()),
        (0, minutes) => write!(text, "{minutes}m"),
        (hours, minutes) => write!(text, "{hours}h{minutes}m"),
    };
    let _ = write!(text, "{}", seconds % 60);
    if rest > 0 {
        let fraction = format!("{rest:03}");
        let _ = write!(text, ".{}", fraction.trim_end_matches('0'));
    }
    text + "s"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(policy: &'static str, remaining: u64) -> ChargeState {
        let (period, reset) = (Duration::from_secs(60), Duration::from_millis(1_500));
        ChargeState { policy, limit: 60, period, remaining, reset }
    }

    #[test]
    fn a_refusal_tells_the_same_time_in_all_headers() {
        let states = LimitStates::default();
        states.limited(&Limited {
            policy: "ai-tokens",
            limit: 60,
            period: Duration::from_secs(60),
            retry_after: Some(Duration::from_millis(20_001)),
            states: vec![state("global", 7), state("ai-requests", 8), state("ai-tokens", 5)],
            local: false,
        });
        let mut headers = HeaderMap::new();
        states.write(&mut headers, true);
        assert_eq!(headers["ratelimit"], r#""global";r=7;t=2, "ai-requests";r=8;t=2, "ai-tokens";r=5;t=21"#);
        assert_eq!(headers["x-ratelimit-remaining-requests"], "8");
        assert_eq!(headers["x-ratelimit-reset-tokens"], "20.001s");
        assert!(
            headers.keys().all(|name| EXPOSED.contains(&name.as_str())),
            "all can be read across origins"
        );
    }

    #[test]
    fn a_permit_that_is_missing_is_told_as_concurrent_requests() {
        let states = LimitStates::default();
        states.limited(&Limited {
            policy: "concurrent-streams",
            limit: 3,
            period: Duration::ZERO,
            retry_after: Some(Duration::from_secs(1)),
            states: vec![],
            local: false,
        });
        let mut headers = HeaderMap::new();
        states.write(&mut headers, false);
        assert_eq!(headers["ratelimit-policy"], r#""concurrent-streams";q=3;qu="concurrent-requests""#);
        assert_eq!(headers["ratelimit"], r#""concurrent-streams";r=0;t=1"#);
    }

    #[test]
    fn durations_read_as_openai_writes_them() {
        for (ms, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1_000, "1s"),
            (8_640, "8.64s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (59_999, "59.999s"),
            (3_600_000, "1h0m0s"),
            (86_399_500, "23h59m59.5s"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration(Duration::from_micros(1)), "1ms", "never sooner than true");
    }
}
