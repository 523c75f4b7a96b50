use super::pulse::longest_wait_since;
use super::{
    HANDS, ask_as_new_user, assert_not_slow, assert_requests_pass_unlimited, errors, gateway, under_load,
    until_limits_hold,
};
use crate::support::client::Client;
use crate::support::fields::rate_limit;
use crate::support::gateway::{Gateway, config};
use crate::support::redis::Redis;
use crate::support::store::{api_key, backend, decisions, limit};
use crate::support::{PATIENCE, signal, suspend, until};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Longer than a stalled connection is kept and a new one is tried.
const HANG: Duration = Duration::from_millis(2500);

#[test]
fn no_request_waits_for_a_redis_that_hangs() {
    let redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 100));
    gateway.until_store_connected();
    let start = Instant::now();
    longest_wait_since(start);
    let answers = under_load(gateway.address, 4, || {
        until("requests are limited", || gateway.metric(&decisions("x", "allow")) >= 20.0);
        redis.suspend();
        std::thread::sleep(HANG);
        redis.resume();
    });
    assert!(answers.iter().all(|(answer, _)| matches!(answer.status, 200 | 429)), "{answers:?}");
    assert_not_slow(answers.iter().map(|(_, took)| *took).max().unwrap(), start);
    assert!(gateway.metric(&decisions("x", "fail_open")) > 0.0);
    assert!(errors(&gateway, "timeout") > 0.0 && errors(&gateway, "breaker") > 0.0);
}

/// After a few that met the hang nobody waits any more; and within a second of the end of the hang limits hold again.
#[test]
fn a_hang_costs_a_handful_of_requests_and_no_more() {
    let redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 100));
    gateway.until_store_connected();
    let mut client = Client::connect(gateway.address);
    assert!(!rate_limit(&client.get("/", "")).is_empty());
    redis.suspend();
    let began = Instant::now();
    while began.elapsed() < HANG {
        assert_eq!(client.get("/", "").status, 200);
    }
    // One connection is one worker's.
    let waited = errors(&gateway, "timeout");
    assert!((1.0..=6.0).contains(&waited), "{waited} requests waited for their deadline");
    redis.resume();
    let back = Instant::now();
    until("limits hold again", || !rate_limit(&client.get("/", "")).is_empty());
    let (took, excuse) = (back.elapsed(), HANDS * longest_wait_since(back));
    assert!(took < Duration::from_secs(1) + excuse, "recovery took {took:?}");
    until("the breaker is closed", || gateway.metric("rateguard_store_breakers_open") == 0.0);
}

/// The first to meet the hang waits for its deadline. Who comes later must not wait for the end of the connection.
#[test]
fn requests_one_after_the_other_do_not_wait_for_a_redis_that_hangs() {
    let redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    redis.suspend();
    assert_requests_pass_unlimited(&gateway);
    redis.resume();
    until_limits_hold(&gateway);
}

/// A frozen container, a throttled one, a machine that was paused: the answers are there, only nobody has read them.
#[test]
fn a_pause_of_the_gateway_is_no_fault_of_the_store() {
    const DEADLINE: Duration = Duration::from_millis(250);
    const ROUNDS_MAX: usize = 6;
    let redis = Redis::start();
    let store = format!("deadline = \"{DEADLINE:?}\"");
    let gateway = gateway(&redis.url(), &store, &limit("x", "\"user\"", 100));
    gateway.until_store_connected();
    longest_wait_since(Instant::now());
    let faults = || {
        (
            errors(&gateway, "timeout"),
            errors(&gateway, "breaker"),
            gateway.log_of("store lost; trying to reconnect").len(),
        )
    };
    for _ in 0..ROUNDS_MAX {
        let (start, before) = (Instant::now(), faults());
        let answers = under_load(gateway.address, 32, || {
            // The last is longer than a connection may owe an answer.
            for pause in [DEADLINE * 2, DEADLINE * 2, DEADLINE * 2, DEADLINE + Duration::from_millis(1_100)] {
                std::thread::sleep(DEADLINE / 5);
                suspend(gateway.process());
                std::thread::sleep(pause);
                signal(gateway.process(), Signal::CONT);
            }
        });
        if longest_wait_since(start) >= DEADLINE / 2 {
            // The machine paused by itself, and Redis with it.
            continue;
        }
        let unlimited = answers.iter().filter(|(answer, _)| rate_limit(answer).is_empty()).count();
        assert_eq!((unlimited, faults()), (0, before), "of {}", answers.len());
        return;
    }
    panic!("the machine was never calm");
}

