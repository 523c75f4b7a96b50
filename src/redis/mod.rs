//! The Redis client: one pipelined connection for each worker.
//!
//! What it promises: replies belong to commands in order, and a command whose asker has gone still takes its own reply.
//! No command is sent twice; while there is no connection, or the server keeps failing, askers are told so at once.
//! Every wait is bounded by the deadline. What a reply means is the caller's business. Pure but for its leaves [`client`] and [`tls`].

pub mod breaker;
pub mod client;
pub mod error;
pub mod pipeline;
pub mod resp;
pub mod tls;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where Redis listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name or IP address, and a port.
    Tcp {
        /// Without brackets.
        host: String,
        /// 6379 by custom.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// How TLS is spoken with Redis. All files hold PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// The authority that vouches for the server; `None` = those that the system trusts.
    pub ca: Option<PathBuf>,
    /// Our certificate, where the server asks for one.
    pub certificate: Option<PathBuf>,
    /// The private key of that certificate.
    pub key: Option<PathBuf>,
    /// The name that the server's certificate must hold; `None` = the host of the address.
    pub name: Option<String>,
}

/// How to reach Redis and how long to wait for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub address: Address,
    /// The ACL user; `None` = the default user.
    pub username: Option<String>,
    /// Sent with AUTH where present.
    pub password: Option<String>,
    /// Chosen with SELECT where not 0.
    pub database: u32,
    /// The longest wait for a reply.
    pub deadline: Duration,
    /// Spoken over TCP only.
    pub tls: Option<Tls>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("address", &self.address)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("database", &self.database)
            .field("deadline", &self.deadline)
            .field("tls", &self.tls)
            .finish()
    }
}

/// Why there is no answer. None of these commands is ever sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no connection, or it broke before the reply came.
    Disconnected,
    /// The deadline passed.
    Timeout,
    /// Too many commands wait for replies already.
    Overloaded,
    /// The store has failed several times in a row and is not waited for.
    Broken,
}
