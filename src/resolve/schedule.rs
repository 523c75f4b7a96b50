//! When a name is asked for again: at its interval, when its records end, after a failure, or because somebody wants it.
//!
//! Pure.

use super::Interval;
use crate::time::Micros;
use std::time::Duration;

/// Between two questions for a name that is wanted at once.
const WANTED_PAUSE: Duration = Duration::from_millis(100);

/// After the first failure, however much the name is wanted; each further one doubles it.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// After any number of failures; less where the interval is.
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long a record holds at least: 0 is common, and means that nobody should keep it.
const TTL_MIN: Duration = Duration::from_secs(1);

/// How long a record holds at most, where records alone say when to ask again.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// When one name is asked for. A new one is due at once.
#[derive(Debug, Default)]
pub(super) struct Plan {
    due: Micros,
    /// Not before this, however much it is wanted.
    earliest: Micros,
    is_asked: bool,
    /// Failures in a row.
    failures: u32,
}

impl Plan {
    /// When to ask; `None` while an answer is awaited.
    pub fn due(&self) -> Option<Micros> {
        (!self.is_asked).then_some(self.due)
    }

    /// The name is wanted at once.
    pub fn hurry(&mut self) {
        self.due = self.due.min(self.earliest);
    }

    /// It is asked for now.
    pub fn ask(&mut self, now: Micros) {
        self.is_asked = true;
        self.earliest = now.after(WANTED_PAUSE);
    }

    /// It has resolved; its records hold for `ttl`.
    pub fn found(&mut self, now: Micros, ttl: Duration, interval: Interval) {
        let pause = match interval {
            Interval::Every(interval) => interval.min(ttl.max(TTL_MIN)),
            Interval::Ttl => ttl.clamp(TTL_MIN, TTL_MAX),
        };
        (self.is_asked, self.failures) = (false, 0);
        self.due = now.after(pause);
    }

    /// It has not resolved.
    pub fn failed(&mut self, now: Micros, interval: Interval) {
        let longest = match interval {
            Interval::Every(interval) => interval.clamp(FAILED_PAUSE, FAILED_PAUSE_MAX),
            Interval::Ttl => FAILED_PAUSE_MAX,
        };
        let pause = FAILED_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures)).min(longest);
        self.is_asked = false;
        self.failures = self.failures.saturating_add(1);
        self.earliest = now.after(FAILED_PAUSE);
        self.due = now.after(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(ms: u64) -> Micros {
        Micros(ms * 1000)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A name that was asked for and has resolved, both at `now`.
    fn found(now: Micros, ttl: Duration, interval: Interval) -> Plan {
        let mut plan = Plan::default();
        plan.ask(now);
        plan.found(now, ttl, interval);
        plan
    }

    #[test]
    fn a_new_name_is_due_at_once_and_once() {
        let mut plan = Plan::default();
        assert_eq!(plan.due(), Some(at(0)));
        plan.ask(at(5));
        assert_eq!(plan.due(), None);
        plan.hurry();
        assert_eq!(plan.due(), None, "the answer is on its way");
    }

    #[test]
    fn the_shorter_of_interval_and_ttl_counts_but_no_less_than_a_second() {
        for (interval, ttl, pause) in [
            (Interval::Every(seconds(5)), seconds(600), 5000),
            (Interval::Every(seconds(5)), seconds(2), 2000),
            (Interval::Every(seconds(5)), seconds(0), 1000),
            (Interval::Every(Duration::from_millis(200)), seconds(0), 200),
            (Interval::Ttl, seconds(0), 1000),
            (Interval::Ttl, seconds(600), 600_000),
            (Interval::Ttl, DAY, 3_600_000),
        ] {
            let plan = found(at(7000), ttl, interval);
            assert_eq!(plan.due(), Some(at(7000 + pause)), "{interval:?} {ttl:?}");
        }
    }

    #[test]
    fn a_wanted_name_is_asked_for_ten_times_a_second_at_most() {
        let mut plan = found(at(1000), DAY, Interval::Every(DAY));
        let mut questions = 0;
        for now in (1000..2000).map(at) {
            plan.hurry();
            if plan.due().is_some_and(|due| due <= now) {
                questions += 1;
                plan.ask(now);
                plan.found(now, DAY, Interval::Every(DAY));
            }
        }
        assert_eq!(questions, 9);
    }

    #[test]
    fn a_name_that_is_wanted_after_a_pause_is_asked_for_at_once() {
        let mut plan = found(at(1000), DAY, Interval::Every(DAY));
        plan.hurry();
        assert_eq!(plan.due(), Some(at(1100)));
    }

    #[test]
    fn failures_are_tried_again_soon_then_less_often() {
        for (interval, pauses) in [
            (Interval::Every(seconds(5)), [1, 2, 4, 5, 5, 5, 5]),
            (Interval::Every(DAY), [1, 2, 4, 8, 16, 30, 30]),
            (Interval::Every(Duration::from_millis(100)), [1; 7]),
            (Interval::Ttl, [1, 2, 4, 8, 16, 30, 30]),
        ] {
            let (mut plan, mut now) = (Plan::default(), 0);
            for pause in pauses {
                plan.ask(at(now));
                plan.failed(at(now + 500), interval);
                now += 500 + pause * 1000;
                assert_eq!(plan.due(), Some(at(now)), "{interval:?}");
            }
            plan.ask(at(now));
            plan.found(at(now), DAY, interval);
            plan.ask(at(now));
            plan.failed(at(now), interval);
            assert_eq!(plan.due(), Some(at(now + 1000)), "it has resolved in between");
        }
    }

    #[test]
    fn a_failing_name_that_is_wanted_waits_for_a_second_and_no_longer() {
        let mut plan = Plan::default();
        for now in [0, 2000, 6000, 14_000] {
            plan.ask(at(now));
            plan.failed(at(now + 900), Interval::Every(DAY));
        }
        plan.hurry();
        assert_eq!(plan.due(), Some(at(15_900)));
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut plan = Plan { failures: u32::MAX, ..Plan::default() };
        plan.failed(Micros(u64::MAX), Interval::Ttl);
        assert_eq!(plan.due(), Some(Micros(u64::MAX)));
    }
}
