//! When a name is asked for again: at its interval, when its records end, after a failure, or because somebody wants it.
//!
//! Pure.

use super::Interval;
use crate::time::Micros;
use std::time::Duration;

/// Between two questions for a name that is wanted at once; each that brings nothing new doubles it, since a backend may
/// be dead for long and its name know of no other.
const WANTED_PAUSE: Duration = Duration::from_millis(100);

/// After any number of questions that brought nothing new.
const WANTED_PAUSE_MAX: Duration = Duration::from_secs(1);

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
    is_wanted: bool,
    /// Questions in a row that somebody wanted and that brought nothing new.
    in_vain: u32,
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
        self.is_wanted = true;
        self.due = self.due.min(self.earliest);
    }

    /// It is asked for now.
    pub fn ask(&mut self, now: Micros) {
        self.in_vain = if self.is_wanted { self.in_vain.saturating_add(1) } else { 0 };
        self.earliest = now.after(doubled(WANTED_PAUSE, self.in_vain.saturating_sub(1)).min(WANTED_PAUSE_MAX));
        (self.is_asked, self.is_wanted) = (true, false);
    }

    /// It has resolved, perhaps to something new; its records hold for `ttl`.
    pub fn found(&mut self, now: Micros, is_new: bool, ttl: Duration, interval: Interval) {
        let pause = match interval {
            Interval::Every(interval) => interval.min(ttl.max(TTL_MIN)),
            Interval::Ttl => ttl.clamp(TTL_MIN, TTL_MAX),
        };
        (self.is_asked, self.failures) = (false, 0);
        if is_new {
            self.in_vain = 0;
        }
        self.due = now.after(pause);
    }

    /// It has not resolved.
    pub fn failed(&mut self, now: Micros, interval: Interval) {
        let longest = match interval {
            Interval::Every(interval) => interval.clamp(FAILED_PAUSE, FAILED_PAUSE_MAX),
            Interval::Ttl => FAILED_PAUSE_MAX,
        };
        let pause = doubled(FAILED_PAUSE, self.failures).min(longest);
        self.is_asked = false;
        self.failures = self.failures.saturating_add(1);
        self.earliest = now.after(FAILED_PAUSE);
        self.due = now.after(pause);
    }
}

fn doubled(pause: Duration, times: u32) -> Duration {
    pause.saturating_mul(2_u32.saturating_pow(times))
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
        plan.found(now, true, ttl, interval);
        plan
    }

    /// When a name that is wanted all the time is asked for within 3 s, and answered at once.
    fn questions(is_new: bool) -> Vec<u64> {
        let mut plan = found(at(0), DAY, Interval::Every(DAY));
        let mut asked = Vec::new();
        for now in 0..3000 {
            plan.hurry();
            if plan.due().is_some_and(|due| due <= at(now)) {
                asked.push(now);
                plan.ask(at(now));
                plan.found(at(now), is_new, DAY, Interval::Every(DAY));
            }
        }
        asked
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
    fn a_wanted_name_is_asked_for_ten_times_a_second_at_most_and_less_often_in_vain() {
        assert_eq!(questions(true), (1..30).map(|tenth| tenth * 100).collect::<Vec<_>>());
        assert_eq!(questions(false), [100, 200, 400, 800, 1600, 2600]);
    }

    #[test]
    fn a_name_that_is_wanted_after_a_pause_is_asked_for_at_once() {
        let mut plan = found(at(1000), DAY, Interval::Every(DAY));
        plan.hurry();
        assert_eq!(plan.due(), Some(at(1100)), "which is past");
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
            plan.found(at(now), false, DAY, interval);
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
