//! Bodies: passed on byte for byte in every framing, streamed in bounded memory, and never made to look whole when not.

use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head};
use crate::support::{PATIENCE, seed, until};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub const MIB: usize = 1024 * 1024;

/// What the gateway may grow by while a body of any size passes.
const GROWTH_MAX: usize = 8 * MIB;

pub fn gateway(server: &str, origin: &Origin) -> Gateway {
    Gateway::start(&config(server, &[origin.address], ""))
}

/// `bytes` as a chunked body, in chunks and with extensions that chance chooses.
fn chunked(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let most = [1, 20, 5000, 200_000][random.usize(..4)];
        let (piece, after) = rest.split_at(random.usize(1..=most).min(rest.len()));
        let extension = if random.u8(..8) == 0 { ";a=\"b\"" } else { "" };
        write!(out, "{:x}{extension}\r\n", piece.len()).unwrap();
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    out.extend_from_slice(if random.bool() { b"0\r\n\r\n".as_slice() } else { b"00\r\nX-Trailer: y\r\n\r\n" });
    out
}

/// Writes `bytes` in pieces cut where chance cuts them.
fn dribble(stream: &mut TcpStream, mut bytes: &[u8], random: &mut fastrand::Rng) {
    while !bytes.is_empty() {
        let most = [1, 10, 3000, 70_000, usize::MAX][random.usize(..5)];
        let (piece, rest) = bytes.split_at(random.usize(1..=most).min(bytes.len()));
        stream.write_all(piece).unwrap();
        bytes = rest;
    }
}

fn line(input: &mut impl BufRead) -> String {
    let mut line = String::new();
    input.read_line(&mut line).unwrap();
    line.trim_end().into()
}

/// Reads a request body as this head frames it.
fn read_body(head: &[String], input: &mut impl BufRead) -> Vec<u8> {
    let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name));
    let mut body = Vec::new();
    if let Some(length) = field("Content-Length: ") {
        body.resize(length.parse().unwrap(), 0);
        input.read_exact(&mut body).unwrap();
    } else if field("Transfer-Encoding: chunked").is_some() {
        loop {
            let size = usize::from_str_radix(&line(input), 16).unwrap();
            let start = body.len();
            body.resize(start + size, 0);
            if size == 0 {
                while !line(input).is_empty() {}
                break;
            }
            input.read_exact(&mut body[start..]).unwrap();
            assert_eq!(line(input), "");
        }
    }
    body
}

/// Sends a request's body back, framed as its path says.
fn echoing_origin(seed: u64) -> Origin {
    Origin::new(move |mut stream, number| {
        let mut random = fastrand::Rng::with_seed(seed ^ number as u64);
        let mut input = BufReader::new(stream.try_clone().unwrap());
        loop {
            let head: Vec<String> = std::iter::repeat_with(|| line(&mut input)).take_while(|l| !l.is_empty()).collect();
            let Some(first) = head.first() else { return };
            let body = read_body(&head, &mut input);
            let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
            let closes = first.contains("/close");
            if first.contains("/length") {
                write!(answer, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
                answer.extend_from_slice(&body);
            } else if first.contains("/chunked") {
                answer.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                answer.extend_from_slice(&chunked(&body, &mut random));
            } else {
                answer.extend_from_slice(b"\r\n");
                answer.extend_from_slice(&body);
            }
            dribble(&mut stream, &answer, &mut random);
            if closes {
                return;
            }
        }
    })
}

/// Sends a body of this size in one framing and gets it back in another.
fn echo(client: &mut Client, size: usize, sent: &str, answered: &str, random: &mut fastrand::Rng) {
    let body: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(size).collect();
    let mut request = format!("POST /{answered} HTTP/1.1\r\nHost: h\r\n").into_bytes();
    match sent {
        "length" => {
            write!(request, "Content-Length: {size}\r\n\r\n").unwrap();
            request.extend_from_slice(&body);
        }
        _ => {
            request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            request.extend_from_slice(&chunked(&body, random));
        }
    }
    dribble(&mut client.stream, &request, random);
    let response = client.response();
    assert_eq!(response.status, 200);
    assert_eq!(response.body.len(), size, "{sent} {answered}");
    assert!(response.body == body, "{size} bytes were changed on the way: {sent} {answered}");
}

const FRAMINGS: [(&str, &str); 6] = [
    ("length", "length"),
    ("length", "chunked"),
    ("length", "close"),
    ("chunked", "length"),
    ("chunked", "chunked"),
    ("chunked", "close"),
];

#[test]
fn bodies_of_all_sizes_and_framings_arrive_as_they_were_sent() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let origin = echoing_origin(seed);
    let gateway = gateway("", &origin);
    for (sent, answered) in FRAMINGS {
        let mut client = Client::connect(gateway.address);
        for size in [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 64 * 1024, MIB] {
            echo(&mut client, size, sent, answered, &mut random);
        }
    }
}

