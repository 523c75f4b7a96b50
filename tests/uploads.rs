//! Large uploads of a known length, which go from socket to socket: kept apart, whole or visibly not, in both directions at
//! once, and nothing of what comes behind them.

use crate::bodies::{MIB, gateway, lone_worker, numbered};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head};
use crate::support::{PATIENCE, until};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A head that announces the upload of this number.
fn post(number: usize, length: usize) -> String {
    format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n")
}

fn number_of(head: &str) -> usize {
    head.split(' ').nth(1).unwrap()[1..].parse().unwrap()
}

/// Reads an upload piece by piece, with a pause after each; gives how much came, or what was wrong with it.
fn take_in_fits(input: &mut impl Read, number: usize, length: usize, pause: Duration) -> Result<usize, String> {
    let mut piece = vec![0; 300_000];
    let mut at = 0;
    while at < length {
        let most = piece.len().min(length - at);
        match input.read(&mut piece[..most]) {
            Ok(0) | Err(_) => break,
            Ok(got) if piece[..got] == numbered(number, at, got) => at += got,
            Ok(got) => return Err(format!("upload {number} was changed within {got} bytes from {at}")),
        }
        std::thread::sleep(pause);
    }
    Ok(at)
}

/// Ends with a reset.
fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn uploads_of_one_worker_are_kept_apart_while_some_backends_are_slow_and_some_clients_break_off() {
    const LENGTH: usize = 9 * MIB + 11;
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let origin = Origin::new(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let number = number_of(&head);
            let pause = Duration::from_millis(if number % 4 == 1 { 5 } else { 0 });
            let got = take_in_fits(&mut stream, number, LENGTH, pause);
            let is_whole = got == Ok(LENGTH);
            tell.lock().unwrap().send((number, got)).unwrap();
            if !is_whole || stream.write_all(OK).is_err() {
                return;
            }
        }
    });
    let gateway = lone_worker(&origin);
    std::thread::scope(|scope| {
        for number in 0..12 {
            let mut client = Client::connect(gateway.address);
            scope.spawn(move || {
                client.send(post(number, LENGTH));
                if number % 4 < 2 {
                    client.send(numbered(number, 0, LENGTH));
                    assert_eq!(client.response().text(), "ok");
                    return;
                }
                client.send(numbered(number, 0, number * MIB / 2));
                if number % 4 == 2 {
                    reset(&client.stream);
                }
            });
        }
    });
    for _ in 0..12 {
        let (number, got) = told.recv_timeout(PATIENCE).unwrap();
        let got = got.unwrap();
        match number % 4 {
            0 | 1 => assert_eq!(got, LENGTH, "upload {number}"),
            _ => assert!(got <= number * MIB / 2, "upload {number} has more than was sent: {got}"),
        }
    }
    until("all are forgotten", || gateway.metric("rateguard_connections") == 0.0);
}

