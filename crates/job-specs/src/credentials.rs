//! Stored credentials.

use std::time::Duration;

use jobs::JobSpec;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Tries a stored credential at its provider and notes on it whether it is accepted. Runs when one is stored, and whenever its
/// owner asks for it; the job's owner must be the credential's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckCredential {
    /// Which one.
    pub credential_id: Uuid,
}

impl JobSpec for CheckCredential {
    const NAME: &'static str = "check_credential";
    // With backoff about a minute: longer than a hiccup, short enough to wait for.
    const MAX_ATTEMPTS: i16 = 4;
    const TIMEOUT: Duration = Duration::from_secs(30);
    // Not unique by its payload: a stranger who guesses an id could then hold up its owner's check.
}
