//! Replies and who they belong to, deadlines, and what the breaker is told.

use super::*;
use crate::redis::breaker::FAILURES_MAX;
use crate::redis::error::ServerError;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

const DEADLINE: Duration = Duration::from_millis(20);

struct Deaf;

impl Observer for Deaf {
    fn connected(&self) {}
    fn disconnected(&self, _: &str) {}
    fn server_error(&self, _: &str) {}
    fn breaker(&self, _: Change) {}
    fn retired(&self) {}
    fn writes(&self, _: u64) {}
}

fn poll<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn post(pipeline: &Pipeline, now: Micros) -> bool {
    let before = pipeline.out.borrow().len();
    pipeline.post(now, |out| out.push(b'p'));
    pipeline.out.borrow().len() > before
}

#[test]
fn a_posted_command_takes_its_own_reply() {
    let pipeline = Rc::new(Pipeline::new(DEADLINE, Box::new(Deaf)));
    assert!(!post(&pipeline, Micros(0)), "there is no connection");
    pipeline.opened(Vec::new(), Micros(0));
    assert!(post(&pipeline, Micros(0)));
    let mut call =
        Box::pin(pipeline.ask(Micros(0), Duration::from_micros(9), false, |_, _, out| out.push(b'c')).ok().unwrap());
    assert!(poll(call.as_mut()).is_pending());
    assert_eq!(*pipeline.out.borrow(), b"pc");
    pipeline.answer(Reply::Other, Micros(1)).unwrap();
    assert!(poll(call.as_mut()).is_pending());
    let own = Reply::Numbers(Default::default());
    pipeline.answer(own.clone(), Micros(1)).unwrap();
    assert_eq!(poll(call.as_mut()).map_ok(|answered| answered.reply), Poll::Ready(Ok(own)));
    drop(call);
    assert!(pipeline.slots.borrow().is_empty());
}

#[test]
fn nothing_is_posted_while_the_breaker_is_open_and_posts_do_not_open_it() {
    let pipeline = Rc::new(Pipeline::new(DEADLINE, Box::new(Deaf)));
    pipeline.opened(Vec::new(), Micros(0));
    let late = Micros(0).after(DEADLINE * 2);
    (0..2 * FAILURES_MAX).for_each(|_| assert!(post(&pipeline, Micros(0))));
    pipeline.expire(late, || false);
    assert!(post(&pipeline, late));
    for _ in 0..FAILURES_MAX {
        let mut call = pin!(pipeline.ask(Micros(0), Duration::from_micros(1), false, |_, _, _| {}).ok().unwrap());
        assert!(poll(call.as_mut()).is_pending());
        assert_eq!(pipeline.expire(late, || false), Some(late.after(RESUMED)));
        pipeline.expire(late.after(RESUMED), || false);
    }
    assert!(!post(&pipeline, late) && !post(&pipeline, late.after(DEADLINE * 100)));
}

/// Asks at the time 0, and gives the question with the pipeline.
fn asked() -> (Rc<Pipeline>, Pin<Box<Answer>>) {
    let pipeline = Rc::new(Pipeline::new(DEADLINE, Box::new(Deaf)));
    pipeline.opened(Vec::new(), Micros(0));
    let answer = pipeline.ask(Micros(0), DEADLINE, false, |_, _, _| {}).ok().unwrap();
    (pipeline, Box::pin(answer))
}

#[test]
fn who_looks_in_time_ends_a_wait_at_its_deadline() {
    let (pipeline, mut call) = asked();
    let deadline = Micros(0).after(DEADLINE);
    assert_eq!(pipeline.expire(Micros(0), || false), Some(deadline.before(EVE)));
    assert_eq!(pipeline.expire(deadline.before(EVE), || false), Some(deadline));
    assert!(poll(call.as_mut()).is_pending());
    assert_eq!(pipeline.expire(deadline, || false), None);
    assert_eq!(poll(call.as_mut()), Poll::Ready(Err(Fault::Timeout)));
}

#[test]
fn who_looks_late_leaves_the_server_some_time_but_once() {
    let (pipeline, mut call) = asked();
    let late = Micros(0).after(DEADLINE * 10);
    let resumed = late.after(RESUMED);
    assert_eq!(pipeline.expire(late, || false), Some(resumed));
    let later = resumed.after(DEADLINE);
    assert_eq!(pipeline.expire(later, || true), Some(later.after(TICK)), "replies wait to be read");
    // What comes now has come too late.
    pipeline.has_read();
    assert_eq!(pipeline.expire(later, || true), None);
    assert_eq!(poll(call.as_mut()), Poll::Ready(Err(Fault::Timeout)));
}