#[test]
fn bodies_cut_anywhere_arrive_as_they_were_sent() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let origin = echoing_origin(seed);
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    for _ in 0..200 {
        let (sent, answered) = FRAMINGS[random.usize(..FRAMINGS.len())];
        let most = [10, 5000, 100_000][random.usize(..3)];
        let size = random.usize(..most);
        echo(&mut client, size, sent, answered, &mut random);
    }
}

/// Peak memory of the gateway so far, in bytes.
fn peak(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Byte `at` of the bodies that are too large to be kept.
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

fn send_pattern(stream: &mut TcpStream, length: usize, mut sent: impl FnMut(usize)) -> std::io::Result<()> {
    let block: Vec<u8> = (0..251 * 256).map(pattern).collect();
    let mut left = length;
    while left > 0 {
        let piece = left.min(block.len());
        stream.write_all(&block[..piece])?;
        left -= piece;
        sent(length - left);
    }
    Ok(())
}

/// Reads and checks so many bytes of the pattern.
fn receive_pattern(input: &mut impl Read, length: usize) {
    let block: Vec<u8> = (0..251 * 256).map(pattern).collect();
    let mut got = vec![0; block.len()];
    let mut left = length;
    while left > 0 {
        let piece = left.min(got.len());
        input.read_exact(&mut got[..piece]).unwrap();
        assert!(got[..piece] == block[..piece], "changed within {piece} bytes before {left} were left");
        left -= piece;
    }
}

const LARGE: usize = 64 * MIB;

#[test]
fn a_large_upload_takes_bounded_memory() {
    let origin = Origin::new(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            if head.contains(&format!("Content-Length: {LARGE}")) {
                receive_pattern(&mut stream, LARGE);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let gateway = gateway("", &origin);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    let before = peak(&gateway);
    let mut client = Client::connect(gateway.address);
    client.send(format!("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {LARGE}\r\n\r\n"));
    send_pattern(&mut client.stream, LARGE, |_| {}).unwrap();
    assert_eq!(client.response().text(), "ok");
    let grown = peak(&gateway) - before;
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
}

/// A backend that answers every request with the pattern; counts what the kernel has taken of it.
fn large_origin() -> (Origin, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let origin = Origin::new(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let length = if head.starts_with("GET /large") { LARGE } else { 2 };
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
            if send_pattern(&mut stream, length, |sent| counter.store(sent, Ordering::SeqCst)).is_err() {
                return;
            }
        }
    });
    (origin, sent)
}

#[test]
fn a_large_download_takes_bounded_memory() {
    let (origin, _) = large_origin();
    let gateway = gateway("", &origin);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    let before = peak(&gateway);
    let mut client = Client::connect(gateway.address);
    client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(read_head(&mut client.stream).unwrap().contains(&format!("Content-Length: {LARGE}")));
    receive_pattern(&mut client.stream, LARGE);
    assert_eq!(client.get("/", "").status, 200);
    let grown = peak(&gateway) - before;
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
}

/// The bytes of the download with this number, from a place on; `length` of them.
pub fn numbered(number: usize, from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(|at| pattern(at + 7 * number)).collect()
}

/// A backend that answers `/NUMBER` with so many bytes of that download, with their length before them or a close behind.
fn numbering_origin(length: usize, closes: bool) -> Origin {
    Origin::new(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let number = head[5..].split(' ').next().unwrap().parse().unwrap();
            let field = if closes { String::new() } else { format!("Content-Length: {length}\r\n") };
            write!(stream, "HTTP/1.1 200 OK\r\n{field}\r\n").unwrap();
            if stream.write_all(&numbered(number, 0, length)).is_err() || closes {
                return;
            }
        }
    })
}

