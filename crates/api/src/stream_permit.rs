//! A permit for a stream that is not one of the engine's: how many a user may hold at a time, over all replicas.
//!
//! Taken with the admission, renewed at heartbeats, given back at the drop. Should the process die, the lease ends by itself.

use std::{sync::OnceLock, time::Duration};

use limits::{Admission, Limiter, Permit, Settlement};
use runtime::Lifecycle;
use uuid::Uuid;

use crate::admission::Caller;

/// Longer than a call to Redis may take. When the client left during admission the permit is given back so much later: else
/// the return could overtake the taking, on another connection to Redis.
const AFTER_UNANSWERED: Duration = Duration::from_millis(400);

pub(crate) struct StreamPermit {
    limiter: Limiter,
    lifecycle: Lifecycle,
    /// Set when admission begins: from then on there may be something to give back, even if its answer is never read.
    asked: OnceLock<Permit>,
    admitted: bool,
}

impl StreamPermit {
    pub(crate) fn new(limiter: Limiter, lifecycle: Lifecycle) -> Self {
        Self { limiter, lifecycle, asked: OnceLock::new(), admitted: false }
    }

    /// Adds the permit to an admission. Streams of this kind are counted apart from AI streams: watching one's jobs must not
    /// use up the permits for asking the engine.
    pub(crate) fn add_to(&self, admission: &mut Admission, caller: &Caller) {
        let permit = self.asked.get_or_init(|| {
            let (policy, subject) = caller.bucket(&self.limiter.policies().concurrent_streams);
            policy.permit(format!("watch:{subject}"), Uuid::now_v7().simple().to_string())
        });
        admission.permit(permit.clone());
    }

    /// The admission said yes.
    pub(crate) fn admitted(&mut self) {
        self.admitted = true;
    }

    /// Prolongs it.
    pub(crate) async fn renew(&self) {
        if let Some(permit) = self.asked.get() {
            self.limiter.renew(permit).await;
        }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let Some(permit) = self.asked.take() else { return };
        // Outside a runtime (its very end) the lease has to do.
        if tokio::runtime::Handle::try_current().is_ok() {
            let admitted = self.admitted;
            let settled = self.limiter.settle(Settlement { permit: Some(permit), ..Settlement::default() });
            self.lifecycle.spawn_task(async move {
                if !admitted {
                    tokio::time::sleep(AFTER_UNANSWERED).await;
                }
                settled.await;
            });
        }
    }
}
