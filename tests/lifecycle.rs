//! Starting, stopping, and what ends connections in between: signals, the drain, the cap and the timeouts.

use crate::support::client::{self, Client, Response};
use crate::support::gateway::{Gateway, PROGRAM, config, io};
use crate::support::origin::{Origin, read_head};
use crate::support::{Folder, PATIENCE, signal, suspend, until};
use rustix::process::{Resource, Rlimit, Signal, prlimit};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// A backend that answers when it is told to; counts the requests that wait.
struct Waiting {
    origin: Origin,
    requests: Arc<AtomicUsize>,
    go: Arc<AtomicBool>,
}

impl Waiting {
    fn new() -> Waiting {
        let (requests, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, may_go) = (requests.clone(), go.clone());
        let origin = Origin::new(move |mut stream, _| {
            stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            let Some(_) = std::iter::repeat_with(|| read_head(&mut stream)).take(1000).find_map(|head| head) else {
                return;
            };
            seen.fetch_add(1, Ordering::SeqCst);
            until("the test lets the backend answer, or the gateway hangs up", || {
                may_go.load(Ordering::SeqCst) || matches!(stream.read(&mut [0]), Ok(0))
            });
            let _ = stream.write_all(OK);
        });
        Waiting { origin, requests, go }
    }

    /// A client whose request waits at the backend.
    fn client(&self, gateway: &Gateway) -> Client {
        let before = self.requests.load(Ordering::SeqCst);
        let mut client = Client::connect(gateway.address);
        client.send(GET);
        until("the backend has the request", || self.requests.load(Ordering::SeqCst) > before);
        client
    }
}

fn until_refusing(gateway: &Gateway) {
    until("new connections are refused", || TcpStream::connect(gateway.address).is_err());
}

#[test]
fn sigterm_closes_idle_connections_and_ends_with_success() {
    let origin = Origin::ok();
    let mut gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut fresh: Vec<Client> = (0..8).map(|_| Client::connect(gateway.address)).collect();
    let mut used: Vec<Client> = (0..8).map(|_| Client::connect(gateway.address)).collect();
    for client in &mut used {
        assert_eq!(client.get("/", "").status, 200);
    }
    gateway.terminate();
    assert!(fresh.iter_mut().chain(&mut used).all(Client::is_closed));
    // The default drain is longer than any test waits.
    assert_eq!(gateway.wait().code(), Some(0));
    until("it has said so", || gateway.log_of("stopped").len() == 1);
}

#[test]
fn a_kept_connection_is_served_once_more_after_sigterm() {
    let origin = Origin::ok();
    // What a busy machine delays beyond the grace shows nothing.
    until("a request within the grace", || {
        let mut gateway = Gateway::start(&config("", &[origin.address], ""));
        let mut kept = Client::connect(gateway.address);
        assert_eq!(kept.get("/", "").status, 200);
        let start = Instant::now();
        gateway.terminate();
        until_refusing(&gateway);
        kept.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        let response = kept.try_response(true);
        let is_late = start.elapsed() > Duration::from_millis(900);
        if let Ok(response) = &response {
            assert_eq!((response.status, response.field("Connection")), (200, Some("close")));
            assert!(kept.is_closed());
            assert_eq!(gateway.wait().code(), Some(0));
        }
        assert!(response.is_ok() || is_late, "{:?} after the signal", start.elapsed());
        response.is_ok()
    });
}

