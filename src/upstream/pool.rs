//! One worker's way to the servers of an upstream: whose turn it is, idle connections kept, new ones made.
//!
//! Shell. A connection is kept only after a message that ended where it said, and is used until it is too old.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: connects to backends")]

use super::balance::{self, Candidate};
use super::dial::{ConnectFault, Dialer};
use super::health::Record;
use super::idle::{Idle, Link, Shelf};
use super::members::{Group, Member, Permit, State};
use super::proxy_protocol::{Line, ProxyProtocol};
use super::queue::Turn;
use super::retry::{Attempts, Budget};
use super::{Balance, Settings};
use crate::conn::{Conn, Deadlines};
use crate::log::{Budget as Lines, Take};
use crate::time::Micros;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a request that tries a sick server may keep others from trying it too, where that is not ejected for less.
const TRIAL_HOLD_MAX: Duration = Duration::from_secs(10);

/// How long a server that may be tried waits for a request that can be repeated, before any request will do.
const TRIAL_PATIENCE: Duration = Duration::from_secs(5);

/// The ring gives up a read and closes a connection in some turns to come: so often, with this pause before, a connection is
/// tried again where idle ones have been given up for it.
const SPARED_TRIES: usize = 5;
const CLOSING: Duration = Duration::from_millis(1);

/// Lines that a worker may log within [`LINES_WINDOW`] of how an upstream's servers are: an outage of many is told, and
/// one that fails every other request does not fill the log.
const LINES_MAX: u32 = 30;
/// The same of whether all are sick.
const PANIC_LINES_MAX: u32 = 4;
const LINES_WINDOW: Duration = Duration::from_secs(10);

/// An upstream as one worker sees it.
pub struct Upstream {
    /// The host of requests that name none.
    pub authority: String,
    group: Arc<Group>,
    dialer: Dialer,
    worker: usize,
    /// Of the group, when `slots` was made.
    version: Cell<u64>,
    slots: RefCell<Vec<Rc<Slot>>>,
    budget: RefCell<Budget>,
    lines: RefCell<Lines>,
    panic_lines: RefCell<Lines>,
}

/// One server as one worker sees it.
pub struct Slot {
    member: Arc<Member>,
    idle: RefCell<Shelf>,
    in_flight: Cell<u32>,
    turn: Cell<i64>,
    record: Record,
    /// When the server was last back, as far as the record knows.
    known_back: Cell<Micros>,
    /// Requests not yet added to the member's.
    requests: Cell<u64>,
    is_gone: Cell<bool>,
}

/// A request under way to a server.
struct Busy(Rc<Slot>);

impl Busy {
    fn new(slot: &Rc<Slot>) -> Busy {
        slot.in_flight.set(slot.in_flight.get() + 1);
        Busy(slot.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// A connection in use.
pub struct Lease {
    /// The connection.
    pub conn: Conn,
    /// Whether it has served a request before: then it may have died unseen.
    pub reused: bool,
    permit: Permit,
    opened: Micros,
    busy: Busy,
}

impl Lease {
    fn new(link: Link, reused: bool, busy: Busy) -> Lease {
        let Link { conn, permit, opened } = link;
        Lease { conn, reused, permit, opened, busy }
    }

    /// A request is about to be sent on it.
    pub fn count_request(&self) {
        let requests = &self.busy.0.requests;
        requests.set(requests.get() + 1);
    }

    /// Tells the server from all others of its upstream.
    pub fn server(&self) -> u64 {
        self.busy.0.member.id
    }

    /// Closes the connection, and leaves the right to another one.
    pub fn close(self) -> Permit {
        self.permit
    }
}

/// The server that is to be asked.
#[derive(Clone)]
pub struct Chosen {
    slot: Rc<Slot>,
    why: Why,
}

/// Why a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It is its turn.
    Turn,
    /// It was left alone for long enough: this request tells whether it is well.
    Trial,
    /// All are sick. A good answer is news, a bad one is none.
    Panic,
}

impl Chosen {
    /// Tells the server from all others of its upstream.
    pub fn id(&self) -> u64 {
        self.slot.member.id
    }

    /// Its name in logs.
    pub fn name(&self) -> &str {
        &self.slot.member.name
    }
}

/// A server that is to be asked.
pub struct Room {
    /// Which.
    pub chosen: Chosen,
    /// The right to a new connection to it, where one was taken already.
    pub permit: Option<Permit>,
}

/// Who is to be asked.
pub enum Choice {
    /// This one.
    Server(Chosen),
    /// One of some that all have as many connections as they may.
    Full,
    /// There is nobody else.
    Nobody,
}

/// Why no server could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// There is no server, or none that was not asked.
    Nobody,
    /// All have as many connections as they may, and too many requests wait or this one has waited for too long.
    Busy,
    /// Whoever asked has gone meanwhile.
    Unwanted,
}

/// What a failure says of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It took no connection.
    Unreachable,
    /// The connection broke before the answer was whole.
    BrokenOff,
    /// It did not answer well, or not in time.
    Answer,
}

