//! Whether this machine has other things to do: a bound on a time says nothing then.

use std::fs;

/// More than three processes want each core. Never, where that is not known.
pub(crate) fn is_busy() -> bool {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load(&text).is_some_and(|load| load > 3.0 * cores as f64)
}

/// The mean of the last minute.
fn load(text: &str) -> Option<f64> {
    text.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_the_last_minute_is_the_first_number() {
        assert_eq!(load("31.74 23.42 15.78 9/812 14796\n"), Some(31.74));
        assert_eq!(load(""), None);
    }
}
