//! What one worker needs to serve requests: the rules that all workers share, and what it owns alone.
//!
//! No IO of its own; it hands out buffers and scratch space so that a request allocates nothing in the steady state.

use crate::config::{Config, Goal};
use crate::conn::{AHEAD_MAX, Deadlines, Timeouts};
use crate::http::field::may_be_secret;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::{Bounds, Framing, Refusal};
use crate::identity::{Caller, Identity, push_part, push_secret};
use crate::limit::policy::{BadPolicy, Mode, Policy, Sheet};
use crate::limit::{Decision, Limiter};
use crate::log::{Budget, Take};
use crate::metrics::{self, Outcome as Counted};
use crate::route::rewrite::PathChange;
use crate::route::{HostPattern, Match, PathTree};
use crate::splice::Splicer;
use crate::time::{Micros, TurnClock};
use crate::upstream::pool::Upstream;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a lent buffer: room for a backend's head and a usual body in one read. A connection that is kept keeps it.
pub const BUFFER: usize = AHEAD_MAX;

/// Unused buffers and scratch spaces that a worker keeps, each.
const SPARE_MAX: usize = 512;

/// Lines of one kind that strangers can make a worker log each second.
const LOG_LINES_PER_SECOND: u32 = 100;

/// The part of the configuration that requests meet, shared by all workers and never changed.
pub struct Rules {
    /// Who asks.
    pub identity: Identity,
    /// Which limits apply.
    pub policy: Policy,
    /// Route numbers by host, path and method.
    pub routes: PathTree,
    /// The routes.
    pub route_table: Vec<Route>,
    /// How large messages may be.
    pub bounds: Bounds,
    /// How long clients may take.
    pub timeouts: Timeouts,
    /// Whether each denial is logged.
    pub log_denied: bool,
}

impl Rules {
    /// Prepares the rules of a configuration.
    pub fn of(config: &Config) -> Result<Rules, BadPolicy> {
        let mut identity = Identity::new(config.identity.clone());
        let policy = Policy::new(&config.limits, identity.plans(), &config.store.key_prefix)?
            .with_fallback(config.store.on_failure, config.store.replicas)?;
        identity.watch(policy.header_names());
        let scopes = config.routes.iter().map(|route| &route.scope);
        let conditions = scopes.chain(config.limits.iter().map(|limit| &limit.scope)).flat_map(|scope| &scope.headers);
        identity.watch(conditions.map(|header| header.name.as_str()));
        let scopes = config.routes.iter().enumerate();
        Ok(Rules {
            identity,
            policy,
            routes: PathTree::new(scopes.map(|(number, route)| (route.scope.clone(), number))),
            route_table: config
                .routes
                .iter()
                .map(|route| Route {
                    label: route_label(&route.scope),
                    path: route.path.clone(),
                    goal: route.goal.clone(),
                })
                .collect(),
            bounds: config.server.bounds,
            timeouts: config.server.timeouts,
            log_denied: config.log.denied,
        })
    }
}

/// Where a matching request goes.
pub struct Route {
    /// What becomes of their paths.
    pub path: PathChange,
    /// Where they go.
    pub goal: Goal,
    /// Its name in keys and metrics.
    pub label: String,
}

impl Route {
    /// What must be known of a request before it is charged: whether this route can take it. Writes the target that the
    /// backend is asked for, where it is not the one that was sent; else nothing. Of a redirect, where it leads.
    pub fn prepare(&self, head: &RequestHead, buffer: &[u8], target: &mut Vec<u8>) -> Result<(), Refusal> {
        target.clear();
        let asked = head.forwarded_target(buffer);
        let way = match &self.goal {
            Goal::Upstream(way) => way,
            Goal::Redirect(redirect) => return redirect.location(head.host.of(buffer), asked, &self.path, target),
        };
        match (head.framing, way.body_max) {
            (Framing::Length(length), Some(most)) if length > most => return Err(Refusal::BodyTooLarge),
            _ => {}
        }
        match self.path.is_none() {
            true => Ok(()),
            false => self.path.apply(asked, target),
        }
    }
}

