//! One backend of three goes wrong in every way we know, under steady load, and comes back: nobody who may ask twice
//! notices. Times are told, and what happens is asserted on state, not on time.

use crate::support::client::{Client, Response};
use crate::support::dns::{Dns, addresses};
use crate::support::gateway::{Gateway, PROGRAM, config};
use crate::support::{signal, suspend, until};
use crate::upstreams::moody::{Mood, Moody};
use rustix::process::Signal;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Clients that send GET, and such that send POST, which must not be repeated.
const READERS: usize = 6;
const WRITERS: usize = 2;

/// An answer that never comes is given up after a quarter of a second where it may be asked for elsewhere, and a server that
/// has failed three times is left alone for as long.
const UPSTREAM: &str = "retries = 2\nretry_statuses = [\"500-599\"]\n\
     timeouts = { connect = \"1s\", response = \"1s\", attempt = \"250ms\" }\n\
     health = { eject = \"250ms\", failures = [\"500-599\"] }\n[[routes]]";

/// What one worker may send to a server until it is left alone, and what all clients may have sent just before.
const BLIND_MAX: usize = 2 * 3 + WRITERS;

/// A demo backend in a process of its own; killed when dropped.
struct Process {
    child: Option<Child>,
    address: SocketAddr,
}

impl Process {
    /// On this address of the machine, and a port that the kernel gives.
    fn start(ip: [u8; 4]) -> Process {
        let address = TcpListener::bind(SocketAddr::from((ip, 0))).unwrap().local_addr().unwrap();
        Process::start_at(address)
    }

    fn start_at(address: SocketAddr) -> Process {
        let mut process = Process { child: None, address };
        process.restart();
        process
    }

