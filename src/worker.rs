//! One thread per core: pin it, build its runtime, its listeners and its gateway, and run until the stop.
//!
//! Shell. The runtime is io_uring where that is to be had, else epoll: first the flags that save most, then fewer, then
//! a smaller ring. The choice is made once for the process, so that one log line can say what runs and why.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: owns the threads, runtimes and listeners of the data plane"
)]

use crate::config::{Config, Io};
use crate::conn::{Deadlines, SCAN_INTERVAL, UNSENT_MAX};
use crate::gateway::{Gateway, Rules};
use crate::limit::{Limiter, StoreKind, memory, script};
use crate::log::{Budget, Take};
use crate::metrics;
use crate::redis::Address;
use crate::redis::breaker::Change;
use crate::redis::client::{Client, Watcher};
use crate::redis::dial::Dialer;
use crate::redis::pipeline::Observer;
use crate::resolve::Resolver;
use crate::server::{self, Cap};
use crate::time::{Micros, now};
use crate::tls::Secure;
use crate::upstream::members::Group;
use crate::upstream::pool::Upstream;
use monoio::io::Canceller;
use monoio::net::TcpListener;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// Connections that the kernel accepts ahead of us on each listener.
const BACKLOG: i32 = 4096;

/// Submission entries, first choice and last resort: the smaller one fits a locked-memory limit of 64 KiB.
const RING_ENTRIES: u32 = 1024;
const RING_ENTRIES_MIN: u32 = 256;

/// Completions that the ring holds before the kernel has to allocate.
const COMPLETIONS: u32 = 8192;

/// Looks at whether the store has answered the last commands, before a worker ends, and the pause between two.
const LAST_LOOKS: u32 = 20;
const LAST_PAUSE: Duration = Duration::from_millis(5);

/// How long a stop leaves idle connections open, so that one more request on each is answered, and told that it is the last: a
/// client that keeps connections (NGINX) may not repeat a POST that meets a connection just closed. At most half of the drain,
/// so that there is time for those requests.
const IDLE_GRACE: Duration = Duration::from_secs(1);

/// Scans between two looks at idle connections to backends.
const SCANS_PER_EXPIRY: u32 = 10;

/// What the workers run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring with this setup.
    Ring(Setup),
    /// epoll.
    Epoll,
}

/// How a ring is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    tasks: TaskRun,
    entries: u32,
}

/// When the kernel runs the work of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaskRun {
    /// When the worker asks for completions (DEFER_TASKRUN and SINGLE_ISSUER, Linux 6.1): the cheapest.
    Deferred,
    /// At the next system call (COOP_TASKRUN, Linux 5.19).
    Cooperative,
    /// By interrupting the worker.
    Interrupting,
}

const SETUPS: [Setup; 4] = [
    Setup { tasks: TaskRun::Deferred, entries: RING_ENTRIES },
    Setup { tasks: TaskRun::Cooperative, entries: RING_ENTRIES },
    Setup { tasks: TaskRun::Interrupting, entries: RING_ENTRIES },
    Setup { tasks: TaskRun::Interrupting, entries: RING_ENTRIES_MIN },
];

impl Driver {
    /// Its name in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Driver::Ring(_) => "io_uring",
            Driver::Epoll => "epoll",
        }
    }

    /// Tries the setups in turn. Gives the driver and, for epoll, why it is not io_uring.
    pub fn choose(io: Io) -> io::Result<(Driver, Option<String>)> {
        if io == Io::Epoll {
            return Ok((Driver::Epoll, Some("the configuration says io = \"epoll\"".into())));
        }
        let mut last = None;
        for setup in SETUPS {
            match setup.builder().build(setup.entries) {
                Ok(_) => return Ok((Driver::Ring(setup), None)),
                Err(error) => last = Some(error),
            }
        }
        let error = last.unwrap_or_else(|| io::Error::other("no setup was tried"));
        match io {
            Io::IoUring => Err(error),
            _ => Ok((Driver::Epoll, Some(why_no_ring(&error)))),
        }
    }
}

fn why_no_ring(error: &io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::PERM.raw_os_error() => {
            "; Docker's default seccomp profile blocks it since Engine 25: allow io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(code) if code == rustix::io::Errno::NOSYS.raw_os_error() => "; this kernel has no io_uring",
        Some(code) if code == rustix::io::Errno::NOMEM.raw_os_error() => {
            "; raise the limit on locked memory (ulimit -l)"
        }
        _ => "",
    };
    format!("io_uring is not to be had: {error}{hint}")
}

