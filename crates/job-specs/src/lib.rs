//! The kinds of jobs: payloads, names and rules, shared by those who enqueue them and the worker that runs them.
//!
//! No job runs here. To add a kind: a payload and its [`JobSpec`] in this crate, a line in [`KINDS`], the code in
//! `crates/worker/src/jobs/`, and, if users may start it, a line in [`USER_JOBS`].

use std::{net::IpAddr, time::Duration};

use jobs::{EnqueueOptions, JobSpec, NewJob, Priority, Unique};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// Says its message back: the job to try things out with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Echo {
    /// Comes back in the result; at most 10 000 bytes.
    pub message: String,
    /// Works so long, in milliseconds, showing its progress; at most a minute.
    #[serde(default)]
    pub sleep_ms: u64,
    /// Fails so often before it succeeds; at most 5.
    #[serde(default)]
    pub fail_times: u16,
}

impl Echo {
    /// Says what is wrong with a payload that came from outside.
    fn check(&self) -> Result<(), String> {
        match () {
            () if self.message.len() > 10_000 => Err("message: at most 10000 bytes".to_owned()),
            () if self.sleep_ms > 60_000 => Err("sleep_ms: at most 60000".to_owned()),
            () if self.fail_times > 5 => Err("fail_times: at most 5".to_owned()),
            () => Ok(()),
        }
    }
}

impl JobSpec for Echo {
    const NAME: &'static str = "echo";
    const TIMEOUT: Duration = Duration::from_secs(90);
}

/// Sends one e-mail. Enqueue it in the transaction that makes it necessary: then it is sent exactly when that commits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendEmail {
    /// One address.
    pub to: String,
    /// Its subject.
    pub subject: String,
    /// Its text.
    pub text: String,
    /// The same as HTML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
}

impl std::fmt::Debug for SendEmail {
    /// Without address and content, which are personal and may hold a link that logs in.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendEmail").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl JobSpec for SendEmail {
    const NAME: &'static str = "send_email";
    const QUEUE: &'static str = "email";
    const PRIORITY: Priority = Priority::High;
    // With backoff up to an hour, about six hours: longer than a provider's usual outage, shorter than Resend's memory of
    // idempotency keys (24 hours).
    const MAX_ATTEMPTS: i16 = 16;
    const TIMEOUT: Duration = Duration::from_secs(30);
}

/// Makes a one-time token and mails it. The token is in no payload: the worker makes it, and stores its hash.
///
/// Whoever enqueues it needs not know whether there is such an account; what is pointless when the job runs is not sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "purpose", rename_all = "snake_case")]
pub enum AccountMail {
    /// To confirm the address of this account.
    VerifyEmail {
        /// Whose.
        user_id: Uuid,
    },
    /// To set a new password, if there is an account with this address.
    ResetPassword {
        /// As somebody gave it, normalised.
        email: String,
        /// Where from, for the audit log.
        ip: IpAddr,
        /// In which request.
        request_id: String,
    },
    /// To register.
    Invite {
        /// Which invitation.
        invitation_id: Uuid,
    },
}

impl std::fmt::Debug for AccountMail {
    /// Without the address, which is personal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::VerifyEmail { .. } => "VerifyEmail",
            Self::ResetPassword { .. } => "ResetPassword",
            Self::Invite { .. } => "Invite",
        })
    }
}

impl JobSpec for AccountMail {
    const NAME: &'static str = "account_mail";
    const QUEUE: &'static str = SendEmail::QUEUE;
    const PRIORITY: Priority = Priority::High;
    const MAX_ATTEMPTS: i16 = SendEmail::MAX_ATTEMPTS;
    const TIMEOUT: Duration = SendEmail::TIMEOUT;

    /// While one waits, a second one is a duplicate. Not for forgotten passwords: there a stranger asks, and the time that
    /// enqueueing takes would tell whether the job before had somebody to write to.
    fn unique(&self) -> Option<Unique> {
        match self {
            Self::VerifyEmail { .. } | Self::Invite { .. } => Some(Unique::by_args()),
            Self::ResetPassword { .. } => None,
        }
    }
}

/// Adds usage events up to hours. Runs hourly, and may be enqueued at any time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRollup {}

impl JobSpec for UsageRollup {
    const NAME: &'static str = "usage_rollup";
    const TIMEOUT: Duration = Duration::from_secs(300);

    fn unique(&self) -> Option<Unique> {
        Some(Unique::by_kind())
    }
}

/// Logs that the schedule works.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {}

impl JobSpec for Heartbeat {
    const NAME: &'static str = "heartbeat";
    const PRIORITY: Priority = Priority::Low;
    const MAX_ATTEMPTS: i16 = 1;
    const TIMEOUT: Duration = Duration::from_secs(10);
}

/// Deletes what has expired: sessions, tokens, keys of unique jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {}

