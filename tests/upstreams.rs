//! Backends: whose turn it is, what happens when one is dead, stale, mute or broken, and what is tried again.

use crate::support::client::{self, Client, Response};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head, read_request};
use crate::support::store::Store;
use crate::support::until;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Whose turn it is, as numbers.
mod balance;

/// When a server counts as sick, and as well again.
mod health;

/// How many connections there may be, and who waits for one.
mod limits;

/// A backend whose mood a test changes.
pub mod moody;

/// What is tried again, where, and how often.
mod retries;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const EARLY: &[u8] = b"HTTP/1.1 103 Early Hints\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";

/// A gateway in front of these servers; `upstream` are further lines of the upstream's section.
fn gateway(servers: &[SocketAddr], upstream: &str) -> Gateway {
    Gateway::start(&config("", servers, "").replace("[[routes]]", &format!("{upstream}\n[[routes]]")))
}

/// As `gateway`, with the items of `servers` as they are to stand in the configuration.
fn gateway_of(servers: &[String], upstream: &str) -> Gateway {
    let text = config("", &[], "").replace("servers = []", &format!("servers = [{}]", servers.join(", ")));
    Gateway::start(&text.replace("[[routes]]", &format!("{upstream}\n[[routes]]")))
}

/// An address that refuses connections for as long as the socket is held: bound, but not listening.
pub fn refusing() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// An address that neither accepts nor refuses: its backlog is full.
pub fn black_hole() -> (socket2::Socket, TcpStream, SocketAddr) {
    let (socket, address) = refusing();
    socket.listen(0).unwrap();
    let only = TcpStream::connect(address).unwrap();
    (socket, only, address)
}

fn is_upstream_problem(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.field("Content-Type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!((problem["status"].as_u64(), problem["blame"].as_str()), (Some(status.into()), Some("upstream")));
    assert_eq!(problem["request_id"], "my-id");
}

fn ask(gateway: &Gateway, method: &str) -> Response {
    let mut client = Client::connect(gateway.address);
    client.send(format!("{method} / HTTP/1.1\r\nHost: h\r\nX-Request-Id: my-id\r\nContent-Length: 2\r\n\r\nhi"));
    client.response()
}

fn errors(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("rateguard_upstream_errors_total{{upstream=\"app\",kind=\"{kind}\"}}"))
}

fn retries(gateway: &Gateway) -> f64 {
    gateway.metric("rateguard_upstream_retries_total{upstream=\"app\"}")
}

#[test]
fn one_connection_s_requests_go_to_all_backends_alike() {
    let origins = [Origin::ok(), Origin::ok(), Origin::ok()];
    let gateway = gateway(&origins.each_ref().map(|origin| origin.address), "");
    let mut client = Client::connect(gateway.address);
    for _ in 0..300 {
        assert_eq!(client.get("/", "").status, 200);
    }
    assert_eq!(origins.each_ref().map(|origin| origin.requests().len()), [100; 3]);
}

#[test]
fn many_connections_requests_go_to_all_backends_alike() {
    const WORKERS: usize = 2;
    let origins = [Origin::ok(), Origin::ok(), Origin::ok()];
    let gateway = gateway(&origins.each_ref().map(|origin| origin.address), "");
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(gateway.address)).collect();
    for turn in 0..300 {
        assert_eq!(clients[turn % 20].get("/", "").status, 200);
    }
    // Each worker keeps a round of its own, so each may be in the middle of one.
    let counts = origins.each_ref().map(|origin| origin.requests().len());
    let difference = counts.iter().max().unwrap() - counts.iter().min().unwrap();
    assert_eq!(counts.iter().sum::<usize>(), 300);
    assert!(difference <= WORKERS, "{counts:?}");
}

#[test]
fn a_backend_may_be_named() {
    let origin = Origin::ok();
    let text = config("", &[origin.address], "");
    let gateway = Gateway::start(&text.replace(
        &format!("servers = [\"{}\"]", origin.address),
        &format!("servers = [\"localhost:{}\"]", origin.address.port()),
    ));
    for _ in 0..10 {
        assert_eq!(client::get(gateway.address, "/").status, 200);
    }
}

