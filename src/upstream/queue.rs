//! Requests that wait for a connection because all servers of an upstream are at their limit: first come, first served.
//!
//! Pure: no clock. Workers share it, since the limit is the process's. A connection that becomes free is worth most on
//! the worker that holds it, since another one has to open its own: so that worker's first request may go before others, but not
//! for ever. Who is called has what it was called for to itself: nobody who comes meanwhile may be faster. Retries are no part
//! of it: who has been at a server already neither waits here nor lets others go first.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

/// How often the first may be passed over for one whose worker has the connection already.
const PASSED_MAX: u32 = 8;

/// How far behind the first such a one is looked for.
const LOOK_MAX: usize = 64;

/// The requests that wait at one upstream.
#[derive(Debug, Default)]
pub struct Queue {
    line: Mutex<Line>,
    /// The length of the line, for who only asks whether anybody waits.
    length: AtomicUsize,
    /// The same with those that were called.
    present: AtomicUsize,
}

/// Kept by place, so that whoever gives up, which all may do at once, is found without a search.
#[derive(Debug)]
struct Line {
    waiters: BTreeMap<u64, Waiter>,
    /// The places of those that were called and have not said yet what became of it, with the worker that has the idle
    /// connection they were called for, where it was for one.
    called: BTreeMap<u64, Option<usize>>,
    /// No place was ever given before this one, nor at or behind `end`: each is given once.
    start: u64,
    end: u64,
}

impl Default for Line {
    fn default() -> Line {
        Line { waiters: BTreeMap::new(), called: BTreeMap::new(), start: MIDDLE, end: MIDDLE }
    }
}

impl Line {
    fn first(&self) -> Option<u64> {
        self.waiters.first_key_value().map(|(&place, _)| place)
    }
}

/// Neither end is ever reached from here.
const MIDDLE: u64 = 1 << 63;

#[derive(Debug)]
struct Waiter {
    worker: usize,
    /// Its request may be the one that tries a server which was ill: it can be repeated.
    may_try: bool,
    passed: u32,
    waker: Waker,
}

impl Queue {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        // In one order with the count of connections: whoever joins looks for room after it, whoever gives room back looks
        // for waiters after it, and one of them must see the other.
        self.length.load(Ordering::SeqCst)
    }

    /// Whether anybody is before who comes now.
    pub fn is_used(&self) -> bool {
        self.present.load(Ordering::Acquire) > 0
    }

    fn count(&self, line: &Line) {
        self.length.store(line.waiters.len(), Ordering::SeqCst);
        self.present.store(line.waiters.len() + line.called.len(), Ordering::Release);
    }

    /// Takes a place at the end; `None` where `most` wait already. `may_try`: see [`Queue::call_for_trial`].
    pub fn join(&self, worker: usize, may_try: bool, most: usize) -> Option<Turn<'_>> {
        let mut line = self.line.lock();
        if line.waiters.len() + line.called.len() >= most {
            return None;
        }
        let place = line.end;
        line.end += 1;
        line.waiters.insert(place, Waiter { worker, may_try, passed: 0, waker: Waker::noop().clone() });
        self.count(&line);
        Some(Turn { queue: self, worker, may_try, place, is_served: false })
    }

    /// Calls whoever is first, where `is_due` says so. It is told how many were called and have not said yet what became of
    /// it. Nobody is called, and nobody who was called leaves, while it counts: so no room is counted for two.
    pub fn call_first(&self, is_due: impl FnOnce(usize) -> bool) {
        self.call(|line| is_due(line.called.len()).then(|| line.first()).flatten());
    }

    /// Calls the first who may try a server that was ill, else whoever is first; not while somebody is called.
    pub fn call_for_trial(&self) {
        self.call(|line| {
            let fit = || line.waiters.iter().take(LOOK_MAX).find(|(_, waiter)| waiter.may_try).map(|(&place, _)| place);
            line.called.is_empty().then(|| fit().or_else(|| line.first())).flatten()
        });
    }

    fn call(&self, choose: impl FnOnce(&Line) -> Option<u64>) {
        let called = {
            let mut line = self.line.lock();
            let Some(place) = choose(&line) else { return };
            let Some(waiter) = line.waiters.remove(&place) else { return };
            line.called.insert(place, None);
            self.count(&line);
            waiter
        };
        called.waker.wake();
    }

    /// This worker has a connection that is free: calls a request of its own that waits, where it is that one's turn.
    pub fn call_own(&self, worker: usize) -> bool {
        let own = {
            let mut line = self.line.lock();
            let own = line.waiters.iter().take(LOOK_MAX).find(|(_, waiter)| waiter.worker == worker);
            let own = own.map(|(&place, _)| place);
            let own = match (own, line.waiters.first_entry()) {
                (Some(place), Some(mut first)) if place != *first.key() => {
                    let passed = &mut first.get_mut().passed;
                    let may_pass = *passed < PASSED_MAX;
                    *passed += u32::from(may_pass);
                    may_pass.then_some(place)
                }
                (own, _) => own,
            };
            let own = own.and_then(|place| line.waiters.remove_entry(&place));
            own.map(|(place, own)| {
                line.called.insert(place, Some(worker));
                self.count(&line);
                own
            })
        };
        own.map(|own| own.waker.wake()).is_some()
    }

    /// How many were called for idle connections of this worker, and are about to take them.
    pub fn owed(&self, worker: usize) -> usize {
        self.line.lock().called.values().filter(|called| **called == Some(worker)).count()
    }
}

