//! When requests find a server sick, and when well again.

use super::moody::{Mood, Moody};
use super::{GET, OK, POST, black_hole, errors, refusing};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head};
use crate::support::until;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const HALF: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf";
const UNAVAILABLE: &str = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";

/// A gateway of one worker: what each worker counts on its own is exact then.
fn gateway(servers: &[SocketAddr], lines: &str) -> Gateway {
    let text = config("", servers, "").replace("workers = 2", "workers = 1");
    Gateway::start(&text.replace("[[routes]]", &format!("{lines}\n[[routes]]")))
}

fn addresses(servers: &[Moody]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.address).collect()
}

fn left_alone(gateway: &Gateway) -> usize {
    gateway.log_of("server is left alone").len()
}

fn back(gateway: &Gateway) -> usize {
    gateway.log_of("server is back").len()
}

fn is_up(gateway: &Gateway, server: SocketAddr) -> bool {
    gateway.metric(&format!("rateguard_upstream_server_up{{upstream=\"app\",server=\"{server}\"}}")) == 1.0
}

/// Whether a request on a connection of its own is answered well.
fn succeeds(gateway: &Gateway, request: &str) -> bool {
    let mut client = Client::connect(gateway.address);
    client.send(request).try_response(true).is_ok_and(|response| response.status == 200)
}

fn failures(gateway: &Gateway, requests: usize) -> usize {
    (0..requests).filter(|_| !succeeds(gateway, GET)).count()
}

/// A server that fails three requests in a row is left alone, once, for this reason.
fn is_sick_after_three(failing: SocketAddr, timeouts: &str, reason: &str) {
    let well = Moody::new();
    let lines = format!("retries = 0\n{timeouts}\nhealth = {{ eject = \"1h\" }}");
    let gateway = gateway(&[failing, well.address], &lines);
    assert_eq!((failures(&gateway, 4), left_alone(&gateway)), (2, 0), "{reason}");
    assert!(is_up(&gateway, failing));
    assert_eq!((failures(&gateway, 12), well.requests()), (1, 13));
    until("it is told", || left_alone(&gateway) > 0);
    let said = gateway.log_of("server is left alone");
    assert_eq!(said.len(), 1, "{said:?}");
    let [told, server, for_ms] = ["reason", "server", "for_ms"].map(|key| &said[0][key]);
    assert_eq!((told, server, for_ms), (&reason.into(), &failing.to_string().into(), &3_600_000.into()));
    assert!(!is_up(&gateway, failing) && is_up(&gateway, well.address));
}

#[test]
fn servers_that_take_no_connections_are_sick() {
    let (_held, dead) = refusing();
    is_sick_after_three(dead, "", "takes no connections");
    let (_listener, _only, hole) = black_hole();
    is_sick_after_three(hole, "timeouts = { connect = \"200ms\" }", "takes no connections");
}

#[test]
fn servers_that_do_not_answer_well_are_sick() {
    let timeouts = "timeouts = { response = \"300ms\" }";
    let moods = [
        (Mood::Holds, "fails requests"),
        (Mood::SaysAndEnds(""), "breaks off"),
        (Mood::SaysAndEnds("HTTP/1.1 200 OK\r\nConte"), "breaks off"),
        (Mood::SaysAndEnds(HALF), "breaks off"),
        (Mood::Says(HALF), "fails requests"),
        (Mood::Says("nonsense\r\n\r\n"), "fails requests"),
    ];
    for (mood, reason) in moods {
        is_sick_after_three(Moody::in_mood(mood).address, timeouts, reason);
    }
}