#[test]
fn a_dead_backend_among_three_fails_no_request() {
    let origins = [Origin::ok(), Origin::ok()];
    let (_held, dead) = refusing();
    let gateway = gateway(&[origins[0].address, dead, origins[1].address], "");
    let mut client = Client::connect(gateway.address);
    for number in 0..60 {
        let response = match number % 2 {
            0 => client.get("/", ""),
            _ => client.send(POST).response(),
        };
        assert_eq!(response.status, 200, "request {number}");
    }
    assert_eq!(origins.iter().map(|origin| origin.requests().len()).sum::<usize>(), 60);
    // After three of them it is left alone.
    assert_eq!((errors(&gateway, "connect"), retries(&gateway)), (3.0, 3.0));
    let said = gateway.log_of("server is left alone");
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!((&said[0]["server"], &said[0]["for_ms"]), (&dead.to_string().into(), &10_000.into()));
}

#[test]
fn a_body_still_on_its_way_survives_a_dead_backend() {
    let origin = Origin::ok();
    let (_held, dead) = refusing();
    let gateway = gateway(&[dead, origin.address], "");
    let mut client = Client::connect(gateway.address);
    for _ in 0..4 {
        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel");
        let before = origin.requests().len();
        until("the head has been passed on", || origin.connections() > 0);
        assert_eq!(origin.requests().len(), before);
        assert_eq!(client.send("lo").response().status, 200);
    }
    assert!(origin.requests().iter().all(|request| request.body == b"hello"));
}

#[test]
fn nobody_to_connect_to_is_502() {
    let (dead, other) = (refusing(), refusing());
    let gateway = gateway(&[dead.1, other.1], "retries = 5");
    is_upstream_problem(&ask(&gateway, "GET"), 502);
    is_upstream_problem(&ask(&gateway, "POST"), 502);
    // Each is asked once for each request.
    assert_eq!((errors(&gateway, "connect"), retries(&gateway)), (4.0, 2.0));
    until("both are logged", || gateway.log_of("no backend could be reached").len() == 2);
}

#[test]
fn a_client_whose_request_was_whole_keeps_its_connection_when_the_backend_fails() {
    let (_held, dead) = refusing();
    let gateway = gateway(&[dead], "retries = 0");
    let mut client = Client::connect(gateway.address);
    for _ in 0..3 {
        let response = client.send(POST).response();
        assert_eq!((response.status, response.field("Connection")), (502, None));
    }
}

#[test]
fn our_own_answers_tell_what_the_request_cost() {
    let (_held, dead) = refusing();
    let limit = "[store]\nurl = \"memory:\"\n[[limits]]\nname = \"all\"\nrate = \"1/h\"\nburst = 5\n";
    let gateway = Gateway::start(&config("", &[dead], limit));
    let response = client::get(gateway.address, "/");
    assert_eq!((response.status, response.field("RateLimit")), (502, Some("\"all\";r=4;t=3600")));
    let last = "OPTIONS / HTTP/1.1\r\nHost: h\r\nMax-Forwards: 0\r\n\r\n";
    let response = client::raw(gateway.address, last);
    assert_eq!((response.status, response.field("RateLimit")), (204, Some("\"all\";r=3;t=3600")));
}

#[test]
fn a_connection_that_does_not_come_about_is_504() {
    let (_listener, _only, hole) = black_hole();
    let gateway = gateway(&[hole], "retries = 0\ntimeouts = { connect = \"200ms\" }");
    is_upstream_problem(&ask(&gateway, "GET"), 504);
    assert_eq!((errors(&gateway, "connect_timeout"), retries(&gateway)), (1.0, 0.0));
}

#[test]
fn a_connection_that_does_not_come_about_is_tried_elsewhere() {
    let origin = Origin::ok();
    let (_listener, _only, hole) = black_hole();
    let gateway = gateway(&[hole, origin.address], "timeouts = { connect = \"200ms\" }");
    for _ in 0..2 {
        assert_eq!(ask(&gateway, "POST").status, 200);
    }
    assert_eq!(origin.requests().len(), 2);
}

/// A backend that reads requests and does `then` instead of answering; counts the requests.
fn counting(then: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> (Origin, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    let origin = Origin::new(move |mut stream, _| {
        if read_request(&mut stream).is_some() {
            counter.fetch_add(1, Ordering::SeqCst);
            then(&mut stream);
        }
    });
    (origin, requests)
}

/// Waits until the gateway hangs up.
fn hold(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]);
}

