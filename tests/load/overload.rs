//! More requests than may wait for the store: its queue has a bound, and who comes later fails by mode at once.

use crate::meter::{MIB, PATIENT, allow_files, alone, resident};
use crate::support::client;
use crate::support::gateway::{Gateway, config};
use crate::support::redis::Redis;
use crate::support::store::{backend, limit};
use crate::support::until;
use rateguard::redis::pipeline::IN_FLIGHT_MAX;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Clients that come when all places are taken.
const LATE: usize = 200;

/// Memory that the waiting and the late take, in a debug build: mostly their connections.
const COST_MAX: usize = 200 * MIB;

#[test]
fn who_finds_the_queue_to_the_store_full_fails_by_mode_at_once() {
    let _machine = alone();
    allow_files(2 * (IN_FLIGHT_MAX + LATE) as u64);
    let redis = Redis::start();
    // Longer than this test takes: nobody's deadline passes, so the breaker stays closed.
    let store = format!("{}deadline = \"10s\"\n", redis.store());
    let server = format!("max_connections = {}", 2 * IN_FLIGHT_MAX);
    let one_worker = config(&server, &[backend()], &format!("{PATIENT}\n{store}{}", limit("x", "\"user\"", 100_000)));
    let gateway = Gateway::start(&one_worker.replace("workers = 2", "workers = 1"));
    until("the worker is connected to the store", || gateway.log_of("store connected").len() == 1);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    redis.suspend();
    let before = resident(&gateway);
    let ask = || {
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    let waiting: Vec<TcpStream> = (0..IN_FLIGHT_MAX).map(|_| ask()).collect();
    until("all places are taken", || gateway.metric("rateguard_connections") >= IN_FLIGHT_MAX as f64);
    let late: Vec<TcpStream> = (0..LATE).map(|_| ask()).collect();
    let overloaded = || gateway.metric("rateguard_store_errors_total{kind=\"overloaded\"}");
    until("the late have failed by mode", || overloaded() == LATE as f64);
    late.into_iter().for_each(assert_answered);
    assert!(resident(&gateway) < before + COST_MAX, "{} more", resident(&gateway) - before);
    redis.resume();
    waiting.into_iter().for_each(assert_answered);
    assert_eq!(overloaded(), LATE as f64);
    assert_eq!(gateway.metric("rateguard_store_errors_total{kind=\"timeout\"}"), 0.0);
}

fn assert_answered(mut stream: TcpStream) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
