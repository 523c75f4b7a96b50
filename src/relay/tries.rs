//! The attempts at one request: a connection that serves, and what becomes of failures. Pure but for its pool.

use crate::gateway::Gateway;
use crate::metrics::UpstreamError;
use crate::reply::Failure;
use crate::upstream::pool::{ConnectFault, Lease, Upstream};
use crate::upstream::retry::Attempts;
use crate::upstream::way::Patience;

/// The attempts at one request, counted.
pub(super) struct Tries<'g> {
    pub gateway: &'g Gateway,
    pub upstream: &'g Upstream,
    /// The upstream's.
    pub number: usize,
    pub attempts: Attempts,
    pub patience: Patience,
}

impl Tries<'_> {
    /// A connection to a backend that takes one.
    pub async fn open(&mut self) -> Result<Lease, Failure> {
        loop {
            match self.connect().await {
                Ok(lease) => return Ok(lease),
                Err(fault) => {
                    self.blame(connect_error(fault));
                    if !self.attempts.after_connect() {
                        return Err(connect_failure(fault));
                    }
                    self.gateway.metrics.upstream_retry(self.number);
                }
            }
        }
    }

    /// A kept connection where one may serve, else a new one. One on which bytes have arrived meanwhile is dropped: they
    /// would be taken for the answer to this request, and its own answer for the next client's.
    async fn connect(&self) -> Result<Lease, ConnectFault> {
        let Tries { gateway, upstream, attempts, .. } = self;
        if attempts.may_reuse() {
            while let Some(lease) = upstream.reuse(attempts.backend(), gateway.deadlines.coarse_now()) {
                if lease.conn.is_quiet() {
                    return Ok(lease);
                }
            }
        }
        upstream.connect(attempts.backend(), &gateway.deadlines, self.patience.connect).await
    }

    pub fn blame(&self, error: UpstreamError) {
        self.gateway.metrics.upstream_error(self.number, error);
    }

    /// Whether the request may be sent once more; see [`Attempts::after_failure`].
    pub fn again(&mut self, reused: bool, unsent: bool) -> bool {
        let again = self.attempts.after_failure(reused, unsent);
        if again {
            self.gateway.metrics.upstream_retry(self.number);
        }
        again
    }
}

fn connect_error(fault: ConnectFault) -> UpstreamError {
    match fault {
        ConnectFault::NoAddress => UpstreamError::NoServer,
        ConnectFault::Refused => UpstreamError::Connect,
        ConnectFault::TimedOut => UpstreamError::ConnectTimeout,
    }
}

fn connect_failure(fault: ConnectFault) -> Failure {
    match fault {
        ConnectFault::NoAddress | ConnectFault::Refused => Failure::Unreachable,
        ConnectFault::TimedOut => Failure::ConnectTimeout,
    }
}
