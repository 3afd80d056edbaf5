//! Whatever clients invent, in whichever header, the address that a trusted proxy adds is the client, and without one the peer.

#![no_main]

#[path = "../../crates/api/src/client_ip.rs"]
mod client_ip;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use client_ip::{ClientIp, ClientIps};
use config::TrustedProxy;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Debug, Arbitrary)]
struct Input {
    /// What the client sends: which header, and its bytes.
    inventions: Vec<(u8, Vec<u8>)>,
    client: Ipv4Addr,
    peer: IpAddr,
    proxies: u8,
    same_line: bool,
}

const NAMES: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("true-client-ip"),
];

fn resolve(trust: &str, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let trust: TrustedProxy = trust.parse().expect("a mode");
    let client = ClientIps::new(trust).resolve(SocketAddr::new(peer, 1), headers);
    assert_eq!(client.0, client.0.to_canonical());
    assert_eq!(ClientIp(client.network()).subject(), client.subject(), "one bucket for one network");
    client.0
}

fuzz_target!(|input: Input| {
    let mut headers = HeaderMap::new();
    for (name, bytes) in &input.inventions {
        if let Ok(value) = HeaderValue::from_bytes(bytes) {
            headers.append(&NAMES[usize::from(name % 4)], value);
        }
    }
    let peer = input.peer.to_canonical();
    // Railway's edge names it in a header of its own; anybody else's word does not count.
    assert_eq!(resolve("none", input.peer, &headers), peer);
    let is_edge = matches!(peer, IpAddr::V4(ip) if ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1]));
    let behind_edge = resolve("railway", input.peer, &headers);
    assert!(is_edge || behind_edge == peer);

    let trusted = "10.0.0.0/8";
    if peer.to_string().starts_with("10.") || input.client.octets()[0] == 10 {
        return;
    }
    assert_eq!(resolve(trusted, input.peer, &headers), peer);
    // What proxies add, to the client's last line or behind it.
    let proxies = (0..input.proxies % 8).map(|proxy| format!("10.0.0.{proxy}"));
    let added = std::iter::once(input.client.to_string()).chain(proxies).collect::<Vec<_>>().join(", ");
    let last = headers.get_all(&NAMES[0]).iter().next_back().cloned().filter(|_| input.same_line);
    let line = match last {
        Some(last) => [last.as_bytes(), b",", added.as_bytes()].concat(),
        None => added.into_bytes(),
    };
    headers.append(&NAMES[0], HeaderValue::from_bytes(&line).expect("made of header values"));
    let proxy = IpAddr::V4(Ipv4Addr::new(10, 9, 9, 9));
    assert_eq!(resolve(trusted, proxy, &headers), IpAddr::V4(input.client));
});
