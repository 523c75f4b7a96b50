//! When a server counts as sick, and as well again: what its answers to requests and to probes add up to. Pure.

use super::Health;
use crate::time::Micros;
use std::cell::Cell;
use std::time::Duration;

/// How long answers count towards a rate of failures.
const WINDOW: Duration = Duration::from_secs(10);

/// Answers in a window without which their rate says nothing.
const RATE_MIN: u32 = 20;

/// The longest that a server is left alone.
pub const EJECT_MAX: Duration = Duration::from_secs(300);

/// A server that was well for so many times its first ejection is new again: the next one is short.
const FORGIVEN_AFTER: u32 = 10;

/// A server's answers to the requests of one worker.
#[derive(Debug, Default)]
pub struct Record {
    streak: Cell<u32>,
    since: Cell<Micros>,
    answers: Cell<u32>,
    failures: Cell<u32>,
}

impl Record {
    /// Takes an answer, or the failure to give one, into account. Whether the server counts as sick now: it failed so often
    /// in a row, or so many times of a hundred within [`WINDOW`]; then the record is blank again.
    pub fn is_sick_after(&self, is_failure: bool, now: Micros, health: &Health) -> bool {
        if now.since(self.since.get()) >= WINDOW {
            self.since.set(now);
            self.answers.set(0);
            self.failures.set(0);
        }
        self.answers.set(self.answers.get().saturating_add(1));
        if !is_failure {
            self.streak.set(0);
            return false;
        }
        self.streak.set(self.streak.get().saturating_add(1));
        self.failures.set(self.failures.get().saturating_add(1));
        let (answers, failures) = (u64::from(self.answers.get()), u64::from(self.failures.get()));
        let is_often = |percent: u32| answers >= RATE_MIN.into() && failures * 100 >= answers * u64::from(percent);
        let is_sick = self.streak.get() >= health.unhealthy_after || health.failure_percent.is_some_and(is_often);
        if is_sick {
            self.clear();
        }
        is_sick
    }

    /// Forgets all answers.
    pub fn clear(&self) {
        self.streak.set(0);
        self.answers.set(0);
        self.failures.set(0);
    }
}

/// How long a server is left alone: `first`, and twice as long each further time in a row (`times` before this one), up to
/// [`EJECT_MAX`] or `first` where that is longer.
pub fn ejection(first: Duration, times: u32) -> Duration {
    let doubled = first.checked_mul(1u32.checked_shl(times).unwrap_or(u32::MAX)).unwrap_or(EJECT_MAX);
    doubled.min(EJECT_MAX.max(first))
}

/// Whether earlier ejections are forgotten after so long a time in health.
pub fn is_forgiven(first: Duration, well_for: Duration) -> bool {
    well_for >= first.saturating_mul(FORGIVEN_AFTER)
}

/// A server's share of its weight, in thousandths, so long after it came back: a tenth at first, then more in proportion to
/// the time, all of it after `slow_start`.
pub fn share(back_for: Duration, slow_start: Duration) -> u32 {
    if back_for >= slow_start {
        return 1000;
    }
    let part = back_for.as_micros() * 1000 / slow_start.as_micros().max(1);
    u32::try_from(part).unwrap_or(1000).clamp(100, 1000)
}

/// A server's answers to probes.
#[derive(Debug, Default)]
pub struct Probes {
    is_down: bool,
    against: u32,
}

impl Probes {
    /// Takes an answer into account; gives whether the server is down where that has changed. Only answers in a row that
    /// contradict what is believed change it.
    pub fn record(&mut self, is_good: bool, health: &Health) -> Option<bool> {
        if is_good != self.is_down {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if self.is_down { health.healthy_after } else { health.unhealthy_after };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.is_down = !self.is_down;
        Some(self.is_down)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::upstream::StatusSet;

    pub fn settings() -> Health {
        Health {
            path: None,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            statuses: StatusSet(vec![200..=399]),
            unhealthy_after: 3,
            healthy_after: 2,
            failures: StatusSet(vec![502..=504]),
            failure_percent: Some(50),
            eject: Some(Duration::from_secs(10)),
            slow_start: Duration::ZERO,
        }
    }

    const START: Micros = Micros(1_000_000_000);

    #[test]
    fn three_failures_in_a_row_are_too_many_and_a_good_answer_breaks_the_row() {
        let (record, health) = (Record::default(), settings());
        let mut after = |is_failure| record.is_sick_after(is_failure, START, &health);
        assert_eq!([true, true, false, true, true].map(&mut after), [false; 5]);
        assert!(after(true));
        assert!(!after(true), "it begins anew");
    }

    #[test]
    fn half_of_twenty_failures_are_too_many_but_not_of_fewer() {
        let (record, health) = (Record::default(), settings());
        let sick: Vec<usize> = (1..=30).filter(|n| record.is_sick_after(n % 2 == 0, START, &health)).collect();
        assert_eq!(sick, [20]);
        let rare = Record::default();
        let spread = |n: &u64| rare.is_sick_after(n.is_multiple_of(2), START.after(Duration::from_secs(*n)), &health);
        assert_eq!((1..=100).filter(spread).count(), 0, "never twenty within a window");
        let lenient = Health { failure_percent: None, ..settings() };
        let alone = Record::default();
        assert_eq!((1..=100).filter(|n| alone.is_sick_after(n % 2 == 0, START, &lenient)).count(), 0);
    }

    #[test]
    fn ejections_double_up_to_a_bound_and_are_forgiven() {
        let first = Duration::from_secs(10);
        let secs: Vec<u64> = [0, 1, 2, 4, 5, 31, 32, 99].map(|times| ejection(first, times).as_secs()).to_vec();
        assert_eq!(secs, [10, 20, 40, 160, 300, 300, 300, 300]);
        assert_eq!(ejection(Duration::from_secs(900), 3).as_secs(), 900);
        assert!(!is_forgiven(first, Duration::from_secs(99)) && is_forgiven(first, Duration::from_secs(100)));
    }

    #[test]
    fn the_share_grows_from_a_tenth_to_all() {
        let after = |ms| share(Duration::from_millis(ms), Duration::from_secs(10));
        assert_eq!([0, 500, 1_000, 5_000, 9_999, 10_000, 20_000].map(after), [100, 100, 100, 500, 999, 1000, 1000]);
        assert_eq!(share(Duration::ZERO, Duration::ZERO), 1000);
    }

    #[test]
    fn probes_change_what_is_believed_only_in_a_row() {
        let (mut probes, health) = (Probes::default(), settings());
        let mut told = |answers: &[bool]| answers.iter().map(|&good| probes.record(good, &health)).collect::<Vec<_>>();
        assert_eq!(told(&[false, false, true, false, false, false]), [None, None, None, None, None, Some(true)]);
        assert_eq!(told(&[false, true, false, true, true]), [None, None, None, None, Some(false)]);
        assert_eq!(told(&[true, false]), [None, None]);
    }
}
