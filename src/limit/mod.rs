//! The limiter: which limits apply, what they say, and where buckets live.
//!
//! [`Limiter::decide`] never fails: where the store does, the configured answer is the decision, with its reason.
//! Names no socket; the Redis half speaks through [`crate::redis::client`]. Pure but for that call.

pub mod bucket;
mod charge;
pub mod denied;
mod fingerprint;
pub mod lease;
pub mod memory;
pub mod out;
pub mod policy;
pub mod script;
mod table;

use crate::metrics::StoreError;
use crate::redis::error::ServerError;
use crate::redis::{self, Fault};
use crate::time::Micros;
use bucket::Level;
use denied::Denied;
use lease::Leases;
use policy::{Policy, Share, Sheet};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// The most limits that one request may fall under.
pub const APPLIED_MAX: usize = 16;

/// What a request is worth while the store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It passes.
    #[default]
    Open,
    /// 503.
    Closed,
    /// This process decides, with this replica's share of the limit.
    Local,
}

/// Where buckets live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process, shared by its workers.
    Memory,
    /// In Redis, shared by all replicas.
    Redis(Box<redis::Settings>),
}

/// The store and what happens when it fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Which store.
    pub kind: StoreKind,
    /// What a request is worth without it, where a limit does not say otherwise.
    pub on_failure: OnFailure,
    /// Replicas that share the limits, at least 1: each enforces its part where the store cannot.
    pub replicas: u64,
    /// First part of every key.
    pub key_prefix: String,
}

/// Why the store gave no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// No connection.
    Disconnected,
    /// The deadline passed.
    Timeout,
    /// Too many commands wait already.
    Overloaded,
    /// It has failed several times in a row, so it is not waited for.
    Broken,
    /// The server answered with this error.
    Server(ServerError),
    /// The server answered something that is no answer to the question.
    Protocol,
}

impl StoreFault {
    /// The fault in words, for logs and replies.
    pub fn words(self) -> &'static str {
        match self {
            StoreFault::Disconnected => "the store is not connected",
            StoreFault::Timeout => "the store did not answer in time",
            StoreFault::Overloaded => "too many decisions wait for the store",
            StoreFault::Broken => "the store keeps failing and is not waited for",
            StoreFault::Server(_) => "the store answered with an error",
            StoreFault::Protocol => "the store answered out of protocol",
        }
    }
}

impl StoreFault {
    /// What it is counted as.
    pub fn counted(self) -> StoreError {
        match self {
            StoreFault::Disconnected => StoreError::Disconnected,
            StoreFault::Timeout => StoreError::Timeout,
            StoreFault::Overloaded => StoreError::Overloaded,
            StoreFault::Broken => StoreError::Breaker,
            StoreFault::Protocol => StoreError::Protocol,
            StoreFault::Server(error) => match error {
                ServerError::Loading => StoreError::Loading,
                ServerError::ReadOnly => StoreError::ReadOnly,
                ServerError::MasterDown | ServerError::NoReplicas => StoreError::PrimaryDown,
                ServerError::OutOfMemory => StoreError::OutOfMemory,
                ServerError::Misconfigured => StoreError::Misconfigured,
                ServerError::Moved
                | ServerError::Ask
                | ServerError::TryAgain
                | ServerError::ClusterDown
                | ServerError::CrossSlot => StoreError::Cluster,
                ServerError::WrongType => StoreError::WrongType,
                ServerError::Busy => StoreError::Busy,
                ServerError::NoAuth | ServerError::NoPermission => StoreError::Auth,
                ServerError::NoScript | ServerError::Other => StoreError::Server,
            },
        }
    }
}

