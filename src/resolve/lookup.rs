//! Single questions: what `/etc/hosts` says, else what the nameservers say.
//!
//! `/etc/resolv.conf` is honoured (nameservers, search list, ndots, edns0), and both files are read again when they
//! change. Where a nameserver fails, the next is asked: only that there is no such name is believed of any.
//! Nothing is kept of an answer here. Shell.
#![allow(clippy::disallowed_methods, reason = "shell: reads the system's files, speaks to nameservers")]

use super::Settings;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{Hosts, system_conf};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// Addresses of one name; further ones are left out.
pub const ADDRESSES_MAX: usize = 256;

/// Nameservers that are asked for one name: so many as the system's own resolver would.
pub const SERVERS_MAX: usize = 3;

/// How long a nameserver may take for one name, in timeouts of a single question: a name has a question for each kind of
/// address and for each member of a search list. More than one, so that a nameserver that is mute about IPv6 is heard about
/// IPv4; few, so that a dead one does not take its timeout for each.
const TIMEOUTS_MAX: u32 = 2;

/// Questions under way on one connection to a nameserver.
const QUESTIONS_MAX: usize = 1024;

/// How long what is in a file holds: the file is looked at itself.
const FILE_TTL: Duration = Duration::from_secs(86_400);

/// Where a system without a nameserver has one.
const LOCAL_SERVER: &str = "nameserver 127.0.0.1";

/// What a name resolves to.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Sorted, each once, at least one, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
    /// How long this holds.
    pub ttl: Duration,
    /// Nobody would say whether there are addresses of this kind.
    pub unheard: Option<Kind>,
}

/// A kind of address, which is asked for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A
    Four,
    /// AAAA
    Six,
}

impl Kind {
    /// Whether an address is of this kind.
    pub fn is_of(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Kind::Four)
    }
}

/// Asks for names.
pub struct Lookups {
    settings: Settings,
    files: [PathBuf; 2],
    stamps: [Option<Stamp>; 2],
    sources: Arc<Sources>,
}

/// When a file was last written, and its size.
type Stamp = (SystemTime, u64);

/// Whom to ask.
struct Sources {
    hosts: Hosts,
    /// One for each nameserver, so that each is asked only where the one before has failed.
    servers: Vec<TokioResolver>,
    /// The one that answered last.
    first: AtomicUsize,
    /// How long each may take.
    longest: Duration,
}

impl Lookups {
    /// Reads the system's files.
    pub fn new(settings: Settings) -> Lookups {
        Lookups::with_files(settings, "/etc/hosts", "/etc/resolv.conf")
    }

    /// As `new`, with other files.
    pub fn with_files(settings: Settings, hosts: impl Into<PathBuf>, resolv: impl Into<PathBuf>) -> Lookups {
        let files = [hosts.into(), resolv.into()];
        let (stamps, sources) = (stamps(&files), Arc::new(Sources::read(&settings, &files)));
        Lookups { settings, files, stamps, sources }
    }

    /// Reads the system's files again where they have changed; says whether they have.
    pub fn refresh(&mut self) -> bool {
        let stamps = stamps(&self.files);
        let has_changed = stamps != self.stamps;
        if has_changed {
            self.stamps = stamps;
            self.sources = Arc::new(Sources::read(&self.settings, &self.files));
        }
        has_changed
    }

    /// Asks for a name that had these addresses, for two timeouts of each nameserver at most. To be awaited on a runtime of
    /// tokio.
    pub fn find(&self, host: &str, had: &[IpAddr]) -> impl Future<Output = io::Result<Answer>> + Send + 'static {
        let (sources, host, had) = (self.sources.clone(), host.to_owned(), had.to_owned());
        async move { sources.find(&host, &had).await }
    }
}

fn stamps(files: &[PathBuf; 2]) -> [Option<Stamp>; 2] {
    files.each_ref().map(|path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    })
}

impl Sources {
    fn read(settings: &Settings, [hosts_file, resolv_file]: &[PathBuf; 2]) -> Sources {
        let mut hosts = Hosts::default();
        if let Ok(file) = std::fs::read(hosts_file) {
            // What stands before a line that is no text counts.
            let _ = hosts.read_hosts_conf(file.as_slice());
        }
        let (config, options) = system(resolv_file);
        let mut servers = config.name_servers;
        if !settings.servers.is_empty() {
            servers = settings.servers.iter().map(|&address| name_server(address)).collect();
        }
        servers.truncate(SERVERS_MAX);
        let resolver = |server| {
            let config = ResolverConfig::from_parts(config.domain.clone(), config.search.clone(), vec![server]);
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = question(options.clone(), settings.timeout);
            builder.build().inspect_err(|error| tracing::warn!(%error, "a nameserver cannot be used")).ok()
        };
        Sources {
            hosts,
            servers: servers.into_iter().filter_map(resolver).collect(),
            first: AtomicUsize::new(0),
            longest: settings.timeout * TIMEOUTS_MAX,
        }
    }

