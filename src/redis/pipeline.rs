//! Commands on their way to one server, and who waits for their replies.
//!
//! Replies come in the order of the commands. A command that nobody waits for any more still takes its own reply, so
//! that no other gets it. Nobody waits past the deadline for what the server has not sent by then, nor while the breaker
//! is open: then a command now and then goes as a probe. Pure: wakers and buffers, no socket; time is an argument.

use super::Fault;
use super::breaker::{Breaker, Change, Permit};
use super::resp::{self, Reply};
use crate::time::Micros;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem::take;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Commands that may wait for a reply on one connection; more are refused at once.
pub const IN_FLIGHT_MAX: usize = 4096;

/// So long before its deadline a command is looked at first, which the runtime's timer makes a millisecond or two later: what
/// has come by then is read before it is looked at again.
const EVE: Duration = Duration::from_millis(2);

/// The time between two looks: what the runtime's timer counts.
pub const TICK: Duration = Duration::from_millis(1);

/// What a server has to answer in after a pause of this process, during which a command may not have gone out.
pub const RESUMED: Duration = Duration::from_millis(5);

/// What a connection's life is told to, for metrics and logs.
pub trait Observer {
    /// The connection is ready for decisions.
    fn connected(&self);
    /// It was lost, or could not be had; the reason holds no secret.
    fn disconnected(&self, reason: &str);
    /// The server answered a command with this error.
    fn server_error(&self, text: &str);
    /// Decisions are not waited for any more, or are again.
    fn breaker(&self, change: Change);
    /// The server is not asked any more, since it has no slots of the cluster.
    fn retired(&self);
    /// So many commands are about to be sent in one write.
    fn writes(&self, commands: u64);
}

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody waits for its reply.
    Decision,
    /// To learn whether the server answers; it must change nothing.
    Probe,
}

/// The commands of one connection, and of those after it.
pub(super) struct Pipeline {
    is_up: Cell<bool>,
    is_retired: Cell<bool>,
    was_tried: Cell<bool>,
    /// Who waits for the end of the first attempt at a connection: [`IN_FLIGHT_MAX`] at most.
    first_try: RefCell<Vec<Waker>>,
    /// A decision has been answered since the connection was opened.
    has_answered: Cell<bool>,
    digest: RefCell<Vec<u8>>,
    /// Commands so far, and the one of them that has brought the script again.
    asked: Cell<u64>,
    script_by: Cell<u64>,
    out: RefCell<Vec<u8>>,
    /// Of the commands that are owed a reply, the first so many are in a batch (the others in `out`), and the first so many
    /// have been written.
    taken: Cell<usize>,
    sent: Cell<usize>,
    slots: RefCell<Slab<Slot>>,
    /// Slots of commands sent or about to be, in order.
    queue: RefCell<VecDeque<usize>>,
    writer: RefCell<Option<Waker>>,
    watch: RefCell<Option<Waker>>,
    /// When the watch looks at deadlines again; `None` = not before it is woken.
    looks_at: Cell<Option<Micros>>,
    /// A deadline has come that is earlier than that.
    has_earlier: Cell<bool>,
    /// The time of the last reply, to whatever.
    heard: Cell<Micros>,
    /// Reads that have taken all there was.
    reads: Cell<u64>,
    /// Until then it has been counted that the server is slow.
    slow_until: Cell<Micros>,
    breaker: Cell<Breaker>,
    deadline: Duration,
    observer: Box<dyn Observer>,
}

/// Where a reply goes.
struct Slot {
    number: u64,
    outcome: Option<Result<Reply, Fault>>,
    waker: Option<Waker>,
    deadline: Micros,
    /// When it was asked, then when that was written: since when the server is waited for.
    since: Micros,
    /// How long it may be; once there is a reply, how much of that is left.
    patience: Duration,
    /// It was looked at on the eve of its deadline, or later: after so many reads.
    due: Option<u64>,
    is_queued: bool,
    is_abandoned: bool,
    is_probe: bool,
    /// Nobody ever waited, so that its reply says nothing of decisions.
    is_unheard: bool,
}

