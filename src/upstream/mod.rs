//! Backends: who they are, whose turn it is, and the connections kept open to them.
//!
//! Pure but for its leaf [`pool`].

pub mod pool;
pub mod retry;
pub mod way;

use std::cell::Cell;
use std::time::Duration;

/// A group of backends that serve the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name that routes refer to.
    pub name: String,
    /// Its servers, at least one.
    pub servers: Vec<Server>,
    /// Further attempts on another connection or server, only where nothing can have been done twice.
    pub retries: u32,
    /// Waiting for a connection.
    pub connect: Duration,
    /// Waiting for the response head, and between two pieces of a body.
    pub response: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
}

/// A backend's address as configured.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Takes the members of a group in turn.
#[derive(Debug)]
pub struct RoundRobin {
    next: Cell<usize>,
}

impl RoundRobin {
    /// Starts with member `first`: workers start apart, so that few requests do not all meet one backend.
    pub fn starting_at(first: usize) -> RoundRobin {
        RoundRobin { next: Cell::new(first) }
    }

    /// The next of `members`; zero where there is none.
    pub fn pick(&self, members: usize) -> usize {
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        turn.checked_rem(members).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_gets_the_same() {
        let turns = RoundRobin::starting_at(2);
        let mut counts = [0; 3];
        for _ in 0..300 {
            counts[turns.pick(3)] += 1;
        }
        assert_eq!(counts, [100; 3]);
    }
}