/// A place in the line; given up when dropped.
#[derive(Debug)]
pub struct Turn<'q> {
    queue: &'q Queue,
    worker: usize,
    may_try: bool,
    place: u64,
    is_served: bool,
}

impl Turn<'_> {
    /// Leaves with what was waited for.
    pub fn leave_served(mut self) {
        self.is_served = true;
    }

    /// Whether nobody waits for longer, or was called and has not taken it yet.
    pub fn is_first(&self) -> bool {
        let line = self.queue.line.lock();
        line.called.is_empty() && line.waiters.first_key_value().is_some_and(|(&first, _)| first == self.place)
    }

    /// Goes back to the front: what it was called for had gone to another. Who has met with that is not passed over again.
    /// What became free since it was called may not have been told, so it is to look once more.
    pub fn rejoin(&mut self) {
        let mut line = self.queue.line.lock();
        if line.called.remove(&self.place).is_some() {
            // Its old place is in front, unless it was called before others.
            if line.waiters.first_key_value().is_some_and(|(&first, _)| first < self.place) {
                line.start -= 1;
                self.place = line.start;
            }
            let waker = Waker::noop().clone();
            let (worker, may_try) = (self.worker, self.may_try);
            line.waiters.insert(self.place, Waiter { worker, may_try, passed: PASSED_MAX, waker });
            self.queue.count(&line);
        }
    }
}

