//! Connections that switch protocols: which upgrades are passed on, and what a tunnel does with bytes and ends.

use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head};
use crate::support::until;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const ASKING: &str = "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c, WebSocket\r\nSec-WebSocket-Key: k\r\n\r\n";

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn gateway(server: &str, origin: &Origin) -> Gateway {
    Gateway::start(&config(server, &[origin.address], ""))
}

/// A backend that switches whatever it is asked; its end of each tunnel, and the head it got, go to the test.
fn switching_origin(answer: impl Into<String>) -> (Origin, Receiver<(TcpStream, String)>) {
    let answer = answer.into();
    let (tunnels, opened) = channel();
    let tunnels = Mutex::new(tunnels);
    let origin = Origin::new(move |mut stream, _| {
        if let Some(head) = read_head(&mut stream) {
            stream.write_all(answer.as_bytes()).unwrap();
            let _ = tunnels.lock().unwrap().send((stream, head));
        }
    });
    (origin, opened)
}

/// A client and a backend at the two ends of a tunnel.
fn tunnel(gateway: &Gateway, opened: &Receiver<(TcpStream, String)>) -> (TcpStream, TcpStream) {
    let mut client = Client::connect(gateway.address);
    client.stream.write_all(ASKING.as_bytes()).unwrap();
    let head = read_head(&mut client.stream).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    (client.stream, opened.recv().unwrap().0)
}

fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

fn receives(stream: &mut TcpStream, text: &str) {
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), text);
}

fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[test]
fn an_upgrade_is_asked_for_and_answered_in_the_gateway_s_own_words() {
    let (origin, opened) = switching_origin(SWITCHING.replace("\r\n\r\n", "\r\nSec-WebSocket-Accept: a\r\n\r\n"));
    let limits = "[[limits]]\nname = \"all\"\nrate = \"1/h\"\nburst = 1";
    let gateway = Gateway::start(&config("", &[origin.address], limits));
    let mut client = Client::connect(gateway.address);
    let response = client.send(ASKING).response();
    assert_eq!((response.status, response.field("Upgrade")), (101, Some("websocket")), "{response:?}");
    assert_eq!(response.fields("Connection"), ["Upgrade"]);
    assert_eq!(response.field("Sec-WebSocket-Accept"), Some("a"));
    assert_eq!(response.field("RateLimit"), Some("\"all\";r=0;t=3600"));
    let (_stream, head) = opened.recv().unwrap();
    assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"), "{head}");
    assert!(head.contains("\r\nSec-WebSocket-Key: k\r\n") && !head.contains("h2c"), "{head}");
    // A tunnel takes one token, like any other request.
    assert_eq!(client::raw(gateway.address, ASKING).status, 429);
    until("the switch is counted", || gateway.metric("rateguard_requests_total{route=\"/\",status=\"1xx\"}") == 1.0);
}

#[test]
fn bytes_go_both_ways_and_so_do_both_ends() {
    let (origin, opened) = switching_origin(format!("{SWITCHING}first"));
    let gateway = gateway("", &origin);
    let (mut client, mut backend) = tunnel(&gateway, &opened);
    receives(&mut client, "first");
    for round in 0..100 {
        send(&mut client, &format!("up {round}"));
        receives(&mut backend, &format!("up {round}"));
        send(&mut backend, &format!("down {round}"));
        receives(&mut client, &format!("down {round}"));
    }
    send(&mut client, "last");
    client.shutdown(Shutdown::Write).unwrap();
    receives(&mut backend, "last");
    ends(&mut backend);
    send(&mut backend, "still here");
    receives(&mut client, "still here");
    backend.shutdown(Shutdown::Write).unwrap();
    ends(&mut client);
    until("the tunnel is forgotten", || gateway.metric("rateguard_connections") == 0.0);

    let (mut client, mut backend) = tunnel(&gateway, &opened);
    receives(&mut client, "first");
    backend.shutdown(Shutdown::Write).unwrap();
    ends(&mut client);
    send(&mut client, "still here");
    receives(&mut backend, "still here");
    drop(client);
    ends(&mut backend);
}

#[test]
fn what_comes_behind_the_request_is_kept_for_the_tunnel() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let early = Arc::new(Mutex::new(None));
    let seen = early.clone();
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        wait.lock().unwrap().recv().unwrap();
        stream.set_nonblocking(true).unwrap();
        *seen.lock().unwrap() = Some(stream.peek(&mut [0]).map_err(|error| error.kind()));
        stream.set_nonblocking(false).unwrap();
        stream.write_all(SWITCHING.as_bytes()).unwrap();
        receives(&mut stream, "GET /second HTTP/1.1\r\n\r\n");
        stream.write_all(b"done").unwrap();
    });
    let gateway = gateway("", &origin);
    let mut client = Client::connect(gateway.address);
    client.send(format!("{ASKING}GET /second HTTP/1.1\r\n\r\n"));
    until("the backend has the request", || origin.connections() == 1);
    go.send(()).unwrap();
    assert!(read_head(&mut client.stream).unwrap().starts_with("HTTP/1.1 101 "));
    receives(&mut client.stream, "done");
    assert_eq!(*early.lock().unwrap(), Some(Err(std::io::ErrorKind::WouldBlock)), "sent before the switch");
}

