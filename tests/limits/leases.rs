use crate::support::client::Client;
use crate::support::fields::remaining;
use crate::support::redis::Redis;
use crate::support::store::{Store, decisions, is_leased, limit_with, tokens};
use crate::support::until;

const KEY: &str = "rate_limit:{-}:-:x";
const BURST: u64 = 10_000;

/// Connections, so that both workers have some, mostly.
const CLIENTS: usize = 8;

/// Times that a test tries for a moment in which the machine does not pause for so long that what is on lease is lost.
const TRIES: usize = 5;

fn store_with_lease(lines: &str) -> (Store, String) {
    (Store::redis(), limit_with("x", "", BURST, &format!("lease = 50\n{lines}")))
}

/// So many requests over several connections; gives how many passed.
fn ask(gateway: std::net::SocketAddr, requests: usize) -> i64 {
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(gateway)).collect();
    let each = requests / CLIENTS;
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(each));
    }
    let answers = clients.iter_mut().flat_map(|client| (0..each).map(|_| client.response()).collect::<Vec<_>>());
    answers.filter(|answer| answer.status == 200).count() as i64
}

/// How often Redis was asked to run a command.
fn calls(redis: &Redis, command: &str) -> usize {
    let text: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls="))?.split(',').next());
    line.map_or(0, |calls| calls.parse().unwrap())
}

#[test]
fn a_hot_bucket_costs_far_fewer_questions_than_requests() {
    let (store, rule) = store_with_lease("");
    let gateway = store.gateway(&rule);
    assert_eq!(ask(gateway.address, 2000), 2000);
    let Store::Redis(redis) = &store else { unreachable!("it is one") };
    let questions = calls(redis, "evalsha") + calls(redis, "eval");
    assert!(questions <= 1000, "{questions} questions for 2000 requests");
    let leased = gateway.metric("rateguard_leased_total");
    assert!(leased >= 1000.0, "{leased} leased");
    assert_eq!(gateway.metric(&decisions("x", "allow")), 2000.0);
}

#[test]
fn without_a_lease_each_request_is_a_question() {
    let (store, rule) = (Store::redis(), limit_with("x", "", BURST, ""));
    let gateway = store.gateway(&rule);
    assert_eq!(ask(gateway.address, 400), 400);
    let Store::Redis(redis) = &store else { unreachable!("it is one") };
    assert_eq!((calls(redis, "evalsha"), gateway.metric("rateguard_leased_total")), (400, 0.0));
}

#[test]
fn what_is_unspent_comes_back_when_nobody_asks() {
    let (store, rule) = store_with_lease("");
    let gateway = store.gateway(&rule);
    let mut passed = 0;
    let all_came_back = (0..TRIES).any(|_| {
        passed += ask(gateway.address, 200);
        until("nothing is on lease", || !is_leased(&store, KEY));
        let left = tokens(&store, KEY);
        let lost = BURST as i64 - passed - left;
        assert!(lost >= 0, "{passed} passed and {left} are left");
        passed += lost;
        lost == 0
    });
    assert!(all_came_back && gateway.metric("rateguard_leased_total") > 0.0);
}

#[test]
fn what_is_unspent_comes_back_when_the_gateway_stops() {
    let (store, rule) = store_with_lease("");
    let mut passed = 0;
    let all_came_back = (0..TRIES).any(|_| {
        let mut gateway = store.gateway(&rule);
        passed += ask(gateway.address, 200);
        gateway.terminate();
        assert!(gateway.wait().success());
        let left = tokens(&store, KEY);
        let lost = BURST as i64 - passed - left;
        assert!(lost >= 0, "{passed} passed and {left} are left");
        passed += lost;
        lost == 0
    });
    assert!(all_came_back);
}

#[test]
fn what_is_left_is_told_from_the_lease_too() {
    let (store, rule) = store_with_lease("");
    let gateway = store.gateway(&rule);
    let mut client = Client::connect(gateway.address);
    for sent in 1..=300 {
        let left = remaining(&client.get("/", ""), "x");
        // Nobody else asks: a lease and what the bucket held after it are all there is.
        assert!((0..=BURST as i64 - sent).contains(&left), "{left} after {sent}");
    }
    assert!(gateway.metric("rateguard_leased_total") > 0.0);
}

#[test]
fn a_shadow_limit_is_leased_and_never_denies() {
    let store = Store::redis();
    let rule = limit_with("x", "", 100, "lease = 20\nmode = \"shadow\"");
    let gateway = store.gateway(&rule);
    assert_eq!(ask(gateway.address, 400), 400);
    let [allowed, denied] = ["allow", "shadow_deny"].map(|outcome| gateway.metric(&decisions("x", outcome)));
    assert_eq!(allowed + denied, 400.0);
    assert!(allowed <= 100.0 && gateway.metric("rateguard_leased_total") > 0.0, "{allowed} allowed");
}

#[test]
fn what_is_on_lease_is_spent_while_redis_hangs_and_no_more() {
    let (store, rule) = store_with_lease("on_failure = \"closed\"");
    let gateway = store.gateway(&rule);
    let mut client = Client::connect(gateway.address);
    let mut passed = 0;
    let leased = || gateway.metric("rateguard_leased_total");
    until("something is leased", || {
        passed += i64::from(client.get("/", "").status == 200);
        leased() > 0.0
    });
    let Store::Redis(redis) = &store else { unreachable!("it is one") };
    redis.suspend();
    let before = leased();
    let answers: Vec<u16> = (0..40).map(|_| client.get("/", "").status).collect();
    redis.resume();
    let spent = answers.iter().filter(|status| **status == 200).count();
    assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
    assert_eq!(leased() - before, spent as f64);
}
