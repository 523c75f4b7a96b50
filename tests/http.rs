//! What is refused, with which status, and that nothing after it is served: raw bytes through a running gateway.

use crate::support::client::{self, Client, Response};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head};
use crate::support::{seed, until};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Follows every refused request on the same connection.
const SECOND: &str = "GET /second HTTP/1.1\r\nHost: h\r\n\r\n";

/// Sends `bytes` and a second request; the answer must be `status`, and the last thing on the connection.
fn is_refused(gateway: &Gateway, bytes: &[u8], status: u16) {
    let what = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let mut client = Client::connect(gateway.address);
    client.send([bytes, SECOND.as_bytes()].concat());
    let response = client.try_response(true).unwrap_or_else(|error| panic!("{what:?}: {error}"));
    assert_eq!(response.status, status, "{what:?}: {response:?}");
    is_problem(&response, "client");
    assert_eq!(response.field("Connection"), Some("close"), "{what:?}");
    assert!(client.is_closed(), "{what:?}: something came after the refusal");
}

fn is_problem(response: &Response, blame: &str) {
    assert_eq!(response.field("Content-Type"), Some("application/problem+json"), "{response:?}");
    let problem = response.json();
    assert_eq!(problem["status"], response.status, "{response:?}");
    assert_eq!(problem["blame"], blame, "{response:?}");
    assert!(!problem["detail"].as_str().unwrap().is_empty(), "{response:?}");
}

/// Refuses all heads of a table, without a connection to the backend, and serves afterwards.
fn refuses(server: &str, table: &[(u16, &[u8])]) {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config(server, &[origin.address], ""));
    for (status, bytes) in table {
        is_refused(&gateway, bytes, *status);
    }
    assert_eq!(origin.connections(), 0, "a refused request made the gateway turn to the backend");
    assert_eq!(client::get(gateway.address, "/alive").status, 200);
    assert_eq!(origin.requests().len(), 1);
}

/// Heads with these field lines, as POST.
fn with_fields(status: u16, fields: &[&str]) -> Vec<(u16, Vec<u8>)> {
    let head = |fields: &&str| (status, format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n").into_bytes());
    fields.iter().map(head).collect()
}

fn borrowed(table: &[(u16, Vec<u8>)]) -> Vec<(u16, &[u8])> {
    table.iter().map(|(status, bytes)| (*status, bytes.as_slice())).collect()
}

#[test]
fn ambiguous_lengths_are_refused() {
    let bad = with_fields(
        400,
        &[
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 1",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1\r\nContent-Length: 2",
            "Content-Length: 1, 1",
            "Content-Length: 1, 2",
            "Content-Length:",
            "Content-Length: +1",
            "Content-Length: -1",
            "Content-Length: 0x1",
            "Content-Length: 1 1",
            "Content-Length: 1.0",
            "Content-Length: \"1\"",
            "Content-Length: 18446744073709551616",
            "Content-Length : 1",
            "Content-Length\t: 1",
            "Content-Length: \u{661}",
        ],
    );
    refuses("", &borrowed(&bad));
}

#[test]
fn transfer_codings_other_than_one_chunked_are_refused() {
    let mut bad = with_fields(
        400,
        &[
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked;q=1",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding:",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\u{b}chunked",
            "Transfer-Encoding: chunked\u{0}",
            "Transfer-Encoding:\r\n chunked",
        ],
    );
    let unknown = ["identity", "gzip", "xchunked", "chunked-not"].map(|coding| format!("Transfer-Encoding: {coding}"));
    bad.extend(with_fields(501, &unknown.each_ref().map(String::as_str)));
    bad.push((400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()));
    refuses("", &borrowed(&bad));
}

#[test]
fn hosts_and_targets_that_two_could_read_differently_are_refused() {
    let mut bad: Vec<(u16, Vec<u8>)> = Vec::new();
    for fields in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a b\r\n",
        "Host: a,b:1,2\r\n",
        "Host: a/b\r\n",
        "Host: u@a\r\n",
        "Host: a:x\r\n",
        "Host: [::1\r\n",
        "Host : a\r\n",
    ] {
        bad.push((400, format!("GET / HTTP/1.1\r\n{fields}\r\n").into_bytes()));
    }
    for target in [
        "*",
        "a",
        "/a b",
        "/a#b",
        "/a\u{0}",
        "/\u{e4}",
        "/a\tb",
        "http://",
        "http:///a",
        "http://u@h/",
        "ftp://h/",
        "//\u{7f}",
    ] {
        bad.push((400, format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()));
    }
    refuses("", &borrowed(&bad));
}