#[test]
fn servers_that_say_that_they_cannot_are_sick() {
    let answers = [
        "HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n",
        UNAVAILABLE,
        "HTTP/1.1 504 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ];
    for answer in answers {
        is_sick_after_three(Moody::in_mood(Mood::Says(answer)).address, "", "fails requests");
    }
}

/// One failure would make a server sick.
const STRICT: &str = "retries = 0\nhealth = { unhealthy_after = 1, eject = \"1h\" }";

#[test]
fn what_a_server_says_of_a_request_is_no_failure() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], STRICT);
    let mut client = Client::connect(gateway.address);
    let answers = [
        (500, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
        (404, "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"),
        (413, "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"),
        (429, "HTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n"),
        (501, "HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (status, answer) in answers {
        server.be(Mood::Says(answer));
        for request in [GET, POST] {
            assert_eq!(client.send(request).response().status, status);
        }
    }
    assert!(left_alone(&gateway) == 0 && is_up(&gateway, server.address));
}

#[test]
fn an_early_refusal_is_no_failure() {
    let server = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let gateway = gateway(&[server.address], STRICT);
    for size in [100, 5_000_000] {
        for _ in 0..10 {
            let mut client = Client::connect(gateway.address);
            client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n"));
            // The gateway may have closed before all of it is sent, and then the answer may be lost.
            let _ = client.stream.write_all(&vec![b'x'; size]);
            let _ = client.try_response(true);
        }
    }
    assert!(left_alone(&gateway) == 0 && is_up(&gateway, server.address));
}

#[test]
fn what_clients_do_is_no_failure() {
    let server = Moody::new();
    let text = config("[server.timeouts]\nbody = \"300ms\"\nwrite = \"300ms\"", &[server.address], "");
    let gateway = Gateway::start(&text.replace("[[routes]]", &format!("{STRICT}\n[[routes]]")));
    let begun = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe";
    // One that stops in its request, one that leaves in it, and one that sends nonsense.
    assert_eq!(Client::connect(gateway.address).send(begun).response().status, 408);
    let _ = Client::connect(gateway.address).send(begun);
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n";
    let mut client = Client::connect(gateway.address);
    client.send(chunked);
    until("it is passed on", || server.open() > 0);
    assert_eq!(client.send("zzz\r\n").response().status, 400);
    // One that leaves while it waits.
    server.be(Mood::Holds);
    let mut client = Client::connect(gateway.address);
    client.send(GET);
    until("it is held", || server.under_way() == 1);
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    until("all are forgotten", || gateway.metric("rateguard_connections") == 0.0);
    assert!(left_alone(&gateway) == 0 && is_up(&gateway, server.address));
}

#[test]
fn a_client_that_does_not_read_is_no_failure() {
    let server = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n");
        while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    });
    let text = config("[server.timeouts]\nwrite = \"300ms\"", &[server.address], "");
    let gateway = Gateway::start(&text.replace("[[routes]]", &format!("{STRICT}\n[[routes]]")));
    let mut client = Client::connect(gateway.address);
    client.send(GET);
    until("it is given up", || gateway.metric("rateguard_connections") == 0.0);
    assert!(left_alone(&gateway) == 0 && is_up(&gateway, server.address));
}

#[test]
fn a_kept_connection_that_died_is_no_failure() {
    let server = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        // The second request meets its end.
        let _ = read_head(&mut stream);
    });
    let gateway = gateway(&[server.address], STRICT);
    let mut client = Client::connect(gateway.address);
    for _ in 0..5 {
        assert_eq!(client.get("/", "").status, 200);
        assert_eq!(client.send(POST).response().status, 502);
    }
    assert!(is_up(&gateway, server.address));
    assert_eq!((left_alone(&gateway), errors(&gateway, "receive")), (0, 5.0));
}

