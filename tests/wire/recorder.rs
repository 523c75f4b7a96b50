//! A backend that writes down exactly what it gets. It has no thread: whoever uses it lets it look.

use super::message::{Answer, Body, Ends, Head, latin};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// The name of the recorder's own address.
pub const OWN_HOST: &str = "(backend)";

/// A whole request, as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The number of the connection.
    pub on: usize,
    pub head: Head,
    pub body: Body,
    pub bytes: Vec<u8>,
}

impl Seen {
    pub fn target(&self) -> &str {
        self.head.line.split(' ').nth(1).unwrap_or_default()
    }

    /// Shows the backend's own address, which is another in each run, by its name.
    fn name_host(&mut self, address: SocketAddr) {
        let own = format!("Host: {address}");
        for line in self.head.fields.iter_mut().filter(|line| line.eq_ignore_ascii_case(&own)) {
            *line = format!("Host: {OWN_HOST}");
        }
    }
}

/// A connection of the gateway's.
pub struct Link {
    pub number: usize,
    pub stream: TcpStream,
    /// Arrived, and no whole request yet.
    pub rest: Vec<u8>,
    pub is_ended: bool,
}

pub struct Recorder {
    listener: TcpListener,
    pub address: SocketAddr,
    pub links: Vec<Link>,
    pub requests: Vec<Seen>,
    /// Whether it answers by itself, with the target of the request as the body.
    pub answers: bool,
    accepted: usize,
}

impl Recorder {
    pub fn new() -> Recorder {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        Recorder { listener, address, links: Vec::new(), requests: Vec::new(), answers: true, accepted: 0 }
    }

    /// Takes all that has arrived; an error where it is not a row of well-formed requests.
    pub fn look(&mut self) -> Result<(), String> {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
            self.links.push(Link { number: self.accepted, stream, rest: Vec::new(), is_ended: false });
            self.accepted += 1;
        }
        for link in &mut self.links {
            if !link.receive() {
                continue;
            }
            while let Some(mut seen) = link.next_request()? {
                seen.name_host(self.address);
                if self.answers {
                    link.answer(&seen);
                }
                self.requests.push(seen);
            }
        }
        self.links.retain(|link| !link.is_ended || !link.rest.is_empty());
        Ok(())
    }

    /// The connection with this number, where it is still open.
    pub fn link(&mut self, number: usize) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.number == number && !link.is_ended)
    }

    /// Whether a connection that holds an unfinished request is still open.
    pub fn is_waiting(&self) -> bool {
        self.links.iter().any(|link| !link.is_ended && !link.rest.is_empty())
    }

    /// Gives what was seen since the last time: whole requests, and beginnings.
    pub fn take(&mut self) -> (Vec<Seen>, Vec<Vec<u8>>) {
        let is_begun = |link: &Link| !link.rest.is_empty();
        let begun = self.links.iter().filter(|link| is_begun(link)).map(|link| link.rest.clone()).collect();
        self.links.retain(|link| !is_begun(link));
        (std::mem::take(&mut self.requests), begun)
    }
}

impl Link {
    /// Whether something has arrived.
    fn receive(&mut self) -> bool {
        let before = self.rest.len();
        let mut piece = [0; 2 * 1024];
        while !self.is_ended {
            match self.stream.read(&mut piece) {
                Ok(0) => self.is_ended = true,
                Ok(bytes) => self.rest.extend_from_slice(&piece[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.is_ended = true,
            }
        }
        self.rest.len() > before
    }

    fn next_request(&mut self) -> Result<Option<Seen>, String> {
        let shown = |why: String| format!("the backend got what is no request: {why}: {:?}", latin(&self.rest));
        let seen = read(&self.rest, self.number).map_err(shown)?;
        Ok(seen.map(|(seen, used)| {
            self.rest.drain(..used);
            seen
        }))
    }

    fn answer(&mut self, seen: &Seen) {
        let target = seen.target();
        let body = if seen.head.line.starts_with("HEAD ") { "" } else { target };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", target.len());
        // A gateway that has gone needs no answer.
        let _ = self.stream.write_all(answer.as_bytes());
    }
}

/// Reads one request off the front of `bytes`.
fn read(bytes: &[u8], on: usize) -> Result<Option<(Seen, usize)>, String> {
    let Some(head) = Head::read(bytes)? else { return Ok(None) };
    let words: Vec<&str> = head.line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { return Err("a malformed request line".into()) };
    if method.is_empty() || head.line.contains('\t') || !(target.starts_with('/') || target == "*") {
        return Err("a malformed method or target".into());
    }
    if head.values("Host").len() != 1 {
        return Err("not one Host".into());
    }
    let body = Body::read(&bytes[head.len..], head.framing()?.unwrap_or(Ends::After(0)))?;
    let used = head.len + body.used;
    Ok(body.done.then(|| (Seen { on, head, body, bytes: bytes[..used].to_vec() }, used)))
}

/// Reads what a client has got so far into `into`; gives whether the stream has ended, and an error where by a reset.
pub fn receive(stream: &mut TcpStream, into: &mut Vec<u8>) -> Result<bool, ErrorKind> {
    let mut piece = [0; 2 * 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(true),
            Ok(bytes) => into.extend_from_slice(&piece[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.kind()),
        }
    }
}

/// All answers in what a client got; the last may be cut.
pub fn answers(bytes: &[u8], to_head: impl Fn(usize) -> bool) -> Result<Vec<Answer>, String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let shown = |why: String| format!("{why}; the client got {:?}", latin(bytes));
        let number = found.iter().filter(|answer: &&Answer| answer.status >= 200).count();
        let next = Answer::read(&bytes[at..], to_head(number), true).map_err(shown)?;
        let (answer, used) = next.ok_or_else(|| shown("an answer without the end of its head".into()))?;
        at += used;
        found.push(answer);
    }
    Ok(found)
}
