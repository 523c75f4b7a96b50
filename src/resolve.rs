//! Names to addresses, away from the request path: a thread of its own asks, workers read the last answer.
//!
//! Shell. A name that stops resolving keeps its last addresses. Who meets a dead address asks for the name again.
#![allow(clippy::disallowed_methods, reason = "shell: asks the system's resolver, and waits between two rounds")]

use parking_lot::{Condvar, Mutex};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often names are resolved again unasked.
const INTERVAL: Duration = Duration::from_secs(5);

/// The pause between two rounds, however often names are asked for.
const PAUSE: Duration = Duration::from_millis(100);

/// Names at most: those of the configuration and those that a store's nodes are announced by. More are not resolved.
pub const NAMES_MAX: usize = 4096;

/// A host and port, and what they resolved to.
#[derive(Debug)]
pub struct Target {
    host: String,
    port: u16,
    is_literal: bool,
    is_wanted: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    is_failing: bool,
}

/// News of a name.
#[derive(Debug)]
pub enum News {
    /// It resolves to these addresses now.
    Resolved(Vec<SocketAddr>),
    /// It resolves no more; what was known of it is kept.
    Lost(io::Error),
}

impl Target {
    /// A target; an IP address is resolved at once and for ever, a name not before [`Target::refresh`].
    pub fn new(host: &str, port: u16) -> Target {
        let literal = host.parse::<IpAddr>().ok();
        let addresses = literal.map(|ip| SocketAddr::new(ip, port)).into_iter().collect();
        Target {
            host: host.into(),
            port,
            is_literal: literal.is_some(),
            is_wanted: AtomicBool::new(false),
            known: Mutex::new(Known { addresses, is_failing: false }),
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

    /// All addresses, in order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.known.lock().addresses.clone()
    }

    /// Whether it has never been asked for.
    pub fn is_pending(&self) -> bool {
        let known = self.known.lock();
        known.addresses.is_empty() && !known.is_failing
    }

    /// Asks the resolver, blocking. Gives the news where there is any.
    pub fn refresh(&self) -> Option<News> {
        if self.is_literal {
            return None;
        }
        let found = (self.host.as_str(), self.port).to_socket_addrs().map(Vec::from_iter).and_then(|found| {
            let none = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            if found.is_empty() { Err(none) } else { Ok(found) }
        });
        let mut known = self.known.lock();
        let was_failing = known.is_failing;
        known.is_failing = found.is_err();
        match found {
            Ok(mut found) => {
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

/// Resolves all names of the process.
#[derive(Debug, Default)]
pub struct Resolver {
    targets: Mutex<Vec<Arc<Target>>>,
    is_asked: Mutex<bool>,
    asked: Condvar,
}

impl Resolver {
    /// The target of this host and port; a name that is new here is resolved soon.
    pub fn target(&self, host: &str, port: u16) -> Arc<Target> {
        let mut targets = self.targets.lock();
        if let Some(known) = targets.iter().find(|target| target.host == host && target.port == port) {
            return known.clone();
        }
        let target = Arc::new(Target::new(host, port));
        if !target.is_literal && targets.len() < NAMES_MAX {
            targets.push(target.clone());
            drop(targets);
            self.ask(&target);
        }
        target
    }

    /// Asks for a name to be resolved again at once: an address of it is dead, or has changed its role.
    pub fn ask(&self, target: &Target) {
        if !target.is_literal {
            target.is_wanted.store(true, Ordering::Release);
            *self.is_asked.lock() = true;
            self.asked.notify_one();
        }
    }

    /// Resolves all names once, blocking.
    pub fn refresh(&self, tell: impl Fn(&Target, News)) {
        let targets = self.targets.lock().clone();
        for target in targets {
            target.is_wanted.store(false, Ordering::Release);
            if let Some(news) = target.refresh() {
                tell(&target, news);
            }
        }
    }

    /// Resolves what is asked for at once, and all names again and again; never ends.
    pub fn keep_resolved(&self, tell: impl Fn(&Target, News)) -> ! {
        let mut next_round = Instant::now() + INTERVAL;
        loop {
            let mut is_asked = self.is_asked.lock();
            if !*is_asked {
                self.asked.wait_until(&mut is_asked, next_round);
            }
            *is_asked = false;
            drop(is_asked);
            if Instant::now() >= next_round {
                // Names that servers announce come and go.
                self.targets.lock().retain(|target| Arc::strong_count(target) > 1);
                self.refresh(&tell);
                next_round = Instant::now() + INTERVAL;
            } else {
                self.refresh_wanted(&tell);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn refresh_wanted(&self, tell: impl Fn(&Target, News)) {
        let targets = self.targets.lock().clone();
        for target in targets.iter().filter(|target| target.is_wanted.swap(false, Ordering::AcqRel)) {
            if let Some(news) = target.refresh() {
                tell(target, news);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_no_resolver_and_a_name_does() {
        let resolver = Resolver::default();
        let address = resolver.target("127.0.0.1", 80);
        assert_eq!(address.address(7), "127.0.0.1:80".parse().ok());
        assert!(resolver.targets.lock().is_empty() && !*resolver.is_asked.lock());

        let name = resolver.target("localhost", 80);
        assert!(Arc::ptr_eq(&name, &resolver.target("localhost", 80)), "one name is one target");
        assert_eq!((name.address(0), *resolver.is_asked.lock()), (None, true));
        resolver.refresh(|_, news| assert!(matches!(news, News::Resolved(_))));
        assert!(name.address(0).is_some_and(|address| address.ip().is_loopback()));
    }

    #[test]
    fn a_name_that_does_not_resolve_is_told_of_once() {
        let name = Target::new("no-such-host.invalid", 80);
        assert!(matches!(name.refresh(), Some(News::Lost(_))));
        assert!(name.refresh().is_none());
        assert_eq!(name.address(0), None);
    }
}
