//! The demo backend: a small HTTP/1.1 origin that says who it is, waits, fails, streams and echoes on demand, so that
//! the gateway has something to guard in the README, in the compose file and in tests.
//!
//! monoio-http reads the requests; the answers are written here because its encoder states `content-length: 0` for
//! HEAD and 204 and can only chunk a stream. It must never face strangers (MONOIO.md): what would panic or fill its
//! memory is refused before it gets there, but smuggling is not its business. Chunk extensions and trailers get a 400.
//! Shell.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: a server of its own, with its own runtime"
)]

use std::cell::Cell;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::{HeaderValue, StatusCode, Version};
use bytes::{Bytes, BytesMut};
use monoio::io::stream::Stream as _;
use monoio::io::{AsyncWriteRent as _, AsyncWriteRentExt as _, Splitable as _};
use monoio::net::tcp::{TcpOwnedReadHalf, TcpOwnedWriteHalf};
use monoio::net::{TcpListener, TcpStream};
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};
use monoio_codec::{Decoded, Decoder, FramedRead};
use monoio_http::common::request::RequestHead;
use monoio_http::h1::codec::decoder::{ChunkedBodyDecoder, RequestHeadDecoder};
use serde::Serialize;

/// Connections that one backend holds; more are closed at once.
const CONNECTIONS_MAX: usize = 10_000;
/// Connections that wait in the kernel to be accepted; `std` would ask for fewer than a load test opens at once.
const BACKLOG: i32 = 1024;
/// Wait after a failed accept: out of descriptors, accept fails at once and would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Wait for a whole request head, idle time included; longer than any gateway keeps an idle connection.
const HEAD_WAIT: Duration = Duration::from_secs(120);
/// Wait for the next piece of a request body.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// Wait for the peer to take one piece of an answer.
const WRITE_WAIT: Duration = Duration::from_secs(30);
/// Wait for the peer to hang up after a refusal, so that a reset does not overtake the answer.
const LINGER: Duration = Duration::from_secs(1);
/// Pieces that are thrown away while lingering.
const LINGER_PIECES_MAX: usize = 256;
/// Bytes of a request head. monoio-http panics at a field name over 64 KiB.
const HEAD_MAX: usize = 32 << 10;
/// Bytes of one chunk, which monoio-http holds whole.
const CHUNK_MAX: usize = 16 << 20;
/// Bytes of a body that `/echo` gives back; longer ones are read to their end and answered 413.
const ECHO_MAX: usize = 64 << 20;
/// The longest `/slow?ms=`.
const SLOW_MS_MAX: u64 = 60_000;
/// The wait of `/slow` without `ms`.
const SLOW_MS_DEFAULT: u64 = 1_000;
/// The longest `/bytes/<n>`.
const BYTES_MAX: u64 = 1 << 30;
/// `/bytes` repeats the values 0 to 250: a prime length, so a lost or doubled power of two shows.
const PATTERN_PERIOD: usize = 251;
/// Bytes that `/bytes` hands to the kernel at a time, a multiple of the pattern.
const PATTERN_BLOCK: usize = PATTERN_PERIOD * 261;
/// Submission entries of the ring; one connection has at most one operation in flight.
const RING_ENTRIES: u32 = 1024;
/// The smallest ring that monoio builds, for processes with little locked memory.
const RING_ENTRIES_MIN: u32 = 256;

/// What `rateguard backend` was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What the answers call this backend; `None` = the host's name.
    pub name: Option<String>,
}

/// Binds `options.listen`, says so on standard output and serves until the process ends.
pub fn run(options: Options) -> io::Result<()> {
    let listener = bind(options.listen)?;
    let name = options.name.unwrap_or_else(host_name);
    // A closed standard output is no reason not to serve.
    let _ = writeln!(io::stdout(), "backend {name} listening on http://{}", listener.local_addr()?);
    serve(listener, name)
}

