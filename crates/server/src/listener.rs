//! Binding: dual stack where there is IPv6.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The kernel cuts this down to its own maximum (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// Listens on `host:port`. `::` takes IPv4 too; where there is no IPv6 it becomes `0.0.0.0`.
///
/// # Errors
/// When the port is taken or may not be used; the message says which address it was.
pub fn bind(host: IpAddr, port: u16) -> io::Result<TcpListener> {
    let wanted = SocketAddr::new(host, port);
    let bound = match listen(wanted) {
        Err(error) if host.is_ipv6() && host.is_unspecified() && error.kind() != io::ErrorKind::AddrInUse => {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        other => other,
    };
    bound.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": another program uses the port; set PORT to a free one",
            io::ErrorKind::PermissionDenied => {
                ": ports below 1024 need a privilege; set PORT to a higher one"
            }
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {wanted}: {error}{hint}"))
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // A restart must not wait for connections of the last run in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
