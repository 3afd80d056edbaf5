//! The client's address, for limits, logs and the audit log: one function, one rule per trust mode.
//!
//! A header counts only when the peer that sent it is trusted. Anything malformed falls back to the peer.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName};
use config::TrustedProxy;
use ipnet::IpNet;
use tokio::time::Instant;

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

impl ClientIp {
    /// What one subscriber has: an IPv4 address, or the /64 of an IPv6 address, of which this is the first.
    pub fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(ip) => {
                let s = ip.segments();
                Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0).into()
            }
        }
    }

    /// The name of its bucket, see [`Self::network`].
    pub fn bucket(self) -> String {
        match self.network() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("{ip}/64"),
        }
    }

    /// Who is charged where nobody has said who they are.
    pub fn subject(self) -> String {
        format!("ip:{}", self.bucket())
    }
}

/// Finds clients behind proxies.
#[derive(Debug)]
pub struct ClientIps {
    trust: TrustedProxy,
    misplaced: Mutex<Option<Instant>>,
}

/// For so long the health report tells of a header that did not count.
const REMEMBERED: Duration = Duration::from_secs(600);

impl ClientIps {
    /// By the word of these.
    pub fn new(trust: TrustedProxy) -> Self {
        Self { trust, misplaced: Mutex::default() }
    }

    /// Finds the client behind `peer`.
    pub fn resolve(&self, peer: SocketAddr, headers: &HeaderMap) -> ClientIp {
        let peer = peer.ip().to_canonical();
        let client = match &self.trust {
            TrustedProxy::None => None,
            TrustedProxy::Railway if !is_railways_edge(peer) => {
                if headers.contains_key(X_REAL_IP) {
                    self.misplaced(peer);
                }
                None
            }
            TrustedProxy::Railway => real_ip(headers),
            TrustedProxy::Networks(trusted) => forwarded(trusted, peer, headers),
        };
        ClientIp(client.unwrap_or(peer))
    }

    /// Falling back in silence would put all users into one bucket.
    fn misplaced(&self, peer: IpAddr) {
        metrics::counter!("client_ip_untrusted_header_total").increment(1);
        let last = self.misplaced.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
        if last.is_none() {
            tracing::warn!(%peer, "X-Real-IP comes from a peer outside 100.64.0.0/10 and is ignored: is TRUSTED_PROXY=railway right?");
        }
    }

    /// The health check: `Err` when an address was lately told by a peer whose word does not count.
    pub fn check(&self) -> Result<(), String> {
        let last = *self.misplaced.lock().unwrap_or_else(PoisonError::into_inner);
        match last {
            Some(at) if at.elapsed() < REMEMBERED => {
                Err("X-Real-IP comes from a peer outside 100.64.0.0/10 and is \
                 ignored, so many users may share one limit: is TRUSTED_PROXY=railway right?"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Railway's edge connects from 100.64.0.0/10, <https://docs.railway.com/networking/public-networking/specs-and-limits>.
fn is_railways_edge(peer: IpAddr) -> bool {
    matches!(peer, IpAddr::V4(ip) if ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64)
}

/// The one address of the one header.
fn real_ip(headers: &HeaderMap) -> Option<IpAddr> {
    let mut values = headers.get_all(X_REAL_IP).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse(value.to_str().ok()?),
        _ => None,
    }
}

/// From the right, past trusted proxies: the first address that is not one of them is the client.
fn forwarded(trusted: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    if !is_trusted(&peer) {
        return None;
    }
    let mut client = None;
    // Several header lines mean one list (RFC 9110, section 5.3).
    let lines: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().collect();
    for line in lines.into_iter().rev() {
        // Item by item: what stands to the left of the client is its own invention, and need not even be text.
        for item in line.as_bytes().rsplit(|byte| *byte == b',') {
            // Garbage in a trusted part of the list: nothing in it can be believed.
            let ip = parse(std::str::from_utf8(item).ok()?)?;
            client = Some(ip);
            if !is_trusted(&ip) {
                return client;
            }
        }
    }
    client
}

/// An address as proxies write it: with or without a port, IPv6 with or without brackets. Zone ids are refused, because they
/// mean something on one machine only.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if text.contains('%') {
        return None;
    }
    let ip =
        text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip())).or_else(
            || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        )?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn client(trust: &str, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let peer = SocketAddr::new(peer.parse().unwrap(), 1);
        ClientIps::new(trust.parse().unwrap()).resolve(peer, &headers(lines)).0.to_string()
    }