#[test]
fn half_of_twenty_failures_are_too_many() {
    let server = Moody::new();
    let lines = |rate| format!("health = {{ unhealthy_after = 1000, failure_rate = \"{rate}\", eject = \"1h\" }}");
    // So many requests of which every second or third fails, until the server is sick.
    let requests_until_sick = |rate, each: usize| {
        let gateway = gateway(&[server.address], &lines(rate));
        (1..=60).find(|number| {
            server.be(if number % each == 0 { Mood::SaysAndEnds(UNAVAILABLE) } else { Mood::Well });
            assert_eq!(succeeds(&gateway, GET), number % each != 0);
            // What it says of the server is noted once the client has it.
            until("it is counted", || errors(&gateway, "status") == (number / each) as f64);
            !is_up(&gateway, server.address)
        })
    };
    assert_eq!(requests_until_sick("50%", 2), Some(20));
    assert_eq!(requests_until_sick("50%", 3), None);
    assert_eq!(requests_until_sick("30%", 3), Some(21));
    assert_eq!(requests_until_sick("off", 2), None);
}

#[test]
fn only_the_statuses_of_the_list_are_failures() {
    let server = Moody::new();
    let gateway = gateway(&[server.address], "health = { failures = [500, \"520-529\"], eject = \"1h\" }");
    for (status, are_failures) in [(503, false), (519, false), (499, false), (525, true)] {
        let answer: &'static str = format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").leak();
        server.be(Mood::Says(answer));
        assert_eq!(failures(&gateway, 5), 5);
        assert_eq!(is_up(&gateway, server.address), !are_failures, "{status}");
    }
    let gateway = self::gateway(&[server.address], "health = { failures = [], eject = \"1h\" }");
    server.be(Mood::Says(UNAVAILABLE));
    assert_eq!((failures(&gateway, 5), is_up(&gateway, server.address)), (5, true));
}

#[test]
fn where_requests_make_nobody_sick_a_failing_server_is_asked_on() {
    let servers = [Moody::in_mood(Mood::SaysAndEnds("")), Moody::new()];
    let gateway = gateway(&addresses(&servers), "retries = 0\nhealth = { eject = \"off\" }");
    assert_eq!((failures(&gateway, 40), left_alone(&gateway)), (20, 0));
    assert!(is_up(&gateway, servers[0].address));
}

#[test]
fn an_answer_that_is_not_dropped_since_nobody_else_is_there_counts_once() {
    let server = Moody::in_mood(Mood::Says(UNAVAILABLE));
    let gateway = gateway(&[server.address], "retries = 3\nretry_statuses = [503]\nhealth = { eject = \"1h\" }");
    let is_up = || is_up(&gateway, server.address);
    assert_eq!(failures(&gateway, 2), 2);
    until("both are counted", || errors(&gateway, "status") == 2.0);
    assert!(is_up());
    assert_eq!(failures(&gateway, 1), 1);
    until("it is sick", || !is_up());
    assert_eq!(errors(&gateway, "status"), 3.0);
}

#[test]
fn each_time_in_a_row_it_is_left_alone_for_twice_as_long_and_each_change_is_told_once() {
    const FIRST_MS: u64 = 300;
    let servers = [Moody::new(), Moody::new()];
    let health = format!("health = {{ unhealthy_after = 1, eject = \"{FIRST_MS}ms\" }}");
    let lines = format!("retry_statuses = [503]\n{health}");
    let gateway = gateway(&addresses(&servers), &lines);
    let mut failed = 0;
    for round in 1..=3 {
        let before = servers[0].requests();
        servers[0].be(Mood::Says(UNAVAILABLE));
        until("it is left alone", || {
            assert!(succeeds(&gateway, GET));
            left_alone(&gateway) == round
        });
        // Where this took long, a trial has failed since, and doubled it too.
        let for_ms = gateway.log_of("server is left alone")[round - 1]["for_ms"].as_u64().unwrap();
        assert_eq!(for_ms, FIRST_MS << failed);
        assert!(!is_up(&gateway, servers[0].address));
        servers[0].be(Mood::Well);
        let started = Instant::now();
        let so_far = servers[0].requests();
        until("it is back", || {
            assert!(succeeds(&gateway, GET));
            back(&gateway) == round
        });
        failed += so_far - before;
        assert!(started.elapsed() >= Duration::from_millis(for_ms / 2), "{:?}", started.elapsed());
        assert!(is_up(&gateway, servers[0].address));
    }
    assert_eq!((left_alone(&gateway), back(&gateway)), (3, 3));
}

