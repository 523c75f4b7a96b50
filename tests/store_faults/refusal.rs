use super::{ask_as_new_user, assert_requests_pass_unlimited, errors, gateway, until_limits_hold};
use crate::support::client::Client;
use crate::support::fields::{rate_limit, remaining};
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::store::{decisions, limit, limit_with};
use crate::support::until;

pub const DEADLINE: &str = "deadline = \"5s\"";

pub fn connected(redis: &Redis, store: &str, rest: &str) -> Gateway {
    let gateway = gateway(&redis.url(), store, rest);
    gateway.until_store_connected();
    gateway
}

pub fn tell(redis: &Redis, words: &[&str]) {
    redis::cmd(words[0]).arg(&words[1..]).exec(&mut redis.connection()).unwrap();
}

/// Asks meanwhile: after another error of the same second it is told only when it comes again.
pub fn until_error_is_logged(gateway: &Gateway, error: &str) {
    until("the error is logged", || {
        ask_as_new_user(gateway.address);
        let lines = gateway.log_of("the store answered with an error");
        lines.iter().any(|line| line["error"].as_str().unwrap().contains(error))
    });
}

/// The limits hold, then Redis refuses, then it does not any more.
pub fn passes_while(gateway: &Gateway, refuse: impl FnOnce(), stop: impl FnOnce(), error: &str, kind: &str) {
    until_limits_hold(gateway);
    let before = [gateway.metric(&decisions("x", "fail_open")), errors(gateway, kind)];
    refuse();
    assert_requests_pass_unlimited(gateway);
    assert!(gateway.metric(&decisions("x", "fail_open")) >= before[0] + 20.0);
    assert!(errors(gateway, kind) > before[1], "{error} is not counted as {kind}");
    until_error_is_logged(gateway, error);
    stop();
    until_limits_hold(gateway);
}

/// As `passes_while`, with one command that makes Redis refuse and one that ends it.
fn passes_while_redis_refuses(refuse: &[&str], stop: &[&str], error: &str, kind: &str) -> Gateway {
    let redis = Redis::start();
    let gateway = connected(&redis, DEADLINE, &limit("x", "\"user\"", 2));
    passes_while(&gateway, || tell(&redis, refuse), || tell(&redis, stop), error, kind);
    gateway
}

#[test]
fn requests_pass_while_redis_is_out_of_memory() {
    let (refuse, stop) = (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]);
    let gateway = passes_while_redis_refuses(&refuse, &stop, "OOM", "out_of_memory");
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
    let changes = |message: &str| gateway.log_of(message).len();
    let opened = changes("the store keeps failing; decisions do not wait for it");
    assert!((1..=2).contains(&opened), "told once for each worker that met it: {opened}");
    until("the end is told too", || changes("the store answers again") == opened);
}

#[test]
fn requests_pass_while_redis_is_a_replica() {
    let nobody = crate::support::free_port().to_string();
    let master = ["REPLICAOF", "127.0.0.1", nobody.as_str()];
    let gateway = passes_while_redis_refuses(&master, &["REPLICAOF", "NO", "ONE"], "READONLY", "read_only");
    assert!(gateway.log_of("store connected").len() > 2, "its name may lead to another server now");
}

#[test]
fn requests_pass_while_a_primary_has_too_few_replicas() {
    let [refuse, stop] = ["1", "0"].map(|replicas| ["CONFIG", "SET", "min-replicas-to-write", replicas]);
    let gateway = passes_while_redis_refuses(&refuse, &stop, "NOREPLICAS", "primary_down");
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
}

#[test]
fn each_refusal_is_counted_once() {
    let redis = Redis::start();
    let gateway = connected(&redis, DEADLINE, &limit("x", "", 2));
    tell(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    let mut client = Client::connect(gateway.address);
    for _ in 0..5 {
        assert_eq!(client.get("/", "").status, 200);
    }
    assert_eq!(gateway.metric(&decisions("x", "fail_open")), 5.0);
    assert_eq!(errors(&gateway, "out_of_memory") + errors(&gateway, "breaker"), 5.0);
    assert_eq!(errors(&gateway, "out_of_memory"), 3.0, "after three in a row Redis is not asked");
}

/// A probe asks for somebody's sake, and takes nothing from them.
#[test]
fn probes_charge_nothing() {
    let redis = Redis::start();
    let gateway = connected(&redis, DEADLINE, &limit("x", "", 1000));
    let mut client = Client::connect(gateway.address);
    assert_eq!(remaining(&client.get("/", ""), "x"), 999);
    tell(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    until("the breaker is open", || {
        assert_eq!(client.get("/", "").status, 200);
        gateway.metric("rateguard_store_breakers_open") > 0.0
    });
    // Some of these go as probes.
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(600) {
        assert_eq!(client.get("/", "").status, 200);
    }
    tell(&redis, &["CONFIG", "SET", "maxmemory", "0"]);
    until("limits hold", || !rate_limit(&client.get("/", "")).is_empty());
    let left = remaining(&client.get("/", ""), "x");
    assert_eq!(left, 997, "two requests were charged since");
}

/// Nothing is half charged: what Redis refuses, it refuses before the first write.
#[test]
fn a_refused_request_charges_none_of_its_limits() {
    let redis = Redis::start();
    let gateway = connected(&redis, DEADLINE, &(limit("a", "", 9) + &limit("b", "", 9)));
    let mut client = Client::connect(gateway.address);
    assert_eq!(remaining(&client.get("/", ""), "a"), 8);
    tell(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(rate_limit(&client.get("/", "")), []);
    tell(&redis, &["CONFIG", "SET", "maxmemory", "0"]);
    let response = client.get("/", "");
    assert_eq!((remaining(&response, "a"), remaining(&response, "b")), (7, 7));
}

/// A key that is not ours fails its limits by their mode, and is not touched; other limits do not care.
fn a_foreign_key_is_left_alone(store: &str, status: u16) {
    let redis = Redis::start();
    let rules =
        limit_with("x", "", 2, "match = { path = \"/x\" }") + &limit_with("y", "", 2, "match = { path = \"/y\" }");
    let gateway = connected(&redis, &format!("{DEADLINE}\n{store}"), &rules);
    let mut client = Client::connect(gateway.address);
    for foreign in [["LPUSH", "rate_limit:{-}:-:x", "mine"], ["SET", "rate_limit:{-}:-:x", "not a bucket"]] {
        tell(&redis, &foreign);
        let dump = || -> Vec<u8> { redis::cmd("DUMP").arg(foreign[1]).query(&mut redis.connection()).unwrap() };
        let before = dump();
        for _ in 0..3 {
            let response = client.get("/x", "");
            assert_eq!((response.status, rate_limit(&response)), (status, Vec::new()));
        }
        assert_eq!(dump(), before);
        tell(&redis, &["DEL", foreign[1]]);
    }
    until_error_is_logged(&gateway, "WRONGTYPE");
    assert_eq!([(); 3].map(|()| client.get("/y", "").status), [200, 200, 429]);
    assert_eq!([(); 3].map(|()| client.get("/x", "").status), [200, 200, 429]);
}

#[test]
fn a_foreign_key_is_left_alone_where_limits_are_open() {
    a_foreign_key_is_left_alone("on_failure = \"open\"", 200);
}

#[test]
fn a_foreign_key_is_left_alone_where_limits_are_closed() {
    a_foreign_key_is_left_alone("on_failure = \"closed\"", 503);
}