#[test]
fn how_long_a_command_waited_to_be_written_is_no_fault_of_the_server() {
    let (pipeline, mut call) = asked();
    assert!(poll(pin!(pipeline.batch(Vec::new()))).is_pending(), "an empty command");
    pipeline.out.borrow_mut().push(b'c');
    assert!(poll(pin!(pipeline.batch(Vec::new()))).is_ready());
    let written = Micros(0).after(DEADLINE * 3);
    let unsent = pipeline.ask(written, DEADLINE, false, |_, _, _| {}).ok().unwrap();
    pipeline.written(written.after(EVE));
    let deadline = written.after(EVE).after(DEADLINE);
    assert_eq!(pipeline.expire(written.after(EVE), || false), Some(written.after(DEADLINE).before(EVE)));
    drop(unsent);
    assert_eq!(pipeline.expire(written.after(EVE), || false), Some(deadline.before(EVE)));
    assert!(poll(call.as_mut()).is_pending());
}

#[test]
fn a_long_queue_is_one_failure_where_the_server_answers_and_many_where_it_is_silent() {
    for is_silent in [false, true] {
        let pipeline = Rc::new(Pipeline::new(DEADLINE, Box::new(Deaf)));
        pipeline.opened(Vec::new(), Micros(0));
        let ask = |_| pipeline.ask(Micros(0), DEADLINE, false, |_, _, _| {}).ok().unwrap();
        let calls: Vec<Answer> = (0..10).map(ask).collect();
        if !is_silent {
            pipeline.answer(Reply::Other, Micros(0).after(DEADLINE / 2)).unwrap();
        }
        let deadline = Micros(0).after(DEADLINE);
        [deadline.before(EVE), deadline]
            .into_iter()
            .for_each(|now| assert!(pipeline.expire(now, || false) != Some(now)));
        assert_eq!(pipeline.is_broken(), is_silent);
        drop(calls);
    }
}

#[test]
fn a_reply_counts_that_comes_before_its_asker_has_heard_of_the_fault() {
    let (pipeline, mut call) = asked();
    for times in [10, 20] {
        pipeline.expire(Micros(0).after(DEADLINE * times), || false);
    }
    pipeline.answer(Reply::Other, Micros(0).after(DEADLINE * 20)).unwrap();
    assert_eq!(poll(call.as_mut()).map_ok(|answered| answered.reply), Poll::Ready(Ok(Reply::Other)));
}

#[test]
fn a_question_that_follows_has_what_is_left_and_does_not_pay_for_what_the_gateway_took() {
    let written = Micros(0).after(DEADLINE * 3);
    let eve = DEADLINE - EVE;
    for (looked, took, left) in [
        (DEADLINE / 4, DEADLINE / 4, DEADLINE * 3 / 4),
        (DEADLINE / 4, DEADLINE * 9, DEADLINE),
        (eve, DEADLINE - TICK / 2, TICK),
        (eve, DEADLINE * 9, TICK),
        (eve + TICK * 7, eve + TICK * 8, RESUMED - TICK),
    ] {
        let (pipeline, mut call) = asked();
        pipeline.out.borrow_mut().push(b'c');
        assert!(poll(pin!(pipeline.batch(Vec::new()))).is_ready());
        pipeline.written(written);
        pipeline.expire(written.after(looked), || true);
        pipeline.answer(Reply::Other, written.after(took)).unwrap();
        assert_eq!(poll(call.as_mut()).map_ok(|answered| answered.left), Poll::Ready(Ok(left)), "{looked:?} {took:?}");
    }
}

#[test]
fn replies_that_nobody_waits_for_say_nothing_of_decisions() {
    let pipeline = Rc::new(Pipeline::new(DEADLINE, Box::new(Deaf)));
    pipeline.opened(Vec::new(), Micros(0));
    for _ in 0..2 * FAILURES_MAX {
        assert!(post(&pipeline, Micros(0)));
        pipeline.answer(Reply::Error(ServerError::NoPermission), Micros(1)).unwrap();
    }
    assert!(!pipeline.is_broken());
    for _ in 0..FAILURES_MAX {
        let asked = pipeline.ask(Micros(0), Duration::from_micros(9), true, |_, _, _| {}).ok().unwrap();
        pipeline.answer(Reply::Other, Micros(1)).unwrap();
        pipeline.answer(Reply::Error(ServerError::OutOfMemory), Micros(1)).unwrap();
        drop(asked);
    }
    assert!(pipeline.is_broken(), "ASKING is always answered well");
}

#[test]
fn all_who_wait_for_the_first_connection_are_woken() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let pipeline = Pipeline::new(DEADLINE, Box::new(Deaf));
    let woken = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(woken.clone());
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(pipeline.tried())).collect();
    for one in &mut waiting {
        assert!(one.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    pipeline.opened(Vec::new(), Micros(0));
    assert_eq!(woken.0.load(Ordering::Relaxed), 5);
    assert!(waiting.iter_mut().all(|one| poll(one.as_mut()).is_ready()));
}
