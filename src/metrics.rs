//! What the gateway counts: a block of cells per worker, merged when somebody asks, and the text that Prometheus scrapes.
//!
//! Labels are the names that the config knows; nothing that a client sends ever becomes one, so the number of series is
//! bounded by the config. An index without a name is ignored. Only the worker that owns a block writes to it: a cell is then
//! a plain load and store, no locked instruction, and no cache line is written by two cores.
//! Pure.

mod exposition;
mod label;

pub use exposition::content_type;
pub use label::{Outcome, StoreError, UpstreamError};

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The label of requests that fell under no route.
pub const NO_ROUTE: &str = "none";

/// The status labels, in the order of the counts in [`Snapshot::requests`]; `other` is what HTTP gives no class.
pub const STATUS_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];

/// The upper bounds of the histogram buckets, in microseconds, each inclusive; one more bucket holds what is above.
pub const BOUNDS_US: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// The labels known at load time; an index elsewhere in this file is a place in one of these lists.
/// Entries of one name share one series.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Routes, in the order of the config.
    pub routes: Vec<String>,
    /// Limits, in the order of the config.
    pub limits: Vec<String>,
    /// Upstreams, in the order that gives them their index.
    pub upstreams: Vec<String>,
}

/// The counts of one worker. Every method is O(1), allocates nothing and takes no lock.
///
/// One thread only may write: a second writer would lose counts (and nothing worse).
#[derive(Debug)]
pub struct Worker {
    /// By route; the last row belongs to [`NO_ROUTE`].
    routes: Box<[Arc<RouteRow>]>,
    limits: Box<[Arc<LimitRow>]>,
    upstreams: Box<[Arc<UpstreamRow>]>,
    totals: Arc<Totals>,
}

impl Worker {
    /// Counts one answered request: its route, the status it was answered with, and the time from the end of its head to the end of the answer.
    pub fn request(&self, route: Option<usize>, status: u16, took: Duration) {
        let Some((unrouted, named)) = self.routes.split_last() else {
            return;
        };
        let row = match route {
            Some(index) => named.get(index),
            None => Some(unrouted),
        };
        if let Some(row) = row {
            row[status_class(status)].add(1);
            self.totals.request_duration.observe(took);
        }
    }

    /// Counts what one limit said of one request.
    pub fn decision(&self, limit: usize, outcome: Outcome) {
        if let Some(row) = self.limits.get(limit) {
            row[outcome as usize].add(1);
        }
    }

    /// Records how long one request waited for its decision, all limits together.
    pub fn decision_took(&self, took: Duration) {
        self.totals.decision_duration.observe(took);
    }

    /// Counts one decision that the store did not give.
    pub fn store_error(&self, error: StoreError) {
        self.totals.store_errors[error as usize].add(1);
    }

    /// Counts one write to the store, of so many commands.
    pub fn store_write(&self, commands: u64) {
        self.totals.store_writes.add(1);
        self.totals.store_commands.add(commands);
    }

    /// Says how many connections to the store this worker has.
    pub fn store_connections(&self, connections: u64) {
        self.totals.store_connections.set(connections);
    }

    /// Says how many of this worker's breakers are open, so that nobody waits for the servers behind them.
    pub fn store_breakers_open(&self, open: u64) {
        self.totals.store_breakers_open.set(open);
    }

    /// Counts one request that was denied without asking the store.
    pub fn denied_from_cache(&self) {
        self.totals.denied_from_cache.add(1);
    }

    /// Counts one request that was charged to leases, without asking the store.
    pub fn leased(&self) {
        self.totals.leased.add(1);
    }

    /// Counts one failed attempt at an upstream.
    pub fn upstream_error(&self, upstream: usize, error: UpstreamError) {
        if let Some(row) = self.upstreams.get(upstream) {
            row[error as usize].add(1);
        }
    }

    /// Counts one request sent to an upstream again.
    pub fn upstream_retry(&self, upstream: usize) {
        if let Some(row) = self.upstreams.get(upstream) {
            row[RETRY].add(1);
        }
    }

    /// Counts one failed attempt that was not followed by another because there have been too many retries.
    pub fn upstream_retry_denied(&self, upstream: usize) {
        if let Some(row) = self.upstreams.get(upstream) {
            row[RETRY_DENIED].add(1);
        }
    }

