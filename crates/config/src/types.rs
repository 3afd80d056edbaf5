//! The small types that settings are made of.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use ipnet::IpNet;

/// Where the process runs. Staging and production are held to the same rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Environment {
    /// A developer's machine: sample secrets and pretty logs.
    Development,
    /// A deployment for trying things.
    Staging,
    /// The real thing.
    Production,
}

impl Environment {
    /// True outside development: no sample secret is accepted, and nothing is left to a guess.
    pub const fn is_deployed(self) -> bool {
        !matches!(self, Self::Development)
    }

    /// `development`, `staging` or `production`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Staging => "staging",
            Self::Production => "production",
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Environment {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "development" => Ok(Self::Development),
            "staging" => Ok(Self::Staging),
            "production" => Ok(Self::Production),
            _ => Err("expected development, staging or production".to_owned()),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line with top-level `level` and `message`.
    Json,
    /// For people.
    Pretty,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "json" => Ok(Self::Json),
            "pretty" => Ok(Self::Pretty),
            _ => Err("expected json or pretty".to_owned()),
        }
    }
}

/// Who may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignUp {
    /// Anyone.
    Open,
    /// Whom an administrator invited.
    Invite,
    /// Nobody: accounts come from `ballast user create`.
    Closed,
}

impl FromStr for SignUp {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "open" => Ok(Self::Open),
            "invite" => Ok(Self::Invite),
            "closed" => Ok(Self::Closed),
            _ => Err("expected open, invite or closed".to_owned()),
        }
    }
}

/// A rate such as `100/15m`: so many units per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units per period, at least 1.
    pub limit: u64,
    /// The period, at least one millisecond.
    pub period: Duration,
}

impl FromStr for Rate {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        const SHAPE: &str = "expected LIMIT/PERIOD such as 100/15m";
        let (limit, period) = s.split_once('/').ok_or(SHAPE)?;
        let limit: u64 = limit.trim().parse().map_err(|_| SHAPE)?;
        let period = humantime::parse_duration(period.trim()).map_err(|_| SHAPE)?;
        if limit == 0 || limit > 1_000_000_000 {
            return Err("the limit must be between 1 and 1000000000".to_owned());
        }
        if period < Duration::from_millis(1) || period > Duration::from_secs(31 * 86_400) {
            return Err("the period must be between 1ms and 31d".to_owned());
        }
        Ok(Self { limit, period })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.limit, humantime::format_duration(self.period))
    }
}

/// Whose word on the client's address is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Nobody's: the peer address is the client.
    None,
    /// Railway's edge: peers in 100.64.0.0/10 name the client in one `X-Real-IP`.
    Railway,
    /// Proxies in these networks: `X-Forwarded-For` is read from the right, past trusted addresses.
    Networks(Vec<IpNet>),
}

impl FromStr for TrustedProxy {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Self::None),
            "railway" => Ok(Self::Railway),
            list => list
                .split(',')
                .map(str::trim)
                .map(|item| item.parse::<IpNet>().or_else(|_| item.parse::<IpAddr>().map(IpNet::from)))
                .collect::<Result<Vec<_>, _>>()
                .map(Self::Networks)
                .map_err(|_| "expected railway, none, or networks such as 10.0.0.0/8,192.168.1.7".to_owned()),
        }
    }
}