impl Fault {
    /// Whether it may have ended or moved: then its name is asked for, and an answered probe is news of it.
    fn is_of_absence(self) -> bool {
        matches!(self, Fault::Unreachable | Fault::BrokenOff)
    }

    fn words(self) -> &'static str {
        match self {
            Fault::Unreachable => "takes no connections",
            Fault::BrokenOff => "breaks off",
            Fault::Answer => "fails requests",
        }
    }
}

impl Upstream {
    /// The upstream of a group for the worker of this number, without connections.
    pub fn new(group: Arc<Group>, worker: usize, now: Micros) -> Upstream {
        let upstream = Upstream {
            authority: group.settings.servers.first().map(|server| server.address.authority()).unwrap_or_default(),
            dialer: Dialer::of(&group),
            group,
            worker,
            version: Cell::new(0),
            slots: RefCell::default(),
            budget: RefCell::new(Budget::new(now)),
            lines: RefCell::new(Lines::within(LINES_MAX, LINES_WINDOW)),
            panic_lines: RefCell::new(Lines::within(PANIC_LINES_MAX, LINES_WINDOW)),
        };
        upstream.refresh();
        // Workers start apart, so that few requests do not all meet one server.
        let well = upstream.slots.borrow();
        for _ in 0..worker.checked_rem(well.len()).unwrap_or(0) {
            balance::in_turn(well.iter().enumerate().map(|(at, slot)| (at, slot.candidate(now, Duration::ZERO))));
        }
        drop(well);
        upstream
    }

    /// As configured.
    pub fn settings(&self) -> &Settings {
        &self.group.settings
    }

    /// Whether servers are told who the client is.
    pub fn tells_client(&self) -> bool {
        self.settings().proxy_protocol != ProxyProtocol::Off
    }

    /// The hash of a user, where it decides.
    pub fn hash_of(&self, user: &[u8]) -> u64 {
        match self.settings().balance {
            Balance::Hash => balance::hash(user),
            Balance::RoundRobin | Balance::LeastRequests => 0,
        }
    }

    /// Takes over the members that the group has now; connections to those that are gone are closed, or will be.
    fn refresh(&self) {
        let version = self.group.version();
        if self.version.replace(version) == version {
            return;
        }
        let mut slots = self.slots.borrow_mut();
        let mut known: HashMap<u64, Rc<Slot>> = slots.drain(..).map(|slot| (slot.member.id, slot)).collect();
        let slot_of = |member: &Arc<Member>| {
            let known = known.remove(&member.id);
            known.unwrap_or_else(|| Rc::new(Slot::new(member.clone())))
        };
        *slots = self.group.members().iter().map(slot_of).collect();
        for slot in known.into_values() {
            slot.is_gone.set(true);
            slot.flush();
            slot.idle.borrow_mut().clear();
        }
    }

    /// Whose turn it is, of those that were not asked yet. `user` is the hash of who asks.
    pub fn choose(&self, attempts: &Attempts, user: u64, now: Micros) -> Choice {
        self.refresh();
        let slots = self.slots.borrow();
        let max = self.settings().connections.max;
        let is_new = |slot: &&Rc<Slot>| !attempts.has_tried(slot.member.id);
        let is_well = |slot: &&Rc<Slot>| slot.member.state(now) == State::Well;
        let needs_backups = !slots.iter().any(|slot| !slot.member.backup && is_well(&slot));
        let is_due = |slot: &&Rc<Slot>| is_new(slot) && (needs_backups || !slot.member.backup) && slot.has_room(max);
        let hold = self.settings().health.eject.unwrap_or_default().min(TRIAL_HOLD_MAX);
        // No request tries two: what follows goes to one that is well, where there is any.
        let may_try = attempts.tried() == 0 || !slots.iter().any(|slot| is_due(&slot) && is_well(&slot));
        let mut due = slots.iter().filter(|slot| may_try && is_due(slot));
        if let Some(slot) = due.find(|slot| slot.is_tried_by(attempts, hold, now)) {
            return Choice::Server(Chosen { slot: slot.clone(), why: Why::Trial });
        }
        let in_panic = !slots.is_empty() && !slots.iter().any(|slot| is_well(&slot));
        self.tell_panic(in_panic, now);
        let why = if in_panic { Why::Panic } else { Why::Turn };
        for backup in [false, true] {
            let of_tier = slots.iter().enumerate().filter(|(_, slot)| slot.member.backup == backup);
            let fit = of_tier.filter(|(_, slot)| (in_panic || is_well(slot)) && is_new(slot));
            let free = fit.clone().filter(|(_, slot)| slot.has_room(max));
            if let Some(at) = self.pick(free.map(|(at, slot)| (at, slot.candidate(now, self.slow_start()))), user) {
                return Choice::Server(Chosen { slot: slots[at].clone(), why });
            }
            if fit.count() > 0 {
                return Choice::Full;
            }
        }
        Choice::Nobody
    }