#[test]
fn a_request_under_way_is_finished_after_sigterm_and_its_connection_closed() {
    let waiting = Waiting::new();
    let mut gateway = Gateway::start(&config("", &[waiting.origin.address], ""));
    let mut clients: Vec<Client> = (0..4).map(|_| waiting.client(&gateway)).collect();
    gateway.terminate();
    until_refusing(&gateway);
    assert!(gateway.is_alive());
    waiting.go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        let response = client.response();
        assert_eq!((response.text().as_str(), response.field("Connection")), ("ok", Some("close")));
        assert!(client.is_closed());
    }
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn requests_that_arrived_before_the_stop_are_served() {
    let origin = Origin::ok();
    for _ in 0..2 {
        let mut gateway = Gateway::start(&config("", &[origin.address], ""));
        let mut kept = Client::connect(gateway.address);
        assert_eq!(kept.get("/", "").status, 200);
        // While it is suspended, connections and requests pile up in the kernel.
        suspend(gateway.process());
        let mut clients: Vec<Client> = (0..300).map(|_| Client::connect(gateway.address)).collect();
        clients.push(kept);
        for client in &mut clients {
            client.send(GET);
        }
        gateway.terminate();
        signal(gateway.process(), Signal::CONT);
        for (number, client) in clients.iter_mut().enumerate() {
            let response = client.try_response(true).map(|response| response.status);
            assert_eq!(response.ok(), Some(200), "client {number}");
        }
        drop(clients);
        assert_eq!(gateway.wait().code(), Some(0));
    }
}

#[test]
fn a_request_that_never_ends_is_cut_off_after_the_drain() {
    let waiting = Waiting::new();
    let timeouts = "[server.timeouts]\ndrain = \"500ms\"";
    let mut gateway = Gateway::start(&config(timeouts, &[waiting.origin.address], ""));
    let mut client = waiting.client(&gateway);
    let start = Instant::now();
    gateway.terminate();
    assert!(client.try_response(true).is_err());
    assert!(start.elapsed() >= Duration::from_millis(500), "cut off after {:?} already", start.elapsed());
    assert_eq!(gateway.wait().code(), Some(0));
    until("it is told", || !gateway.log_of("cut off: still under way at the end of the stop").is_empty());
    let told = &gateway.log_of("cut off: still under way at the end of the stop")[0];
    assert_eq!(told["connections"], 2, "the client's, and that to the backend: {told}");
}

/// A backend that never ends the body, which only its close would end.
fn endless_origin() -> Origin {
    Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\npart").unwrap();
        let _ = stream.read(&mut [0]);
    })
}

#[test]
fn a_body_that_the_stop_cuts_off_does_not_look_whole() {
    for signals in [&[Signal::TERM][..], &[Signal::TERM, Signal::TERM]] {
        let origin = endless_origin();
        let drain = if signals.len() > 1 { "1h" } else { "500ms" };
        let timeouts = format!("[server.timeouts]\ndrain = \"{drain}\"");
        let mut gateway = Gateway::start(&config(&timeouts, &[origin.address], ""));
        let mut old = Client::connect(gateway.address);
        old.send("GET / HTTP/1.0\r\n\r\n");
        let mut seen = [0; 4096];
        let mut length = 0;
        until("the client has a part of the body", || {
            length += old.stream.read(&mut seen[length..]).unwrap();
            seen[..length].ends_with(b"part")
        });
        for (number, &which) in signals.iter().enumerate() {
            signal(gateway.process(), which);
            if number == 0 {
                until_refusing(&gateway);
            }
        }
        let end = old.stream.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{signals:?}");
        assert_eq!(gateway.wait().code(), Some(0));
    }
}

#[test]
fn an_answer_that_was_written_survives_the_end_of_the_drain() {
    const SIZE: usize = 300_000;
    let origin = Origin::new(|mut stream, _| {
        while read_head(&mut stream).is_some() {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").unwrap();
            stream.write_all(&[b'x'; SIZE]).unwrap();
        }
    });
    let mut gateway = Gateway::start(&config("[server.timeouts]\ndrain = \"1h\"", &[origin.address], ""));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.connect(&gateway.address.into()).unwrap();
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let answered = "rateguard_requests_total{route=\"/\",status=\"2xx\"}";
    until("the gateway has written all of it", || gateway.metric(answered) == 1.0);
    signal(gateway.process(), Signal::TERM);
    until_refusing(&gateway);
    signal(gateway.process(), Signal::TERM);
    assert_eq!(gateway.wait().code(), Some(0));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got.len() > SIZE && got.ends_with(b"xxx"), "{} bytes", got.len());
}

