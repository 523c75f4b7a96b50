//! A backend that knows the parts of HTTP/1.1 which the demo backend refuses: trailers, chunk extensions, expectations,
//! upgrades. `/echo` gives the body back, `/echo/chunked` in chunks and with its trailers; `/bytes/N` gives N bytes;
//! `/upgrade` becomes an echo; everything else says `ok`.

use crate::support::origin;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub struct Origin {
    origin: origin::Origin,
    requests: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

/// Heads that are kept for a test to look at; load tools send far more.
const HEADS_MAX: usize = 200;

/// A body as it came.
#[derive(Default)]
struct Body {
    data: Vec<u8>,
    trailers: Vec<String>,
}

impl Origin {
    pub fn start() -> Origin {
        let requests = Arc::new(AtomicUsize::new(0));
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let (counter, keeper) = (requests.clone(), heads.clone());
        let origin = origin::Origin::new(move |stream, _| {
            let mut input = BufReader::new(&stream);
            while let Some(head) = Head::read(&mut input) {
                counter.fetch_add(1, Ordering::SeqCst);
                let mut heads = keeper.lock().unwrap();
                if heads.len() < HEADS_MAX {
                    heads.push(head.0.join("\n"));
                }
                drop(heads);
                if head.serve(&stream, &mut input).is_err() {
                    return;
                }
            }
        });
        Origin { origin, requests, heads }
    }

    pub fn address(&self) -> SocketAddr {
        self.origin.address
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// The heads of the first requests.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// The lines of a request's head.
struct Head(Vec<String>);

impl Head {
    fn read(input: &mut impl BufRead) -> Option<Head> {
        let mut lines = Vec::new();
        loop {
            match line(input).ok()? {
                empty if empty.is_empty() => return Some(Head(lines)),
                line => lines.push(line),
            }
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter().skip(1).filter_map(|line| line.split_once(':'));
        fields.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value.trim()))
    }

    fn serve(&self, mut stream: &TcpStream, input: &mut BufReader<&TcpStream>) -> io::Result<()> {
        let target = self.0[0].split(' ').nth(1).unwrap_or_default();
        if target == "/upgrade" {
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
            io::copy(input, &mut stream)?;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.field("Expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let body = self.body(input)?;
        let mut answer = Vec::new();
        if target == "/echo/chunked" {
            echo_in_chunks(&mut answer, &body);
        } else {
            let data = match target.strip_prefix("/bytes/") {
                Some(count) => bytes(count.parse().unwrap()),
                None if target == "/echo" => body.data,
                None => b"ok".to_vec(),
            };
            write!(answer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", data.len())?;
            if !self.0[0].starts_with("HEAD ") {
                answer.extend_from_slice(&data);
            }
        }
        stream.write_all(&answer)
    }

    fn body(&self, input: &mut impl BufRead) -> io::Result<Body> {
        let mut body = Body::default();
        if let Some(length) = self.field("Content-Length") {
            body.data.resize(length.parse().unwrap(), 0);
            input.read_exact(&mut body.data)?;
        } else if self.field("Transfer-Encoding").is_some() {
            loop {
                let line_of_size = line(input)?;
                let size = line_of_size.split(';').next().unwrap_or_default();
                let size = u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
                if size == 0 {
                    break;
                }
                input.take(size).read_to_end(&mut body.data)?;
                line(input)?;
            }
            loop {
                match line(input)? {
                    empty if empty.is_empty() => break,
                    trailer => body.trailers.push(trailer),
                }
            }
        }
        Ok(body)
    }
}

fn echo_in_chunks(answer: &mut Vec<u8>, body: &Body) {
    answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    for piece in body.data.chunks(1000) {
        write!(answer, "{:x};piece=\"x\"\r\n", piece.len()).unwrap();
        answer.extend_from_slice(piece);
        answer.extend_from_slice(b"\r\n");
    }
    answer.extend_from_slice(b"0\r\n");
    for trailer in &body.trailers {
        write!(answer, "{trailer}\r\n").unwrap();
    }
    answer.extend_from_slice(b"\r\n");
}

/// What `/bytes/N` gives.
pub fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at % 251) as u8).collect()
}

fn line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    line.strip_suffix("\r\n").map(str::to_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
