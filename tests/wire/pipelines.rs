//! Several requests on one connection: each is answered in its turn, and nothing behind a refusal is.

use super::row::{Reply, Row, Rows, Saw, chunked, chunks, get, got, post, posted, refused, replies, saw, served};

pub fn rows() -> Vec<Row> {
    [pairs(), refusals(), to_heads(), tunnels()].concat()
}

fn at(line: &'static str) -> Saw {
    saw(line, &[], "")
}

fn pairs() -> Vec<Row> {
    let section = "RFC 9112 9.3.2";
    let b = "GET /b HTTP/1.1\r\nHost: h\r\n\r\n";
    let old = "GET /b HTTP/1.0\r\nHost: h\r\n\r\n";
    let numbered: String = (0..9).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: h\r\n\r\n")).collect();
    let lines = ["0", "1", "2", "3", "4", "5", "6", "7", "8"];
    [
        served(section, format!("{}{b}", get("X: y")), [got(&["X: y"]), at("GET /b HTTP/1.1")]),
        served(section, format!("{}{b}", post("Content-Length: 4", "GET ")), [posted("GET "), at("GET /b HTTP/1.1")]),
        served(section, format!("{}{b}", chunks("3\r\nGET\r\n0\r\n\r\n")), [chunked("GET"), at("GET /b HTTP/1.1")]),
        served(
            section,
            format!("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n{b}"),
            [at("HEAD / HTTP/1.1"), at("GET /b HTTP/1.1")],
        ),
        served(section, numbered, lines.map(|n| Saw { line: NUMBERED[n.parse::<usize>().unwrap()], ..at("") })),
        served("RFC 9112 9.6 (nothing behind the last)", format!("{}{b}", get("Connection: close")), [got(&[])])
            .closing(),
        served(
            "RFC 9112 9.6 (nothing behind the last)",
            format!("{}{b}", post("Connection: close\r\nContent-Length: 2", "hi")),
            [posted("hi")],
        )
        .closing(),
        served(
            "RFC 9112 9.3 (HTTP/1.0 ends)",
            format!("{old}{b}"),
            [Saw { fields: vec!["Via: 1.0 rateguard".into()], ..at("GET /b HTTP/1.1") }],
        )
        .old()
        .closing(),
    ]
    .concat()
}

const NUMBERED: [&str; 9] = [
    "GET /0 HTTP/1.1",
    "GET /1 HTTP/1.1",
    "GET /2 HTTP/1.1",
    "GET /3 HTTP/1.1",
    "GET /4 HTTP/1.1",
    "GET /5 HTTP/1.1",
    "GET /6 HTTP/1.1",
    "GET /7 HTTP/1.1",
    "GET /8 HTTP/1.1",
];

fn refusals() -> Vec<Row> {
    let section = "RFC 9112 9.3.2, 9.6 (served, then refused)";
    let then = |first: String, saw: Saw, second: &str, status| {
        replies(section, format!("{first}{second}"), [Reply::Of(saw), Reply::Refusal(status)])
    };
    let plain = || (get("X: y"), got(&["X: y"]));
    let after_get = |second: &str, status| then(plain().0, plain().1, second, status);
    [
        after_get("GET / HTTP/1.1\r\n\r\n", 400),
        after_get(&post("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), 400),
        after_get("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        after_get("GET /evil\r\n\r\n", 505),
        after_get(&get("Expect: x"), 417),
        after_get("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 501),
        after_get("\0\0\0\0\r\n\r\n", 400),
        then(post("Content-Length: 5", "hello"), posted("hello"), "!GET / HTTP/1.1\r\n\r\n", 400),
        then(post("Content-Length: 5", "hello"), posted("hello"), "\n\r\n", 400),
        then(chunks("0\r\n\r\n"), chunked(""), "0\r\n\r\n", 400),
        then(chunks("2\r\nhi\r\n0\r\n\r\n"), chunked("hi"), "\r\n\r\n", 400),
        then(post("Content-Length: 0", ""), posted(""), "hello\r\n\r\n", 400),
    ]
    .concat()
}

fn to_heads() -> Vec<Row> {
    let head = |fields: &str| format!("HEAD / HTTP/1.1\r\n{fields}\r\n\r\n");
    let section = "RFC 9110 9.3.2 (no content to a HEAD, refused or not)";
    [
        refused(section, 417, [head("Host: h\r\nExpect: x")]),
        refused(
            section,
            400,
            [
                head("Host: h\r\nHost: h"),
                head("X: y"),
                head("Host: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"),
            ],
        ),
        refused(section, 501, [head("Host: h\r\nTransfer-Encoding: gzip")]),
        refused(section, 413, [head("Host: h\r\nContent-Length: 17")]).tight().past_the_parsers(),
    ]
    .concat()
}

fn tunnels() -> Vec<Row> {
    let inner = "GET /evil HTTP/1.1\r\nHost: h\r\n\r\n";
    let length = format!("Content-Length: {}", inner.len());
    let head = format!("HEAD / HTTP/1.1\r\nHost: h\r\n{length}\r\n\r\n{inner}");
    let conditional = get(&format!("If-None-Match: *\r\n{length}")) + inner;
    let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    [
        served("request tunnelling (HEAD with a body)", head, [saw("HEAD / HTTP/1.1", &[&length], inner)]),
        served(
            "request tunnelling (a 304 to a body)",
            conditional,
            [saw("GET / HTTP/1.1", &["If-None-Match: *", &length], inner)],
        ),
        served(
            "request tunnelling (HEAD with chunks)",
            format!("HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
            [saw("HEAD / HTTP/1.1", &["Transfer-Encoding: chunked"], inner)],
        ),
        served(
            "a field that names another method",
            get("X-HTTP-Method-Override: DELETE"),
            [got(&["X-HTTP-Method-Override: DELETE"])],
        ),
        served(
            "a field that names another target",
            get("X-Original-URL: /admin\r\nX-Rewrite-URL: /admin"),
            [got(&["X-Original-URL: /admin", "X-Rewrite-URL: /admin"])],
        ),
    ]
    .concat()
}