#[test]
fn a_backend_that_does_not_switch_answers_as_always() {
    for answer in ["426 Upgrade Required", "200 OK", "403 Forbidden"] {
        let origin =
            Origin::answering(format!("HTTP/1.1 {answer}\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno"));
        let gateway = gateway("", &origin);
        let mut client = Client::connect(gateway.address);
        for _ in 0..2 {
            let response = client.send(ASKING).response();
            assert_eq!((response.status, response.text().as_str()), (answer[..3].parse().unwrap(), "no"));
        }
        assert_eq!(client.get("/", "").text(), "no");
        assert_eq!(origin.requests()[2].field("Upgrade"), None);
        assert_eq!(origin.connections(), 1);
    }
}

#[test]
fn a_switch_that_was_not_asked_for_is_a_bad_response() {
    let plain = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let h2c =
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\n\r\n";
    let with_body = "POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: a\r\nContent-Length: 2\r\n\r\nhi";
    let old = "GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    for (asked, switch) in [
        (plain, SWITCHING.to_string()),
        (h2c, SWITCHING.replace("websocket", "h2c")),
        (with_body, SWITCHING.replace("websocket", "a")),
        (old, SWITCHING.to_string()),
        (ASKING, SWITCHING.replace("websocket", "h2c")),
        (ASKING, SWITCHING.replace("websocket", "other")),
        (ASKING, SWITCHING.replace("Upgrade: websocket\r\n", "")),
    ] {
        let (origin, opened) = switching_origin(format!("{switch}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"));
        let gateway = gateway("", &origin);
        let mut client = Client::connect(gateway.address);
        let response = client.send(asked).response();
        assert_eq!((response.status, response.json()["blame"].as_str()), (502, Some("upstream")), "{asked}{switch}");
        assert_eq!(response.field("Connection") == Some("close"), asked == old, "{asked}{switch}");
        let (_stream, head) = opened.recv().unwrap();
        let offers = !head.to_ascii_lowercase().contains("\r\nupgrade: ");
        assert_eq!(offers, asked != ASKING, "{head}");
    }
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_closed() {
    let (origin, opened) = switching_origin(SWITCHING);
    let gateway = gateway("[server.timeouts]\ntunnel = \"400ms\"", &origin);
    let (mut client, mut backend) = tunnel(&gateway, &opened);
    // One way is enough to keep both open.
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        send(&mut backend, "x");
        receives(&mut client, "x");
    }
    ends(&mut client);
    ends(&mut backend);
}

#[test]
fn what_breaks_on_one_side_is_broken_on_the_other() {
    let (origin, opened) = switching_origin(SWITCHING);
    let gateway = gateway("", &origin);
    for client_breaks in [true, false] {
        let (client, backend) = tunnel(&gateway, &opened);
        let (breaking, mut left) = if client_breaks { (client, backend) } else { (backend, client) };
        socket2::SockRef::from(&breaking).set_linger(Some(Duration::ZERO)).unwrap();
        drop(breaking);
        let end = left.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "client breaks: {client_breaks}");
    }
}

#[test]
fn a_side_that_takes_nothing_holds_the_other_back() {
    let (origin, opened) = switching_origin(SWITCHING);
    let gateway = gateway("", &origin);
    for up in [true, false] {
        let (client, backend) = tunnel(&gateway, &opened);
        let (mut from, mut to) = if up { (client, backend) } else { (backend, client) };
        from.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let piece = vec![b'x'; 1024 * 1024];
        let mut taken = 0;
        let stopped = (0..256).any(|_| match from.write(&piece) {
            Ok(bytes) => {
                taken += bytes;
                false
            }
            Err(error) => matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        });
        assert!(stopped, "256 MiB went into a tunnel that nobody reads");
        from.shutdown(Shutdown::Write).unwrap();
        let arrived = std::io::copy(&mut to, &mut std::io::sink()).unwrap();
        assert_eq!(arrived, taken as u64);
    }
}

#[test]
fn a_tunnel_outlives_a_stop_only_as_long_as_requests_may() {
    let (origin, opened) = switching_origin(SWITCHING);
    let mut gateway = gateway("[server.timeouts]\ndrain = \"500ms\"", &origin);
    let (mut client, mut backend) = tunnel(&gateway, &opened);
    gateway.terminate();
    until("the gateway stops accepting", || TcpStream::connect(gateway.address).is_err());
    send(&mut client, "late");
    receives(&mut backend, "late");
    assert!(gateway.wait().success());
    // A mere end could be taken for the end of what the other side had to say.
    for side in [&mut client, &mut backend] {
        assert_eq!(side.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
}
