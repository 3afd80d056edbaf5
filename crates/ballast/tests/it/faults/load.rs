//! A steady load: as many requests a second, however long their answers take, so that a stall is seen by all that come
//! meanwhile and not by one.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::Stand;

/// Clients that the load comes from: less than what the burst shield lets one have.
const CLIENTS: usize = 8;

#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// When it was sent.
    pub(super) at: Instant,
    pub(super) took: Duration,
    /// 0 when there was no answer.
    pub(super) status: u16,
}

pub(super) struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    pub(super) fn start(stand: &Stand, path: &'static str, per_second: u32) -> Self {
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let stop = Arc::<AtomicBool>::default();
        let (seen, stopped) = (samples.clone(), stop.clone());
        let requests: Vec<_> = (0..CLIENTS)
            .map(|i| stand.get(path).header("x-forwarded-for", format!("198.51.100.{i}")).build().unwrap())
            .collect();
        let client = stand.client.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second);
            // A tick that comes late is no reason for a burst.
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut under_way = tokio::task::JoinSet::new();
            for request in requests.iter().cycle() {
                ticks.tick().await;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (client, seen) = (client.clone(), seen.clone());
                let request = request.try_clone().expect("a request without a body");
                under_way.spawn(async move {
                    let at = Instant::now();
                    let status = match client.execute(request).await {
                        Ok(answer) => {
                            let status = answer.status().as_u16();
                            answer.bytes().await.map_or(0, |_| status)
                        }
                        Err(_) => 0,
                    };
                    let sample = Sample { at, took: at.elapsed(), status };
                    seen.lock().unwrap().push(sample);
                });
                while under_way.try_join_next().is_some() {}
            }
            under_way.join_all().await;
        });
        Self { samples, stop, task }
    }

    /// Waits for the answers that are under way.
    pub(super) async fn end(self) -> Samples {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let samples = std::mem::take(&mut *self.samples.lock().unwrap());
        Samples(samples)
    }
}

#[derive(Debug)]
pub(super) struct Samples(Vec<Sample>);

impl Samples {
    pub(super) fn between(&self, from: Instant, to: Instant) -> Self {
        Self(self.0.iter().filter(|sample| (from..to).contains(&sample.at)).copied().collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Every status that was seen, with how often.
    pub(super) fn statuses(&self) -> std::collections::BTreeMap<u16, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for sample in &self.0 {
            *counts.entry(sample.status).or_default() += 1;
        }
        counts
    }

    #[track_caller]
    pub(super) fn percentile(&self, per_cent: usize) -> Duration {
        let mut times: Vec<_> = self.0.iter().map(|sample| sample.took).collect();
        assert!(times.len() >= 20, "{} requests are too few to say anything", times.len());
        times.sort_unstable();
        times[(times.len() * per_cent / 100).min(times.len() - 1)]
    }
}