/// A listening socket on `listen` with a backlog that a load test does not overrun.
pub fn bind(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(listen),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves `listener` on the calling thread for ever, on a monoio runtime of its own: io_uring where it works, else
/// epoll. `name` is what the answers call this backend.
///
/// Returns only when no runtime can be built or the listener cannot be used.
pub fn serve(listener: std::net::TcpListener, name: String) -> io::Result<()> {
    let site = Rc::new(Site::new(name));
    if let Some(mut runtime) = ring() {
        // io_uring answers EAGAIN for an accept on a nonblocking socket instead of waiting.
        listener.set_nonblocking(false)?;
        return runtime.block_on(accept(listener, site));
    }
    // The epoll driver needs the opposite.
    listener.set_nonblocking(true)?;
    RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?.block_on(accept(listener, site))
}

/// A runtime on io_uring, or `None` where this machine has none to give (seccomp, memlock, an old kernel).
fn ring() -> Option<Runtime<TimeDriver<IoUringDriver>>> {
    if !monoio::utils::detect_uring() {
        return None;
    }
    let mut eager = io_uring::IoUring::builder();
    eager.setup_coop_taskrun();
    let attempts = [(eager, RING_ENTRIES), (io_uring::IoUring::builder(), RING_ENTRIES_MIN)];
    for (builder, entries) in attempts {
        let ring =
            RuntimeBuilder::<IoUringDriver>::new().with_entries(entries).uring_builder(builder).enable_timer().build();
        match ring {
            Ok(runtime) => return Some(runtime),
            Err(error) => tracing::warn!(%error, entries, "backend: no io_uring with this size"),
        }
    }
    None
}

/// What all connections of one backend share.
struct Site {
    name: String,
    /// One [`PATTERN_BLOCK`] of what `/bytes` sends.
    block: Bytes,
    connections: Cell<usize>,
}

impl Site {
    fn new(name: String) -> Site {
        let block: Vec<u8> =
            (0..PATTERN_PERIOD).map(|value| u8::try_from(value).unwrap_or(0)).cycle().take(PATTERN_BLOCK).collect();
        Site { name, block: Bytes::from(block), connections: Cell::new(0) }
    }
}

/// One of [`CONNECTIONS_MAX`] places, given back when dropped.
struct Seat(Rc<Site>);

impl Seat {
    fn take(site: &Rc<Site>) -> Option<Seat> {
        if site.connections.get() >= CONNECTIONS_MAX {
            return None;
        }
        site.connections.set(site.connections.get() + 1);
        Some(Seat(Rc::clone(site)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

async fn accept(listener: std::net::TcpListener, site: Rc<Site>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Some(seat) = Seat::take(&site) {
                    monoio::spawn(async move {
                        // The peer's faults were answered; what is left is that it went away.
                        if let Err(error) = converse(stream, &seat.0).await {
                            tracing::debug!(%error, "backend: connection lost");
                        }
                    });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "backend: accept failed");
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether a connection carries another request after this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Keep,
    Close,
}

/// Reads requests and answers them, one after another, until either side has had enough.
async fn converse(stream: TcpStream, site: &Site) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (input, output) = stream.into_split();
    let mut requests = FramedRead::new(input, HeadReader::default());
    let mut answers = Writer { output, buffer: Vec::new() };
    loop {
        let head = match within(HEAD_WAIT, requests.next()).await?.transpose()? {
            None => return Ok(()),
            Some(head) => head,
        };
        let served = match head {
            Ok(head) => serve_one(head, &mut requests, &mut answers, site).await?,
            Err(fault) => Err(fault),
        };
        match served {
            Ok(Then::Keep) => {}
            Ok(Then::Close) => return Ok(()),
            Err(fault) => return refuse(fault, &mut requests, &mut answers).await,
        }
    }
}

/// Answers one request; the error is the peer's fault and leaves the connection unusable.
async fn serve_one(
    head: RequestHead,
    requests: &mut Requests,
    answers: &mut Writer,
    site: &Site,
) -> io::Result<Result<Then, Fault>> {
    let framing = match framing(&head) {
        Ok(framing) => framing,
        Err(fault) => return Ok(Err(fault)),
    };
    if framing != Framing::None && field_has(&head, "expect", "100-continue") {
        answers.go_on().await?;
    }
    let plan = plan(&head, &site.name);
    let keep_max = match plan {
        Plan::Echo => ECHO_MAX,
        Plan::Answer { .. } => 0,
    };
    let body = match read_body(requests, framing, keep_max).await? {
        Ok(body) => body,
        Err(fault) => return Ok(Err(fault)),
    };
    let answer = match plan {
        Plan::Answer { after, answer } => {
            if !after.is_zero() {
                monoio::time::sleep(after).await;
            }
            answer
        }
        Plan::Echo => echo(&head, body),
    };
    let then = then(&head);
    answers.send(&head, answer, then, &site.block).await?;
    Ok(Ok(then))
}

/// Says what was wrong and hangs up, giving the peer a moment to read it.
async fn refuse(fault: Fault, requests: &mut Requests, answers: &mut Writer) -> io::Result<()> {
    let answer = Answer::text(fault.status(), format!("{fault}\n"));
    answers.start(&answer, Then::Close, None);
    if let Content::Whole(text) = &answer.content {
        answers.buffer.extend_from_slice(text);
    }
    answers.flush().await?;
    within(WRITE_WAIT, answers.output.shutdown()).await??;
    let drain = async {
        let mut pieces = Pieces { left: u64::MAX };
        for _ in 0..LINGER_PIECES_MAX {
            if !matches!(requests.next_with(&mut pieces).await, Some(Ok(_))) {
                return;
            }
        }
    };
    // Late or not, the connection is over.
    let _ = within(LINGER, drain).await;
    Ok(())
}

type Requests = FramedRead<TcpOwnedReadHalf, HeadReader>;

/// `work`, or `TimedOut`. An operation given up on may have taken bytes: the connection is over then.
async fn within<F: Future>(wait: Duration, work: F) -> io::Result<F::Output> {
    monoio::time::timeout(wait, work).await.map_err(|_| io::ErrorKind::TimedOut.into())
}

/// What the peer did wrong; each ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("this is not an HTTP/1.1 request")]
    Head,
    #[error("the request head is larger than {HEAD_MAX} bytes")]
    HeadTooLarge,
    #[error("the length of the body is not clear")]
    Framing,
    #[error("the chunked body is malformed")]
    Chunk,
    #[error("a chunk is larger than {CHUNK_MAX} bytes")]
    ChunkTooLarge,
}

impl Fault {
    fn status(self) -> StatusCode {
        match self {
            Fault::Head | Fault::Framing | Fault::Chunk => StatusCode::BAD_REQUEST,
            Fault::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Fault::ChunkTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

/// monoio-http's head decoder behind a bound. A fault is an item: after an error the frame reader would lose its place.
#[derive(Default)]
struct HeadReader(RequestHeadDecoder);

impl Decoder for HeadReader {
    type Item = Result<RequestHead, Fault>;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Decoded<Self::Item>> {
        let window = src.get(..HEAD_MAX).unwrap_or(src);
        if memchr::memmem::find(window, b"\r\n\r\n").is_none() {
            return Ok(if src.len() >= HEAD_MAX {
                Decoded::Some(Err(Fault::HeadTooLarge))
            } else {
                Decoded::Insufficient
            });
        }
        Ok(Decoded::Some(match self.0.decode(src) {
            Ok(Decoded::Some(head)) => Ok(head),
            // It took the bytes to the empty line and still wants more: there is nothing to go on with.
            Ok(_) | Err(_) => Err(Fault::Head),
        }))
    }
}

/// Whatever has arrived, up to `left` bytes.
struct Pieces {
    left: u64,
}

impl Decoder for Pieces {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Decoded<Bytes>> {
        if src.is_empty() || self.left == 0 {
            return Ok(Decoded::Insufficient);
        }
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(src.len());
        self.left -= length as u64;
        Ok(Decoded::Some(src.split_to(length).freeze()))
    }
}

/// monoio-http's chunk decoder behind a bound; `None` is the last chunk.
#[derive(Default)]
struct Chunks(ChunkedBodyDecoder);

impl Decoder for Chunks {
    type Item = Result<Option<Bytes>, Fault>;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Decoded<Self::Item>> {
        Ok(match self.0.decode(src) {
            Ok(Decoded::Some(chunk)) => Decoded::Some(Ok(chunk)),
            Ok(_) if src.len() > CHUNK_MAX => Decoded::Some(Err(Fault::ChunkTooLarge)),
            Ok(_) => Decoded::Insufficient,
            Err(_) => Decoded::Some(Err(Fault::Chunk)),
        })
    }
}

/// How long a request's body is (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
}

fn framing(head: &RequestHead) -> Result<Framing, Fault> {
    let mut codings = head.headers.get_all("transfer-encoding").iter();
    let mut lengths = head.headers.get_all("content-length").iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::None),
        (Some(coding), None) => {
            let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            if chunked && codings.next().is_none() { Ok(Framing::Chunked) } else { Err(Fault::Framing) }
        }
        (None, Some(length)) => match length.to_str() {
            Ok(digits) if lengths.next().is_none() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                match digits.parse() {
                    Ok(0) => Ok(Framing::None),
                    Ok(length) => Ok(Framing::Length(length)),
                    Err(_) => Err(Fault::Framing),
                }
            }
            _ => Err(Fault::Framing),
        },
        (Some(_), Some(_)) => Err(Fault::Framing),
    }
}

/// Reads a body to its end and keeps it; `None` where it is longer than `keep_max`.
async fn read_body(
    requests: &mut Requests,
    framing: Framing,
    keep_max: usize,
) -> io::Result<Result<Option<Vec<u8>>, Fault>> {
    let mut kept = Some(Vec::new());
    let mut keep = |piece: &Bytes| match &mut kept {
        Some(body) if body.len() + piece.len() <= keep_max => body.extend_from_slice(piece),
        _ => kept = None,
    };
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            let mut pieces = Pieces { left: length };
            while pieces.left > 0 {
                let piece = within(BODY_WAIT, requests.next_with(&mut pieces)).await?;
                keep(&piece.ok_or(io::ErrorKind::UnexpectedEof)??);
            }
        }
        Framing::Chunked => {
            let mut chunks = Chunks::default();
            loop {
                let chunk = within(BODY_WAIT, requests.next_with(&mut chunks)).await?;
                match chunk.ok_or(io::ErrorKind::UnexpectedEof)?? {
                    Ok(Some(chunk)) => keep(&chunk),
                    Ok(None) => break,
                    Err(fault) => return Ok(Err(fault)),
                }
            }
        }
    }
    Ok(Ok(kept))
}

