//! May they? One extractor in front of every handler runs the admission script: revocation, the API key's record and every
//! limit in one round trip.
//!
//! - [`Caller`]: somebody who is logged in or has a key. Charges the global limit.
//! - [`Charged`]: a caller on a route with a limit of its own, which is charged too.
//! - [`Admin`]: a caller with that role.
//! - [`Anonymous`]: anybody, on a public route; the handler adds the limits of its own.
//! - [`Pending`]: a caller whose admission waits for the body, because its cost stands there (the AI routes).

use std::{marker::PhantomData, sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use limits::{Admission, Admitted, Charge, Decision, Limited, Overrides, Policies, Policy};
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    auth::{ApiKeySecret, Credential, Known, Record, revocation},
    client_ip::ClientIp,
    edge::RequestId,
    limit_headers::LimitStates,
};

/// How long a key's record is kept in Redis. Revoking a key replaces it, so this only bounds forgotten changes.
pub(crate) const RECORD_TTL: Duration = Duration::from_secs(300);
/// A key that does not exist may be made in a moment.
const DEAD_RECORD_TTL: Duration = Duration::from_secs(10);

/// Who is asking, admitted.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user.
    pub user_id: Uuid,
    /// The session, with an access token.
    pub session_id: Option<Uuid>,
    /// The key, with an API key.
    pub api_key_id: Option<Uuid>,
    /// The part of the key by which its record is found.
    pub api_key_public_id: Option<Arc<str>>,
    /// `user` or `admin`.
    pub role: String,
    /// What an API key may do; `None` for a session, which may do everything its user may.
    pub scopes: Option<Vec<String>>,
    /// When the access token was issued (Unix seconds); 0 with a key.
    pub issued_at: i64,
    /// Limits of its own, of the API key.
    pub limits: Arc<Overrides>,
    /// Where from.
    pub client: ClientIp,
    /// In which request.
    pub request_id: Arc<str>,
}

