//! What a burst amounted to: counts, rates and percentiles, and how they are told. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::{Answer, Outcome, ToolError};
use super::terminal::{Colour, Paint};

/// The longest time that is told apart, in microseconds: above the client's own patience.
const TOOK_US_MAX: u64 = 300_000_000;
/// Significant digits of a percentile.
const DIGITS: u8 = 3;
/// Different `Retry-After` values that are counted apart.
const RETRY_VALUES_MAX: usize = 32;

/// One request and what came of it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which of the requests, counted from 1 in the order of sending.
    pub number: usize,
    /// From sending to the end of the answer.
    pub took: Duration,
    /// The answer, or why there is none.
    pub fetched: Result<Answer, String>,
}

/// What a burst amounted to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Requests that got a token.
    pub allowed: usize,
    /// Requests that were answered 429.
    pub denied: usize,
    /// Requests that were answered with another error, by status.
    pub failed: BTreeMap<u16, usize>,
    /// Requests that got no answer.
    pub unanswered: usize,
    /// Why the first of those got none.
    pub first_cause: Option<String>,
    /// How often each `Retry-After` was seen, by its seconds; at most 32 different ones.
    pub retry_after_s: BTreeMap<u64, usize>,
    /// Answers whose `Retry-After` came after 32 others were known.
    pub retry_after_more: usize,
    /// From the release of the threads to the last answer.
    pub elapsed: Duration,
    /// Time from sending to the end of the answer, in microseconds, of the requests that were answered.
    pub took_us: Histogram<u64>,
}

impl Summary {
    /// An empty one.
    pub fn new() -> Result<Summary, ToolError> {
        let took_us = Histogram::new_with_bounds(1, TOOK_US_MAX, DIGITS)
            .map_err(|error| ToolError::Resources(error.to_string()))?;
        Ok(Summary {
            allowed: 0,
            denied: 0,
            failed: BTreeMap::new(),
            unanswered: 0,
            first_cause: None,
            retry_after_s: BTreeMap::new(),
            retry_after_more: 0,
            elapsed: Duration::ZERO,
            took_us,
        })
    }

    /// Counts one request.
    pub fn add(&mut self, record: &Record) {
        let answer = match &record.fetched {
            Ok(answer) => answer,
            Err(cause) => {
                self.unanswered += 1;
                self.first_cause.get_or_insert_with(|| cause.clone());
                return;
            }
        };
        let us = u64::try_from(record.took.as_micros()).unwrap_or(u64::MAX);
        self.took_us.saturating_record(us);
        match answer.outcome() {
            Outcome::Token => self.allowed += 1,
            Outcome::Throttled => self.denied += 1,
            Outcome::Failed => *self.failed.entry(answer.status).or_default() += 1,
        }
        if let Some(seconds) = answer.retry_after_s.filter(|_| answer.outcome() == Outcome::Throttled) {
            let values = self.retry_after_s.len();
            match self.retry_after_s.get_mut(&seconds) {
                Some(count) => *count += 1,
                None if values < RETRY_VALUES_MAX => {
                    self.retry_after_s.insert(seconds, 1);
                }
                None => self.retry_after_more += 1,
            }
        }
    }

    /// Requests that were answered, whatever the answer.
    pub fn answered(&self) -> usize {
        self.allowed + self.denied + self.failed.values().sum::<usize>()
    }

    /// Why nothing could be reached, where nothing could.
    pub fn unreachable(&self) -> Option<&str> {
        match &self.first_cause {
            Some(cause) if self.answered() == 0 => Some(cause),
            _ => None,
        }
    }

    /// Answers per second over the whole burst; 0 where no time passed.
    pub fn per_second(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        if seconds > 0.0 { self.answered() as f64 / seconds } else { 0.0 }
    }

