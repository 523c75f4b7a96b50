//! Whether a request may be tried again, and where (RFC 9110 section 9.2.2). Pure.

/// The attempts at one request.
///
/// A failed connect may always be followed by another: the backend knows nothing of the request. After a failure on a
/// connection only a request that cannot take effect twice is repeated, or one of which no byte was taken. A kept
/// connection may have died unseen, so its failure costs no attempt: the same backend is asked over a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    backend: usize,
    backends: usize,
    left: u32,
    fresh: bool,
    may_repeat: bool,
}

impl Attempts {
    /// Starts with `first` of `backends`; `retries` further ones may follow. `may_repeat`: the request is idempotent and
    /// all of it is still at hand.
    pub fn new(first: usize, backends: usize, retries: u32, may_repeat: bool) -> Attempts {
        Attempts { backend: first, backends, left: retries, fresh: false, may_repeat }
    }

    /// The backend to ask.
    pub fn backend(&self) -> usize {
        self.backend
    }

    /// Whether a kept connection may serve.
    pub fn may_reuse(&self) -> bool {
        !self.fresh
    }

    /// After a failed connect: whether to try the next backend.
    pub fn after_connect(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.backend = (self.backend + 1).checked_rem(self.backends).unwrap_or(0);
        self.fresh = false;
        true
    }

    /// After a failure on a connection from which not one byte of a response came: whether to try again.
    pub fn after_failure(&mut self, was_reused: bool, nothing_sent: bool) -> bool {
        if !(nothing_sent || self.may_repeat) {
            return false;
        }
        if was_reused && !self.fresh {
            self.fresh = true;
            return true;
        }
        self.after_connect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_kept_connection_costs_no_attempt_and_is_replaced_once() {
        let mut attempts = Attempts::new(1, 3, 0, true);
        assert!(attempts.may_reuse());
        assert!(attempts.after_failure(true, false));
        assert!((attempts.backend(), attempts.may_reuse()) == (1, false));
        assert!(!attempts.after_failure(false, false));
    }

    #[test]
    fn what_may_take_effect_twice_is_sent_once() {
        let mut attempts = Attempts::new(0, 3, 5, false);
        assert!(!attempts.after_failure(true, false));
        assert!(attempts.after_failure(true, true), "nothing was sent");
        assert!(attempts.after_connect(), "the backend knows nothing of it");
    }

    #[test]
    fn retries_go_round_the_backends_and_end() {
        let mut attempts = Attempts::new(2, 3, 2, true);
        assert!(attempts.after_connect() && attempts.backend() == 0);
        assert!(attempts.after_failure(false, false) && attempts.backend() == 1);
        assert!(!attempts.after_connect() && !attempts.after_failure(false, false));
    }
}
