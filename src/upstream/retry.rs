//! Whether a request may be tried again (RFC 9110 section 9.2.2), and whether there have been too many of those. Pure.

use super::way::Patience;
use crate::time::Micros;
use std::time::Duration;

/// Further attempts that a configuration may ask for.
pub const RETRIES_MAX: usize = 10;

/// The attempts at one request.
///
/// A failed connect may always be followed by another: the backend knows nothing of the request. After a failure on a
/// connection only a request that cannot take effect twice is repeated, or one of which no byte was taken. No server is
/// asked twice, but for one case: a kept connection may have died unseen, so its failure costs no attempt, and the same
/// server is asked over a new one.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    tried: [u64; RETRIES_MAX + 1],
    count: usize,
    left: u32,
    fresh: bool,
    may_repeat: bool,
}

/// What comes after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The failure is the client's.
    GiveUp,
    /// The same server, over a new connection.
    SameServer,
    /// Another server, where the budget allows it.
    OtherServer,
}

impl Attempts {
    /// None yet; `retries` may follow the first. `may_repeat`: the request is idempotent and all of it is still at hand.
    pub fn new(retries: u32, may_repeat: bool) -> Attempts {
        Attempts { tried: [0; RETRIES_MAX + 1], count: 0, left: retries, fresh: false, may_repeat }
    }

    /// Whether this server was asked already.
    pub fn has_tried(&self, server: u64) -> bool {
        self.tried[..self.count].contains(&server)
    }

    /// How many servers were asked.
    pub fn tried(&self) -> usize {
        self.count
    }

    /// Notes that this server is asked now.
    pub fn begin(&mut self, server: u64) {
        self.fresh = false;
        if self.has_tried(server) {
            return;
        }
        if let Some(place) = self.tried.get_mut(self.count) {
            *place = server;
            self.count += 1;
        }
    }

    /// The server turned out to have no room. It was not asked, and whoever is next, or it again, may be over a kept
    /// connection.
    pub fn had_no_room(&mut self, server: u64) {
        self.fresh = false;
        if self.tried[..self.count].last() == Some(&server) {
            self.count -= 1;
        }
    }

    /// Whether a kept connection may serve.
    pub fn may_reuse(&self) -> bool {
        !self.fresh
    }

    /// Whether the request may take effect twice without harm.
    pub fn may_repeat(&self) -> bool {
        self.may_repeat
    }

    /// Whether another attempt may follow one that got no response.
    pub fn may_follow(&self) -> bool {
        self.may_repeat && self.left > 0
    }

    /// After a failed connect.
    pub fn after_connect(&mut self) -> Next {
        if self.left == 0 {
            return Next::GiveUp;
        }
        self.left -= 1;
        Next::OtherServer
    }

    /// After a failure on a connection from which no final response came that counts.
    pub fn after_failure(&mut self, was_reused: bool, nothing_sent: bool) -> Next {
        if !(nothing_sent || self.may_repeat) {
            return Next::GiveUp;
        }
        if was_reused && !self.fresh {
            self.fresh = true;
            return Next::SameServer;
        }
        self.after_connect()
    }
}

/// Retries that may be saved up, and that a worker may begin with.
const SAVED_MAX: u64 = 100;

/// Retries that become possible each second however few requests there are, so that a quiet gateway retries too.
const EACH_SECOND: u64 = 3;

/// The retries of one worker to one upstream: a share of its requests, so that they cannot multiply an outage. Of `n`
/// requests in `t` seconds at most `n * percent / 100 + 3 * t + 100` are repeated.
#[derive(Debug)]
pub struct Budget {
    /// In hundredths of a retry.
    saved: u64,
    filled: Micros,
}

impl Budget {
    /// A full budget.
    pub fn new(now: Micros) -> Budget {
        Budget { saved: SAVED_MAX * 100, filled: now }
    }

    /// A request came: its share is added.
    pub fn earn(&mut self, percent: u32) {
        self.saved = (self.saved + u64::from(percent)).min(SAVED_MAX * 100);
    }

