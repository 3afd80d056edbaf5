//! The client for addresses that users gave: it goes to public ones only.
//!
//! What counts is the address of the connection, not the name: a name may lead somewhere else the next time it is asked
//! (DNS rebinding). So the check is in the resolver that the connection itself uses. Numbers in place of a name never reach a
//! resolver, so they are checked with the URL. Redirects are not followed, proxies not asked, and no connection is kept.

use std::{
    error::Error as StdError,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use config::Environment;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::is_public;

/// The longest address that is stored.
const MAX_URL: usize = 2_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first packet to the head of the answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What a deployment lets users' addresses lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Plain HTTP, any port, and this machine: for trying things out.
    development: bool,
}

/// A URL, or where it leads, is not allowed; the text may be shown to its owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(&'static str);

const NOT_PUBLIC: Refused = Refused("the address is not public");

impl Rules {
    /// Development may deliver to itself; elsewhere only HTTPS to public addresses will do.
    pub fn of(environment: Environment) -> Self {
        Self { development: environment == Environment::Development }
    }

    /// Whether a delivery may be tried there, as far as the text tells. The resolver has the last word.
    pub fn check(self, text: &str) -> Result<Url, Refused> {
        if text.len() > MAX_URL || text.chars().any(char::is_control) {
            return Err(Refused("must be a URL of at most 2000 bytes"));
        }
        let url = Url::parse(text).map_err(|_| Refused("must be a URL such as https://example.com/hooks"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.development => {}
            _ => return Err(Refused("must begin with https://")),
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err(Refused("must not hold credentials or a fragment"));
        }
        let port = url.port_or_known_default().unwrap_or(0);
        if !self.development && port != 443 && port < 1_024 {
            return Err(Refused("must have port 443, or one from 1024 on"));
        }
        match url.host() {
            Some(Host::Ipv4(ip)) if !self.allows(ip.into()) => Err(NOT_PUBLIC),
            Some(Host::Ipv6(ip)) if !self.allows(ip.into()) => Err(NOT_PUBLIC),
            None => Err(Refused("must name a host")),
            Some(_) => Ok(url),
        }
    }

    fn allows(self, address: IpAddr) -> bool {
        is_public(address) || self.development && address.to_canonical().is_loopback()
    }
}

/// Resolves names and forgets what is not allowed.
struct Guard {
    rules: Rules,
    resolver: Arc<dyn Resolve>,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let (rules, found) = (self.rules, self.resolver.resolve(name));
        Box::pin(async move {
            let allowed: Vec<SocketAddr> = found.await?.filter(|a| rules.allows(a.ip())).collect();
            if allowed.is_empty() {
                return Err(NOT_PUBLIC.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Asks the system.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Posts to addresses that users gave. Clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    rules: Rules,
}

/// Nobody answered; the text may be shown to the address's owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// We do not go there.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No answer within the time.
    #[error("no answer within 15 seconds")]
    TimedOut,
    /// No connection: nobody listens, the name is unknown, or the certificate is wrong.
    #[error("no connection: check the name, the port and the certificate")]
    NoConnection,
    /// The connection ended early, or what came is no HTTP.
    #[error("the answer cannot be read")]
    Broken,
}

impl Client {
    /// Asks the system's resolver.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(rules: Rules) -> reqwest::Result<Self> {
        Self::with_resolver(rules, Arc::new(System))
    }

    /// Asks this resolver; what it finds is still held against the rules.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn with_resolver(rules: Rules, resolver: Arc<dyn Resolve>) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .dns_resolver(Guard { rules, resolver })
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            // A kept connection would be used without asking where its name leads now.
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .http1_only()
            .user_agent(concat!("ballast-webhooks/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, rules })
    }

    /// Posts a JSON body and gives the status of the answer. The answer's body is not read: nobody needs it, and it may be
    /// endless.
    pub async fn post(
        &self,
        url: &str,
        headers: [(&'static str, String); 3],
        body: String,
    ) -> Result<u16, Undelivered> {
        let url = self.rules.check(url)?;
        let mut request = self.http.post(url).header("content-type", "application/json").body(body);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        match request.send().await {
            Ok(answer) => Ok(answer.status().as_u16()),
            Err(error) => Err(undelivered(&error)),
        }
    }
}

fn undelivered(error: &reqwest::Error) -> Undelivered {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return refused.clone().into();
        }
        source = cause.source();
    }
    match () {
        () if error.is_timeout() => Undelivered::TimedOut,
        () if error.is_connect() => Undelivered::NoConnection,
        () => Undelivered::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Rules = Rules { development: false };
    const DEVELOPMENT: Rules = Rules { development: true };

    #[test]
    fn deployed_only_https_to_public_hosts_will_do() {
        for good in [
            "https://example.com/hooks?a=b",
            "https://example.com:8443/",
            "https://8.8.8.8/x",
            "https://[2606:4700::1111]/",
            "https://xn--bcher-kva.example/",
        ] {
            assert!(STRICT.check(good).is_ok(), "{good}");
        }
        for bad in [
            "http://example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "gopher://example.com",
            "//example.com/x",
            "example.com",
            "",
            "https://",
            "https://user@example.com/",
            "https://user:pass@example.com/",
            "https://example.com/#x",
            "https://example.com:22/",
            "https://example.com:80/",
            "https://example.com:0/",
            "https://example.com/\nHost: x",
            // All of these are 127.0.0.1 or another address inside, as the URL standard reads them.
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://%31%32%37.0.0.1/",
            "https://１２７.0.0.1/",
            "https://0/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://[fd00:ec2::254]/",
            "https://10.0.0.1:8443/",
            "https://[64:ff9b::7f00:1]/",
            "https://[2002:7f00:1::]/",
            "https://100.64.0.1/",
        ] {
            assert!(STRICT.check(bad).is_err(), "{bad}");
        }
        assert!(STRICT.check(&format!("https://example.com/{}", "x".repeat(2_000))).is_err());
    }

    #[test]
    fn development_may_deliver_to_this_machine_and_no_further_inside() {
        for good in
            ["http://127.0.0.1:9000/", "http://localhost:80/x", "http://[::1]:1/", "https://example.com"]
        {
            assert!(DEVELOPMENT.check(good).is_ok(), "{good}");
        }
        for bad in [
            "http://169.254.169.254/",
            "http://10.0.0.1/",
            "http://192.168.0.1/",
            "http://0.0.0.0:5432/",
            "ftp://localhost/",
        ] {
            assert!(DEVELOPMENT.check(bad).is_err(), "{bad}");
        }
        assert_eq!(Rules::of(Environment::Staging), STRICT);
        assert_eq!(Rules::of(Environment::Production), STRICT);
    }
}
