//! The servers of an upstream as all workers see them: which addresses there are now, and how well each is.
//!
//! Pure: time is an argument. What workers write of a server is written when something changes, not for each request.

use super::balance::hash;
use super::health::{Probes, ejection, is_forgiven, share};
use super::queue::Queue;
use super::{Address, Health, Place, Settings};
use crate::metrics::{GroupState, ServerState};
use crate::resolve::Target;
use crate::time::Micros;
use crate::tls::Secure;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Addresses of one upstream; more are not used.
pub const MEMBERS_MAX: usize = 4096;

/// How long what is known of an address is kept after no name holds it any more, of as many as there may be members. Some
/// nameservers give some of many addresses, others each time: those are no new servers each time.
pub const KEPT: Duration = Duration::from_secs(600);

/// An address that was gone for less is the same server still, where others stay. Nameservers that give some of many addresses
/// leave each out for a few answers only; container networks give the addresses of those that ended to new ones.
const SAME_FOR: Duration = Duration::from_secs(10);

/// Members that come so soon after the first were there at the start: names are answered one after the other.
const START: Duration = Duration::from_secs(10);

/// How long a member that has not answered yet is left alone at first: a process that has just got its address often begins to
/// listen a moment later.
const UNPROVEN_EJECT: Duration = Duration::from_secs(1);

/// One address of a server.
#[derive(Debug)]
pub struct Member {
    /// Tells it from all others that its upstream ever had; not 0.
    pub id: u64,
    /// Where it is.
    pub place: Place,
    /// Its name in logs and metrics.
    pub name: String,
    /// Position of its server in the settings.
    pub server: usize,
    /// Its weight as configured.
    pub weight: u32,
    /// Whether it is asked only while the others are sick.
    pub backup: bool,
    /// The hash of its address.
    pub key: u64,
    is_down: AtomicBool,
    probes: Mutex<Probes>,
    /// 0 = requests find it well; else when one may try it again.
    ejected_until: AtomicU64,
    ejections: AtomicU32,
    /// Whether it has come, or come back, beside others and has not answered since.
    is_unproven: AtomicBool,
    /// Whether it was ejected because it took no connections, or broke them off.
    is_absent: AtomicBool,
    /// When it came, or came back; 0 = it was there at the start.
    back_since: AtomicU64,
    connections: AtomicU32,
    requests: AtomicU64,
}

/// How well a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It gets its share.
    Well,
    /// It has been left alone for long enough; one request may try it.
    OnTrial,
    /// It is left alone.
    Sick,
}

/// What a probe has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Probes find it sick.
    Down,
    /// Probes find it well again.
    Up,
    /// Requests had found it gone, and it is there.
    Back,
    /// It is new, and has answered.
    Arrived,
}

impl News {
    /// What logs say of it.
    pub fn words(self) -> &'static str {
        match self {
            News::Down => "server is down",
            News::Up => "server is up",
            News::Back => "server is back",
            News::Arrived => "server is new and answers",
        }
    }
}