/// `GET,POST example.com/api x-version:2`: what a route is called in keys and metrics; `=/api` for the path alone.
/// Values that may be secrets stand there as a hash.
pub fn route_label(scope: &Match) -> String {
    let host = match &scope.host {
        Some(HostPattern::Exact(name)) => name.clone(),
        Some(HostPattern::Suffix(tail)) => format!("*{tail}"),
        None => String::new(),
    };
    let exact = if scope.exact { "=" } else { "" };
    let mut label = match scope.methods.is_empty() {
        true => format!("{host}{exact}{}", scope.path),
        false => format!("{} {host}{exact}{}", scope.methods.join(","), scope.path),
    };
    for header in &scope.headers {
        let mut text = Vec::new();
        match &header.value {
            Some(value) if may_be_secret(&header.name) => {
                push_secret(&mut text, &header.name, value.as_bytes());
            }
            Some(value) => {
                text.extend_from_slice(header.name.as_bytes());
                text.push(b':');
                push_part(&mut text, value.as_bytes());
            }
            None => text.extend_from_slice(format!("{}:*", header.name).as_bytes()),
        }
        label.push(' ');
        label.push_str(&String::from_utf8_lossy(&text));
    }
    label
}

/// One worker's gateway.
pub struct Gateway {
    /// What all workers share.
    pub rules: Arc<Rules>,
    /// Its way to the store.
    pub limiter: Limiter,
    /// Its upstreams, with their connections.
    pub upstreams: Vec<Upstream>,
    /// Its counters.
    pub metrics: Arc<metrics::Worker>,
    /// The deadlines of its connections.
    pub deadlines: Rc<Deadlines>,
    /// Its clock.
    pub clock: Rc<TurnClock>,
    /// What large bodies go through.
    pub splicer: Splicer,
    /// Whether it is stopping: connections are closed after the answer at hand.
    pub draining: Cell<bool>,
    /// Client connections at present.
    pub open: Cell<usize>,
    /// The time of day as an HTTP date, kept by the worker's scan.
    pub date: RefCell<String>,
    denials: RefCell<Budget>,
    refusals: RefCell<Budget>,
    troubles: RefCell<Budget>,
    buffers: RefCell<Vec<Vec<u8>>>,
    // Boxed, so that lending one moves a pointer and not its half kilobyte.
    #[allow(clippy::vec_box)]
    scratches: RefCell<Vec<Box<Scratch>>>,
}

/// Working space of one request.
#[derive(Default)]
pub struct Scratch {
    /// The request's head.
    pub head: RequestHead,
    /// The response's head.
    pub response: ResponseHead,
    /// Who asks.
    pub caller: Caller,
    /// The normalised path.
    pub endpoint: Vec<u8>,
    /// The target as its route changes it, or where that leads; empty where it goes on as it is.
    pub target: Vec<u8>,
    /// The request's limits.
    pub sheet: Sheet,
    /// The request's id.
    pub request_id: Vec<u8>,
    /// The server that failed it, where one did: its name in logs.
    pub server: String,
    /// The protocols that the client offers to switch to.
    pub offer: Vec<u8>,
    /// Rate limit fields for the response.
    pub fields: Vec<u8>,
    /// Bytes for the backend.
    pub out: Vec<u8>,
    /// Bytes for the client.
    pub back: Vec<u8>,
}

impl Gateway {
    /// Puts a worker's gateway together.
    pub fn new(
        rules: Arc<Rules>,
        limiter: Limiter,
        upstreams: Vec<Upstream>,
        metrics: Arc<metrics::Worker>,
        deadlines: Rc<Deadlines>,
    ) -> Gateway {
        Gateway {
            rules,
            limiter,
            upstreams,
            metrics,
            deadlines,
            clock: Rc::default(),
            splicer: Splicer::default(),
            draining: Cell::new(false),
            open: Cell::new(0),
            date: RefCell::default(),
            denials: RefCell::new(Budget::new(LOG_LINES_PER_SECOND)),
            refusals: RefCell::new(Budget::new(LOG_LINES_PER_SECOND)),
            troubles: RefCell::new(Budget::new(LOG_LINES_PER_SECOND)),
            buffers: RefCell::default(),
            scratches: RefCell::default(),
        }
    }

