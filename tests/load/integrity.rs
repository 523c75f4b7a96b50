//! Every answer is its own, whoever else asks at the same moment: each body follows from its request's number.

use crate::echo::{self, Exchange, Gathering, dribble};
use crate::meter::{KIB, PATIENT, allow_files, alone};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, config};
use crate::support::seed;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Requests that are under way at the same moment.
const CROWD: usize = 2_000;

/// Enough for a thread that moves buffers; the default would reserve gigabytes for a crowd.
const STACK: usize = 256 * KIB;

/// Runs `body` in so many threads; fails where one of them does.
fn threads(count: usize, body: impl Fn(usize) + Sync) {
    let body = &body;
    std::thread::scope(|scope| {
        for number in 0..count {
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || body(number)).unwrap();
        }
    });
}

#[test]
fn two_thousand_requests_at_once_each_get_their_own_answer() {
    let _alone = alone();
    allow_files(2 * CROWD as u64);
    let seed = seed();
    let gathering = Arc::new(Gathering::of(CROWD));
    let origin = echo::origin(seed, gathering.clone());
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    let start = Instant::now();
    let (connected, bytes) = (Gathering::of(CROWD), AtomicUsize::new(0));
    threads(CROWD, |number| {
        let mut exchange = Exchange::new(seed, number as u64, &[1, 300, 64 * KIB, 256 * KIB + 1]);
        let request = exchange.request("");
        let mut client = Client::connect(gateway.address);
        assert!(connected.wait(), "not all could connect");
        let mut random = fastrand::Rng::with_seed(seed ^ !(number as u64));
        dribble(&client.stream, &request, &mut random).unwrap();
        exchange.check(&client.response());
        bytes.fetch_add(request.len(), Ordering::Relaxed);
    });
    assert_eq!(gathering.arrived(), CROWD, "not every request was sent to the backend exactly once");
    println!("{CROWD} at once: {} MiB there and back in {:?}", bytes.into_inner() >> 20, start.elapsed());
}

/// How one client of the mixed ones behaves.
fn mixed_client(client: usize, seed: u64, gateway: &Gateway, next: &AtomicU64) {
    const SIZES: [usize; 3] = [1, 300, 10 * KIB];
    let mut random = fastrand::Rng::with_seed(seed ^ (client as u64) << 32);
    let mut kept = Client::connect(gateway.address);
    let exchange = || Exchange::new(seed, next.fetch_add(1, Ordering::Relaxed), &SIZES);
    for _ in 0..100 {
        match client % 4 {
            // Keeps its connection, and sends up to eight requests before it reads.
            0 | 1 => {
                let mut pipeline: Vec<Exchange> = (0..random.usize(1..=8)).map(|_| exchange()).collect();
                let requests: Vec<u8> = pipeline.iter_mut().flat_map(|exchange| exchange.request("")).collect();
                dribble(&kept.stream, &requests, &mut random).unwrap();
                for exchange in &pipeline {
                    exchange.check(&kept.response());
                }
            }
            // Old, or wants to be closed on.
            2 => {
                let mut exchange = exchange();
                let request = match random.bool() {
                    true => exchange.old_request(),
                    false => exchange.request("Connection: close\r\n"),
                };
                let mut once = Client::connect(gateway.address);
                dribble(&once.stream, &request, &mut random).unwrap();
                exchange.check(&once.response());
                assert!(once.is_closed());
            }
            // Leaves in the middle of its request, or before it has read its answer.
            _ => {
                let request = exchange().request("");
                let leaver = Client::connect(gateway.address);
                let sent = if random.bool() { request.len() } else { random.usize(..request.len()) };
                dribble(&leaver.stream, &request[..sent], &mut random).unwrap();
            }
        }
    }
}

#[test]
fn clients_of_all_kinds_never_get_the_answer_of_another() {
    let _alone = alone();
    let seed = seed();
    let origin = echo::origin(seed, Arc::new(Gathering::of(1)));
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    let start = Instant::now();
    let next = AtomicU64::new(0);
    threads(64, |client| mixed_client(client, seed, &gateway, &next));
    let connections = origin.connections();
    println!("{} mixed requests over {connections} connections in {:?}", next.into_inner(), start.elapsed());
}
