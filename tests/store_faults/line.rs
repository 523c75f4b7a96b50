use super::{ask_as_new_user, assert_not_slow, assert_requests_pass_unlimited, errors, gateway, until_limits_hold};
use crate::support::client::Client;
use crate::support::fields::rate_limit;
use crate::support::gateway::Gateway;
use crate::support::line::Line;
use crate::support::redis::Redis;
use crate::support::store::limit;
use crate::support::until;
use std::time::{Duration, Instant};

fn on_a_line(rule: &str) -> (Redis, Line, Gateway) {
    let redis = Redis::start();
    let line = Line::to(redis.port);
    let gateway = gateway(&line.url(), "", rule);
    gateway.until_store_connected();
    (redis, line, gateway)
}

fn until_told(gateway: &Gateway, words: &str) {
    until("both workers have told why", || {
        let lines = gateway.log_of("store lost; trying to reconnect");
        lines.iter().filter(|line| line["reason"].as_str().unwrap().contains(words)).count() == 2
    });
}

#[test]
fn a_gateway_starts_although_no_connect_is_answered_and_finds_redis_once_one_is() {
    let redis = Redis::start();
    let mut line = Line::to(redis.port);
    line.go_deaf();
    let begun = Instant::now();
    let gateway = gateway(&line.url(), "", &limit("x", "\"user\"", 2));
    assert_not_slow(begun.elapsed().saturating_sub(Duration::from_secs(1)), begun);
    assert_requests_pass_unlimited(&gateway);
    until_told(&gateway, "no answer while connecting");
    let lost = gateway.log_of("store lost; trying to reconnect");
    assert_eq!(lost.len(), 2, "once by each worker: {lost:?}");
    line.hear();
    gateway.until_store_connected();
    until_limits_hold(&gateway);
}

/// Also while attempts go on for a while, each of which ends by its timeout: nothing of them may be left.
#[test]
fn an_address_that_falls_silent_costs_nothing() {
    let (_redis, mut line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", gateway.process())).unwrap().count();
    let before = descriptors();
    line.go_deaf();
    let deaf = Instant::now();
    while deaf.elapsed() < Duration::from_secs(5) {
        assert_requests_pass_unlimited(&gateway);
    }
    assert_eq!(gateway.log_of("store lost; trying to reconnect").len(), 2, "{:?}", gateway.log());
    until("nothing is left of the attempts", || descriptors() <= before);
    line.hear();
    until_limits_hold(&gateway);
}

/// The peer has vanished without a word, as behind a firewall that has forgotten the connection.
#[test]
fn a_connection_that_carries_nothing_any_more_is_replaced() {
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    line.set_mute(true);
    let mute = Instant::now();
    while mute.elapsed() < Duration::from_secs(3) {
        assert_requests_pass_unlimited(&gateway);
    }
    until_told(&gateway, "the server stopped answering");
    let waited = errors(&gateway, "timeout");
    assert!(waited > 0.0 && errors(&gateway, "breaker") > waited, "{waited} waited");
    line.set_mute(false);
    until_limits_hold(&gateway);
}

#[test]
fn connections_that_are_reset_again_and_again_cost_nothing() {
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    line.reset();
    until("both workers have lost the store", || gateway.log_of("store lost; trying to reconnect").len() >= 2);
    for _ in 0..5 {
        line.reset();
        let response = ask_as_new_user(gateway.address);
        assert_eq!(response.status, 200, "{response:?}");
    }
    until_limits_hold(&gateway);
}

#[test]
fn replies_within_the_deadline_decide() {
    const DELAY: Duration = Duration::from_millis(5);
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    line.delay(DELAY);
    until_limits_hold(&gateway);
    let mut decided = 0;
    until("the store has decided fifty times more", || {
        let begun = Instant::now();
        let response = ask_as_new_user(gateway.address);
        if !rate_limit(&response).is_empty() {
            assert!(begun.elapsed() >= DELAY, "the reply took {:?}", begun.elapsed());
            decided += 1;
        }
        decided >= 50
    });
}

/// Replies that all come too late: a few requests wait in vain, the others do not wait.
fn late_replies_are_not_waited_for(delay: Duration) {
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    let [timeouts, refused] = ["timeout", "breaker"].map(|kind| errors(&gateway, kind));
    line.delay(delay);
    assert_requests_pass_unlimited(&gateway);
    // One connection is one worker's.
    let mut client = Client::connect(gateway.address);
    let (begun, mut sent) = (Instant::now(), 20.0);
    while begun.elapsed() < Duration::from_millis(1500) {
        let response = client.get("/", "X-API-Key: one\r\n");
        assert_eq!((response.status, rate_limit(&response)), (200, Vec::new()));
        sent += 1.0;
    }
    let waited = errors(&gateway, "timeout") - timeouts;
    assert!((1.0..=6.0).contains(&waited), "{waited} of {sent} requests waited");
    let passed = waited + errors(&gateway, "breaker") - refused;
    assert!(passed >= sent, "{passed} of {sent} passed without the store");
    assert_eq!(gateway.log_of("store connected").len(), 2, "slow is no reason to reconnect");
    line.delay(Duration::ZERO);
    until_limits_hold(&gateway);
}

#[test]
fn replies_of_50_ms_are_not_waited_for() {
    late_replies_are_not_waited_for(Duration::from_millis(50));
}

#[test]
fn replies_of_500_ms_are_not_waited_for() {
    late_replies_are_not_waited_for(Duration::from_millis(500));
}