    /// Whether there is a retry left.
    pub fn has_one(&self) -> bool {
        self.saved >= 100
    }

    /// Adds what time gives.
    pub fn refill(&mut self, now: Micros) {
        let gained = now.since(self.filled).as_millis() as u64 * EACH_SECOND / 10;
        if gained > 0 {
            self.filled = now;
            self.saved = (self.saved + gained).min(SAVED_MAX * 100);
        }
    }

    /// Takes a retry, where there is one.
    pub fn spend(&mut self) -> bool {
        let left = self.saved.checked_sub(100);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

/// How long an attempt may wait for the head of its response: what is left of the whole time, and less where another
/// server can still be asked.
pub fn patience(patience: Patience, elapsed: Duration, may_follow: bool) -> Duration {
    let left = patience.response.saturating_sub(elapsed);
    match patience.attempt {
        Some(attempt) if may_follow => left.min(attempt),
        _ => left,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_kept_connection_costs_no_attempt_and_is_replaced_once() {
        let mut attempts = Attempts::new(0, true);
        attempts.begin(7);
        assert!(attempts.may_reuse());
        assert_eq!(attempts.after_failure(true, false), Next::SameServer);
        assert!(!attempts.may_reuse());
        assert_eq!(attempts.after_failure(false, false), Next::GiveUp);
    }

    #[test]
    fn a_server_without_room_for_the_new_connection_may_be_waited_for() {
        let mut attempts = Attempts::new(1, true);
        attempts.begin(7);
        assert_eq!(attempts.after_failure(true, false), Next::SameServer);
        attempts.had_no_room(7);
        assert!(!attempts.has_tried(7) && attempts.may_reuse());
        attempts.begin(7);
        attempts.had_no_room(9);
        assert!(attempts.has_tried(7), "another one had none");
    }

    #[test]
    fn what_may_take_effect_twice_is_sent_once() {
        let mut attempts = Attempts::new(5, false);
        attempts.begin(1);
        assert_eq!(attempts.after_failure(true, false), Next::GiveUp);
        assert_eq!(attempts.after_failure(true, true), Next::SameServer, "nothing was sent");
        assert_eq!(attempts.after_connect(), Next::OtherServer, "the backend knows nothing of it");
        assert!(!attempts.may_follow());
    }

    #[test]
    fn retries_end_and_remember_who_was_asked() {
        let mut attempts = Attempts::new(2, true);
        for server in [4, 9] {
            assert!(!attempts.has_tried(server) && attempts.may_follow());
            attempts.begin(server);
            assert_eq!(attempts.after_failure(false, false), Next::OtherServer);
        }
        attempts.begin(5);
        assert!([4, 5, 9].iter().all(|&server| attempts.has_tried(server)));
        assert!(!attempts.may_follow() && attempts.after_connect() == Next::GiveUp);
    }

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let start = Micros(5_000_000);
        let mut budget = Budget::new(start);
        let retried = (0..1_000).filter(|_| {
            budget.earn(20);
            budget.spend()
        });
        assert_eq!(retried.count(), 100 + 200 - 1, "what was saved, and a fifth");
        budget.refill(start.after(Duration::from_secs(2)));
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 6);
        budget.refill(start.after(Duration::from_secs(3_600)));
        assert_eq!((0..1_000).filter(|_| budget.spend()).count(), 100);
    }

    #[test]
    fn an_attempt_waits_for_its_part_of_the_whole() {
        let [whole, attempt] = [1_000, 300].map(Duration::from_millis);
        let wait = |elapsed, may_follow| {
            let own = Patience { connect: whole, response: whole, attempt: Some(attempt) };
            patience(own, Duration::from_millis(elapsed), may_follow).as_millis()
        };
        assert_eq!(
            [wait(0, true), wait(600, true), wait(900, true), wait(0, false), wait(2_000, true)],
            [300, 300, 100, 1_000, 0]
        );
        let one = Patience { connect: whole, response: whole, attempt: None };
        assert_eq!(patience(one, Duration::ZERO, true), whole);
    }
}
