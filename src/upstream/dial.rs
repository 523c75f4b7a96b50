//! How a connection to a backend is opened: the socket, the PROXY header, TLS.
//!
//! Shell. All of it is bounded by one time.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: connects to backends")]

use super::members::Group;
use super::proxy_protocol::{Line, ProxyProtocol};
use super::{Place, Settings};
use crate::conn::{Conn, Deadlines};
use crate::log::{Budget, Take};
use crate::time::now;
use crate::tls::Secure;
use monoio::io::AsyncWriteRentExt;
use monoio::net::TcpStream;
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Between two probes of a peer that is silent, and how many of them go unanswered before it counts as gone.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// Failed handshakes that are told of within [`FAILURES_WINDOW`]: servers may fail in turns, each for a reason of its own.
const FAILURES_MAX: u32 = 8;
const FAILURES_WINDOW: Duration = Duration::from_secs(10);

/// Why there is no connection. Nothing of a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFault {
    /// The server has as many connections as it may.
    Full,
    /// Refused or unreachable; or no port of ours is left towards this address.
    Refused,
    /// The connect timeout passed.
    TimedOut,
    /// The handshake failed.
    Tls,
    /// This process, or the system, has no more descriptors: our own doing, not the backend's.
    Exhausted,
}

/// Opens the connections of one upstream.
pub struct Dialer {
    /// Spoken where present.
    pub tls: Option<Secure>,
    /// Whether backends are told who their client is.
    pub proxy_protocol: ProxyProtocol,
    /// After how long a silence a TCP connection is probed, so that a peer which vanished is noticed; `None` = never.
    pub keepalive: Option<Duration>,
    /// Why the last handshake failed, where it did: told once.
    told: RefCell<Option<String>>,
    failures: RefCell<Budget>,
}

impl Dialer {
    /// One that speaks as this upstream wants it.
    pub fn of(group: &Group) -> Dialer {
        let Settings { proxy_protocol, connections, .. } = &group.settings;
        Dialer::new(group.tls.clone(), *proxy_protocol, connections.keepalive)
    }

    /// One that speaks in this way.
    pub fn new(tls: Option<Secure>, proxy_protocol: ProxyProtocol, keepalive: Option<Duration>) -> Dialer {
        let failures = RefCell::new(Budget::within(FAILURES_MAX, FAILURES_WINDOW));
        Dialer { tls, proxy_protocol, keepalive, told: RefCell::default(), failures }
    }

    /// Opens a connection `within` this time. `host` is whom TLS expects there, `line` whom the connection is for, where
    /// it serves one client alone.
    pub async fn dial(
        &self,
        place: &Place,
        host: &str,
        line: Option<&Line>,
        within: Duration,
        deadlines: &Rc<Deadlines>,
    ) -> Result<Conn, ConnectFault> {
        // What is dropped in flight here goes with its connection. Boxed: few requests open one.
        match Box::pin(monoio::time::timeout(within, self.open(place, host, line, deadlines))).await {
            Ok(opened) => opened,
            Err(_) => Err(ConnectFault::TimedOut),
        }
    }

    async fn open(
        &self,
        place: &Place,
        host: &str,
        line: Option<&Line>,
        deadlines: &Rc<Deadlines>,
    ) -> Result<Conn, ConnectFault> {
        let connected = match place {
            Place::Tcp(address) => self.tcp(*address).await,
            Place::Unix(path) => unix(path),
        };
        let mut stream = connected.map_err(|error| fault(&error))?;
        let header = self.proxy_protocol.header(line);
        if !header.is_empty() {
            stream.write_all(header).await.0.map_err(|error| fault(&error))?;
        }
        let conn = match &self.tls {
            None => Conn::reading_ahead(stream, deadlines),
            // Boxed: who connects without TLS pays nothing for its size.
            Some(tls) => match Box::pin(tls.open(host, stream)).await {
                Ok(stream) => {
                    self.told.take();
                    Conn::secure(stream, deadlines)
                }
                Err(error) => {
                    self.tell(place, host, &error);
                    return Err(ConnectFault::Tls);
                }
            },
        };
        if matches!(place, Place::Tcp(_)) {
            conn.limit_unsent();
        }
        Ok(conn)
    }

    async fn tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_addr(address).await?;
        // Without it a request may wait for the backend's delayed acknowledgement; neither is worth failing over.
        let _ = stream.set_nodelay(true);
        if let Some(silence) = self.keepalive {
            let _ = stream.set_tcp_keepalive(Some(silence), Some(PROBE_INTERVAL), Some(PROBES));
        }
        Ok(stream)
    }

    /// Says why a handshake failed, once for each reason in a row: a client is told only that it did.
    fn tell(&self, place: &Place, host: &str, error: &io::Error) {
        let reason = error.to_string();
        if self.told.borrow().as_ref() == Some(&reason) {
            return;
        }
        if let Take::Write { suppressed } = self.failures.borrow_mut().take(now()) {
            tracing::warn!(server = %place, host, reason, suppressed, "a backend's TLS handshake failed");
        }
        self.told.replace(Some(reason));
    }
}

/// Connects to a unix socket, which never waits: a listener with a full backlog refuses (EAGAIN). A [`TcpStream`] carries
/// it, since the runtime does nothing with either but recv, send and shutdown; so a connection needs no third kind. Of the
/// two drivers only epoll wants it nonblocking: io_uring would hand out EAGAIN instead of waiting.
fn unix(path: &Path) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(monoio::utils::is_legacy())?;
    TcpStream::from_std(OwnedFd::from(socket).into())
}

fn fault(error: &io::Error) -> ConnectFault {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => ConnectFault::Exhausted,
        Some(Errno::TIMEDOUT) => ConnectFault::TimedOut,
        _ => ConnectFault::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_lack_ourselves_is_our_fault() {
        for (errno, expected) in [
            (Errno::CONNREFUSED, ConnectFault::Refused),
            (Errno::ADDRNOTAVAIL, ConnectFault::Refused),
            (Errno::NETUNREACH, ConnectFault::Refused),
            (Errno::AGAIN, ConnectFault::Refused),
            (Errno::NOENT, ConnectFault::Refused),
            (Errno::TIMEDOUT, ConnectFault::TimedOut),
            (Errno::MFILE, ConnectFault::Exhausted),
            (Errno::NFILE, ConnectFault::Exhausted),
        ] {
            assert_eq!(fault(&errno.into()), expected, "{errno}");
        }
    }
}
