use crate::support::client::Client;
use crate::support::fields::{policy, rate_limit, remaining};
use crate::support::store::{Store, decisions, limit, limit_with};
use crate::support::{PATIENCE, until};
use std::time::{Duration, Instant};

const USER: &str = "\"user\"";

/// How far the clocks of test, gateway and Redis may be apart over a second or two.
const CLOCK_SLACK: Duration = Duration::from_millis(3);

fn statuses(client: &mut Client, path: &str, fields: &str, count: usize) -> Vec<u16> {
    (0..count).map(|_| client.get(path, fields).status).collect()
}

fn a_burst_passes_and_the_next_is_denied(store: &Store) {
    let gateway = store.gateway(&limit("x", USER, 5));
    let mut client = Client::connect(gateway.address);
    assert_eq!(statuses(&mut client, "/", "", 7), [200, 200, 200, 200, 200, 429, 429]);
}

#[test]
fn a_burst_passes_and_the_next_is_denied_in_memory() {
    a_burst_passes_and_the_next_is_denied(&Store::memory());
}

#[test]
fn a_burst_passes_and_the_next_is_denied_in_redis() {
    a_burst_passes_and_the_next_is_denied(&Store::redis());
}

/// A denial was decided between its sending and its arrival, so that it bounds from both sides when the token comes,
/// however slow the machine is.
fn a_request_passes_once_retry_after_ms_is_over_and_not_before(store: &Store) {
    let rule = "[[limits]]\nname = \"x\"\nby = [\"user\"]\nrate = \"1/s\"\nburst = 1\n";
    let gateway = store.gateway(rule);
    let mut client = Client::connect(gateway.address);
    // A slow machine may refill between the two.
    let (sent, received, denied) = loop {
        let sent = Instant::now();
        let response = client.get("/", "");
        if response.status == 429 {
            break (sent, Instant::now(), response);
        }
    };
    let wait = Duration::from_millis(denied.json()["retry_after_ms"].as_u64().unwrap());
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    loop {
        let asked = Instant::now();
        let response = client.get("/", "");
        let answered = Instant::now();
        if response.status == 200 {
            let early = (sent + wait).saturating_duration_since(answered);
            assert!(early <= CLOCK_SLACK, "passed {early:?} too early");
            break;
        }
        let late = asked.saturating_duration_since(received + wait);
        assert!(late <= CLOCK_SLACK, "still denied {late:?} after the time told: {response:?}");
        assert!(received.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_request_passes_once_retry_after_ms_is_over_and_not_before_in_memory() {
    a_request_passes_once_retry_after_ms_is_over_and_not_before(&Store::memory());
}

#[test]
fn a_request_passes_once_retry_after_ms_is_over_and_not_before_in_redis() {
    a_request_passes_once_retry_after_ms_is_over_and_not_before(&Store::redis());
}

/// In whatever order they are configured.
fn a_denial_by_one_limit_takes_nothing_from_another(store: &Store) {
    let rules = [limit("before", "", 10), limit("narrow", "", 2), limit("after", "", 20)].concat();
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    assert_eq!(statuses(&mut client, "/", "", 2), [200, 200]);
    let keys = ["before", "narrow", "after"].map(|name| format!("rate_limit:{{-}}:-:{name}"));
    let keys = keys.each_ref().map(String::as_str);
    let stored = store.stored(&keys);
    assert!(stored.iter().flatten().all(Option::is_some), "{stored:?}");
    for _ in 0..3 {
        let denied = client.get("/", "");
        assert_eq!(denied.status, 429);
        assert_eq!(["before", "narrow", "after"].map(|name| remaining(&denied, name)), [8, 0, 18]);
        assert_eq!(store.stored(&keys), stored);
    }
}

#[test]
fn a_denial_by_one_limit_takes_nothing_from_another_in_memory() {
    a_denial_by_one_limit_takes_nothing_from_another(&Store::memory());
}

#[test]
fn a_denial_by_one_limit_takes_nothing_from_another_in_redis() {
    a_denial_by_one_limit_takes_nothing_from_another(&Store::redis());
}

/// Sixteen is the most that may apply.
fn many_limits_on_one_request_are_all_charged(store: &Store) {
    let rules: String = (0..16).map(|i| limit(&format!("l{i}"), "", 3 + i)).collect();
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    assert_eq!(statuses(&mut client, "/", "", 4), [200, 200, 200, 429]);
    let denied = client.get("/", "");
    for i in 0..16 {
        assert_eq!(remaining(&denied, &format!("l{i}")), i, "{denied:?}");
    }
}

#[test]
fn many_limits_on_one_request_are_all_charged_in_memory() {
    many_limits_on_one_request_are_all_charged(&Store::memory());
}

#[test]
fn many_limits_on_one_request_are_all_charged_in_redis() {
    many_limits_on_one_request_are_all_charged(&Store::redis());
}

fn a_shadow_limit_counts_and_never_denies(store: &Store) {
    let gateway = store.gateway(&limit_with("tried", USER, 2, "mode = \"shadow\""));
    let mut client = Client::connect(gateway.address);
    let responses: Vec<_> = (0..5).map(|_| client.get("/", "")).collect();
    assert!(responses.iter().all(|response| response.status == 200));
    assert_eq!(gateway.metric(&decisions("tried", "allow")), 2.0);
    assert_eq!(gateway.metric(&decisions("tried", "shadow_deny")), 3.0);
    assert_eq!(gateway.metric(&decisions("tried", "deny")), 0.0);
    until("each is logged", || gateway.log_of("would deny (shadow)").len() == 3);
    assert_eq!(gateway.log_of("would deny (shadow)")[0]["limits"], "tried");
}

#[test]
fn a_shadow_limit_counts_and_never_denies_in_memory() {
    a_shadow_limit_counts_and_never_denies(&Store::memory());
}

#[test]
fn a_shadow_limit_counts_and_never_denies_in_redis() {
    a_shadow_limit_counts_and_never_denies(&Store::redis());
}

fn a_shadow_limit_is_not_told_to_clients(store: &Store) {
    let rules = limit_with("tried", USER, 1, "mode = \"shadow\"") + &limit("real", USER, 2);
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    for status in [200, 200, 429] {
        let response = client.get("/", "");
        assert_eq!(response.status, status);
        assert_eq!(policy(&response).into_iter().map(|p| p.name).collect::<Vec<_>>(), ["real"]);
        assert_eq!(rate_limit(&response).into_iter().map(|l| l.name).collect::<Vec<_>>(), ["real"]);
        assert!(!response.text().contains("tried"), "{response:?}");
    }
}

#[test]
fn a_shadow_limit_is_not_told_to_clients_in_memory() {
    a_shadow_limit_is_not_told_to_clients(&Store::memory());
}

#[test]
fn a_shadow_limit_is_not_told_to_clients_in_redis() {
    a_shadow_limit_is_not_told_to_clients(&Store::redis());
}

fn an_empty_shadow_limit_does_not_keep_others_from_being_charged(store: &Store) {
    let rules = limit_with("tried", USER, 1, "mode = \"shadow\"") + &limit("real", USER, 4);
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    let left: Vec<i64> = (0..4).map(|_| remaining(&client.get("/", ""), "real")).collect();
    assert_eq!(left, [3, 2, 1, 0]);
}

#[test]
fn an_empty_shadow_limit_does_not_keep_others_from_being_charged_in_memory() {
    an_empty_shadow_limit_does_not_keep_others_from_being_charged(&Store::memory());
}

#[test]
fn an_empty_shadow_limit_does_not_keep_others_from_being_charged_in_redis() {
    an_empty_shadow_limit_does_not_keep_others_from_being_charged(&Store::redis());
}

/// A shadow limit shows what enforcing it would do, so a request that is denied anyway does not count in it.
fn a_denial_takes_nothing_from_a_shadow_limit(store: &Store) {
    let rules = limit_with("tried", USER, 3, "mode = \"shadow\"") + &limit("real", USER, 2);
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    assert_eq!(statuses(&mut client, "/", "", 6), [200, 200, 429, 429, 429, 429]);
    assert_eq!(gateway.metric(&decisions("tried", "shadow_deny")), 0.0);
    assert_eq!(gateway.metric(&decisions("real", "deny")), 4.0);
}

#[test]
fn a_denial_takes_nothing_from_a_shadow_limit_in_memory() {
    a_denial_takes_nothing_from_a_shadow_limit(&Store::memory());
}

#[test]
fn a_denial_takes_nothing_from_a_shadow_limit_in_redis() {
    a_denial_takes_nothing_from_a_shadow_limit(&Store::redis());
}

fn a_request_takes_its_cost(store: &Store) {
    let gateway = store.gateway(&limit_with("x", USER, 10, "cost = 3"));
    let mut client = Client::connect(gateway.address);
    let responses: Vec<_> = (0..4).map(|_| client.get("/", "")).collect();
    assert_eq!(responses.iter().map(|r| r.status).collect::<Vec<_>>(), [200, 200, 200, 429]);
    assert_eq!(responses.iter().map(|r| remaining(r, "x")).collect::<Vec<_>>(), [7, 4, 1, 1]);
}

#[test]
fn a_request_takes_its_cost_in_memory() {
    a_request_takes_its_cost(&Store::memory());
}

#[test]
fn a_request_takes_its_cost_in_redis() {
    a_request_takes_its_cost(&Store::redis());
}

fn each_limit_counts_what_it_decides(store: &Store) {
    let rules = limit("wide", USER, 10) + &limit("narrow", USER, 2);
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    assert_eq!(statuses(&mut client, "/", "", 5), [200, 200, 429, 429, 429]);
    assert_eq!(gateway.metric(&decisions("narrow", "allow")), 2.0);
    assert_eq!(gateway.metric(&decisions("narrow", "deny")), 3.0);
    // It had room: it is not what denied.
    assert_eq!(gateway.metric(&decisions("wide", "allow")), 5.0);
    assert_eq!(gateway.metric(&decisions("wide", "deny")), 0.0);
    // A request is counted when its answer has gone out: the client may have it before.
    for (status, requests) in [("2xx", 2.0), ("4xx", 3.0)] {
        let series = format!("rateguard_requests_total{{route=\"/\",status=\"{status}\"}}");
        until("all requests are counted", || gateway.metric(&series) == requests);
    }
}

#[test]
fn each_limit_counts_what_it_decides_in_memory() {
    each_limit_counts_what_it_decides(&Store::memory());
}

#[test]
fn each_limit_counts_what_it_decides_in_redis() {
    each_limit_counts_what_it_decides(&Store::redis());
}