    /// Records the time from the sending of a request to the head of its response.
    pub fn upstream_took(&self, took: Duration) {
        self.totals.upstream_duration.observe(took);
    }

    /// Counts a client connection taken in; its worker must say [`Worker::connection_closed`] once for it.
    pub fn connection_opened(&self) {
        self.totals.opened.add(1);
    }

    /// Counts the end of a client connection.
    pub fn connection_closed(&self) {
        self.totals.closed.add(1);
    }

    /// Counts a client connection turned away because there were too many.
    pub fn connection_shed(&self) {
        self.totals.shed.add(1);
    }
}

/// All workers' counts and what is counted for the process as a whole.
#[derive(Debug)]
pub struct Registry {
    /// As given, and [`NO_ROUTE`] at the end of the routes.
    names: Names,
    workers: Vec<Arc<Worker>>,
    process: Arc<Process>,
}

impl Registry {
    /// A registry with every count at zero, for so many workers.
    pub fn new(names: Names, workers: usize) -> Registry {
        let names = with_unrouted(names);
        let workers = (0..workers).map(|_| Arc::new(worker(&names, None))).collect();
        Registry { names, workers, process: Arc::default() }
    }

    /// The same counts under a reloaded config's names: what keeps its name goes on counting where it was, what is new starts
    /// at zero, what is gone is no longer shown. Blocks handed out earlier stay valid, and count into what both have.
    pub fn renamed(&self, names: Names) -> Registry {
        let names = with_unrouted(names);
        let workers = self.workers.iter();
        let workers = workers.map(|old| Arc::new(worker(&names, Some((&self.names, old))))).collect();
        Registry { names, workers, process: Arc::clone(&self.process) }
    }

    /// The block of one worker. Beyond the number of workers, a block that no scrape shows.
    pub fn worker(&self, index: usize) -> Arc<Worker> {
        match self.workers.get(index) {
            Some(worker) => Arc::clone(worker),
            None => Arc::new(worker(&self.names, None)),
        }
    }

    /// Sets how many buckets the in-process store holds, and how many it has evicted since the start.
    pub fn set_memory_store(&self, entries: u64, evicted: u64) {
        self.process.memory_entries.store(entries, Relaxed);
        self.process.memory_evicted.store(evicted, Relaxed);
    }

    /// Sets how the upstreams and their servers are.
    pub fn set_groups(&self, groups: Vec<GroupState>) {
        *self.process.groups.lock() = groups;
    }

    /// Sets whether the process is finishing its last requests.
    pub fn set_draining(&self, draining: bool) {
        self.process.draining.store(draining, Relaxed);
    }

    /// The sum of all workers' counts. Counts go on meanwhile: each is exact, two of them may be of slightly different moments.
    pub fn snapshot(&self) -> Snapshot {
        let totals = || self.workers.iter().map(|worker| &*worker.totals);
        // Closed before opened: a connection that ends between the two must not count as closed only.
        let closed = totals().map(|t| t.closed.read()).fold(0, u64::wrapping_add);
        let opened = totals().map(|t| t.opened.read()).fold(0, u64::wrapping_add);
        Snapshot {
            requests: self.merge_rows(&self.names.routes, |worker| &worker.routes),
            request_duration: Histogram::merge(totals().map(|t| &t.request_duration)),
            decisions: self.merge_rows(&self.names.limits, |worker| &worker.limits),
            decision_duration: Histogram::merge(totals().map(|t| &t.decision_duration)),
            store_errors: merge(totals().map(|t| &t.store_errors)),
            store_writes: totals().map(|t| t.store_writes.read()).fold(0, u64::wrapping_add),
            store_commands: totals().map(|t| t.store_commands.read()).fold(0, u64::wrapping_add),
            store_connections: totals().map(|t| t.store_connections.read()).fold(0, u64::wrapping_add),
            store_breakers_open: totals().map(|t| t.store_breakers_open.read()).fold(0, u64::wrapping_add),
            denied_from_cache: totals().map(|t| t.denied_from_cache.read()).fold(0, u64::wrapping_add),
            leased: totals().map(|t| t.leased.read()).fold(0, u64::wrapping_add),
            upstreams: self.upstreams(),
            groups: self.process.groups.lock().clone(),
            upstream_duration: Histogram::merge(totals().map(|t| &t.upstream_duration)),
            connections: opened.saturating_sub(closed),
            connections_shed: totals().map(|t| t.shed.read()).fold(0, u64::wrapping_add),
            memory_entries: self.process.memory_entries.load(Relaxed),
            memory_evicted: self.process.memory_evicted.load(Relaxed),
            draining: self.process.draining.load(Relaxed),
        }
    }

