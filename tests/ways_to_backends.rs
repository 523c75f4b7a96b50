//! Backends that are reached by TLS, over a unix socket, or with a PROXY header, through a gateway.

use crate::support::authority::{Authority, Secured, secured};
use crate::support::client::{Client, Response, get};
use crate::support::gateway::{Gateway, config};
use crate::support::line::Line;
use crate::support::origin::{Origin, read_head, read_request};
use crate::support::redis::Redis;
use crate::support::store::limit;
use crate::support::{Folder, PATIENCE, seed, until};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What servers are called, other than by their address.
const NAME: &str = "backend.test";

/// A gateway in front of this server; `upstream` are further lines of the upstream's section.
fn gateway(server: &str, upstream: &str) -> Gateway {
    let own = format!("servers = [\"{server}\"]\n{upstream}");
    Gateway::start(&config("", &[], "").replace("servers = []", &own))
}

/// A gateway that speaks TLS with this server; `tls` are further keys of its section.
fn speaking_tls(authority: &Authority, server: SocketAddr, tls: &str) -> Gateway {
    speaking_tls_with(authority, server, tls, "")
}

/// As `speaking_tls`, with further lines of the upstream's section.
fn speaking_tls_with(authority: &Authority, server: SocketAddr, tls: &str, upstream: &str) -> Gateway {
    let tls = format!("tls = {{ ca = \"{}\"{tls} }}", authority.path("ca.pem"));
    gateway(&format!("https://{server}"), &format!("{tls}\n{upstream}"))
}

fn named() -> String {
    format!(", name = \"{NAME}\"")
}

/// Answers every request until the connection ends.
fn serve_ok(mut stream: Secured, _: usize) {
    while read_request(&mut stream).is_some() {
        stream.write_all(OK).unwrap();
    }
}

fn is_not_secure(gateway: &Gateway) {
    let response = get(gateway.address, "/");
    assert_eq!((response.status, response.json()["blame"].as_str()), (502, Some("upstream")), "{response:?}");
    assert!(gateway.metric("rateguard_upstream_errors_total{upstream=\"app\",kind=\"tls\"}") >= 1.0);
    until("the log says why", || !gateway.log_of("a backend's TLS handshake failed").is_empty());
}

#[test]
fn one_connection_serves_many_requests() {
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let authority = Authority::new();
        authority.vouch("server", "127.0.0.1");
        let origin = secured(authority.server("server", false, versions), serve_ok);
        let gateway = speaking_tls(&authority, origin.address, "");
        let mut client = Client::connect(gateway.address);
        for _ in 0..20 {
            assert_eq!(client.get("/", "").text(), "ok");
        }
        assert_eq!(origin.connections(), 1, "tickets and farewells are no reason for another");
    }
}

#[test]
fn the_server_is_asked_by_its_name_and_offered_http() {
    let authority = Authority::new();
    let origin = authority.origin(NAME, |mut stream, _| {
        while read_request(&mut stream).is_some() {
            let protocol = String::from_utf8(stream.conn.alpn_protocol().unwrap().to_vec()).unwrap();
            let told = format!("{} {protocol}", stream.conn.server_name().unwrap());
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len()).unwrap();
        }
    });
    let gateway = speaking_tls(&authority, origin.address, &named());
    assert_eq!(get(gateway.address, "/").text(), format!("{NAME} http/1.1"));
}

#[test]
fn another_name_on_the_certificate_is_502() {
    let authority = Authority::new();
    let origin = authority.origin(NAME, serve_ok);
    is_not_secure(&speaking_tls(&authority, origin.address, ""));
    assert_eq!(get(speaking_tls(&authority, origin.address, &named()).address, "/").text(), "ok");
}

#[test]
fn a_certificate_of_an_unknown_authority_is_502() {
    let authority = Authority::new();
    let origin = authority.origin("127.0.0.1", serve_ok);
    is_not_secure(&speaking_tls(&Authority::new(), origin.address, ""));
}

#[test]
fn an_expired_certificate_is_502() {
    let authority = Authority::new();
    authority.vouch_until("server", "127.0.0.1", 2020);
    let origin = secured(authority.server("server", false, rustls::ALL_VERSIONS), serve_ok);
    is_not_secure(&speaking_tls(&authority, origin.address, ""));
}

