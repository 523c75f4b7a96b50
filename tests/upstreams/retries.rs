//! What is tried again, where, how often, and how long that takes.

use super::moody::{Mood, Moody};
use super::{GET, POST, errors, gateway, is_upstream_problem, retries};
use crate::support::client::{Client, Response};
use crate::support::gateway::Gateway;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Nobody becomes sick, so that whose turn it is is known.
const NOBODY_SICK: &str = "health = { eject = \"off\" }";

fn moody<const N: usize>(mood: Mood) -> [Moody; N] {
    std::array::from_fn(|_| Moody::in_mood(mood))
}

fn addresses<const N: usize>(servers: &[Moody; N]) -> [SocketAddr; N] {
    servers.each_ref().map(|server| server.address)
}

fn denied(gateway: &Gateway) -> f64 {
    gateway.metric("rateguard_upstream_retries_denied_total{upstream=\"app\"}")
}

/// A request with an id of its own on a connection of its own, and how long its answer took.
fn timed(gateway: &Gateway, request: &str) -> (Response, Duration) {
    let mut client = Client::connect(gateway.address);
    let start = Instant::now();
    let response = client.send(request.replace("Host: h", "Host: h\r\nX-Request-Id: my-id")).response();
    (response, start.elapsed())
}

#[test]
fn no_server_is_asked_twice() {
    let servers = moody::<3>(Mood::SaysAndEnds(""));
    let gateway = gateway(&addresses(&servers), &format!("retries = 10\n{NOBODY_SICK}"));
    for number in 1..=10 {
        is_upstream_problem(&timed(&gateway, GET).0, 502);
        assert_eq!(servers.each_ref().map(Moody::requests), [number; 3]);
    }
    assert_eq!((retries(&gateway), denied(&gateway)), (20.0, 0.0));
}

#[test]
fn retries_end_where_the_configuration_says() {
    let servers = moody::<4>(Mood::SaysAndEnds(""));
    let gateway = gateway(&addresses(&servers), &format!("retries = 2\n{NOBODY_SICK}"));
    for number in 1..=8 {
        is_upstream_problem(&timed(&gateway, GET).0, 502);
        assert_eq!(servers.iter().map(Moody::requests).sum::<usize>(), number * 3);
    }
}

#[test]
fn retries_cannot_multiply_an_outage() {
    const REQUESTS: u32 = 800;
    const WORKERS: f64 = 2.0;
    for percent in [20, 0] {
        let servers = moody::<3>(Mood::SaysAndEnds(""));
        let lines = format!("retries = 1\nretry_budget = \"{percent}%\"\n{NOBODY_SICK}");
        let gateway = gateway(&addresses(&servers), &lines);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = Client::connect(gateway.address);
                    (0..REQUESTS / 8).for_each(|_| assert_eq!(client.get("/", "").status, 502));
                });
            }
        });
        let requests = f64::from(REQUESTS);
        let attempts = servers.iter().map(Moody::requests).sum::<usize>() as f64;
        let saved = WORKERS * (100.0 + 3.0 * start.elapsed().as_secs_f64());
        assert!(attempts <= requests * (1.0 + f64::from(percent) / 100.0) + saved, "{attempts}");
        assert!(attempts >= requests + 100.0, "{attempts}");
        // Every request failed, and was then repeated or not.
        assert_eq!((retries(&gateway), denied(&gateway)), (attempts - requests, 2.0 * requests - attempts));
    }
}

const MANY: &str = "HTTP/1.1 503 No\r\nContent-Length: 18\r\nX-From: the-failing\r\n\r\nnot to be passed on";
const ONE: &str = "HTTP/1.1 503 No\r\nContent-Length: 3\r\nX-From: one\r\n\r\none";