    fn upstreams(&self) -> Vec<(String, UpstreamCounts)> {
        let rows = self.merge_rows(&self.names.upstreams, |worker| &worker.upstreams);
        rows.into_iter()
            .map(|(name, counts)| {
                let [errors @ .., retries, retries_denied] = counts;
                (name, UpstreamCounts { errors, retries, retries_denied })
            })
            .collect()
    }

    /// One merged row for each name, in the order of the names, a repeated name once.
    fn merge_rows<const N: usize>(
        &self,
        names: &[String],
        rows_of: impl Fn(&Worker) -> &[Arc<Row<N>>],
    ) -> Vec<(String, [u64; N])> {
        let mut seen = HashSet::new();
        let distinct = names.iter().enumerate().filter(|(_, name)| seen.insert(*name));
        distinct
            .map(|(index, name)| {
                let rows = self.workers.iter().filter_map(|worker| rows_of(worker).get(index));
                (name.clone(), merge(rows.map(|row| &row.0)))
            })
            .collect()
    }
}

/// What all workers counted since the process started.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Requests by route ([`NO_ROUTE`] last), each by [`STATUS_CLASSES`].
    pub requests: Vec<(String, [u64; 6])>,
    /// From the end of a request's head to the end of its answer.
    pub request_duration: Distribution,
    /// Decisions by limit, each by [`Outcome::ALL`].
    pub decisions: Vec<(String, [u64; Outcome::ALL.len()])>,
    /// The wait for a decision.
    pub decision_duration: Distribution,
    /// Decisions that the store did not give, by [`StoreError::ALL`].
    pub store_errors: [u64; StoreError::ALL.len()],
    /// Writes to the store.
    pub store_writes: u64,
    /// Commands in those writes.
    pub store_commands: u64,
    /// Connections to the store: one for each worker, in a cluster one to each primary.
    pub store_connections: u64,
    /// Breakers that are open, one for each connection.
    pub store_breakers_open: u64,
    /// Requests denied without asking the store.
    pub denied_from_cache: u64,
    /// Requests charged to leases, without asking the store.
    pub leased: u64,
    /// Failures and retries by upstream.
    pub upstreams: Vec<(String, UpstreamCounts)>,
    /// How the upstreams were when that was last set.
    pub groups: Vec<GroupState>,
    /// From the sending of a request to the head of its response.
    pub upstream_duration: Distribution,
    /// Client connections now open.
    pub connections: u64,
    /// Client connections turned away because there were too many.
    pub connections_shed: u64,
    /// Buckets in the in-process store.
    pub memory_entries: u64,
    /// Buckets that the in-process store evicted.
    pub memory_evicted: u64,
    /// Whether the process is finishing its last requests.
    pub draining: bool,
}

/// What was counted of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Failed attempts, by [`UpstreamError::ALL`].
    pub errors: [u64; UpstreamError::ALL.len()],
    /// Requests sent again.
    pub retries: u64,
    /// Failed attempts that might have been followed by another, but for the budget of retries.
    pub retries_denied: u64,
}

/// How an upstream is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupState {
    /// Its name.
    pub upstream: String,
    /// Whether all its servers are sick and are asked anyway.
    pub in_panic: bool,
    /// Requests that wait for a connection.
    pub pending: u64,
    /// Its servers.
    pub servers: Vec<ServerState>,
}

/// How a server of an upstream is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerState {
    /// Its name and address.
    pub server: String,
    /// Whether it is well.
    pub is_up: bool,
    /// Connections to it.
    pub connections: u64,
    /// Requests sent to it since it came.
    pub requests: u64,
}

/// How durations spread over the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Durations in each bucket alone: those of [`BOUNDS_US`], then those above all bounds.
    pub counts: [u64; 18],
    /// The sum of all durations, in nanoseconds.
    pub sum_ns: u64,
}

