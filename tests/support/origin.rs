//! Backends that do exactly what a test tells them to.

use super::PATIENCE;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Connections that may wait to be accepted; `std` asks for fewer than a crowd opens at once.
const BACKLOG: i32 = 4096;

/// A listening backend. Its threads end with the connections.
pub struct Origin {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// A request as the backend got it.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: String,
    /// The body as it stood on the wire.
    pub body: Vec<u8>,
}

impl Request {
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).into_iter().next()
    }

    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

impl Origin {
    /// Runs `serve` in a thread of its own for each connection; it is given the connection's number from 0.
    pub fn new(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Origin {
        Origin::at(SocketAddr::from(([127, 0, 0, 1], 0)), serve)
    }

    /// As `new`, on this address.
    pub fn at(address: SocketAddr, serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Origin {
        let listener = TcpListener::bind(address).unwrap();
        rustix::net::listen(&listener, BACKLOG).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = connections.clone();
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let _ = stream.set_nodelay(true);
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream, number));
            }
        });
        Origin { address, connections, requests: Arc::default() }
    }

    /// Answers every request with these bytes, keeps connections open and remembers the requests.
    pub fn answering(answer: impl Into<Vec<u8>>) -> Origin {
        let answer = answer.into();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let seen = requests.clone();
        let mut origin = Origin::new(move |mut stream, _| {
            while let Some(request) = read_request(&mut stream) {
                seen.lock().unwrap().push(request);
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        origin.requests = requests;
        origin
    }

    /// `200 OK` with the body `ok`.
    pub fn ok() -> Origin {
        Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Requests seen so far, by an origin made with `answering`.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Reads one request with its body; `None` at the end of the stream.
pub fn read_request(stream: &mut impl Read) -> Option<Request> {
    let head = read_head(stream)?;
    let mut request = Request { head, body: Vec::new() };
    if let Some(length) = request.field("Content-Length") {
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).ok()?;
        request.body = body;
    } else if request.field("Transfer-Encoding").is_some() {
        while !request.body.ends_with(b"0\r\n\r\n") {
            request.body.push(read_byte(stream)?);
        }
    }
    Some(request)
}

/// Reads up to the empty line.
pub fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(read_byte(stream)?);
    }
    String::from_utf8(head).ok()
}

fn read_byte(stream: &mut impl Read) -> Option<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    Some(byte[0])
}
