//! What is reckoned from the answers: percentiles, statuses, and what was admitted beyond a limit. No clock, no IO.

use super::load::{BURST, Probe, RATE, Record, USERS};
use std::time::{Duration, Instant};

/// Answers by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statuses {
    pub ok: usize,
    pub denied: usize,
    pub refused: usize,
    pub other: usize,
}

impl Statuses {
    pub fn of(records: &[Record]) -> Statuses {
        let mut statuses = Statuses::default();
        for record in records {
            *match record.status {
                200 => &mut statuses.ok,
                429 => &mut statuses.denied,
                503 => &mut statuses.refused,
                _ => &mut statuses.other,
            } += 1;
        }
        statuses
    }

    pub fn sum(&self) -> usize {
        self.ok + self.denied + self.refused + self.other
    }
}

/// How long answers took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    pub p50: f64,
    pub p99: f64,
    pub longest: f64,
}

impl Waits {
    pub fn of(records: &[Record]) -> Waits {
        // From when it was sent, though its connection may have been late for it: a worker that serves only one of them has to
        // see it wait three times before the breaker opens, and each of these waits is to be short.
        let mut waits: Vec<Duration> = records.iter().map(|record| record.ended - record.sent).collect();
        waits.sort_unstable();
        // The nearest rank.
        let at = |share: f64| match (waits.len() as f64 * share).ceil() as usize {
            0 => 0.0,
            rank => ms(waits[rank - 1]),
        };
        Waits { p50: at(0.5), p99: at(0.99), longest: at(1.0) }
    }
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What the worst user was admitted beyond the limit, in any stretch of time: between the sending of one request and the
/// answer to another no more than the burst and what is gained meanwhile may pass.
pub fn over(records: &[Record], counts: impl Fn(&Record) -> bool) -> f64 {
    let of_user = |user: usize| {
        let mut passed: Vec<&Record> =
            records.iter().filter(|record| record.user == user && record.status == 200 && counts(record)).collect();
        passed.sort_unstable_by_key(|record| record.ended);
        let from = |first: &Record| {
            let later = passed.iter().filter(|record| record.sent >= first.sent).enumerate();
            let over = |(count, last): (usize, &&Record)| {
                (count + 1) as f64 - BURST - RATE * (last.ended - first.sent).as_secs_f64()
            };
            later.map(over).fold(0.0, f64::max)
        };
        passed.iter().map(|first| from(first)).fold(0.0, f64::max)
    };
    (0..USERS).map(of_user).fold(0.0, f64::max)
}

/// From the end of the fault until the store decided for every probe; `None` where that did not come about.
pub fn recovery(probes: &[Probe], connections: usize, end: Instant) -> Option<Duration> {
    let of = |connection: usize| {
        let mut probes = probes.iter().filter(|probe| probe.connection == connection);
        let mut decided = false;
        let first = probes.find(|probe| {
            let is_first = probe.ended >= end && probe.decided;
            if !is_first {
                decided = probe.decided;
            }
            is_first
        })?;
        // It has decided all along.
        Some(if decided { Duration::ZERO } else { first.ended - end })
    };
    (0..connections).map(of).collect::<Option<Vec<_>>>()?.into_iter().max()
}

#[test]
fn what_is_over_a_limit_is_found_in_any_stretch_of_time() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let record = |ms: u64| Record { user: 3, sent: at(ms), ended: at(ms), status: 200, by_store: true };
    // A whole burst at once, then one at a time as they are gained.
    let mut records: Vec<Record> = (0..10).map(|_| record(0)).chain((1..40).map(|step| record(50 * step))).collect();
    assert_eq!(over(&records, |_| true), 0.0);
    records.push(record(2000 - 50));
    assert!((over(&records, |_| true) - 1.0).abs() < 1e-6);
    // After a pause a bucket is full and no more than that.
    records.pop();
    records.extend((0..12).map(|_| record(10_000)));
    assert!((over(&records, |_| true) - 2.0).abs() < 1e-6);
    assert_eq!(over(&records, |record| !record.by_store), 0.0);
}

#[test]
fn recovery_is_that_of_the_last_probe() {
    let end = Instant::now() + Duration::from_secs(1);
    let probe = |connection: usize, ms: u64, decided: bool| {
        let ended = end - Duration::from_secs(1) + Duration::from_millis(ms);
        Probe { connection, ended, decided }
    };
    let mut probes = vec![probe(0, 900, false), probe(1, 900, true), probe(0, 1100, false), probe(1, 1100, true)];
    assert_eq!(recovery(&probes, 2, end), None);
    probes.push(probe(0, 1300, true));
    assert_eq!(recovery(&probes, 2, end), Some(Duration::from_millis(300)));
    assert_eq!(recovery(&probes[..4], 1, end), None);
}
