//! Backends: who they are, whose turn it is, how well they are, and the connections kept open to them.
//!
//! Pure but for its leaves [`dial`], [`pool`] and [`probe`].

pub mod balance;
pub mod dial;
pub mod health;
mod idle;
pub mod members;
pub mod pool;
pub mod probe;
pub mod proxy_protocol;
pub mod queue;
pub mod retry;
pub mod way;

use crate::tls;
use proxy_protocol::ProxyProtocol;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use way::Patience;

/// A group of backends that serve the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name that routes refer to.
    pub name: String,
    /// Its servers, at least one, each once.
    pub servers: Vec<Server>,
    /// Who of them gets the next request.
    pub balance: Balance,
    /// How often a request may be tried again.
    pub retries: Retries,
    /// How long a request waits for a server.
    pub patience: Patience,
    /// How long an unused connection is kept.
    pub idle: Duration,
    /// When a server counts as sick, and as well again.
    pub health: Health,
    /// How many connections there may be.
    pub connections: Connections,
    /// TLS to the servers; `None` = plain HTTP.
    pub tls: Option<tls::Settings>,
    /// Whether connections begin by telling who the client is.
    pub proxy_protocol: ProxyProtocol,
}

/// A backend as configured; one that is a name may come to be several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// Its share of the requests, in proportion to those of the others, 1 to [`WEIGHT_MAX`]. A name's addresses have it each.
    pub weight: u32,
    /// Whether it is asked only while all that are none are sick.
    pub backup: bool,
}

/// The largest weight.
pub const WEIGHT_MAX: u32 = 1000;

/// A backend's address as configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Over TCP.
    Tcp {
        /// A name or an IP address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket on this machine.
    Unix(PathBuf),
}

impl Address {
    /// The host to ask for and to check certificates against; a socket's is `localhost`.
    pub fn host(&self) -> &str {
        match self {
            Address::Tcp { host, .. } => host,
            Address::Unix(_) => "localhost",
        }
    }

    /// What the `Host` of a request that names none is.
    pub fn authority(&self) -> String {
        match self {
            Address::Tcp { .. } => self.to_string(),
            Address::Unix(_) => self.host().to_owned(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who of several gets the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each in turn, as often as its weight says.
    RoundRobin,
    /// Of two taken at random, the one with fewer requests under way for its weight.
    LeastRequests,
    /// Always the same for a user, while it is well.
    Hash,
}

/// How often a request may be tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Further servers at most, only where nothing can have been done twice.
    pub max: u32,
    /// Statuses of a response that count as a failure to be retried, where the request is idempotent.
    pub statuses: StatusSet,
    /// Retries for each hundred requests at most, so that they cannot multiply an outage.
    pub budget_percent: u32,
}

/// Some statuses of responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusSet(pub Vec<RangeInclusive<u16>>);

impl StatusSet {
    /// Whether it holds this one.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// When a server counts as sick, and as well again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked for to see whether a server is well; `None` = nothing is asked.
    pub path: Option<String>,
    /// Between two questions.
    pub interval: Duration,
    /// For the answer to one.
    pub timeout: Duration,
    /// The statuses of a server that is well.
    pub statuses: StatusSet,
    /// Failures in a row until a server is sick: of questions, and of requests.
    pub unhealthy_after: u32,
    /// Good answers in a row until it is well again.
    pub healthy_after: u32,
    /// Statuses of responses to requests that count as failures.
    pub failures: StatusSet,
    /// Failures for each hundred requests that make a server sick; `None` = only those in a row count.
    pub failure_percent: Option<u32>,
    /// How long a server that failed requests is left alone at first; `None` = requests make nobody sick.
    pub eject: Option<Duration>,
    /// How long a server that is back takes to get its whole share.
    pub slow_start: Duration,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// To each server, of the whole process; `None` = any number.
    pub max: Option<u32>,
    /// Requests that may wait for a connection, for each server.
    pub max_pending: u32,
    /// How long they wait.
    pub pending: Duration,
    /// Unused ones kept, for each server and worker.
    pub max_idle: usize,
    /// How old one may become before it is replaced; `None` = any age.
    pub max_age: Option<Duration>,
    /// After which silence the kernel asks whether the other end is there; `None` = never.
    pub keepalive: Option<Duration>,
}

/// Where a server is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// At this address.
    Tcp(SocketAddr),
    /// At this socket of the machine.
    Unix(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Tcp(address) => address.fmt(f),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