#[test]
fn a_backend_that_never_answers_is_504_and_asked_once() {
    let (origin, requests) = counting(hold);
    let gateway = gateway(&[origin.address], "timeouts = { response = \"300ms\" }");
    is_upstream_problem(&ask(&gateway, "GET"), 504);
    is_upstream_problem(&ask(&gateway, "POST"), 504);
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    assert_eq!((errors(&gateway, "timeout"), retries(&gateway)), (2.0, 0.0));
}

#[test]
fn a_backend_that_stops_in_its_response_is_cut_off() {
    let (origin, _) = counting(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").unwrap();
        hold(stream);
    });
    let gateway = gateway(&[origin.address], "timeouts = { response = \"300ms\" }");
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.try_response(true).is_err());
    until("it is logged", || gateway.log_of("cut off: the backend paused for too long in its response").len() == 1);
    assert_eq!(errors(&gateway, "timeout"), 1.0);
}

#[test]
fn a_backend_that_ends_in_its_response_is_counted_and_one_whose_client_leaves_is_not() {
    let (breaking, _) = counting(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").unwrap();
    });
    let gateway = gateway(&[breaking.address], "");
    assert!(Client::connect(gateway.address).send(GET).try_response(true).is_err());
    until("it is logged", || gateway.log_of("the backend broke off in its response").len() == 1);
    assert_eq!((errors(&gateway, "receive"), retries(&gateway)), (1.0, 0.0));

    let (endless, _) = counting(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n").unwrap();
        while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    });
    let gateway = self::gateway(&[endless.address], "");
    let mut client = Client::connect(gateway.address);
    client.send(GET).stream.read_exact(&mut [0; 64 * 1024]).unwrap();
    drop(client);
    until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
    let blamed: f64 = ["receive", "timeout", "bad_response", "send"].iter().map(|kind| errors(&gateway, kind)).sum();
    assert_eq!((blamed, gateway.log_of("the backend broke off in its response").len()), (0.0, 0));
}

#[test]
fn a_backend_that_stops_reading_is_504() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        until("the gateway has given up", || {
            let mut fds = [rustix::event::PollFd::new(&stream, rustix::event::PollFlags::RDHUP)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() > 0
        });
    });
    let gateway = gateway(&[origin.address], "timeouts = { response = \"400ms\" }");
    let mut client = Client::connect(gateway.address);
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nX-Request-Id: my-id\r\nContent-Length: 1000000000\r\n\r\n");
    let mut sending = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || while sending.write_all(&[b'x'; 64 * 1024]).is_ok() {});
    let response = client.response();
    // Nobody takes the rest of the body.
    drop(client);
    sender.join().unwrap();
    is_upstream_problem(&response, 504);
    assert_eq!((errors(&gateway, "timeout"), retries(&gateway)), (1.0, 0.0));
}

#[test]
fn a_backend_that_never_says_continue_is_504_and_the_client_is_not_blamed() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        hold(&mut stream);
    });
    let config = config("[server.timeouts]\nbody = \"200ms\"", &[origin.address], "");
    let timeouts = "[upstreams.app.timeouts]\nresponse = \"600ms\"\n[[routes]]";
    let gateway = Gateway::start(&config.replace("[[routes]]", timeouts));
    let mut client = Client::connect(gateway.address);
    client
        .send("POST / HTTP/1.1\r\nHost: h\r\nX-Request-Id: my-id\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let response = client.response();
    is_upstream_problem(&response, 504);
    assert_eq!((errors(&gateway, "timeout"), response.field("Connection")), (1.0, Some("close")));
}

#[test]
fn an_answer_that_stalls_is_cut_off_although_the_client_sends_its_body_meanwhile() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").unwrap();
        until("the gateway has given up", || matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    });
    let gateway = gateway(&[origin.address], "timeouts = { response = \"500ms\" }");
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let mut begun = [0; 4096];
    let length = client.stream.read(&mut begun).unwrap();
    assert!(begun[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
    client.send("hello");
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    until("it is logged", || gateway.log_of("cut off: the backend paused for too long in its response").len() == 1);
    assert_eq!(errors(&gateway, "timeout"), 1.0);
}

#[test]
fn a_client_that_does_not_wait_for_100_has_the_time_of_any_body() {
    let (origin, requests) = counting(|stream| stream.write_all(OK).unwrap());
    let gateway = gateway(&[origin.address], "timeouts = { response = \"300ms\" }");
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhe");
    std::thread::sleep(Duration::from_millis(900));
    assert_eq!((client.send("llo").response().status, requests.load(Ordering::SeqCst)), (200, 1));
}

#[test]
fn a_client_that_stops_its_upload_gets_the_whole_early_answer() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 413 No\r\nContent-Length: 10\r\n\r\n").unwrap();
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(b"x").unwrap();
        }
        hold(&mut stream);
    });
    let gateway = Gateway::start(&config("[server.timeouts]\nbody = \"300ms\"", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nhello");
    assert_eq!(client.response().text(), "x".repeat(10));
}

#[test]
fn a_client_that_was_told_to_continue_and_does_not_is_408() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        hold(&mut stream);
    });
    let config = config("[server.timeouts]\nbody = \"300ms\"", &[origin.address], "");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.response().status, 100);
    assert_eq!(client.response().status, 408);
}