#[test]
fn a_second_signal_ends_the_drain_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let waiting = Waiting::new();
        let mut gateway = Gateway::start(&config("", &[waiting.origin.address], ""));
        let mut client = waiting.client(&gateway);
        signal(gateway.process(), Signal::INT);
        until_refusing(&gateway);
        assert!(gateway.is_alive());
        signal(gateway.process(), second);
        // The default drain is longer than any test waits.
        gateway.wait();
        assert!(client.try_response(true).is_err());
        until("it has said so", || gateway.log_of("stopped at once by a second signal").len() == 1);
    }
}

fn is_problem(response: &Response, status: u16, blame: &str) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.field("Content-Type"), Some("application/problem+json"));
    assert_eq!(response.field("Connection"), Some("close"));
    assert_eq!(response.json()["blame"], blame);
}

#[test]
fn clients_beyond_the_cap_are_told_so_until_there_is_room() {
    let origin = Origin::ok();
    let mut gateway = Gateway::start(&config("max_connections = 2", &[origin.address], ""));
    let mut clients = [Client::connect(gateway.address), Client::connect(gateway.address)];
    for client in &mut clients {
        assert_eq!(client.get("/", "").status, 200);
    }
    for _ in 0..10 {
        let mut third = Client::connect(gateway.address);
        let response = third.response();
        is_problem(&response, 503, "gateway");
        assert_eq!(response.field("Retry-After"), Some("1"));
        assert!(third.is_closed());
    }
    assert_eq!(gateway.metric("rateguard_connections_shed_total"), 10.0);
    assert_eq!(gateway.log_of("turned away: server.max_connections are open").len(), 10);
    assert!(clients.iter_mut().all(|client| client.get("/", "").status == 200));
    let [first, _second] = clients;
    drop(first);
    until("there is room again", || client::get(gateway.address, "/").status == 200);
    assert!(gateway.is_alive());
}

/// A gateway with one short timeout.
fn hasty(timeout: &str, origin: &Origin) -> Gateway {
    hasty_by(timeout, "300ms", origin)
}

fn hasty_by(timeout: &str, duration: &str, origin: &Origin) -> Gateway {
    let timeouts = format!("[server.timeouts]\n{timeout} = \"{duration}\"");
    Gateway::start(&config(&timeouts, &[origin.address], ""))
}

#[test]
fn a_head_that_takes_too_long_is_408() {
    let origin = Origin::ok();
    let gateway = hasty("head", &origin);
    for start in ["G", "GET / HTTP/1.1\r\nHost: h\r\n", "\r\nG"] {
        let mut client = Client::connect(gateway.address);
        is_problem(&client.send(start).response(), 408, "client");
        assert!(client.is_closed());
        // After a request on the same connection, too.
        let mut client = Client::connect(gateway.address);
        client.send(format!("{GET}{start}"));
        assert_eq!(client.response().status, 200);
        is_problem(&client.response(), 408, "client");
    }
    assert_eq!(origin.requests().len(), 3);
}

/// A client could take a 408 for the answer to its next request.
#[test]
fn an_empty_line_begins_no_request() {
    let origin = Origin::ok();
    let gateway = hasty("head", &origin);
    for (line, rest) in [("\r\n", ""), ("\r", "\n")] {
        let mut client = Client::connect(gateway.address);
        assert_eq!(client.send(format!("{GET}{line}")).response().status, 200);
        // Twice as long as a head may take.
        client.stream.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
        assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::WouldBlock);
        client.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.send(format!("{rest}{GET}")).response().status, 200);
    }
    let gateway = hasty("idle", &origin);
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.send(format!("{GET}\r\n")).response().status, 200);
    assert!(client.is_closed());
}

