//! Connections to backends: idle ones kept, new ones made.
//!
//! Shell. One pool for each worker and backend; a connection is kept only after a message that ended where it said.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: connects to backends")]

use super::{RoundRobin, Settings};
use crate::conn::{Conn, Deadlines};
use crate::resolve::Target;
use crate::time::Micros;
use monoio::net::TcpStream;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Idle connections kept for each worker and backend.
pub const IDLE_MAX: usize = 1024;

/// A group of backends as one worker sees it.
pub struct Upstream {
    /// As configured.
    pub settings: Settings,
    /// The `host:port` of its first server: the host of requests that name none.
    pub authority: String,
    backends: Vec<Backend>,
    turns: RoundRobin,
}

struct Backend {
    target: Arc<Target>,
    idle: RefCell<Vec<Idle>>,
    connects: Cell<usize>,
}

struct Idle {
    conn: Conn,
    since: Micros,
}

/// A connection in use.
pub struct Lease {
    /// The connection.
    pub conn: Conn,
    /// Which backend it leads to.
    pub backend: usize,
    /// Whether it has served a request before: then it may have died unseen.
    pub reused: bool,
}

/// Why there is no connection. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFault {
    /// The name has never resolved.
    NoAddress,
    /// Refused or unreachable.
    Refused,
    /// The connect timeout passed.
    TimedOut,
}

impl Upstream {
    /// An upstream without connections. `first` is where the round starts.
    pub fn new(settings: Settings, targets: Vec<Arc<Target>>, first: usize) -> Upstream {
        let backend = |target| Backend { target, idle: RefCell::default(), connects: Cell::new(0) };
        let authority = settings.servers.first().map(ToString::to_string).unwrap_or_default();
        Upstream {
            settings,
            authority,
            backends: targets.into_iter().map(backend).collect(),
            turns: RoundRobin::starting_at(first),
        }
    }

    /// The backend whose turn it is.
    pub fn pick(&self) -> usize {
        self.turns.pick(self.backends.len())
    }

    /// How many backends there are.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// An idle connection to this backend, the last used first.
    pub fn reuse(&self, backend: usize, now: Micros) -> Option<Lease> {
        let mut idle = self.backends.get(backend)?.idle.borrow_mut();
        let newest = idle.pop()?;
        if now.since(newest.since) >= self.settings.idle {
            // The others are older still.
            idle.clear();
            return None;
        }
        Some(Lease { conn: newest.conn, backend, reused: true })
    }

    /// A new connection to this backend, waited for that long.
    pub async fn connect(
        &self,
        backend: usize,
        deadlines: &Rc<Deadlines>,
        wait: Duration,
    ) -> Result<Lease, ConnectFault> {
        let member = self.backends.get(backend).ok_or(ConnectFault::NoAddress)?;
        let turn = member.connects.get();
        member.connects.set(turn.wrapping_add(1));
        let address = member.target.address(turn).ok_or(ConnectFault::NoAddress)?;
        let connecting = monoio::time::timeout(wait, TcpStream::connect_addr(address));
        let stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => return Err(ConnectFault::Refused),
            Err(_) => return Err(ConnectFault::TimedOut),
        };
        // Without it a request may wait for the backend's delayed acknowledgement; not worth failing over.
        let _ = stream.set_nodelay(true);
        let conn = Conn::new(stream, deadlines);
        conn.limit_unsent();
        Ok(Lease { conn, backend, reused: false })
    }

    /// Keeps a connection on which nothing is due.
    pub fn keep(&self, lease: Lease, now: Micros) {
        let Some(member) = self.backends.get(lease.backend) else { return };
        let mut idle = member.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { conn: lease.conn, since: now });
        }
    }

    /// Closes all connections that are not in use.
    pub fn close_idle(&self) {
        for member in &self.backends {
            member.idle.borrow_mut().clear();
        }
    }

    /// Closes connections that were idle for too long.
    pub fn expire(&self, now: Micros) {
        for member in &self.backends {
            let mut idle = member.idle.borrow_mut();
            let fresh = idle.partition_point(|kept| now.since(kept.since) >= self.settings.idle);
            idle.drain(..fresh);
        }
    }
}
