//! A worker's client: which server is asked for a key, and how a cluster's map is kept.
//!
//! Shell. With one server, or the primary that sentinels name, there is one connection; in a cluster one to each primary. Its
//! map of slots is asked for at the start, again where a server says that it has moved or is gone, and now and then.
#![allow(clippy::disallowed_methods, reason = "shell: starts the tasks that keep connections and map")]

use super::cluster::{Map, Redirect, SERVERS_MAX, SLOTS, primaries, slot_of};
use super::connection::{Opener, Server, keep_connected};
use super::dial::{Dialer, OPEN_TIMEOUT};
use super::pipeline::{Answer, Answered, Observer, Pipeline, Purpose, Signal};
use super::{Address, Fault, Place};
use crate::time::{Micros, now};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How old a map may become while nothing is wrong with it.
const MAP_AGE_MAX: Duration = Duration::from_secs(30);

/// The pause between two questions for the map, with jitter.
const MAP_PAUSE: Duration = Duration::from_millis(250);

/// In the map of slots: nobody has it.
const NOBODY: u16 = u16::MAX;

/// Who is told of what becomes of the servers, for metrics and logs.
pub trait Watcher {
    /// A server is about to be connected to.
    fn server(&self, address: Option<&Address>) -> Box<dyn Observer>;
    /// The cluster's map cannot be had any more, for this reason; or `None`, it can again.
    fn cluster(&self, trouble: Option<&str>);
}

/// A worker's client.
pub struct Client {
    deadline: Duration,
    servers: Servers,
}

enum Servers {
    One(Rc<Server>),
    Cluster(Rc<Cluster>),
}

/// Who is asked.
#[derive(Clone)]
pub struct To {
    server: Rc<Server>,
    asking: bool,
}

impl To {
    /// Whether the script goes with the next question, after this answer that it is unknown.
    pub fn brings_script(&self, unknown: &Answered) -> bool {
        self.server.pipeline.brings_script(unknown)
    }
}

impl Client {
    /// A client whose connections are kept by tasks of their own, on this thread. `script` is loaded on each.
    pub fn start(dialer: Dialer, script: &'static str, watcher: Box<dyn Watcher>) -> Client {
        let deadline = dialer.settings.deadline;
        let place = dialer.settings.place.clone();
        let opener = Rc::new(Opener { dialer, script });
        let one = |address: Option<Address>| {
            let pipeline = Pipeline::new(deadline, watcher.server(address.as_ref()));
            let server = Rc::new(Server::new(address, pipeline));
            monoio::spawn(keep_connected(server.clone(), opener.clone()));
            Servers::One(server)
        };
        let servers = match place {
            Place::Server(address) => one(Some(address)),
            Place::Sentinel { .. } => one(None),
            Place::Cluster(seeds) => {
                let cluster = Rc::new(Cluster::new(opener, seeds, watcher));
                monoio::spawn(keep_mapped(cluster.clone()));
                Servers::Cluster(cluster)
            }
        };
        Client { deadline, servers }
    }

    /// Waits for the first attempts at connections to end, well or not, and no longer than one may take.
    pub async fn tried(&self) {
        let attempts = async {
            match &self.servers {
                Servers::One(server) => server.pipeline.tried().await,
                Servers::Cluster(cluster) => {
                    cluster.first_map.happened().await;
                    let servers = cluster.servers.borrow().clone();
                    for server in servers {
                        server.pipeline.tried().await;
                    }
                }
            }
        };
        // Either way the gateway goes on: what is asked without a connection has its answer.
        let _ = monoio::time::timeout(OPEN_TIMEOUT, attempts).await;
    }