#[test]
fn a_backend_that_says_that_it_goes_on_may_take_longer() {
    let (origin, requests) = counting(|stream| {
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(250));
            stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").unwrap();
        }
        stream.write_all(OK).unwrap();
    });
    let gateway = gateway(&[origin.address], "timeouts = { response = \"1s\" }");
    let mut client = Client::connect(gateway.address);
    client.send(GET);
    for _ in 0..8 {
        assert_eq!(client.response().status, 102);
    }
    assert_eq!((client.response().status, requests.load(Ordering::SeqCst)), (200, 1));
}

#[test]
fn a_get_that_a_backend_drops_is_tried_again_and_a_post_is_not() {
    let ((one, asked), (two, also)) = (counting(|_| {}), counting(|_| {}));
    let gateway = gateway(&[one.address, two.address], "retries = 5");
    is_upstream_problem(&ask(&gateway, "GET"), 502);
    // Nobody is asked twice.
    assert_eq!([&asked, &also].map(|requests| requests.swap(0, Ordering::SeqCst)), [1, 1]);
    is_upstream_problem(&ask(&gateway, "POST"), 502);
    assert_eq!(asked.load(Ordering::SeqCst) + also.load(Ordering::SeqCst), 1);
    assert_eq!(retries(&gateway), 1.0);
    assert_eq!(errors(&gateway, "receive"), 3.0);
}

#[test]
fn a_request_that_is_tried_again_is_charged_once() {
    for store in [Store::memory(), Store::redis()] {
        let (dropping, requests) = counting(|_| {});
        let origin = Origin::ok();
        let limit = "[[limits]]\nname = \"all\"\nrate = \"1/h\"\nburst = 5\n";
        let servers = [dropping.address, origin.address];
        let gateway = Gateway::start(&config("", &servers, &format!("{}{limit}", store.lines())));
        if let Store::Redis(_) = store {
            gateway.until_store_connected();
        }
        let mut client = Client::connect(gateway.address);
        for left in [4, 3, 2, 1] {
            let response = client.get("/", "");
            let told = format!("\"all\";r={left};t=3600");
            assert_eq!((response.text().as_str(), response.field("RateLimit")), ("ok", Some(told.as_str())));
        }
        let tried_again = (requests.load(Ordering::SeqCst), retries(&gateway));
        assert_eq!(tried_again, (2, 2.0), "every other request meets the backend that drops it");
    }
}

/// What a client has not heard of may be asked for again, where that does no harm; an interim response it has heard.
#[test]
fn nothing_is_tried_again_once_the_client_has_heard_of_it() {
    for start in ["H", "HTTP/1.1 200 OK\r\nContent-Le", "nonsense\r\n\r\n"] {
        let (origin, requests) = counting(move |stream| stream.write_all(start.as_bytes()).unwrap());
        let good = Origin::ok();
        let gateway = gateway(&[origin.address, good.address], "health = { eject = \"off\" }");
        let mut client = Client::connect(gateway.address);
        assert!((0..4).all(|_| client.get("/", "").status == 200), "{start:?}");
        assert_eq!((requests.swap(0, Ordering::SeqCst), retries(&gateway)), (2, 2.0), "{start:?}");
        let statuses: Vec<u16> = (0..4).map(|_| ask(&gateway, "POST").status).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 502).count(), requests.load(Ordering::SeqCst));
        assert!(statuses.contains(&502), "{statuses:?}");
    }
    let ((one, asked), (two, also)) =
        (counting(|stream| stream.write_all(EARLY).unwrap()), counting(|stream| stream.write_all(EARLY).unwrap()));
    let gateway = gateway(&[one.address, two.address], "");
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: my-id\r\n\r\n");
    assert_eq!(client.response().status, 103);
    is_upstream_problem(&client.response(), 502);
    assert_eq!(asked.load(Ordering::SeqCst) + also.load(Ordering::SeqCst), 1);
    assert_eq!(retries(&gateway), 0.0);
}