impl Caller {
    /// Refuses an API key without this scope. Sessions have every scope.
    pub fn require_scope(&self, scope: &str) -> Result<()> {
        match &self.scopes {
            Some(scopes) if !scopes.iter().any(|s| s == scope) => {
                Err(Error::forbidden("missing_scope", format!("The API key needs the scope `{scope}`.")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses API keys: some things only people may do, such as making keys.
    pub fn require_session(&self) -> Result<Uuid> {
        self.session_id.ok_or_else(|| {
            Error::forbidden("session_required", "An API key may not do this: log in instead.")
        })
    }

    /// As [`Self::require_session`], and asks the database whether the session still lives: for what must not be done with a
    /// token whose session was ended while Redis, which holds the mark of that, was out.
    pub async fn require_live_session(&self, state: &AppState) -> Result<Uuid> {
        let session_id = self.require_session()?;
        let active = state
            .database
            .call("sessions.is_active", async |c| db::sessions::is_active(c, session_id).await)
            .await?;
        if active { Ok(session_id) } else { Err(Error::session_ended()) }
    }

    /// Whether the session or API key still holds, asked of the database: for streams, which outlive their admission.
    pub async fn is_still_allowed(&self, state: &AppState) -> Result<bool> {
        let (session, key) = (self.session_id, self.api_key_id);
        let look = async |c: &mut db::PgConnection| match (session, key) {
            (Some(id), _) => db::sessions::is_active(c, id).await,
            (None, Some(id)) => db::api_keys::is_active(c, id).await,
            (None, None) => Ok(false),
        };
        Ok(state.database.call("credential.is_active", look).await?)
    }

    /// A security event of this caller, for the audit log.
    pub fn event<'a>(&'a self, event: &'a str) -> db::audit::Event<'a> {
        db::audit::Event {
            event,
            user_id: Some(self.user_id),
            session_id: self.session_id,
            ip: Some(self.client.0),
            request_id: Some(&self.request_id),
            ..Default::default()
        }
    }

    /// The policy as it holds for this caller, and whose bucket is charged: the user's, or the API key's own where the key has
    /// a limit of its own.
    pub fn bucket(&self, policy: &Policy) -> (Policy, String) {
        match (self.limits.apply(policy), self.api_key_id) {
            (Some(own), Some(key)) => (own, format!("key:{key}")),
            _ => (policy.clone(), format!("user:{}", self.user_id)),
        }
    }

    /// So many units of a policy, on this caller's bucket.
    pub fn charge(&self, policy: &Policy, cost: u64) -> Charge {
        let (policy, subject) = self.bucket(policy);
        policy.charge(subject, cost)
    }
}

/// A genuine credential that is not yet admitted.
pub struct Pending {
    state: AppState,
    credential: Credential,
    client: ClientIp,
    request_id: Arc<str>,
    states: LimitStates,
}

impl FromRequestParts<AppState> for Pending {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        let credential = parts.extensions.remove::<Credential>();
        let credential = credential.ok_or_else(Error::missing_credentials)?;
        let (client, request_id, states) = context(parts);
        Ok(Self { state: state.clone(), credential, client, request_id, states })
    }
}

impl Pending {
    /// Decides, in one round trip, on revocation, the global limit, and what `add` puts on top.
    ///
    /// `add` sees the caller before it is admitted; it may run twice, when the record of an API key has to be loaded first.
    pub async fn admit(self, add: impl Fn(&mut Admission, &Caller)) -> Result<(Caller, Admitted)> {
        let (caller, decision) = match &self.credential {
            Credential::Token(claims) => {
                let caller = Caller {
                    user_id: claims.sub,
                    session_id: Some(claims.sid),
                    api_key_id: None,
                    api_key_public_id: None,
                    role: claims.scope.clone(),
                    scopes: None,
                    issued_at: claims.iat,
                    limits: Arc::default(),
                    client: self.client,
                    request_id: self.request_id.clone(),
                };
                let mut admission = Admission::default();
                admission.unless_revoked(revocation::subject(claims.sid), claims.iat);
                let admission = self.fill(admission, &caller, &add);
                let decision = self.state.limiter.admit(&admission).await;
                (caller, decision)
            }
            Credential::Key(key) => self.admit_key(key, &add).await?,
        };
        match decision {
            Decision::Admitted(admitted) => {
                tracing::Span::current().record("user_id", tracing::field::display(caller.user_id));
                self.states.admitted(&admitted);
                Ok((caller, admitted))
            }
            Decision::Limited(limited) => Err(refused(&self.states, &limited)),
            Decision::Revoked => Err(Error::session_ended()),
            Decision::RecordMissing | Decision::RecordChanged(_) => Err(Error::unavailable(
                "key_unsettled",
                "The API key was just changed.",
                Duration::from_secs(1),
            )),
        }
    }

    /// Admission by key needs its record: from the process's cache, else from Redis (in the script's answer), else from the
    /// database. The warm path is one round trip.
    async fn admit_key(
        &self,
        key: &ApiKeySecret,
        add: &impl Fn(&mut Admission, &Caller),
    ) -> Result<(Caller, Decision)> {
        let records = &self.state.key_records;
        let mut known = records.get(key.public_id());
        for _ in 0..4 {
            let Known { etag, record, limits } = known.unwrap_or_else(Known::nobody);
            let caller = self.key_caller(key, &record, limits);
            let opens = record.accepts(key, self.state.clock.now());
            let mut admission = Admission::default();
            admission.with_record(key.public_id(), etag.as_ref());
            // A key that does not open its record must not use up the limits of the one that does: it is charged to its address.
            let admission = if opens {
                self.fill(admission, &caller, add)
            } else {
                admission.charge(self.state.limiter.policies().global.charge(self.client.subject(), 1));
                admission
            };
            match self.state.limiter.admit(&admission).await {
                Decision::RecordChanged(encoded) => {
                    known = records.remember(self.state.limiter.policies(), key.public_id(), &encoded);
                }
                Decision::RecordMissing => known = Some(Box::pin(self.load_record(key)).await?),
                // Redis is out, and the process does not know the key, or did not ask for it lately.
                Decision::Admitted(a) if a.local && (etag.is_empty() || records.is_old(key.public_id())) => {
                    known = Some(Box::pin(self.load_record(key)).await?);
                }
                Decision::Limited(limited) if !opens => return Err(refused(&self.states, &limited)),
                _ if !opens => {
                    metrics::counter!("auth_refused_total", "reason" => "api key").increment(1);
                    return Err(Error::unauthorized(
                        "invalid_token",
                        "The API key is unknown, revoked or has expired.",
                    ));
                }
                decision => return Ok((caller, decision)),
            }
        }
        Err(Error::unavailable("key_unsettled", "The API key was just changed.", Duration::from_secs(1)))
    }

    async fn load_record(&self, key: &ApiKeySecret) -> Result<Known> {
        let row = self
            .state
            .database
            .call("api_keys.record", async |c| db::api_keys::record(c, key.public_id()).await)
            .await?;
        let record = row.map_or_else(Record::nobody, Record::from_row);
        let encoded = record.encode().map_err(Error::internal)?;
        // A record is loaded every five minutes at most, so this is no write per request; it is not worth failing one for.
        if record.accepts(key, self.state.clock.now()) {
            let touched =
                self.state.database.call("api_keys.touch", async |c| db::api_keys::touch(c, record.id).await);
            if let Err(error) = touched.await {
                tracing::debug!(%error, "the last use of an api key was not noted");
            }
        }
        // While Redis is out the record stays in the process; that is what the cache is for.
        let keep = if record.dead { DEAD_RECORD_TTL } else { RECORD_TTL };
        let _ = self.state.limiter.add_record(key.public_id(), &encoded, keep).await;
        let known = self.state.key_records.remember(self.state.limiter.policies(), key.public_id(), &encoded);
        known.ok_or_else(|| Error::internal(anyhow::anyhow!("an encoded record can be read again")))
    }

    fn key_caller(&self, key: &ApiKeySecret, record: &Record, limits: Arc<Overrides>) -> Caller {
        Caller {
            user_id: record.user_id,
            session_id: None,
            api_key_id: Some(record.id),
            api_key_public_id: Some(key.public_id().into()),
            role: record.role.clone(),
            scopes: Some(record.scopes.clone()),
            issued_at: 0,
            limits,
            client: self.client,
            request_id: self.request_id.clone(),
        }
    }

    fn fill(
        &self,
        mut admission: Admission,
        caller: &Caller,
        add: &impl Fn(&mut Admission, &Caller),
    ) -> Admission {
        admission.charge(caller.charge(&self.state.limiter.policies().global, 1));
        add(&mut admission, caller);
        admission
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        let pending = Pending::from_request_parts(parts, state).await?;
        Ok(pending.admit(|_, _| {}).await?.0)
    }
}

/// A limit of one route's own, on top of the global one.
pub trait RoutePolicy: Send {
    /// Which one of the table.
    fn policy(policies: &Policies) -> &Policy;
}

/// A [`Caller`] who was also charged one unit of the route's own policy, in the same round trip and before the body is read.
pub struct Charged<P> {
    /// Who.
    pub caller: Caller,
    policy: PhantomData<P>,
}

impl<P: RoutePolicy> FromRequestParts<AppState> for Charged<P> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        let pending = Pending::from_request_parts(parts, state).await?;
        let policy = P::policy(state.limiter.policies());
        let add = |admission: &mut Admission, caller: &Caller| {
            admission.charge(caller.charge(policy, 1));
        };
        Ok(Self { caller: pending.admit(add).await?.0, policy: PhantomData })
    }
}

/// A caller who administers the deployment, logged in and not by key.
#[derive(Debug, Clone)]
pub struct Admin(pub Caller);

impl FromRequestParts<AppState> for Admin {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let session_id = caller.require_session()?;
        // The token's role may be a quarter of an hour old.
        let role = state
            .database
            .call("sessions.active_role", async |c| db::sessions::active_role(c, session_id).await)
            .await?;
        match role.as_deref() {
            Some("admin") => Ok(Self(caller)),
            None => Err(Error::session_ended()),
            Some(_) => Err(Error::forbidden("admin_required", "Only administrators may do this.")),
        }
    }
}

/// Anybody, on a public route.
pub struct Anonymous {
    /// Where from.
    pub client: ClientIp,
    /// In which request.
    pub request_id: Arc<str>,
    state: AppState,
    states: LimitStates,
}

impl FromRequestParts<AppState> for Anonymous {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self> {
        let (client, request_id, states) = context(parts);
        Ok(Self { client, request_id, state: state.clone(), states })
    }
}

impl Anonymous {
    /// Charges the global limit of this address.
    pub async fn admit_globally(&self) -> Result<()> {
        let mut admission = Admission::default();
        admission.charge(self.state.limiter.policies().global.charge(self.client.subject(), 1));
        self.decide(&admission).await
    }

