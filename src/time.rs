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

    /// This point moved into the past by `by`; not beyond the start.
    pub fn before(self, by: Duration) -> Micros {
        Micros(self.0.saturating_sub(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
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

/// So often a time that was read is used before it is read anew: by some fifty requests.
const USES_MAX: u32 = 256;

/// A clock that is read once in a turn of the event loop, and again where the turn serves many requests.
///
/// It is late by what some of them take, and never early: a bucket asked with it is never fuller than it is.
#[derive(Default)]
pub struct TurnClock {
    /// What was read, and how often it may still be used.
    read: Cell<Option<(Micros, u32)>>,
    turn: RefCell<Option<Waker>>,
}

impl TurnClock {
    /// The time of this turn.
    pub fn now(&self) -> Micros {
        let read = self.read.get();
        if let Some((time, uses @ 1..)) = read {
            self.read.set(Some((time, uses - 1)));
            return time;
        }
        let time = now();
        // Woken now, `forget_each_turn` runs after every task that is ready already: at the end of this turn.
        let end = self.turn.borrow_mut().take();
        if read.is_some() || end.is_some() {
            self.read.set(Some((time, USES_MAX)));
        }
        end.into_iter().for_each(Waker::wake);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::Context;

    #[test]
    fn a_turn_has_one_time_and_a_long_one_more() {
        let clock = TurnClock::default();
        let mut turns = pin!(clock.forget_each_turn());
        let mut end = || assert!(turns.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        end();
        let first = clock.now();
        let wait = || std::thread::sleep(Duration::from_millis(1));
        wait();
        (0..USES_MAX).for_each(|_| assert_eq!(clock.now(), first));
        let second = clock.now();
        assert!(second > first);
        wait();
        assert_eq!(clock.now(), second);
        end();
        assert!(clock.now() > second);
    }
}
