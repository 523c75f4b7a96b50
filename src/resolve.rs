//! Names to addresses, away from the request path: the control thread asks, workers read the last answer.
//!
//! Shell. A name that stops resolving keeps its last addresses.
#![allow(clippy::disallowed_methods, reason = "shell: asks the system's resolver")]

use parking_lot::Mutex;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// A host and port, and what they resolved to.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    is_literal: bool,
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Target {
    /// A target; an IP address is resolved at once and for ever, a name not before [`Target::refresh`].
    pub fn new(host: &str, port: u16) -> Target {
        let literal = host.parse::<IpAddr>().ok();
        Target {
            host: host.into(),
            port,
            is_literal: literal.is_some(),
            addresses: Mutex::new(literal.map(|ip| SocketAddr::new(ip, port)).into_iter().collect()),
        }
    }

    /// Whether it is an address, which needs no resolving.
    pub fn is_literal(&self) -> bool {
        self.is_literal
    }

    /// The name as configured.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// One of the addresses, another at each turn; `None` where the name has never resolved.
    pub fn address(&self, turn: usize) -> Option<SocketAddr> {
        let addresses = self.addresses.lock();
        let at = turn.checked_rem(addresses.len())?;
        addresses.get(at).copied()
    }

    /// Asks the resolver, blocking. Gives the new addresses where they changed.
    pub fn refresh(&self) -> io::Result<Option<Vec<SocketAddr>>> {
        if self.is_literal {
            return Ok(None);
        }
        let mut found: Vec<SocketAddr> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        found.sort();
        found.dedup();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        }
        let mut addresses = self.addresses.lock();
        if *addresses == found {
            return Ok(None);
        }
        addresses.clone_from(&found);
        Ok(Some(found))
    }
}
