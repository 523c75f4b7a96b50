//! Who does not read holds its sender back: nothing piles up in the gateway, nothing is lost, and others do not notice.

use crate::echo::read_head;
use crate::meter::{KIB, MIB, PATIENT, alone, resident, until_still};
use crate::pulse::longest_wait_since;
use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use crate::support::{PATIENCE, until};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Far more than the kernel's buffers of two connections.
const UPLOAD: usize = 256 * MIB;

/// What the kernel may hold of it: send and receive buffers of two connections at their largest.
const HELD_MAX: usize = UPLOAD / 2;

/// What the gateway may grow by meanwhile.
const GROWTH_MAX: usize = MIB;

/// Requests that are sent in one go.
const PIPELINE: usize = 100_000;

/// Bytes of each answer to them: together far more than any buffer holds.
const ANSWER: usize = 1000;

/// Counts what passes through it.
struct Counted<S> {
    stream: S,
    bytes: Arc<AtomicUsize>,
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.stream.write(bytes)?;
        self.bytes.fetch_add(written, Ordering::SeqCst);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// Both workers serve at once, whatever else is going on.
fn assert_others_are_served(gateway: &Gateway) {
    let start = Instant::now();
    longest_wait_since(start);
    for _ in 0..16 {
        let asked = Instant::now();
        assert_eq!(client::get(gateway.address, "/").text(), "ok");
        let waited = asked.elapsed();
        assert!(waited < Duration::from_secs(1) + longest_wait_since(start), "another client waited for {waited:?}");
    }
}

#[test]
fn a_backend_that_reads_nothing_stops_the_upload() {
    let _alone = alone();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let origin = Origin::new(move |stream, _| {
        let mut input = BufReader::new(&stream);
        while let Some(head) = read_head(&mut input) {
            let mut answer = "ok".to_owned();
            if head[0].starts_with("PUT ") {
                wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                let got = std::io::copy(&mut (&mut input).take(UPLOAD as u64), &mut std::io::sink()).unwrap();
                answer = got.to_string();
            }
            write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).unwrap();
        }
    });
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    assert_others_are_served(&gateway);
    let before = resident(&gateway);
    let mut client = Client::connect(gateway.address);
    client.send(format!("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {UPLOAD}\r\n\r\n"));
    let accepted = Arc::new(AtomicUsize::new(0));
    let stream = client.stream.try_clone().unwrap();
    let mut upload = Counted { stream, bytes: accepted.clone() };
    let uploading = std::thread::spawn(move || {
        std::io::copy(&mut std::io::repeat(b'x').take(UPLOAD as u64), &mut upload).unwrap();
    });
    until("the upload has begun", || accepted.load(Ordering::SeqCst) > 0);
    let held = until_still(|| accepted.load(Ordering::SeqCst));
    let grown = resident(&gateway).saturating_sub(before);
    println!("an upload stopped after {} KiB; the gateway grew by {} KiB", held / KIB, grown / KIB);
    assert!(held < HELD_MAX, "{held} bytes were accepted, though nobody reads");
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
    assert_others_are_served(&gateway);
    go.send(()).unwrap();
    uploading.join().unwrap();
    assert_eq!(client.response().text(), UPLOAD.to_string());
}

/// Says in each answer which request it is for; counts the requests.
fn numbering_origin(requests: Arc<AtomicUsize>) -> Origin {
    Origin::new(move |stream, _| {
        let mut input = BufReader::new(&stream);
        while let Some(head) = read_head(&mut input) {
            let target = head[0].split(' ').nth(1).unwrap_or_default();
            let body = if target == "/" { "ok".to_owned() } else { format!("{target:ANSWER$}") };
            requests.fetch_add(1, Ordering::SeqCst);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if (&stream).write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_hundred_thousand_requests_in_one_go_are_answered_in_order() {
    let _alone = alone();
    let requests = Arc::new(AtomicUsize::new(0));
    let origin = numbering_origin(requests.clone());
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    assert_others_are_served(&gateway);
    let before = resident(&gateway);
    let start = Instant::now();
    let stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let pipeline: String = (1..=PIPELINE).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: h\r\n\r\n")).collect();
    let mut sink = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || sink.write_all(pipeline.as_bytes()).unwrap());
    until("the first requests have come to the backend", || requests.load(Ordering::SeqCst) > 100);
    assert_others_are_served(&gateway);
    let held = until_still(|| requests.load(Ordering::SeqCst));
    let grown = resident(&gateway).saturating_sub(before);
    println!("stopped after {held} answers that nobody reads; the gateway grew by {} KiB", grown / KIB);
    assert!(held < PIPELINE / 2, "{held} requests were answered, though nobody reads");
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
    assert_others_are_served(&gateway);
    let mut input = BufReader::with_capacity(64 * KIB, &stream);
    let mut body = vec![0; ANSWER];
    for number in 1..=PIPELINE {
        let head = read_head(&mut input).unwrap_or_else(|| panic!("no answer to request {number}"));
        assert_eq!(head[0], "HTTP/1.1 200 OK", "request {number}");
        input.read_exact(&mut body).unwrap();
        assert_eq!(body.trim_ascii_end(), format!("/{number}").as_bytes());
    }
    sending.join().unwrap();
    println!("{PIPELINE} requests in one go in {:?}", start.elapsed());
}