impl Setup {
    fn builder(&self) -> io_uring::Builder {
        let mut builder = io_uring::IoUring::builder();
        builder.setup_clamp();
        if self.entries > RING_ENTRIES_MIN {
            builder.setup_cqsize(COMPLETIONS);
        }
        match self.tasks {
            TaskRun::Deferred => builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all(),
            TaskRun::Cooperative => builder.setup_coop_taskrun().setup_submit_all(),
            TaskRun::Interrupting => &mut builder,
        };
        builder
    }
}

/// Word between control and workers.
#[derive(Debug, Default)]
pub struct Signals {
    /// Set once: finish what runs and stop.
    pub draining: AtomicBool,
    /// Set once: stop without finishing.
    pub at_once: AtomicBool,
    /// Workers that accept clients.
    pub serving: AtomicUsize,
    /// Workers that have nothing left to do.
    pub finished: AtomicUsize,
    /// A worker could not run.
    pub failed: AtomicBool,
}

/// What a worker is started with.
pub struct Plan {
    /// Its number, from 0.
    pub number: usize,
    /// The processor it stays on.
    pub processor: Option<usize>,
    /// What it runs on.
    pub driver: Driver,
    /// Its listeners, one for each address.
    pub listeners: Vec<std::net::TcpListener>,
    /// The rules of all workers.
    pub rules: Arc<Rules>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The upstreams of all workers.
    pub groups: Arc<[Arc<Group>]>,
    /// What names resolve to.
    pub resolver: Arc<Resolver>,
    /// TLS to Redis, where it is spoken.
    pub tls: Option<Secure>,
    /// The buckets in this process: the store, or what decides where that fails.
    pub memory: Arc<memory::Store>,
    /// Its counters.
    pub metrics: Arc<metrics::Worker>,
    /// The cap of the process.
    pub cap: Arc<Cap>,
    /// Word from control.
    pub signals: Arc<Signals>,
}

/// Tells the resolver of the store's servers.
pub fn name_store(config: &Config, resolver: &Resolver) {
    if let StoreKind::Redis(settings) = &config.store.kind {
        for address in settings.place.named() {
            if let Address::Tcp { host, port } = address {
                resolver.target(host, *port);
            }
        }
    }
}

/// The processors that this process may use.
pub fn processors() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect(),
        Err(_) => Vec::new(),
    }
}

/// An address that is listened on.
pub struct Opened {
    /// With the port that the kernel chose where 0 was asked for.
    pub address: SocketAddr,
    /// One for each worker.
    pub listeners: Vec<std::net::TcpListener>,
}

