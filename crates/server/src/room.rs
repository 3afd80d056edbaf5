//! Room for connections. When there is none left, those on which nothing is being asked make room for new ones, the oldest
//! first, as nginx does it: otherwise whoever opens connections and is silent would keep everybody else waiting.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::io::Activity;

/// How long to wait for a place before looking again who could go.
const PATIENCE: Duration = Duration::from_millis(50);
/// How many go at a time, as a part of all: looking for them takes a look at each.
const PART: usize = 64;

/// The places of one listener.
#[derive(Debug)]
pub(crate) struct Room {
    places: Arc<Semaphore>,
    most: usize,
    /// By age.
    open: Mutex<(u64, BTreeMap<u64, Arc<Activity>>)>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    number: u64,
    pub(crate) activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(most)), most, open: Mutex::default() })
    }

    /// A place for a connection that was just accepted; waits while every other one is being served.
    pub(crate) async fn place(self: &Arc<Self>) -> Place {
        let permit = loop {
            if let Ok(permit) = self.places.clone().try_acquire_owned() {
                break permit;
            }
            self.make();
            let waited = tokio::time::timeout(PATIENCE, self.places.clone().acquire_owned()).await;
            if let Ok(permit) = waited {
                break permit.expect("the semaphore is never closed");
            }
        };
        let activity = Arc::new(Activity::default());
        let mut open = self.lock();
        open.0 += 1;
        let number = open.0;
        open.1.insert(number, activity.clone());
        drop(open);
        Place { room: self.clone(), number, activity, _permit: permit }
    }

    fn make(&self) {
        let open = self.lock();
        let gone = open.1.values().filter(|a| a.evict()).take((self.most / PART).max(1)).count();
        metrics::counter!("http_connections_evicted_total").increment(gone as u64);
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Activity>>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().1.remove(&self.number);
    }
}
