//! The yardstick of `bench/run`: `beat SECONDS` prints what a send and a receive of 200 bytes on loopback cost on this
//! processor meanwhile, as `{"beats":COUNT,"median_ns":NANOSECONDS}`.
//!
//! A proxy spends most of its time in such calls, so what it takes for a request, in units of one of them, stays the same
//! where a processor changes its speed.
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: measures the machine")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const BYTES: usize = 200;
/// Between two samples: a hundred a second take 0.1 to 0.2 % of the processor.
const PAUSE: Duration = Duration::from_millis(10);
/// Beats of a sample. The first finds caches that others have filled, and is left out.
const ROUNDS: usize = 4;
const SECONDS_MAX: f64 = 3_600.0;

fn main() {
    let seconds: f64 = std::env::args().nth(1).unwrap().parse().unwrap();
    assert!((0.0..=SECONDS_MAX).contains(&seconds));
    let (mut one, mut other) = pair();
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut beats = Vec::new();
    while Instant::now() < end {
        std::thread::sleep(PAUSE);
        beat(&mut one, &mut other);
        beats.extend((1..ROUNDS).map(|_| beat(&mut one, &mut other).as_nanos()));
    }
    beats.sort_unstable();
    println!("{{\"beats\":{},\"median_ns\":{}}}", beats.len(), beats.get(beats.len() / 2).unwrap_or(&0));
}

/// The two ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    one.set_nodelay(true).unwrap();
    (one, listener.accept().unwrap().0)
}

/// There is nothing to wait for: on loopback what was sent is there when the call returns.
fn beat(one: &mut TcpStream, other: &mut TcpStream) -> Duration {
    let mut bytes = [0; BYTES];
    let start = Instant::now();
    one.write_all(&bytes).unwrap();
    other.read_exact(&mut bytes).unwrap();
    start.elapsed()
}
