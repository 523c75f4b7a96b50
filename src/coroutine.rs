//! A future that is made once and used again and again: given something it comes to a result, and waits for the next.
//!
//! What is needed for a while only, and is large or costs an allocation, so serves many in turn. Pure: it runs what it is
//! made of, and waits for nothing else.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Makes an `O` of each `I`, one after the other.
pub struct Coroutine<I, O> {
    run: Pin<Box<dyn Future<Output = Infallible>>>,
    desk: Rc<Cell<Step<I, O>>>,
}

/// How far it has come with what it was given.
enum Step<I, O> {
    Nothing,
    Given(I),
    UnderWay,
    Done(O),
}

impl<I: 'static, O: 'static> Coroutine<I, O> {
    /// One that does this, and has nothing to do yet.
    pub fn new(work: impl AsyncFnMut(I) -> O + 'static) -> Coroutine<I, O> {
        let desk = Rc::new(Cell::new(Step::Nothing));
        Coroutine { run: Box::pin(repeat(work, desk.clone())), desk }
    }

    /// Whether it was given something of which the result was not taken yet.
    pub fn is_under_way(&self) -> bool {
        let step = self.desk.replace(Step::Nothing);
        let is_under_way = !matches!(step, Step::Nothing);
        self.desk.set(step);
        is_under_way
    }

    /// Gives it something, which takes the place of what it was given before and has not begun. It begins when polled.
    pub fn give(&self, input: I) {
        self.desk.set(Step::Given(input));
    }

    /// Goes on with it. Gives the result where there is one now.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<O> {
        let Poll::Pending = self.run.as_mut().poll(context);
        match self.desk.replace(Step::Nothing) {
            Step::Done(output) => Poll::Ready(output),
            step => {
                self.desk.set(step);
                Poll::Pending
            }
        }
    }

    /// Goes on with it, without anybody who waits. True where there is a result, which stays to be taken.
    pub fn has_come(&mut self) -> bool {
        match self.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => {
                self.desk.set(Step::Done(output));
                true
            }
            Poll::Pending => false,
        }
    }

    /// Waits for the result. Who gives up waiting has lost nothing: the work goes on with the next poll.
    pub async fn result(&mut self) -> O {
        poll_fn(|context| self.poll(context)).await
    }
}

async fn repeat<I, O>(mut work: impl AsyncFnMut(I) -> O, desk: Rc<Cell<Step<I, O>>>) -> Infallible {
    loop {
        let given = poll_fn(|_| match desk.replace(Step::Nothing) {
            Step::Given(input) => Poll::Ready(input),
            step => {
                desk.set(step);
                Poll::Pending
            }
        });
        let input = given.await;
        desk.set(Step::UnderWay);
        let output = work(input).await;
        desk.set(Step::Done(output));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    /// Ends when polled for the second time.
    async fn wait_once() {
        let mut has_waited = false;
        poll_fn(|_| match std::mem::replace(&mut has_waited, true) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    fn polled<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_future_serves_one_after_the_other_and_remembers() {
        let mut sum = 0;
        let mut adding = Coroutine::new(async move |next: u32| {
            wait_once().await;
            sum += next;
            sum
        });
        assert!(!adding.is_under_way() && !adding.has_come());
        for (next, expected) in [(1, 1), (5, 6), (10, 16)] {
            adding.give(next);
            assert!(adding.is_under_way());
            assert_eq!(polled(adding.result()), Poll::Pending);
            assert!(adding.is_under_way(), "who gave up waiting has lost nothing");
            assert!(adding.has_come() && adding.has_come());
            assert_eq!(polled(adding.result()), Poll::Ready(expected));
            assert!(!adding.is_under_way());
        }
    }

    #[test]
    fn what_is_under_way_ends_with_its_owner() {
        let guard = Rc::new(());
        let mut holding = Coroutine::new(async |held: Rc<()>| {
            wait_once().await;
            drop(held);
        });
        holding.give(guard.clone());
        assert!(!holding.has_come());
        assert_eq!(Rc::strong_count(&guard), 2);
        drop(holding);
        assert_eq!(Rc::strong_count(&guard), 1);
    }
}
