//! The clock: microseconds of a monotonic clock since the process first asked.
//!
//! Shell: the only place that reads a clock for request handling. Everything else takes time as an argument.
#![allow(clippy::disallowed_methods, reason = "shell: this file is where the clock is read")]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::OnceLock;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// A point on the process's monotonic clock, in microseconds since its start.
///
/// Below 2^53 for 285 years, so arithmetic on it agrees with Lua's doubles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl Micros {
    /// The time that passed since `earlier`; zero where `earlier` is later.
    pub fn since(self, earlier: Micros) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This point moved into the future by `by`; saturates.
    pub fn after(self, by: Duration) -> Micros {
        Micros(self.0.saturating_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Reads the monotonic clock.
pub fn now() -> Micros {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    Micros(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
}

/// A clock that is read once in a turn of the event loop, however many requests the turn serves.
///
/// It is late by the length of a turn at most, and never early: a bucket asked with it is never fuller than it is.
#[derive(Default)]
pub struct TurnClock {
    read: Cell<Option<Micros>>,
    turn: RefCell<Option<Waker>>,
}

impl TurnClock {
    /// The time of this turn.
    pub fn now(&self) -> Micros {
        if let Some(time) = self.read.get() {
            return time;
        }
        let time = now();
        // Woken now, `forget_each_turn` runs after every task that is ready already: at the end of this turn.
        if let Some(end) = self.turn.borrow_mut().take() {
            self.read.set(Some(time));
            end.wake();
        }
        time
    }

    /// Ends each turn that the clock was read in; to run as a task of its own. Without it every read is a fresh one.
    pub async fn forget_each_turn(&self) {
        poll_fn(|context| {
            self.read.set(None);
            *self.turn.borrow_mut() = Some(context.waker().clone());
            Poll::<()>::Pending
        })
        .await;
    }
}
