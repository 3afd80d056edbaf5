//! Free TCP ports.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result};

/// `preferred` when nobody listens there, otherwise a port that the kernel picks. Someone may take it before it is used:
/// whoever binds it later has to be ready to ask again.
pub fn free_port(preferred: Option<u16>) -> Result<u16> {
    match preferred {
        Some(port) if port != 0 && is_free(port) => Ok(port),
        _ => kernel_port().context("the kernel has no free TCP port"),
    }
}

/// Whether nothing listens on the port, on any of the addresses that a server of ours may bind. Each is tried: some
/// systems allow `0.0.0.0:8080` beside someone else's `127.0.0.1:8080`, and the other one would get our requests.
pub fn is_free(port: u16) -> bool {
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    addresses.into_iter().all(|address| match TcpListener::bind(SocketAddr::new(address, port)) {
        Ok(_) => true,
        // A machine without IPv6 answers something else, which says nothing about the port.
        Err(error) => !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied),
    })
}

fn kernel_port() -> io::Result<u16> {
    let mut last = 0;
    for _ in 0..32 {
        last = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        if is_free(last) {
            break;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced_by_another() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(!is_free(port));
        let other = free_port(Some(port)).unwrap();
        assert_ne!(other, port);
        assert!(is_free(other));
    }

    #[test]
    fn a_free_preferred_port_is_taken() {
        let port = free_port(None).unwrap();
        assert_eq!(free_port(Some(port)).unwrap(), port);
    }
}
