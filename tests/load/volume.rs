//! A gibibyte each way: every byte of it arrives, and the gateway's memory does not notice.

use crate::echo::read_head;
use crate::meter::{KIB, MIB, PATIENT, alone, peak};
use crate::support::client;
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

const VOLUME: usize = 1024 * MIB;

/// What the gateway may grow by while a body of any size passes.
const GROWTH_MAX: usize = MIB;

/// A prime, so that no buffer's size is a multiple of it and a piece that is lost or doubled shows.
const PERIOD: usize = 251;

fn block() -> Vec<u8> {
    (0..PERIOD * 1024).map(|at| (at % PERIOD) as u8).collect()
}

fn send(mut stream: &TcpStream) -> std::io::Result<()> {
    let block = block();
    let mut left = VOLUME;
    while left > 0 {
        let piece = left.min(block.len());
        stream.write_all(&block[..piece])?;
        left -= piece;
    }
    Ok(())
}

/// Reads and checks the volume.
fn receive(input: &mut impl Read) {
    let block = block();
    let mut got = vec![0; block.len()];
    let mut left = VOLUME;
    while left > 0 {
        let piece = left.min(got.len());
        input.read_exact(&mut got[..piece]).unwrap();
        assert!(got[..piece] == block[..piece], "changed within {piece} bytes before {left} were left");
        left -= piece;
    }
}

/// Sends the volume to who asks for it, takes it from who brings it, and else says `ok`.
fn origin() -> Origin {
    Origin::new(|stream, _| {
        let mut input = BufReader::with_capacity(256 * KIB, &stream);
        while let Some(head) = read_head(&mut input) {
            if head[0].starts_with("GET /volume") {
                write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: {VOLUME}\r\n\r\n").unwrap();
                send(&stream).unwrap();
                continue;
            }
            if head[0].starts_with("PUT /volume") {
                receive(&mut input);
            }
            (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    })
}

/// Runs `transfer` on a connection to a new gateway; the gateway must not grow by it.
fn in_flat_memory(what: &str, transfer: impl Fn(&mut client::Client)) {
    let origin = origin();
    let gateway = Gateway::start(&config("", &[origin.address], PATIENT));
    for _ in 0..8 {
        assert_eq!(client::get(gateway.address, "/").status, 200);
    }
    let before = peak(&gateway);
    let start = Instant::now();
    let mut client = client::Client::connect(gateway.address);
    transfer(&mut client);
    let took = start.elapsed();
    // The connection is still good, so nothing was left over.
    assert_eq!(client.get("/", "").text(), "ok");
    let grown = peak(&gateway) - before;
    println!("{} MiB {what} in {took:?}: grew by {} KiB to {} KiB", VOLUME / MIB, grown / KIB, peak(&gateway) / KIB);
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
}

#[test]
fn a_gibibyte_goes_up_in_flat_memory() {
    let _alone = alone();
    in_flat_memory("up", |client| {
        client.send(format!("PUT /volume HTTP/1.1\r\nHost: h\r\nContent-Length: {VOLUME}\r\n\r\n"));
        send(&client.stream).unwrap();
        assert_eq!(client.response().text(), "ok");
    });
}

#[test]
fn a_gibibyte_comes_down_in_flat_memory() {
    let _alone = alone();
    in_flat_memory("down", |client| {
        client.send("GET /volume HTTP/1.1\r\nHost: h\r\n\r\n");
        let mut input = BufReader::with_capacity(256 * KIB, &client.stream);
        let head = read_head(&mut input).unwrap();
        assert!(head.contains(&format!("Content-Length: {VOLUME}")), "{head:?}");
        receive(&mut input);
    });
}
