//! Clients that go away while their answer is awaited: their backend must not go on working for nobody.

use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head, read_request};
use crate::support::until;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Far beyond what a test waits: what ends sooner does not end by this.
const TIMEOUTS: &str = "[upstreams.app.timeouts]\nresponse = \"1h\"";

/// A backend that gets requests and says `answer`, which is nothing or not all; counts the requests, and the connections
/// that were ended by the gateway.
struct Slow {
    origin: Origin,
    asked: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
}

impl Slow {
    fn saying(answer: &'static str) -> Slow {
        let (asked, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (requests, ends) = (asked.clone(), ended.clone());
        let origin = Origin::new(move |mut stream, _| {
            let Some(request) = read_request(&mut stream) else { return };
            if request.line().contains("/quick") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                return;
            }
            stream.write_all(answer.as_bytes()).unwrap();
            requests.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0]);
            ends.fetch_add(1, Ordering::SeqCst);
        });
        Slow { origin, asked, ended }
    }

    fn gateway(&self) -> Gateway {
        let config = config("", &[self.origin.address], "");
        Gateway::start(&config.replace("[[routes]]", &format!("{TIMEOUTS}\n[[routes]]")))
    }
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Lets a client ask, makes it leave, and waits for the backend to be freed.
fn frees_the_backend(answer: &'static str, request: &str, leave: impl Fn(TcpStream)) {
    let slow = Slow::saying(answer);
    let gateway = slow.gateway();
    let mut client = Client::connect(gateway.address);
    client.send(request);
    until("the backend has the request", || slow.asked.load(Ordering::SeqCst) == 1);
    leave(client.stream);
    until("the backend's connection is ended", || slow.ended.load(Ordering::SeqCst) == 1);
    until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
    assert_eq!(slow.asked.load(Ordering::SeqCst), 1, "asked again for nobody");
    if answer.is_empty() {
        assert_eq!(gateway.metric("rateguard_requests_total{route=\"/\",status=\"4xx\"}"), 1.0);
        let text = client::get(gateway.admin, "/metrics").text();
        let blamed: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("rateguard_upstream_errors_total{") && !line.ends_with(" 0"))
            .collect();
        assert!(blamed.is_empty(), "the backend is blamed: {blamed:?}");
    }
    assert_eq!(client::get(gateway.address, "/quick").status, 200);
}

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";

#[test]
fn a_client_that_resets_its_connection_frees_the_backend() {
    frees_the_backend("", GET, reset);
    frees_the_backend("", POST, reset);
    frees_the_backend(EVENTS, GET, reset);
}

#[test]
fn a_client_that_closes_its_connection_frees_the_backend() {
    frees_the_backend("", GET, drop);
    frees_the_backend("", POST, drop);
    frees_the_backend(EVENTS, GET, drop);
    // More than is sent before the answer is waited for.
    let upload = format!("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    frees_the_backend("", &upload, drop);
}

#[test]
fn requests_that_wait_behind_do_not_hide_that_the_client_left() {
    frees_the_backend("", &GET.repeat(3), drop);
    frees_the_backend("", &GET.repeat(3), reset);
}

#[test]
fn a_client_that_leaves_in_its_upload_to_a_backend_that_does_not_read_frees_it() {
    let ended = Arc::new(AtomicUsize::new(0));
    let ends = ended.clone();
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        // A shutdown from the other side shows here without reading what came before it.
        until("the connection is ended", || {
            let mut fds = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::RDHUP)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() > 0
        });
        ends.fetch_add(1, Ordering::SeqCst);
    });
    let slow = Slow { origin, asked: Arc::default(), ended: ended.clone() };
    let gateway = slow.gateway();
    let mut client = Client::connect(gateway.address);
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = vec![0; 1024 * 1024];
    assert!((0..256).any(|_| client.stream.write(&piece).is_err()), "nobody reads, and all of it is taken");
    reset(client.stream);
    until("the backend's connection is ended", || ended.load(Ordering::SeqCst) == 1);
    until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn a_half_closed_client_is_waited_for_as_long_as_its_backend_goes_on() {
    const EVENTS: usize = 8;
    let origin = Origin::new(|mut stream, _| {
        while read_head(&mut stream).is_some() {
            std::thread::sleep(Duration::from_millis(400));
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            for _ in 0..EVENTS {
                std::thread::sleep(Duration::from_millis(400));
                stream.write_all(b"1\r\nx\r\n").unwrap();
            }
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
    });
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    client.send(GET).stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.response().text(), "x".repeat(EVENTS));
    assert!(client.is_closed());
}

#[test]
fn a_half_closed_client_gets_the_answer_that_comes_after_interim_ones() {
    let origin = Origin::new(|mut stream, _| {
        while read_head(&mut stream).is_some() {
            for _ in 0..6 {
                std::thread::sleep(Duration::from_millis(400));
                stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    client.send(GET).stream.shutdown(Shutdown::Write).unwrap();
    let statuses: Vec<u16> = (0..7).map(|_| client.response().status).collect();
    assert_eq!(statuses, [102, 102, 102, 102, 102, 102, 200]);
    assert!(client.is_closed());
}

#[test]
fn a_half_closed_client_that_reads_slowly_gets_all_of_it() {
    const SIZE: usize = 24 * 1024 * 1024;
    let origin = Origin::new(|mut stream, _| {
        while read_head(&mut stream).is_some() {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").unwrap();
            stream.write_all(&vec![b'x'; SIZE]).unwrap();
        }
    });
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    client.send(GET).stream.shutdown(Shutdown::Write).unwrap();
    // Longer than a silent backend would be waited for: here it is the client that takes its time.
    std::thread::sleep(Duration::from_millis(1600));
    assert_eq!(client.response().body.len(), SIZE);
}
