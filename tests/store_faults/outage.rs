use super::{ask_as_new_user, assert_requests_pass_unlimited, gateway, under_load, until_limits_hold};
use crate::support::client::Client;
use crate::support::fields::{rate_limit, remaining};
use crate::support::gateway::{Gateway, config};
use crate::support::redis::Redis;
use crate::support::store::{Store, api_key, backend, decisions, limit};
use crate::support::{signal, suspend, until};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, Ordering};

fn failed(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&decisions("x", outcome))
}

#[test]
fn no_request_fails_while_redis_is_killed_under_load() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 1000));
    gateway.until_store_connected();
    let answers = under_load(gateway.address, 4, || {
        until("requests are limited", || failed(&gateway, "allow") >= 100.0);
        redis.kill();
        until("requests pass without the store", || failed(&gateway, "fail_open") >= 100.0);
        redis.launch();
        let limited = failed(&gateway, "allow") + failed(&gateway, "deny");
        until("requests are limited again", || failed(&gateway, "allow") + failed(&gateway, "deny") >= limited + 100.0);
    });
    let failures: Vec<_> = answers.iter().filter(|(answer, _)| !matches!(answer.status, 200 | 429)).collect();
    assert!(failures.is_empty(), "{failures:?}");
    until_limits_hold_again(&gateway);
}

fn until_limits_hold_again(gateway: &Gateway) {
    let mut client = Client::connect(gateway.address);
    until("a request is limited", || !rate_limit(&client.get("/", &api_key("later"))).is_empty());
}

#[test]
fn requests_pass_while_redis_is_down_and_limits_hold_once_it_is_back() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    until_limits_hold(&gateway);
    redis.kill();
    assert_requests_pass_unlimited(&gateway);
    redis.launch();
    until_limits_hold(&gateway);
}

#[test]
fn an_outage_is_counted_and_logged_once_by_each_worker() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    redis.kill();
    until("both workers have noticed", || gateway.log_of("store lost; trying to reconnect").len() >= 2);
    assert_requests_pass_unlimited(&gateway);
    assert!(failed(&gateway, "fail_open") >= 20.0);
    assert!(gateway.metric("rateguard_store_errors_total{kind=\"disconnected\"}") >= 20.0);
    assert_eq!(gateway.log_of("store lost; trying to reconnect").len(), 2, "{:?}", gateway.log());
    redis.launch();
    until("both workers are back", || gateway.log_of("store connected").len() == 4);
}

#[test]
fn a_gateway_starts_and_serves_without_redis_and_finds_it_later() {
    let mut redis = Redis::start();
    redis.kill();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 2));
    assert_requests_pass_unlimited(&gateway);
    redis.launch();
    gateway.until_store_connected();
    until_limits_hold(&gateway);
}

#[test]
fn where_limits_are_closed_requests_are_refused_while_redis_is_down() {
    let mut redis = Redis::start();
    let gateway = gateway(&redis.url(), "on_failure = \"closed\"\ndeadline = \"5s\"", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    assert_eq!(ask_as_new_user(gateway.address).status, 200);
    redis.kill();
    let mut client = Client::connect(gateway.address);
    for _ in 0..5 {
        let refused = client.get("/", "X-Request-Id: my-id\r\n");
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.field("Content-Type"), Some("application/problem+json"));
        assert_eq!(refused.field("Retry-After"), Some("1"));
        let body = refused.json();
        assert_eq!(body["type"], "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity");
        assert_eq!(
            (&body["status"], &body["blame"], &body["request_id"]),
            (&503.into(), &"store".into(), &"my-id".into())
        );
    }
    assert_eq!(failed(&gateway, "fail_closed"), 5.0);
    redis.launch();
    until("requests pass again", || ask_as_new_user(gateway.address).status == 200);
}

#[test]
fn where_limits_are_closed_requests_without_limits_pass() {
    let mut redis = Redis::start();
    redis.kill();
    let rule = limit("x", "\"user\"", 2) + "match = { path = \"/api\" }";
    let gateway = gateway(&redis.url(), "on_failure = \"closed\"", &rule);
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/free", "").status, 200);
    assert_eq!(client.get("/api", "").status, 503);
}

/// A crowd that meets a Redis which has lost its scripts sends the script once, not once each.
#[test]
fn a_lost_script_is_sent_once() {
    const CROWD: usize = 100;
    let redis = Redis::start();
    let rest = format!("[store]\nurl = \"{}\"\ndeadline = \"5s\"\n{}", redis.url(), limit("x", "\"user\"", 10));
    let gateway = Gateway::start(&config("", &[backend()], &rest).replace("workers = 2", "workers = 1"));
    until("the worker is connected to the store", || !gateway.log_of("store connected").is_empty());
    let mut clients: Vec<Client> = (0..CROWD).map(|_| Client::connect(gateway.address)).collect();
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut redis.connection()).unwrap();
    suspend(gateway.process());
    for (user, client) in clients.iter_mut().enumerate() {
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", api_key(&user.to_string())));
    }
    signal(gateway.process(), Signal::CONT);
    for client in &mut clients {
        assert_eq!(remaining(&client.response(), "x"), 9);
    }
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
    assert_eq!(calls(&stats, "eval"), 1, "{stats}");
    assert!(calls(&stats, "evalsha") > CROWD, "none met NOSCRIPT: {stats}");
}

/// How often Redis has been asked a command.
fn calls(stats: &str, command: &str) -> usize {
    let of = format!("cmdstat_{command}:calls=");
    let count = stats.lines().find_map(|line| line.strip_prefix(&of)?.split(',').next());
    count.map_or(0, |count| count.parse().unwrap())
}

/// NOSCRIPT is the one error after which a command is sent again.
#[test]
fn limits_are_exact_while_scripts_are_flushed() {
    let store = Store::redis();
    let gateway = store.gateway(&limit("x", "\"user\"", 10));
    let Store::Redis(redis) = &store else { unreachable!() };
    let mut connection = redis.connection();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| {
            let mut flushes = 0;
            while !is_over.load(Ordering::Relaxed) {
                redis::cmd("SCRIPT").arg("FLUSH").exec(&mut connection).unwrap();
                flushes += 1;
            }
            flushes
        });
        let loaders: Vec<_> = (0..4)
            .map(|user| {
                let address = gateway.address;
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    let answers: Vec<_> = (0..60).map(|_| client.get("/", &api_key(&format!("u{user}")))).collect();
                    assert!(answers.iter().all(|answer| !rate_limit(answer).is_empty()), "{answers:?}");
                    let left: Vec<i64> = answers.iter().take(10).map(|answer| remaining(answer, "x")).collect();
                    assert_eq!(left, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
                    assert!(answers[10..].iter().all(|answer| answer.status == 429));
                })
            })
            .collect();
        let results: Vec<_> = loaders.into_iter().map(|loader| loader.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(flushing.join().unwrap() > 10);
        assert!(results.iter().all(Result::is_ok));
    });
    let errors = super::errors(&gateway, "server");
    assert_eq!((errors, failed(&gateway, "fail_open")), (0.0, 0.0));
}
