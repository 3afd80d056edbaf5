//! Where the servers come from: the order that the crate's documentation tells.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::docker::Docker;
use crate::install::{Package, Plan};
use crate::service::{Handle, Service, Spec};
use crate::{Unavailable, postgres, redis};

/// Where the servers that nobody named will come from. A server without programs comes from Docker.
pub(crate) struct Found {
    pub(crate) postgres: Option<Vec<postgres::Binaries>>,
    pub(crate) redis: Option<PathBuf>,
    pub(crate) docker: Option<Docker>,
}

/// Looks for programs, installs them if need be and allowed, and falls back to Docker.
pub(crate) fn find(spec: &Spec<'_>) -> Result<Found> {
    let mut missing = Missing::look(spec);
    if !missing.packages.is_empty() {
        if let Some(plan) = Plan::new(&spec.system, &missing.packages) {
            match plan.offer(&spec.system, spec.install, spec.say)? {
                Ok(()) => missing = Missing::look(spec),
                Err(reason) => missing.reasons.push(format!("{reason}; the command is: {}", plan.shown())),
            }
        } else {
            let reason = "no package manager that could be used (apt-get, dnf, pacman, brew)";
            missing.reasons.push(reason.to_owned());
        }
    }
    if missing.packages.is_empty() {
        return Ok(Found { postgres: missing.postgres, redis: missing.redis, docker: None });
    }
    match Docker::find(spec) {
        Ok(docker) => Ok(Found { postgres: missing.postgres, redis: missing.redis, docker: Some(docker) }),
        Err(reason) => {
            missing.reasons.push(reason);
            Err(missing.error())
        }
    }
}

/// What was found, and what is lacking with the reasons so far.
struct Missing {
    postgres: Option<Vec<postgres::Binaries>>,
    redis: Option<PathBuf>,
    packages: Vec<Package>,
    reasons: Vec<String>,
}

impl Missing {
    fn look(spec: &Spec<'_>) -> Self {
        let mut found = Self { postgres: None, redis: None, packages: Vec::new(), reasons: Vec::new() };
        if spec.database_url.is_none() {
            match postgres::find(&spec.system) {
                Ok(binaries) => found.postgres = Some(binaries),
                Err(reason) => {
                    found.packages.push(Package::Postgres);
                    found.reasons.push(reason);
                }
            }
        }
        if spec.redis_url.is_none() {
            match redis::find(&spec.system) {
                Ok(program) => found.redis = Some(program),
                Err(reason) => {
                    found.packages.push(Package::Redis);
                    found.reasons.push(reason);
                }
            }
        }
        found
    }

    fn error(&self) -> anyhow::Error {
        let names: Vec<&str> = self
            .packages
            .iter()
            .map(|package| match package {
                Package::Postgres => "Postgres",
                Package::Redis => "Redis",
                Package::Python => "Python",
                Package::Nginx => "nginx",
            })
            .collect();
        let mut text = format!("{} cannot be had on this machine:\n", names.join(" and "));
        for reason in &self.reasons {
            text.extend(["    ", reason, "\n"]);
        }
        text.push_str("  Ways out, any one of them:\n");
        text.push_str("  - install the servers (Debian, Ubuntu: sudo apt-get install postgresql redis-server), or let `--yes` do it\n");
        text.push_str("  - start Docker\n  - name running servers:");
        if self.packages.contains(&Package::Postgres) {
            text.push_str(" DATABASE_URL=postgres://user:password@host:5432/database");
        }
        if self.packages.contains(&Package::Redis) {
            text.push_str(" REDIS_URL=redis://host:6379");
        }
        Unavailable(text).into()
    }
}

/// A server that the caller named: only looked at, so that a wrong address is told here and not by what comes after.
pub(crate) fn given(name: &'static str, variable: &str, url: &str, default_port: u16) -> Result<Service> {
    if let Some((host, port)) = host_and_port(url, default_port) {
        let addresses = (host.as_str(), port).to_socket_addrs().map(Vec::from_iter).unwrap_or_default();
        if !addresses
            .iter()
            .any(|address| TcpStream::connect_timeout(address, Duration::from_secs(3)).is_ok())
        {
            let text = format!(
                "{variable} is set, but nothing answers at {host}:{port}\n  - start that server, or\n  \
                 - correct {variable}, or unset it to get a private server"
            );
            return Err(Unavailable(text).into());
        }
        return Ok(
            Service::new(name, format!("{variable}: {host}:{port}"), Handle::Given).at(url.to_owned(), port)
        );
    }
    Ok(Service::new(name, variable.to_owned(), Handle::Given).at(url.to_owned(), default_port))
}

/// Host and port of a URL. `None` for what has no single one: sockets, several hosts, `?host=`.
fn host_and_port(url: &str, default_port: u16) -> Option<(String, u16)> {
    let rest = url.split_once("://")?.1;
    if rest.contains("host=") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    if address.is_empty() || address.contains([',', '%']) {
        return None;
    }
    if let Some(v6) = address.strip_prefix('[') {
        let (host, port) = v6.split_once(']')?;
        return Some((
            host.to_owned(),
            port.strip_prefix(':').map_or(Some(default_port), |p| p.parse().ok())?,
        ));
    }
    match address.split_once(':') {
        Some((host, port)) => Some((host.to_owned(), port.parse().ok()?)),
        None => Some((address.to_owned(), default_port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_read_from_urls() {
        let pairs = [
            ("postgres://u:p@db.example:5433/x", Some(("db.example", 5433))),
            ("postgres://u:p%40@db.example/x?sslmode=require", Some(("db.example", 5432))),
            ("postgresql://[::1]:6000/x", Some(("::1", 6000))),
            ("postgres:///x?host=/run/postgresql", None),
            ("postgres://a:1,b:2/x", None),
            ("nonsense", None),
        ];
        for (url, expected) in pairs {
            let expected = expected.map(|(host, port)| (host.to_owned(), port));
            assert_eq!(host_and_port(url, 5432), expected, "{url}");
        }
    }
}