    fn restart(&mut self) {
        let child = Command::new(PROGRAM)
            .args(["backend", "--listen", &self.address.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        until("the backend takes connections", || TcpStream::connect(self.address).is_ok());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two good backends, and a gateway in front of them and of one more.
struct Scene {
    _good: [Process; 2],
    gateway: Gateway,
}

impl Scene {
    fn with(third: &str, rest: &str) -> Scene {
        let good = [Process::start([127, 0, 1, 1]), Process::start([127, 0, 1, 2])];
        let stand_in = SocketAddr::from(([127, 0, 0, 1], 1));
        let text = config("", &[good[0].address, good[1].address, stand_in], rest);
        let text = text.replace(&stand_in.to_string(), third).replace("[[routes]]", UPSTREAM);
        Scene { _good: good, gateway: Gateway::start(&text) }
    }

    fn of_server(&self, what: &str, server: &str) -> f64 {
        self.gateway.metric(&format!("rateguard_upstream_server_{what}{{upstream=\"app\",server=\"{server}\"}}"))
    }

    fn until_served_by(&self, server: &str) {
        let before = self.of_server("requests_total", server);
        until("the server gets requests", || {
            self.of_server("up", server) == 1.0 && self.of_server("requests_total", server) >= before + 20.0
        });
    }

    fn until_left_alone(&self, server: &str) {
        until("the server is left alone", || self.of_server("up", server) == 0.0);
    }
}

/// What clients got, by method.
#[derive(Default)]
struct Answers {
    reads: Vec<Response>,
    writes: Vec<Response>,
}

impl Answers {
    /// Checks that no GET failed, and at most so many POSTs.
    fn check(&self, fault: &str, writes_max: usize) {
        let failed = |answers: &[Response]| -> Vec<Response> {
            answers.iter().filter(|answer| answer.status != 200).cloned().collect()
        };
        let (reads, writes) = (failed(&self.reads), failed(&self.writes));
        println!("{fault}: {} GETs, {} POSTs, {} POSTs failed", self.reads.len(), self.writes.len(), writes.len());
        assert!(self.reads.len() > 100 && self.writes.len() > 20, "hardly any load");
        assert!(reads.is_empty(), "{fault}: {} GETs failed: {:?}", reads.len(), reads.first());
        // What was not sent can be sent elsewhere: only what a backend may have taken is lost.
        let was_sent = |answer: &&Response| !answer.text().contains("no backend");
        assert_eq!(writes.iter().filter(was_sent).count(), writes.len(), "{writes:?}");
        assert!(writes.len() <= writes_max, "{fault}: {} POSTs failed: {:?}", writes.len(), writes.first());
    }
}

/// Asks without pause while `what` happens.
fn under_load(address: SocketAddr, what: impl FnOnce()) -> Answers {
    let (is_over, answers) = (AtomicBool::new(false), Mutex::new(Answers::default()));
    let ask = |is_write: bool| {
        let mut client = Client::connect(address);
        let mut own = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let answer = match is_write {
                false => client.get("/", ""),
                true => client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi").response(),
            };
            if answer.field("Connection") == Some("close") {
                client = Client::connect(address);
            }
            own.push(answer);
        }
        let mut answers = answers.lock().unwrap();
        if is_write { answers.writes.extend(own) } else { answers.reads.extend(own) }
    };
    std::thread::scope(|scope| {
        for number in 0..READERS + WRITERS {
            let ask = &ask;
            scope.spawn(move || ask(number >= READERS));
        }
        // The load must end even where `what` fails, or the test would never.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        is_over.store(true, Ordering::Relaxed);
        happened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    answers.into_inner().unwrap()
}

fn told(fault: &str, what: &str, since: Instant) {
    println!("{fault}: {what} after {} ms", since.elapsed().as_millis());
}

#[test]
fn a_backend_that_is_killed_and_started_again() {
    let mut third = Process::start([127, 0, 1, 3]);
    let name = third.address.to_string();
    let scene = Scene::with(&name, "");
    let answers = under_load(scene.gateway.address, || {
        scene.until_served_by(&name);
        let start = Instant::now();
        third.kill();
        scene.until_left_alone(&name);
        told("killed", "left alone", start);
        third.restart();
        let start = Instant::now();
        scene.until_served_by(&name);
        told("killed", "back", start);
    });
    answers.check("killed", BLIND_MAX);
}

#[test]
fn a_backend_that_is_stopped_and_goes_on() {
    let third = Process::start([127, 0, 1, 4]);
    let name = third.address.to_string();
    let scene = Scene::with(&name, "");
    let answers = under_load(scene.gateway.address, || {
        scene.until_served_by(&name);
        let start = Instant::now();
        suspend(third.process());
        scene.until_left_alone(&name);
        told("stopped", "left alone", start);
        signal(third.process(), Signal::CONT);
        let start = Instant::now();
        scene.until_served_by(&name);
        told("stopped", "back", start);
    });
    answers.check("stopped", BLIND_MAX);
}

/// As a container that is replaced: its name is asked for as soon as its address is dead, long before the interval.
#[test]
fn a_backend_that_is_started_again_on_another_address() {
    let mut third = Process::start([127, 0, 1, 5]);
    let port = third.address.port();
    let dns = Dns::start();
    dns.say("third.test", addresses(&["127.0.1.5"]));
    let section = format!("[dns]\nservers = \"{}\"\ninterval = \"1h\"", dns.address);
    let scene = Scene::with(&format!("third.test:{port}"), &section);
    let named = |ip: &str| format!("third.test:{port} ({ip}:{port})");
    let mut moved = None;
    let answers = under_load(scene.gateway.address, || {
        scene.until_served_by(&named("127.0.1.5"));
        third.kill();
        moved = Some(Process::start_at(SocketAddr::from(([127, 0, 1, 6], port))));
        dns.say("third.test", addresses(&["127.0.1.6"]));
        let start = Instant::now();
        scene.until_served_by(&named("127.0.1.6"));
        told("moved", "followed", start);
    });
    answers.check("moved", BLIND_MAX);
}

/// The record changes while both addresses serve: requests follow within an interval, and none fails.
#[test]
fn a_name_that_leads_elsewhere_is_followed_without_a_failure() {
    let old = Process::start([127, 0, 1, 7]);
    let port = old.address.port();
    let new = Process::start_at(SocketAddr::from(([127, 0, 1, 8], port)));
    let dns = Dns::start();
    dns.say("third.test", addresses(&["127.0.1.7"]));
    let section = format!("[dns]\nservers = \"{}\"\ninterval = \"200ms\"", dns.address);
    let scene = Scene::with(&format!("third.test:{port}"), &section);
    let named = |address: SocketAddr| format!("third.test:{port} ({address})");
    let answers = under_load(scene.gateway.address, || {
        scene.until_served_by(&named(old.address));
        let asked = dns.questions("third.test");
        dns.say("third.test", addresses(&["127.0.1.8"]));
        scene.until_served_by(&named(new.address));
        // One question that was under way, and the one that brought the news.
        assert!(dns.questions("third.test") <= asked + 4, "{} questions", dns.questions("third.test") - asked);
        assert_eq!(scene.of_server("up", &named(old.address)), 0.0, "it is not among the servers any more");
        let changes = scene.gateway.log_of("servers of the upstream have changed");
        assert_eq!(changes.len(), 2, "at the start, and now: {changes:?}");
    });
    answers.check("renamed", 0);
    // Nobody holds on to the old one.
    until("its connections are closed", || open_connections(old.address) == 0);
}

/// Connections to this address that are established, as the kernel sees them.
fn open_connections(address: SocketAddr) -> usize {
    let SocketAddr::V4(address) = address else { panic!("an IPv4 address") };
    let [a, b, c, d] = address.ip().octets();
    let wanted = format!("{d:02X}{c:02X}{b:02X}{a:02X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[2] == wanted && row[3] == "01").count()
}

/// Runs a fault of a backend that takes connections and does not serve.
fn survive(fault: &str, mood: Mood) {
    let third = Moody::new();
    let name = third.address.to_string();
    let scene = Scene::with(&name, "");
    let answers = under_load(scene.gateway.address, || {
        scene.until_served_by(&name);
        let start = Instant::now();
        third.be(mood);
        scene.until_left_alone(&name);
        told(fault, "left alone", start);
        let before = scene.gateway.metric(RETRIES);
        until("it is tried again in vain", || scene.gateway.metric(RETRIES) > before);
        third.be(Mood::Well);
        let start = Instant::now();
        scene.until_served_by(&name);
        told(fault, "back", start);
    });
    answers.check(fault, BLIND_MAX);
    let told = scene.gateway.log_of("server is left alone");
    assert!(!told.is_empty() && told.iter().all(|line| line["server"] == name), "{told:?}");
    until("it is told", || scene.gateway.log_of("server is back").len() == told.len());
}

const RETRIES: &str = "rateguard_upstream_retries_total{upstream=\"app\"}";

#[test]
fn a_backend_that_answers_500() {
    survive("answers 500", Mood::Says("HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"));
}

#[test]
fn a_backend_that_answers_garbage() {
    survive("answers garbage", Mood::SaysAndEnds("\u{16}\u{3}\u{1} this is no HTTP\r\n\r\n"));
}

#[test]
fn a_backend_that_never_answers() {
    survive("never answers", Mood::Holds);
}

#[test]
fn a_backend_that_hangs_up() {
    survive("hangs up", Mood::SaysAndEnds(""));
}

/// With questions too, a restarted backend is back with the first that it answers, however long it was to be left alone.
#[test]
fn a_backend_that_is_asked_how_it_is() {
    let mut third = Process::start([127, 0, 1, 9]);
    let name = third.address.to_string();
    let asked = UPSTREAM.replace("eject = \"250ms\"", "eject = \"1h\", path = \"/healthz\", interval = \"100ms\"");
    let good = [Process::start([127, 0, 1, 1]), Process::start([127, 0, 1, 2])];
    let text = config("", &[good[0].address, good[1].address, third.address], "").replace("[[routes]]", &asked);
    let scene = Scene { _good: good, gateway: Gateway::start(&text) };
    let answers = under_load(scene.gateway.address, || {
        scene.until_served_by(&name);
        third.kill();
        scene.until_left_alone(&name);
        third.restart();
        let start = Instant::now();
        scene.until_served_by(&name);
        told("asked", "back", start);
        assert!(start.elapsed() < Duration::from_secs(5));
    });
    answers.check("asked", BLIND_MAX);
}
