//! The connections to one server that are kept between requests: which is taken next, which have been idle for too long.
//!
//! Rather one is taken whose state is known: of those that were kept in this turn of the loop the kernel has to be asked. Pure.

use super::members::Permit;
use crate::conn::Conn;
use crate::time::Micros;
use std::time::Duration;

/// A connection without a request.
pub(super) struct Idle {
    pub link: Link,
    pub since: Micros,
}

/// A server's connections without a request, each part in the order in which they were kept.
#[derive(Default)]
pub(super) struct Shelf {
    /// Their state is known without asking the kernel, or never will be.
    known: Vec<Idle>,
    /// Kept in this turn of the loop, so that the kernel has not been told of their reads yet.
    fresh: Vec<Idle>,
}

impl Shelf {
    pub fn len(&self) -> usize {
        self.known.len() + self.fresh.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was kept in turns before is fresh no more.
    fn settle(&mut self) {
        if self.fresh.first().is_some_and(|first| !first.is_fresh()) {
            let old = self.fresh.partition_point(|one| !one.is_fresh());
            self.known.extend(self.fresh.drain(..old));
        }
    }

    pub fn keep(&mut self, one: Idle) {
        self.settle();
        self.fresh.push(one);
    }

    /// That which was kept last.
    pub fn newest(&self) -> Option<&Idle> {
        self.fresh.last().or(self.known.last())
    }

    /// Takes the last used, but rather one whose state is known.
    pub fn take(&mut self) -> Option<Idle> {
        self.settle();
        self.known.pop().or_else(|| self.fresh.pop())
    }

    pub fn clear(&mut self) {
        self.known.clear();
        self.fresh.clear();
    }

    pub fn retain(&mut self, stays: impl Fn(&Idle) -> bool) {
        self.known.retain(&stays);
        self.fresh.retain(&stays);
    }

    /// Closes those that have been idle for so long.
    pub fn expire(&mut self, most: Duration, now: Micros) {
        for part in [&mut self.known, &mut self.fresh] {
            let old = part.partition_point(|kept| now.since(kept.since) >= most);
            part.drain(..old);
        }
    }
}

impl Idle {
    fn is_fresh(&self) -> bool {
        self.link.conn.reader.is_unheard()
    }
}

/// A connection, with what it takes up.
pub(super) struct Link {
    pub conn: Conn,
    pub permit: Permit,
    pub opened: Micros,
}
