//! Names to addresses, away from the request path: a thread of its own asks, workers read the last answer.
//!
//! A name that stops resolving keeps its last addresses. Who meets a dead address asks for the name again. Pure but for
//! its leaves: [`lookup`] asks the nameservers, [`rounds`] is the thread.

pub mod lookup;
pub mod rounds;
mod schedule;

use crate::time::Micros;
use parking_lot::{Condvar, Mutex};
use schedule::Plan;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// Names at most: those of the configuration and those that a store's nodes are announced by. More are not resolved.
pub const NAMES_MAX: usize = 4096;

/// Whom to ask for names, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The nameservers; where there is none, those of the system.
    pub servers: Vec<SocketAddr>,
    /// How often a name is asked for again unasked.
    pub interval: Interval,
    /// How long a nameserver may take for an answer.
    pub timeout: Duration,
}

/// How often a name is asked for again unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// This often; sooner where a record says that it holds for less.
    Every(Duration),
    /// Whenever its records say that they hold no longer.
    Ttl,
}

/// A host and port, and what they resolved to.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    is_literal: bool,
    is_wanted: AtomicBool,
    /// Wakes who resolves names.
    bell: Arc<Notify>,
    known: Mutex<Known>,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Known {
    /// Sorted, each once.
    addresses: Vec<SocketAddr>,
    is_failing: bool,
}

/// News of a name.
#[derive(Debug)]
pub enum News {
    /// It resolves to these addresses now, and did not before; or it resolves again, perhaps to the same.
    Resolved(Vec<SocketAddr>),
    /// It resolves no more; what was known of it is kept.
    Lost(io::Error),
}

impl Target {
    /// A target; an IP address is resolved at once and for ever, a name only where a [`Resolver`] knows of it.
    pub fn new(host: &str, port: u16) -> Target {
        Target::with_bell(host, port, Arc::default())
    }

    fn with_bell(host: &str, port: u16, bell: Arc<Notify>) -> Target {
        let literal = host.parse::<IpAddr>().ok();
        let addresses = literal.map(|ip| SocketAddr::new(ip, port)).into_iter().collect();
        Target {
            host: host.into(),
            port,
            is_literal: literal.is_some(),
            is_wanted: AtomicBool::new(false),
            bell,
            known: Mutex::new(Known { addresses, is_failing: false }),
            plan: Mutex::default(),
        }
    }

    /// The name as configured.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// One of the addresses, another at each turn; `None` where the name has never resolved.
    pub fn address(&self, turn: usize) -> Option<SocketAddr> {
        let known = self.known.lock();
        let at = turn.checked_rem(known.addresses.len())?;
        known.addresses.get(at).copied()
    }

    /// All its addresses, sorted, each once; none where the name has never resolved.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.known.lock().addresses.clone()
    }

    /// Whether it has never been asked for.
    pub fn is_pending(&self) -> bool {
        let known = self.known.lock();
        known.addresses.is_empty() && !known.is_failing
    }

    /// Asks for the name to be resolved again at once: an address of it is dead, or has changed its role.
    pub fn ask(&self) {
        if !self.is_literal && !self.is_wanted.swap(true, Ordering::AcqRel) {
            self.bell.notify_one();
        }
    }

    /// Takes an answer, or keeps what was known. Gives the news where there is any.
    pub(crate) fn learn(&self, found: io::Result<Vec<IpAddr>>) -> Option<News> {
        let mut known = self.known.lock();
        let was_failing = known.is_failing;
        known.is_failing = found.is_err();
        match found {
            Ok(found) => {
                let mut found: Vec<_> = found.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect();
                found.sort();
                found.dedup();
                (known.addresses != found || was_failing).then(|| {
                    known.addresses.clone_from(&found);
                    News::Resolved(found)
                })
            }
            Err(error) => (!was_failing).then_some(News::Lost(error)),
        }
    }
}

/// All names of the process.
#[derive(Debug, Default)]
pub struct Resolver {
    targets: Mutex<Vec<Arc<Target>>>,
    /// Rung where a name is new, or asked for.
    bell: Arc<Notify>,
    /// Held while an answer is told of.
    answering: Mutex<()>,
    answered: Condvar,
}

impl Resolver {
    /// The target of this host and port; a name that is new here is resolved soon.
    pub fn target(&self, host: &str, port: u16) -> Arc<Target> {
        let mut targets = self.targets.lock();
        if let Some(known) = targets.iter().find(|target| target.host == host && target.port == port) {
            return known.clone();
        }
        let target = Arc::new(Target::with_bell(host, port, self.bell.clone()));
        if !target.is_literal && targets.len() < NAMES_MAX {
            targets.push(target.clone());
            drop(targets);
            target.ask();
        }
        target
    }