    /// A security event of this user, for the audit log.
    pub fn event<'a>(&'a self, event: &'a str, user_id: Uuid) -> db::audit::Event<'a> {
        db::audit::Event {
            event,
            user_id: Some(user_id),
            ip: Some(self.client.0),
            request_id: Some(&self.request_id),
            ..Default::default()
        }
    }

    /// Charges the global limit of this address, and one unit of `policy` on `subject`.
    pub async fn admit(&self, policy: &Policy, subject: &str) -> Result<()> {
        let mut admission = Admission::default();
        admission.charge(self.state.limiter.policies().global.charge(self.client.subject(), 1));
        admission.charge(policy.charge(subject, 1));
        self.decide(&admission).await
    }

    async fn decide(&self, admission: &Admission) -> Result<()> {
        match self.state.limiter.admit(admission).await {
            Decision::Admitted(admitted) => {
                self.states.admitted(&admitted);
                Ok(())
            }
            Decision::Limited(limited) => Err(refused(&self.states, &limited)),
            _ => Err(Error::internal(anyhow::anyhow!("an anonymous admission has nothing to revoke"))),
        }
    }
}

fn context(parts: &Parts) -> (ClientIp, Arc<str>, LimitStates) {
    let client = parts.extensions.get::<ClientIp>().copied().unwrap_or(ClientIp([0, 0, 0, 0].into()));
    let request_id = parts.extensions.get::<RequestId>().map_or_else(|| Arc::from(""), |id| id.0.clone());
    (client, request_id, parts.extensions.get::<LimitStates>().cloned().unwrap_or_default())
}

fn refused(states: &LimitStates, limited: &Limited) -> Error {
    states.limited(limited);
    Error::limited(limited)
}
