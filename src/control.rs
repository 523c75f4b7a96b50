//! The control thread: starts the workers, listens to signals, serves the admin port, keeps names resolved.
//!
//! Shell. Nothing here is on a request's way; a fault here never stops a worker.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: owns threads, signals and the admin listener"
)]

use crate::admin::server::{Admin, serve};
use crate::config::Config;
use crate::gateway::Rules;
use crate::limit::{StoreKind, memory};
use crate::log::{Budget, Take};
use crate::metrics::{Names, Registry};
use crate::redis::{Address, Place};
use crate::resolve::rounds::Keeper;
use crate::resolve::{self, News, Resolver, Target};
use crate::server::Cap;
use crate::time::now;
use crate::tls::{BadTls, Secure};
use crate::upstream::Settings;
use crate::upstream::members::{Change, Group};
use crate::upstream::probe;
use crate::worker::{self, Driver, Plan, Signals, processors};
use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use monoio::{LegacyDriver, RuntimeBuilder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::low_level::pipe;
use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream as UnixPipe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use thiserror::Error;

/// How often the control thread looks whether the workers have stopped.
const FINISH_POLL: Duration = Duration::from_millis(10);

/// What the workers may take beyond `drain` to notice that it is over.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What a start waits for nameservers that do not answer.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

/// Lines of what names resolve to within [`DNS_LINES_WINDOW`], and as many of what that makes of upstreams: some
/// nameservers answer with other addresses each time.
const DNS_LINES_MAX: u32 = 100;
const DNS_LINES_WINDOW: Duration = Duration::from_secs(60);

/// Lines about signals that mean nothing, within [`SIGNAL_LINES_WINDOW`].
const SIGNAL_LINES_MAX: u32 = 4;
const SIGNAL_LINES_WINDOW: Duration = Duration::from_secs(1);

/// Descriptors beside those of connections: listeners, rings, logs, the store.
const FILES_RESERVED: u64 = 256;

/// Why the gateway did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// `io = "io_uring"` and there is none.
    #[error("io = \"io_uring\", but it is not to be had: {0}; use io = \"auto\" to fall back to epoll")]
    Ring(io::Error),
    /// TLS to the store cannot be spoken.
    #[error(transparent)]
    Tls(#[from] BadTls),
    /// The limits do not fit together.
    #[error(transparent)]
    Policy(#[from] crate::limit::policy::BadPolicy),
    /// The system refused a thread, a pipe or a signal handler.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// A gateway that listens.
pub struct Running {
    /// Where clients are served.
    pub listening: Vec<SocketAddr>,
    /// Where the admin port is.
    pub admin: Option<SocketAddr>,
    admin_listener: Option<std::net::TcpListener>,
    admin_state: Admin,
    groups: Arc<[Arc<Group>]>,
    signals: Arc<Signals>,
    workers: Vec<thread::JoinHandle<()>>,
    inbox: Inbox,
    drain: Duration,
}

/// Where control learns of signals and of workers that failed.
struct Inbox {
    /// The end is asked for.
    stop: UnixPipe,
    /// Something is asked for that means nothing here.
    others: UnixPipe,
}

impl Inbox {
    /// Takes over the process's signals; gives what workers write to. What comes before anybody reads is kept.
    fn open() -> io::Result<(Inbox, UnixPipe)> {
        let ((stop, wake), (others, other)) = (UnixPipe::pair()?, UnixPipe::pair()?);
        pipe::register(SIGTERM, wake.try_clone()?)?;
        pipe::register(SIGINT, wake.try_clone()?)?;
        // A terminal that is closed takes its programs with it; else it means "reload".
        pipe::register(SIGHUP, if io::stderr().is_terminal() { &wake } else { &other }.try_clone()?)?;
        pipe::register(SIGUSR1, other.try_clone()?)?;
        pipe::register(SIGUSR2, other)?;
        stop.set_nonblocking(true)?;
        others.set_nonblocking(true)?;
        Ok((Inbox { stop, others }, wake))
    }
}

/// Opens the listeners and starts the workers.
pub fn start(config: Config) -> Result<Running, StartError> {
    let config = Arc::new(config);
    // First: nobody asks the first process of a container twice.
    let (inbox, wake) = Inbox::open()?;
    raise_limits(config.server.max_connections);
    let (driver, why_not_ring) = Driver::choose(config.server.io).map_err(StartError::Ring)?;
    if let Some(reason) = why_not_ring {
        tracing::warn!(reason, "running on epoll, which costs more CPU time per request than io_uring");
    }
    let processors = processors();
    let workers = match config.server.workers {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    check_addresses(&config)?;
    let (listening, listeners) = open_listeners(&config, workers)?;
    let admin_listener = open_admin(&config)?;
    let rules = Arc::new(Rules::of(&config)?);
    let Trust { store: tls, upstreams: trust } = trust(&config)?;
    let registry = Arc::new(Registry::new(names(&config, &rules), workers));
    let resolver = Arc::new(Resolver::default());
    worker::name_store(&config, &resolver);
    let groups: Arc<[Arc<Group>]> =
        config.upstreams.iter().zip(trust).map(|(settings, tls)| group(settings, tls, &resolver)).collect();
    resolve_in_background(&resolver, &config.dns, groups.clone())?;
    let signals = Arc::new(Signals::default());
    let memory = Arc::new(memory::Store::default());
    let cap = Arc::new(Cap::new(config.server.max_connections));
    // A worker for each processor stays on it; fewer workers (a CPU quota) are left to the scheduler, or all replicas
    // of a machine would meet on its first processor.
    let pinned = workers >= processors.len();
    let mut threads = Vec::new();
    for (number, listeners) in listeners.into_iter().enumerate() {
        let plan = Plan {
            number,
            processor: pinned.then(|| processors.get(number % processors.len().max(1)).copied()).flatten(),
            driver,
            listeners,
            rules: rules.clone(),
            config: config.clone(),
            groups: groups.clone(),
            resolver: resolver.clone(),
            tls: tls.clone(),
            memory: memory.clone(),
            metrics: registry.worker(number),
            cap: cap.clone(),
            signals: signals.clone(),
        };
        threads.push(spawn(plan, wake.try_clone()?)?);
    }
    let admin = announce(&listening, admin_listener.as_ref(), workers, driver)?;
    Ok(Running {
        listening,
        admin,
        admin_listener,
        admin_state: Admin {
            registry,
            signals: signals.clone(),
            memory,
            groups: groups.clone(),
            workers,
            io: driver.name(),
        },
        groups,
        signals,
        workers: threads,
        inbox,
        drain: config.server.drain,
    })
}

/// What TLS needs, read from its files.
pub struct Trust {
    store: Option<Secure>,
    /// By upstream.
    upstreams: Vec<Option<Secure>>,
}

/// Reads what TLS to the store and to the upstreams needs.
pub fn trust(config: &Config) -> Result<Trust, BadTls> {
    let upstreams = config.upstreams.iter().map(trust_of_upstream).collect::<Result<_, _>>()?;
    Ok(Trust { store: trust_of_store(config)?, upstreams })
}

fn trust_of_upstream(settings: &Settings) -> Result<Option<Secure>, BadTls> {
    let Some(tls) = &settings.tls else { return Ok(None) };
    let section = format!("upstreams.{}.tls", settings.name);
    let secure = Secure::load(tls, &section)?.for_http();
    for server in &settings.servers {
        secure.check(server.address.host(), &section)?;
    }
    Ok(Some(secure))
}

fn trust_of_store(config: &Config) -> Result<Option<Secure>, BadTls> {
    let StoreKind::Redis(settings) = &config.store.kind else { return Ok(None) };
    let Some(tls) = &settings.tls else { return Ok(None) };
    let secure = Secure::load(tls, "store.tls")?;
    if let Place::Server(Address::Tcp { host, .. }) = &settings.place {
        secure.check(host, "store.tls")?;
    }
    Ok(Some(secure))
}

fn check_addresses(config: &Config) -> Result<(), StartError> {
    for &address in config.server.listen.iter().chain(&config.admin) {
        worker::check_free(address).map_err(|error| StartError::Listen { address, error })?;
    }
    Ok(())
}

/// Says where the gateway listens; gives the address of the admin port.
fn announce(
    listening: &[SocketAddr],
    admin: Option<&std::net::TcpListener>,
    workers: usize,
    driver: Driver,
) -> io::Result<Option<SocketAddr>> {
    let admin = admin.map(std::net::TcpListener::local_addr).transpose()?;
    for address in listening {
        tracing::info!(listen = %address, workers, io = driver.name(), "listening");
    }
    if let Some(address) = admin {
        tracing::info!(admin = %address, "admin port");
    }
    Ok(admin)
}

/// Opens each address once for every worker; gives the addresses and each worker's listeners.
fn open_listeners(
    config: &Config,
    workers: usize,
) -> Result<(Vec<SocketAddr>, Vec<Vec<std::net::TcpListener>>), StartError> {
    let mut listeners: Vec<Vec<std::net::TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    let mut listening = Vec::new();
    for &address in &config.server.listen {
        let opened = worker::listen(address, workers).map_err(|error| StartError::Listen { address, error })?;
        listening.push(opened.address);
        for (own, listener) in listeners.iter_mut().zip(opened.listeners) {
            own.push(listener);
        }
    }
    Ok((listening, listeners))
}

/// Starts a worker's thread. Control learns through `wake` that it could not run.
fn spawn(plan: Plan, mut wake: UnixPipe) -> io::Result<thread::JoinHandle<()>> {
    let (number, signals) = (plan.number, plan.signals.clone());
    let body = move || {
        if let Err(error) = worker::run(plan) {
            // Half a gateway would serve half the clients and look alive; its supervisor can start a whole one.
            tracing::error!(worker = number, %error, "a worker cannot run; stopping");
            signals.failed.store(true, Ordering::Release);
            // Where control has gone, so has the process.
            let _ = wake.write_all(&[0]);
        }
    };
    thread::Builder::new().name(format!("worker-{number}")).spawn(body)
}

fn open_admin(config: &Config) -> Result<Option<std::net::TcpListener>, StartError> {
    let Some(address) = config.admin else { return Ok(None) };
    let opened = worker::listen(address, 1).map_err(|error| StartError::Listen { address, error })?;
    Ok(opened.listeners.into_iter().next())
}

fn names(config: &Config, rules: &Rules) -> Names {
    Names {
        routes: rules.route_table.iter().map(|route| route.label.clone()).collect(),
        limits: config.limits.iter().map(|limit| limit.name.clone()).collect(),
        upstreams: config.upstreams.iter().map(|upstream| upstream.name.clone()).collect(),
    }
}

/// Raises the soft limits on open files and locked memory as far as they go.
fn raise_limits(max_connections: usize) {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let limit = getrlimit(resource);
        let raised = setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum });
        if let Err(error) = raised {
            tracing::debug!(?resource, %error, "cannot raise a limit");
        }
    }
    // Two for each client: its own and its backend's.
    let wanted = 2 * max_connections as u64 + FILES_RESERVED;
    if let Some(files) = getrlimit(Resource::Nofile).current
        && files < wanted
    {
        tracing::warn!(
            files,
            wanted,
            "the limit on open files is too low for server.max_connections; raise it (ulimit -n, LimitNOFILE)"
        );
    }
}

/// Keeps names resolved on a thread of its own. Waits for first answers, though not for long: workers can start without.
fn resolve_in_background(
    resolver: &Arc<Resolver>,
    settings: &resolve::Settings,
    groups: Arc<[Arc<Group>]>,
) -> io::Result<()> {
    let keeper = Keeper::new(resolver.clone(), settings.clone())?;
    let lines = RefCell::new([(); 2].map(|()| Budget::within(DNS_LINES_MAX, DNS_LINES_WINDOW)));
    let tell = move |target: &Target, news: News| {
        let [names, servers] = &mut *lines.borrow_mut();
        tell(target, news, names);
        for group in groups.iter().filter(|group| group.targets().any(|own| std::ptr::eq(&**own, target))) {
            let change = group.refresh(now());
            let (upstream, Change { added, removed }) = (group.settings.name.as_str(), change);
            if !(added.is_empty() && removed.is_empty())
                && let Take::Write { suppressed } = servers.take(now())
            {
                tracing::info!(upstream, ?added, ?removed, suppressed, "servers of the upstream have changed");
            }
        }
    };
    thread::Builder::new().name("resolver".into()).spawn(move || keeper.run(tell))?;
    resolver.wait(FIRST_ANSWERS);
    Ok(())
}

fn group(settings: &Settings, tls: Option<Secure>, resolver: &Resolver) -> Arc<Group> {
    Arc::new(Group::new(settings.clone(), tls, |host, port| resolver.target(host, port)))
}

fn tell(target: &Target, news: News, lines: &mut Budget) {
    let Take::Write { suppressed } = lines.take(now()) else { return };
    let name = target.host();
    match news {
        News::Resolved(addresses) => tracing::info!(name, ?addresses, suppressed, "resolved"),
        News::Lost(error) => tracing::warn!(name, %error, suppressed, "cannot resolve; keeping what was known"),
    }
}

impl Running {
    /// Serves the admin port until SIGTERM or SIGINT, then lets the workers finish; a second signal ends at once.
    pub fn wait(self) -> io::Result<()> {
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
        runtime.block_on(async {
            if let Some(listener) = self.admin_listener {
                listener.set_nonblocking(true)?;
                monoio::spawn(serve(listener, self.admin_state));
            }
            for group in self.groups.iter() {
                if let Some(path) = group.settings.health.path.clone() {
                    monoio::spawn(probe::keep_asking(group.clone(), path));
                }
            }
            monoio::spawn(ignore_signals(UnixStream::from_std(self.inbox.others)?));
            let mut receiver = UnixStream::from_std(self.inbox.stop)?;
            let (received, _) = receiver.read(vec![0; 16]).await;
            received?;
            if self.signals.failed.load(Ordering::Acquire) {
                return Err(io::Error::other("a worker could not run"));
            }
            tracing::info!(drain = ?self.drain, "stopping: no new connections, finishing what runs");
            self.signals.draining.store(true, Ordering::Release);
            monoio::select! {
                _ = finished(&self.signals, self.workers.len(), self.drain) => {}
                _ = receiver.read(vec![0; 16]) => {
                    tracing::warn!("stopped at once by a second signal");
                    self.signals.at_once.store(true, Ordering::Release);
                    finished(&self.signals, self.workers.len(), Duration::ZERO).await;
                }
            }
            io::Result::Ok(())
        })?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Says of signals that ask other servers for a new configuration or new log files that there is nothing to do here.
async fn ignore_signals(mut received: UnixStream) {
    let mut lines = Budget::within(SIGNAL_LINES_MAX, SIGNAL_LINES_WINDOW);
    while let (Ok(1..), _) = received.read(vec![0; 16]).await {
        if let Take::Write { suppressed } = lines.take(now()) {
            tracing::warn!(
                suppressed,
                "SIGHUP, SIGUSR1 and SIGUSR2 change nothing: the configuration is read at start, and the log is stderr"
            );
        }
    }
}

async fn finished(signals: &Signals, workers: usize, drain: Duration) {
    let polls = (drain + DRAIN_GRACE).as_millis() / FINISH_POLL.as_millis();
    for _ in 0..polls {
        if signals.finished.load(Ordering::Acquire) >= workers {
            return;
        }
        monoio::time::sleep(FINISH_POLL).await;
    }
    tracing::warn!("some requests did not finish within the drain time");
}