#[test]
fn what_is_no_http_1_request_is_refused() {
    let field = |line: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n").into_bytes();
    let mut bad: Vec<(u16, Vec<u8>)> = vec![
        (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        (505, b"GET / HTTP/2.0\r\nHost: h\r\n\r\n".to_vec()),
        (501, b"CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n".to_vec()),
        (505, b"GET /\r\n".to_vec()),
        (400, b"GET / HTTP/1.1\nHost: h\n\n".to_vec()),
        (400, b"GET / HTTP/1.1\r\nHost: h\n\r\n".to_vec()),
        (400, b"GET / HTTP/1.1\r\nHost: h\r\n\n".to_vec()),
        (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        (400, b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        (400, b" GET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        (400, b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        (400, b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n".to_vec()),
        (400, b"GET / http/1.1\r\nHost: h\r\n\r\n".to_vec()),
        (400, b"G\0T / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec()),
        (400, b"TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx".to_vec()),
        (400, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec()),
    ];
    let folded = ["X: a\r\n b", "X: a\r\n\tb", " X: a"];
    let malformed = ["X: \0", "X: a\0b", "X\0: a", "X: a\rb", "X : a", ": a", "X", "X Y: a", "X: \x7f", "X: a\nY: b"];
    bad.extend(folded.iter().chain(&malformed).map(|line| (400, field(line))));
    bad.push((417, field("Expect: 200-maybe")));
    refuses("", &borrowed(&bad));
}

#[test]
fn heads_beyond_the_bounds_are_refused() {
    let long = "x".repeat(2000);
    let many: String = (0..9).map(|number| format!("X-{number}: y\r\n")).collect();
    let bad = [
        (414, format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes()),
        (414, long.clone().into_bytes()),
        (431, format!("GET / HTTP/1.1\r\nHost: h\r\nX: {long}\r\n\r\n").into_bytes()),
        (431, format!("GET / HTTP/1.1\r\nHost: h\r\n{long}: x\r\n\r\n").into_bytes()),
        (431, format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n").into_bytes()),
    ];
    refuses("max_head = \"1KiB\"\nmax_headers = 8", &borrowed(&bad));
}

#[test]
fn a_head_of_exactly_the_bound_is_served() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("max_head = \"1KiB\"\nmax_headers = 8", &[origin.address], ""));
    let head = |bytes: usize| {
        let fixed = "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n\r\n".len();
        format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(bytes - fixed))
    };
    assert_eq!(client::raw(gateway.address, head(1024)).status, 200);
    assert_eq!(client::raw(gateway.address, head(1025)).status, 431);
    let fields = |count: usize| "X: y\r\n".repeat(count);
    assert_eq!(Client::connect(gateway.address).get("/", &fields(7)).status, 200);
    assert_eq!(Client::connect(gateway.address).get("/", &fields(8)).status, 431);
}

#[test]
fn a_declared_body_beyond_the_bound_is_refused_before_the_backend_hears_of_it() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("max_body = \"1KiB\"", &[origin.address], ""));
    is_refused(&gateway, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1025\r\n\r\n", 413);
    assert_eq!(origin.connections(), 0);
    let fits = format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1024\r\n\r\n{}", "x".repeat(1024));
    assert_eq!(client::raw(gateway.address, fits).status, 200);
}

/// Chunked bodies that are none.
const BAD_CHUNKS: [&str; 24] = [
    "\r\n",
    "g\r\n",
    "-1\r\n",
    "+1\r\n",
    "0x5\r\nhello\r\n",
    " 5\r\nhello\r\n",
    "5 \r\nhello\r\n",
    "5\nhello\r\n",
    "5\r\nhelloX",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\rX",
    "1000000000000000\r\n",
    "fffffffffffffffff\r\n",
    "5;\nhello\r\n",
    "5;a\0\r\nhello\r\n",
    "5;a\rb\r\n",
    "5\rX",
    "0\r\n\n",
    "0\r\n\rX",
    "0\r\nbad trailer: 1\r\n\r\n",
    "0\r\n: 1\r\n\r\n",
    "0\r\n folded\r\n\r\n",
    "0\r\na: b\n\r\n",
    "0\r\na\r\n\r\n",
];

const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_malformed_chunk_that_comes_with_its_head_is_refused_before_the_backend_hears_of_it() {
    let mut bad: Vec<(u16, Vec<u8>)> = Vec::new();
    for chunks in BAD_CHUNKS {
        bad.push((400, format!("{CHUNKED}{chunks}").into_bytes()));
        bad.push((400, format!("{CHUNKED}3\r\nabc\r\n{chunks}").into_bytes()));
    }
    refuses("", &borrowed(&bad));
}

/// A backend that never answers; keeps what it gets of each request.
struct Silent {
    origin: Origin,
    heads: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Silent {
    fn new() -> Silent {
        let heads = Arc::new(AtomicUsize::new(0));
        let bodies: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (seen, ended) = (heads.clone(), bodies.clone());
        let origin = Origin::new(move |mut stream, _| {
            if read_head(&mut stream).is_some() {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body);
            ended.lock().unwrap().push(body);
        });
        Silent { origin, heads, bodies }
    }

    fn until_heads(&self, count: usize) {
        until("the backend has the head", || self.heads.load(Ordering::SeqCst) == count);
    }

    /// The body of the request with this number, once its connection has ended.
    fn body(&self, number: usize) -> Vec<u8> {
        until("the backend sees the end", || self.bodies.lock().unwrap().len() > number);
        self.bodies.lock().unwrap()[number].clone()
    }
}

#[test]
fn a_chunk_that_turns_out_malformed_on_the_way_never_becomes_a_whole_request() {
    let silent = Silent::new();
    let gateway = Gateway::start(&config("", &[silent.origin.address], ""));
    for (number, chunks) in BAD_CHUNKS.iter().enumerate() {
        let mut client = Client::connect(gateway.address);
        client.send(format!("{CHUNKED}3\r\nabc\r\n"));
        silent.until_heads(number + 1);
        client.send(chunks).send(SECOND);
        let response = client.try_response(true).unwrap_or_else(|error| panic!("{chunks:?}: {error}"));
        assert_eq!(response.status, 400, "{chunks:?}");
        is_problem(&response, "client");
        assert!(client.is_closed(), "{chunks:?}");
        let body = silent.body(number);
        assert!(body.starts_with(b"3\r\nabc\r\n") && !body.ends_with(b"0\r\n\r\n"), "{chunks:?} became {body:?}");
    }
    silent.until_heads(BAD_CHUNKS.len());
}

#[test]
fn endless_extensions_and_trailers_are_refused() {
    let silent = Silent::new();
    let gateway = Gateway::start(&config("", &[silent.origin.address], ""));
    for (number, endless) in
        [format!("1;{}", "e".repeat(2000)), format!("0\r\n{}", "a: b\r\n".repeat(2000))].iter().enumerate()
    {
        let mut client = Client::connect(gateway.address);
        client.send(CHUNKED);
        silent.until_heads(number + 1);
        client.send(endless);
        assert_eq!(client.response().status, 400);
        assert!(client.is_closed());
        assert_eq!(silent.body(number), b"");
    }
}

#[test]
fn a_chunked_body_that_passes_the_bound_on_the_way_never_becomes_a_whole_request() {
    let silent = Silent::new();
    let gateway = Gateway::start(&config("max_body = \"1KiB\"", &[silent.origin.address], ""));
    let mut client = Client::connect(gateway.address);
    client.send(CHUNKED).send(format!("400\r\n{}\r\n", "x".repeat(1024)));
    silent.until_heads(1);
    client.send("1\r\nx\r\n0\r\n\r\n").send(SECOND);
    let response = client.response();
    assert_eq!(response.status, 413);
    is_problem(&response, "client");
    assert!(client.is_closed());
    assert!(!silent.body(0).ends_with(b"0\r\n\r\n"));
}

#[test]
fn our_own_answers_keep_the_connection_where_the_next_request_is_certain() {
    let origin = Origin::ok();
    let routes = config("", &[origin.address], "").replace("path = \"/\"", "path = \"/known\"");
    let gateway = Gateway::start(&routes);
    let unknown = |fields: &str, body: &str| format!("POST /x HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}");
    for (request, stays) in [
        (unknown("", ""), true),
        (unknown("Content-Length: 5\r\n", "hello"), true),
        (unknown("Connection: close\r\n", ""), false),
        (unknown("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), false),
        (unknown("Content-Length: 100000000\r\n", ""), false),
        ("GET /x HTTP/1.0\r\n\r\n".into(), false),
        ("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), true),
    ] {
        let mut client = Client::connect(gateway.address);
        client.send(&request).send("GET /known HTTP/1.1\r\nHost: h\r\n\r\n");
        let response = client.response();
        assert_eq!(response.status, 404, "{request:?}");
        is_problem(&response, "client");
        match stays {
            true => assert_eq!(client.response().text(), "ok", "{request:?}"),
            false => assert!(client.is_closed(), "{request:?}"),
        }
    }
}

#[test]
fn a_head_means_the_same_wherever_it_is_cut() {
    const HEAD: &str =
        "GET /a/b?c=%20 HTTP/1.1\r\nHost: example.com:80\r\nX-Request-Id: cut\r\nX-Empty:\r\nX-Y:  z \r\n\r\n";
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    for cut in 1..HEAD.len() {
        client.send(&HEAD[..cut]).send(&HEAD[cut..]);
        assert_eq!(client.response().text(), "ok", "cut at {cut}");
    }
    for byte in HEAD.bytes() {
        client.send([byte]);
    }
    assert_eq!(client.response().text(), "ok", "byte by byte");
    let requests = origin.requests();
    assert_eq!(requests.len(), HEAD.len());
    for (number, request) in requests.iter().enumerate() {
        assert_eq!(request.head, requests[0].head, "cut at {number}");
    }
}

/// A request, changed at random, or noise.
fn junk(random: &mut fastrand::Rng) -> Vec<u8> {
    const SEEDS: [&str; 5] = [
        "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
        "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "PUT http://h/a HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    ];
    const PIECES: [&[u8]; 12] = [
        b"\r\n",
        b"\n",
        b"\0",
        b": ",
        b" ",
        b"\xff",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"99999999999999999999",
        b"\t",
        b"0\r\n\r\n",
        b"HTTP/1.1",
    ];
    if random.u8(..10) == 0 {
        return (0..random.usize(1..4000)).map(|_| random.u8(..)).collect();
    }
    let mut bytes: Vec<u8> = (0..random.usize(1..4)).flat_map(|_| SEEDS[random.usize(..SEEDS.len())].bytes()).collect();
    for _ in 0..random.usize(..6) {
        let at = random.usize(..bytes.len());
        match random.u8(..4) {
            0 => bytes[at] = random.u8(..),
            1 => drop(bytes.drain(at..(at + random.usize(1..20)).min(bytes.len() - 1).max(at))),
            2 => bytes.truncate(at.max(1)),
            _ => drop(bytes.splice(at..at, PIECES[random.usize(..PIECES.len())].iter().copied())),
        }
    }
    bytes
}

fn throw(address: SocketAddr, bytes: &[u8]) {
    let mut client = Client::connect(address);
    // The gateway may refuse and close before all is sent.
    let _ = client.stream.write_all(bytes);
    let _ = client.stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let ended = client.stream.read_to_end(&mut answer);
    let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "no end after {:?}", String::from_utf8_lossy(bytes));
}

#[test]
fn garbage_neither_stops_the_gateway_nor_leaks_descriptors() {
    const CONNECTIONS: u64 = 2000;
    const THREADS: u64 = 4;
    let ended = Arc::new(AtomicUsize::new(0));
    let endings = ended.clone();
    let origin = Origin::new(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        endings.fetch_add(1, Ordering::SeqCst);
    });
    let gateway = Gateway::start(&config("", &[origin.address], "[upstreams.app.timeouts]\nidle = \"1s\"\n"));
    // Both workers have started when both have served.
    for _ in 0..32 {
        assert_eq!(client::get(gateway.address, "/").status, 200);
    }
    until("the connections are closed again", || {
        ended.load(Ordering::SeqCst) == origin.connections() && gateway.metric("rateguard_connections") == 0.0
    });
    let files = || std::fs::read_dir(format!("/proc/{}/fd", gateway.process())).unwrap().count();
    let before = files();
    let seed = seed();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let address = gateway.address;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed ^ thread);
                for _ in 0..CONNECTIONS / THREADS {
                    throw(address, &junk(&mut random));
                }
            });
        }
    });
    assert_eq!(client::get(gateway.address, "/alive").status, 200);
    until("all descriptors are given back", || files() <= before);
    assert_eq!(gateway.metric("rateguard_connections"), 0.0);
}