/// Waits for the outcome in a slot; gives the slot up when dropped.
pub struct Answer {
    pipeline: Rc<Pipeline>,
    key: usize,
}

/// A reply in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the server said.
    pub reply: Reply,
    /// How long it may take for a question that has to follow: the rest of its time.
    pub left: Duration,
    /// Which command of the pipeline it answers.
    number: u64,
}

impl Future for Answer {
    type Output = Result<Answered, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slots = self.pipeline.slots.borrow_mut();
        let Some(slot) = slots.get_mut(self.key) else {
            return Poll::Ready(Err(Fault::Disconnected));
        };
        match slot.outcome.take() {
            Some(outcome) => {
                Poll::Ready(outcome.map(|reply| Answered { reply, left: slot.patience, number: slot.number }))
            }
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let mut slots = self.pipeline.slots.borrow_mut();
        match slots.get_mut(self.key) {
            Some(slot) if slot.is_queued => slot.is_abandoned = true,
            _ => drop(slots.try_remove(self.key)),
        }
    }
}

impl Pipeline {
    /// Without a connection yet; `deadline` is the time that a probe has.
    pub fn new(deadline: Duration, observer: Box<dyn Observer>) -> Pipeline {
        Pipeline {
            is_up: Cell::new(false),
            is_retired: Cell::new(false),
            was_tried: Cell::new(false),
            has_answered: Cell::new(false),
            first_try: RefCell::default(),
            digest: RefCell::default(),
            asked: Cell::new(0),
            script_by: Cell::new(0),
            out: RefCell::default(),
            slots: RefCell::default(),
            queue: RefCell::default(),
            writer: RefCell::default(),
            watch: RefCell::default(),
            looks_at: Cell::new(None),
            has_earlier: Cell::new(false),
            taken: Cell::new(0),
            sent: Cell::new(0),
            heard: Cell::default(),
            reads: Cell::default(),
            slow_until: Cell::default(),
            breaker: Cell::default(),
            deadline,
            observer,
        }
    }

