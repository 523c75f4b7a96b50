//! Clients that ask at a steady pace, whatever becomes of the store, and probes that find out whether it decides.

use crate::support::client::Client;
use crate::support::store::api_key;
use fastrand::Rng;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Connections, each with a thread of its own.
pub const CLIENTS: u32 = 8;

/// From one request of a connection to the next: 100 a second.
const PACE: Duration = Duration::from_millis(10);

/// Each is asked for about 60 times a second.
pub const USERS: usize = 13;

pub const RATE: f64 = 20.0;
pub const BURST: f64 = 10.0;

/// As many as clients, so that both workers have some.
pub const PROBES: usize = 8;

/// The limits: of users; one for a million that stands in an answer beside it wherever the store has decided; and one of
/// the probes, that says 503 wherever it has not.
pub fn rules() -> String {
    format!(
        "[[limits]]\nname = \"x\"\nmatch = {{ path = \"/load\" }}\nby = [\"user\"]\nrate = \"{RATE}/s\"\nburst = {BURST}\n\
         [[limits]]\nname = \"witness\"\nmatch = {{ path = \"/load\" }}\nby = [\"user\"]\nrate = \"100000/s\"\n\
         burst = 100000\non_failure = \"open\"\n\
         [[limits]]\nname = \"probe\"\nmatch = {{ path = \"/probe\" }}\nby = [\"user\"]\nrate = \"100000/s\"\n\
         burst = 100000\non_failure = \"closed\"\n[log]\ndenied = false\n"
    )
}

pub fn user(number: usize) -> String {
    format!("user-{number}")
}

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    pub user: usize,
    /// When it was sent.
    pub sent: Instant,
    pub ended: Instant,
    /// 0 where the connection ended without an answer.
    pub status: u16,
    /// The store has decided, and not the cache of denials.
    pub by_store: bool,
}

/// What a probe found at this time, on this connection.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub connection: usize,
    pub ended: Instant,
    pub decided: bool,
}

/// The load of one run.
pub struct Load {
    pub records: Mutex<Vec<Record>>,
    pub probes: Mutex<Vec<Probe>>,
    is_over: AtomicBool,
}

impl Load {
    /// Asks at `address` for as long as `what` takes; gives what it gave.
    pub fn during<T>(address: SocketAddr, seed: u64, what: impl FnOnce(&Load) -> T) -> (Vec<Record>, T) {
        let load = Load { records: Mutex::default(), probes: Mutex::default(), is_over: AtomicBool::new(false) };
        let done = std::thread::scope(|scope| {
            let start = Instant::now() + PACE;
            for number in 0..CLIENTS {
                let (load, random) = (&load, Rng::with_seed(seed.wrapping_add(u64::from(number))));
                scope.spawn(move || load.ask(address, start + PACE * number / CLIENTS, random));
            }
            scope.spawn(|| load.probe(address));
            // The load must end even where `what` fails, or the test would never.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(&load)));
            load.is_over.store(true, Ordering::Relaxed);
            done
        });
        let records = load.records.into_inner().unwrap();
        (records, done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn ask(&self, address: SocketAddr, start: Instant, mut random: Rng) {
        let mut client = Client::connect(address);
        let mut records = Vec::new();
        let mut due = start;
        while !self.is_over() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let user_number = random.usize(..USERS);
            let sent = Instant::now();
            let (status, by_store) = exchange(&mut client, "/load", &user(user_number));
            if status == 0 {
                client = Client::connect(address);
            }
            let ended = Instant::now();
            records.push(Record { user: user_number, sent, ended, status, by_store });
            due += PACE;
        }
        self.records.lock().unwrap().extend(records);
    }

    /// Half of the probes are asked at each step, at once.
    fn probe(&self, address: SocketAddr) {
        let mut clients: Vec<Client> = (0..PROBES).map(|_| Client::connect(address)).collect();
        let mut half = 0;
        while !self.is_over() {
            std::thread::sleep(PACE);
            half = 1 - half;
            let asked = || (0..PROBES).filter(|number| number % 2 == half);
            for number in asked() {
                let _ = clients[number].stream.write_all(request("/probe", &format!("probe-{number}")).as_bytes());
            }
            for connection in asked() {
                let answer = clients[connection].try_response(true);
                if answer.is_err() {
                    clients[connection] = Client::connect(address);
                }
                let decided = answer.is_ok_and(|answer| answer.status == 200);
                self.probes.lock().unwrap().push(Probe { connection, ended: Instant::now(), decided });
            }
        }
    }
}

fn request(path: &str, user: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n{}\r\n", api_key(user))
}

fn exchange(client: &mut Client, path: &str, user: &str) -> (u16, bool) {
    let answer = client.stream.write_all(request(path, user).as_bytes()).and_then(|()| client.try_response(true));
    match answer {
        Ok(answer) => (answer.status, answer.field("RateLimit").is_some_and(|told| told.contains("\"witness\""))),
        Err(_) => (0, false),
    }
}
