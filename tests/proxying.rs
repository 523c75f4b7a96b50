//! What a backend gets of a request, and a client of its response: fields, statuses, connections, interim responses.

use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, Request, read_head, read_request};
use crate::support::{PATIENCE, until};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A gateway in front of `origin`, with further `[server]` lines.
fn gateway(server: &str, origin: &Origin) -> Gateway {
    Gateway::start(&config(server, &[origin.address], ""))
}

/// What the backend got of this request, sent on a connection of its own.
fn forwarded(server: &str, request: &str) -> Request {
    let origin = Origin::ok();
    let gateway = gateway(server, &origin);
    assert_eq!(client::raw(gateway.address, request).status, 200);
    origin.requests().remove(0)
}

const FROM_A_PROXY: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 192.0.2.1\r\n\
    x-forwarded-for: 192.0.2.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.example\r\n\
    Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nVia: 1.0 front\r\n\r\n";

#[test]
fn forwarding_fields_of_strangers_are_replaced() {
    let request = forwarded("", FROM_A_PROXY);
    assert_eq!(request.fields("X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(request.fields("X-Forwarded-Proto"), ["http"]);
    assert_eq!(request.fields("X-Forwarded-Host"), ["a.example"]);
    assert_eq!(request.fields("Host"), ["a.example"]);
    assert_eq!(request.fields("Via"), ["1.0 front", "1.1 rateguard"]);
    assert_eq!((request.field("Forwarded"), request.field("X-Real-IP")), (None, None));
}

#[test]
fn forwarding_fields_of_trusted_proxies_are_kept_and_extended() {
    let request = forwarded("trusted_proxies = [\"127.0.0.0/8\"]", FROM_A_PROXY);
    assert_eq!(request.fields("X-Forwarded-For"), ["192.0.2.1, 192.0.2.2, 127.0.0.1"]);
    assert_eq!(request.fields("X-Forwarded-Proto"), ["https"]);
    assert_eq!(request.fields("X-Forwarded-Host"), ["b.example"]);
    assert_eq!(request.fields("Host"), ["a.example"]);
    assert_eq!((request.field("Forwarded"), request.field("X-Real-IP")), (Some("for=192.0.2.1"), Some("192.0.2.1")));
}

#[test]
fn what_a_backend_could_take_for_our_own_fields_is_dropped() {
    let spoof = "GET / HTTP/1.1\r\nHost: h\r\nX_Forwarded_For: 1\r\nX-Forwarded_Proto: https\r\nContent_Length: 5\r\n\
        Transfer_Encoding: chunked\r\nX_API_Key: k\r\nX-Forwarded-Port: 1\r\nX-Forwarded-Prefix: /x\r\nMy_Own: kept\r\n\r\n";
    let request = forwarded("", spoof);
    let names: Vec<&str> = request.head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    assert_eq!(
        names,
        ["Host", "My_Own", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Via", "X-Request-Id"]
    );
    let request = forwarded("trusted_proxies = [\"127.0.0.1\"]", spoof);
    assert_eq!((request.field("X-Forwarded-Port"), request.field("X_Forwarded_For")), (Some("1"), None));
}

#[test]
fn the_way_of_a_plain_request_is_written_down() {
    let request = forwarded("", "GET / HTTP/1.1\r\nHost: a.example:80\r\n\r\n");
    assert_eq!(request.fields("X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(request.fields("X-Forwarded-Proto"), ["http"]);
    assert_eq!(request.fields("X-Forwarded-Host"), ["a.example:80"]);
    assert_eq!(request.fields("Via"), ["1.1 rateguard"]);
}

#[test]
fn a_request_id_is_kept_or_made() {
    let id = |line: &str| {
        let request = forwarded("", &format!("GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n"));
        assert_eq!(request.fields("X-Request-Id").len(), 1);
        request.field("X-Request-Id").unwrap().to_string()
    };
    assert_eq!(id("X-Request-Id: a-b.c\r\n"), "a-b.c");
    let too_long = "x".repeat(129);
    for line in ["", "X-Request-Id:\r\n", "X-Request-Id: a b\r\n", &format!("X-Request-Id: {too_long}\r\n")] {
        let made = id(line);
        assert!(made.len() == 32 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{line:?}: {made}");
    }
}

#[test]
fn a_target_goes_on_as_it_was_written() {
    let origin = Origin::ok();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for (asked, line, host) in [
        ("GET /a//b/./%61/../c/?x=1&&y=%20 HTTP/1.1", "GET /a//b/./%61/../c/?x=1&&y=%20 HTTP/1.1", "h"),
        ("GET http://other:81/a?b HTTP/1.1", "GET /a?b HTTP/1.1", "other:81"),
        ("GET http://other HTTP/1.1", "GET / HTTP/1.1", "other"),
        ("GET http://other?q HTTP/1.1", "GET /?q HTTP/1.1", "other"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1", "h"),
        ("OPTIONS http://other HTTP/1.1", "OPTIONS * HTTP/1.1", "other"),
        ("OPTIONS http://other/ HTTP/1.1", "OPTIONS / HTTP/1.1", "other"),
        ("get / HTTP/1.1", "get / HTTP/1.1", "h"),
        ("M-SEARCH / HTTP/1.1", "M-SEARCH / HTTP/1.1", "h"),
    ] {
        client.send(format!("{asked}\r\nHost: h\r\n\r\n"));
        assert_eq!(client.response().status, 200, "{asked}");
        let request = origin.requests().pop().unwrap();
        assert_eq!((request.line(), request.fields("Host")), (line, vec![host]), "{asked}");
    }
}

#[test]
fn fields_of_one_connection_go_no_further() {
    let request = forwarded(
        "",
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: x-private, Close\r\nX-PRIVATE: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip\r\nTrailer: x\r\nUpgrade: websocket\r\nX-Public: 1\r\n\
         Content-Length: 2\r\n\r\nhi",
    );
    for gone in ["X-Private", "Connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade"] {
        assert_eq!(request.field(gone), None, "{gone}");
    }
    assert_eq!((request.field("X-Public"), request.body.as_slice()), (Some("1"), b"hi".as_slice()));
}

#[test]
fn connection_cannot_name_away_what_the_backend_relies_on() {
    let request = forwarded(
        "trusted_proxies = [\"127.0.0.1\"]",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
         Connection: host, content-length, x-forwarded-for, x-forwarded-proto, x-forwarded-host, via, x-request-id\r\n\r\nhi",
    );
    assert_eq!(request.body, b"hi");
    assert_eq!(request.fields("Host"), ["h"]);
    assert_eq!(request.fields("X-Forwarded-For"), ["192.0.2.1, 127.0.0.1"]);
    assert_eq!(request.fields("X-Forwarded-Proto"), ["https"]);
    assert_eq!(request.fields("X-Forwarded-Host"), ["h"]);
    assert_eq!(request.fields("Via"), ["1.1 rateguard"]);
    assert_eq!(request.fields("X-Request-Id").len(), 1);
}

#[test]
fn fields_of_the_backend_s_connection_do_not_reach_the_client() {
    let origin = Origin::answering(
        "HTTP/1.1 200 Fine by me\r\nConnection: x-private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
         Upgrade: h2c\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = gateway("", &origin);
    let response = Client::connect(gateway.address).get("/", "");
    assert!(response.head.starts_with("HTTP/1.1 200 Fine by me\r\n"), "{}", response.head);
    for gone in ["X-Private", "Connection", "Keep-Alive", "Upgrade"] {
        assert_eq!(response.field(gone), None, "{gone}");
    }
    assert_eq!((response.fields("Set-Cookie"), response.text().as_str()), (vec!["a", "b"], "ok"));
}

#[test]
fn responses_without_a_body_end_with_their_head() {
    for (asked, answer, length) in [
        ("HEAD", "200 OK\r\nContent-Length: 5", Some("5")),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", None),
        ("HEAD", "404 Not Found\r\nContent-Length: 9", Some("9")),
        ("GET", "204 No Content\r\nX: y", None),
        ("GET", "304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"", Some("5")),
        ("DELETE", "200 OK\r\nContent-Length: 0", Some("0")),
    ] {
        let origin = Origin::answering(format!("HTTP/1.1 {answer}\r\n\r\n"));
        let gateway = gateway("", &origin);
        let mut client = Client::connect(gateway.address);
        for _ in 0..2 {
            client.send(format!("{asked} / HTTP/1.1\r\nHost: h\r\n\r\n"));
            let response = client.response_to_head();
            assert!(response.head.starts_with(&format!("HTTP/1.1 {}", &answer[..3])), "{asked} {answer}: {response:?}");
            assert_eq!(response.field("Content-Length"), length, "{asked} {answer}");
        }
        client.send(format!("{asked} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")).response_to_head();
        assert_eq!(client.rest().unwrap(), b"", "{asked} {answer}");
        assert_eq!(origin.connections(), 1, "{asked} {answer}");
    }
}

#[test]
fn interim_responses_are_passed_on_to_clients_that_know_them() {
    let origin = Origin::answering(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    let hints = [client.get("/", ""), client.response()];
    assert_eq!(
        hints.each_ref().map(|hint| (hint.status, hint.field("Link"))),
        [(103, Some("</a.css>")), (103, Some("</b.css>"))]
    );
    assert_eq!(client.response().text(), "ok");
    let old = Client::connect(gateway.address).send("GET / HTTP/1.0\r\n\r\n").response();
    assert_eq!((old.status, old.text().as_str()), (200, "ok"));
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[test]
fn a_body_waits_for_the_backend_s_100_continue() {
    let origin = Origin::new(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let mut body = [0; 5];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for _ in 0..2 {
        assert_eq!(client.send(EXPECTING).response().status, 100);
        let response = client.send("hello").response();
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_backend_that_does_not_want_the_body_says_so_instead_of_100_continue() {
    for status in [417, 413] {
        let origin = Origin::new(move |mut stream, _| {
            read_head(&mut stream).unwrap();
            write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno").unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "nothing comes after the head");
        });
        let gateway = gateway("", &origin);
        let mut client = Client::connect(gateway.address);
        let response = client.send(EXPECTING).response();
        assert_eq!((response.status, response.text().as_str()), (status, "no"));
        // Whether the client still sends the body is not known, so no further request can be told from it.
        assert_eq!(response.field("Connection"), Some("close"));
        assert!(client.is_closed());
    }
}

#[test]
fn a_backend_that_may_not_have_read_the_body_gets_no_other_request_on_that_connection() {
    let origin = Origin::ok();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    let body = "Content-Length: 5\r\n\r\nhello";
    for (number, request) in [
        format!("GET / HTTP/1.1\r\nHost: h\r\n{body}"),
        format!("DELETE / HTTP/1.1\r\nHost: h\r\n{body}"),
        format!("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{body}"),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(client.send(request).response().text(), "ok");
        assert_eq!(origin.connections(), number + 1, "{request}");
    }
    for _ in 0..2 {
        assert_eq!(client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{body}")).response().text(), "ok");
    }
    assert_eq!(origin.connections(), 4);
}

#[test]
fn an_old_client_gets_no_chunks_and_a_close() {
    let origin =
        Origin::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n1\r\n!\r\n0\r\n\r\n");
    let gateway = gateway("", &origin);
    for connection in ["", "Connection: keep-alive\r\n"] {
        let mut client = Client::connect(gateway.address);
        let response = client.send(format!("GET / HTTP/1.0\r\n{connection}\r\n")).response();
        assert_eq!((response.field("Transfer-Encoding"), response.text().as_str()), (None, "ok!"));
        assert_eq!(response.field("Connection"), Some("close"));
    }
    assert_eq!(origin.requests()[0].line(), "GET / HTTP/1.1");
    assert_eq!(origin.requests()[0].fields("Via"), ["1.0 rateguard"]);
}

#[test]
fn an_old_client_that_asks_for_it_keeps_its_connection() {
    let origin = Origin::ok();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for _ in 0..3 {
        let response = client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").response();
        assert_eq!((response.field("Connection"), response.text().as_str()), (Some("keep-alive"), "ok"));
    }
    let last = client.send("GET / HTTP/1.0\r\n\r\n").response();
    assert_eq!(last.field("Connection"), Some("close"));
    assert!(client.is_closed());
}

/// A backend that answers with the path it was asked for.
fn naming_origin() -> Origin {
    Origin::new(|mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            let path = request.line().split(' ').nth(1).unwrap().to_string();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).unwrap();
        }
    })
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = naming_origin();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    let request = |number: usize| match number % 3 {
        0 => format!("GET /{number} HTTP/1.1\r\nHost: h\r\n\r\n"),
        1 => format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nGET "),
        _ => format!("POST /{number} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nGET\r\n0\r\n\r\n"),
    };
    client.send((0..50).map(request).collect::<String>());
    for number in 0..50 {
        assert_eq!(client.response().text(), format!("/{number}"));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn both_sides_keep_their_connections() {
    let origin = Origin::ok();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for number in 0..100 {
        let response = client.get("/", "");
        assert_eq!((response.text().as_str(), response.field("Connection")), ("ok", None), "request {number}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_client_that_asks_for_the_end_gets_it_after_the_response() {
    let origin = Origin::ok();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    let response = client.get("/", "Connection: close\r\n");
    assert_eq!((response.text().as_str(), response.field("Connection")), ("ok", Some("close")));
    assert!(client.is_closed());
}

#[test]
fn a_half_closed_client_is_answered() {
    let origin = Origin::ok();
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n").stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.response().text(), "ok");
    assert!(client.is_closed());
}

#[test]
fn responses_that_cannot_be_read_in_one_way_become_502_and_end_the_backend_s_connection() {
    let garbage = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20 No\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "SSH-2.0-OpenSSH_9.9\r\n",
        "\r\n\r\n",
    ];
    let turn = Arc::new(AtomicUsize::new(0));
    let turns = turn.clone();
    let origin = Origin::new(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(garbage[turns.load(Ordering::SeqCst)].as_bytes());
        }
    });
    let gateway = gateway("", &origin);
    for (number, answer) in garbage.iter().enumerate() {
        turn.store(number, Ordering::SeqCst);
        let response = client::get(gateway.address, "/");
        assert_eq!(response.status, 502, "{answer:?}");
        assert_eq!(response.field("Content-Type"), Some("application/problem+json"), "{answer:?}");
        assert_eq!(response.json()["blame"], "upstream", "{answer:?}");
        assert_eq!(origin.connections(), number + 1, "{answer:?}: an earlier connection was used again");
    }
}

#[test]
fn a_backend_s_endless_interim_responses_become_502() {
    let origin = Origin::answering("HTTP/1.1 102 Processing\r\n\r\n".repeat(100));
    let gateway = gateway("", &origin);
    let response = Client::connect(gateway.address).send("GET / HTTP/1.0\r\n\r\n").response();
    assert_eq!((response.status, response.json()["blame"].as_str()), (502, Some("upstream")));
}

#[test]
fn bytes_after_a_response_are_nobody_s_answer() {
    let origin = Origin::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for _ in 0..10 {
        assert_eq!(client.get("/", "").text(), "ok");
    }
    assert_eq!(origin.connections(), 10);
}

#[test]
fn bytes_between_two_responses_are_nobody_s_answer() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::new(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for number in 1..=10 {
        assert_eq!(client.get("/", "").text(), "ok", "request {number}");
        go.send(()).unwrap();
        until("the backend has sent what nobody asked for", || sent.load(Ordering::SeqCst) == number);
    }
}
