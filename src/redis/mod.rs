//! The Redis client: one pipelined connection for each worker.
//!
//! What it promises: replies belong to commands in order, and a command whose asker has gone still takes its own reply.
//! No command is sent twice; while there is no connection, or the server keeps failing, askers are told so at once.
//! Every wait is bounded by the deadline. What a reply means is the caller's business. Pure but for its leaf [`client`].

pub mod breaker;
pub mod client;
pub mod error;
pub mod pipeline;
pub mod resp;

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
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("address", &self.address)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("database", &self.database)
            .field("deadline", &self.deadline)
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