#[test]
fn a_server_that_asks_for_it_is_shown_a_certificate() {
    let authority = Authority::new();
    authority.vouch("server", "127.0.0.1");
    authority.vouch("client", "gateway");
    let origin = secured(authority.server("server", true, rustls::ALL_VERSIONS), |mut stream, _| {
        // Who shows none is refused here.
        while read_request(&mut stream).is_some() {
            stream.write_all(OK).unwrap();
        }
    });
    let anonymous = speaking_tls(&authority, origin.address, "");
    assert_eq!(get(anonymous.address, "/").status, 502);
    let [certificate, key] = ["client.pem", "client.key"].map(|name| authority.path(name));
    let shown = format!(", certificate = \"{certificate}\", key = \"{key}\"");
    assert_eq!(get(speaking_tls(&authority, origin.address, &shown).address, "/").text(), "ok");
}

#[test]
fn a_server_that_speaks_plain_http_there_is_502() {
    let origin = Origin::new(|mut stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    is_not_secure(&speaking_tls(&Authority::new(), origin.address, ""));
}

#[test]
fn a_handshake_that_is_never_answered_is_504() {
    let origin = Origin::new(|mut stream, _| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let authority = Authority::new();
    let gateway = speaking_tls_with(&authority, origin.address, "", "timeouts = { connect = \"200ms\" }");
    assert_eq!(get(gateway.address, "/").status, 504);
}

#[test]
fn only_a_farewell_ends_a_body_that_ends_with_the_connection() {
    for with_farewell in [true, false] {
        let authority = Authority::new();
        let origin = authority.origin("127.0.0.1", move |mut stream, _| {
            read_request(&mut stream).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome of it").unwrap();
            if with_farewell {
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
            stream.sock.shutdown(Shutdown::Write).unwrap();
            let _ = std::io::copy(&mut stream.sock, &mut std::io::sink());
        });
        let gateway = speaking_tls(&authority, origin.address, "");
        for line in ["GET / HTTP/1.1", "GET / HTTP/1.0"] {
            let mut client = Client::connect(gateway.address);
            client.send(format!("{line}\r\nHost: h\r\n\r\n"));
            let response = client.try_response(true).map(|response| response.text());
            match with_farewell {
                true => assert_eq!(response.unwrap(), "some of it"),
                false => assert!(response.is_err(), "{line}: {response:?}"),
            }
        }
    }
}

#[test]
fn bodies_go_both_ways_at_once_as_they_were_sent() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let authority = Authority::new();
    let origin = authority.origin("127.0.0.1", |mut stream, _| {
        read_head(&mut stream).unwrap();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
        let (mut piece, mut echoed) = (vec![0; 50_000], 0);
        while echoed < LENGTH {
            let read = stream.read(&mut piece).unwrap();
            stream.write_all(&piece[..read]).unwrap();
            echoed += read;
        }
        let _ = read_head(&mut stream);
    });
    let gateway = speaking_tls(&authority, origin.address, "");
    let mut random = fastrand::Rng::with_seed(seed());
    let body: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(LENGTH).collect();
    let mut client = Client::connect(gateway.address);
    let mut uploading = client.stream.try_clone().unwrap();
    let uploaded = body.clone();
    let upload = thread::spawn(move || {
        write!(uploading, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
        uploading.write_all(&uploaded).unwrap();
    });
    let response = client.response();
    upload.join().unwrap();
    assert!(response.status == 200 && response.body == body, "the body is not what was sent");
}

#[test]
fn a_broken_record_in_an_upload_fails_that_request_alone() {
    let authority = Authority::new();
    let origin = authority.origin("127.0.0.1", |mut stream, number| {
        if number > 0 {
            return serve_ok(stream, number);
        }
        read_head(&mut stream).unwrap();
        stream.sock.write_all(b"\x17\x03\x03\x00\x20this is not what a record is....").unwrap();
        let _ = std::io::copy(&mut stream.sock, &mut std::io::sink());
    });
    let mut gateway = speaking_tls(&authority, origin.address, "");
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n");
    // As much as is taken: the gateway may answer and close in between.
    while client.stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    assert!(gateway.is_alive());
    assert_eq!(get(gateway.address, "/").text(), "ok");
}

/// A backend on a unix socket; `serve` runs in a thread of its own for each connection.
fn at_socket(path: &Path, serve: impl Fn(UnixStream) + Clone + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
}

#[test]
fn a_unix_socket_serves_as_an_address_does() {
    let folder = Folder::new();
    let path = folder.path().join("app.sock");
    let (connected, connections) = mpsc::channel();
    let gateway = gateway(&format!("unix:{}", path.display()), "");
    assert_eq!(get(gateway.address, "/").status, 502, "nobody listens yet");
    at_socket(&path, move |mut stream| {
        connected.send(()).unwrap();
        while let Some(request) = read_request(&mut stream) {
            let length = request.body.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
            stream.write_all(&request.body).unwrap();
        }
    });
    let body: Vec<u8> = (0..1_000_000).map(|at| (at % 251) as u8).collect();
    let mut client = Client::connect(gateway.address);
    let post = |client: &mut Client| -> Response {
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()));
        client.send(&body).response()
    };
    until("the gateway has got over it", || post(&mut client).status == 200);
    for _ in 0..3 {
        let response = post(&mut client);
        assert!(response.status == 200 && response.body == body);
    }
    assert_eq!(connections.try_iter().count(), 1);
}

#[test]
fn a_client_that_leaves_frees_a_backend_on_a_unix_socket() {
    let folder = Folder::new();
    let path = folder.path().join("app.sock");
    let (seen, sees) = mpsc::channel();
    at_socket(&path, move |mut stream| {
        read_request(&mut stream).unwrap();
        seen.send("request").unwrap();
        // The gateway sends nothing more on it.
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
        seen.send("end").unwrap();
    });
    let gateway = gateway(&format!("unix:{}", path.display()), "");
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(sees.recv_timeout(PATIENCE), Ok("request"));
    let socket = socket2::Socket::from(client.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    assert_eq!(sees.recv_timeout(PATIENCE / 2), Ok("end"));
}

/// Such a socket knows no reset: that the gateway has given the answer up must not look like its end.
#[test]
fn an_answer_given_up_on_a_unix_socket_does_not_look_whole() {
    let folder = Folder::new();
    let path = folder.path().join("app.sock");
    at_socket(&path, move |mut stream| {
        read_request(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").unwrap();
        // Until the gateway gives it up.
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    });
    let gateway = gateway(&format!("unix:{}", path.display()), "");
    for version in ["1.1", "1.0"] {
        let mut client = Client::connect(gateway.address);
        client.send(format!("GET / HTTP/{version}\r\nHost: h\r\n\r\n"));
        assert_eq!(client.response_to_head().status, 200);
        // It sends no more, which is waited for in vain for a second.
        client.stream.shutdown(Shutdown::Write).unwrap();
        let rest = client.rest();
        let looks_whole = match version {
            "1.1" => rest.as_ref().is_ok_and(|rest| rest.ends_with(b"0\r\n\r\n")),
            _ => rest.is_ok(),
        };
        assert!(!looks_whole, "HTTP/{version}: {rest:?}");
    }
}

/// Reads a header of version 1.
fn read_line(stream: &mut impl Read) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        line.extend(byte);
    }
    String::from_utf8(line).ok()
}

fn expected_line(client: &Client, gateway: &Gateway) -> String {
    let (from, to) = (client.stream.local_addr().unwrap(), gateway.address);
    format!("PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
}

/// Answers every request with what `header` read first.
fn repeat(mut stream: impl Read + Write, header: &str) {
    while read_request(&mut stream).is_some() {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{header}", header.len()).unwrap();
    }
}

#[test]
fn every_client_s_requests_come_by_a_connection_that_names_it() {
    let origin = Origin::new(|mut stream, _| {
        let header = read_line(&mut stream).unwrap();
        repeat(stream, &header);
    });
    let folder = Folder::new();
    let path = folder.path().join("app.sock");
    at_socket(&path, |mut stream| {
        let header = read_line(&mut stream).unwrap();
        repeat(stream, &header);
    });
    for server in [origin.address.to_string(), format!("unix:{}", path.display())] {
        let gateway = gateway(&server, "proxy_protocol = \"v1\"");
        let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(gateway.address)).collect();
        for _ in 0..3 {
            for client in &mut clients {
                let expected = expected_line(client, &gateway);
                assert_eq!(client.get("/", "").text(), expected);
            }
        }
    }
}

#[test]
fn a_header_of_version_2_comes_before_tls() {
    let authority = Authority::new();
    authority.vouch("server", "127.0.0.1");
    let config = authority.server("server", false, rustls::ALL_VERSIONS);
    let origin = Origin::new(move |mut stream, _| {
        let mut header = [0; 28];
        stream.read_exact(&mut header).unwrap();
        let session = rustls::ServerConnection::new(config.clone()).unwrap();
        let header: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
        repeat(Secured::new(session, stream), &header);
    });
    let gateway = speaking_tls_with(&authority, origin.address, "", "proxy_protocol = \"v2\"");
    let mut client = Client::connect(gateway.address);
    let (from, to) = (client.stream.local_addr().unwrap().port(), gateway.address.port());
    let expected = format!("0d0a0d0a000d0a515549540a2111000c7f0000017f000001{from:04x}{to:04x}");
    assert_eq!(client.get("/", "").text(), expected);
}

/// Questions go the same way as requests, but are nobody's: the header says so (LOCAL).
#[test]
fn a_server_is_asked_how_it_is_by_the_way_of_its_requests() {
    let authority = Authority::new();
    authority.vouch("server", "127.0.0.1");
    let config = authority.server("server", false, rustls::ALL_VERSIONS);
    let (asked, questions) = mpsc::channel();
    let origin = Origin::new(move |mut stream, _| {
        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header, *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
        let session = rustls::ServerConnection::new(config.clone()).unwrap();
        let mut stream = Secured::new(session, stream);
        let _ = asked.send(read_request(&mut stream).unwrap().head);
        let _ = stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
    });
    let upstream = "proxy_protocol = \"v2\"\nhealth = { path = \"/healthz\", interval = \"20ms\", timeout = \"5s\" }";
    let gateway = speaking_tls_with(&authority, origin.address, "", upstream);
    until("it is told", || !gateway.log_of("server is down").is_empty());
    assert_eq!(gateway.log_of("server is down")[0]["reason"], "it answers 503");
    let question = questions.recv_timeout(PATIENCE).unwrap();
    assert!(question.starts_with("GET /healthz HTTP/1.1\r\n"), "{question}");

    let folder = Folder::new();
    let path = folder.path().join("app.sock");
    at_socket(&path, |mut stream| {
        let is_question = read_request(&mut stream).is_some_and(|request| request.line().contains("/healthz"));
        let status = if is_question { 500 } else { 200 };
        let _ = write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
    });
    let upstream = "health = { path = \"/healthz\", interval = \"20ms\" }";
    let gateway = self::gateway(&format!("unix:{}", path.display()), upstream);
    until("it is told", || !gateway.log_of("server is down").is_empty());
    assert_eq!(get(gateway.address, "/").status, 200, "it is the only one");
}

#[test]
fn who_has_left_meanwhile_does_not_pass_for_the_gateway_itself() {
    let redis = Redis::start();
    let line = Line::to(redis.port);
    let origin = Origin::new(|mut stream, _| repeat(&mut stream, ""));
    let server = format!("servers = [\"{}\"]\nproxy_protocol = \"v1\"", origin.address);
    let store = format!("[store]\nurl = \"{}\"\ndeadline = \"5s\"\n{}", line.url(), limit("all", "", 10));
    let gateway = Gateway::start(&config("", &[], &store).replace("servers = []", &server));
    gateway.until_store_connected();
    let writes = || gateway.metric("rateguard_store_writes_total");
    let before = writes();
    line.delay(Duration::from_millis(500));
    let mut client = Client::connect(gateway.address);
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");
    until("its decision is asked for", || writes() > before);
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let counted = |class: &str| gateway.metric(&format!("rateguard_requests_total{{route=\"/\",status=\"{class}\"}}"));
    until("its request is over", || counted("2xx") + counted("4xx") >= 1.0);
    assert_eq!(origin.connections(), 0, "nobody can say whom a connection would be for");
}