    /// The names to ask for now, `room` at most, and when the next one is due. What is given counts as asked.
    fn due(&self, now: Micros, room: usize) -> (Vec<Arc<Target>>, Option<Micros>) {
        let (mut due, mut next) = (Vec::new(), None);
        for target in self.targets.lock().iter() {
            let mut plan = target.plan.lock();
            if target.is_wanted.load(Ordering::Acquire) {
                plan.hurry();
            }
            let Some(at) = plan.due() else { continue };
            if at <= now && due.len() < room {
                target.is_wanted.store(false, Ordering::Release);
                plan.ask(now);
                due.push(target.clone());
            } else {
                next = Some(next.map_or(at, |next: Micros| next.min(at)));
            }
        }
        (due, next)
    }

    /// Has every name asked for as soon as may be.
    fn ask_all(&self) {
        for target in self.targets.lock().iter() {
            target.is_wanted.store(true, Ordering::Release);
        }
        self.bell.notify_one();
    }

    /// Forgets names that nobody holds: those that servers announce come and go.
    fn forget_unheld(&self) {
        self.targets.lock().retain(|target| Arc::strong_count(target) > 1);
    }

    /// Whether a name has had no answer yet.
    fn has_pending(&self) -> bool {
        self.targets.lock().iter().any(|target| target.is_pending())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_needs_no_resolver_and_a_name_does() {
        let resolver = Resolver::default();
        let address = resolver.target("127.0.0.1", 80);
        assert_eq!((address.address(7), address.addresses().len()), ("127.0.0.1:80".parse().ok(), 1));
        assert!(resolver.due(Micros(0), 9).0.is_empty());

        let name = resolver.target("localhost", 80);
        assert!(Arc::ptr_eq(&name, &resolver.target("localhost", 80)), "one name is one target");
        assert_eq!((name.address(0), name.is_pending(), name.port), (None, true, 80));
        let (due, next) = resolver.due(Micros(0), 9);
        assert!(Arc::ptr_eq(&due[0], &name) && due.len() == 1 && next.is_none());
        assert!(resolver.due(Micros(u64::MAX), 9).0.is_empty(), "it is being asked for");
    }

    #[test]
    fn addresses_are_sorted_and_told_of_when_they_change() {
        let name = Target::new("name", 80);
        let both = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| address.parse::<SocketAddr>().unwrap());
        let news = name.learn(Ok(vec![ip("10.0.0.2"), ip("10.0.0.1"), ip("10.0.0.2")]));
        assert!(matches!(news, Some(News::Resolved(addresses)) if addresses == both));
        assert_eq!(name.addresses(), both);
        assert!(name.learn(Ok(vec![ip("10.0.0.1"), ip("10.0.0.2")])).is_none(), "the same in another order");
        assert!(matches!(name.learn(Ok(vec![ip("10.0.0.3")])), Some(News::Resolved(_))));
        assert_eq!(name.address(5), "10.0.0.3:80".parse().ok());
    }

    #[test]
    fn a_name_that_stops_resolving_keeps_its_addresses_and_is_told_of_once_each_way() {
        let name = Target::new("name", 80);
        let lost = || Err(io::Error::other("no such name"));
        assert!(matches!(name.learn(lost()), Some(News::Lost(_))));
        assert!(name.learn(lost()).is_none() && name.address(0).is_none() && !name.is_pending());
        assert!(matches!(name.learn(Ok(vec![ip("10.0.0.1")])), Some(News::Resolved(_))));
        assert!(matches!(name.learn(lost()), Some(News::Lost(_))));
        assert!(name.learn(lost()).is_none() && name.address(0).is_some());
        assert!(matches!(name.learn(Ok(vec![ip("10.0.0.1")])), Some(News::Resolved(_))), "it is back");
    }

    #[test]
    fn as_many_are_asked_for_as_there_is_room() {
        let resolver = Resolver::default();
        let names = ["a", "b", "c"].map(|host| resolver.target(host, 80));
        let (due, next) = resolver.due(Micros(7), 2);
        assert_eq!((due.len(), next), (2, Some(Micros(0))));
        assert_eq!(resolver.due(Micros(7), 2).0.len(), 1);
        drop((due, names));
        resolver.forget_unheld();
        assert!(resolver.targets.lock().is_empty());
    }
}