#[test]
fn a_first_line_that_is_wrong_is_refused_before_the_head_is_over() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("[server.timeouts]\nhead = \"1h\"", &[origin.address], ""));
    for (before, line, status) in [
        ("", "GET /\r\n", 505),
        ("\r\n", "GET /\r\n", 505),
        ("\r\n", "GET / HTTP/3.0\r\n", 505),
        ("\r\n", "nonsense\r\n", 400),
    ] {
        let mut client = Client::connect(gateway.address);
        client.send(before);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(client.send(line).response().status, status, "{before:?} {line:?}");
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_head_that_drips_is_408() {
    let origin = Origin::ok();
    let gateway = hasty("head", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nX: ");
    let mut drip = client.stream.try_clone().unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let dripping = std::thread::spawn(move || {
        until("the client has its answer", || drip.write_all(b"x").is_err() || stop.load(Ordering::SeqCst));
    });
    let response = client.response();
    done.store(true, Ordering::SeqCst);
    dripping.join().unwrap();
    is_problem(&response, 408, "client");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_body_that_stops_is_408_and_never_whole_at_the_backend() {
    let bodies = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = bodies.clone();
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        let mut body = Vec::new();
        let _ = stream.read_to_end(&mut body);
        sink.lock().unwrap().push(body);
    });
    let gateway = hasty("body", &origin);
    for (number, framing) in ["Content-Length: 10", "Transfer-Encoding: chunked"].iter().enumerate() {
        let mut client = Client::connect(gateway.address);
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n2\r\nhi\r\n"));
        is_problem(&client.response(), 408, "client");
        assert!(client.is_closed());
        until("the backend sees the end", || bodies.lock().unwrap().len() == number + 1);
        let body = bodies.lock().unwrap()[number].clone();
        assert!(body == b"2\r\nhi\r\n", "{framing}: {body:?}");
    }
}

#[test]
fn an_idle_connection_is_closed_without_an_answer() {
    let origin = Origin::ok();
    let gateway = hasty("idle", &origin);
    let mut fresh = Client::connect(gateway.address);
    let mut used = Client::connect(gateway.address);
    assert_eq!(used.get("/", "").status, 200);
    assert!(fresh.is_closed());
    assert!(used.is_closed());
    until("both are forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let ended = Arc::new(AtomicBool::new(false));
    let ends = ended.clone();
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        let length = 64 * 1024 * 1024;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
        let cut = stream.write_all(&vec![b'x'; length]).is_err();
        ends.store(cut, Ordering::SeqCst);
    });
    let gateway = hasty("write", &origin);
    let mut client = Client::connect(gateway.address);
    client.send(GET);
    until("the backend's connection is closed", || ended.load(Ordering::SeqCst));
    until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn a_client_that_reads_slowly_and_steadily_gets_all_of_it() {
    const SIZE: usize = 6 * 1024 * 1024;
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").unwrap();
        stream.write_all(&vec![b'x'; SIZE]).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let gateway = hasty_by("write", "1s", &origin);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.connect(&gateway.address.into()).unwrap();
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(GET.as_bytes()).unwrap();
    let (mut got, mut piece) = (0, vec![0; 64 * 1024]);
    // Far slower than the timeout where the kernel would take megabytes ahead, and far faster than it where it takes
    // what the client is about to read.
    while got < SIZE {
        std::thread::sleep(Duration::from_millis(40));
        match stream.read(&mut piece).unwrap() {
            0 => panic!("cut off after {got} bytes"),
            bytes => got += bytes,
        }
    }
}

#[test]
fn a_pause_of_the_gateway_does_not_count_against_those_it_serves() {
    let waiting = Waiting::new();
    let gateway = hasty_by("write", "1s", &waiting.origin);
    let mut client = waiting.client(&gateway);
    // Its next look at deadlines is a while off, so that the answer comes before it.
    std::thread::sleep(Duration::from_millis(200));
    suspend(gateway.process());
    waiting.go.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(2500));
    signal(gateway.process(), Signal::CONT);
    assert_eq!(client.response().status, 200);
}

