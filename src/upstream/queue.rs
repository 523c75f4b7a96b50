//! Requests that wait for a connection because all servers of an upstream are at their limit: first come, first served.
//!
//! Pure: no clock. Workers share it, since the limit is the process's. A connection that becomes free is worth most on
//! the worker that holds it, since another one has to open its own: so that worker's first request may go before others, but not
//! for ever.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

/// How often the first may be passed over for one whose worker has the connection already.
const PASSED_MAX: u32 = 8;

/// How far behind the first such a one is looked for.
const LOOK_MAX: usize = 64;

/// The requests that wait at one upstream.
#[derive(Debug, Default)]
pub struct Queue {
    line: Mutex<VecDeque<Waiter>>,
    /// Its length, for who only asks whether anybody waits.
    length: AtomicUsize,
    tickets: AtomicU64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    worker: usize,
    passed: u32,
    waker: Waker,
}

impl Queue {
    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    /// Takes a place at the end; `None` where `most` wait already.
    pub fn join(&self, worker: usize, most: usize) -> Option<Turn<'_>> {
        let mut line = self.line.lock();
        if line.len() >= most {
            return None;
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        line.push_back(Waiter { ticket, worker, passed: 0, waker: Waker::noop().clone() });
        self.length.store(line.len(), Ordering::Release);
        Some(Turn { queue: self, worker, ticket, is_served: false })
    }

    /// A connection may be opened: whoever is first tries.
    pub fn wake_first(&self) {
        let first = {
            let mut line = self.line.lock();
            let first = line.pop_front();
            self.length.store(line.len(), Ordering::Release);
            first
        };
        if let Some(first) = first {
            first.waker.wake();
        }
    }

    /// This worker has a connection that is free: wakes a request of its own that waits, where it is that one's turn.
    pub fn wake_own(&self, worker: usize) -> bool {
        let own = {
            let mut line = self.line.lock();
            let own = line.iter().take(LOOK_MAX).position(|waiter| waiter.worker == worker);
            let own = match (own, line.front_mut()) {
                (Some(at), Some(first)) if at > 0 && first.passed < PASSED_MAX => {
                    first.passed += 1;
                    line.remove(at)
                }
                (Some(0), _) => line.pop_front(),
                _ => None,
            };
            self.length.store(line.len(), Ordering::Release);
            own
        };
        own.map(|own| own.waker.wake()).is_some()
    }
}

/// A place in the line; given up when dropped.
#[derive(Debug)]
pub struct Turn<'q> {
    queue: &'q Queue,
    worker: usize,
    ticket: u64,
    is_served: bool,
}

impl Turn<'_> {
    /// Leaves with what was waited for.
    pub fn leave_served(mut self) {
        self.is_served = true;
    }

    /// Whether nobody waits for longer.
    pub fn is_first(&self) -> bool {
        self.queue.line.lock().front().is_some_and(|first| first.ticket == self.ticket)
    }

    /// Goes back to the front: what it was woken for had gone.
    pub fn rejoin(&mut self) {
        let mut line = self.queue.line.lock();
        if line.iter().all(|waiter| waiter.ticket != self.ticket) {
            let waker = Waker::noop().clone();
            line.push_front(Waiter { ticket: self.ticket, worker: self.worker, passed: 0, waker });
            self.queue.length.store(line.len(), Ordering::Release);
        }
    }
}

impl Future for Turn<'_> {
    type Output = ();

    /// Ready once it has been woken.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut line = self.queue.line.lock();
        match line.iter_mut().find(|waiter| waiter.ticket == self.ticket) {
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
        let was_woken = {
            let mut line = self.queue.line.lock();
            let before = line.len();
            line.retain(|waiter| waiter.ticket != self.ticket);
            self.queue.length.store(line.len(), Ordering::Release);
            line.len() == before
        };
        if was_woken && !self.is_served {
            // It gives up at the moment that it was called.
            self.queue.wake_first();
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
        let mut turn = queue.join(worker, 100).unwrap();
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
        assert!(queue.join(0, 3).is_none());
        queue.wake_first();
        queue.wake_first();
        assert_eq!((woken(&waiters), queue.waiting()), (vec![0, 1], 1));
        drop(waiters);
        assert_eq!(queue.waiting(), 0);
        queue.wake_first();
    }

    #[test]
    fn a_worker_s_own_request_goes_first_but_not_for_ever() {
        let queue = Queue::default();
        let mut waiters = vec![wait(&queue, 0)];
        waiters.extend((0..10).map(|_| wait(&queue, 1)));
        assert!((0..8).all(|_| queue.wake_own(1)));
        assert!(!queue.wake_own(1), "the first has been passed over often enough");
        assert_eq!(woken(&waiters), (1..=8).collect::<Vec<_>>());
        assert!(queue.wake_own(0) && waiters[0].1.0.load(Ordering::Acquire));
        assert!(queue.wake_own(1) && !queue.wake_own(0));
    }

    #[test]
    fn who_is_called_and_gives_up_calls_the_next() {
        let queue = Queue::default();
        let (first, second) = (wait(&queue, 0), wait(&queue, 1));
        queue.wake_first();
        drop(first);
        assert!(second.1.0.load(Ordering::Acquire));
        let third = wait(&queue, 1);
        second.0.leave_served();
        assert!(!third.1.0.load(Ordering::Acquire));
    }

    #[test]
    fn who_finds_nothing_is_first_again() {
        let queue = Queue::default();
        let mut waiters = [wait(&queue, 0), wait(&queue, 0)];
        queue.wake_first();
        waiters[0].0.rejoin();
        assert!(waiters[0].0.is_first() && !waiters[1].0.is_first());
        assert_eq!(queue.waiting(), 2);
    }
}
