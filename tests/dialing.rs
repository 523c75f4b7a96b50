//! Connections to backends from within: what TLS and unix sockets do to reads, writes, ends and deadlines. Each runs on
//! the driver that the gateways run on.

use crate::support::authority::{Authority, Secured, secured};
use crate::support::gateway::io;
use crate::support::origin::Origin;
use crate::support::{Folder, PATIENCE};
use rateguard::conn::{AHEAD_MAX, Conn, Deadlines, End, INPUT_START};
use rateguard::time::now;
use rateguard::tls::{Secure, Settings};
use rateguard::upstream::Place;
use rateguard::upstream::dial::{ConnectFault, Dialer};
use rateguard::upstream::proxy_protocol::{Line, ProxyProtocol};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

/// More than the sockets between two processes of this machine hold.
const LARGE: usize = 32 * 1024 * 1024;

/// Longer than any wait here may last, where it is not the deadline that is tested.
const LONG: Duration = PATIENCE;

/// Long enough for a scan of the deadlines to come by.
const SHORT: Duration = Duration::from_millis(200);

fn run<T>(task: impl Future<Output = T>) -> T {
    match io().as_str() {
        "epoll" => monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build().unwrap().block_on(task),
        _ => monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer().build().unwrap().block_on(task),
    }
}

/// Deadlines that are looked at, as a worker does.
fn deadlines() -> Rc<Deadlines> {
    let deadlines = Rc::new(Deadlines::default());
    deadlines.scan(now());
    let scanned = deadlines.clone();
    monoio::spawn(async move {
        loop {
            monoio::time::sleep(Duration::from_millis(20)).await;
            scanned.scan(now());
        }
    });
    deadlines
}

fn speaking_tls(authority: &Authority) -> Dialer {
    let settings = Settings { ca: Some(authority.path("ca.pem").into()), ..Settings::default() };
    let secure = Secure::load(&settings, "upstreams.app.tls").unwrap().for_http();
    Dialer::new(Some(secure), ProxyProtocol::Off, Some(Duration::from_secs(15)))
}

async fn connect(dialer: &Dialer, origin: &Origin, deadlines: &Rc<Deadlines>) -> Result<Conn, ConnectFault> {
    dialer.dial(&Place::Tcp(origin.address), "backend.test", None, LONG, deadlines).await
}

async fn send(conn: &mut Conn, bytes: &[u8]) {
    let sent = conn.writer.send(&mut bytes.to_vec(), LONG).await;
    assert_eq!((sent.result, sent.bytes), (Ok(()), bytes.len()));
}

/// Reads this many bytes.
async fn receive(conn: &mut Conn, count: usize) -> Vec<u8> {
    let mut received = Vec::new();
    while received.len() < count {
        if conn.reader.data().is_empty() {
            conn.reader.deadline(LONG);
            conn.reader.fill(64 * 1024).await.unwrap();
        }
        let taken = conn.reader.data().len().min(count - received.len());
        received.extend_from_slice(&conn.reader.data()[..taken]);
        conn.reader.consume(taken);
    }
    conn.reader.no_deadline();
    received
}

async fn until_not_quiet(conn: &mut Conn, is_quiet: impl Fn(&mut Conn) -> bool) {
    let start = now();
    while is_quiet(conn) {
        assert!(now().since(start) < PATIENCE, "the connection stays quiet");
        monoio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for one byte, which says to go on.
fn awaited(stream: &mut impl Read) {
    stream.read_exact(&mut [0]).unwrap();
}

fn end(mut stream: Secured, with_farewell: bool) {
    if with_farewell {
        stream.conn.send_close_notify();
        // Who could not shake hands hears of it no more.
        let _ = stream.flush();
    }
    let _ = stream.sock.shutdown(std::net::Shutdown::Write);
    // Until the other side has gone too: a close in front of unread bytes is a reset.
    let _ = std::io::copy(&mut stream.sock, &mut std::io::sink());
}

#[test]
fn a_connection_is_not_quiet_while_its_session_holds_plaintext() {
    const SURPLUS: usize = 100;
    let authority = Authority::new();
    let origin = authority.origin("backend.test", |mut stream, _| {
        awaited(&mut stream);
        // One record, and so one read of the socket.
        stream.write_all(&[b'a'; INPUT_START + SURPLUS]).unwrap();
        awaited(&mut stream);
        end(stream, true);
    });
    run(async {
        let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
        send(&mut conn, b"1").await;
        conn.reader.deadline(LONG);
        let read = conn.reader.fill(INPUT_START).await.unwrap();
        conn.reader.no_deadline();
        assert!(read <= INPUT_START, "the test is about a buffer that is too small");
        conn.reader.consume(read);
        assert!(!conn.is_quiet(), "the session holds the rest of it");
        receive(&mut conn, INPUT_START + SURPLUS - read).await;
        assert!(conn.is_quiet());
        send(&mut conn, b"2").await;
        until_not_quiet(&mut conn, Conn::is_quiet).await;
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::Closed));
        assert!(!conn.is_quiet());
    });
}

