//! E-mail.

use std::{net::IpAddr, time::Duration};

use jobs::{JobSpec, Priority, Unique};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

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
    ResetPassword(Asked),
    /// To register with this address; if there is an account with it already, to set a new password.
    SignUp(Asked),
    /// To register as an administrator wishes.
    Invite {
        /// Which invitation.
        invitation_id: Uuid,
    },
}

/// What a stranger asked for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// As somebody gave it, normalised.
    pub email: String,
    /// Where from, for the audit log.
    pub ip: IpAddr,
    /// In which request.
    pub request_id: String,
}

impl std::fmt::Debug for AccountMail {
    /// Without the address, which is personal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::VerifyEmail { .. } => "VerifyEmail",
            Self::ResetPassword(_) => "ResetPassword",
            Self::SignUp(_) => "SignUp",
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

    /// While one waits, a second one is a duplicate. Not where a stranger asks: the time that enqueueing takes would tell
    /// whether the job before had somebody to write to.
    fn unique(&self) -> Option<Unique> {
        match self {
            Self::VerifyEmail { .. } | Self::Invite { .. } => Some(Unique::by_args()),
            Self::ResetPassword(_) | Self::SignUp(_) => None,
        }
    }
}