/// A gateway all of whose connections share what a worker has.
pub fn lone_worker(origin: &Origin) -> Gateway {
    Gateway::start(&config("", &[origin.address], "").replace("workers = 2", "workers = 1"))
}

/// Reads a download piece by piece, and stops after each for as long as is said.
fn read_in_fits(input: &mut impl Read, number: usize, length: usize, pause: Duration) {
    let mut piece = vec![0; 300_000];
    let mut at = 0;
    while at < length {
        let most = piece.len().min(length - at);
        input.read_exact(&mut piece[..most]).unwrap();
        assert!(
            piece[..most] == numbered(number, at, most),
            "download {number} was changed within {most} bytes from {at}"
        );
        at += most;
        std::thread::sleep(pause);
    }
}

#[test]
fn downloads_of_one_worker_are_kept_apart_while_some_are_slow_and_some_break_off() {
    const LENGTH: usize = 9 * MIB + 11;
    for closes in [false, true] {
        let origin = numbering_origin(LENGTH, closes);
        let gateway = lone_worker(&origin);
        let clients: Vec<_> = (0..9)
            .map(|number| {
                let mut client = Client::connect(gateway.address);
                std::thread::spawn(move || {
                    // Only for a client of the old version a body goes on as it is that ends with the connection.
                    let version = if closes { "1.0" } else { "1.1" };
                    client.send(format!("GET /{number} HTTP/{version}\r\nHost: h\r\n\r\n"));
                    assert!(read_head(&mut client.stream).unwrap().contains("200 OK"));
                    match number % 3 {
                        0 => read_in_fits(&mut client.stream, number, LENGTH, Duration::ZERO),
                        1 => read_in_fits(&mut client.stream, number, LENGTH, Duration::from_millis(5)),
                        _ => read_in_fits(&mut client.stream, number, MIB * number, Duration::from_millis(1)),
                    }
                    if closes && number % 3 < 2 {
                        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "download {number} goes on");
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        until("all are forgotten", || gateway.metric("rateguard_connections") == 0.0);
    }
}

#[test]
fn a_large_body_that_comes_bit_by_bit_is_passed_on_bit_by_bit() {
    const BITS: [usize; 8] = [20_000, 1, 70_000, 16_384, 40_000, 300_000, 16_383, 5];
    let (took, taken) = std::sync::mpsc::channel::<()>();
    let taken = std::sync::Mutex::new(taken);
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * BITS.iter().sum::<usize>()).unwrap();
        let mut at = 0;
        for bit in [BITS, BITS].concat() {
            stream.write_all(&numbered(0, at, bit)).unwrap();
            at += bit;
            taken.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(read_head(&mut client.stream).unwrap().contains("200 OK"));
    let mut at = 0;
    for bit in [BITS, BITS].concat() {
        let mut got = vec![0; bit];
        client.stream.read_exact(&mut got).unwrap();
        assert!(got == numbered(0, at, bit), "changed within {bit} bytes from {at}");
        at += bit;
        took.send(()).unwrap();
    }
}

#[test]
fn a_large_body_that_a_reset_ends_does_not_look_whole() {
    const LENGTH: usize = 4 * MIB;
    let origin = Origin::new(|mut stream, number| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        // Ends anywhere, and with the gateway anywhere in what came before.
        let _ = stream.write_all(&numbered(number, 0, LENGTH + 5_000 * number));
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let gateway = gateway("", &origin);
    for number in 0..40 {
        let mut client = Client::connect(gateway.address);
        client.send("GET / HTTP/1.0\r\n\r\n");
        let end = client.stream.read_to_end(&mut Vec::new());
        assert!(end.is_err(), "download {number} looks whole: {end:?}");
    }
}

#[test]
fn bytes_behind_a_large_body_reach_nobody() {
    const LENGTH: usize = MIB;
    let origin = Origin::new(|mut stream, _| {
        while read_head(&mut stream).is_some() {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
            let mut answer = numbered(0, 0, LENGTH);
            answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            stream.write_all(&answer).unwrap();
        }
    });
    let gateway = lone_worker(&origin);
    let mut client = Client::connect(gateway.address);
    for _ in 0..8 {
        let response = client.get("/", "");
        assert!(response.status == 200 && response.body == numbered(0, 0, LENGTH));
    }
}

/// A backend whose large bodies, and whose small ones where asked, have bytes behind them that look like an answer.
fn poisoned_origin(length: usize) -> Origin {
    Origin::new(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let name = head.split(' ').nth(1).unwrap();
            let answer = if name.starts_with("/large") {
                let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
                answer.extend_from_slice(&numbered(0, 0, length));
                answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
                answer
            } else {
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).into_bytes()
            };
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    })
}

/// The next request on its connection comes in the same turn of the loop: nobody has asked the kernel yet what else is there.
#[test]
fn bytes_behind_a_large_body_do_not_answer_the_next_request_of_a_pipeline() {
    for length in [256 * 1024, MIB] {
        let origin = poisoned_origin(length);
        let gateway = lone_worker(&origin);
        for _ in 0..10 {
            let mut client = Client::connect(gateway.address);
            client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\nGET /small HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(client.try_response(true).unwrap().body, numbered(0, 0, length));
            assert_eq!(client.try_response(true).unwrap().text(), "/small");
        }
    }
}

#[test]
fn bytes_behind_a_large_body_do_not_answer_other_clients() {
    const LENGTH: usize = 256 * 1024;
    const LARGE: usize = 200;
    let origin = poisoned_origin(LENGTH);
    let gateway = lone_worker(&origin);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (is_over, address) = (&is_over, gateway.address);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for asked in 0.. {
                    let name = format!("/{number}-{asked}");
                    assert_eq!(client.get(&name, "").text(), name);
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                }
            });
        }
        let mut client = Client::connect(gateway.address);
        for _ in 0..LARGE {
            assert_eq!(client.get("/large", "").body.len(), LENGTH);
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_client_that_reads_nothing_holds_the_backend_back() {
    let (origin, sent) = large_origin();
    let gateway = gateway("", &origin);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    let before = peak(&gateway);
    let mut client = Client::connect(gateway.address);
    client.send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut last = 0;
    let mut still = 0;
    until("nothing moves any more", || {
        let now = sent.load(Ordering::SeqCst);
        still = if now == last && now > 2 { still + 1 } else { 0 };
        last = now;
        still == 40
    });
    assert!(last < LARGE, "the backend could send all of it, though nobody reads");
    let grown = peak(&gateway) - before;
    assert!(grown < GROWTH_MAX, "grew by {grown} bytes");
    // Others are served meanwhile, on both workers.
    for _ in 0..8 {
        assert_eq!(client::get(gateway.address, "/").status, 200);
    }
    read_head(&mut client.stream).unwrap();
    receive_pattern(&mut client.stream, LARGE);
}

#[test]
fn a_client_gets_the_response_that_comes_before_its_upload_is_over() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    });
    let gateway = gateway("", &origin);
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let mut client = Client::connect(gateway.address);
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n5\r\nhel"));
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (403, "no"), "{framing}");
        assert_eq!(response.field("Connection"), Some("close"), "{framing}");
        assert!(client.is_closed(), "{framing}");
    }
}