#[test]
fn an_end_without_a_farewell_is_a_break() {
    let authority = Authority::new();
    for with_farewell in [true, false] {
        let origin = authority.origin("backend.test", move |mut stream, _| {
            awaited(&mut stream);
            stream.write_all(b"half of it").unwrap();
            end(stream, with_farewell);
        });
        run(async {
            let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
            send(&mut conn, b"1").await;
            assert_eq!(receive(&mut conn, 10).await, b"half of it");
            let expected = if with_farewell { End::Closed } else { End::Broken };
            // Again: what has ended stays ended.
            assert_eq!(conn.reader.fill(INPUT_START).await, Err(expected));
            assert_eq!(conn.reader.fill(INPUT_START).await, Err(expected));
        });
    }
}

#[test]
fn a_deadline_is_no_end_of_the_peer_s() {
    let authority = Authority::new();
    let origin = authority.origin("backend.test", |mut stream, _| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    run(async {
        let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
        send(&mut conn, b"1").await;
        conn.reader.deadline(SHORT);
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::TimedOut));
    });
}

#[test]
fn a_peer_that_takes_nothing_is_late() {
    let authority = Authority::new();
    let origin = authority.origin("backend.test", |mut stream, _| {
        awaited(&mut stream);
        thread::park();
    });
    run(async {
        let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
        let sent = conn.writer.send(&mut vec![0; LARGE], SHORT).await;
        assert_eq!(sent.result, Err(End::TimedOut));
        assert!((1..LARGE).contains(&sent.bytes));
    });
}

/// Sends without end while the peer reads nothing, and gives what became of the reading side meanwhile.
async fn read_while_a_write_is_blocked(conn: &mut Conn) -> Result<usize, End> {
    let Conn { reader, writer } = conn;
    let mut output = vec![0; LARGE];
    monoio::select! {
        sent = writer.send(&mut output, LONG) => panic!("the peer took it all: {:?}", sent.result),
        read = async {
            // It has its head start: the write is under way.
            monoio::time::sleep(SHORT).await;
            reader.deadline(LONG);
            reader.fill(INPUT_START).await
        } => read,
    }
}

#[test]
fn a_broken_record_while_a_write_is_blocked_ends_the_connection_alone() {
    let authority = Authority::new();
    let origin = authority.origin("backend.test", |mut stream, _| {
        awaited(&mut stream);
        // No application data that this session could have made.
        stream.sock.write_all(b"\x17\x03\x03\x00\x20this is not what a record is....").unwrap();
        thread::park();
    });
    run(async {
        let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
        assert_eq!(read_while_a_write_is_blocked(&mut conn).await, Err(End::Broken));
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::Broken));
    });
}

#[test]
fn new_keys_may_be_asked_for_while_a_write_is_blocked() {
    let authority = Authority::new();
    let origin = authority.origin("backend.test", |mut stream, _| {
        awaited(&mut stream);
        thread::sleep(2 * SHORT);
        stream.conn.refresh_traffic_keys().unwrap();
        stream.write_all(b"under new keys").unwrap();
        // All of what was sent meanwhile, under the old keys first, then under new ones.
        std::io::copy(&mut (&mut stream).take(LARGE as u64 - 1), &mut std::io::sink()).unwrap();
        stream.write_all(b"thanks").unwrap();
        awaited(&mut stream);
    });
    run(async {
        let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
        let Conn { reader, writer } = &mut conn;
        reader.deadline(LONG);
        let mut output = vec![0; LARGE];
        let (sent, read) = monoio::join!(writer.send(&mut output, LONG), reader.fill(INPUT_START));
        assert_eq!((sent.result, sent.bytes, read), (Ok(()), LARGE, Ok(14)));
        reader.consume(14);
        assert_eq!(receive(&mut conn, 6).await, b"thanks");
        send(&mut conn, b"1").await;
    });
}