    /// Where a nameserver says nothing of a kind of address that the name had, the next is asked: nobody has said that they
    /// are gone.
    async fn find(&self, host: &str, had: &[IpAddr]) -> io::Result<Answer> {
        // Underscores are no part of a host's name and yet common in those that Docker gives.
        let name = Name::from_str_relaxed(host).map_err(io::Error::other)?;
        if let Some(answer) = self.find_in_hosts(&name) {
            return Ok(answer);
        }
        let first = self.first.load(Ordering::Relaxed);
        let (mut failure, mut half) = (no_answer(), None);
        for turn in 0..self.servers.len() {
            let at = first.wrapping_add(turn) % self.servers.len();
            let Some(server) = self.servers.get(at) else { break };
            let found = tokio::time::timeout(self.longest, ask(server, &name)).await;
            let found = found.unwrap_or(Err(NetError::Timeout));
            let is_lost = |kind: Kind| had.iter().any(|&address| kind.is_of(address));
            match found {
                Ok((records, Some(kind))) if is_lost(kind) => half = half.or(Some((records, kind))),
                Ok((records, _)) => {
                    self.first.store(at, Ordering::Relaxed);
                    return answer(&records, None);
                }
                Err(error) if is_denial(&error) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Err(plain(error));
                }
                Err(error) => failure = plain(error),
            }
        }
        half.map_or(Err(failure), |(records, kind)| answer(&records, Some(kind)))
    }

    /// As the system's own resolver does it: a name that stands in the file is asked for nowhere else, not even for its
    /// addresses of the other kind.
    fn find_in_hosts(&self, name: &Name) -> Option<Answer> {
        let kinds = [RecordType::A, RecordType::AAAA];
        let found = kinds.map(|kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind)));
        let records: Vec<Record> = found.iter().flatten().flat_map(|found| found.answers().to_vec()).collect();
        answer(&records, None).ok()
    }
}

/// Asks one nameserver for addresses of both kinds; gives what it has, and the kind of which it would not say.
async fn ask(server: &TokioResolver, name: &Name) -> Result<(Vec<Record>, Option<Kind>), NetError> {
    let (four, six) =
        tokio::join!(server.lookup(name.clone(), RecordType::A), server.lookup(name.clone(), RecordType::AAAA));
    match (four, six) {
        (Ok(four), Ok(six)) if four.query().name() == six.query().name() => {
            Ok(([four.answers(), six.answers()].concat(), None))
        }
        // Two members of a search list: they are different hosts.
        (Ok(_), Ok(_)) => Ok((server.lookup_ip(name.clone()).await?.as_lookup().answers().to_vec(), None)),
        (Ok(four), Err(error)) => Ok((four.answers().to_vec(), (!is_denial(&error)).then_some(Kind::Six))),
        (Err(error), Ok(six)) => Ok((six.answers().to_vec(), (!is_denial(&error)).then_some(Kind::Four))),
        (Err(four), Err(six)) => Err(if is_denial(&four) { six } else { four }),
    }
}

/// Whether it says that there are no such addresses.
fn is_denial(error: &NetError) -> bool {
    matches!(error, NetError::Dns(DnsError::NoRecordsFound(_)))
}

/// What the system's file says; where it says nothing that can be used, what the system itself would do then.
fn system(path: &Path) -> (ResolverConfig, ResolverOpts) {
    let mut text = std::fs::read(path).unwrap_or_default();
    let parsed = system_conf::parse_resolv_conf(&text).or_else(|_| {
        text.extend_from_slice(format!("\n{LOCAL_SERVER}\n").as_bytes());
        system_conf::parse_resolv_conf(&text)
    });
    let (mut config, options) = parsed.unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "cannot be used; asking a nameserver on this host");
        let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
        (ResolverConfig::from_parts(None, Vec::new(), vec![local]), ResolverOpts::default())
    });
    if !config.search.is_empty() {
        // The host's own domain stands in for a search list; it does not come before one.
        config.domain = None;
    }
    (config, options)
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// How a question is put: to one server, for addresses of both kinds, keeping nothing.
fn question(mut options: ResolverOpts, timeout: Duration) -> ResolverOpts {
    options.timeout = timeout;
    // Lost datagrams are sent again within the timeout. What else fails is asked of the next server, or in a second.
    options.attempts = 0;
    options.num_concurrent_reqs = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.max_active_requests = QUESTIONS_MAX;
    options
}

fn answer(records: &[Record], unheard: Option<Kind>) -> io::Result<Answer> {
    let mut addresses: Vec<IpAddr> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
    addresses.sort();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    // Aliases on the way count too.
    let ttl = records.iter().map(|record| Duration::from_secs(record.ttl.into())).min().unwrap_or(FILE_TTL);
    if addresses.is_empty() { Err(no_address()) } else { Ok(Answer { addresses, ttl, unheard }) }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no nameserver answers")
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the name has no address")
}

/// A failure in few words.
fn plain(error: NetError) -> io::Error {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(denial)) if denial.response_code == ResponseCode::NXDomain => {
            io::Error::new(io::ErrorKind::NotFound, "there is no such name")
        }
        NetError::Dns(DnsError::NoRecordsFound(_)) => no_address(),
        NetError::Dns(DnsError::ResponseCode(code)) => io::Error::other(format!("the nameserver says: {code}")),
        NetError::Timeout => no_answer(),
        error => io::Error::other(error),
    }
}
