//! The attempts at one request: a server and a connection that serve, and what becomes of failures. Pure but for its pool.

use super::{Heard, Outcome, response_error};
use crate::conn::Watching;
use crate::gateway::Gateway;
use crate::identity::Caller;
use crate::metrics::UpstreamError;
use crate::reply::Failure;
use crate::time::Micros;
use crate::upstream::dial::ConnectFault;
use crate::upstream::members::Permit;
use crate::upstream::pool::{Choice, Chosen, Fault, Lease, NoRoom, Room, Upstream};
use crate::upstream::proxy_protocol::Line;
use crate::upstream::retry::{Attempts, Next, patience};
use crate::upstream::way::{Patience, Way};
use std::cell::Cell;
use std::time::Duration;

/// The attempts at one request, counted.
pub(super) struct Tries<'g> {
    gateway: &'g Gateway,
    upstream: &'g Upstream,
    /// The upstream's.
    number: usize,
    patience: Patience,
    attempts: Attempts,
    /// The hash of who asks.
    user: u64,
    started: Micros,
    /// Whom a connection is for, where servers are told.
    line: Option<Line>,
    /// The server that is asked, or will be next.
    chosen: Option<Chosen>,
    /// The right to a new connection to it, where its last one made room for that.
    permit: Option<Permit>,
    /// Whether the attempt at hand is held against its server already: once is enough.
    is_held: Cell<bool>,
}

/// Why there is no connection.
pub enum NotOpened {
    /// What the client is told.
    Failed(Failure),
    /// It has gone.
    Unwanted,
}

impl NotOpened {
    /// What becomes of the exchange, of which the client has sent all or not.
    pub fn outcome(self, is_whole: bool) -> Outcome {
        match self {
            NotOpened::Failed(failure) => Outcome::Failed { failure, is_whole },
            NotOpened::Unwanted => Outcome::Abandoned,
        }
    }
}

impl From<Failure> for NotOpened {
    fn from(failure: Failure) -> NotOpened {
        NotOpened::Failed(failure)
    }
}