    /// How long the servers may take to answer a question, those that follow from it included.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether two keys may belong to two servers.
    pub fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster(_))
    }

    /// Who has this key.
    pub fn server_of(&self, key: &[u8]) -> Result<To, Fault> {
        let server = match &self.servers {
            Servers::One(server) => server.clone(),
            Servers::Cluster(cluster) => cluster.server_of(slot_of(key)).ok_or(Fault::Disconnected)?,
        };
        Ok(To { server, asking: false })
    }

    /// Whom to ask instead, after this answer of `asked`. Waits for a connection that there has not been; gives what is left
    /// of the time that there was.
    pub async fn follow(&self, redirect: &Redirect, asked: &To, left: Duration) -> Result<(To, Duration), Fault> {
        let (Servers::Cluster(cluster), Some(address)) = (&self.servers, &asked.server.address) else {
            return Err(Fault::Disconnected);
        };
        let server = cluster.redirected(redirect, address).ok_or(Fault::Overloaded)?;
        let (pipeline, start) = (&server.pipeline, now());
        // Not having been in time is told by the question that follows, and by the breaker to those after.
        if !pipeline.is_broken() {
            // Boxed: a timer takes up a kilobyte.
            let tried = Box::pin(monoio::time::timeout(left, pipeline.tried())).await;
            if tried.is_err() {
                pipeline.missed(now());
            }
        }
        let left = left.saturating_sub(now().since(start));
        Ok((To { server, asking: redirect.asking }, left))
    }

    /// Asks with one command, which `write` appends to the batch (it is given its purpose and the script's digest). The
    /// command is sent whether or not the answer is waited for; the server has `patience` for it.
    pub fn ask(
        &self,
        to: &To,
        now: Micros,
        patience: Duration,
        write: impl FnOnce(Purpose, &[u8], &mut Vec<u8>),
    ) -> Result<Answer, Fault> {
        let asked = to.server.pipeline.ask(now, patience, to.asking, write);
        if let (Servers::Cluster(cluster), Err(Fault::Disconnected | Fault::Broken)) = (&self.servers, &asked) {
            // Perhaps another has its slots by now.
            cluster.stale.happen();
        }
        asked
    }

    /// As [`Client::ask`] at this moment, for a command that follows another: it is not sent where no time is left.
    pub fn ask_next(
        &self,
        to: &To,
        left: Duration,
        write: impl FnOnce(Purpose, &[u8], &mut Vec<u8>),
    ) -> Result<Answer, Fault> {
        match left.is_zero() {
            true => Err(Fault::Timeout),
            false => self.ask(to, now(), left, write),
        }
    }

    /// Sends one command about this key that nobody waits for; not while its server is not waited for either.
    pub fn post(&self, key: &[u8], now: Micros, write: impl FnOnce(&mut Vec<u8>)) {
        if let Ok(to) = self.server_of(key) {
            to.server.pipeline.post(now, write);
        }
    }

    /// Whether a reply is still owed.
    pub fn is_busy(&self) -> bool {
        let owes = |server: &Rc<Server>| server.pipeline.oldest().is_some();
        match &self.servers {
            Servers::One(server) => owes(server),
            Servers::Cluster(cluster) => cluster.servers.borrow().iter().any(owes),
        }
    }
}

/// The primaries of a cluster.
struct Cluster {
    opener: Rc<Opener>,
    seeds: Vec<Address>,
    watcher: Box<dyn Watcher>,
    servers: RefCell<Vec<Rc<Server>>>,
    /// By slot, a place in `servers`; or [`NOBODY`].
    slots: RefCell<Box<[u16]>>,
    /// Servers that were named since the last map: they may have no slot yet.
    named: RefCell<Vec<Address>>,
    /// The first attempt at a map is over.
    first_map: Signal,
    /// The map is not right any more.
    stale: Signal,
    is_troubled: Cell<bool>,
    turn: Cell<usize>,
}

impl Cluster {
    fn new(opener: Rc<Opener>, seeds: Vec<Address>, watcher: Box<dyn Watcher>) -> Cluster {
        Cluster {
            opener,
            seeds,
            watcher,
            servers: RefCell::default(),
            slots: RefCell::new(vec![NOBODY; SLOTS].into()),
            named: RefCell::default(),
            first_map: Signal::default(),
            stale: Signal::default(),
            is_troubled: Cell::new(false),
            turn: Cell::new(0),
        }
    }

    fn server_of(&self, slot: u16) -> Option<Rc<Server>> {
        let at = self.slots.borrow().get(usize::from(slot)).copied()?;
        let server = self.servers.borrow().get(usize::from(at)).cloned();
        if server.is_none() {
            self.stale.happen();
        }
        server
    }

    /// The server that `asked` has named. What has moved for good is remembered; `None` where there are too many.
    fn redirected(&self, redirect: &Redirect, asked: &Address) -> Option<Rc<Server>> {
        let address = redirect.server(asked);
        let at = self.place_of(&address)?;
        let server = self.servers.borrow().get(at).cloned()?;
        let mut named = self.named.borrow_mut();
        if named.len() < SERVERS_MAX && !named.contains(&address) {
            named.push(address);
        }
        if !redirect.asking {
            if let Some(slot) = self.slots.borrow_mut().get_mut(usize::from(redirect.slot)) {
                *slot = u16::try_from(at).unwrap_or(NOBODY);
            }
            self.stale.happen();
        }
        Some(server)
    }