impl From<Fault> for StoreFault {
    fn from(fault: Fault) -> StoreFault {
        match fault {
            Fault::Disconnected => StoreFault::Disconnected,
            Fault::Timeout => StoreFault::Timeout,
            Fault::Overloaded => StoreFault::Overloaded,
            Fault::Broken => StoreFault::Broken,
        }
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All limits agree and were charged; the sheet holds the levels.
    Allow,
    /// At least one enforced limit is short; nothing was charged; the sheet holds the levels.
    Deny,
    /// All limits agree, and were charged to leases at hand; the sheet holds what is known.
    AllowLeased,
    /// As [`Decision::Deny`], and known without asking the store; the sheet holds what is known.
    DenyKnown,
    /// No decision: the request passes by `on_failure = "open"`.
    FailOpen(StoreFault),
    /// The store gave none; by `on_failure = "local"` this process did, and the request passes. The sheet holds the levels of
    /// the limits with that mode.
    LocalAllow(StoreFault),
    /// The same, and the request is denied.
    LocalDeny(StoreFault),
    /// No decision: the request is refused by `on_failure = "closed"`.
    FailClosed(StoreFault),
}

/// A worker's access to the store.
pub enum Limiter {
    /// Buckets in this process.
    Memory(Arc<memory::Store>),
    /// Buckets in Redis.
    Redis {
        /// The way there.
        client: Rc<redis::client::Client>,
        /// What it need not be asked.
        denied: RefCell<Denied>,
        /// What was taken from it ahead.
        leases: RefCell<Leases>,
        /// Where buckets live meanwhile when it fails.
        local: Arc<memory::Store>,
    },
}

impl Limiter {
    /// Whether a decision takes a round trip, so that its duration is worth measuring.
    pub fn is_remote(&self) -> bool {
        matches!(self, Limiter::Redis { .. })
    }

    /// Charges every bucket on the sheet, or none, and writes down their levels. Where the store has no answer, the limits
    /// say what becomes of the request. It came in at `now`; `clock` tells the moment, which a lease is spent by.
    pub async fn decide(&self, policy: &Policy, sheet: &mut Sheet, now: Micros, clock: fn() -> Micros) -> Decision {
        let (client, denied, leases, local) = match self {
            Limiter::Memory(store) => {
                store.charge(policy, sheet, Share::Whole, now);
                return told(policy, sheet);
            }
            Limiter::Redis { client, denied, leases, local } => (client, denied, leases, local),
        };
        let may_lease = policy.leases(sheet);
        if may_lease && leases.borrow_mut().spend(policy, sheet, clock()) {
            local.keep_warm(policy, sheet, now);
            return Decision::AllowLeased;
        }
        if denied.borrow_mut().denies(policy, sheet, now) {
            return Decision::DenyKnown;
        }
        let ask = if may_lease { leases.borrow_mut().ask(policy, sheet, now) } else { None };
        let answer = charge::charge(client, policy, sheet, ask.as_ref(), now).await;
        if let Some(ask) = &ask {
            let granted = answer.as_ref().ok().and_then(|answer| answer.granted.as_ref());
            leases.borrow_mut().settle(policy, sheet, ask, granted, now);
        }
        match answer {
            Ok(answer) => {
                let decision = told(policy, sheet);
                match decision {
                    Decision::Deny if answer.may_gain => {}
                    Decision::Deny => denied.borrow_mut().note(policy, sheet, now),
                    _ => local.keep_warm(policy, sheet, now),
                }
                decision
            }
            Err(fault) => without_store(local, policy, sheet, fault, now),
        }
    }

    /// Gives back the leases that nobody has asked for lately, or `all`.
    pub fn give_back(&self, all: bool, now: Micros) {
        if let Limiter::Redis { client, leases, .. } = self {
            for back in leases.borrow_mut().returns(all, now) {
                client.post(&back.key, now, |out| script::give_back(&back, out));
            }
        }
    }

    /// Whether the store still owes a reply.
    pub fn is_busy(&self) -> bool {
        matches!(self, Limiter::Redis { client, .. } if client.is_busy())
    }
}

fn told(policy: &Policy, sheet: &Sheet) -> Decision {
    match sheet.denied(policy) {
        true => Decision::Deny,
        false => Decision::Allow,
    }
}

/// One closed limit closes; else those that are decided here decide, and the others let pass.
fn without_store(
    local: &memory::Store,
    policy: &Policy,
    sheet: &mut Sheet,
    fault: StoreFault,
    now: Micros,
) -> Decision {
    // Of several servers, some may have told.
    sheet.levels = [None; APPLIED_MAX];
    if policy.fails(sheet, OnFailure::Closed) {
        return Decision::FailClosed(fault);
    }
    if !policy.fails(sheet, OnFailure::Local) {
        return Decision::FailOpen(fault);
    }
    local.charge(policy, sheet, Share::Replica, now);
    match sheet.denied(policy) {
        true => Decision::LocalDeny(fault),
        false => Decision::LocalAllow(fault),
    }
}

/// Reads a level as the script writes it: the units, or -1 - units where they did not cover the cost.
pub fn level_of(number: i64) -> Level {
    match number {
        0.. => Level { units: number as u64, short: false },
        _ => Level { units: (-1 - number) as u64, short: true },
    }
}
