//! What goes on of a head, both ways, and what stays here.

use super::*;
use crate::http::Bounds;
use crate::http::changes::{Kind, NONE};

const BOUNDS: Bounds = Bounds { head_max: 4096, fields_max: 64, body_max: None };
const HOP: Hop<'static> =
    Hop { peer: "203.0.113.7", trusted: false, request_id: b"id1", target: None, authority: "up:1", changes: &NONE };

fn forwarded(text: &str, hop: &Hop<'_>) -> String {
    let mut head = RequestHead::default();
    assert!(head.parse(text.as_bytes(), &BOUNDS).unwrap());
    let mut out = Vec::new();
    request(&mut out, text.as_bytes(), &head, hop);
    let mut again = RequestHead::default();
    assert!(again.parse(&out, &BOUNDS).unwrap(), "what is forwarded is a whole head");
    assert_eq!(again.framing, head.framing);
    assert_eq!(again.host.of(&out), head.host.of(text.as_bytes()));
    String::from_utf8(out).unwrap()
}

fn delivered(text: &str, to: &Delivery<'_>) -> String {
    let mut head = ResponseHead::default();
    assert!(head.parse(text.as_bytes(), &BOUNDS, to.asked).unwrap());
    let mut out = Vec::new();
    response(&mut out, text.as_bytes(), &head, to);
    String::from_utf8(out).unwrap()
}

const TO: Delivery<'static> = Delivery {
    version: Version::Http11,
    asked: Method::Get,
    keep_alive: true,
    extra: b"",
    changes: &NONE,
    date: "now",
};

#[test]
fn a_request_gets_the_forwarding_fields() {
    assert_eq!(
        forwarded(
            "GET /a?b HTTP/1.1\r\nHost: h:8080\r\nAccept: */*\r\nX-Forwarded-For: 9.9.9.9\r\nCookie: c\r\n\r\n",
            &HOP
        ),
        "GET /a?b HTTP/1.1\r\nHost: h:8080\r\nAccept: */*\r\nCookie: c\r\nX-Forwarded-For: 203.0.113.7\r\n\
         X-Forwarded-Proto: http\r\nX-Forwarded-Host: h:8080\r\nVia: 1.1 rateguard\r\nX-Request-Id: id1\r\n\r\n"
    );
}

#[test]
fn a_trusted_proxy_is_believed() {
    let hop = Hop { trusted: true, ..HOP };
    let text = forwarded(
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: public\r\nVia: 1.1 nginx\r\n\r\n",
        &hop,
    );
    assert!(text.contains("\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 203.0.113.7\r\n"), "{text}");
    assert!(text.contains("\r\nX-Forwarded-Proto: https\r\n") && !text.contains("Proto: http\r\n"));
    assert!(text.contains("\r\nX-Forwarded-Host: public\r\n") && !text.contains("Host: h\r\nX-Forwarded-Host: h"));
    assert!(text.contains("\r\nVia: 1.1 nginx\r\n") && text.contains("\r\nVia: 1.1 rateguard\r\n"));
}