    /// The place of a server among `servers`, where it is put if it is new.
    fn place_of(&self, address: &Address) -> Option<usize> {
        let mut servers = self.servers.borrow_mut();
        let known = servers.iter().position(|server| server.address.as_ref() == Some(address));
        if known.is_some() || servers.len() >= SERVERS_MAX {
            return known;
        }
        let pipeline = Pipeline::new(self.opener.dialer.settings.deadline, self.watcher.server(Some(address)));
        let server = Rc::new(Server::new(Some(address.clone()), pipeline));
        monoio::spawn(keep_connected(server.clone(), self.opener.clone()));
        servers.push(server);
        Some(servers.len() - 1)
    }

    /// Asks for the map: those that are connected first, then the other servers, then the seeds.
    async fn load(&self) -> io::Result<()> {
        let turn = self.turn.replace(self.turn.get() + 1);
        let mut servers = self.servers.borrow().clone();
        let count = servers.len().max(1);
        servers.rotate_left(turn % count);
        servers.sort_by_key(|server| !server.pipeline.is_up());
        let known = servers.iter().filter_map(|server| server.address.clone());
        let mut last = io::Error::other("the cluster has no server");
        for address in known.chain(self.seeds.clone()) {
            let dialer = &self.opener.dialer;
            let credentials = dialer.settings.credentials.as_ref();
            match dialer.inquire(&address, credentials, &[b"CLUSTER", b"SLOTS"], turn).await {
                Ok(answer) => match primaries(&answer, &address) {
                    Some(map) if !map.is_empty() => {
                        self.meet(&map).await;
                        self.put(&map);
                        return Ok(());
                    }
                    _ => last = io::Error::other(format!("{address} has no map of the cluster")),
                },
                Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(last)
    }

    /// Connects to the servers of a map that are new, so that nobody has to wait for them once it counts.
    async fn meet(&self, map: &Map) {
        let attempts = async {
            for (_, owner) in map {
                let server = self.place_of(owner).and_then(|at| self.servers.borrow().get(at).cloned());
                if let Some(server) = server {
                    server.pipeline.tried().await;
                }
            }
        };
        // Whoever does not answer in that time has its slots all the same.
        let _ = monoio::time::timeout(OPEN_TIMEOUT, attempts).await;
    }

    /// Takes over a map. Servers that have no slot in it, and were not named since the last one, are retired.
    fn put(&self, map: &Map) {
        let named = self.named.take();
        let is_needed = |server: &Rc<Server>| {
            let address = server.address.as_ref();
            map.iter().map(|(_, owner)| owner).chain(&named).any(|needed| Some(needed) == address)
        };
        let (kept, retired): (Vec<_>, Vec<_>) = self.servers.take().into_iter().partition(is_needed);
        self.servers.replace(kept);
        let mut slots = vec![NOBODY; SLOTS];
        for (range, owner) in map {
            let at = self.place_of(owner).and_then(|at| u16::try_from(at).ok());
            if let Some(slots) = slots.get_mut(usize::from(*range.start())..=usize::from(*range.end())) {
                slots.fill(at.unwrap_or(NOBODY));
            }
        }
        self.slots.replace(slots.into());
        retired.iter().for_each(|server| server.pipeline.retire());
    }

    /// Says once that the map cannot be had, and once that it can again.
    fn tell(&self, loaded: &io::Result<()>) {
        if self.is_troubled.replace(loaded.is_err()) != loaded.is_err() {
            self.watcher.cluster(loaded.as_ref().err().map(ToString::to_string).as_deref());
        }
    }
}

/// Keeps the map of a cluster.
async fn keep_mapped(cluster: Rc<Cluster>) {
    loop {
        // What goes wrong from now on may be newer than the map.
        cluster.stale.forget();
        let loaded = cluster.load().await;
        cluster.first_map.happen();
        cluster.tell(&loaded);
        monoio::time::sleep(MAP_PAUSE.mul_f64(0.5 + fastrand::f64())).await;
        if loaded.is_ok() {
            let _ = monoio::time::timeout(MAP_AGE_MAX, cluster.stale.happened()).await;
        }
    }
}