/// Descriptors run out: connections to backends that nobody uses are given up for one to another backend, and for clients.
#[test]
fn where_descriptors_run_out_idle_connections_are_given_up() {
    const CROWD: usize = 9;
    let (one, other, waiting) = (Origin::ok(), Origin::ok(), Waiting::new());
    let way = |name: &str, origin: &Origin| {
        let servers = origin.address;
        format!(
            "[upstreams.{name}]\nservers = [\"{servers}\"]\n[[routes]]\npath = \"/{name}\"\nupstream = \"{name}\"\n"
        )
    };
    let rest = way("other", &other) + &way("waiting", &waiting.origin);
    let gateway = Gateway::start(&config("", &[one.address], &rest).replace("workers = 2", "workers = 1"));
    let files = std::fs::read_dir(format!("/proc/{}/fd", gateway.process())).unwrap().count();
    allow_files(&gateway, files + 2 * CROWD + 2);
    let connect = |_| Client::connect(gateway.address);
    let mut clients: Vec<Client> = (0..CROWD).map(connect).collect();
    for (path, origin) in [("/", &one), ("/other", &other)] {
        let before = origin.connections();
        // Half of a request by each, so that each takes a connection of its own.
        for client in &mut clients {
            client.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na"));
        }
        until("each is on its way", || origin.connections() == before + CROWD);
        assert!(clients.iter_mut().all(|client| client.send("b").response().status == 200), "{path}");
    }
    // Two descriptors are left.
    clients.extend((0..2 * CROWD / 3).map(connect));
    assert!(clients.iter_mut().all(|client| client.get("/", "").status == 200));
    // Who finds none left is told so, and all is well once others need them no more.
    let refused = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                let answer = client.get("/waiting", "");
                if answer.status != 200 {
                    refused.lock().unwrap().push(answer);
                }
            });
        }
        until("some find none", || !refused.lock().unwrap().is_empty());
        waiting.go.store(true, Ordering::SeqCst);
    });
    for answer in refused.into_inner().unwrap() {
        assert_eq!((answer.status, &answer.json()["blame"]), (503, &"gateway".into()));
    }
    assert!(clients.iter_mut().all(|client| client.get("/", "").status == 200));
}

/// So many descriptors the gateway may have.
fn allow_files(gateway: &Gateway, most: usize) {
    let process = rustix::process::Pid::from_raw(i32::try_from(gateway.process()).unwrap());
    let limit = Rlimit { current: Some(most as u64), maximum: Some(most as u64) };
    prlimit(process, Resource::Nofile, limit).unwrap();
}

/// A start may wait for nameservers; a container's first process is asked to stop once, and by nobody else.
#[test]
fn a_stop_that_is_asked_for_amid_the_start_is_not_lost() {
    let nameserver = UdpSocket::bind("127.0.0.1:0").unwrap();
    nameserver.set_read_timeout(Some(PATIENCE)).unwrap();
    let folder = Folder::new();
    let text = config("", &[], "").replace("servers = []", "servers = [\"never.test:80\"]");
    let path =
        folder.write("config.toml", &format!("{text}[dns]\nservers = [\"{}\"]\n", nameserver.local_addr().unwrap()));
    let mut child = Command::new(PROGRAM).args(["run", "--config"]).arg(path).stderr(Stdio::null()).spawn().unwrap();
    // It is asked, and never answers.
    let is_asked = nameserver.recv(&mut [0; 512]).is_ok();
    signal(child.id(), Signal::TERM);
    let status = child.wait().unwrap();
    assert!(is_asked && status.success(), "{status}");
}

/// What tells other servers to read their files anew must not end this one.
#[test]
fn signals_that_mean_nothing_here_are_told_of_and_change_nothing() {
    let origin = Origin::ok();
    let mut gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    for (number, meaningless) in [Signal::HUP, Signal::USR1, Signal::USR2].into_iter().enumerate() {
        signal(gateway.process(), meaningless);
        until("it is told of", || gateway.log().iter().filter(|line| is_about_signals(line)).count() == number + 1);
        assert!(client.get("/", "").status == 200 && gateway.is_alive());
    }
    gateway.terminate();
    assert!(gateway.wait().success());
}

fn is_about_signals(line: &serde_json::Value) -> bool {
    line["message"].as_str().is_some_and(|message| message.starts_with("SIGHUP"))
}