    /// How long a share grows. Users stay where they are, so theirs does not.
    fn slow_start(&self) -> Duration {
        match self.settings().balance {
            Balance::Hash => Duration::ZERO,
            Balance::RoundRobin | Balance::LeastRequests => self.settings().health.slow_start,
        }
    }

    fn pick<'s>(&self, fit: impl Iterator<Item = (usize, Candidate<'s>)> + Clone, user: u64) -> Option<usize> {
        match self.settings().balance {
            Balance::RoundRobin => balance::in_turn(fit),
            Balance::LeastRequests => balance::least_requests(fit, |below| fastrand::u64(..below)),
            Balance::Hash => balance::by_hash(fit, user),
        }
    }

    fn tell_panic(&self, in_panic: bool, now: Micros) {
        if self.group.set_panic(in_panic)
            && let Take::Write { suppressed } = self.panic_lines.borrow_mut().take(now)
        {
            let upstream = self.settings().name.as_str();
            match in_panic {
                true => tracing::error!(upstream, suppressed, "all servers are sick; trying them anyway"),
                false => tracing::info!(upstream, suppressed, "not all servers are sick any more"),
            }
        }
    }

    /// Whether there is a server that was not asked yet and can be.
    pub fn has_another(&self, attempts: &Attempts, now: Micros) -> bool {
        let slots = self.slots.borrow();
        let in_panic = slots.iter().all(|slot| slot.member.state(now) != State::Well);
        let max = self.settings().connections.max;
        slots.iter().filter(|slot| !attempts.has_tried(slot.member.id) && slot.has_room(max)).any(|slot| {
            match slot.member.state(now) {
                State::Well => true,
                State::OnTrial => in_panic || attempts.may_repeat(),
                State::Sick => in_panic,
            }
        })
    }

    /// An idle connection to this server: the last used, but rather one whose state is known than one of this turn.
    pub fn reuse(&self, chosen: &Chosen, now: Micros) -> Option<Lease> {
        let slot = &chosen.slot;
        let mut idle = slot.idle.borrow_mut();
        if idle.newest().is_some_and(|newest| now.since(newest.since) >= self.settings().idle) {
            // The others have been idle for longer still.
            idle.clear();
        }
        while let Some(one) = idle.take() {
            if !self.is_over(&one, now) {
                return Some(Lease::new(one.link, true, Busy::new(slot)));
            }
        }
        None
    }

    /// Whether an idle connection serves nobody any more.
    fn is_over(&self, one: &Idle, now: Micros) -> bool {
        now.since(one.since) >= self.settings().idle || self.is_too_old(one.link.opened, now)
    }

    fn is_too_old(&self, opened: Micros, now: Micros) -> bool {
        self.settings().connections.max_age.is_some_and(|most| now.since(opened) >= most)
    }

    /// A new connection to this server, in at most this time, by this permit or one that is free; `line` is whom it is for,
    /// where the server is told. Where descriptors run out it is tried again a few times, once `spare` has given up some.
    pub async fn connect(
        &self,
        chosen: &Chosen,
        permit: Option<Permit>,
        line: Option<&Line>,
        within: Duration,
        deadlines: &Rc<Deadlines>,
        spare: impl Fn(),
    ) -> Result<Lease, ConnectFault> {
        let member = &chosen.slot.member;
        let permit = permit.or_else(|| Permit::take(&self.group, member)).ok_or(ConnectFault::Full)?;
        // One that takes no connections must not look idle.
        let busy = Busy::new(&chosen.slot);
        let host = self.group.host(member);
        let mut dialed = self.dialer.dial(&member.place, host, line, within, deadlines).await;
        for _ in 0..SPARED_TRIES {
            if !matches!(dialed, Err(ConnectFault::Exhausted)) {
                break;
            }
            spare();
            monoio::time::sleep(CLOSING).await;
            dialed = self.dialer.dial(&member.place, host, line, within, deadlines).await;
        }
        let link = Link { conn: dialed?, permit, opened: deadlines.coarse_now() };
        Ok(Lease::new(link, false, busy))
    }

    /// Keeps a connection on which nothing is due, and reads ahead into this buffer; gives that back where it has no use.
    pub fn keep(&self, lease: Lease, buffer: Vec<u8>, now: Micros) -> Option<Vec<u8>> {
        let Lease { conn, permit, opened, busy, .. } = lease;
        // Where it is not kept, it is closed before others are told that there is room.
        let mut link = Link { conn, permit, opened };
        let slot = &busy.0;
        let queue = &self.group.queue;
        // Who has been told of one client must not take another for it.
        let is_for_one = self.tells_client();
        if is_for_one || slot.is_gone.get() || self.is_too_old(opened, now) {
            return Some(buffer);
        }
        // Where another worker's request is next, its worker needs the room for a connection of its own.
        if queue.waiting() > 0 && !queue.call_own(self.worker) && queue.waiting() > 0 {
            return Some(buffer);
        }
        let mut idle = slot.idle.borrow_mut();
        if idle.len() >= self.settings().connections.max_idle {
            return Some(buffer);
        }
        let rest = link.conn.reader.read_ahead(buffer);
        idle.keep(Idle { link, since: now });
        rest
    }

    /// A place in the line of those that wait for a connection; `None` where too many wait.
    fn line_up(&self, may_try: bool) -> Option<Turn<'_>> {
        let each = usize::try_from(self.settings().connections.max_pending).unwrap_or(usize::MAX);
        self.group.queue.join(self.worker, may_try, each.saturating_mul(self.slots.borrow().len()))
    }

    /// Waits in line for a server that has room, for `longest` at most where that is less than the upstream's own bound.
    pub async fn wait_for_room(
        &self,
        attempts: &Attempts,
        user: u64,
        longest: Duration,
        is_unwanted: impl Fn() -> bool,
        now: impl Fn() -> Micros,
    ) -> Result<Room, NoRoom> {
        let mut turn = self.line_up(attempts.may_repeat()).ok_or(NoRoom::Busy)?;
        let look = || match self.choose(attempts, user, now()) {
            Choice::Server(chosen) => Ok(self.reserve(chosen, now())),
            Choice::Nobody => Err(NoRoom::Nobody),
            Choice::Full => Ok(None),
        };
        let mut may_look = turn.is_first();
        let waiting = async {
            loop {
                if may_look && let Some(room) = look()? {
                    return Ok(room);
                }
                (&mut turn).await;
                if is_unwanted() {
                    return Err(NoRoom::Unwanted);
                }
                if let Some(room) = look()? {
                    return Ok(room);
                }
                turn.rejoin();
                may_look = true;
            }
        };
        let found = monoio::time::timeout(self.settings().connections.pending.min(longest), waiting).await;
        let room = found.unwrap_or(Err(NoRoom::Busy))?;
        turn.leave_served();
        self.group.call_next();
        Ok(room)
    }

    /// Takes what a request to this server needs, so that nobody is faster; `None` where somebody was.
    fn reserve(&self, chosen: Chosen, now: Micros) -> Option<Room> {
        let slot = &chosen.slot;
        slot.idle.borrow_mut().retain(|one| !self.is_over(one, now));
        let needs_permit = slot.idle.borrow().is_empty();
        let permit = match needs_permit {
            true => Some(Permit::take(&self.group, &slot.member)?),
            false => None,
        };
        Some(Room { chosen, permit })
    }

    /// Whether requests wait for a connection: then a new one does too.
    pub fn has_line(&self) -> bool {
        self.settings().connections.max.is_some() && self.group.queue.is_used()
    }

    /// Adds a request's share to the budget of retries, and what time gives.
    pub fn earn_retries(&self, now: Micros) {
        let mut budget = self.budget.borrow_mut();
        budget.refill(now);
        budget.earn(self.settings().retries.budget_percent);
    }

    /// Whether the budget has a retry left.
    pub fn may_retry(&self) -> bool {
        self.budget.borrow().has_one()
    }

    /// Takes a retry from the budget, where it has one.
    pub fn spend_retry(&self) -> bool {
        self.budget.borrow_mut().spend()
    }

    /// A request was answered well.
    pub fn succeeded(&self, chosen: &Chosen, now: Micros) {
        let slot = &chosen.slot;
        slot.record.is_sick_after(false, now, &self.settings().health);
        self.responded(chosen, now);
    }

    /// The head of a good answer came, which is enough for a sick server to be back: its body may have no end.
    pub fn responded(&self, chosen: &Chosen, now: Micros) {
        let member = &chosen.slot.member;
        if chosen.why != Why::Turn
            && let Some(news) = member.recover(now)
            && let Take::Write { suppressed } = self.lines.borrow_mut().take(now)
        {
            tracing::info!(upstream = self.settings().name, server = member.name, suppressed, "{}", news.words());
        }
    }

    /// A request failed, and the server is to blame.
    pub fn failed(&self, chosen: &Chosen, fault: Fault, now: Micros) {
        let (slot, health) = (&chosen.slot, &self.settings().health);
        if fault.is_of_absence()
            && let Some(target) = self.group.target(&slot.member)
        {
            target.ask();
        }
        // One that is well again meanwhile is not ejected for what an old trial met.
        let was_trial = chosen.why == Why::Trial && slot.member.is_ejected();
        slot.forget_before(slot.member.back_since());
        let is_sick = slot.record.is_sick_after(true, now, health) || was_trial;
        let Some(first) = health.eject.filter(|_| is_sick) else { return };
        let ejected = slot.member.eject(now, first, fault.is_of_absence(), was_trial);
        if let Some(time) = ejected.filter(|_| !was_trial)
            && let Take::Write { suppressed } = self.lines.borrow_mut().take(now)
        {
            tracing::warn!(
                upstream = self.settings().name,
                server = slot.member.name,
                reason = fault.words(),
                for_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                suppressed,
                "server is left alone"
            );
        }
    }

    /// Closes all connections that are not in use.
    pub fn close_idle(&self) {
        self.slots.borrow().iter().for_each(|slot| slot.idle.borrow_mut().clear());
    }

    /// To be called again and again: takes over changes of the members, and gives up idle connections that others wait for.
    pub fn tend(&self, now: Micros) {
        self.refresh();
        // Room that came from elsewhere, with a server that is back or one that is new, is given back by nobody.
        self.group.call_next();
        self.group.call_for_trial(now);
        let slots = self.slots.borrow();
        slots.iter().for_each(|slot| slot.flush());
        self.give_up_idle(&slots);
    }

    /// Has requests of this worker that wait take its idle connections, and closes what others wait for.
    fn give_up_idle(&self, slots: &[Rc<Slot>]) {
        let queue = &self.group.queue;
        if queue.waiting() == 0 {
            return;
        }
        let idle: usize = slots.iter().map(|slot| slot.idle.borrow().len()).sum();
        while queue.owed(self.worker) < idle && queue.call_own(self.worker) {}
        let mut spare = idle.saturating_sub(queue.owed(self.worker)).min(queue.waiting());
        for slot in slots {
            while spare > 0 && slot.idle.borrow_mut().take().is_some() {
                spare -= 1;
            }
        }
    }

    /// Closes connections that were idle for too long.
    pub fn expire(&self, now: Micros) {
        let most = self.settings().idle;
        for slot in self.slots.borrow().iter() {
            slot.idle.borrow_mut().expire(most, now);
        }
    }
}

