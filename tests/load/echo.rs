//! Requests that are all different, and the origin that gives each its own back. Size, framing and body follow from a
//! request's number, so a response that belongs to another request cannot pass for the right one.

use crate::support::client::Response;
use crate::support::origin::Origin;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Condvar;
use std::sync::{Arc, Mutex};

/// How an answer is framed; the name is the first part of the path.
const ANSWERS: [&str; 3] = ["length", "chunked", "close"];

/// A request and what it must get.
pub struct Exchange {
    pub number: u64,
    answered: &'static str,
    is_chunked: bool,
    body: Vec<u8>,
    random: fastrand::Rng,
}

impl Exchange {
    /// The request with this number; its body is smaller than one of `sizes`.
    pub fn new(seed: u64, number: u64, sizes: &[usize]) -> Exchange {
        let mut random = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let most = sizes[random.usize(..sizes.len())];
        let mut body = vec![0; random.usize(..most)];
        random.fill(&mut body);
        Exchange { number, answered: ANSWERS[random.usize(..ANSWERS.len())], is_chunked: random.bool(), body, random }
    }

    /// The request as bytes, with further field lines.
    pub fn request(&mut self, fields: &str) -> Vec<u8> {
        let Exchange { number, answered, .. } = self;
        let mut request =
            format!("POST /{answered} HTTP/1.1\r\nHost: h\r\nX-Number: {number}\r\n{fields}").into_bytes();
        match self.is_chunked {
            true => {
                request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                chunks(&mut request, &self.body, &mut self.random);
            }
            false => self.append_plain(&mut request),
        }
        request
    }

    /// The request in HTTP/1.0, which knows no chunks.
    pub fn old_request(&self) -> Vec<u8> {
        let mut request = format!("POST /{} HTTP/1.0\r\nX-Number: {}\r\n", self.answered, self.number).into_bytes();
        self.append_plain(&mut request);
        request
    }

    fn append_plain(&self, request: &mut Vec<u8>) {
        write!(request, "Content-Length: {}\r\n\r\n", self.body.len()).unwrap();
        request.extend_from_slice(&self.body);
    }

    /// Fails the test where this is not the answer to this request.
    pub fn check(&self, response: &Response) {
        let Exchange { number, answered, is_chunked, body, .. } = self;
        let what = format!("request {number}, chunked {is_chunked}, answered by {answered}");
        assert_eq!(response.status, 200, "{what}: {}", response.text());
        assert_eq!(response.field("X-Number"), Some(number.to_string().as_str()), "{what}: {}", response.head);
        assert_eq!(response.body.len(), body.len(), "{what}: {}", response.head);
        assert!(response.body == *body, "{what}: the body was changed on the way");
    }
}

/// Writes `bytes` in pieces cut where chance cuts them.
pub fn dribble(mut stream: &TcpStream, mut bytes: &[u8], random: &mut fastrand::Rng) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let most = [10, 3000, 70_000, usize::MAX][random.usize(..4)];
        let (piece, rest) = bytes.split_at(random.usize(1..=most).min(bytes.len()));
        stream.write_all(piece)?;
        bytes = rest;
    }
    Ok(())
}

/// Appends `body` in chunks that chance chooses.
fn chunks(out: &mut Vec<u8>, mut body: &[u8], random: &mut fastrand::Rng) {
    while !body.is_empty() {
        let most = [20, 5000, 200_000][random.usize(..3)];
        let (piece, rest) = body.split_at(random.usize(1..=most).min(body.len()));
        write!(out, "{:x}\r\n", piece.len()).unwrap();
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
        body = rest;
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Holds the first requests until so many are there.
pub struct Gathering {
    wanted: usize,
    arrived: Mutex<usize>,
    all: Condvar,
}

impl Gathering {
    pub fn of(wanted: usize) -> Gathering {
        Gathering { wanted, arrived: Mutex::new(0), all: Condvar::new() }
    }

    /// Waits for the others; false where they do not come.
    pub fn wait(&self) -> bool {
        let mut arrived = self.arrived.lock().unwrap();
        *arrived += 1;
        if *arrived >= self.wanted {
            self.all.notify_all();
        }
        let (arrived, _) =
            self.all.wait_timeout_while(arrived, crate::support::PATIENCE, |arrived| *arrived < self.wanted).unwrap();
        *arrived >= self.wanted
    }

    /// How many requests were held at the same time.
    pub fn arrived(&self) -> usize {
        *self.arrived.lock().unwrap()
    }
}

/// Sends every request's body and number back, framed as its path says, once all of `gathering` have come.
pub fn origin(seed: u64, gathering: Arc<Gathering>) -> Origin {
    Origin::new(move |stream, connection| {
        let mut random = fastrand::Rng::with_seed(seed ^ connection as u64);
        let mut input = BufReader::new(&stream);
        while let Some(head) = read_head(&mut input) {
            if !gathering.wait() {
                return;
            }
            let Some(body) = read_body(&head, &mut input) else { return };
            let answer = answer(&head, &body, &mut random);
            if dribble(&stream, &answer, &mut random).is_err() || head[0].contains("/close") {
                return;
            }
        }
    })
}

pub fn answer(head: &[String], body: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let number = field(head, "X-Number").unwrap_or("none");
    let mut answer = format!("HTTP/1.1 200 OK\r\nX-Number: {number}\r\n").into_bytes();
    if head[0].contains("/length") {
        write!(answer, "Content-Length: {}\r\n\r\n", body.len()).unwrap();
        answer.extend_from_slice(body);
    } else if head[0].contains("/chunked") {
        answer.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
        chunks(&mut answer, body, random);
    } else {
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(body);
    }
    answer
}

fn field<'h>(head: &'h [String], name: &str) -> Option<&'h str> {
    let mut fields = head.iter().skip(1).filter_map(|line| line.split_once(": "));
    fields.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
}

/// The lines of a head; `None` at the end of the stream.
pub fn read_head(input: &mut impl BufRead) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        match line(input)? {
            empty if empty.is_empty() => return Some(lines),
            line => lines.push(line),
        }
    }
}

fn line(input: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    line.strip_suffix("\r\n").map(str::to_owned)
}

/// The body that this head announces; `None` where it is cut.
pub fn read_body(head: &[String], input: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = field(head, "Content-Length") {
        body.resize(length.parse().ok()?, 0);
        input.read_exact(&mut body).ok()?;
    } else if field(head, "Transfer-Encoding").is_some() {
        loop {
            let size = usize::from_str_radix(&line(input)?, 16).ok()?;
            let start = body.len();
            body.resize(start + size, 0);
            input.read_exact(&mut body[start..]).ok()?;
            if !line(input)?.is_empty() {
                return None;
            }
            if size == 0 {
                break;
            }
        }
    }
    Some(body)
}