impl JobSpec for Cleanup {
    const NAME: &'static str = "cleanup";
    const PRIORITY: Priority = Priority::Low;
    const MAX_ATTEMPTS: i16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(600);
}

/// Makes the coming days' partitions of finished jobs and drops the old ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepPartitions {}

impl JobSpec for KeepPartitions {
    const NAME: &'static str = "keep_partitions";
    const PRIORITY: Priority = Priority::High;
    const TIMEOUT: Duration = Duration::from_secs(120);
}

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

/// Acts on a webhook that came in and was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessWebhook {
    /// Who sent it.
    pub source: String,
    /// The sender's id of the event.
    pub event_id: String,
}

impl JobSpec for ProcessWebhook {
    const NAME: &'static str = "process_webhook";
    const QUEUE: &'static str = "webhooks";
    const MAX_ATTEMPTS: i16 = 16;
    const TIMEOUT: Duration = Duration::from_secs(60);
}

/// Sends one event to one endpoint that a user registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverWebhook {
    /// Which delivery.
    pub delivery_id: Uuid,
}

impl JobSpec for DeliverWebhook {
    const NAME: &'static str = "deliver_webhook";
    const QUEUE: &'static str = "webhooks";
    // One more than there are waits: about three days.
    const MAX_ATTEMPTS: i16 = 10;
    const TIMEOUT: Duration = Duration::from_secs(30);
}

/// Makes a resumable run. The request is in the run's row: it may be larger than a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Which run.
    pub run_id: Uuid,
}

impl JobSpec for Run {
    const NAME: &'static str = "run";
    const QUEUE: &'static str = "runs";
    const PRIORITY: Priority = Priority::High;
    // Only for workers that die: what the engine does wrong ends the run, because its reader waits.
    const MAX_ATTEMPTS: i16 = 3;
    // Whoever enqueues one says how long it may take: the configuration decides.
    const TIMEOUT: Duration = Duration::from_secs(3_600);
}

/// A kind that users may start with `POST /v1/jobs`.
pub struct UserJob {
    /// The kind's name.
    pub name: &'static str,
    /// Checks a payload and makes the job; the error says what is wrong with the payload.
    new_job: fn(Value) -> Result<NewJob, String>,
}

impl std::fmt::Debug for UserJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Everything that users may start; nothing else can be started from outside.
pub const USER_JOBS: &[UserJob] = &[
    UserJob {
        name: Echo::NAME,
        new_job: |args| {
            let job: Echo = serde_json::from_value(args).map_err(|e| e.to_string())?;
            job.check()?;
            NewJob::of(&job).map_err(|e| e.to_string())
        },
    },
    UserJob {
        name: CheckCredential::NAME,
        new_job: |args| {
            let job: CheckCredential = serde_json::from_value(args).map_err(|e| e.to_string())?;
            NewJob::of(&job).map_err(|e| e.to_string())
        },
    },
];

/// A kind that this build knows, for operators, who may start them all.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    new_job: fn(Value) -> Result<NewJob, String>,
    /// Fields of the payload that operators do not get to see: addresses, and texts that may hold a link that logs in.
    private: &'static [&'static str],
}

impl Kind {
    const fn of<J: JobSpec>() -> Self {
        let new_job = |args| {
            let job: J = serde_json::from_value(args).map_err(|e| e.to_string())?;
            NewJob::of(&job).map_err(|e| e.to_string())
        };
        Self { name: J::NAME, new_job, private: &[] }
    }

    const fn private(mut self, fields: &'static [&'static str]) -> Self {
        self.private = fields;
        self
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every kind. A test holds it against what the worker registers.
pub const KINDS: &[Kind] = &[
    Kind::of::<AccountMail>().private(&["email", "ip"]),
    Kind::of::<CheckCredential>(),
    Kind::of::<Cleanup>(),
    Kind::of::<DeliverWebhook>(),
    Kind::of::<Echo>(),
    Kind::of::<Heartbeat>(),
    Kind::of::<KeepPartitions>(),
    Kind::of::<ProcessWebhook>(),
    Kind::of::<Run>(),
    Kind::of::<SendEmail>().private(&["to", "text", "html"]),
    Kind::of::<UsageRollup>(),
];

/// Somebody asked for a job that is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewJobError {
    /// Whoever asked cannot start this kind, or there is none.
    UnknownKind,
    /// The payload is wrong; the text says where and is safe to show.
    InvalidPayload(String),
}

/// Makes the job that a user asked for, with the options that the API sets (such as its owner).
pub fn user_job(kind: &str, args: Value, options: EnqueueOptions) -> Result<NewJob, NewJobError> {
    let job = USER_JOBS.iter().find(|job| job.name == kind).ok_or(NewJobError::UnknownKind)?;
    finish((job.new_job)(args), options)
}

