//! The circuit breaker: after a few failures in a row nobody waits for the store, until a probe succeeds.
//!
//! A probe is a question that nobody waits for; the first follows soon, later ones less often. Pure: time is an argument.

use crate::time::Micros;
use std::time::Duration;

/// Failures in a row that open the breaker: the requests that one fault may slow down, besides those already waiting.
pub const FAILURES_MAX: u32 = 3;

/// From the opening to the first probe. Short, since a store that merely paused is back at once.
pub const PROBE_FIRST: Duration = Duration::from_millis(25);

/// The longest time between two probes; each failed one doubles it up to here.
pub const PROBE_LAST: Duration = Duration::from_millis(400);

/// What a question may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Ask and wait.
    Ask,
    /// Do not wait, but ask as a probe.
    Probe,
    /// Do not ask.
    Refused,
}

/// A change of the state, which is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Decisions are not waited for from now on.
    Opened,
    /// They are again.
    Closed,
}

/// Whether the store is worth waiting for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { probe_at: Micros, pause: Duration },
    Probing { pause: Duration },
}

impl Default for State {
    fn default() -> State {
        State::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Whether questions are not waited for.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// What a question at `now` may do. After [`Permit::Probe`] the outcome must be told, or there is no other probe.
    pub fn ask(&mut self, now: Micros) -> Permit {
        match self.state {
            State::Closed { .. } => Permit::Ask,
            State::Open { probe_at, pause } if probe_at <= now => {
                self.state = State::Probing { pause };
                Permit::Probe
            }
            State::Open { .. } | State::Probing { .. } => Permit::Refused,
        }
    }

    /// A question that somebody waited for has its answer. While open, only a probe's answer counts: others are late.
    pub fn succeeded(&mut self) {
        if let State::Closed { failures } = &mut self.state {
            *failures = 0;
        }
    }

    /// A question that somebody waited for has none.
    pub fn failed(&mut self, now: Micros) -> Option<Change> {
        let State::Closed { failures } = &mut self.state else { return None };
        *failures += 1;
        if *failures < FAILURES_MAX {
            return None;
        }
        self.state = State::Open { probe_at: now.after(PROBE_FIRST), pause: PROBE_FIRST };
        Some(Change::Opened)
    }

    /// The probe is over.
    pub fn probed(&mut self, now: Micros, answered: bool) -> Option<Change> {
        let State::Probing { pause } = self.state else { return None };
        if answered {
            self.state = State::default();
            return Some(Change::Closed);
        }
        let pause = (pause * 2).min(PROBE_LAST);
        self.state = State::Open { probe_at: now.after(pause), pause };
        None
    }

    /// A new connection was opened: while open, the next question is a probe, since opening proves no decision.
    pub fn reconnected(&mut self, now: Micros) {
        self.state = match self.state {
            State::Closed { .. } => State::default(),
            State::Open { pause, .. } | State::Probing { pause } => State::Open { probe_at: now, pause },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Micros {
        Micros(ms * 1000)
    }

    fn opened() -> Breaker {
        let mut breaker = Breaker::default();
        assert_eq!((breaker.failed(at(0)), breaker.failed(at(0))), (None, None));
        assert_eq!(breaker.failed(at(0)), Some(Change::Opened));
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_others_do_not() {
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            assert_eq!((breaker.failed(at(0)), breaker.failed(at(0))), (None, None));
            breaker.succeeded();
        }
        assert_eq!((breaker.is_open(), breaker.ask(at(0))), (false, Permit::Ask));
        assert!(opened().is_open());
    }

    #[test]
    fn one_probe_at_a_time_and_each_after_a_longer_pause() {
        let mut breaker = opened();
        let mut now = 0;
        for pause in [25, 50, 100, 200, 400, 400, 400] {
            assert_eq!(breaker.ask(at(now + pause - 1)), Permit::Refused);
            now += pause;
            assert_eq!(breaker.ask(at(now)), Permit::Probe);
            assert_eq!(breaker.ask(at(now + 10_000)), Permit::Refused, "a probe is on its way");
            assert_eq!(breaker.probed(at(now), false), None);
        }
    }

    #[test]
    fn a_probe_s_success_closes_it_and_late_news_do_not() {
        let mut breaker = opened();
        breaker.succeeded();
        assert_eq!((breaker.failed(at(1)), breaker.probed(at(1), true)), (None, None));
        assert!(breaker.is_open());
        assert_eq!(breaker.ask(at(25)), Permit::Probe);
        assert_eq!(breaker.probed(at(26), true), Some(Change::Closed));
        assert_eq!((breaker.ask(at(26)), breaker.failed(at(26))), (Permit::Ask, None));
    }

    #[test]
    fn a_new_connection_is_worth_a_probe_at_once() {
        let mut breaker = opened();
        assert_eq!(breaker.ask(at(25)), Permit::Probe);
        breaker.reconnected(at(26));
        assert_eq!((breaker.is_open(), breaker.ask(at(26))), (true, Permit::Probe));
        assert_eq!(breaker.probed(at(27), true), Some(Change::Closed));
        breaker.failed(at(28));
        breaker.reconnected(at(29));
        assert_eq!(breaker, Breaker::default());
    }
}
