//! Sending e-mail: through Resend's API, or into the log while no key is configured.

use std::time::Duration;

use config::{Environment, MailConfig};
use job_specs::SendEmail;
use jobs::JobError;
use reqwest::{StatusCode, Url, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

/// HTTPS and not SMTP: hosting platforms block SMTP on their smaller plans.
const RESEND: &str = "https://api.resend.com/emails";
const TIMEOUT: Duration = Duration::from_secs(15);
/// An answer is read so far; what matters stands at its beginning.
const MAX_ANSWER: usize = 16 * 1024;

/// Sends e-mail.
#[derive(Debug, Clone)]
pub struct Mailer {
    transport: Transport,
    from: String,
}

#[derive(Debug, Clone)]
enum Transport {
    Resend { url: Url, key: SecretString, http: reqwest::Client },
    Log { shows_content: bool },
}

/// What became of a message: the result of the job that sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// What the provider calls it; none when no provider has it.
    pub id: Option<String>,
    /// The message itself, in development without a provider and never otherwise: that is where `/v1/admin/mails` finds it.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub mail: Option<SendEmail>,
}

#[derive(Serialize)]
struct Request<'a> {
    from: &'a str,
    to: [&'a str; 1],
    subject: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    html: Option<&'a str>,
}

impl Mailer {
    /// Resend when there is a key, the log otherwise. Only in development it shows the content, one-time tokens included:
    /// whoever reads them can take over the account. Outside development the message is dropped, and the log says that there
    /// was one.
    pub fn from_config(config: &MailConfig, environment: Environment, http: reqwest::Client) -> Self {
        let transport = match &config.resend_api_key {
            Some(key) => {
                let url = Url::parse(RESEND).expect("the constant is a URL");
                Transport::Resend { url, key: key.clone(), http }
            }
            None => Transport::Log { shows_content: environment == Environment::Development },
        };
        Self { transport, from: config.from.clone() }
    }

    /// For tests: Resend's API at another address.
    #[must_use]
    pub fn at(mut self, address: Url) -> Self {
        if let Transport::Resend { url, .. } = &mut self.transport {
            *url = address;
        }
        self
    }

    /// True when messages reach nobody.
    pub fn drops_mail(&self) -> bool {
        matches!(self.transport, Transport::Log { shows_content: false })
    }

    /// Sends a message once, however often it is called with the same `idempotency_key`: Resend remembers keys for a day.
    pub async fn send(&self, mail: &SendEmail, idempotency_key: &str) -> Result<Sent, JobError> {
        let (url, key, http) = match &self.transport {
            Transport::Resend { url, key, http } => (url, key, http),
            Transport::Log { shows_content: true } => {
                let SendEmail { to, subject, text, .. } = mail;
                tracing::info!(subject, to, text, "e-mail (no provider is configured)");
                return Ok(Sent { id: None, mail: Some(mail.clone()) });
            }
            Transport::Log { shows_content: false } => {
                tracing::info!(subject = mail.subject, "e-mail dropped (no provider is configured)");
                return Ok(Sent::default());
            }
        };
        let request = Request {
            from: &self.from,
            to: [&mail.to],
            subject: &mail.subject,
            text: &mail.text,
            html: mail.html.as_deref(),
        };
        let response = http
            .post(url.clone())
            .bearer_auth(key.expose_secret())
            // https://resend.com/docs/dashboard/emails/idempotency-keys
            .header("Idempotency-Key", idempotency_key)
            .timeout(TIMEOUT)
            .json(&request)
            .send()
            .await
            .map_err(reqwest::Error::without_url)?;
        let status = response.status();
        if status.is_success() {
            // Sent is sent, whatever the body says.
            return Ok(serde_json::from_slice(&beginning(response).await).unwrap_or_default());
        }
        let wait = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.min(3_600)));
        let answer = beginning(response).await;
        let answer: String = String::from_utf8_lossy(&answer).chars().take(500).collect();
        let error = anyhow::anyhow!("the mail provider answered {status}: {answer}");
        Err(match status {
            // The message itself is wrong, or the key was used for another message: the same again will not do.
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
                JobError::Discard(error)
            }
            StatusCode::CONFLICT if answer.contains("invalid_idempotent_request") => JobError::Discard(error),
            // Too fast, out, or refused for a key that an operator can put right.
            _ => wait
                .map_or(JobError::Retry(anyhow::anyhow!("{error}")), |wait| JobError::RetryIn(wait, error)),
        })
    }
}

async fn beginning(mut response: reqwest::Response) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < MAX_ANSWER
        && let Ok(Some(chunk)) = response.chunk().await
    {
        read.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - read.len())]);
    }
    read
}
