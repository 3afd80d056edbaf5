//! Sending e-mail: through Resend's API, or into the log while no key is configured.

use std::time::Duration;

use config::{Environment, MailConfig};
use job_specs::SendEmail;
use jobs::{JobError, JobId};
use reqwest::{StatusCode, Url, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

/// HTTPS and not SMTP: hosting platforms block SMTP on their smaller plans.
const RESEND: &str = "https://api.resend.com/emails";
const TIMEOUT: Duration = Duration::from_secs(15);

/// Sends e-mail.
#[derive(Debug, Clone)]
pub struct Mailer {
    transport: Transport,
    from: String,
}

#[derive(Debug, Clone)]
enum Transport {
    Resend { url: Url, key: SecretString, http: reqwest::Client },
    Log { with_content: bool },
}

/// What the provider calls the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The message's id there; none when it went to the log.
    pub id: Option<String>,
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
    /// Resend when there is a key, the log otherwise. Outside development the log shows no content: it may hold links that
    /// log in.
    pub fn from_config(config: &MailConfig, environment: Environment, http: reqwest::Client) -> Self {
        let transport = match &config.resend_api_key {
            Some(key) => {
                let url = Url::parse(RESEND).expect("the constant is a URL");
                Transport::Resend { url, key: key.clone(), http }
            }
            None => Transport::Log { with_content: environment == Environment::Development },
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

    /// Sends a message once, however often it is called with the same job: Resend remembers idempotency keys for a day.
    pub async fn send(&self, mail: &SendEmail, job: JobId) -> Result<Sent, JobError> {
        let (url, key, http) = match &self.transport {
            Transport::Resend { url, key, http } => (url, key, http),
            Transport::Log { with_content } => {
                let (to, text) =
                    if *with_content { (mail.to.as_str(), mail.text.as_str()) } else { ("-", "-") };
                tracing::info!(subject = mail.subject, to, text, "e-mail (no provider is configured)");
                return Ok(Sent { id: None });
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
            .header("Idempotency-Key", format!("job-{job}"))
            .timeout(TIMEOUT)
            .json(&request)
            .send()
            .await
            .map_err(reqwest::Error::without_url)?;
        let status = response.status();
        if status.is_success() {
            // Sent is sent, whatever the body says.
            return Ok(response.json().await.unwrap_or(Sent { id: None }));
        }
        let wait = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|v| v.to_str().ok()?.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.min(3_600)));
        let answer: String = response.text().await.unwrap_or_default().chars().take(500).collect();
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