#[test]
fn a_client_that_only_sends_still_finds_the_early_response() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        // Goes on reading, as a polite server does.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n");
    let _ = client.stream.write_all(&vec![0; 500_000]);
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
}

/// Answers with a head and part of a body, then closes.
fn breaking_origin(answer: &'static str) -> Origin {
    Origin::new(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            stream.write_all(answer.as_bytes()).unwrap();
        }
    })
}

#[test]
fn a_truncated_response_is_passed_on_as_truncated() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
    ] {
        let origin = breaking_origin(answer);
        let gateway = gateway("", &origin);
        let mut client = Client::connect(gateway.address);
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let error = client.try_response(true).map(|response| response.text()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{answer:?}: {error}");
    }
}

#[test]
fn a_truncated_response_is_never_ended_properly_for_old_clients_either() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
        // Without framing only a reset tells it from a whole one.
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let origin = breaking_origin(answer);
        let gateway = gateway("", &origin);
        let mut client = Client::connect(gateway.address);
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let end = client.try_response(true).map(|response| response.text());
        assert!(end.is_err(), "{answer:?} looks whole: {end:?}");
    }
}

#[test]
fn a_reset_is_not_taken_for_the_end_of_a_body_that_ends_with_the_connection() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").unwrap();
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(read_head(&mut client.stream).unwrap().contains("Transfer-Encoding: chunked"));
    let mut chunk = [0; 10];
    client.stream.read_exact(&mut chunk).unwrap();
    assert_eq!(&chunk, b"5\r\nhello\r\n");
    go.send(()).unwrap();
    let rest = client.rest().unwrap_or_default();
    assert!(rest.is_empty(), "the body was ended as if it were whole: {rest:?}");
}