#[test]
fn a_large_upload_that_comes_bit_by_bit_is_passed_on_bit_by_bit() {
    const BITS: [usize; 8] = [20_000, 1, 70_000, 16_384, 40_000, 300_000, 16_383, 5];
    let (took, taken) = channel();
    let took = Mutex::new(took);
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        let mut at = 0;
        for bit in [BITS, BITS].concat() {
            let mut got = vec![0; bit];
            stream.read_exact(&mut got).unwrap();
            took.lock().unwrap().send(got == numbered(0, at, bit)).unwrap();
            at += bit;
        }
        stream.write_all(OK).unwrap();
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send(post(0, 2 * BITS.iter().sum::<usize>()));
    let mut at = 0;
    for bit in [BITS, BITS].concat() {
        client.send(numbered(0, at, bit));
        assert!(taken.recv_timeout(PATIENCE).unwrap(), "changed within {bit} bytes from {at}");
        at += bit;
    }
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn an_upload_that_comes_in_bursts_is_not_passed_on_in_smaller_ones() {
    // What a network delivers at once at first, and less than is worth moving from socket to socket.
    const BURST: usize = 14_480;
    const BURSTS: usize = 40;
    let (took, taken) = channel();
    let took = Mutex::new(took);
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        let mut got = vec![0; 2 * BURST];
        for _ in 0..BURSTS {
            let (mut at, mut reads) = (0, 0);
            while at < BURST {
                at += stream.read(&mut got).unwrap();
                reads += 1;
            }
            took.lock().unwrap().send(reads).unwrap();
        }
        stream.write_all(OK).unwrap();
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send(post(0, BURSTS * BURST));
    let reads: Vec<usize> = std::iter::repeat_with(|| {
        client.send(vec![0; BURST]);
        taken.recv_timeout(PATIENCE).unwrap()
    })
    .take(BURSTS)
    .collect();
    assert_eq!(client.response().text(), "ok");
    // The buffer grows with the first.
    let pieces: usize = reads[BURSTS / 2..].iter().sum();
    assert!(pieces <= BURSTS / 2 + 2, "{reads:?}");
}

#[test]
fn what_a_client_sends_behind_a_large_upload_is_its_next_request() {
    let origin = Origin::new(|mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length = length.map_or(0, |length| length.parse().unwrap());
            let got = take_in_fits(&mut stream, number_of(&head), length, Duration::ZERO);
            let text = format!("{} {got:?}", head.lines().next().unwrap());
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        }
    });
    let gateway = lone_worker(&origin);
    for length in [100_000, 256 * 1024, MIB, MIB + 1] {
        let mut client = Client::connect(gateway.address);
        for number in 0..10 {
            let mut bytes = post(number, length).into_bytes();
            bytes.extend_from_slice(&numbered(number, 0, length));
            bytes.extend_from_slice(b"GET /7 HTTP/1.1\r\nHost: h\r\n\r\n");
            client.send(bytes);
            assert_eq!(client.response().text(), format!("POST /{number} HTTP/1.1 Ok({length})"));
            assert_eq!(client.response().text(), "GET /7 HTTP/1.1 Ok(0)");
        }
    }
}

#[test]
fn an_upload_goes_on_beside_its_own_response() {
    const LENGTH: usize = 6 * MIB + 5;
    // The backend echoes, and begins when it has so much.
    for lead in [0, 100_000, LENGTH / 2] {
        let origin = Origin::new(move |mut stream, _| {
            while read_head(&mut stream).is_some() {
                let mut piece = vec![0; lead];
                stream.read_exact(&mut piece).unwrap();
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
                stream.write_all(&piece).unwrap();
                let mut left = LENGTH - lead;
                piece.resize(100_000, 0);
                while left > 0 {
                    let most = piece.len().min(left);
                    let got = stream.read(&mut piece[..most]).unwrap();
                    assert!(got > 0 && stream.write_all(&piece[..got]).is_ok());
                    left -= got;
                }
            }
        });
        let gateway = lone_worker(&origin);
        std::thread::scope(|scope| {
            for number in 0..6 {
                let mut client = Client::connect(gateway.address);
                let mut sending = client.stream.try_clone().unwrap();
                scope.spawn(move || {
                    sending.write_all(post(number, LENGTH).as_bytes()).unwrap();
                    sending.write_all(&numbered(number, 0, LENGTH)).unwrap();
                });
                scope.spawn(move || {
                    let response = client.response();
                    assert!(response.body == numbered(number, 0, LENGTH), "{number} was changed, from {lead} on");
                });
            }
        });
    }
}

#[test]
fn a_backend_that_resets_a_large_upload_is_told_to_the_client() {
    const LENGTH: usize = 4 * MIB;
    let origin = Origin::new(|mut stream, number| {
        read_head(&mut stream).unwrap();
        stream.read_exact(&mut vec![0; 20_000 + 150_000 * number]).unwrap();
        reset(&stream);
    });
    let gateway = gateway("", &origin);
    for number in 0..20 {
        let mut client = Client::connect(gateway.address);
        client.send(post(number, LENGTH));
        // The gateway may refuse the rest.
        let _ = client.stream.write_all(&numbered(number, 0, LENGTH));
        let response = client.response();
        assert_eq!((response.status, response.json()["blame"].as_str()), (502, Some("upstream")), "upload {number}");
    }
}