/// What a request asks for, before its body is read.
enum Plan {
    Answer { after: Duration, answer: Answer },
    Echo,
}

/// A status and what comes with it.
struct Answer {
    status: StatusCode,
    content_type: HeaderValue,
    content: Content,
}

enum Content {
    Whole(Bytes),
    /// This many bytes, byte `i` being `i mod 251`.
    Pattern(u64),
}

impl Answer {
    fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
        Answer {
            status,
            content_type: HeaderValue::from_static("text/plain; charset=utf-8"),
            content: Content::Whole(text.into()),
        }
    }

    fn length(&self) -> u64 {
        match &self.content {
            Content::Whole(bytes) => bytes.len() as u64,
            Content::Pattern(length) => *length,
        }
    }
}

fn plan(head: &RequestHead, name: &str) -> Plan {
    let path = head.uri.path();
    let mut after = Duration::ZERO;
    let answer = if path == "/healthz" {
        Answer::text(StatusCode::OK, "ok")
    } else if path == "/echo" {
        return Plan::Echo;
    } else if path == "/slow" {
        match slow_ms(head.uri.query()) {
            Some(ms) => {
                after = Duration::from_millis(ms);
                greet(head, name, StatusCode::OK)
            }
            None => usage(format!("/slow?ms=N takes 0 to {SLOW_MS_MAX} milliseconds")),
        }
    } else if let Some(code) = path.strip_prefix("/status/") {
        match number(code).and_then(|code| u16::try_from(code).ok()) {
            // A 205 is an empty answer (RFC 9110 section 15.3.6).
            Some(205) => Answer::text(StatusCode::RESET_CONTENT, ""),
            Some(code @ 200..=599) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
                greet(head, name, status)
            }
            _ => usage("/status/<code> takes 200 to 599".to_owned()),
        }
    } else if let Some(length) = path.strip_prefix("/bytes/") {
        match number(length) {
            Some(length @ 0..=BYTES_MAX) => {
                Answer { status: StatusCode::OK, content_type: octets(), content: Content::Pattern(length) }
            }
            _ => usage(format!("/bytes/<n> takes 0 to {BYTES_MAX}")),
        }
    } else {
        greet(head, name, StatusCode::OK)
    };
    Plan::Answer { after, answer }
}