    /// Counts what each limit said.
    pub fn count(&self, sheet: &Sheet, decision: Decision) {
        if let Decision::FailOpen(fault)
        | Decision::FailClosed(fault)
        | Decision::LocalAllow(fault)
        | Decision::LocalDeny(fault) = decision
        {
            self.metrics.store_error(fault.counted());
        }
        let (allow, deny, unknown) = match decision {
            Decision::Allow | Decision::Deny => (Counted::Allow, Counted::Deny, None),
            Decision::AllowLeased => {
                self.metrics.leased();
                (Counted::Allow, Counted::Deny, None)
            }
            Decision::DenyKnown => {
                self.metrics.denied_from_cache();
                (Counted::Allow, Counted::Deny, None)
            }
            Decision::LocalAllow(_) => (Counted::LocalAllow, Counted::LocalDeny, Some(Counted::FailOpen)),
            Decision::LocalDeny(_) => (Counted::LocalAllow, Counted::LocalDeny, None),
            Decision::FailOpen(_) => (Counted::FailOpen, Counted::FailOpen, Some(Counted::FailOpen)),
            Decision::FailClosed(_) => (Counted::FailClosed, Counted::FailClosed, Some(Counted::FailClosed)),
        };
        for (applied, level) in sheet.applied().iter().zip(&sheet.levels) {
            let is_shadow = self.rules.policy.rule(applied).mode == Mode::Shadow;
            let outcome = match level {
                Some(level) if level.short && is_shadow => Counted::ShadowDeny,
                Some(level) if level.short => deny,
                // A limit that had room is not what denied the request.
                Some(_) => allow,
                None => match unknown {
                    Some(outcome) => outcome,
                    None => continue,
                },
            };
            self.metrics.decision(applied.rule, outcome);
        }
    }

    /// Lends a buffer of [`BUFFER`] bytes.
    pub fn buffer(&self) -> Vec<u8> {
        let spare = self.buffers.borrow_mut().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(BUFFER))
    }

    /// Takes a buffer back; one that has grown is dropped.
    pub fn return_buffer(&self, mut buffer: Vec<u8>) {
        let mut spares = self.buffers.borrow_mut();
        if spares.len() < SPARE_MAX && buffer.capacity() == BUFFER {
            buffer.clear();
            spares.push(buffer);
        }
    }

    /// Lends working space for a request.
    pub fn scratch(&self) -> Box<Scratch> {
        self.scratches.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes working space back; what a large message made it grow to is dropped.
    pub fn return_scratch(&self, mut scratch: Box<Scratch>) {
        let mut spares = self.scratches.borrow_mut();
        for bytes in [&mut scratch.out, &mut scratch.back, &mut scratch.target] {
            bytes.clear();
            bytes.shrink_to(BUFFER);
        }
        if spares.len() < SPARE_MAX {
            spares.push(scratch);
        }
    }

    /// Closes the worker's connections to backends that are not in use.
    pub fn close_idle(&self) {
        self.upstreams.iter().for_each(Upstream::close_idle);
    }

    /// Whether a denial may be logged now, and how many were left out before.
    pub fn may_log_denial(&self, now: Micros) -> Take {
        self.denials.borrow_mut().take(now)
    }

    /// Whether a refused request may be logged now.
    pub fn may_log_refusal(&self, now: Micros) -> Take {
        self.refusals.borrow_mut().take(now)
    }

    /// Whether trouble that strangers can cause may be logged now.
    pub fn may_log_trouble(&self, now: Micros) -> Take {
        self.troubles.borrow_mut().take(now)
    }
}