#[test]
fn a_large_upload_that_stops_is_the_clients_fault_and_one_that_is_not_taken_the_backends() {
    const LENGTH: usize = 32 * MIB;
    let origin = Origin::new(|mut stream, _| {
        let head = read_head(&mut stream).unwrap();
        match number_of(&head) {
            0 => drop(std::io::copy(&mut stream, &mut std::io::sink())),
            _ => std::thread::sleep(PATIENCE),
        }
    });
    let lines = "[server.timeouts]\nbody = \"300ms\"";
    let patience = "timeouts = { response = \"500ms\" }\nservers = [";
    let gateway = Gateway::start(&config(lines, &[origin.address], "").replace("servers = [", patience));
    let body = vec![0; LENGTH];
    let mut client = Client::connect(gateway.address);
    client.send(post(0, LENGTH)).send(&body[..2 * MIB]);
    let response = client.response();
    assert_eq!((response.status, response.json()["blame"].as_str()), (408, Some("client")));
    let mut client = Client::connect(gateway.address);
    client.send(post(1, LENGTH));
    let _ = client.stream.write_all(&body);
    let response = client.response();
    assert_eq!((response.status, response.json()["blame"].as_str()), (504, Some("upstream")));
}

/// What a slow refusal says, piece by piece.
const BITS: usize = 12;

/// A backend that refuses an upload at its head, and says so in a body that takes its time.
fn refusing_slowly(pause: Duration) -> Origin {
    Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        write!(stream, "HTTP/1.1 413 Too Much\r\nContent-Length: {BITS}\r\n\r\n").unwrap();
        for _ in 0..BITS {
            std::thread::sleep(pause);
            stream.write_all(b".").unwrap();
        }
        // The gateway closes when it has all of it.
        while stream.read(&mut [0; 4096]).is_ok_and(|got| got > 0) {}
    })
}

#[test]
fn an_early_response_goes_on_though_nobody_takes_the_upload() {
    const LENGTH: usize = 32 * MIB;
    let origin = refusing_slowly(Duration::from_millis(100));
    let patience = "timeouts = { response = \"500ms\" }\nservers = [";
    let gateway = Gateway::start(&config("", &[origin.address], "").replace("servers = [", patience));
    for framing in [format!("Content-Length: {LENGTH}"), "Transfer-Encoding: chunked".into()] {
        let mut client = Client::connect(gateway.address);
        let mut sending = client.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            write!(sending, "POST /0 HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{LENGTH:x}\r\n").unwrap();
            // Nobody takes it, and the gateway closes in the end.
            let _ = sending.write_all(&vec![0; LENGTH]);
        });
        let response = client.response();
        assert_eq!((response.status, response.body.len()), (413, BITS));
        drop(client);
        sender.join().unwrap();
    }
}

#[test]
fn a_response_that_only_the_close_would_end_is_not_whole_where_a_reset_ends_it_amid_the_upload() {
    let origin = Origin::new(|mut stream, _| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome of it").unwrap();
        // The gateway has more to send than there is room for.
        std::thread::sleep(Duration::from_millis(200));
        reset(&stream);
    });
    let gateway = gateway("", &origin);
    for framing in [format!("Content-Length: {}", 64 * MIB), "Transfer-Encoding: chunked".into()] {
        let mut client = Client::connect(gateway.address);
        let mut sending = client.stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            write!(sending, "POST /0 HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n{:x}\r\n", 64 * MIB).unwrap();
            let _ = sending.write_all(&vec![0; 64 * MIB]);
        });
        let mut all = Vec::new();
        let _ = client.stream.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all);
        assert!(text.contains("some of it") && !text.ends_with("0\r\n\r\n"), "{text}");
        sender.join().unwrap();
    }
}

#[test]
fn an_answer_that_has_begun_goes_on_where_its_client_stops_sending() {
    let origin = refusing_slowly(Duration::from_millis(50));
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send(post(0, 1000)).send("abc");
    let mut start = [0; 12];
    client.stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    client.stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    client.stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with(&".".repeat(BITS)), "{rest}");
}
