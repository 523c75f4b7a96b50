//! The Redis client: pipelined connections of each worker to one server, to the primary that sentinels name, or to the
//! primaries of a cluster.
//!
//! What it promises: replies belong to commands in order, and a command whose asker has gone still takes its own reply.
//! No command is sent twice; while there is no connection, or the server keeps failing, askers are told so at once.
//! Every wait is bounded by the deadline. What a reply means is the caller's business. Pure but for its leaves [`client`],
//! [`connection`] and [`dial`].

pub mod breaker;
pub mod client;
pub mod cluster;
mod connection;
pub mod dial;
pub mod error;
pub mod pipeline;
pub mod resp;
pub mod sentinel;

use crate::tls;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Where the buckets are to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this server.
    Server(Address),
    /// On the primary that the sentinels know by this name.
    Sentinel {
        /// The sentinels, at least one; TCP.
        sentinels: Vec<Address>,
        /// What they call it.
        primary: String,
        /// Sent to the sentinels themselves, where they ask for it.
        credentials: Option<Credentials>,
    },
    /// On the primaries of the cluster that these servers belong to, at least one; TCP.
    Cluster(Vec<Address>),
}

impl Place {
    /// The servers that the configuration names.
    pub fn named(&self) -> &[Address] {
        match self {
            Place::Server(address) => std::slice::from_ref(address),
            Place::Sentinel { sentinels, .. } => sentinels,
            Place::Cluster(seeds) => seeds,
        }
    }
}

/// Who we are to a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The ACL user; `None` = the default user.
    pub username: Option<String>,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).field("password", &"***").finish()
    }
}

/// The version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// RESP2, which every server speaks.
    #[default]
    Two,
    /// RESP3, agreed on by HELLO (Redis 6).
    Three,
}

/// How to reach Redis and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub place: Place,
    /// Sent with AUTH where present.
    pub credentials: Option<Credentials>,
    /// Chosen with SELECT where not 0; always 0 in a cluster.
    pub database: u32,
    /// The longest wait for a reply.
    pub deadline: Duration,
    /// Spoken over TCP only.
    pub tls: Option<tls::Settings>,
    /// Spoken with the servers that hold buckets.
    pub version: Version,
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