impl Future for Turn<'_> {
    type Output = ();

    /// Ready once it has been woken.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut line = self.queue.line.lock();
        match line.waiters.get_mut(&self.place) {
            Some(own) => {
                own.waker.clone_from(context.waker());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let called = {
            let mut line = self.queue.line.lock();
            line.waiters.remove(&self.place);
            let called = line.called.remove(&self.place);
            self.queue.count(&line);
            called
        };
        // Where it gives up at the moment that it was called, what it was called for is the next one's.
        match called.filter(|_| !self.is_served) {
            Some(Some(worker)) => {
                self.queue.call_own(worker);
            }
            Some(None) => self.queue.call_first(|_| true),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// A waiter that has been polled once, and whether it was woken.
    fn wait<'q>(queue: &'q Queue, worker: usize) -> (Turn<'q>, Arc<Flag>) {
        let mut turn = queue.join(worker, true, 100).unwrap();
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        assert!(Pin::new(&mut turn).poll(&mut Context::from_waker(&waker)).is_pending());
        (turn, flag)
    }

    fn woken(waiters: &[(Turn<'_>, Arc<Flag>)]) -> Vec<usize> {
        (0..waiters.len()).filter(|&at| waiters[at].1.0.load(Ordering::Acquire)).collect()
    }

    #[test]
    fn first_come_first_served_and_the_line_is_bounded() {
        let queue = Queue::default();
        let waiters = [wait(&queue, 0), wait(&queue, 1), wait(&queue, 0)];
        assert!(queue.join(0, true, 3).is_none());
        queue.call_first(|_| true);
        queue.call_first(|_| true);
        assert_eq!((woken(&waiters), queue.waiting()), (vec![0, 1], 1));
        drop(waiters);
        assert_eq!(queue.waiting(), 0);
        queue.call_first(|_| true);
    }

    #[test]
    fn whoever_may_try_a_server_goes_first_where_one_is_to_be_tried() {
        let queue = Queue::default();
        let mut turns =
            [false, true, true].map(|may_try| (queue.join(0, may_try, 100).unwrap(), Arc::<Flag>::default()));
        for (turn, flag) in &mut turns {
            let waker = Waker::from(flag.clone());
            assert!(Pin::new(turn).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        queue.call_for_trial();
        queue.call_for_trial();
        assert_eq!(woken(&turns), [1], "one at a time");
        let [first, second, third] = turns;
        second.0.leave_served();
        drop(third);
        queue.call_for_trial();
        assert!(first.1.0.load(Ordering::Acquire), "there is no other");
    }

    #[test]
    fn a_worker_s_own_request_goes_first_but_not_for_ever() {
        let queue = Queue::default();
        let mut waiters = vec![wait(&queue, 0)];
        waiters.extend((0..10).map(|_| wait(&queue, 1)));
        assert!((0..8).all(|_| queue.call_own(1)));
        assert!(!queue.call_own(1), "the first has been passed over often enough");
        assert_eq!(woken(&waiters), (1..=8).collect::<Vec<_>>());
        assert!(queue.call_own(0) && waiters[0].1.0.load(Ordering::Acquire));
        assert!(queue.call_own(1) && !queue.call_own(0));
    }

    #[test]
    fn who_is_called_and_gives_up_calls_the_next() {
        let queue = Queue::default();
        let (first, second) = (wait(&queue, 0), wait(&queue, 1));
        queue.call_first(|_| true);
        drop(first);
        assert!(second.1.0.load(Ordering::Acquire));
        let third = wait(&queue, 1);
        second.0.leave_served();
        assert!(!third.1.0.load(Ordering::Acquire));
    }

    #[test]
    fn who_gives_up_an_idle_connection_calls_the_next_of_its_worker() {
        let queue = Queue::default();
        let mut waiters = vec![wait(&queue, 0), wait(&queue, 1), wait(&queue, 1)];
        assert!(queue.call_own(1));
        drop(waiters.remove(1));
        assert_eq!((woken(&waiters), queue.owed(1)), (vec![1], 1));
    }

    #[test]
    fn who_finds_nothing_is_first_again() {
        let queue = Queue::default();
        let mut waiters = [wait(&queue, 0), wait(&queue, 0)];
        queue.call_first(|_| true);
        waiters[0].0.rejoin();
        assert!(waiters[0].0.is_first() && !waiters[1].0.is_first());
        assert_eq!(queue.waiting(), 2);
    }

    #[test]
    fn who_finds_nothing_is_not_passed_over_again() {
        let queue = Queue::default();
        let mut waiters = [wait(&queue, 0), wait(&queue, 1)];
        queue.call_first(|_| true);
        waiters[0].0.rejoin();
        assert!(!queue.call_own(1) && queue.call_own(0));
        assert_eq!(woken(&waiters), [0]);
    }

    #[test]
    fn a_connection_is_owed_until_who_was_called_for_it_has_it_or_leaves() {
        let queue = Queue::default();
        let mut waiters: Vec<_> = (0..4).map(|_| wait(&queue, 1)).collect();
        assert!((0..3).all(|_| queue.call_own(1)));
        queue.call_first(|_| true);
        assert_eq!((queue.owed(1), queue.owed(0)), (3, 0), "the fourth was called for room");
        waiters.remove(0).0.leave_served();
        waiters[0].0.rejoin();
        assert_eq!(queue.owed(1), 1);
        drop(waiters.remove(1));
        assert_eq!((queue.owed(1), queue.waiting()), (1, 0), "the next has it; who was called for room does not");
    }

    #[test]
    fn who_calls_is_told_how_many_are_called() {
        let queue = Queue::default();
        let waiters = [wait(&queue, 0), wait(&queue, 0), wait(&queue, 0)];
        let room = 2;
        (0..3).for_each(|_| queue.call_first(|called| called < room));
        assert_eq!((woken(&waiters), queue.waiting()), (vec![0, 1], 1));
        let [first, second, third] = waiters;
        first.0.leave_served();
        queue.call_first(|called| called < room - 1);
        assert!(!third.1.0.load(Ordering::Acquire), "the second has the room that is left");
        drop(second);
        assert!(third.1.0.load(Ordering::Acquire));
    }

    #[test]
    fn who_was_called_before_others_and_finds_nothing_is_first() {
        let queue = Queue::default();
        let mut waiters: Vec<_> = [0, 1, 1].map(|worker| wait(&queue, worker)).into();
        assert!(queue.call_own(1));
        waiters[1].0.rejoin();
        assert!(waiters[1].0.is_first() && !waiters[0].0.is_first());
        queue.call_first(|_| true);
        queue.call_first(|_| true);
        assert_eq!(woken(&waiters), [0, 1], "the third still waits");
        assert_eq!(queue.waiting(), 1);
    }

    #[test]
    fn a_long_line_can_give_up_all_at_once() {
        let queue = Queue::default();
        let mut waiters: Vec<_> = (0..100_000).map(|_| queue.join(0, true, usize::MAX).unwrap()).collect();
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiters.iter_mut().all(|turn| Pin::new(turn).poll(&mut context).is_pending()));
        // From the back: a search from the front would take minutes.
        waiters.into_iter().rev().for_each(drop);
        assert!(!queue.is_used());
    }

    #[test]
    fn nobody_overtakes_who_was_called() {
        let queue = Queue::default();
        let called = wait(&queue, 0);
        queue.call_first(|_| true);
        assert!(queue.is_used() && queue.waiting() == 0);
        let late = queue.join(1, true, 100).unwrap();
        assert!(!late.is_first() && queue.join(1, true, 2).is_none());
        called.0.leave_served();
        assert!(late.is_first());
        drop(late);
        assert!(!queue.is_used());
    }
}
