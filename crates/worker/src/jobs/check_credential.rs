//! `check_credential`: tries a stored credential at its provider.
//!
//! To delete it: this file, its lines in `jobs.rs`, its payload, its line and its entry in `USER_JOBS` in `job-specs`, and the line
//! that enqueues it in `POST /v1/credentials`; the tests of credentials that wait for its verdict.

use std::time::Duration;

use anyhow::anyhow;
use job_specs::CheckCredential;
use jobs::{JobContext, JobError};
use reqwest::StatusCode;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::{Context, OpenCredential};

const TIMEOUT: Duration = Duration::from_secs(10);

/// What came of it; the same stands on the credential.
#[derive(Debug, Serialize)]
pub struct Checked {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
}

/// Asks for the provider's list of models, which costs nothing and needs a good key. A provider that does not answer is asked
/// again; only when the attempts are used up the credential is called failed for that.
///
/// Verdict and completion are one transaction.
pub async fn run(context: Context, attempt: JobContext, job: CheckCredential) -> Result<(), JobError> {
    let gone = || JobError::Discard(anyhow!("there is no such credential"));
    let owner = attempt.owner().ok_or_else(gone)?;
    let credential = context.open_credential(owner, job.credential_id).await?.ok_or_else(gone)?;
    let detail = match refused(&context, &credential).await {
        Ok(detail) => detail,
        Err(_) if attempt.is_last_attempt() => Some("the provider does not answer as it should"),
        Err(error) => return Err(JobError::Retry(error)),
    };
    let checked = Checked { status: if detail.is_none() { "ok" } else { "failed" }, detail };
    context
        .database
        .transaction("credentials.record_check", async |c| {
            db::credentials::record_check(c, job.credential_id, detail).await?;
            attempt.complete_in(c, &checked).await.map_err(JobError::from)
        })
        .await
}

/// Why the credential is no good; `None` when it is. An error when nothing can be said about it.
async fn refused(context: &Context, credential: &OpenCredential) -> anyhow::Result<Option<&'static str>> {
    let Some(base) = context.config.credentials.providers.get(&credential.provider) else {
        return Ok(Some("the provider is no longer configured"));
    };
    let request = context.http.get(format!("{}/models", base.as_str().trim_end_matches('/')));
    let request = request.bearer_auth(credential.secret.expose_secret()).timeout(TIMEOUT);
    let answer = request.send().await.map_err(reqwest::Error::without_url)?;
    match answer.status() {
        status if status.is_success() => Ok(None),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Some("the provider refuses it")),
        status => Err(anyhow!("the provider answered {status}")),
    }
}
