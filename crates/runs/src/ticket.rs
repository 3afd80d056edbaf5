//! Tickets: EventSource cannot send headers, and asks the same URL again for as long as it lives.
//!
//! A ticket is 256 random bits, `tk_` and base64url. Redis knows its SHA-256 only, beside the run that it is for, together
//! with the session or API key that asked for it; the ticket ends with that, with the run's stream, or when it is revoked.

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use db::{RedisError, redis_client::pipe};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Events;

const PREFIX: &str = "tk_";
/// More tickets than that for one run are a mistake.
const MANY: usize = 100;

/// The text of a ticket. It is in one answer and in the URLs of its holder, and nowhere else.
pub struct Ticket([u8; 32]);

/// Who has a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The run's owner.
    pub user_id: Uuid,
    /// The session that asked for it.
    pub session_id: Option<Uuid>,
    /// The API key that asked for it.
    pub api_key_id: Option<Uuid>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(...)")
    }
}

impl Ticket {
    /// A new random ticket; `None` when the system gives no randomness.
    pub fn generate() -> Option<Self> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Reads a ticket; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// What its holder gets.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }

    /// What is stored.
    fn hash(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, &self.0))
    }
}

impl Events {
    /// Makes a ticket valid for one run; false when there are too many already.
    pub async fn add_ticket(&self, run: Uuid, ticket: &Ticket, holder: &Holder) -> Result<bool, RedisError> {
        let key = self.tickets_key(run);
        let holder = serde_json::to_string(holder).expect("ids are JSON");
        let count =
            self.redis.call_hot(async |c| db::redis_client::cmd("HLEN").arg(&key).query_async(c).await);
        let count: usize = count.await?;
        if count >= MANY {
            return Ok(false);
        }
        let mut add = pipe();
        add.cmd("HSET").arg(&key).arg(ticket.hash()).arg(holder).ignore();
        add.cmd("PEXPIRE").arg(&key).arg(self.ttl.as_millis() as u64).ignore();
        self.redis.call_hot(async |c| add.query_async::<()>(c).await).await?;
        Ok(true)
    }

    /// Who has this ticket for this run; `None` when nobody has.
    pub async fn ticket(&self, run: Uuid, ticket: &Ticket) -> Result<Option<Holder>, RedisError> {
        let mut get = db::redis_client::cmd("HGET");
        get.arg(self.tickets_key(run)).arg(ticket.hash());
        let holder: Option<String> = self.redis.call_hot(async |c| get.query_async(c).await).await?;
        Ok(holder.and_then(|holder| serde_json::from_str(&holder).ok()))
    }

    /// Revokes all tickets of a run.
    pub async fn revoke_tickets(&self, run: Uuid) -> Result<(), RedisError> {
        let mut delete = db::redis_client::cmd("DEL");
        delete.arg(self.tickets_key(run));
        self.redis.call_hot(async |c| delete.query_async::<()>(c).await).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_read_as_it_is_written_and_shows_itself_to_nobody() {
        let ticket = Ticket::generate().unwrap();
        let text = ticket.text();
        assert_eq!(text.len(), 46);
        assert_eq!(Ticket::parse(&text).unwrap().hash(), ticket.hash());
        assert!(!ticket.hash().contains(&text[3..]) && !format!("{ticket:?}").contains(&text[3..]));
        for bad in ["", "tk_", &text[3..], &text[..45], &format!("{text}A"), &text.replace("tk_", "ot_")] {
            assert!(Ticket::parse(bad).is_none(), "{bad}");
        }
    }
}
