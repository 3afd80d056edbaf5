//! The kinds of jobs: payloads, names and rules, shared by those who enqueue them and the worker that runs them.
//!
//! No job runs here. To add a kind: a file with the payload and its [`JobSpec`] in this crate, a line in [`KINDS`], the code in
//! `crates/worker/src/jobs/`, and, if users may start it, a line in [`USER_JOBS`]: `docs/adding-a-job.md`.

mod backfills;
mod credentials;
mod documents;
mod echo;
mod mail;
mod runs;
mod subscriptions;
mod upkeep;
mod usage;
mod webhooks;

use jobs::{EnqueueOptions, JobSpec, NewJob};
use serde_json::Value;

pub use backfills::BackfillEventTypes;
pub use credentials::CheckCredential;
pub use documents::IngestDocument;
pub use echo::Echo;
pub use mail::{AccountMail, Asked, SendEmail};
pub use runs::Run;
pub use subscriptions::CheckRenewals;
pub use upkeep::{Cleanup, Heartbeat, KeepPartitions};
pub use usage::UsageRollup;
pub use webhooks::{DeliverWebhook, ProcessWebhook};

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
    Kind::of::<BackfillEventTypes>(),
    Kind::of::<CheckCredential>(),
    Kind::of::<CheckRenewals>(),
    Kind::of::<Cleanup>(),
    Kind::of::<DeliverWebhook>(),
    Kind::of::<Echo>(),
    Kind::of::<Heartbeat>(),
    Kind::of::<IngestDocument>(),
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
        let asked = Asked {
            email: "canary@example.com".into(),
            ip: [127, 0, 0, 1].into(),
            request_id: "canary".into(),
        };
        for mail in [AccountMail::ResetPassword(asked.clone()), AccountMail::SignUp(asked)] {
            assert!(!format!("{mail:?}").contains("canary"));
        }
    }
}