#[test]
fn a_client_that_leaves_in_its_upload_is_noticed_by_the_backend() {
    let ended = Arc::new(AtomicBool::new(false));
    let sink = ended.clone();
    let heads = Arc::new(AtomicUsize::new(0));
    let seen = heads.clone();
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        seen.fetch_add(1, Ordering::SeqCst);
        let mut body = Vec::new();
        let _ = stream.read_to_end(&mut body);
        assert!(!body.ends_with(b"0\r\n\r\n"), "the upload was ended as if it were whole: {body:?}");
        sink.store(true, Ordering::SeqCst);
    });
    let gateway = gateway("", &origin);
    for (number, framing) in ["Content-Length: 100", "Transfer-Encoding: chunked"].iter().enumerate() {
        ended.store(false, Ordering::SeqCst);
        let mut client = Client::connect(gateway.address);
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n5\r\nhel"));
        until("the backend has the head", || heads.load(Ordering::SeqCst) == number + 1);
        client.stream.shutdown(Shutdown::Both).unwrap();
        until("the backend sees the end", || ended.load(Ordering::SeqCst));
        until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
    }
}

#[test]
fn a_half_closed_upload_that_is_not_whole_is_refused() {
    let origin = Origin::new(|mut stream, _| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhello");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let response = client.response();
    assert_eq!((response.status, response.json()["blame"].as_str()), (400, Some("client")));
}

#[test]
fn a_client_that_leaves_in_its_download_frees_the_backend() {
    let gone = Arc::new(AtomicBool::new(false));
    let sink = gone.clone();
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        while stream.write_all(b"5\r\nhello\r\n").is_ok() {}
        sink.store(true, Ordering::SeqCst);
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    client.stream.read_exact(&mut [0; 100]).unwrap();
    drop(client);
    until("the backend's connection is closed", || gone.load(Ordering::SeqCst));
    until("the client is forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn a_client_that_takes_nothing_for_too_long_is_cut_off_and_told_of() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 64 * MIB).unwrap();
        // The gateway hangs up in the end.
        let _ = stream.write_all(&vec![0; 64 * MIB]);
    });
    let gateway = gateway("[server.timeouts]\nwrite = \"500ms\"", &origin);
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let told = || gateway.log_of("cut off: the client took or sent too little in time").len();
    until("it is told of", || told() == 1);
    until("it is forgotten", || gateway.metric("rateguard_connections") == 0.0);
}