#[test]
fn hop_by_hop_fields_stay_here() {
    let text = forwarded(
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\
         TE: gzip\r\nUpgrade: websocket\r\nX-Mine: 1\r\nTransfer-Encoding: chunked\r\nX-Kept: 2\r\n\r\n",
        &HOP,
    );
    for gone in ["Connection", "Keep-Alive", "Proxy-", "TE:", "Upgrade", "X-Mine"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    assert!(text.contains("X-Kept: 2\r\n") && text.contains("Transfer-Encoding: chunked\r\n"));
}

#[test]
fn what_one_connection_asks_is_asked_of_the_next_in_our_own_words() {
    let connection = |fields: &str| {
        let text = forwarded(&format!("OPTIONS / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"), &HOP);
        let is_asked = |line: &&str| ["Connection", "TE", "Upgrade", "Max-F"].iter().any(|name| line.starts_with(name));
        text.lines().filter(is_asked).collect::<Vec<_>>().join("|")
    };
    assert_eq!(connection("TE: gzip, Trailers;q=1\r\n"), "");
    assert_eq!(connection("TE: gzip, Trailers\r\n"), "Connection: TE|TE: trailers");
    assert_eq!(connection("Upgrade: websocket\r\n"), "", "not asked of this connection");
    assert_eq!(connection("Connection: x, UPGRADE\r\nUpgrade: h2c, h2c-14, HTTP/2.0, TLS/1.2, /\r\n"), "");
    assert_eq!(
        connection("Connection: upgrade\r\nUpgrade: h2c, websocket\r\nUpgrade: a/1\r\nHTTP2-Settings: x\r\n"),
        "Connection: Upgrade|Upgrade: websocket, a/1"
    );
    assert_eq!(
        connection("Connection: TE, Upgrade\r\nTE: trailers\r\nUpgrade: a\r\n"),
        "Connection: TE, Upgrade|TE: trailers|Upgrade: a"
    );
    assert_eq!(connection("Max-Forwards: 10\r\n"), "Max-Forwards: 9");
    assert_eq!(connection("Connection: upgrade\r\nUpgrade: a\r\nContent-Length: 1\r\n"), "", "it has a body");
}

#[test]
fn trailers_are_announced_where_they_go_on() {
    let chunked = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert!(delivered(chunked, &TO).contains("Trailer: X-Sum\r\n"));
    assert!(!delivered(chunked, &Delivery { version: Version::Http10, ..TO }).contains("Trailer"));
    assert!(!forwarded("GET / HTTP/1.1\r\nHost: h\r\nTrailer: a\r\n\r\n", &HOP).contains("Trailer"));
}

#[test]
fn a_switch_is_to_one_protocol_that_was_offered() {
    let switch = |fields: &str, offered: &str| {
        let text = format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n{fields}\r\n");
        let mut head = ResponseHead::default();
        assert!(head.parse(text.as_bytes(), &BOUNDS, Method::Get).unwrap());
        accepts(text.as_bytes(), &head, offered.as_bytes())
    };
    assert!(switch("Upgrade: WebSocket\r\n", "a, websocket"));
    for fields in ["", "Upgrade:\r\n", "Upgrade: b\r\n", "Upgrade: a, websocket\r\n", "Upgrade: a\r\nUpgrade: a\r\n"] {
        assert!(!switch(fields, "a, websocket"), "{fields:?}");
    }
    assert!(!switch("Upgrade: websocket\r\n", ""), "nobody asked");
    let text = "HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: a\r\nX: y\r\n\r\n";
    assert_eq!(delivered(text, &TO), "HTTP/1.1 101 Go\r\nX: y\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n");
}

#[test]
fn what_frames_or_routes_cannot_be_nominated_away() {
    let text = forwarded(
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: close, Host, Content-Length, X-Forwarded-For\r\nContent-Length: 3\r\n\r\n",
        &HOP,
    );
    assert!(text.contains("Host: h\r\n") && text.contains("Content-Length: 3\r\n"));
    assert!(text.contains("X-Forwarded-For: 203.0.113.7\r\n"));
}

#[test]
fn absolute_targets_become_origin_form_and_their_authority_the_host() {
    let text = forwarded("GET http://a.example?q HTTP/1.1\r\nHost: other\r\n\r\n", &HOP);
    assert!(text.starts_with("GET /?q HTTP/1.1\r\nHost: a.example\r\n"), "{text}");
    assert!(!text.contains("other"));
    assert!(forwarded("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", &HOP).starts_with("OPTIONS * HTTP/1.1\r\n"));
}

#[test]
fn lengths_are_written_as_decided_and_claims_of_strangers_dropped() {
    let request = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0003\r\nForwarded: for=1\r\nX-Real-IP: 1\r\n\r\n";
    let text = forwarded(request, &HOP);
    assert!(
        text.contains("\r\nContent-Length: 3\r\n") && !text.contains("Forwarded: for") && !text.contains("Real-IP")
    );
    let text = forwarded(request, &Hop { trusted: true, ..HOP });
    assert!(text.contains("Forwarded: for=1\r\n") && text.contains("X-Real-IP: 1\r\n"));
    let head = Delivery { asked: Method::Head, ..TO };
    assert!(delivered("HTTP/1.1 200 OK\r\nContent-Length: 07\r\n\r\n", &head).contains("Content-Length: 7\r\n"));
}

#[test]
fn request_ids_of_clients_are_kept_where_they_can_be() {
    let id_of = |value: &str| {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: {value}\r\n\r\n");
        let mut head = RequestHead::default();
        assert!(head.parse(text.as_bytes(), &BOUNDS).unwrap());
        client_request_id(&head, text.as_bytes()).map(<[u8]>::to_vec)
    };
    assert_eq!(id_of("abc-1"), Some(b"abc-1".to_vec()));
    assert_eq!(id_of(""), None);
    assert_eq!(id_of("a b"), None);
    assert_eq!(id_of(&"a".repeat(REQUEST_ID_MAX + 1)), None);
}

#[test]
fn a_response_keeps_its_fields_and_loses_the_hop() {
    let text = delivered(
        "HTTP/1.1 200 Fine\r\nDate: d\r\nServer: s\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\n",
        &Delivery { extra: b"RateLimit: x\r\n", ..TO },
    );
    assert_eq!(text, "HTTP/1.1 200 Fine\r\nDate: d\r\nServer: s\r\nContent-Length: 2\r\nRateLimit: x\r\n\r\n");
}

#[test]
fn a_backends_own_rate_limit_fields_give_way_to_ours() {
    let backend = "HTTP/1.1 200 OK\r\nRateLimit: \"b\";r=1\r\nContent-Length: 0\r\n\r\n";
    assert!(delivered(backend, &TO).contains("\"b\""));
    assert!(!delivered(backend, &Delivery { extra: b"RateLimit: \"ours\";r=1\r\n", ..TO }).contains("\"b\""));
}

#[test]
fn bodies_without_length_are_chunked_or_end_with_the_connection() {
    let unbounded = "HTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(delivered(unbounded, &TO), "HTTP/1.1 200 OK\r\nDate: now\r\nTransfer-Encoding: chunked\r\n\r\n");
    let old = Delivery { version: Version::Http10, ..TO };
    assert_eq!(delivered(unbounded, &old), "HTTP/1.0 200 OK\r\nDate: now\r\nConnection: close\r\n\r\n");
    let known = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n";
    assert!(delivered(known, &old).contains("Connection: keep-alive\r\n"));
    assert!(delivered(known, &Delivery { keep_alive: false, ..TO }).contains("Connection: close\r\n"));
}

#[test]
fn chunks_are_framed_in_hexadecimal() {
    for size in [1usize, 9, 10, 15, 16, 255, 256, 4095, 4096, 65_536] {
        let mut out = Vec::new();
        chunk(&mut out, &vec![b'x'; size]);
        assert!(out.starts_with(format!("{size:x}\r\nx").as_bytes()), "{size}");
        assert!(out.ends_with(b"x\r\n"));
    }
    let mut out = Vec::new();
    chunk(&mut out, b"");
    assert!(out.is_empty(), "no data must not end the body");
}

#[test]
fn what_a_route_changes_is_written_once_and_cannot_be_named_away() {
    let mut changes = Changes::default();
    changes.set(Kind::Request, "X-Env", "prod").unwrap();
    changes.set(Kind::Request, "Host", "inner:1").unwrap();
    changes.remove(Kind::Request, "X-Forwarded-Host").unwrap();
    let hop = Hop { changes: &changes, target: Some(b"/v1/x?y"), ..HOP };
    let text = b"GET /x HTTP/1.1\r\nHost: h\r\nx_env: a\r\nX-ENV: b\r\nConnection: X-Env\r\n\r\n";
    let (mut head, mut out) = (RequestHead::default(), Vec::new());
    assert!(head.parse(text, &BOUNDS).unwrap());
    request(&mut out, text, &head, &hop);
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("GET /v1/x?y HTTP/1.1\r\nHost: inner:1\r\n"), "{text}");
    assert_eq!(text.to_ascii_lowercase().matches("env").count(), 1, "{text}");
    assert!(text.contains("\r\nX-Env: prod\r\n") && !text.contains("X-Forwarded-Host"), "{text}");
}

#[test]
fn what_a_route_changes_in_responses() {
    let mut changes = Changes::default();
    changes.set(Kind::Response, "X-A", "1").unwrap();
    changes.remove(Kind::Response, "Server").unwrap();
    let backend = "HTTP/1.1 204 No Content\r\nServer: s\r\nSER_VER: t\r\nx_a: 2\r\nX-B: 3\r\n\r\n";
    let text = delivered(backend, &Delivery { changes: &changes, ..TO });
    assert_eq!(text, "HTTP/1.1 204 No Content\r\nSER_VER: t\r\nX-B: 3\r\nX-A: 1\r\nDate: now\r\n\r\n");
}
