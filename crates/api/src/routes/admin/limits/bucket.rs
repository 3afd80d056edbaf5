//! Buckets, as administrators name them.

use std::net::IpAddr;

use limits::{Per, Policy};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{
    AppState, Error, Result,
    auth::overrides,
    client_ip::ClientIp,
    routes::auth::{normalize_email, pseudonym},
};

/// Which bucket of a policy.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Key {
    /// Whose: `user:ID`, `key:ID` (an API key with a limit of its own), `ip:ADDRESS`, or `ip:ADDRESS,email:EMAIL`. Which of
    /// them a policy takes stands in the list of policies.
    #[param(example = "ip:203.0.113.7,email:ann@example.com")]
    pub(super) key: String,
}

/// One subject's bucket of one policy, with the limit that holds for it.
pub(super) struct Bucket {
    pub(super) policy: Policy,
    pub(super) subject: String,
}

/// How the keys of a policy are written.
pub(super) fn forms(per: Per) -> &'static [&'static str] {
    match per {
        Per::Client => &["user:ID", "key:ID", "ip:ADDRESS"],
        Per::Caller => &["user:ID", "key:ID"],
        Per::Address => &["ip:ADDRESS"],
        Per::AddressAndAccount => &["ip:ADDRESS,email:EMAIL"],
    }
}

impl Bucket {
    pub(super) async fn find(state: &AppState, policy: &str, key: &str) -> Result<Self> {
        let policies = state.limiter.policies();
        let policy = policies.find(policy).ok_or_else(|| {
            let names: Vec<_> = policies.all().iter().map(|policy| policy.name).collect();
            let detail = format!("There is no policy of this name; there are: {}.", names.join(", "));
            Error::new(axum::http::StatusCode::NOT_FOUND, "unknown_policy", detail)
        })?;
        let refuse = || {
            let forms = forms(policy.per).join(" or ");
            Error::invalid("key", format!("expected {forms} for the policy `{}`", policy.name))
        };
        let id = |text: &str| text.parse::<Uuid>().map_err(|_| refuse());
        let usual = |subject: String| Self { policy: policy.clone(), subject };
        let (kind, rest) = key.split_once(':').ok_or_else(refuse)?;
        match (policy.per, kind) {
            (Per::Client | Per::Caller, "user") => Ok(usual(format!("user:{}", id(rest)?))),
            (Per::Client | Per::Caller, "key") => own(state, policy, id(rest)?).await,
            (Per::Client | Per::Address, "ip") => Ok(usual(address(rest).ok_or_else(refuse)?.subject())),
            (Per::AddressAndAccount, "ip") => {
                let (ip, email) = rest.split_once(",email:").ok_or_else(refuse)?;
                let ip = address(ip).ok_or_else(refuse)?;
                let email = normalize_email(email).map_err(|_| refuse())?;
                Ok(usual(format!("{}:{}", ip.bucket(), pseudonym(state, &email))))
            }
            _ => Err(refuse()),
        }
    }
}

/// The bucket of an API key, which it has where it has a limit of its own.
async fn own(state: &AppState, policy: &Policy, id: Uuid) -> Result<Bucket> {
    let stored = state.database.call("api_keys.limits", async |c| db::api_keys::limits(c, id).await).await?;
    let stored = stored.ok_or_else(Error::not_found)?;
    match overrides(state.limiter.policies(), &stored).0.apply(policy) {
        Some(policy) => Ok(Bucket { policy, subject: format!("key:{id}") }),
        None => Err(Error::invalid(
            "key",
            format!(
                "this API key has no limit of its own for the policy `{}`: its user is charged",
                policy.name
            ),
        )),
    }
}

/// An address, or its /64 as it is shown.
fn address(text: &str) -> Option<ClientIp> {
    let ip: IpAddr = text.strip_suffix("/64").unwrap_or(text).parse().ok()?;
    Some(ClientIp(ip.to_canonical()))
}
