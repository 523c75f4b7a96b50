//! Active health checks: who is asked, what counts, who gets requests meanwhile, and what is told of it.

use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_request};
use crate::support::until;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a backend says when it is asked how it is; nothing at all.
const MUTE: u16 = 0;

/// A backend that answers 200 to requests, and what it is told to say at `/healthz`.
struct Backend {
    origin: Origin,
    says: Arc<AtomicU16>,
    /// The heads of the questions.
    asked: Arc<Mutex<Vec<String>>>,
    served: Arc<AtomicUsize>,
}

impl Backend {
    fn new(says: u16) -> Backend {
        let says = Arc::new(AtomicU16::new(says));
        let (asked, served): (Arc<Mutex<Vec<String>>>, Arc<AtomicUsize>) = Default::default();
        let (said, heads, count) = (says.clone(), asked.clone(), served.clone());
        let origin = Origin::new(move |mut stream, _| {
            while let Some(request) = read_request(&mut stream) {
                let mut status = 200;
                if request.line().contains("/healthz") {
                    heads.lock().unwrap().push(request.head.clone());
                    status = said.load(Ordering::SeqCst);
                } else {
                    count.fetch_add(1, Ordering::SeqCst);
                }
                let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
                if status != MUTE && stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Backend { origin, says, asked, served }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn gateway(servers: &[SocketAddr], health: &str) -> Gateway {
    let health = format!("health = {{ path = \"/healthz\", interval = \"50ms\", {health} }}\n[[routes]]");
    Gateway::start(&config("", servers, "").replace("[[routes]]", &health))
}

fn is_up(gateway: &Gateway, server: SocketAddr) -> bool {
    gateway.metric(&format!("rateguard_upstream_server_up{{upstream=\"app\",server=\"{server}\"}}")) == 1.0
}

fn send(gateway: &Gateway, requests: usize) {
    let mut client = Client::connect(gateway.address);
    for _ in 0..requests {
        assert_eq!(client.get("/", "").status, 200);
    }
}

#[test]
fn a_server_that_says_it_is_sick_gets_no_requests_until_it_is_well() {
    let backends = [Backend::new(200), Backend::new(503)];
    let [well, sick] = backends.each_ref().map(|backend| backend.origin.address);
    let gateway = gateway(&[well, sick], "");
    until("it is down", || !is_up(&gateway, sick));
    assert!(backends[1].asked() >= 3 && is_up(&gateway, well));
    let before = backends[1].served();
    send(&gateway, 50);
    assert_eq!(backends[1].served(), before);
    backends[1].says.store(204, Ordering::SeqCst);
    until("it is up", || is_up(&gateway, sick));
    send(&gateway, 50);
    assert!(backends[1].served() >= before + 24, "{} of 50", backends[1].served() - before);
    let told = gateway.log_of("server is down");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["server"], &told[0]["reason"]), (&sick.to_string().into(), &"it answers 503".into()));
    until("it is told", || gateway.log_of("server is up").len() == 1);
}

/// The process asks, not each of its two workers.
#[test]
fn each_server_is_asked_once_in_an_interval_however_many_workers_there_are() {
    let backend = Backend::new(200);
    let gateway = gateway(&[backend.origin.address], "");
    let start = Instant::now();
    until("it has been asked often", || backend.asked() >= 20);
    let most = start.elapsed().as_millis() / 50 + 2;
    // What was asked before the clock was started.
    let most = most + 10;
    assert!((backend.asked() as u128) <= most, "{} in {:?}", backend.asked(), start.elapsed());
    let head = backend.asked.lock().unwrap()[0].clone();
    assert!(head.starts_with("GET /healthz HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nHost: {}\r\n", backend.origin.address)), "{head}");
    assert!(is_up(&gateway, backend.origin.address) && gateway.log_of("server is down").is_empty());
}

#[test]
fn a_server_that_takes_connections_and_says_nothing_is_down() {
    let backends = [Backend::new(200), Backend::new(MUTE)];
    let [well, mute] = backends.each_ref().map(|backend| backend.origin.address);
    let gateway = gateway(&[well, mute], "timeout = \"50ms\", unhealthy_after = 2");
    until("it is down", || !is_up(&gateway, mute));
    until("it is told", || gateway.log_of("server is down").len() == 1);
    assert_eq!(gateway.log_of("server is down")[0]["reason"], "no answer in time");
}

#[test]
fn the_answers_of_a_well_server_are_what_the_configuration_says() {
    let backends = [Backend::new(200), Backend::new(404)];
    let [ok, not_found] = backends.each_ref().map(|backend| backend.origin.address);
    let gateway = gateway(&[ok, not_found], "statuses = [404]");
    until("the other is down", || !is_up(&gateway, ok));
    assert!(is_up(&gateway, not_found));
}

#[test]
fn where_all_are_sick_all_are_tried_anyway() {
    let backends = [Backend::new(500), Backend::new(500)];
    let gateway = gateway(&backends.each_ref().map(|backend| backend.origin.address), "");
    for backend in &backends {
        until("it is down", || !is_up(&gateway, backend.origin.address));
    }
    send(&gateway, 40);
    assert_eq!(backends.iter().map(Backend::served).sum::<usize>(), 40);
    assert_eq!(gateway.metric("rateguard_upstream_panic{upstream=\"app\"}"), 1.0);
    until("it is told", || !gateway.log_of("all servers are sick; trying them anyway").is_empty());
    assert_eq!(gateway.log_of("all servers are sick; trying them anyway").len(), 1);
    backends[0].says.store(200, Ordering::SeqCst);
    until("it is up", || is_up(&gateway, backends[0].origin.address));
    let before = backends[1].served();
    send(&gateway, 10);
    assert_eq!(backends[1].served(), before);
    until("it is told", || !gateway.log_of("not all servers are sick any more").is_empty());
    assert_eq!(gateway.log_of("not all servers are sick any more").len(), 1);
}

/// A server that is restarted is back with the first question that it answers, not only when requests may try it.
#[test]
fn a_server_that_was_unreachable_is_back_with_its_first_answer() {
    let well = Backend::new(200);
    let (held, address) = crate::upstreams::refusing();
    let gateway = gateway(&[well.origin.address, address], "eject = \"1h\", unhealthy_after = 3");
    until("it is left alone or down", || {
        send(&gateway, 2);
        !is_up(&gateway, address)
    });
    held.listen(16).unwrap();
    let listener: std::net::TcpListener = held.into();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                while read_request(&mut stream).is_some() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nback");
                }
            });
        }
    });
    let start = Instant::now();
    until("it serves again", || client::get(gateway.address, "/").text() == "back");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn many_servers_are_not_all_asked_at_the_same_moment() {
    const SERVERS: u8 = 200;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let asked = times.clone();
    let origin = Origin::at(SocketAddr::from(([0, 0, 0, 0], 0)), move |mut stream, _| {
        asked.lock().unwrap().push(Instant::now());
        if read_request(&mut stream).is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let server = |last| SocketAddr::from(([127, 0, 1, last], origin.address.port()));
    let servers: Vec<SocketAddr> = (1..=SERVERS).map(server).collect();
    let health = "health = { path = \"/healthz\", interval = \"1h\" }\n[[routes]]";
    let _gateway = Gateway::start(&config("", &servers, "").replace("[[routes]]", health));
    until("all are asked", || times.lock().unwrap().len() >= SERVERS.into());
    let mut times = times.lock().unwrap().clone();
    times.sort();
    assert_eq!(times.len(), usize::from(SERVERS), "each once");
    let took = times[times.len() - 1].duration_since(times[0]);
    assert!(took >= Duration::from_millis(200), "all within {took:?}");
}
