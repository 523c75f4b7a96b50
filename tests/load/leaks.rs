//! Nothing is left of connections that end where they should not: no descriptor, no memory, no place in a pool.

use crate::echo::{self, Exchange, read_head};
use crate::meter::{KIB, MIB, alone, files, resident, until_still};
use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use crate::support::{seed, until};
use socket2::SockRef;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Connections that end in the middle, in each test.
const LOST: usize = 1_000;

/// More than any of these clients has under way at the same moment.
const POOL_MAX: usize = 40;

/// What the memory may grow by, once it is warm: far below a kilobyte for each lost connection.
const GROWTH_MAX: usize = 2 * MIB;

const LARGE: usize = 3 * MIB;

/// Idle connections to the backend go soon when no client is there.
const POOL_TIME: &str = "[upstreams.app.timeouts]\nidle = \"1s\"\nconnect = \"20s\"";

/// The connections that a backend holds open at this moment.
#[derive(Clone, Default)]
struct Open(Arc<AtomicUsize>);

/// One of them, until it is dropped.
struct Held(Open);

impl Open {
    fn hold(&self) -> Held {
        self.0.fetch_add(1, Ordering::SeqCst);
        Held(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A gateway and what it held before any client came.
struct Observed {
    gateway: Gateway,
    open: Open,
    files: usize,
    memory: usize,
}

impl Observed {
    fn start(origin: &Origin, open: Open) -> Observed {
        let gateway = Gateway::start(&config("", &[origin.address], POOL_TIME));
        let files = until_still(|| files(&gateway));
        Observed { gateway, open, files, memory: 0 }
    }

    /// Waits until nothing is left of clients and their requests.
    fn rest(&self) {
        until("all clients are forgotten", || self.gateway.metric("rateguard_connections") == 0.0);
        let pool = self.open.count();
        assert!(pool <= POOL_MAX, "{pool} connections to the backend are kept");
        until("connections to the backend are closed", || self.open.count() == 0);
        // Those that the backend has closed are given back later than the others.
        until(&format!("the gateway has {} files again", self.files), || files(&self.gateway) == self.files);
    }

    /// From here on memory counts: what is kept for later use is there.
    fn is_warm(&mut self) {
        self.rest();
        self.memory = resident(&self.gateway);
    }

    /// Fails where more is held than before.
    fn assert_nothing_is_left(&self) {
        let start = Instant::now();
        self.rest();
        let memory = resident(&self.gateway);
        println!(
            "{} files again after {:?}, memory {} KiB -> {} KiB",
            self.files,
            start.elapsed(),
            self.memory / KIB,
            memory / KIB
        );
        let grown = memory.saturating_sub(self.memory);
        assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
    }
}

/// Connections that were kept serve again, so none of them is lost in the pool.
fn assert_the_pool_serves(gateway: &Gateway, origin: &Origin) {
    let before = origin.connections();
    for _ in 0..100 {
        assert_eq!(client::get(gateway.address, "/length").status, 200);
    }
    let opened = origin.connections() - before;
    assert!(opened <= 4, "{opened} connections were opened for requests one after the other");
}

/// Answers what the clients of `leaver.py` ask for.
fn origin(open: Open) -> Origin {
    Origin::new(move |stream, _| {
        let _held = open.hold();
        let mut input = BufReader::new(&stream);
        while let Some(head) = read_head(&mut input) {
            let target = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
            let sent = if let Some(pause) = target.strip_prefix("/slow/") {
                std::thread::sleep(Duration::from_millis(pause.parse().unwrap()));
                (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            } else if target == "/large" {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
                (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&vec![b'x'; LARGE]))
            } else if target == "/tunnel" {
                let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
                let sent = (&stream).write_all(switch);
                let _ = sent.and_then(|()| std::io::copy(&mut input, &mut &stream));
                return;
            } else {
                let Some(body) = echo::read_body(&head, &mut input) else { return };
                (&stream).write_all(&echo::answer(&head, &body, &mut fastrand::Rng::new()))
            };
            if sent.is_err() {
                return;
            }
        }
    })
}

/// Lets so many clients come and go.
fn leave(gateway: &Gateway, clients: usize, seed: u64) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/load/leaver.py");
    let arguments = [gateway.address.port().to_string(), clients.to_string(), (seed >> 1).to_string()];
    let output = Command::new("python3").arg(script).args(&arguments).output();
    let output = output.expect("python3 starts; it is needed for this test");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
    println!("{}{}", complaints, said.trim());
}

#[test]
fn nothing_is_left_of_clients_that_were_killed() {
    let _alone = alone();
    let seed = seed();
    let open = Open::default();
    let origin = origin(open.clone());
    let mut observed = Observed::start(&origin, open);
    leave(&observed.gateway, LOST / 5, !seed);
    observed.is_warm();
    let start = Instant::now();
    leave(&observed.gateway, LOST, seed);
    println!("{LOST} clients in {:?}", start.elapsed());
    observed.assert_nothing_is_left();
    assert_the_pool_serves(&observed.gateway, &origin);
}

/// How a backend ends a connection on which a request has come.
fn break_off(stream: &TcpStream, input: &mut BufReader<&TcpStream>, random: &mut fastrand::Rng) {
    if random.bool() {
        SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let Some(head) = read_head(input) else { return };
    let cut = |answer: &[u8], random: &mut fastrand::Rng| {
        let _ = (&*stream).write_all(&answer[..random.usize(..answer.len())]);
    };
    match random.usize(..5) {
        // Without a byte of an answer, the request read or not.
        0 => {}
        1 => drop(echo::read_body(&head, input)),
        2 => cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", random),
        3 => cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123456789", random),
        _ => cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n5\r\n56789\r\n0\r\n", random),
    }
}

/// Echoes a few requests on each connection and then breaks it, most often in the middle of the next.
fn breaking_origin(seed: u64, broken: Arc<AtomicUsize>, open: Open) -> Origin {
    Origin::new(move |stream, connection| {
        let _held = open.hold();
        let mut random = fastrand::Rng::with_seed(seed ^ connection as u64);
        let mut input = BufReader::new(&stream);
        // The last connections are for who looks whether all is well.
        let good = if broken.load(Ordering::SeqCst) < LOST { random.usize(..4) } else { usize::MAX };
        for _ in 0..good {
            let Some(head) = read_head(&mut input) else { return };
            let Some(body) = echo::read_body(&head, &mut input) else { return };
            if (&stream).write_all(&echo::answer(&head, &body, &mut random)).is_err() || head[0].contains("/close") {
                return;
            }
        }
        broken.fetch_add(1, Ordering::SeqCst);
        if random.u8(..4) > 0 {
            break_off(&stream, &mut input, &mut random);
        }
    })
}

/// Asks until enough connections are broken; what comes back whole must be right.
fn ask(gateway: &Gateway, seed: u64, next: &AtomicU64, enough: impl Fn() -> bool) -> [usize; 3] {
    let [mut whole, mut refused, mut cut] = [0; 3];
    let mut client = Client::connect(gateway.address);
    while !enough() {
        let mut exchange = Exchange::new(seed, next.fetch_add(1, Ordering::Relaxed), &[1, 300, 100 * KIB]);
        let request = exchange.request("");
        let sent = (&client.stream).write_all(&request);
        match client.try_response(true) {
            Ok(response) if response.status == 502 => {
                assert_eq!(response.json()["blame"], "upstream");
                refused += 1;
                client = Client::connect(gateway.address);
            }
            Ok(response) => {
                sent.unwrap();
                exchange.check(&response);
                whole += 1;
            }
            Err(_) => {
                cut += 1;
                client = Client::connect(gateway.address);
            }
        }
    }
    [whole, refused, cut]
}

#[test]
fn nothing_is_left_of_backends_that_broke_off() {
    let _alone = alone();
    let seed = seed();
    let broken = Arc::new(AtomicUsize::new(0));
    let open = Open::default();
    let origin = breaking_origin(seed, broken.clone(), open.clone());
    let mut observed = Observed::start(&origin, open);
    let next = AtomicU64::new(0);
    let run = |gateway: &Gateway, wanted: usize| {
        let enough = || broken.load(Ordering::SeqCst) >= wanted;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(gateway, seed, &next, enough))).collect();
            let counts = threads.into_iter().map(|thread| thread.join().unwrap());
            counts.fold([0; 3], |sum, counts| [0, 1, 2].map(|at| sum[at] + counts[at]))
        })
    };
    run(&observed.gateway, LOST / 5);
    observed.is_warm();
    let start = Instant::now();
    let [whole, refused, cut] = run(&observed.gateway, LOST);
    println!("{whole} whole answers, {refused} times 502, {cut} cut off, in {:?}", start.elapsed());
    assert!(whole > 0 && refused > 0 && cut > 0);
    observed.assert_nothing_is_left();
    assert_the_pool_serves(&observed.gateway, &origin);
}