/// Fails where another process listens on this address: SO_REUSEPORT, which the workers need among themselves, would let
/// a second gateway take half of the clients in silence. To be asked of all addresses before any is opened.
pub fn check_free(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Opens `workers` listeners on one address. Port 0 becomes the same free port for all.
pub fn listen(address: SocketAddr, workers: usize) -> io::Result<Opened> {
    let mut address = address;
    let mut listeners = Vec::new();
    for _ in 0..workers {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // Accepted sockets inherit it.
        socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener: std::net::TcpListener = socket.into();
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(Opened { address, listeners })
}

/// Runs a worker on this thread until it has stopped.
pub fn run(plan: Plan) -> io::Result<()> {
    if let Some(processor) = plan.processor {
        let mut set = CpuSet::new();
        set.set(processor);
        if let Err(error) = sched_setaffinity(None, &set) {
            tracing::warn!(worker = plan.number, %error, "cannot pin the worker to its processor");
        }
    }
    let signals = plan.signals.clone();
    let result = match plan.driver {
        Driver::Ring(setup) => {
            let ring = RuntimeBuilder::<IoUringDriver>::new()
                .uring_builder(setup.builder())
                .with_entries(setup.entries)
                .enable_timer()
                .build();
            match ring {
                Ok(mut runtime) => {
                    let result = runtime.block_on(work(plan));
                    // Operations may still be in flight: their buffers must outlive them, so the process ends first.
                    std::mem::forget(runtime);
                    result
                }
                Err(error) => {
                    tracing::warn!(worker = plan.number, "{}; this worker uses epoll", why_no_ring(&error));
                    run_on_epoll(Plan { driver: Driver::Epoll, ..plan })
                }
            }
        }
        Driver::Epoll => run_on_epoll(plan),
    };
    signals.finished.fetch_add(1, Ordering::Release);
    result
}

fn run_on_epoll(plan: Plan) -> io::Result<()> {
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    let result = runtime.block_on(work(plan));
    std::mem::forget(runtime);
    result
}

async fn work(plan: Plan) -> io::Result<()> {
    let deadlines = Rc::new(Deadlines::default());
    deadlines.scan(now());
    let gateway =
        Rc::new(Gateway::new(plan.rules.clone(), limiter(&plan), upstreams(&plan), plan.metrics.clone(), deadlines));
    *gateway.date.borrow_mut() = httpdate::fmt_http_date(SystemTime::now());
    let clock = gateway.clock.clone();
    monoio::spawn(async move { clock.forget_each_turn().await });
    if let Limiter::Redis { client, .. } = &gateway.limiter {
        // The kernel has clients waiting already: without a connection each would pass uncounted.
        client.tried().await;
    }
    let canceller = Canceller::new();
    let accepting = Rc::new(Cell::new(plan.listeners.len()));
    for listener in plan.listeners {
        // epoll's sockets must not block; io_uring's may.
        listener.set_nonblocking(plan.driver == Driver::Epoll)?;
        let rest = listener.try_clone()?;
        let listener = TcpListener::from_std(listener)?;
        let loop_over = server::accept(listener, rest, gateway.clone(), plan.cap.clone(), canceller.handle());
        let accepting = accepting.clone();
        monoio::spawn(async move {
            loop_over.await;
            accepting.set(accepting.get() - 1);
        });
    }
    plan.signals.serving.fetch_add(1, Ordering::Release);
    scan(&gateway, &plan.signals, canceller, &accepting, plan.config.server.drain).await;
    give_back_all(&gateway.limiter).await;
    Ok(())
}

/// What is left of leases goes back before the worker ends.
async fn give_back_all(limiter: &Limiter) {
    limiter.give_back(true, now());
    for _ in 0..LAST_LOOKS {
        if !limiter.is_busy() {
            return;
        }
        monoio::time::sleep(LAST_PAUSE).await;
    }
}

/// Until when a stop waits for connections.
#[derive(Clone, Copy)]
struct Stop {
    /// From then on idle ones are closed.
    no_idle_from: Micros,
    /// From then on all are.
    none_from: Micros,
}

impl Stop {
    fn begun(now: Micros, drain: Duration) -> Stop {
        Stop { no_idle_from: now.after(IDLE_GRACE.min(drain / 2)), none_from: now.after(drain) }
    }
}

/// The worker's only clockwork: deadlines, idle connections, the date, and the stop.
async fn scan(gateway: &Gateway, signals: &Signals, canceller: Canceller, accepting: &Cell<usize>, drain: Duration) {
    let mut canceller = Some(canceller);
    let mut stop: Option<Stop> = None;
    let mut scans = 0u32;
    loop {
        monoio::time::sleep(SCAN_INTERVAL).await;
        let present = now();
        gateway.deadlines.scan(present);
        scans = scans.wrapping_add(1);
        for upstream in &gateway.upstreams {
            upstream.tend(present);
        }
        if scans.is_multiple_of(SCANS_PER_EXPIRY) {
            for upstream in &gateway.upstreams {
                upstream.expire(present);
            }
        }
        gateway.limiter.give_back(false, present);
        *gateway.date.borrow_mut() = httpdate::fmt_http_date(SystemTime::now());
        if signals.draining.load(Ordering::Acquire) {
            gateway.draining.set(true);
            if let Some(canceller) = canceller.take() {
                canceller.cancel();
                stop = Some(Stop::begun(present, drain));
            }
            if stop.is_some_and(|stop| stop.no_idle_from <= present) {
                gateway.deadlines.end_idle();
            }
            if accepting.get() == 0 && gateway.open.get() == 0 {
                return;
            }
            if signals.at_once.load(Ordering::Acquire) || stop.is_some_and(|stop| stop.none_from <= present) {
                gateway.close_idle();
                let connections = gateway.deadlines.reset_busy();
                if connections > 0 {
                    tracing::warn!(connections, "cut off: still under way at the end of the stop");
                }
                return;
            }
        }
    }
}

fn upstreams(plan: &Plan) -> Vec<Upstream> {
    let upstream = |group: &Arc<Group>| Upstream::new(group.clone(), plan.number, now());
    plan.groups.iter().map(upstream).collect()
}

fn limiter(plan: &Plan) -> Limiter {
    match &plan.config.store.kind {
        StoreKind::Memory => Limiter::Memory(plan.memory.clone()),
        StoreKind::Redis(settings) => {
            let dialer = Dialer::new((**settings).clone(), plan.resolver.clone(), plan.tls.clone());
            let watcher = StoreWatcher(Rc::new(StoreState {
                worker: plan.number,
                metrics: plan.metrics.clone(),
                connections: Cell::new(0),
                broken: Cell::new(0),
            }));
            Limiter::Redis {
                client: Rc::new(Client::start(dialer, script::TEXT, Box::new(watcher))),
                denied: RefCell::default(),
                leases: RefCell::default(),
                local: plan.memory.clone(),
            }
        }
    }
}

/// What a worker's connections to the store have in common.
struct StoreState {
    worker: usize,
    metrics: Arc<metrics::Worker>,
    connections: Cell<u64>,
    broken: Cell<u64>,
}

struct StoreWatcher(Rc<StoreState>);

impl Watcher for StoreWatcher {
    fn server(&self, address: Option<&Address>) -> Box<dyn Observer> {
        Box::new(StoreLog {
            state: self.0.clone(),
            server: address.map_or_else(|| "the sentinels' primary".into(), ToString::to_string),
            is_up: Cell::new(true),
            is_connected: Cell::new(false),
            is_broken: Cell::new(false),
            reasons: RefCell::default(),
            errors: RefCell::default(),
        })
    }

    fn cluster(&self, trouble: Option<&str>) {
        match trouble {
            Some(reason) => tracing::error!(worker = self.0.worker, reason, "no server tells the map of the cluster"),
            None => tracing::info!(worker = self.0.worker, "the map of the cluster is known"),
        }
    }
}

/// Tells of one server's connection and breaker, once per change, and counts what is written to it.
struct StoreLog {
    state: Rc<StoreState>,
    server: String,
    /// As far as the log knows: the first loss is worth a line, also where there never was a connection.
    is_up: Cell<bool>,
    is_connected: Cell<bool>,
    is_broken: Cell<bool>,
    /// Why it could not be had since it was lost, as far as told.
    reasons: RefCell<Vec<String>>,
    /// What may be told of each kind of error.
    errors: RefCell<Vec<(String, Budget)>>,
}

/// Reasons of one loss that are told, and kinds of errors that are told apart.
const KINDS_MAX: usize = 8;

impl StoreLog {
    fn set_connected(&self, is_connected: bool) {
        count(&self.state.connections, self.is_connected.replace(is_connected), is_connected);
        self.state.metrics.store_connections(self.state.connections.get());
    }

    fn set_broken(&self, is_broken: bool) {
        count(&self.state.broken, self.is_broken.replace(is_broken), is_broken);
        self.state.metrics.store_breakers_open(self.state.broken.get());
    }
}

/// Counts what is so, where it was or was not before.
fn count(those: &Cell<u64>, was: bool, is: bool) {
    those.set(those.get() + u64::from(is) - u64::from(was));
}

impl Observer for StoreLog {
    fn connected(&self) {
        self.is_up.set(true);
        self.set_connected(true);
        tracing::info!(worker = self.state.worker, server = self.server, "store connected");
    }

    fn disconnected(&self, reason: &str) {
        self.set_connected(false);
        let (worker, server) = (self.state.worker, &self.server);
        let mut reasons = self.reasons.borrow_mut();
        if self.is_up.replace(false) {
            tracing::error!(worker, server, reason, "store lost; trying to reconnect");
            reasons.clear();
        } else if reasons.len() < KINDS_MAX && reasons.iter().all(|told| told != reason) {
            tracing::warn!(worker, server, reason, "store still lost");
        } else {
            return;
        }
        reasons.push(reason.into());
    }

    fn retired(&self) {
        self.set_connected(false);
        self.set_broken(false);
        tracing::info!(worker = self.state.worker, server = self.server, "the server has left the store's cluster");
    }

    fn breaker(&self, change: Change) {
        self.set_broken(change == Change::Opened);
        let (worker, server) = (self.state.worker, &self.server);
        match change {
            Change::Opened => {
                tracing::error!(worker, server, "the store keeps failing; decisions do not wait for it")
            }
            Change::Closed => tracing::info!(worker, server, "the store answers again"),
        }
    }

    fn writes(&self, commands: u64) {
        self.state.metrics.store_write(commands);
    }

    fn server_error(&self, text: &str) {
        let mut errors = self.errors.borrow_mut();
        let code = text.split(' ').next().unwrap_or_default();
        let known = errors.iter().position(|(known, _)| known == code);
        // Beyond the bound the last one's budget serves for all.
        let at = known.unwrap_or(errors.len()).min(KINDS_MAX - 1);
        if at == errors.len() {
            errors.push((code.into(), Budget::new(1)));
        }
        if let Take::Write { suppressed } = errors[at].1.take(now()) {
            let (worker, server) = (self.state.worker, &self.server);
            tracing::error!(worker, server, error = text, suppressed, "the store answered with an error");
        }
    }
}
