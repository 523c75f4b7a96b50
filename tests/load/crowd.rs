//! Ten thousand connections: nobody waits because of them, and each costs what it should.

use crate::echo::read_head;
use crate::meter::{KIB, MIB, PATIENT, allow_files, alone, resident, until_still};
use crate::pulse::longest_wait_since;
use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use crate::support::until;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const IDLE: usize = 10_000;
const SLOW_HEADS: usize = 100;
const REQUESTS: usize = 1_000;

/// What 99 of 100 requests take at most, beside what the machine itself makes them wait.
const P99_MAX: Duration = Duration::from_millis(50);

/// Memory that a connection holds while it waits for its next request, in a debug build.
const IDLE_COST_MAX: usize = 3 * KIB;

/// Downloads that are held by clients that read slowly.
const BUSY: usize = 500;

/// Memory that a connection holds in the middle of a download, with that to its backend, in a debug build.
const BUSY_COST_MAX: usize = 150 * KIB;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// A connection that has been served once.
fn served_once(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
    stream.write_all(GET).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        let mut piece = [0; 1024];
        let bytes = stream.read(&mut piece).unwrap();
        assert!(bytes > 0, "no whole answer: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..bytes]);
    }
    stream
}

fn idle_crowd(address: SocketAddr) -> Vec<TcpStream> {
    const THREADS: usize = 4;
    std::thread::scope(|scope| {
        let open = || (0..IDLE / THREADS).map(|_| served_once(address)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// Sends a head on each connection, a byte now and then, until it is told to stop.
fn drip(address: SocketAddr, stop: &AtomicBool) {
    let streams: Vec<TcpStream> = (0..SLOW_HEADS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let head = b"GET / HTTP/1.1\r\nHost: h\r\nX-Slow: ".iter().copied().chain(std::iter::repeat(b'x'));
    for byte in head {
        for mut stream in &streams {
            stream.write_all(&[byte]).unwrap();
        }
        if stop.load(Ordering::SeqCst) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How long each of the requests of one client took, the shortest first.
fn times(address: SocketAddr) -> Vec<Duration> {
    let mut client = Client::connect(address);
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        assert_eq!(client.get("/", "").text(), "ok");
        times.push(start.elapsed());
    }
    times.sort();
    times
}

#[test]
fn nobody_waits_because_of_ten_thousand_idle_connections() {
    let _alone = alone();
    allow_files((IDLE + SLOW_HEADS) as u64);
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("[server.timeouts]\nhead = \"60s\"", &[origin.address], PATIENT));
    for _ in 0..8 {
        assert_eq!(client::get(gateway.address, "/").status, 200);
    }
    let before = resident(&gateway);
    let start = Instant::now();
    let crowd = idle_crowd(gateway.address);
    until("only they are there", || gateway.metric("rateguard_connections") == IDLE as f64);
    let cost = resident(&gateway).saturating_sub(before) / crowd.len();
    println!("{} idle connections in {:?}: {cost} bytes each", crowd.len(), start.elapsed());

    longest_wait_since(Instant::now());
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        scope.spawn(|| drip(gateway.address, &stop));
        let all = (IDLE + SLOW_HEADS) as f64;
        until("the slow ones are there", || gateway.metric("rateguard_connections") == all);
        let times = std::panic::catch_unwind(|| times(gateway.address));
        stop.store(true, Ordering::SeqCst);
        times.unwrap()
    });
    let waited = longest_wait_since(start);
    let [p50, p99, max] = [times[REQUESTS / 2], times[REQUESTS * 99 / 100], times[REQUESTS - 1]];
    println!("{REQUESTS} requests beside them: p50 {p50:?}, p99 {p99:?}, max {max:?}; the machine waited {waited:?}");
    assert!(p99 < P99_MAX + waited, "p99 is {p99:?}");
    assert!(cost < IDLE_COST_MAX, "an idle connection holds {cost} bytes");
    // They were there all the time, and each can still be used.
    for mut stream in crowd.iter().step_by(100) {
        stream.write_all(GET).unwrap();
        assert!(stream.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0));
    }
    drop(crowd);
    until("all are forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

/// Sends without end what is asked for; counts it.
fn endless_origin(sent: Arc<AtomicUsize>) -> Origin {
    Origin::new(move |stream, _| {
        let mut input = BufReader::new(&stream);
        while let Some(head) = read_head(&mut input) {
            if !head[0].starts_with("GET /endless") {
                (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                continue;
            }
            (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").unwrap();
            while let Ok(bytes) = (&stream).write(&[b'x'; 64 * KIB]) {
                sent.fetch_add(bytes, Ordering::SeqCst);
            }
            return;
        }
    })
}

#[test]
fn a_slow_download_holds_no_more_than_its_buffers() {
    let _alone = alone();
    allow_files(2 * BUSY as u64);
    let sent = Arc::new(AtomicUsize::new(0));
    let origin = endless_origin(sent.clone());
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    for _ in 0..8 {
        assert_eq!(client::get(gateway.address, "/").status, 200);
    }
    let before = resident(&gateway);
    let mut clients: Vec<TcpStream> = (0..BUSY).map(|_| TcpStream::connect(gateway.address).unwrap()).collect();
    for client in &mut clients {
        client.write_all(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    }
    let mut piece = vec![0; 64 * KIB];
    for _ in 0..4 {
        for client in &mut clients {
            client.read_exact(&mut piece).unwrap();
        }
    }
    let on_the_way = until_still(|| sent.load(Ordering::SeqCst));
    let cost = resident(&gateway).saturating_sub(before) / BUSY;
    println!("{BUSY} downloads, {} MiB on the way: {} KiB each", on_the_way / MIB, cost / KIB);
    assert!(cost < BUSY_COST_MAX, "a download holds {cost} bytes");
    assert_eq!(client::get(gateway.address, "/").status, 200);
    drop(clients);
    until("all are forgotten", || gateway.metric("rateguard_connections") == 0.0);
}