#[derive(Serialize)]
struct Greeting<'a> {
    message: String,
    hostname: &'a str,
    path: &'a str,
    method: &'a str,
}

fn greet(head: &RequestHead, name: &str, status: StatusCode) -> Answer {
    let greeting = Greeting {
        message: format!("Hello from backend {name}"),
        hostname: name,
        path: head.uri.path(),
        method: head.method.as_str(),
    };
    match serde_json::to_vec(&greeting) {
        Ok(json) => Answer {
            status,
            content_type: HeaderValue::from_static("application/json"),
            content: Content::Whole(json.into()),
        },
        Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn echo(head: &RequestHead, body: Option<Vec<u8>>) -> Answer {
    match body {
        Some(body) => Answer {
            status: StatusCode::OK,
            content_type: head.headers.get("content-type").cloned().unwrap_or_else(octets),
            content: Content::Whole(body.into()),
        },
        None => Answer::text(StatusCode::PAYLOAD_TOO_LARGE, format!("/echo gives back up to {ECHO_MAX} bytes\n")),
    }
}

fn usage(text: String) -> Answer {
    Answer::text(StatusCode::BAD_REQUEST, text + "\n")
}

fn octets() -> HeaderValue {
    HeaderValue::from_static("application/octet-stream")
}

/// The wait that a query asks for; `None` where it is not a number or too long.
fn slow_ms(query: Option<&str>) -> Option<u64> {
    let wanted = query.unwrap_or("").split('&').find_map(|pair| pair.strip_prefix("ms="));
    match wanted {
        None => Some(SLOW_MS_DEFAULT),
        Some(text) => number(text).filter(|ms| *ms <= SLOW_MS_MAX),
    }
}

/// Decimal digits only: `parse` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Whether the connection lives on (RFC 9112 section 9.3).
fn then(head: &RequestHead) -> Then {
    let keep = if head.version == Version::HTTP_11 {
        !field_has(head, "connection", "close")
    } else {
        field_has(head, "connection", "keep-alive")
    };
    if keep { Then::Keep } else { Then::Close }
}

/// Whether the list field `name` names `token`, in any case.
fn field_has(head: &RequestHead, name: &str, token: &str) -> bool {
    head.headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// The sending half of a connection.
struct Writer {
    output: TcpOwnedWriteHalf,
    /// Head and small bodies, sent in one write; reused from answer to answer.
    buffer: Vec<u8>,
}

impl Writer {
    /// Tells a peer that waits for it that the body may come (RFC 9110 section 10.1.1).
    async fn go_on(&mut self) -> io::Result<()> {
        self.buffer.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        self.flush().await
    }

    async fn send(&mut self, head: &RequestHead, answer: Answer, then: Then, block: &Bytes) -> io::Result<()> {
        self.start(&answer, then, Some(head.version));
        let bodiless = head.method.as_str() == "HEAD" || has_no_content(answer.status);
        if bodiless {
            return self.flush().await;
        }
        match answer.content {
            Content::Whole(bytes) if bytes.len() <= PATTERN_BLOCK => {
                self.buffer.extend_from_slice(&bytes);
                self.flush().await
            }
            Content::Whole(mut bytes) => {
                self.flush().await?;
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(PATTERN_BLOCK));
                    self.push(piece).await?;
                }
                Ok(())
            }
            Content::Pattern(mut left) => {
                self.flush().await?;
                while left > 0 {
                    let length = usize::try_from(left).unwrap_or(PATTERN_BLOCK).min(PATTERN_BLOCK);
                    self.push(block.slice(..length)).await?;
                    left -= length as u64;
                }
                Ok(())
            }
        }
    }

    /// Puts the head of `answer` into the buffer. A 1.0 peer has to be told that the connection stays.
    fn start(&mut self, answer: &Answer, then: Then, version: Option<Version>) {
        let status = answer.status;
        let out = &mut self.buffer;
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or("").as_bytes());
        out.extend_from_slice(b"\r\n");
        if !has_no_content(status) {
            out.extend_from_slice(b"content-type: ");
            out.extend_from_slice(answer.content_type.as_bytes());
            out.extend_from_slice(b"\r\ncontent-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(answer.length()).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        match (then, version) {
            (Then::Close, _) => out.extend_from_slice(b"connection: close\r\n"),
            (Then::Keep, Some(Version::HTTP_10)) => {
                out.extend_from_slice(b"connection: keep-alive\r\n");
            }
            (Then::Keep, _) => {}
        }
        out.extend_from_slice(b"\r\n");
    }

    async fn flush(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let (sent, buffer) = within(WRITE_WAIT, self.output.write_all(buffer)).await?;
        self.buffer = buffer;
        self.buffer.clear();
        sent.map(drop)
    }

    async fn push(&mut self, piece: Bytes) -> io::Result<()> {
        let (sent, _) = within(WRITE_WAIT, self.output.write_all(piece)).await?;
        sent.map(drop)
    }
}

/// Answers that end with their head and state no length (RFC 9110 section 8.6).
fn has_no_content(status: StatusCode) -> bool {
    matches!(status.as_u16(), 204 | 304)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