impl Distribution {
    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &n| sum.wrapping_add(n))
    }
}

/// Place of the retries in an upstream's row, after its errors.
const RETRY: usize = UpstreamError::ALL.len();
const RETRY_DENIED: usize = RETRY + 1;

type RouteRow = Row<{ STATUS_CLASSES.len() }>;
type LimitRow = Row<{ Outcome::ALL.len() }>;
type UpstreamRow = Row<{ RETRY_DENIED + 1 }>;

/// The cells of one name. 128 bytes, not 64: the prefetcher fetches lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Row<const N: usize>([Count; N]);

impl<const N: usize> Default for Row<N> {
    fn default() -> Row<N> {
        Row(std::array::from_fn(|_| Count::default()))
    }
}

impl<const N: usize> std::ops::Deref for Row<N> {
    type Target = [Count; N];

    fn deref(&self) -> &[Count; N] {
        &self.0
    }
}

/// What one worker counts without a name.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Totals {
    request_duration: Histogram,
    decision_duration: Histogram,
    upstream_duration: Histogram,
    store_errors: [Count; StoreError::ALL.len()],
    store_writes: Count,
    store_commands: Count,
    store_connections: Count,
    store_breakers_open: Count,
    denied_from_cache: Count,
    leased: Count,
    opened: Count,
    closed: Count,
    shed: Count,
}

/// What is set, not counted, and by the control thread.
#[derive(Debug, Default)]
struct Process {
    memory_entries: AtomicU64,
    memory_evicted: AtomicU64,
    draining: AtomicBool,
    groups: Mutex<Vec<GroupState>>,
}

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    /// Load and store, not `fetch_add`: there is one writer, so nothing comes between.
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Histogram {
    buckets: [Count; BOUNDS_US.len() + 1],
    /// Nanoseconds, since many decisions take less than a microsecond; wraps after 584 years of waiting.
    sum_ns: Count,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let ns = took.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(took.subsec_nanos()));
        self.buckets[BOUNDS_US.partition_point(|&bound_us| bound_us * 1_000 < ns)].add(1);
        self.sum_ns.add(ns);
    }

    fn merge<'a>(parts: impl Iterator<Item = &'a Histogram> + Clone) -> Distribution {
        Distribution {
            counts: merge(parts.clone().map(|part| &part.buckets)),
            sum_ns: parts.map(|part| part.sum_ns.read()).fold(0, u64::wrapping_add),
        }
    }
}

fn merge<'a, const N: usize>(rows: impl Iterator<Item = &'a [Count; N]>) -> [u64; N] {
    rows.fold([0; N], |sum, row| std::array::from_fn(|i| sum[i].wrapping_add(row[i].read())))
}

/// The place of a status in [`STATUS_CLASSES`].
fn status_class(status: u16) -> usize {
    match status {
        100..=599 => usize::from(status / 100) - 1,
        _ => STATUS_CLASSES.len() - 1,
    }
}

fn with_unrouted(mut names: Names) -> Names {
    names.routes.push(NO_ROUTE.to_owned());
    names
}

/// A block for these names, which takes over the rows that an older one has for them.
fn worker(names: &Names, older: Option<(&Names, &Worker)>) -> Worker {
    Worker {
        routes: rows(&names.routes, older.map(|(n, w)| (&n.routes[..], &*w.routes))),
        limits: rows(&names.limits, older.map(|(n, w)| (&n.limits[..], &*w.limits))),
        upstreams: rows(&names.upstreams, older.map(|(n, w)| (&n.upstreams[..], &*w.upstreams))),
        totals: older.map_or_else(Arc::default, |(_, w)| Arc::clone(&w.totals)),
    }
}

fn rows<const N: usize>(names: &[String], older: Option<(&[String], &[Arc<Row<N>>])>) -> Box<[Arc<Row<N>>]> {
    let older = older.into_iter().flat_map(|(names, rows)| names.iter().zip(rows.iter().cloned()));
    let mut by_name: HashMap<&String, Arc<Row<N>>> = older.collect();
    names.iter().map(|name| Arc::clone(by_name.entry(name).or_default())).collect()
}

#[cfg(test)]
mod tests;