impl Slot {
    fn new(member: Arc<Member>) -> Slot {
        Slot {
            member,
            idle: RefCell::default(),
            in_flight: Cell::new(0),
            turn: Cell::new(0),
            record: Record::default(),
            known_back: Cell::new(Micros(0)),
            requests: Cell::new(0),
            is_gone: Cell::new(false),
        }
    }

    fn candidate(&self, now: Micros, slow_start: Duration) -> Candidate<'_> {
        Candidate {
            weight: self.member.weight(now, slow_start),
            in_flight: self.in_flight.get(),
            key: self.member.key,
            turn: &self.turn,
        }
    }

    /// Whether a request can be sent now.
    fn has_room(&self, max: Option<u32>) -> bool {
        max.is_none_or(|max| self.member.connections() < max || !self.idle.borrow().is_empty())
    }

    /// Whether this request is the one that tries the server again, where it is time for that. One that can be repeated is
    /// best, since then nobody notices a failure.
    fn is_tried_by(&self, attempts: &Attempts, hold: Duration, now: Micros) -> bool {
        self.member.state(now) == State::OnTrial
            && (attempts.may_repeat() || self.member.waits_for_trial(now) >= TRIAL_PATIENCE)
            && self.member.begin_trial(now, hold)
    }

    /// What a server did before it was back, perhaps by another worker's doing, is not held against it.
    fn forget_before(&self, back_since: Micros) {
        if self.known_back.replace(back_since) != back_since {
            self.record.clear();
        }
    }

    fn flush(&self) {
        let requests = self.requests.take();
        if requests > 0 {
            self.member.add_requests(requests);
        }
    }
}