#[test]
fn an_unwanted_answer_is_dropped_and_nothing_of_it_is_left() {
    let wanting = Moody::in_mood(Mood::Says(ONE));
    let well = Moody::new();
    let lines = format!("retry_statuses = [503]\n{NOBODY_SICK}");
    let gateway = gateway(&[wanting.address, well.address], &lines);
    let mut client = Client::connect(gateway.address);
    let put = POST.replace("POST", "PUT");
    // Also one with more body than it says, and one with less.
    for answer in [ONE, MANY, "HTTP/1.1 503 No\r\nContent-Length: 9000\r\n\r\npart"] {
        wanting.be(Mood::Says(answer));
        let before = wanting.requests();
        for number in 0..20 {
            let request = if number % 2 == 0 { GET } else { put.as_str() };
            let response = client.send(request).response();
            assert_eq!((response.status, response.text().as_str()), (200, "ok"));
            assert_eq!(response.field("X-From"), None);
        }
        assert!(wanting.requests() >= before + 8);
    }
    assert_eq!(errors(&gateway, "status"), wanting.requests() as f64);
    wanting.be(Mood::Says(ONE));
    let head = GET.replace("GET", "HEAD");
    well.be(Mood::Says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"));
    for _ in 0..4 {
        assert_eq!(client.send(&head).response_to_head().status, 200);
    }
}

#[test]
fn an_unwanted_answer_to_what_cannot_be_repeated_is_passed_on() {
    let (wanting, well) = (Moody::in_mood(Mood::Says(ONE)), Moody::new());
    let lines = format!("retry_statuses = [503]\n{NOBODY_SICK}");
    let gateway = gateway(&[wanting.address, well.address], &lines);
    let mut client = Client::connect(gateway.address);
    let answers: Vec<(u16, String)> = (0..10)
        .map(|_| {
            let response = client.send(POST).response();
            (response.status, response.text())
        })
        .collect();
    assert_eq!(answers.iter().filter(|answer| **answer == (503, "one".into())).count(), 5);
    assert_eq!((wanting.requests(), well.requests(), retries(&gateway)), (5, 5, 0.0));
}

#[test]
fn where_nobody_is_left_the_last_answer_is_passed_on_whole() {
    let two = "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\nX-From: two\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let servers = [Moody::in_mood(Mood::Says(ONE)), Moody::in_mood(Mood::Says(two))];
    let lines = format!("retries = 5\nretry_statuses = [\"500-599\"]\n{NOBODY_SICK}");
    let gateway = gateway(&addresses(&servers), &lines);
    let mut client = Client::connect(gateway.address);
    for number in 1..=20 {
        let response = client.get("/", "");
        let name = response.field("X-From").unwrap();
        assert!(response.status == 503 && response.text() == name, "{response:?}");
        assert_eq!(servers.each_ref().map(Moody::requests), [number; 2]);
    }
    // A connection whose answer was passed on is kept.
    assert!(servers.iter().all(|server| server.connections() <= 20));
}

#[test]
fn a_server_that_hangs_costs_an_attempt_and_no_more() {
    let servers = [Moody::in_mood(Mood::Holds), Moody::new(), Moody::new()];
    let lines = format!("timeouts = {{ attempt = \"300ms\", response = \"15s\" }}\n{NOBODY_SICK}");
    let gateway = gateway(&addresses(&servers), &lines);
    let times: Vec<Duration> = (0..9)
        .map(|_| {
            let (response, time) = timed(&gateway, GET);
            assert_eq!(response.status, 200);
            time
        })
        .collect();
    let slow = times.iter().filter(|time| **time >= Duration::from_millis(290)).count();
    assert!(slow >= 2 && times.iter().all(|time| *time < Duration::from_secs(5)), "{times:?}");
    assert_eq!((errors(&gateway, "timeout"), servers[0].requests() as f64), (retries(&gateway), retries(&gateway)));
}

#[test]
fn what_cannot_be_repeated_waits_as_long_as_a_response_may_take() {
    let servers = [Moody::in_mood(Mood::Holds), Moody::new(), Moody::new()];
    let lines = format!("timeouts = {{ attempt = \"200ms\", response = \"1s\" }}\n{NOBODY_SICK}");
    let gateway = gateway(&addresses(&servers), &lines);
    let mut hung = 0;
    for _ in 0..4 {
        let (response, time) = timed(&gateway, POST);
        if response.status != 200 {
            is_upstream_problem(&response, 504);
            assert!(time >= Duration::from_millis(900), "{time:?}");
            hung += 1;
        }
    }
    let counts = servers.each_ref().map(Moody::requests);
    assert_eq!((hung, counts.iter().sum::<usize>(), retries(&gateway)), (counts[0], 4, 0.0));
    assert!(hung >= 1, "{counts:?}");
}

#[test]
fn all_attempts_share_the_time_of_a_response() {
    let servers = moody::<4>(Mood::Holds);
    let lines = format!("retries = 3\ntimeouts = {{ attempt = \"400ms\", response = \"1s\" }}\n{NOBODY_SICK}");
    let gateway = gateway(&addresses(&servers), &lines);
    let (response, time) = timed(&gateway, GET);
    is_upstream_problem(&response, 504);
    let range = Duration::from_millis(950)..Duration::from_millis(3_000);
    assert!(range.contains(&time), "{time:?}");
    let asked = servers.iter().map(Moody::requests).sum::<usize>();
    assert!((2..=3).contains(&asked), "{asked}");
}

#[test]
fn where_nobody_else_can_be_asked_an_answer_has_all_the_time() {
    let servers = [Moody::in_mood(Mood::SaysAndEnds("")), Moody::new()];
    let lines =
        "timeouts = { attempt = \"200ms\", response = \"15s\" }\nhealth = { unhealthy_after = 1, eject = \"1h\" }";
    let gateway = gateway(&addresses(&servers), lines);
    while gateway.log_of("server is left alone").is_empty() {
        assert_eq!(timed(&gateway, GET).0.status, 200);
    }
    servers[1].be(Mood::Holds);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| timed(&gateway, GET));
        std::thread::sleep(Duration::from_millis(900));
        servers[1].be(Mood::Well);
        assert_eq!(asking.join().unwrap().0.status, 200);
    });
}

#[test]
fn kept_connections_that_have_died_cost_no_retry() {
    // Each serves one request and is closed as if it were kept.
    let ends = Mood::SaysAndEnds("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let servers = moody::<2>(ends);
    let lines = "retries = 0\nretry_budget = \"0%\"\nhealth = { unhealthy_after = 1, eject = \"1h\" }";
    let gateway = gateway(&addresses(&servers), lines);
    let mut client = Client::connect(gateway.address);
    for _ in 0..300 {
        assert_eq!(client.get("/", "").status, 200);
    }
    assert_eq!((denied(&gateway), gateway.log_of("server is left alone").len()), (0.0, 0));
    assert_eq!(servers.iter().map(Moody::requests).sum::<usize>(), 300);
}