    /// The summary as a few lines of text.
    pub fn draw(&self, paint: Paint) -> String {
        let failed = self.failed.values().sum::<usize>() + self.unanswered;
        let mut text = String::new();
        let row = |text: &mut String, colour, name: &str, count: usize, more: &str| {
            let name = format!("{name:<8}");
            let name = if count > 0 { paint.paint(colour, &name) } else { name };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name} {count:>7}{more}");
        };
        row(&mut text, Colour::Green, "allowed", self.allowed, "");
        row(&mut text, Colour::Red, "denied", self.denied, &self.retries());
        row(&mut text, Colour::Yellow, "failed", failed, &self.causes());
        let _ = writeln!(
            text,
            "elapsed  {:>7.2} s, {:.0} requests per second",
            self.elapsed.as_secs_f64(),
            self.per_second()
        );
        if !self.took_us.is_empty() {
            let ms = |us: u64| us as f64 / 1e3;
            let _ = writeln!(
                text,
                "took     p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
                ms(self.took_us.value_at_quantile(0.5)),
                ms(self.took_us.value_at_quantile(0.9)),
                ms(self.took_us.value_at_quantile(0.99)),
                ms(self.took_us.max())
            );
        }
        text
    }

    /// The `Retry-After` values seen, such as `  (Retry-After: 1 s x 38, 2 s x 2)`.
    fn retries(&self) -> String {
        let mut seen: Vec<String> =
            self.retry_after_s.iter().map(|(seconds, count)| format!("{seconds} s x {count}")).collect();
        if self.retry_after_more > 0 {
            seen.push(format!("others x {}", self.retry_after_more));
        }
        if seen.is_empty() { String::new() } else { format!("  (Retry-After: {})", seen.join(", ")) }
    }

    /// The failures, such as `  (503 x 2, no answer x 1: connection refused)`.
    fn causes(&self) -> String {
        let mut causes: Vec<String> = self.failed.iter().map(|(status, count)| format!("{status} x {count}")).collect();
        if let Some(cause) = &self.first_cause {
            causes.push(format!("no answer x {}: {cause}", self.unanswered));
        }
        if causes.is_empty() { String::new() } else { format!("  ({})", causes.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ms: u64, status: u16, retry_after_s: Option<u64>) -> Record {
        Record {
            number: 1,
            took: Duration::from_millis(ms),
            fetched: Ok(Answer { status, retry_after_s, ..Answer::default() }),
        }
    }

    fn lost(cause: &str) -> Record {
        Record { number: 1, took: Duration::from_millis(1), fetched: Err(cause.to_owned()) }
    }

    #[test]
    fn every_request_is_counted_once() {
        let mut summary = Summary::new().unwrap();
        for ms in 1..=98 {
            summary.add(&record(ms, 200, None));
        }
        summary.add(&record(99, 429, Some(1)));
        summary.add(&record(100, 503, Some(2)));
        summary.add(&lost("refused"));
        summary.add(&lost("timeout"));
        summary.elapsed = Duration::from_secs(2);
        assert_eq!((summary.allowed, summary.denied), (98, 1));
        assert_eq!(summary.failed, BTreeMap::from([(503, 1)]));
        assert_eq!((summary.answered(), summary.unanswered), (100, 2));
        assert_eq!(summary.unreachable(), None);
        assert_eq!(
            summary.draw(Paint::Plain),
            "allowed       98\n\
             denied         1  (Retry-After: 1 s x 1)\n\
             failed         3  (503 x 1, no answer x 2: refused)\n\
             elapsed     2.00 s, 50 requests per second\n\
             took     p50 50.0 ms, p90 90.0 ms, p99 99.0 ms, max 100.0 ms\n"
        );
    }

    #[test]
    fn nothing_reached_says_why() {
        let mut summary = Summary::new().unwrap();
        assert_eq!(summary.unreachable(), None);
        summary.add(&lost("refused"));
        summary.add(&lost("timeout"));
        assert_eq!(summary.unreachable(), Some("refused"));
        assert_eq!(summary.per_second(), 0.0);
    }

    #[test]
    fn retry_values_are_bounded() {
        let mut summary = Summary::new().unwrap();
        for seconds in 0..100 {
            summary.add(&record(1, 429, Some(seconds)));
        }
        assert_eq!(summary.retry_after_s.len(), RETRY_VALUES_MAX);
        assert_eq!(summary.retry_after_more, 100 - RETRY_VALUES_MAX);
    }
}
