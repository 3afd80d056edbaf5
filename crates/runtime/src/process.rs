//! What the process takes of the machine, as the kernel counts it; under the names that Prometheus's own clients use.

use std::fs;

/// The kernel shows times in these to programs, whatever it counts in itself (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Looks now, which is when somebody asks. Nothing where there is no /proc.
pub(crate) fn measure() {
    if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident) {
        metrics::gauge!("process_resident_memory_bytes").set(bytes);
    }
    if let Some(seconds) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu) {
        // A gauge, because counters are whole numbers here. It never falls, so `rate` is right.
        metrics::gauge!("process_cpu_seconds_total").set(seconds);
    }
}

fn resident(status: &str) -> Option<f64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// User and system time: the 14th and 15th field. The second is the program's name in parentheses, with anything inside.
fn cpu(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_are_read_as_the_kernel_writes_them() {
        assert_eq!(resident("VmPeak:\t  99 kB\nVmRSS:\t    2048 kB\nThreads:\t1\n"), Some(2_097_152.0));
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1141 0 0 0 250 50 0 0 20 0 5 0 31 1 2";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!((resident(""), cpu("")), (None, None));
    }
}