#[test]
fn bytes_go_both_ways_at_once_as_they_were_sent() {
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 128;
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let authority = Authority::new();
        authority.vouch("server", "backend.test");
        let origin = secured(authority.server("server", false, versions), |mut stream, _| {
            let mut piece = vec![0; 100_000];
            while let Ok(read @ 1..) = stream.read(&mut piece) {
                stream.write_all(&piece[..read]).unwrap();
            }
        });
        let piece = |number: usize| -> Vec<u8> {
            let mut random = fastrand::Rng::with_seed(number as u64);
            (0..PIECE).map(|_| random.u8(..)).collect()
        };
        run(async {
            let mut conn = connect(&speaking_tls(&authority), &origin, &deadlines()).await.unwrap();
            let Conn { reader, writer } = &mut conn;
            let upload = async {
                for number in 0..PIECES {
                    assert_eq!(writer.send(&mut piece(number), LONG).await.result, Ok(()));
                }
            };
            let download = async {
                reader.deadline(LONG);
                for expected in (0..PIECES).map(piece) {
                    while reader.data().len() < PIECE {
                        reader.fill(2 * PIECE).await.unwrap();
                    }
                    assert!(reader.data()[..PIECE] == expected);
                    reader.consume(PIECE);
                }
            };
            monoio::join!(upload, download);
            conn.writer.finish().await;
            assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::Broken), "it leaves without a farewell");
        });
    }
}

#[test]
fn a_handshake_that_fails_is_told_from_one_that_never_comes() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = authority.origin("backend.test", |stream, _| end(stream, true));
    let other_name = authority.origin("other.test", |mut stream, _| drop(stream.read(&mut [0])));
    let plain = Origin::new(|mut stream, _| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap());
    let mute = Origin::new(|mut stream, _| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let closing = Origin::new(|_, _| {});
    run(async {
        let deadlines = deadlines();
        let dialer = speaking_tls(&authority);
        assert!(connect(&dialer, &good, &deadlines).await.is_ok());
        assert_eq!(connect(&speaking_tls(&stranger), &good, &deadlines).await.err(), Some(ConnectFault::Tls));
        for origin in [&other_name, &plain, &closing] {
            assert_eq!(connect(&dialer, origin, &deadlines).await.err(), Some(ConnectFault::Tls));
        }
        let dialed = dialer.dial(&Place::Tcp(mute.address), "backend.test", None, SHORT, &deadlines).await;
        assert_eq!(dialed.err(), Some(ConnectFault::TimedOut));
    });
}

/// An echo on a unix socket.
fn echo_at(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
}

/// A connection of the dialer, and its other end.
async fn pair() -> (Conn, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::Tcp(listener.local_addr().unwrap());
    let dialer = Dialer::new(None, ProxyProtocol::Off, None);
    let conn = dialer.dial(&place, "h", None, LONG, &deadlines()).await.unwrap();
    (conn, listener.accept().unwrap().0)
}

#[test]
fn a_read_that_began_ahead_is_that_of_the_next_message() {
    run(async {
        let (mut conn, mut peer) = pair().await;
        for _ in 0..3 {
            assert!(conn.reader.read_ahead(Vec::with_capacity(INPUT_START)).is_none());
            assert!(conn.seems_quiet() && conn.is_quiet());
            conn.reader.lend(|| unreachable!("there is a buffer"));
            send(&mut conn, b"question").await;
            peer.read_exact(&mut [0; 8]).unwrap();
            peer.write_all(b"answer").unwrap();
            assert_eq!(receive(&mut conn, 6).await, b"answer");
            assert!(conn.reader.reclaim().is_some());
        }
        let large = conn.reader.read_ahead(Vec::with_capacity(AHEAD_MAX + 1)).unwrap();
        assert_eq!(large.capacity(), AHEAD_MAX + 1);
        assert!(monoio::time::timeout(SHORT, conn.reader.fill(INPUT_START)).await.is_err());
        peer.write_all(b"late").unwrap();
        assert_eq!(receive(&mut conn, 4).await, b"late", "who gave up waiting has lost nothing");
    });
}

#[test]
fn a_read_that_began_ahead_tells_of_an_end_and_of_what_nobody_asked_for() {
    run(async {
        let (mut conn, mut peer) = pair().await;
        assert!(conn.reader.read_ahead(Vec::with_capacity(INPUT_START)).is_none());
        peer.write_all(b"unasked").unwrap();
        until_not_quiet(&mut conn, Conn::seems_quiet).await;
        assert_eq!(receive(&mut conn, 7).await, b"unasked");
        let buffer = conn.reader.reclaim().unwrap();
        assert!(conn.reader.read_ahead(buffer).is_none());
        drop(peer);
        until_not_quiet(&mut conn, Conn::seems_quiet).await;
        assert!(!conn.is_quiet());
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::Closed));
    });
}

