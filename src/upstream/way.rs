//! The way of a route's requests to their backends: which upstream, how long to wait, how much to take. Pure.

use crate::http::changes::Changes;
use std::time::Duration;

/// How long a request waits for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the response head, all attempts together, and between two pieces of a body.
    pub response: Duration,
    /// For the response head of one attempt, where another server can still be asked; `None` = as long as `response`.
    pub attempt: Option<Duration>,
}

/// How requests are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// The upstream's number.
    pub upstream: usize,
    /// How long they wait.
    pub patience: Patience,
    /// Bytes of a request body after decoding; `None` = unlimited.
    pub body_max: Option<u64>,
    /// What becomes of the fields of requests.
    pub request: Changes,
    /// What becomes of the fields of responses.
    pub response: Changes,
}
