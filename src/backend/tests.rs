//! The backend over real sockets: bytes in, bytes out. Shell.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A backend called `b1` on a free port, on a thread that ends with the test process.
fn start() -> SocketAddr {
    let listener = super::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::Builder::new().spawn(move || super::serve(listener, "b1".to_owned())).unwrap();
    address
}

/// Sends `request` in pieces of `piece` bytes and returns all that comes back until the backend hangs up.
fn exchange_in(address: SocketAddr, request: &[u8], piece: usize) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    for part in request.chunks(piece) {
        stream.write_all(part).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn exchange(address: SocketAddr, request: &str) -> String {
    exchange_in(address, request.as_bytes(), usize::MAX)
}

/// One request of our own making, answered and closed.
fn ask(address: SocketAddr, method: &str, target: &str) -> String {
    exchange(address, &format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[test]
fn any_path_says_who_answered() {
    let answer = ask(start(), "DELETE", "/a%22b/\"c?x=1");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"), "{answer}");
    let json: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"message": "Hello from backend b1", "hostname": "b1", "path": "/a%22b/\"c", "method": "DELETE"})
    );
}

#[test]
fn demo_paths_answer_as_told() {
    let address = start();
    let starts = [
        ("/healthz", "HTTP/1.1 200 OK\r\n"),
        ("/slow?ms=0", "HTTP/1.1 200 OK\r\n"),
        ("/slow?ms=60001", "HTTP/1.1 400 Bad Request\r\n"),
        ("/slow?ms=+1", "HTTP/1.1 400 Bad Request\r\n"),
        ("/status/503", "HTTP/1.1 503 Service Unavailable\r\n"),
        ("/status/599", "HTTP/1.1 599 \r\n"),
        ("/status/199", "HTTP/1.1 400 Bad Request\r\n"),
        ("/status/600", "HTTP/1.1 400 Bad Request\r\n"),
        ("/status/", "HTTP/1.1 400 Bad Request\r\n"),
        ("/bytes/1073741825", "HTTP/1.1 400 Bad Request\r\n"),
        ("/bytes/-1", "HTTP/1.1 400 Bad Request\r\n"),
    ];
    for (target, start) in starts {
        let answer = ask(address, "GET", target);
        assert!(answer.starts_with(start), "{target}: {answer}");
    }
    assert_eq!(body(&ask(address, "GET", "/healthz")), "ok");
    assert_eq!(ask(address, "GET", "/status/204"), "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    assert!(ask(address, "GET", "/status/205").ends_with("content-length: 0\r\nconnection: close\r\n\r\n"));
}

#[test]
fn bytes_are_counted_and_patterned() {
    let address = start();
    for length in [0, 1, 251, 65_511, 65_512, 1_000_000] {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /bytes/{length} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = memchr::memmem::find(&answer, b"\r\n\r\n").unwrap() + 4;
        let (head, body) = answer.split_at(end);
        let head = String::from_utf8_lossy(head);
        assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
        assert_eq!(body.len(), length);
        assert!(body.iter().enumerate().all(|(i, b)| i % 251 == *b as usize));
    }
}

#[test]
fn head_has_the_length_but_not_the_body() {
    let address = start();
    let answer = ask(address, "HEAD", "/bytes/1000");
    assert!(answer.contains("content-length: 1000\r\n"), "{answer}");
    assert_eq!(body(&answer), "");
}

#[test]
fn echo_gives_back_every_framing() {
    let address = start();
    let requests = [
        "POST /echo HTTP/1.1\r\nContent-Type: a/b\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello world",
        "POST /echo HTTP/1.1\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    ];
    for request in requests {
        for piece in [1, 7, usize::MAX] {
            let answer = exchange_in(address, request.as_bytes(), piece);
            assert!(answer.contains("content-type: a/b\r\n"), "{answer}");
            assert_eq!(body(&answer), "hello world");
        }
    }
}

#[test]
fn a_large_echo_comes_back_whole() {
    let body = vec![b'x'; 3 << 20];
    let mut request =
        format!("POST /echo HTTP/1.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(&body);
    let answer = exchange_in(start(), &request, usize::MAX);
    assert!(answer.ends_with("xxx"));
    assert!(answer.len() > body.len());
}

#[test]
fn bodies_nobody_asked_for_are_read_past() {
    let answer = exchange(
        start(),
        "POST /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloPOST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /c HTTP/1.1\r\nConnection: close\r\n\r\n",
    );
    let paths: Vec<&str> = answer.split("\"path\":\"").skip(1).map(|rest| &rest[..2]).collect();
    assert_eq!(paths, ["/a", "/b", "/c"], "{answer}");
}

#[test]
fn a_client_that_waits_is_told_to_go_on() {
    let answer = exchange(
        start(),
        "POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
    );
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn http_1_0_closes_unless_asked_to_stay() {
    let address = start();
    assert!(exchange(address, "GET / HTTP/1.0\r\n\r\n").contains("connection: close\r\n"));
    let answer = exchange(address, "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET / HTTP/1.0\r\n\r\n");
    assert!(answer.contains("connection: keep-alive\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[test]
fn faults_are_answered_and_the_backend_lives_on() {
    let address = start();
    let long_name = format!("GET / HTTP/1.1\r\n{}: x\r\n\r\n", "n".repeat(70_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(200));
    let faults = [
        ("garbage\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (many.as_str(), 400),
        (long_name.as_str(), 431),
    ];
    for (request, status) in faults {
        let answer = exchange(address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty(), "half a request has no answer");
    assert_eq!(body(&ask(address, "GET", "/healthz")), "ok");
}