/// A gateway of two servers of which the first is sick, for a short time.
fn with_a_sick_one(lines: &str) -> ([Moody; 2], Gateway) {
    let servers = [Moody::in_mood(Mood::SaysAndEnds("")), Moody::new()];
    let gateway = gateway(&addresses(&servers), &format!("health = {{ unhealthy_after = 1, {lines} }}"));
    until("one is sick", || {
        assert!(succeeds(&gateway, GET));
        left_alone(&gateway) == 1
    });
    (servers, gateway)
}

#[test]
fn one_request_tries_it_and_no_other_until_it_is_answered() {
    let (servers, gateway) = with_a_sick_one("eject = \"200ms\"");
    servers[0].be(Mood::Holds);
    let before = servers[0].requests();
    // The one that is held is never answered, so nobody waits for all.
    let mut clients = Vec::new();
    until("one tries it", || {
        let mut client = Client::connect(gateway.address);
        client.send(GET);
        clients.push(client);
        servers[0].under_way() == 1
    });
    assert_eq!(failures(&gateway, 100), 0);
    assert_eq!((servers[0].requests() - before, back(&gateway)), (1, 0));
    servers[0].be(Mood::Well);
    for mut client in clients {
        assert_eq!(client.response().status, 200);
    }
    assert!(is_up(&gateway, servers[0].address));
    until("it is told", || back(&gateway) == 1);
    let counts = servers.each_ref().map(Moody::requests);
    assert_eq!(failures(&gateway, 40), 0);
    assert_eq!(servers[0].requests() - counts[0], 20);
}

#[test]
fn a_trial_that_fails_costs_nobody_an_answer_and_is_not_told() {
    let (servers, gateway) = with_a_sick_one("eject = \"100ms\"");
    until("it was tried twice more", || {
        assert!(succeeds(&gateway, GET));
        servers[0].requests() == 3
    });
    assert_eq!((left_alone(&gateway), back(&gateway)), (1, 0));
}

#[test]
fn a_request_that_cannot_be_repeated_tries_it_only_where_no_other_comes() {
    let (servers, gateway) = with_a_sick_one("eject = \"100ms\"");
    servers[0].be(Mood::Well);
    let before = servers[0].requests();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_000) {
        assert!(succeeds(&gateway, POST));
    }
    assert_eq!(servers[0].requests(), before);
    assert!(succeeds(&gateway, GET));
    assert_eq!(servers[0].requests(), before + 1);
    until("it is told", || back(&gateway) == 1);

    servers[0].be(Mood::SaysAndEnds(""));
    until("it is sick again", || {
        assert!(succeeds(&gateway, GET));
        left_alone(&gateway) == 2
    });
    servers[0].be(Mood::Well);
    until("a post tries it at last", || {
        assert!(succeeds(&gateway, POST));
        back(&gateway) == 2
    });
}