    #[test]
    fn without_trust_no_header_counts() {
        let forged = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-real-ip", "2.2.2.2"),
            ("forwarded", "for=3.3.3.3"),
            ("cf-connecting-ip", "4.4.4.4"),
        ];
        assert_eq!(client("none", "9.9.9.9", &forged), "9.9.9.9");
    }

    #[test]
    fn railway_counts_one_real_ip_from_the_edge_only() {
        assert_eq!(
            client("railway", "100.64.0.5", &[("x-real-ip", "7.7.7.7"), ("x-forwarded-for", "1.1.1.1")]),
            "7.7.7.7"
        );
        assert_eq!(client("railway", "100.127.255.1", &[("x-real-ip", "2001:db8::1")]), "2001:db8::1");
        assert_eq!(client("railway", "100.128.0.1", &[("x-real-ip", "7.7.7.7")]), "100.128.0.1");
        assert_eq!(client("railway", "9.9.9.9", &[("x-real-ip", "7.7.7.7")]), "9.9.9.9");
        assert_eq!(
            client("railway", "100.64.0.5", &[("x-real-ip", "7.7.7.7"), ("x-real-ip", "8.8.8.8")]),
            "100.64.0.5"
        );
        assert_eq!(client("railway", "100.64.0.5", &[("x-real-ip", "garbage")]), "100.64.0.5");
    }

    #[test]
    fn networks_read_the_list_from_the_right_past_trusted_proxies() {
        let trust = "10.0.0.0/8,192.168.1.7";
        assert_eq!(
            client(trust, "10.0.0.1", &[("x-forwarded-for", "1.1.1.1, 7.7.7.7, 192.168.1.7")]),
            "7.7.7.7"
        );
        assert_eq!(
            client(trust, "10.0.0.1", &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "7.7.7.7")]),
            "7.7.7.7"
        );
        assert_eq!(client(trust, "9.9.9.9", &[("x-forwarded-for", "7.7.7.7")]), "9.9.9.9");
        assert_eq!(client(trust, "10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client(trust, "10.0.0.1", &[("x-forwarded-for", "7.7.7.7, nonsense")]), "10.0.0.1");
        assert_eq!(client(trust, "10.0.0.1", &[("x-forwarded-for", "[2001:db8::1]:443")]), "2001:db8::1");
        assert_eq!(client(trust, "10.0.0.1", &[("x-forwarded-for", "\u{fc}ml\u{e4}ut, 7.7.7.7")]), "7.7.7.7");
    }

    /// Whatever the header may hold, commas and bytes that are no text included.
    fn invention() -> impl Strategy<Value = HeaderValue> {
        let byte = prop_oneof![
            Just(b','),
            Just(b' '),
            b'0'..=b'9',
            Just(b'.'),
            Just(b':'),
            b' '..=b'~',
            0x80..=0xFF_u8
        ];
        let bytes = prop::collection::vec(byte, 0..80);
        prop_oneof![
            bytes.prop_filter_map("no header value", |bytes| HeaderValue::from_bytes(&bytes).ok()),
            any::<IpAddr>().prop_map(|ip| HeaderValue::from_str(&ip.to_string()).unwrap()),
        ]
    }

    proptest! {
        /// Case R2.
        #[test]
        fn no_invention_of_a_client_changes_who_it_is(
            inventions in prop::collection::vec(invention(), 0..5),
            client in any::<Ipv4Addr>().prop_filter("not a proxy", |ip| ip.octets()[0] != 10),
            same_line in any::<bool>(),
            proxies in 0_u8..4,
        ) {
            let mut map = HeaderMap::new();
            for invention in &inventions {
                map.append(X_FORWARDED_FOR, invention.clone());
                map.append(X_REAL_IP, invention.clone());
                map.append("forwarded", invention.clone());
            }
            // What the proxies add: to the last line, or as a line of their own.
            let proxies = (0..proxies).map(|proxy| format!("10.0.0.{proxy}"));
            let added = std::iter::once(client.to_string()).chain(proxies).collect::<Vec<_>>().join(", ");
            if same_line && let Some(last) = inventions.last() {
                let line = [last.as_bytes(), b", ", added.as_bytes()].concat();
                map.append(X_FORWARDED_FOR, HeaderValue::from_bytes(&line).unwrap());
            } else {
                map.append(X_FORWARDED_FOR, HeaderValue::from_str(&added).unwrap());
            }
            let resolve = |trust: &str, peer: &str| {
                ClientIps::new(trust.parse().unwrap()).resolve(SocketAddr::new(peer.parse().unwrap(), 1), &map).0
            };
            prop_assert_eq!(resolve("10.0.0.0/8", "10.9.9.9"), IpAddr::V4(client));
            prop_assert_eq!(resolve("10.0.0.0/8", "9.9.9.9"), "9.9.9.9".parse::<IpAddr>().unwrap());
            prop_assert_eq!(resolve("none", "10.9.9.9"), "10.9.9.9".parse::<IpAddr>().unwrap());
            prop_assert_eq!(resolve("railway", "9.9.9.9"), "9.9.9.9".parse::<IpAddr>().unwrap());
        }

        #[test]
        fn an_address_is_read_as_it_was_written_and_has_one_bucket(ip in any::<IpAddr>(), port in any::<u16>()) {
            let canonical = ip.to_canonical();
            prop_assert_eq!(parse(&ip.to_string()), Some(canonical));
            prop_assert_eq!(parse(&SocketAddr::new(ip, port).to_string()), Some(canonical));
            prop_assert_eq!(parse(&format!(" {ip}%eth0")), None);
            let network = ClientIp(canonical).network();
            prop_assert_eq!(ClientIp(network).network(), network);
            prop_assert_eq!(ClientIp(canonical).bucket(), ClientIp(network).bucket());
        }
    }

    #[test]
    fn one_subscriber_has_one_bucket() {
        let bucket = |ip: &str| ClientIp(ip.parse().unwrap()).bucket();
        assert_eq!(bucket("2001:db8:1:2::1"), bucket("2001:db8:1:2:ffff::9"));
        assert_ne!(bucket("2001:db8:1:2::1"), bucket("2001:db8:1:3::1"));
        assert_eq!(client("none", "::ffff:9.9.9.9", &[]), "9.9.9.9", "v4-mapped addresses are IPv4");
    }
}