#[test]
fn who_is_refused_finds_the_request_in_the_log() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let response = client::raw(gateway.address, "GET / HTTP/1.1\r\n\r\n");
    let id = response.json()["request_id"].as_str().map(str::to_owned);
    assert_eq!((response.status, id.as_ref().map(String::len)), (400, Some(32)));
    until("it is logged", || gateway.log_of("refused").len() == 1);
    let line = &gateway.log_of("refused")[0];
    assert_eq!((line["request_id"].as_str(), line["status"].as_u64()), (id.as_deref(), Some(400)));
    assert_eq!(
        (line["peer"].as_str(), line["reason"].as_str()),
        (Some("127.0.0.1"), response.json()["detail"].as_str())
    );
}

/// The names of the gateway's threads.
fn threads(gateway: &Gateway) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.process())).unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(|task| name(task.ok()?)).map(|name| name.trim().to_string()).collect()
}

#[test]
fn there_are_as_many_workers_as_configured() {
    let origin = Origin::ok();
    for workers in 1..=3 {
        let text = config("", &[origin.address], "").replace("workers = 2", &format!("workers = {workers}"));
        let gateway = Gateway::start(&text);
        let expected: Vec<String> = (0..workers).map(|number| format!("worker-{number}")).collect();
        until("the workers run", || {
            let mut names: Vec<String> =
                threads(&gateway).into_iter().filter(|name| name.starts_with("worker-")).collect();
            names.sort();
            names == expected
        });
        assert_eq!(gateway.log_of("listening")[0]["workers"], workers);
        for _ in 0..20 {
            assert_eq!(client::get(gateway.address, "/").status, 200);
        }
    }
}

#[test]
fn all_interfaces_of_both_families_can_be_listened_on() {
    // Below the ports that the kernel gives to others; the same one for both, so it cannot be the kernel's choice.
    let start = fastrand::u16(20_000..30_000);
    let free = |port: &u16| ["0.0.0.0", "[::]"].iter().all(|ip| TcpListener::bind(format!("{ip}:{port}")).is_ok());
    let Some(port) = (start..start + 100).find(free) else {
        println!("not tested: there is no IPv6 here");
        return;
    };
    let origin = Origin::ok();
    let both = format!("listen = [\"0.0.0.0:{port}\", \"[::]:{port}\"]");
    let text = config("", &[origin.address], "").replacen("listen = \"127.0.0.1:0\"", &both, 1);
    let gateway = Gateway::start(&text);
    assert_eq!(gateway.log_of("listening").len(), 2);
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        assert_eq!(client::get(address.parse().unwrap(), "/").status, 200, "{address}");
    }
}

/// The log lines about epoll being a second choice.
fn fallbacks(gateway: &Gateway) -> Vec<serde_json::Value> {
    gateway.log().into_iter().filter(|line| line.to_string().contains("running on epoll")).collect()
}

#[test]
fn epoll_is_used_where_asked_for_with_one_warning_that_says_why() {
    let origin = Origin::ok();
    let text = config("", &[origin.address], "").replace(&format!("io = \"{}\"", io()), "io = \"epoll\"");
    let gateway = Gateway::start(&text);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    let warnings = fallbacks(&gateway);
    assert_eq!(warnings.len(), 1);
    assert_eq!((warnings[0]["level"].as_str(), warnings[0]["reason"].is_string()), (Some("WARN"), true));
    assert_eq!(gateway.log_of("listening")[0]["io"], "epoll");
}

#[test]
fn io_uring_is_used_by_itself_where_the_kernel_allows_it() {
    let origin = Origin::ok();
    let text = config("", &[origin.address], "").replace(&format!("io = \"{}\"\n", io()), "");
    let gateway = Gateway::start(&text);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    let (expected, warnings) = match io_uring::IoUring::new(8) {
        Ok(_) => ("io_uring", 0),
        Err(_) => ("epoll", 1),
    };
    assert_eq!(gateway.log_of("listening")[0]["io"], expected);
    assert_eq!(fallbacks(&gateway).len(), warnings);
}