#[test]
fn the_head_of_an_answer_without_end_is_enough() {
    let (servers, gateway) = with_a_sick_one("eject = \"200ms\"");
    let events = Mood::Says("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
    servers.iter().for_each(|server| server.be(events));
    let mut clients = Vec::new();
    until("it is back", || {
        let mut client = Client::connect(gateway.address);
        client.send(GET);
        assert!(read_head(&mut client.stream).unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
        clients.push(client);
        back(&gateway) == 1
    });
}

#[test]
fn where_all_are_sick_all_are_asked_anyway() {
    let servers = [Moody::in_mood(Mood::SaysAndEnds("")), Moody::in_mood(Mood::SaysAndEnds(""))];
    let gateway = gateway(&addresses(&servers), "retries = 0\nhealth = { unhealthy_after = 1, eject = \"1h\" }");
    assert_eq!(failures(&gateway, 22), 22);
    let counts = servers.each_ref().map(Moody::requests);
    assert!(counts.iter().all(|count| *count >= 10), "{counts:?}");
    until("it is told", || left_alone(&gateway) == 2);
    let told = || {
        let messages = ["all servers are sick; trying them anyway", "not all servers are sick any more"];
        (messages.map(|message| gateway.log_of(message).len()), left_alone(&gateway), back(&gateway))
    };
    assert_eq!(told(), ([1, 0], 2, 0));
    assert_eq!(gateway.metric("rateguard_upstream_panic{upstream=\"app\"}"), 1.0);
    servers[0].be(Mood::Well);
    until("the first is back", || succeeds(&gateway, GET) && back(&gateway) == 1);
    // The other is left alone again: there is one that is well.
    let before = servers[1].requests();
    assert_eq!(failures(&gateway, 20), 0);
    until("the end of it is told", || told() == ([1, 1], 2, 1));
    assert_eq!(servers[1].requests(), before);
    assert_eq!(gateway.metric("rateguard_upstream_panic{upstream=\"app\"}"), 0.0);
}

#[test]
fn after_a_short_outage_of_all_no_server_is_left_alone_for_long() {
    let servers = [Moody::in_mood(Mood::SaysAndEnds("")), Moody::in_mood(Mood::SaysAndEnds(""))];
    let gateway = gateway(&addresses(&servers), "health = { eject = \"500ms\" }");
    assert_eq!(failures(&gateway, 100), 100);
    let failed = Instant::now();
    servers.iter().for_each(|server| server.be(Mood::Well));
    until("both are well", || {
        succeeds(&gateway, GET);
        servers.iter().all(|server| is_up(&gateway, server.address))
    });
    assert!(failed.elapsed() < Duration::from_secs(10), "{:?}", failed.elapsed());
}

#[test]
fn who_is_back_begins_with_a_small_share() {
    const SLOW: f64 = 4.0;
    let (servers, gateway) = with_a_sick_one("eject = \"100ms\", slow_start = \"4s\"");
    servers[0].be(Mood::Well);
    let mut client = Client::connect(gateway.address);
    let mut started = Instant::now();
    until("it is back", || {
        started = Instant::now();
        assert_eq!(client.get("/", "").status, 200);
        back(&gateway) == 1
    });
    let mut share = |requests: usize| {
        let before = servers[0].requests();
        (0..requests).for_each(|_| assert_eq!(client.get("/", "").status, 200));
        (servers[0].requests() - before) as f64 / requests as f64
    };
    let first = share(220);
    // By then its weight is this part of the other's at most.
    let weight = (started.elapsed().as_secs_f64() / SLOW).clamp(0.1, 1.0);
    assert!(first <= weight / (1.0 + weight) + 0.02 && first >= 0.05, "{first} at a weight of {weight}");
    until("it has its whole share", || share(100) >= 0.49);
    assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn a_server_that_fails_and_recovers_all_the_time_does_not_fill_the_log() {
    let asked = AtomicUsize::new(0);
    let origin = Origin::new(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            let is_well = asked.fetch_add(1, Ordering::SeqCst) % 2 == 1;
            stream.write_all(if is_well { OK } else { UNAVAILABLE.as_bytes() }).unwrap();
        }
    });
    let gateway = gateway(&[origin.address], "retries = 0\nhealth = { unhealthy_after = 1 }");
    let mut client = Client::connect(gateway.address);
    let failures = (0..1000).filter(|_| client.get("/", "").status != 200).count();
    assert_eq!(failures, 500);
    drop(client);
    gateway.terminate();
    until("the log is written", || !gateway.log_of("stopped").is_empty());
    let said = gateway.log().iter().filter(|line| line["upstream"] == "app").count();
    assert!((4..100).contains(&said), "{said} lines of 1000 requests");
}