/// Makes the job that an operator asked for, of any kind.
pub fn operator_job(kind: &str, args: Value, options: EnqueueOptions) -> Result<NewJob, NewJobError> {
    let kind = KINDS.iter().find(|k| k.name == kind).ok_or(NewJobError::UnknownKind)?;
    finish((kind.new_job)(args), options)
}

fn finish(job: Result<NewJob, String>, options: EnqueueOptions) -> Result<NewJob, NewJobError> {
    let job = job.and_then(|job| job.with(options).map_err(|e| e.to_string()));
    job.map_err(NewJobError::InvalidPayload)
}

/// The payload as operators see it: what is private is replaced.
pub fn shown_args(kind: &str, mut args: Value) -> Value {
    let private = KINDS.iter().find(|k| k.name == kind).map_or(&[][..], |k| k.private);
    for field in private {
        if let Some(value) = args.get_mut(field).filter(|v| !v.is_null()) {
            *value = Value::from("(not shown)");
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str, args: Value) -> Result<NewJob, NewJobError> {
        user_job(kind, args, EnqueueOptions::default())
    }

    #[test]
    fn users_start_what_is_listed_and_nothing_else() {
        let job = of("echo", json!({"message": "hi"})).unwrap();
        assert_eq!(job.kind(), "echo");
        assert_eq!(job.args(), &json!({"message": "hi", "sleep_ms": 0, "fail_times": 0}));
        let id = "01a1fba5-50b5-76eb-ac8a-b38a17d63756";
        assert_eq!(of("check_credential", json!({"credential_id": id})).unwrap().kind(), "check_credential");
        for kind in ["send_email", "account_mail", "cleanup", "usage_rollup", "", "ECHO", "echo\0"] {
            assert_eq!(of(kind, json!({})).unwrap_err(), NewJobError::UnknownKind, "{kind}");
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_refused_with_the_reason() {
        for (args, reason) in [
            (json!({}), "missing field `message`"),
            (json!(null), "invalid type: null"),
            (json!({"message": 1}), "invalid type: integer"),
            (json!({"message": "a", "sleep_ms": -1}), "invalid value"),
            (json!({"message": "a", "sleep_ms": 60_001}), "sleep_ms: at most 60000"),
            (json!({"message": "a", "fail_times": 6}), "fail_times: at most 5"),
            (json!({"message": "a", "other": 1}), "unknown field"),
            (json!({"message": "a\0"}), "NUL"),
            (json!({"message": "a".repeat(10_001)}), "message: at most 10000 bytes"),
        ] {
            let Err(NewJobError::InvalidPayload(text)) = of("echo", args.clone()) else { panic!("{args}") };
            assert!(text.contains(reason), "{args}: {text}");
        }
    }

    #[test]
    fn operators_start_every_kind_and_do_not_see_what_is_private() {
        for kind in KINDS {
            match operator_job(kind.name, json!({}), EnqueueOptions::default()) {
                Ok(job) => assert_eq!(job.kind(), kind.name),
                Err(error) => assert!(matches!(error, NewJobError::InvalidPayload(_)), "{kind:?}: {error:?}"),
            }
        }
        let unknown = operator_job("nonsense", json!({}), EnqueueOptions::default());
        assert_eq!(unknown.unwrap_err(), NewJobError::UnknownKind);
        let mail = json!({"to": "canary", "subject": "Reset", "text": "canary", "html": null});
        let shown = shown_args("send_email", mail);
        assert_eq!(
            shown,
            json!({"to": "(not shown)", "subject": "Reset", "text": "(not shown)", "html": null})
        );
        let mail = json!({"purpose": "reset_password", "email": "canary", "ip": "canary", "request_id": "r"});
        assert!(operator_job("account_mail", mail.clone(), EnqueueOptions::default()).is_err(), "no address");
        assert!(!shown_args("account_mail", mail).to_string().contains("canary"));
        assert_eq!(shown_args("echo", json!({"message": "x"})), json!({"message": "x"}));
    }

    #[test]
    fn a_credential_is_named_by_its_id() {
        for args in [json!({}), json!({"credential_id": "mine"}), json!({"credential_id": 1})] {
            let refused = of("check_credential", args.clone()).unwrap_err();
            assert!(matches!(refused, NewJobError::InvalidPayload(_)), "{args}");
        }
    }

    #[test]
    fn debug_output_of_an_e_mail_shows_no_address_and_no_content() {
        let mail = SendEmail {
            to: "canary@example.com".into(),
            subject: "Reset".into(),
            text: "canary".into(),
            html: Some("canary".into()),
        };
        assert!(!format!("{mail:?}").contains("canary"));
        let mail = AccountMail::ResetPassword {
            email: "canary@example.com".into(),
            ip: [127, 0, 0, 1].into(),
            request_id: "canary".into(),
        };
        assert!(!format!("{mail:?}").contains("canary"));
    }
}