impl<'g> Tries<'g> {
    /// No attempt yet.
    pub fn new(gateway: &'g Gateway, way: &Way, caller: &Caller, line: Option<Line>, may_repeat: bool) -> Tries<'g> {
        let upstream = &gateway.upstreams[way.upstream];
        let started = gateway.clock.now();
        upstream.earn_retries(started);
        Tries {
            gateway,
            upstream,
            number: way.upstream,
            patience: way.patience,
            attempts: Attempts::new(upstream.settings().retries.max, may_repeat),
            user: upstream.hash_of(&caller.user),
            started,
            line,
            chosen: None,
            permit: None,
            is_held: Cell::new(false),
        }
    }

    /// A connection to a server that takes one, with a buffer, for as long as the client waits for it.
    pub async fn open(&mut self, client: &Watching) -> Result<Lease, NotOpened> {
        if self.attempts.tried() > 0 {
            client.waits_for(None);
        }
        loop {
            let Room { chosen, permit } = match self.chosen.clone() {
                Some(chosen) => Room { chosen, permit: self.permit.take() },
                None => self.choose(client).await?,
            };
            let opened = self.connect(&chosen, permit).await;
            if matches!(opened, Err(ConnectFault::Full)) {
                // Somebody was faster.
                self.attempts.had_no_room(chosen.id());
                self.chosen = None;
                continue;
            }
            self.attempts.begin(chosen.id());
            self.chosen = Some(chosen);
            self.is_held.set(false);
            let fault = match opened {
                Ok(_) if client.is_gone() => return Err(NotOpened::Unwanted),
                Ok(mut lease) => {
                    lease.count_request();
                    lease.conn.reader.lend(|| self.gateway.buffer());
                    return Ok(lease);
                }
                Err(fault) => fault,
            };
            match fault {
                // Our own doing: the server is not to blame, and others would fare no better.
                ConnectFault::Exhausted => {
                    self.blame(connect_error(fault));
                    return Err(connect_failure(fault).into());
                }
                _ => self.fail(connect_error(fault)),
            }
            if self.attempts.after_connect() == Next::GiveUp || !self.turn_to_another() {
                return Err(connect_failure(fault).into());
            }
        }
    }

    /// The first server, waiting in line where all have as many connections as they may. Who has asked one already neither
    /// waits behind others nor keeps them waiting: what has no room for it then may have for them.
    async fn choose(&self, client: &Watching) -> Result<Room, NotOpened> {
        let Tries { upstream, attempts, user, .. } = self;
        let is_retry = attempts.tried() > 0;
        if is_retry || !upstream.has_line() {
            match upstream.choose(attempts, *user, self.now()) {
                Choice::Server(chosen) => return Ok(Room { chosen, permit: None }),
                Choice::Nobody => return Err(self.nobody().into()),
                Choice::Full if is_retry => return Err(self.busy().into()),
                Choice::Full => {}
            }
        }
        // Whoever has waited for as long as a response may take has no time left for one.
        let left = self.patience.response.saturating_sub(self.now().since(self.started));
        // Boxed, or every connection would hold the room for it.
        let waiting = upstream.wait_for_room(attempts, *user, left, || client.is_gone(), || self.now());
        Box::pin(waiting).await.map_err(|reason| match reason {
            NoRoom::Nobody => self.nobody().into(),
            NoRoom::Busy => self.busy().into(),
            NoRoom::Unwanted => NotOpened::Unwanted,
        })
    }

    /// Writes down which server it was that lost the exchange, where it came to ask one.
    pub fn lost(&self, outcome: Outcome, server: &mut String) -> Outcome {
        server.clear();
        server.push_str(self.chosen.as_ref().map_or("", Chosen::name));
        outcome
    }

    fn busy(&self) -> Failure {
        self.blame(UpstreamError::Busy);
        Failure::Busy
    }

    fn nobody(&self) -> Failure {
        self.blame(UpstreamError::NoServer);
        Failure::Unreachable
    }

    /// A kept connection where one may serve, else a new one. One on which bytes have arrived meanwhile is dropped: they
    /// would be taken for the answer to this request, and its own answer for the next client's. What could not be repeated
    /// is worth a question to the kernel whether the connection has just died.
    async fn connect(&self, chosen: &Chosen, mut permit: Option<Permit>) -> Result<Lease, ConnectFault> {
        let Tries { gateway, upstream, .. } = self;
        if self.attempts.may_reuse() {
            while let Some(mut lease) = upstream.reuse(chosen, gateway.deadlines.coarse_now()) {
                let is_quiet = match self.attempts.may_repeat() {
                    true => lease.conn.seems_quiet(),
                    false => lease.conn.is_quiet(),
                };
                if is_quiet {
                    return Ok(lease);
                }
                permit = Some(lease.close());
            }
        }
        let (line, within) = (self.line.as_ref(), self.patience.connect);
        upstream.connect(chosen, permit, line, within, &gateway.deadlines, || gateway.close_idle()).await
    }

    fn now(&self) -> Micros {
        self.gateway.clock.now()
    }

    /// How long the attempt at hand may take to begin its response.
    pub fn patience(&self) -> Duration {
        let now = self.now();
        let may_follow = self.patience.attempt.is_some()
            && self.attempts.may_follow()
            && self.upstream.may_retry()
            && self.upstream.has_another(&self.attempts, now);
        patience(self.patience, now.since(self.started), may_follow)
    }

    /// Counts a failure of the server that is asked, and holds it against it.
    pub fn fail(&self, error: UpstreamError) {
        self.blame(error);
        if let Some(chosen) = self.chosen.as_ref().filter(|_| !self.is_held.replace(true)) {
            self.upstream.failed(chosen, fault_of(error), self.now());
        }
    }

    /// Counts a failure.
    pub fn blame(&self, error: UpstreamError) {
        self.gateway.metrics.upstream_error(self.number, error);
    }

    /// The server that is asked has begun an answer with this status.
    pub fn responded(&self, status: u16) {
        if let Some(chosen) = self.chosen.as_ref().filter(|_| !self.is_failure(status)) {
            self.upstream.responded(chosen, self.now());
        }
    }

    /// The server that is asked has answered with this status.
    pub fn answered(&self, status: u16) {
        if self.is_held.get() {
            return;
        }
        if self.is_failure(status) {
            self.fail(UpstreamError::Status);
        } else if let Some(chosen) = &self.chosen {
            self.upstream.succeeded(chosen, self.now());
        }
    }

    fn is_failure(&self, status: u16) -> bool {
        self.upstream.settings().health.failures.contains(status)
    }

    /// Whether a response of this status is dropped because another server is asked instead.
    pub fn again_instead_of(&mut self, status: u16) -> bool {
        let is_unwanted = self.attempts.may_follow() && self.upstream.settings().retries.statuses.contains(status);
        if !is_unwanted {
            return false;
        }
        self.answered(status);
        self.attempts.after_connect() == Next::OtherServer && self.turn_to_another()
    }

    /// Whether a request of which `unsent` says that not one byte was taken, or which got no response, may be sent once
    /// more. See [`Attempts::after_failure`].
    pub fn again(&mut self, reused: bool, unsent: bool, error: UpstreamError) -> bool {
        match self.attempts.after_failure(reused, unsent) {
            Next::SameServer => {
                // The connection had died unseen, which is nobody's fault.
                self.blame(error);
                self.gateway.metrics.upstream_retry(self.number);
                true
            }
            Next::OtherServer => {
                self.fail(error);
                self.turn_to_another()
            }
            // What died may have been the connection alone, and one that takes no more bytes may have answered before.
            Next::GiveUp if reused || error == UpstreamError::Send => {
                self.blame(error);
                false
            }
            Next::GiveUp => {
                self.fail(error);
                false
            }
        }
    }

    /// Closes a connection that did not serve. Where its server is asked once more, nobody else takes its place meanwhile.
    pub fn leave(&mut self, lease: Lease) {
        let is_asked_again = self.chosen.as_ref().is_some_and(|chosen| chosen.id() == lease.server());
        self.permit = is_asked_again.then(|| lease.close());
    }

    /// Whether the request may be sent once more after it got no whole response, for this reason.
    pub fn again_after(&mut self, failure: &Failure, heard: Heard, reused: bool) -> bool {
        let Some(error) = response_error(failure) else { return false };
        if heard == Heard::PassedOn {
            self.fail(error);
            return false;
        }
        // A server that is slow, or says anything at all, did not die unseen: a new connection to it would be no better.
        let has_died = reused && heard == Heard::Nothing && error != UpstreamError::Timeout;
        self.again(has_died, false, error)
    }

    /// Turns to a server that was not asked yet, where there is one and the budget allows it.
    fn turn_to_another(&mut self) -> bool {
        let now = self.now();
        if now.since(self.started) >= self.patience.response {
            return false;
        }
        if !self.upstream.has_another(&self.attempts, now) {
            return false;
        }
        if !self.upstream.may_retry() {
            self.gateway.metrics.upstream_retry_denied(self.number);
            return false;
        }
        let Choice::Server(chosen) = self.upstream.choose(&self.attempts, self.user, now) else { return false };
        self.upstream.spend_retry();
        self.chosen = Some(chosen);
        self.gateway.metrics.upstream_retry(self.number);
        true
    }
}

fn fault_of(error: UpstreamError) -> Fault {
    match error {
        UpstreamError::Connect | UpstreamError::ConnectTimeout | UpstreamError::Tls => Fault::Unreachable,
        UpstreamError::Send | UpstreamError::Receive => Fault::BrokenOff,
        _ => Fault::Answer,
    }
}

fn connect_error(fault: ConnectFault) -> UpstreamError {
    match fault {
        ConnectFault::Refused => UpstreamError::Connect,
        ConnectFault::TimedOut => UpstreamError::ConnectTimeout,
        ConnectFault::Full => UpstreamError::Busy,
        ConnectFault::Tls => UpstreamError::Tls,
        ConnectFault::Exhausted => UpstreamError::Connect,
    }
}

fn connect_failure(fault: ConnectFault) -> Failure {
    match fault {
        ConnectFault::Refused => Failure::Unreachable,
        ConnectFault::TimedOut => Failure::ConnectTimeout,
        ConnectFault::Full => Failure::Busy,
        ConnectFault::Tls => Failure::BadTls,
        ConnectFault::Exhausted => Failure::Exhausted,
    }
}
