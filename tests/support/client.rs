//! A client that sends exactly the bytes that it is told to.

use super::PATIENCE;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A connection to a gateway.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response as it came.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Status line and field lines.
    pub head: String,
    /// The body, decoded.
    pub body: Vec<u8>,
    /// The lines behind the last chunk.
    pub trailers: Vec<String>,
}

impl Response {
    /// The value of the first field with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).into_iter().next()
    }

    /// The values of all fields with this name.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new() }
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::from(TcpStream::connect(address).unwrap())
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    /// Sends a GET of `path`, with further field lines (each ended by CRLF).
    pub fn get(&mut self, path: &str, fields: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")).response()
    }

    /// The next response to a request that may have a body in its response.
    pub fn response(&mut self) -> Response {
        self.try_response(true).expect("a whole response")
    }

    /// The next response to a HEAD.
    pub fn response_to_head(&mut self) -> Response {
        self.try_response(false).expect("a whole response")
    }

    /// The next response, or how the stream ended: `UnexpectedEof` where it was cut.
    pub fn try_response(&mut self, may_have_body: bool) -> io::Result<Response> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at + 4;
            }
            self.fill()?;
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut response = Response { status, head, body: Vec::new(), trailers: Vec::new() };
        if !may_have_body || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        if response.field("Transfer-Encoding") == Some("chunked") {
            (response.body, response.trailers) = self.chunks()?;
        } else if let Some(length) = response.field("Content-Length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length {
                self.fill()?;
            }
            response.body = self.buffer.drain(..length).collect();
        } else {
            response.body = self.rest()?;
        }
        Ok(response)
    }

    fn chunks(&mut self) -> io::Result<(Vec<u8>, Vec<String>)> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(&line, 16).unwrap();
            if size == 0 {
                let mut trailers = Vec::new();
                loop {
                    match self.line()? {
                        line if line.is_empty() => return Ok((body, trailers)),
                        line => trailers.push(line),
                    }
                }
            }
            while self.buffer.len() < size + 2 {
                self.fill()?;
            }
            body.extend(self.buffer.drain(..size));
            assert_eq!(self.buffer.drain(..2).collect::<Vec<_>>(), b"\r\n");
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            self.fill()?;
        };
        let line = self.buffer.drain(..end + 2).take(end).collect();
        Ok(String::from_utf8(line).unwrap())
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(std::mem::take(&mut self.buffer));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the gateway closes the connection, with nothing more on it.
    pub fn is_closed(&mut self) -> bool {
        match self.rest() {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => {
                self.buffer.extend_from_slice(&piece[..bytes]);
                Ok(())
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// One GET on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Response {
    Client::connect(address).get(path, "Connection: close\r\n")
}

/// Sends raw bytes on a connection of its own and reads one response.
pub fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Response {
    Client::connect(address).send(bytes).response()
}