/// What Redis answered in time waits behind hundreds of requests that came at once, for longer than the deadline.
#[test]
fn a_gateway_that_has_too_much_to_do_does_not_blame_the_store() {
    const CLIENTS: usize = 400;
    const ROUNDS_MAX: usize = 60;
    let redis = Redis::start();
    let rest = format!("[store]\nurl = \"{}\"\n{}", redis.url(), limit("x", "\"user\"", 100));
    let gateway = Gateway::start(&config("", &[backend()], &rest).replace("workers = 2", "workers = 1"));
    until("the worker is connected to the store", || !gateway.log_of("store connected").is_empty());
    longest_wait_since(Instant::now());
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(gateway.address)).collect();
    for round in 0..ROUNDS_MAX {
        let start = Instant::now();
        suspend(gateway.process());
        for (number, client) in clients.iter_mut().enumerate() {
            let fields = api_key(&format!("{round}-{number}"));
            client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
        }
        signal(gateway.process(), Signal::CONT);
        let answers: Vec<_> = clients.iter_mut().map(Client::response).collect();
        if longest_wait_since(start) >= Duration::from_millis(10) {
            // Redis may have waited for a processor, too.
            continue;
        }
        let unlimited = answers.iter().filter(|answer| rate_limit(answer).is_empty()).count();
        assert_eq!((unlimited, errors(&gateway, "breaker")), (0, 0.0));
        return;
    }
    panic!("the machine was never calm");
}

#[test]
fn where_limits_are_closed_a_redis_that_hangs_is_told_as_such() {
    let redis = Redis::start();
    let gateway = gateway(&redis.url(), "on_failure = \"closed\"", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    redis.suspend();
    let refused = Client::connect(gateway.address).get("/", "");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["detail"], "the store did not answer in time");
    redis.resume();
    // What was given up may be charged yet, so each attempt is by somebody else.
    until("requests pass again", || ask_as_new_user(gateway.address).status == 200);
}

const USERS: i64 = 8;

/// Every user's remaining count lies in a range that no other's can reach, so that a reply which went to the wrong
/// request shows at once; and it only ever falls.
#[test]
fn late_replies_never_reach_another_request() {
    let redis = Redis::start();
    let plan = |user: i64| format!("p{user} = {{ burst = {} }}", 10_000 * user);
    let plans: Vec<String> = (1..=USERS).map(plan).collect();
    let consumer =
        |user: i64| format!("[[consumers]]\nname = \"u{user}\"\napi_key = \"k{user}\"\nplan = \"p{user}\"\n");
    let consumers: String = (1..=USERS).map(consumer).collect();
    let rule = limit("x", "\"user\"", 1) + &format!("plans = {{ {} }}\n", plans.join(", "));
    let gateway = gateway(&redis.url(), "", &format!("{consumers}{rule}"));
    gateway.until_store_connected();
    let address = gateway.address;
    let limited: usize = std::thread::scope(|scope| {
        let users: Vec<_> = (1..=USERS).map(|user| scope.spawn(move || falls(address, user))).collect();
        while users.iter().any(|user| !user.is_finished()) {
            redis.suspend();
            std::thread::sleep(Duration::from_millis(60));
            redis.resume();
            std::thread::sleep(Duration::from_millis(40));
        }
        users.into_iter().map(|user| user.join().unwrap()).sum()
    });
    assert!(limited > 100, "{limited} replies were in time");
    assert!(errors(&gateway, "timeout") > 5.0 && errors(&gateway, "timeout") + errors(&gateway, "breaker") > 20.0);
    assert_eq!(errors(&gateway, "protocol"), 0.0);
}

/// Asks as this user until enough replies were in time and enough were not; gives how many were.
fn falls(address: SocketAddr, user: i64) -> usize {
    let mut client = Client::connect(address);
    let fields = api_key(&format!("k{user}"));
    let (mut last, mut sent, mut limited, mut late) = (10_000 * user, 0, 0, 0);
    let start = Instant::now();
    while (limited < 20 || late < 5) && start.elapsed() < PATIENCE {
        let response = client.get("/", &fields);
        assert_eq!(response.status, 200);
        sent += 1;
        let Some(left) = rate_limit(&response).first().map(|left| left.remaining) else {
            late += 1;
            continue;
        };
        limited += 1;
        // Each request was charged once or, where it was given up, perhaps.
        assert!(left < last && left >= 10_000 * user - sent, "user {user} has {left} left after {last}");
        last = left;
    }
    limited
}
