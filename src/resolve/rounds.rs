//! The thread that keeps names resolved: asks for those that are due, side by side, and tells what has changed.
//!
//! Shell: the only place with a runtime of tokio, of this one thread. Workers never wait for it.
#![allow(clippy::disallowed_methods, reason = "shell: owns a runtime, waits, reads the clock")]

use super::lookup::{Answer, Lookups};
use super::{News, Resolver, Settings, Target};
use crate::time::now;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Names that are asked for at the same time: those that no nameserver answers for should not hold up the others.
const LOOKUPS_MAX: usize = 128;

/// How often the system's files are looked at where no name is due, and names are forgotten that nobody holds.
const TIDY_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the names of a resolver resolved.
pub struct Keeper {
    resolver: Arc<Resolver>,
    settings: Settings,
    lookups: Lookups,
    runtime: Runtime,
}

type Lookup = (Arc<Target>, io::Result<Answer>);

impl Keeper {
    /// Reads the system's files; asks nothing yet.
    pub fn new(resolver: Arc<Resolver>, settings: Settings) -> io::Result<Keeper> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lookups = Lookups::new(settings.clone());
        Ok(Keeper { resolver, settings, lookups, runtime })
    }

    /// Resolves what is wanted at once, and all names again and again; never ends.
    pub fn run(self, tell: impl Fn(&Target, News)) -> ! {
        let Keeper { resolver, settings, lookups, runtime } = self;
        runtime.block_on(rounds(&resolver, &settings, lookups, tell))
    }
}

impl Resolver {
    /// Waits until each name has had an answer, good or bad; gives up after `longest`.
    pub fn wait(&self, longest: Duration) {
        let end = Instant::now() + longest;
        let mut answering = self.answering.lock();
        while self.has_pending() && !self.answered.wait_until(&mut answering, end).timed_out() {}
    }
}

async fn rounds(resolver: &Resolver, settings: &Settings, mut lookups: Lookups, tell: impl Fn(&Target, News)) -> ! {
    let mut running: JoinSet<Lookup> = JoinSet::new();
    let mut tidy_at = now().after(TIDY_INTERVAL);
    loop {
        let present = now();
        let is_tidying = tidy_at <= present;
        if is_tidying {
            resolver.forget_unheld();
            tidy_at = present.after(TIDY_INTERVAL);
        }
        let room = LOOKUPS_MAX.saturating_sub(running.len());
        let (due, next) = resolver.due(present, room);
        if (is_tidying || !due.is_empty()) && lookups.refresh() {
            tracing::info!("the system's files on names have changed");
            resolver.ask_all();
        }
        for target in due {
            let had: Vec<IpAddr> = target.addresses().iter().map(SocketAddr::ip).collect();
            let found = lookups.find(target.host(), &had);
            running.spawn(async move { (target, found.await) });
        }
        // Without room, what is due waits for an answer.
        let next = next.filter(|_| running.len() < LOOKUPS_MAX).map_or(tidy_at, |next| next.min(tidy_at));
        tokio::select! {
            Some(Ok(lookup)) = running.join_next() => settle(resolver, settings, lookup, &tell),
            () = resolver.bell.notified() => {}
            () = tokio::time::sleep(next.since(now())) => {}
        }
    }
}

/// Takes an answer in, and wakes who waits for it.
fn settle(resolver: &Resolver, settings: &Settings, (target, found): Lookup, tell: impl Fn(&Target, News)) {
    let ttl = found.as_ref().ok().map(|answer| answer.ttl);
    let news = target.learn(found.map(|answer| {
        let had = target.addresses().into_iter().map(|address| address.ip());
        let kept = had.filter(|&address| answer.unheard.is_some_and(|kind| kind.is_of(address)));
        kept.chain(answer.addresses).collect()
    }));
    match ttl {
        Some(ttl) => target.plan.lock().found(now(), news.is_some(), ttl, settings.interval),
        None => target.plan.lock().failed(now(), settings.interval),
    }
    if let Some(news) = news {
        tell(&target, news);
    }
    let _answering = resolver.answering.lock();
    resolver.answered.notify_all();
}