#[test]
fn a_connection_ends_with_its_owner_though_a_read_is_under_way() {
    run(async {
        let (mut conn, mut peer) = pair().await;
        assert!(conn.reader.read_ahead(Vec::with_capacity(INPUT_START)).is_none());
        drop(conn);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn a_unix_socket_carries_what_tcp_does() {
    let folder = Folder::new();
    let path = folder.path().join("app.sock");
    echo_at(&path);
    run(async {
        let deadlines = deadlines();
        let place = Place::Unix(path);
        let mut conn =
            Dialer::new(None, ProxyProtocol::Off, None).dial(&place, "h", None, LONG, &deadlines).await.unwrap();
        send(&mut conn, b"hello").await;
        assert_eq!(receive(&mut conn, 5).await, b"hello");
        assert!(conn.is_quiet());
        conn.reader.deadline(SHORT);
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::TimedOut), "a wait on both drivers, not an error");
        let mut conn =
            Dialer::new(None, ProxyProtocol::Off, None).dial(&place, "h", None, LONG, &deadlines).await.unwrap();
        conn.writer.finish().await;
        conn.reader.deadline(LONG);
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::Closed));
        let mut conn =
            Dialer::new(None, ProxyProtocol::Off, None).dial(&place, "h", None, LONG, &deadlines).await.unwrap();
        conn.abort();
        conn.reader.deadline(LONG);
        assert_eq!(conn.reader.fill(INPUT_START).await, Err(End::Closed), "what knows no reset is shut");
    });
}

#[test]
fn a_unix_socket_that_nobody_listens_on_refuses() {
    let folder = Folder::new();
    let (gone, full) = (folder.path().join("gone.sock"), folder.path().join("full.sock"));
    drop(UnixListener::bind(&gone).unwrap());
    let listener = UnixListener::bind(&full).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    run(async {
        let deadlines = deadlines();
        let dialer = Dialer::new(None, ProxyProtocol::Off, None);
        for path in [folder.path().join("missing.sock"), gone, folder.path().join("long".repeat(100))] {
            let dialed = dialer.dial(&Place::Unix(path), "h", None, LONG, &deadlines).await;
            assert_eq!(dialed.err(), Some(ConnectFault::Refused));
        }
        let place = Place::Unix(full);
        let _first = dialer.dial(&place, "h", None, LONG, &deadlines).await.unwrap();
        let second = dialer.dial(&place, "h", None, LONG, &deadlines).await;
        assert_eq!(second.err(), Some(ConnectFault::Refused), "its backlog is full");
    });
}

#[test]
fn the_proxy_header_comes_before_the_handshake() {
    const EXPECTED: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 80\r\n";
    let authority = Authority::new();
    authority.vouch("server", "backend.test");
    let config = authority.server("server", false, rustls::ALL_VERSIONS);
    let origin = Origin::new(move |mut stream, _| {
        let mut header = [0; EXPECTED.len()];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header, EXPECTED);
        let mut stream = Secured::new(rustls::ServerConnection::new(config.clone()).unwrap(), stream);
        awaited(&mut stream);
        stream.write_all(stream.conn.alpn_protocol().unwrap().to_vec().as_slice()).unwrap();
        end(stream, true);
    });
    run(async {
        let mut dialer = speaking_tls(&authority);
        dialer.proxy_protocol = ProxyProtocol::V1;
        let [source, destination] = ["192.0.2.1:1000", "192.0.2.2:80"].map(|address| address.parse().unwrap());
        let line = Line { source, destination };
        let place = Place::Tcp(origin.address);
        let mut conn = dialer.dial(&place, "backend.test", Some(&line), LONG, &deadlines()).await.unwrap();
        send(&mut conn, b"1").await;
        assert_eq!(receive(&mut conn, 8).await, b"http/1.1");
    });
}

#[test]
fn a_silent_connection_is_probed() {
    const SILENCE: Duration = Duration::from_secs(17);
    const ESTABLISHED: &str = "01";
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::Tcp(listener.local_addr().unwrap());
    run(async {
        let dialer = Dialer::new(None, ProxyProtocol::Off, Some(SILENCE));
        let _conn = dialer.dial(&place, "h", None, LONG, &deadlines()).await.unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        // sl local remote state queues timer:when …; the timer of keep-alive is 2, and it counts hundredths.
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let local = format!("0100007F:{:04X}", peer.port());
        let ours = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = ours.filter(|fields| fields[1] == local && fields[3] == ESTABLISHED).collect::<Vec<_>>();
        let (timer, when) = ours[0][5].split_once(':').unwrap_or_else(|| panic!("{ours:?}"));
        let when = Duration::from_millis(10 * u64::from_str_radix(when, 16).unwrap());
        assert_eq!(timer, "02", "{ours:?}");
        assert!((Duration::from_secs(10)..=SILENCE).contains(&when), "{when:?}");
    });
}