impl Member {
    fn new(id: u64, server: usize, settings: &super::Server, place: Place, back_since: Micros) -> Member {
        let name = match (&settings.address, &place) {
            (Address::Tcp { host, .. }, Place::Tcp(address)) if host.parse() != Ok(address.ip()) => {
                format!("{} ({address})", settings.address)
            }
            _ => place.to_string(),
        };
        Member {
            id,
            key: hash(place.to_string().as_bytes()),
            place,
            name,
            server,
            weight: settings.weight,
            backup: settings.backup,
            is_down: AtomicBool::new(false),
            probes: Mutex::default(),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            is_unproven: AtomicBool::new(false),
            is_absent: AtomicBool::new(false),
            back_since: AtomicU64::new(back_since.0),
            connections: AtomicU32::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// Puts it on trial until it has answered.
    fn doubt(&self, now: Micros) {
        self.is_unproven.store(true, Ordering::Relaxed);
        self.ejected_until.store(now.0.max(1), Ordering::Relaxed);
    }

    /// How well it is.
    pub fn state(&self, now: Micros) -> State {
        match self.ejected_until.load(Ordering::Relaxed) {
            _ if self.is_down.load(Ordering::Relaxed) => State::Sick,
            0 => State::Well,
            until if until <= now.0 => State::OnTrial,
            _ => State::Sick,
        }
    }

    /// Whether it gets its share, which no passing of time changes.
    fn is_well(&self) -> bool {
        !self.is_down.load(Ordering::Relaxed) && !self.is_ejected()
    }

    /// How long it has been on trial.
    pub fn waits_for_trial(&self, now: Micros) -> Duration {
        now.since(Micros(self.ejected_until.load(Ordering::Relaxed)))
    }

    /// When it came, or came back; zero where it was there at the start.
    pub fn back_since(&self) -> Micros {
        Micros(self.back_since.load(Ordering::Relaxed))
    }

    /// Its weight now, in thousandths of what is configured.
    pub fn weight(&self, now: Micros, slow_start: Duration) -> u32 {
        let back_since = self.back_since();
        let share = if back_since == Micros(0) { 1000 } else { share(now.since(back_since), slow_start) };
        self.weight * share
    }

    /// Makes the caller's request the one that tries it; the next may in `hold`, where nothing is heard of this one.
    pub fn begin_trial(&self, now: Micros, hold: Duration) -> bool {
        let until = self.ejected_until.load(Ordering::Relaxed);
        let hold = if self.is_unproven.load(Ordering::Relaxed) { hold.min(UNPROVEN_EJECT) } else { hold };
        let next = now.after(hold).0;
        until != 0
            && until <= now.0
            && self.ejected_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Leaves it alone for a time, `first` and doubled each time; one that is unproven for less, and no longer than `first`.
    /// `None` where it was left alone already, and this was
    /// no trial.
    pub fn eject(&self, now: Micros, first: Duration, is_absent: bool, was_trial: bool) -> Option<Duration> {
        let until = self.ejected_until.load(Ordering::Relaxed);
        if until != 0 && !was_trial {
            return None;
        }
        let back_since = self.back_since();
        let is_new = until == 0 && (back_since == Micros(0) || is_forgiven(first, now.since(back_since)));
        let times = if is_new { 0 } else { self.ejections.load(Ordering::Relaxed) };
        let time = match self.is_unproven.load(Ordering::Relaxed) {
            true => ejection(first.min(UNPROVEN_EJECT), times).min(first),
            false => ejection(first, times),
        };
        let out = now.after(time).0.max(1);
        self.ejected_until.compare_exchange(until, out, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        self.ejections.store(times.saturating_add(1), Ordering::Relaxed);
        self.is_absent.store(is_absent, Ordering::Relaxed);
        Some(time)
    }

    /// A request that tried it was answered well. Gives what that changes.
    pub fn recover(&self, now: Micros) -> Option<News> {
        if self.ejected_until.swap(0, Ordering::Relaxed) == 0 {
            return None;
        }
        self.back_since.store(now.0.max(1), Ordering::Relaxed);
        Some(if self.is_unproven.swap(false, Ordering::Relaxed) { News::Arrived } else { News::Back })
    }

    /// A probe was answered. Gives what has changed: one that is up again gets its requests at once, and so does one that
    /// requests found to take no connections, with the first good answer.
    pub fn probed(&self, is_good: bool, health: &Health, now: Micros) -> Option<News> {
        match self.probes.lock().record(is_good, health) {
            Some(true) => {
                self.is_down.store(true, Ordering::Relaxed);
                Some(News::Down)
            }
            Some(false) => {
                self.back_since.store(now.0.max(1), Ordering::Relaxed);
                self.ejected_until.store(0, Ordering::Relaxed);
                self.is_unproven.store(false, Ordering::Relaxed);
                self.is_down.store(false, Ordering::Relaxed);
                Some(News::Up)
            }
            None if is_good && !self.is_down.load(Ordering::Relaxed) && self.is_ejected_as_absent() => {
                self.recover(now)
            }
            None => None,
        }
    }

    /// Whether requests found it sick, and none has found it well since.
    pub fn is_ejected(&self) -> bool {
        self.ejected_until.load(Ordering::Relaxed) != 0
    }

    /// Whether requests were the first to find that it takes no connections, or it has answered none yet: then an answered
    /// probe is news of it.
    fn is_ejected_as_absent(&self) -> bool {
        let is_absent = self.is_absent.load(Ordering::Relaxed) || self.is_unproven.load(Ordering::Relaxed);
        self.is_ejected() && is_absent
    }

    /// Whether nothing speaks against it: it is well, or so new that nobody has asked it.
    fn is_up(&self, now: Micros) -> bool {
        let is_untried = self.is_unproven.load(Ordering::Relaxed) && self.ejections.load(Ordering::Relaxed) == 0;
        self.state(now) == State::Well || is_untried && !self.is_down.load(Ordering::Relaxed)
    }

    /// Its address is one of its name's again. It may be another server by now, so one request may try it at once.
    fn come_back(&self, now: Micros) {
        let sooner = |until| (until > now.0).then_some(now.0.max(1));
        let _ = self.ejected_until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sooner);
    }

    /// Connections to it at present.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Counts a connection, where there may be one more.
    fn connect(&self, max: Option<u32>) -> bool {
        let Some(max) = max else {
            self.connections.fetch_add(1, Ordering::AcqRel);
            return true;
        };
        let more = |open| (open < max).then_some(open + 1);
        self.connections.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Adds requests that one worker has sent.
    pub fn add_requests(&self, requests: u64) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// The requests sent to it so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// The right to one connection; given back when dropped, and then to whoever waits for a server like this one.
pub struct Permit {
    group: Arc<Group>,
    member: Arc<Member>,
}

impl Permit {
    /// A permit for one more connection to this member, where there may be one.
    pub fn take(group: &Arc<Group>, member: &Arc<Member>) -> Option<Permit> {
        let is_free = member.connect(group.settings.connections.max);
        is_free.then(|| Permit { group: group.clone(), member: member.clone() })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.member.connections.fetch_sub(1, Ordering::SeqCst);
        self.group.call_next();
    }
}

/// Where a configured server is.
#[derive(Debug)]
enum Source {
    Name(Arc<Target>),
    Place(Place),
}

/// An upstream as the process sees it.
pub struct Group {
    /// As configured.
    pub settings: Settings,
    /// TLS to the servers, where it is spoken.
    pub tls: Option<Secure>,
    /// Requests that wait for a connection.
    pub queue: Queue,
    sources: Vec<Source>,
    roster: Mutex<Roster>,
    version: AtomicU64,
    ids: AtomicU64,
    in_panic: AtomicBool,
}

/// Who belongs to an upstream.
#[derive(Default)]
struct Roster {
    members: Arc<[Arc<Member>]>,
    /// Those that did, and since when they do not; the last to go at the end.
    gone: VecDeque<(Micros, Arc<Member>)>,
    /// When the first came.
    since: Option<Micros>,
}

/// What a look at the addresses has changed.
#[derive(Debug, Default)]
pub struct Change {
    /// The names of members that are new.
    pub added: Vec<String>,
    /// The names of members that are gone.
    pub removed: Vec<String>,
}

type Known = HashMap<(usize, Place), Arc<Member>>;

/// What tells members of an upstream apart.
fn spot(member: &Arc<Member>) -> (usize, Place) {
    (member.server, member.place.clone())
}

/// Whether there may be more than so many more connections to those whose turn it is: those that are well, else the
/// backups that are, and where none is well, as if all were.
fn has_room_beyond(called: usize, members: &[Arc<Member>], max: u32) -> bool {
    let in_panic = !members.iter().any(|member| member.is_well());
    let is_fit = |member: &&Arc<Member>| in_panic || member.is_well();
    let backup = !members.iter().any(|member| !member.backup && is_fit(&member));
    let mut room = 0;
    members.iter().filter(|member| member.backup == backup && is_fit(member)).any(|member| {
        room += max.saturating_sub(member.connections()) as usize;
        room > called
    })
}

impl Group {
    /// The group of these settings; `target` gives what keeps a name's addresses.
    pub fn new(settings: Settings, tls: Option<Secure>, target: impl Fn(&str, u16) -> Arc<Target>) -> Group {
        let source = |server: &super::Server| match &server.address {
            Address::Tcp { host, port } => Source::Name(target(host, *port)),
            Address::Unix(path) => Source::Place(Place::Unix(path.clone())),
        };
        let group = Group {
            sources: settings.servers.iter().map(source).collect(),
            settings,
            tls,
            queue: Queue::default(),
            roster: Mutex::default(),
            version: AtomicU64::new(0),
            ids: AtomicU64::new(1),
            in_panic: AtomicBool::new(false),
        };
        group.refresh(Micros(0));
        group
    }

    /// Takes over the addresses that the names have now. Members whose address stays keep all that is known of them, and
    /// so do those whose address comes back within [`KEPT`].
    pub fn refresh(&self, now: Micros) -> Change {
        let mut roster = self.roster.lock();
        roster.gone.retain(|(since, _)| now.since(*since) < KEPT);
        // Where all are new, none is behind the others.
        let is_start = roster.since.is_none_or(|since| now.since(since) < START);
        let back_since = if is_start { Micros(0) } else { now };
        let mut change = Change::default();
        let mut present: Known = roster.members.iter().map(|member| (spot(member), member.clone())).collect();
        let places: Vec<(usize, Place)> = self.places().take(MEMBERS_MAX).collect();
        // What comes beside others of its name that are well is tried first; else there is nobody better.
        let is_well = |spot: &&(usize, Place)| present.get(*spot).is_some_and(|member| member.is_well());
        let stay: HashSet<usize> = places.iter().filter(is_well).map(|spot| spot.0).collect();
        let is_tried = |server| self.settings.health.eject.is_some() && stay.contains(&server);
        let mut gone: HashMap<(usize, Place), (Micros, Arc<Member>)> =
            roster.gone.iter().map(|(since, member)| (spot(member), (*since, member.clone()))).collect();
        let mut next: Vec<Arc<Member>> = Vec::new();
        for spot in places {
            if let Some(member) = present.remove(&spot) {
                next.push(member);
                continue;
            }
            let server = spot.0;
            let known = gone.remove(&spot);
            let is_doubtful = is_tried(server) && known.as_ref().is_none_or(|(since, _)| now.since(*since) >= SAME_FOR);
            let known = known.map(|(_, member)| member).inspect(|member| member.come_back(now));
            let member = known.unwrap_or_else(|| {
                let id = self.ids.fetch_add(1, Ordering::Relaxed);
                Arc::new(Member::new(id, server, &self.settings.servers[server], spot.1, back_since))
            });
            if is_doubtful {
                member.doubt(now);
            }
            change.added.push(member.name.clone());
            next.push(member);
        }
        if change.added.is_empty() && present.is_empty() {
            return change;
        }
        roster.gone.retain(|(_, member)| gone.contains_key(&spot(member)));
        for member in roster.members.clone().iter().filter(|member| present.contains_key(&spot(member))) {
            change.removed.push(member.name.clone());
            roster.gone.push_back((now, member.clone()));
        }
        let excess = roster.gone.len().saturating_sub(MEMBERS_MAX);
        roster.gone.drain(..excess);
        roster.members = next.into();
        roster.since.get_or_insert(now);
        self.version.fetch_add(1, Ordering::Release);
        change
    }

    fn places(&self) -> impl Iterator<Item = (usize, Place)> {
        self.sources.iter().enumerate().flat_map(|(server, source)| {
            let places = match source {
                Source::Name(target) => target.addresses().into_iter().map(Place::Tcp).collect(),
                Source::Place(place) => vec![place.clone()],
            };
            places.into_iter().map(move |place| (server, place))
        })
    }

    /// Changes whenever the members do.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The members now.
    pub fn members(&self) -> Arc<[Arc<Member>]> {
        self.roster.lock().members.clone()
    }

    /// What keeps the addresses of a member's name; `None` where it has none.
    pub fn target(&self, member: &Member) -> Option<&Arc<Target>> {
        match self.sources.get(member.server)? {
            Source::Name(target) => Some(target),
            Source::Place(_) => None,
        }
    }

    /// What keeps the addresses of all names.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.sources.iter().filter_map(|source| match source {
            Source::Name(target) => Some(target),
            Source::Place(_) => None,
        })
    }

    /// Notes whether all members are sick, so that all are asked; gives whether that has changed.
    pub fn set_panic(&self, in_panic: bool) -> bool {
        self.in_panic.load(Ordering::Relaxed) != in_panic && self.in_panic.swap(in_panic, Ordering::Relaxed) != in_panic
    }

    /// Whether all members are sick.
    pub fn in_panic(&self) -> bool {
        self.in_panic.load(Ordering::Relaxed)
    }

    /// How it is, for whoever watches.
    pub fn report(&self, now: Micros) -> GroupState {
        let server = |member: &Arc<Member>| ServerState {
            server: member.name.clone(),
            is_up: member.is_up(now),
            connections: u64::from(member.connections()),
            requests: member.requests(),
        };
        GroupState {
            upstream: self.settings.name.clone(),
            in_panic: self.in_panic(),
            pending: self.queue.waiting() as u64,
            servers: self.members().iter().map(server).collect(),
        }
    }

    /// Calls who is first in line, where there is room that nobody was called for yet.
    pub fn call_next(&self) {
        if let Some(max) = self.settings.connections.max.filter(|_| self.queue.waiting() > 0) {
            let members = self.members();
            self.queue.call_first(|called| has_room_beyond(called, &members, max));
        }
    }

    /// Calls whoever may try a server that waits for that, where nobody else is called.
    pub fn call_for_trial(&self, now: Micros) {
        let Some(max) = self.settings.connections.max.filter(|_| self.queue.waiting() > 0) else { return };
        let members = self.members();
        let needs_backups = !members.iter().any(|member| !member.backup && member.is_well());
        let is_due = |member: &Arc<Member>| {
            (needs_backups || !member.backup) && member.connections() < max && member.state(now) == State::OnTrial
        };
        if members.iter().any(is_due) {
            self.queue.call_for_trial();
        }
    }

    /// The host that a member's server has in the configuration.
    pub fn host(&self, member: &Member) -> &str {
        self.settings.servers.get(member.server).map(|server| server.address.host()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