/// A backend that answers one request on a connection as if it kept it, and closes it; counts both.
fn fickle() -> (Origin, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (requests, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, endings) = (requests.clone(), closed.clone());
    let origin = Origin::new(move |mut stream, _| {
        if read_request(&mut stream).is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
            stream.write_all(OK).unwrap();
            // Dropping may not be enough: a process that another test starts meanwhile holds the socket up to its exec.
            stream.shutdown(Shutdown::Write).unwrap();
            endings.fetch_add(1, Ordering::SeqCst);
        }
    });
    (origin, requests, closed)
}

#[test]
fn a_get_never_fails_on_a_connection_that_the_backend_closes_meanwhile() {
    let (origin, requests, _) = fickle();
    let gateway = gateway(&[origin.address], "retries = 0");
    let mut client = Client::connect(gateway.address);
    for number in 0..200 {
        assert_eq!(client.get("/", "").status, 200, "request {number}");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 200);
}

#[test]
fn a_post_is_not_trusted_to_a_connection_that_the_backend_has_closed() {
    let (origin, requests, closed) = fickle();
    let gateway = gateway(&[origin.address], "retries = 0");
    let mut client = Client::connect(gateway.address);
    for number in 1..=50 {
        assert_eq!(client.send(POST).response().status, 200, "request {number}");
        until("the backend has closed the connection", || closed.load(Ordering::SeqCst) == number);
    }
    assert_eq!((requests.load(Ordering::SeqCst), retries(&gateway)), (50, 0.0));
}

#[test]
fn a_post_that_a_kept_connection_swallows_is_never_sent_twice() {
    let posts = Arc::new(AtomicUsize::new(0));
    let counter = posts.clone();
    let origin = Origin::new(move |mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            if request.line().starts_with("POST") {
                counter.fetch_add(1, Ordering::SeqCst);
                return;
            }
            stream.write_all(OK).unwrap();
        }
    });
    let gateway = gateway(&[origin.address], "retries = 10");
    for number in 1..=20 {
        let mut client = Client::connect(gateway.address);
        assert_eq!(client.get("/", "").status, 200);
        assert_eq!(client.send(POST).response().status, 502);
        assert_eq!(posts.load(Ordering::SeqCst), number);
    }
}

#[test]
fn a_put_on_a_dead_kept_connection_arrives_whole() {
    let bodies = Arc::new(AtomicUsize::new(0));
    let counter = bodies.clone();
    let origin = Origin::new(move |mut stream, _| {
        // The second request on a connection is dropped.
        if let Some(request) = read_request(&mut stream) {
            counter.fetch_add(usize::from(request.body == b"hello"), Ordering::SeqCst);
            stream.write_all(OK).unwrap();
            let _ = read_head(&mut stream);
        }
    });
    let gateway = gateway(&[origin.address], "retries = 0");
    let mut client = Client::connect(gateway.address);
    for number in 1..=20 {
        let response = client.send(POST.replace("POST", "PUT")).response();
        assert_eq!((response.status, bodies.load(Ordering::SeqCst)), (200, number));
    }
}

#[test]
fn an_unused_connection_is_closed_in_time() {
    let ended = Arc::new(AtomicUsize::new(0));
    let endings = ended.clone();
    let origin = Origin::new(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            stream.write_all(OK).unwrap();
        }
        endings.fetch_add(1, Ordering::SeqCst);
    });
    let gateway = gateway(&[origin.address], "timeouts = { idle = \"200ms\" }");
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/", "").status, 200);
    until("the backend sees the end", || ended.load(Ordering::SeqCst) == 1);
    assert_eq!(client.get("/", "").status, 200);
    assert_eq!(origin.connections(), 2);
}

#[test]
fn a_backend_that_asks_for_the_end_is_not_asked_again_on_that_connection() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    let gateway = gateway(&[origin.address], "");
    let mut client = Client::connect(gateway.address);
    for _ in 0..5 {
        let response = client.get("/", "");
        assert_eq!((response.status, response.field("Connection")), (200, None));
    }
    assert_eq!(origin.connections(), 5);
}
