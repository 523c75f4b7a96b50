use super::{errors, gateway};
use crate::support::client::Client;
use crate::support::fields::{rate_limit, remaining};
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::store::{api_key, decisions, limit, limit_with};
use crate::support::until;
use std::time::{Duration, Instant};

/// One replica of so many.
fn one_of(replicas: u64) -> String {
    format!("on_failure = \"local\"\nreplicas = {replicas}\ndeadline = \"5s\"")
}

fn until_lost(gateway: &Gateway) {
    until("both workers have lost the store", || gateway.metric("rateguard_store_connections") == 0.0);
}

fn statuses(client: &mut Client, count: usize) -> Vec<u16> {
    (0..count).map(|_| client.get("/", "").status).collect()
}

#[test]
fn each_replica_enforces_its_share_while_redis_is_away() {
    let mut redis = Redis::start();
    let gateways: Vec<Gateway> = (0..2).map(|_| gateway(&redis.url(), &one_of(2), &limit("x", "", 10))).collect();
    gateways.iter().for_each(Gateway::until_store_connected);
    redis.kill();
    gateways.iter().for_each(until_lost);
    for gateway in &gateways {
        // From several connections, so from both workers: they share the process's part.
        let answers: Vec<_> = (0..8).map(|_| Client::connect(gateway.address).get("/", "")).collect();
        let passed: Vec<i64> =
            answers.iter().filter(|answer| answer.status == 200).map(|answer| remaining(answer, "x")).collect();
        assert_eq!(passed, [4, 3, 2, 1, 0]);
        let denied = &answers[5];
        assert_eq!((denied.status, remaining(denied, "x")), (429, 0));
        // A limit of one a day, divided by two.
        assert_eq!(denied.field("Retry-After"), Some("172800"), "{}", denied.text());
        assert_eq!(gateway.metric(&decisions("x", "local_allow")), 5.0);
        assert_eq!(gateway.metric(&decisions("x", "local_deny")), 3.0);
        assert_eq!(errors(gateway, "disconnected"), 8.0);
        until("the log tells who decided", || gateway.log_of("denied").iter().any(|line| line["by"] == "local"));
    }
}

/// What Redis has granted is gone from the share too.
#[test]
fn a_switch_gives_nothing_away_that_was_spent() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis.url(), &one_of(1), &limit("x", "", 10));
    gateway.until_store_connected();
    let mut client = Client::connect(gateway.address);
    assert_eq!(statuses(&mut client, 7), [200; 7]);
    redis.kill();
    until_lost(&gateway);
    assert_eq!(statuses(&mut client, 5), [200, 200, 200, 429, 429]);
}

/// The bound that the configuration states, for a bucket that is asked for all the time while Redis comes and goes: what
/// the limit grants, and one burst for each switch.
#[test]
fn what_is_admitted_while_redis_comes_and_goes_stays_within_the_bound() {
    let mut redis = Redis::start();
    let (rate, burst) = (20, 10);
    let rule = limit_with("x", "", burst, "").replace("rate = \"1/d\"", &format!("rate = \"{rate}/s\""));
    let gateways: Vec<Gateway> = (0..2).map(|_| gateway(&redis.url(), &one_of(2), &rule)).collect();
    gateways.iter().for_each(Gateway::until_store_connected);
    let mut clients: Vec<Client> = gateways.iter().map(|gateway| Client::connect(gateway.address)).collect();
    let start = Instant::now();
    let (mut admitted, mut switches) = (0, 0);
    let ask = |clients: &mut Vec<Client>, time: Duration| {
        let begun = Instant::now();
        let mut admitted = 0;
        while begun.elapsed() < time {
            for client in &mut *clients {
                let status = client.get("/", "").status;
                assert!(matches!(status, 200 | 429), "{status}");
                admitted += i64::from(status == 200);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        admitted
    };
    for _ in 0..3 {
        admitted += ask(&mut clients, Duration::from_millis(400));
        redis.kill();
        admitted += ask(&mut clients, Duration::from_millis(700));
        redis.launch();
        switches += 2;
    }
    admitted += ask(&mut clients, Duration::from_millis(700));
    let granted = burst as f64 + rate as f64 * start.elapsed().as_secs_f64();
    let bound = granted + f64::from(switches) * burst as f64;
    assert!((admitted as f64) <= bound, "{admitted} admitted, at most {bound}");
    // While Redis starts nobody asks, however long that takes.
    let asked = 3.0 * (0.4 + 0.7) + 0.7;
    let least = (burst as f64 + rate as f64 * asked) / 2.0;
    assert!(admitted as f64 >= least, "{admitted} admitted, at least {least}");
    assert!(gateways.iter().all(|gateway| gateway.metric(&decisions("x", "local_allow")) > 0.0));
}

/// Each limit has its own way to fail; one that is closed closes.
#[test]
fn limits_may_fail_in_different_ways() {
    let mut redis = Redis::start();
    let rules = [
        limit_with("closed", "", 5, "match.path = \"/closed\"\non_failure = \"closed\""),
        limit_with("local", "", 2, "match.path = \"/local\"\non_failure = \"local\""),
        limit_with("other", "", 2, "match.path = \"/closed/x\"\non_failure = \"local\""),
        limit_with("shadow", "", 2, "match.path = \"/local\"\non_failure = \"closed\"\nmode = \"shadow\""),
        limit("open", "", 1),
    ];
    let gateway = gateway(&redis.url(), "deadline = \"5s\"", &rules.concat());
    gateway.until_store_connected();
    redis.kill();
    until_lost(&gateway);
    let mut client = Client::connect(gateway.address);
    let mut ask = |path: &str| client.get(path, &api_key("k"));
    assert_eq!([(); 3].map(|()| ask("/").status), [200; 3]);
    let refused = ask("/closed");
    assert_eq!((refused.status, refused.field("Retry-After")), (503, Some("1")));
    assert_eq!(ask("/closed/x").status, 503);
    let answers = [(); 3].map(|()| ask("/local"));
    assert_eq!(answers.each_ref().map(|answer| answer.status), [200, 200, 429]);
    let told: Vec<String> = rate_limit(&answers[0]).iter().map(|member| member.name.clone()).collect();
    assert_eq!(told, ["local"], "of the others nothing is known");
    assert_eq!(gateway.metric(&decisions("local", "local_deny")), 1.0);
    assert_eq!(gateway.metric(&decisions("open", "fail_open")), 5.0);
}