    pub fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Waits until the first attempt at a connection is over.
    pub async fn tried(&self) {
        poll_fn(|context| {
            let mut waiting = self.first_try.borrow_mut();
            if self.was_tried.get() || waiting.len() >= IN_FLIGHT_MAX {
                return Poll::Ready(());
            }
            waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Asks with one command, which `write` appends to the batch (it is given its purpose and the script's digest). The
    /// reply may be waited for; the server has `patience` for it. `asking` announces that the server need not have the slot
    /// for good.
    pub fn ask(
        self: &Rc<Pipeline>,
        now: Micros,
        patience: Duration,
        asking: bool,
        write: impl FnOnce(Purpose, &[u8], &mut Vec<u8>),
    ) -> Result<Answer, Fault> {
        if !self.is_up.get() {
            return Err(Fault::Disconnected);
        }
        if self.queue.borrow().len() >= IN_FLIGHT_MAX {
            return Err(Fault::Overloaded);
        }
        match self.with_breaker(|breaker| breaker.ask(now)) {
            Permit::Refused => Err(Fault::Broken),
            Permit::Probe => {
                self.push(Purpose::Probe, now, self.deadline, write);
                Err(Fault::Broken)
            }
            Permit::Ask => {
                if asking {
                    self.push_unheard(now, patience, |out| {
                        resp::push_array(out, 1);
                        resp::push_bulk(out, b"ASKING");
                    });
                }
                let key = self.push(Purpose::Decision, now, patience, write);
                Ok(Answer { pipeline: self.clone(), key })
            }
        }
    }

    /// Whether the next command has to bring the script, after this answer that the server does not know it: not where another
    /// has brought it since, which makes thousands of commands that meet a new server large ones.
    pub fn brings_script(&self, unknown: &Answered) -> bool {
        let is_first = self.script_by.get() <= unknown.number;
        if is_first {
            self.script_by.set(self.asked.get() + 1);
        }
        is_first
    }

    /// Sends one command that nobody waits for; not while nobody would be waited for anyway.
    pub fn post(&self, now: Micros, write: impl FnOnce(&mut Vec<u8>)) {
        if self.is_up.get() && !self.is_broken() && self.queue.borrow().len() < IN_FLIGHT_MAX {
            self.push_unheard(now, self.deadline, write);
        }
    }

    /// Writes a command whose reply nobody waits for.
    fn push_unheard(&self, now: Micros, patience: Duration, write: impl FnOnce(&mut Vec<u8>)) {
        let key = self.push(Purpose::Decision, now, patience, |_, _, out| write(out));
        if let Some(slot) = self.slots.borrow_mut().get_mut(key) {
            slot.is_abandoned = true;
            slot.is_unheard = true;
        }
    }

    fn push(
        &self,
        purpose: Purpose,
        now: Micros,
        patience: Duration,
        write: impl FnOnce(Purpose, &[u8], &mut Vec<u8>),
    ) -> usize {
        let deadline = now.after(patience);
        write(purpose, &self.digest.borrow(), &mut self.out.borrow_mut());
        let is_probe = purpose == Purpose::Probe;
        self.asked.set(self.asked.get() + 1);
        let key = self.slots.borrow_mut().insert(Slot {
            number: self.asked.get(),
            outcome: None,
            waker: None,
            deadline,
            since: now,
            patience,
            due: None,
            is_queued: true,
            is_abandoned: is_probe,
            is_probe,
            is_unheard: false,
        });
        self.queue.borrow_mut().push_back(key);
        // The woken task runs after all that are ready now: their commands go into the same write.
        wake(&self.writer);
        // Not for its eve: what was asked before has been written since, so that each new command would be a little earlier.
        if self.looks_at.get().is_none_or(|at| deadline < at) {
            self.has_earlier.set(true);
            wake(&self.watch);
        }
        key
    }

    /// A connection is ready; the server knows the script by this digest.
    pub fn opened(&self, digest: Vec<u8>, now: Micros) {
        *self.digest.borrow_mut() = digest;
        self.is_up.set(true);
        self.has_answered.set(false);
        self.first_try_is_over();
        self.observer.connected();
        self.with_breaker(|breaker| breaker.reconnected(now));
    }

    /// Somebody waited in vain for the first attempt at a connection to end.
    pub fn missed(&self, now: Micros) {
        self.tell(self.with_breaker(|breaker| breaker.failed(now)));
    }

    /// Whether it is not worth waiting for.
    pub fn is_broken(&self) -> bool {
        self.breaker.get().is_open()
    }

    /// Gives the oldest command its reply.
    pub fn answer(&self, reply: Reply, now: Micros) -> Result<(), &'static str> {
        let Some(key) = self.queue.borrow_mut().pop_front() else {
            return Err("a reply to nothing");
        };
        // A reply may be read before the end of the write that asked for it is told.
        self.taken.set(self.taken.get().saturating_sub(1));
        self.sent.set(self.sent.get().saturating_sub(1));
        self.heard.set(now);
        let is_good = !matches!(reply, Reply::Error(error) if error.is_of_the_store());
        // What comes late has been counted when its deadline passed, and is no good news: nobody waits that long.
        let (is_probe, is_late) = match self.slots.borrow_mut().get_mut(key) {
            Some(slot) => {
                slot.patience = slot.rest(now);
                (slot.is_probe, slot.is_late(now))
            }
            None => (false, true),
        };
        self.has_answered.set(self.has_answered.get() || !is_late);
        self.settle(key, Ok(reply));
        let change = self.with_breaker(|breaker| match (is_probe, is_good) {
            (true, _) => breaker.probed(now, is_good),
            (false, _) if is_late => None,
            (false, false) => breaker.failed(now),
            (false, true) => {
                breaker.succeeded();
                None
            }
        });
        self.tell(change);
        Ok(())
    }

    /// The connection is lost, or could not be had: everything that waits is told so.
    pub fn fail_all(&self) {
        self.is_up.set(false);
        self.first_try_is_over();
        self.out.borrow_mut().clear();
        self.taken.set(0);
        self.sent.set(0);
        let waiting = take(&mut *self.queue.borrow_mut());
        for key in waiting {
            self.settle(key, Err(Fault::Disconnected));
        }
    }

    /// No more is asked from now on: the connection ends once it owes no reply.
    pub fn retire(&self) {
        self.is_retired.set(true);
        self.has_earlier.set(true);
        wake(&self.watch);
    }

    /// Whether it was retired.
    pub fn is_retired(&self) -> bool {
        self.is_retired.get()
    }

    /// Whether a decision has been answered in time since the connection was opened.
    pub fn has_answered(&self) -> bool {
        self.has_answered.get()
    }

    /// Whether a connection is ready.
    pub fn is_up(&self) -> bool {
        self.is_up.get()
    }

    /// Tells the askers whose deadline has passed; gives when to look again. Nobody is told before a second look: a worker
    /// that was stopped or busy comes late itself. Nor before what had come by the first has been read (`has_unread`).
    pub fn expire(&self, now: Micros, has_unread: impl Fn() -> bool) -> Option<Micros> {
        let mut next: Option<Micros> = None;
        let mut change = None;
        let mut unread = None;
        let mut slots = self.slots.borrow_mut();
        for &key in self.queue.borrow().iter() {
            let Some(slot) = slots.get_mut(key).filter(|slot| slot.is_open()) else { continue };
            let reads = self.reads.get();
            let look_again = slot.look(now, self.deadline.min(RESUMED), reads).or_else(|| {
                let may_be_there = slot.due == Some(reads) && *unread.get_or_insert_with(&has_unread);
                may_be_there.then(|| now.after(TICK))
            });
            if let Some(at) = look_again {
                next = Some(next.map_or(at, |earliest| earliest.min(at)));
                continue;
            }
            let was_probe = take(&mut slot.is_probe);
            let was_silent = self.heard.get() <= slot.since;
            slot.tell(Err(Fault::Timeout));
            change = change.or(match was_probe {
                true => self.with_breaker(|breaker| breaker.probed(now, false)),
                false if was_silent || self.is_slow(now) => self.with_breaker(|breaker| breaker.failed(now)),
                false => None,
            });
        }
        drop(slots);
        self.tell(change);
        next
    }

    /// The server answers, but others first: told by all of a long queue, which is one failure in the time of a deadline.
    fn is_slow(&self, now: Micros) -> bool {
        let is_news = self.slow_until.get() <= now;
        if is_news {
            self.slow_until.set(now.after(self.deadline));
        }
        is_news
    }

    /// Takes what was asked since the last time, once there is something; gives `spare` for what will be.
    pub async fn batch(&self, spare: Vec<u8>) -> Vec<u8> {
        until(&self.writer, || !self.out.borrow().is_empty()).await;
        let owed = self.queue.borrow().len();
        let asked = owed.saturating_sub(self.taken.replace(owed));
        self.observer.writes(asked as u64);
        self.out.replace(spare)
    }

    /// A read has taken all there was.
    pub fn has_read(&self) {
        self.reads.set(self.reads.get() + 1);
    }

    /// The batch has been written. How long its commands waited for that is no fault of the server's: their deadlines come
    /// so much later.
    pub fn written(&self, now: Micros) {
        let queue = self.queue.borrow();
        let mut slots = self.slots.borrow_mut();
        for &key in queue.iter().take(self.taken.get()).skip(self.sent.replace(self.taken.get())) {
            if let Some(slot) = slots.get_mut(key).filter(|slot| slot.is_open()) {
                slot.deadline = now.after(slot.patience);
                slot.since = now;
                slot.due = None;
            }
        }
    }

    /// Says when the deadlines are looked at again.
    pub fn looks_at(&self, at: Option<Micros>) {
        self.looks_at.set(at);
    }

    /// Waits until a command is asked whose deadline would be missed then.
    pub async fn earlier_deadline(&self) {
        until(&self.watch, || self.has_earlier.take()).await;
    }

    /// The deadline of the oldest command that is still owed a reply.
    pub fn oldest(&self) -> Option<Micros> {
        let front = *self.queue.borrow().front()?;
        self.slots.borrow().get(front).map(|slot| slot.deadline)
    }

    fn with_breaker<T>(&self, ask: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.get();
        let said = ask(&mut breaker);
        self.breaker.set(breaker);
        said
    }

    /// Tells of a change; where nobody is to wait any more, those who do are told so.
    fn tell(&self, change: Option<Change>) {
        let Some(change) = change else { return };
        if change == Change::Opened {
            let mut slots = self.slots.borrow_mut();
            for &key in self.queue.borrow().iter() {
                if let Some(slot) = slots.get_mut(key).filter(|slot| !slot.is_abandoned) {
                    slot.tell(Err(Fault::Broken));
                }
            }
        }
        self.observer.breaker(change);
    }

    /// The command of this slot is over.
    fn settle(&self, key: usize, outcome: Result<Reply, Fault>) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else { return };
        slot.is_queued = false;
        match slot.is_abandoned {
            true => drop(slots.remove(key)),
            false => {
                // Better late: who has not yet heard of a fault need not.
                slot.outcome = slot.outcome.take().filter(|_| outcome.is_err());
                slot.tell(outcome);
            }
        }
    }

    fn first_try_is_over(&self) {
        self.was_tried.set(true);
        take(&mut *self.first_try.borrow_mut()).into_iter().for_each(Waker::wake);
    }
}

impl Slot {
    /// Whether its end is still to be told.
    fn is_open(&self) -> bool {
        self.is_probe || !(self.is_abandoned || self.outcome.is_some())
    }

    /// Whether a reply that comes now has been counted as missing, or says nothing of decisions.
    fn is_late(&self, now: Micros) -> bool {
        self.is_unheard || self.outcome.is_some() || (self.is_abandoned && self.deadline <= now)
    }

    /// Looks at its deadline: when to do so again, or `None` where it has passed. Whoever comes too late to the first look
    /// leaves the server `resumed`, once.
    fn look(&mut self, now: Micros, resumed: Duration, reads: u64) -> Option<Micros> {
        let eve = self.deadline.before(EVE);
        if eve > now {
            return Some(eve);
        }
        if self.due.is_none() {
            self.due = Some(reads);
            let rest = if self.deadline.after(EVE) < now { resumed } else { TICK };
            self.deadline = self.deadline.max(now.after(rest));
        }
        (self.deadline > now).then_some(self.deadline)
    }

    /// What is left of the server's time when its reply is read. Nothing was taken of it where nobody has looked on the eve
    /// of the deadline: the reply may have been there for long.
    fn rest(&self, now: Micros) -> Duration {
        match self.due {
            None if self.deadline.before(EVE) < now => self.patience,
            _ => self.deadline.since(now).max(TICK),
        }
    }

    /// Tells the asker, who keeps what it was told first.
    fn tell(&mut self, outcome: Result<Reply, Fault>) {
        self.outcome.get_or_insert(outcome);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Something that happens, and that one task may wait for.
#[derive(Default)]
pub(super) struct Signal {
    has_happened: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Signal {
    /// It happens.
    pub fn happen(&self) {
        self.has_happened.set(true);
        wake(&self.waiting);
    }

    /// As if it had not happened yet.
    pub fn forget(&self) {
        self.has_happened.set(false);
    }

    /// Waits until it has happened.
    pub async fn happened(&self) {
        until(&self.waiting, || self.has_happened.get()).await;
    }
}

/// Waits, to be woken through `place`, until it is so.
async fn until(place: &RefCell<Option<Waker>>, is_so: impl Fn() -> bool) {
    poll_fn(|context| match is_so() {
        true => Poll::Ready(()),
        false => {
            *place.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        }
    })
    .await;
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = place.borrow_mut().take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
