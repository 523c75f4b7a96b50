//! A buffered connection: fill, take, send, and the deadlines of both directions.
//!
//! Shell. Deadlines cost no timer: each worker scans its connections a few times a second and shuts down what is late,
//! which ends the pending operation. A direction whose wait has ended so is never used again. A read in flight is never
//! dropped on a connection that lives on: io_uring may already have taken bytes for it. A connection may be of TLS, or a
//! unix socket that a [`TcpStream`] carries.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: owns the sockets of clients and backends"
)]

use crate::coroutine::Coroutine;
pub use crate::deadlines::{Deadlines, SCAN_INTERVAL};
use crate::deadlines::{Due, Entry, Watch, has_nothing, reset, shut, socket};
use crate::splice::{Broken, Splicer};
use crate::tls;
use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;
use rustix::net::Shutdown;
use socket2::SockRef;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::mem::{replace, take};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

/// Bytes that the kernel takes ahead of what the network takes (`TCP_NOTSENT_LOWAT`). Without it a slow reader's socket
/// takes megabytes and then nothing for so long that it looks like one who reads nothing. It takes more once half of this
/// is sent, so that much less would mean many small sends.
pub const UNSENT_MAX: u32 = 512 * 1024;

/// Bytes that a connection's read buffer starts with: room for the head of most programs that ask, and all that a client
/// holds which is idle from the start.
pub const INPUT_START: usize = 512;

/// The largest buffer that an idle client keeps, once its heads needed it: browsers send about a kilobyte.
const KEPT_MAX: usize = 2 * 1024;

/// By how much a full buffer grows: from the first to that of a large body in four reads.
const GROWTH: usize = 4;

/// The largest buffer that a connection may keep while nothing is due on it, for the read that is under way there.
pub const AHEAD_MAX: usize = 16 * 1024;

/// How long a client may take, named after what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// First byte to end of a request head.
    pub head: Duration,
    /// Between two pieces of a request body.
    pub body: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For the client to take what was sent.
    pub write: Duration,
    /// Between two pieces, either way, of a connection that has become a tunnel.
    pub tunnel: Duration,
}

/// How a wait on a connection ended, where not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer closed its sending side.
    Closed,
    /// The deadline passed.
    TimedOut,
    /// The connection broke (reset, for one).
    Broken,
}

/// Operations in a row that one connection may end without waiting; then it lets the others have a turn. Only epoll has
/// such operations: one of io_uring always waits for its completion.
const EAGER_MAX: u32 = 64;

/// The shortest wait of the runtime's timer; a task that only yields would be next again.
const EAGER_PAUSE: Duration = Duration::from_millis(1);

/// A connection's entry among the deadlines; its last owner removes it.
struct Registration {
    deadlines: Rc<Deadlines>,
    key: usize,
    /// Operations that have ended without waiting since the last that waited.
    eager: Cell<u32>,
    /// The connection broke when something was sent. The kernel tells that once: to who reads it looks like a close.
    broken: Cell<bool>,
}

impl Registration {
    /// Runs an operation to its end. The last of [`EAGER_MAX`] that did not wait is followed by a pause: a client that
    /// pipelines without end would keep the worker to itself, since only waiting lets another task run.
    async fn fairly<T>(&self, mut operation: Pin<&mut impl Future<Output = T>>) -> T {
        let waits = &self.deadlines.waits;
        let mut wait = None;
        let done = poll_fn(|context| {
            let polled = operation.as_mut().poll(context);
            if polled.is_pending() && wait.is_none() {
                wait = Some(waits.begin());
            }
            polled
        })
        .await;
        self.eager.set(match wait {
            Some(wait) => {
                waits.end(wait);
                0
            }
            None => self.eager.get() + 1,
        });
        if self.eager.get() >= EAGER_MAX {
            self.eager.set(0);
            // Boxed: a timer takes up a kilobyte, and every operation of every connection would hold the room for it.
            Box::pin(monoio::time::sleep(EAGER_PAUSE)).await;
        }
        done
    }

    fn set(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.deadlines.entries.borrow_mut().get_mut(self.key) {
            change(entry);
        }
    }

    fn fd(&self) -> Option<RawFd> {
        self.deadlines.entries.borrow().get(self.key).map(|entry| entry.fd)
    }

    fn due(&self, after: Duration) -> Due {
        Due::At(self.deadlines.coarse_now().after(after + SCAN_INTERVAL))
    }

    fn read_within(&self, after: Duration) {
        let due = self.due(after);
        self.set(|entry| entry.read.change(due));
    }

    fn read_whenever(&self) {
        self.set(|entry| entry.read.change(Due::Never));
    }

    fn write_within(&self, after: Duration) {
        let due = self.due(after);
        self.set(|entry| entry.write.change(due));
    }

    fn write_whenever(&self) {
        self.set(|entry| entry.write.change(Due::Never));
    }

    /// What this error of a send says of the connection. That nothing more is taken is no break: a close may have come before.
    fn note(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.broken.set(true);
        }
    }

    fn read_passed(&self) -> bool {
        let entries = self.deadlines.entries.borrow();
        entries.get(self.key).is_some_and(|entry| matches!(entry.read, Due::Passed))
    }

    fn write_passed(&self) -> bool {
        let entries = self.deadlines.entries.borrow();
        entries.get(self.key).is_some_and(|entry| matches!(entry.write, Due::Passed))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.deadlines.entries.borrow_mut().try_remove(self.key);
    }
}

/// One connection: two sides that can be used at the same time.
pub struct Conn {
    /// What comes in.
    pub reader: Reader,
    /// What goes out.
    pub writer: Writer,
}

/// The reading side with its buffer.
pub struct Reader {
    // Dropped before the socket: see `deadlines::socket`.
    registration: Rc<Registration>,
    half: Incoming,
    buffer: Vec<u8>,
    start: usize,
    /// The last read took all the room there was: more is likely waiting.
    was_full: bool,
    /// The last wait of the worker that had begun when the read ahead did.
    ahead_since: u64,
}

/// The writing side.
pub struct Writer {
    registration: Rc<Registration>,
    half: Outgoing,
}

/// What bytes come through. Operations of TLS are boxed, so that those without it stay as small as they are.
enum Incoming {
    Plain(OwnedReadHalf<TcpStream>),
    Ahead(Ahead),
    Tls(Box<tls::ReadHalf>),
}

/// Reads, each into what is free of a buffer, that may begin before anybody waits for them. One that is under way on a
/// connection that is kept ends where the peer closes or says something, and receives the next answer otherwise: nobody has
/// to ask the kernel whether a kept connection lives, which costs 3 % of a request's CPU time.
type Ahead = Coroutine<Vec<u8>, (io::Result<usize>, Vec<u8>)>;

fn ahead(mut half: OwnedReadHalf<TcpStream>) -> Ahead {
    Coroutine::new(async move |buffer: Vec<u8>| {
        let free = buffer.len()..buffer.capacity();
        let (read, slice) = half.read(buffer.slice_mut(free)).await;
        (read, slice.into_inner())
    })
}

/// What bytes go through.
enum Outgoing {
    Plain(OwnedWriteHalf<TcpStream>),
    Tls(Box<tls::WriteHalf>),
}

impl Conn {
    /// Takes over a connected socket.
    pub fn new(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Conn {
        let fd = stream.as_raw_fd();
        let (read, write) = stream.into_split();
        Conn::of(fd, Incoming::Plain(read), Outgoing::Plain(write), deadlines)
    }

    /// Takes over a connected socket which is kept between messages: see [`Reader::read_ahead`].
    pub fn reading_ahead(stream: TcpStream, deadlines: &Rc<Deadlines>) -> Conn {
        let fd = stream.as_raw_fd();
        let (read, write) = stream.into_split();
        Conn::of(fd, Incoming::Ahead(ahead(read)), Outgoing::Plain(write), deadlines)
    }

    /// Takes over a connection that has shaken hands.
    pub fn secure(stream: tls::Stream, deadlines: &Rc<Deadlines>) -> Conn {
        let fd = stream.as_raw_fd();
        Conn::of(fd, Incoming::Tls(Box::new(stream.reader)), Outgoing::Tls(Box::new(stream.writer)), deadlines)
    }

    fn of(fd: RawFd, read: Incoming, write: Outgoing, deadlines: &Rc<Deadlines>) -> Conn {
        let entry = Entry { fd, read: Due::Never, write: Due::Never, idle: false, finished: false, watch: None };
        let registration = Rc::new(Registration {
            deadlines: deadlines.clone(),
            key: deadlines.entries.borrow_mut().insert(entry),
            eager: Cell::new(0),
            broken: Cell::new(false),
        });
        Conn {
            reader: Reader {
                registration: registration.clone(),
                half: read,
                buffer: Vec::new(),
                start: 0,
                was_full: false,
                ahead_since: 0,
            },
            writer: Writer { registration, half: write },
        }
    }

    /// Sets the bound on what the kernel takes ahead, which accepted sockets have from their listener.
    pub fn limit_unsent(&self) {
        self.reader.registration.set(|entry| {
            // Without it only very slow readers fare worse.
            let _ = SockRef::from(&socket(entry.fd)).set_tcp_notsent_lowat(UNSENT_MAX);
        });
    }

    /// The peer's address and ours; `None` where they are gone with the connection.
    pub fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let registration = &self.reader.registration;
        let entries = registration.deadlines.entries.borrow();
        let fd = socket(entries.get(registration.key)?.fd);
        let socket = SockRef::from(&fd);
        Some((socket.peer_addr().ok()?.as_socket()?, socket.local_addr().ok()?.as_socket()?))
    }

    /// Ends the connection with a reset, so that a message which only the close would end cannot look complete.
    pub fn abort(&self) {
        self.reader.registration.set(|entry| reset(entry.fd));
    }

    /// From now on, until the watch is dropped, it is seen by a scan where this client goes away before its answer is whole:
    /// at once where the client reset the connection, after [`crate::deadlines::HALF_CLOSED_MAX`] without a byte from the
    /// backend where it only closed its sending side, unless its request still goes out (`is_sending`).
    pub fn watch(&self, is_sending: bool) -> Watching {
        let watch = Watch { backend: None, is_sending, is_long: false, ended: None, gone: false };
        self.reader.registration.set(|entry| entry.watch = Some(watch));
        Watching(self.reader.registration.clone())
    }

    /// Whether the peer has neither closed nor sent anything: asked of a connection that nothing is due on.
    pub fn is_quiet(&mut self) -> bool {
        let holds_nothing = match &mut self.reader.half {
            Incoming::Plain(_) => true,
            Incoming::Ahead(ahead) => !ahead.has_come(),
            Incoming::Tls(half) => half.is_empty(),
        };
        let registration = &self.reader.registration;
        let entries = registration.deadlines.entries.borrow();
        holds_nothing
            && self.reader.data().is_empty()
            && entries.get(registration.key).is_some_and(|entry| has_nothing(entry.fd))
    }

    /// The same without asking the kernel, where io_uring reads ahead and has been told to: then what has arrived is known here.
    /// epoll tells what has arrived once a turn of the loop only, and a request may be read within that turn.
    pub fn seems_quiet(&mut self) -> bool {
        let is_told = self.reader.is_heard();
        match &mut self.reader.half {
            Incoming::Ahead(ahead) if is_told && !monoio::utils::is_legacy() => !ahead.has_come(),
            _ => self.is_quiet(),
        }
    }
}

/// A client that is being watched.
pub struct Watching(Rc<Registration>);

impl Watching {
    /// Whether the client has gone.
    pub fn is_gone(&self) -> bool {
        let entries = self.0.deadlines.entries.borrow();
        entries.get(self.0.key).and_then(|entry| entry.watch).is_some_and(|watch| watch.gone)
    }

    /// It is this connection to a backend that the client waits for now, and that is reset where it goes away; `None` once that
    /// is given up, since the next to come may have its entry.
    pub fn waits_for(&self, backend: Option<&Conn>) {
        let backend = backend.map(|backend| backend.reader.registration.key);
        self.0.set(|entry| entry.watch = entry.watch.map(|watch| Watch { backend, ..watch }));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.set(|entry| entry.watch = None);
    }
}

impl Reader {
    /// Bytes received and not yet used.
    pub fn data(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Marks bytes as used.
    pub fn consume(&mut self, bytes: usize) {
        self.start = (self.start + bytes).min(self.buffer.len());
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// Lends a buffer to read into, where no read is under way; what an emptied reader had before is dropped.
    pub fn lend(&mut self, buffer: impl FnOnce() -> Vec<u8>) {
        if self.buffer.is_empty() && !self.is_under_way() {
            self.buffer = buffer();
            self.buffer.clear();
        }
    }

    fn is_under_way(&self) -> bool {
        matches!(&self.half, Incoming::Ahead(ahead) if ahead.is_under_way())
    }

    /// Whether a read ahead is under way, and in the kernel's hands: not before the loop has come to its end once.
    pub fn is_heard(&self) -> bool {
        self.is_under_way() && self.registration.deadlines.waits.have_passed(self.ahead_since)
    }

    /// Whether this connection reads ahead, and the kernel has not been told of that yet.
    pub fn is_unheard(&self) -> bool {
        let waits = &self.registration.deadlines.waits;
        matches!(self.half, Incoming::Ahead(_)) && !waits.have_passed(self.ahead_since)
    }

    /// Begins the read of the next message into this buffer, where this connection does that; else gives it back.
    pub fn read_ahead(&mut self, mut buffer: Vec<u8>) -> Option<Vec<u8>> {
        let Incoming::Ahead(ahead) = &mut self.half else { return Some(buffer) };
        let rest = (buffer.capacity() > AHEAD_MAX).then(|| replace(&mut buffer, Vec::with_capacity(AHEAD_MAX)));
        ahead.give(buffer);
        ahead.has_come();
        self.ahead_since = self.registration.deadlines.waits.last();
        rest
    }

    /// Takes the buffer back, where nothing unread is in it.
    pub fn reclaim(&mut self) -> Option<Vec<u8>> {
        if let Incoming::Tls(half) = &mut self.half {
            half.shrink();
        }
        let is_empty = self.buffer.is_empty() && self.buffer.capacity() > 0;
        is_empty.then(|| take(&mut self.buffer))
    }

    /// Gives back what a large message made of an empty buffer.
    pub fn shrink(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_MAX {
            self.buffer = Vec::new();
        }
    }

    /// From now on, a read that still waits after this time ends with [`End::TimedOut`].
    pub fn deadline(&self, after: Duration) {
        self.registration.read_within(after);
    }

    /// Moves the deadline, where there is one: there was a sign of life.
    pub fn move_deadline(&self, after: Duration) {
        let due = self.registration.due(after);
        self.registration.set(|entry| {
            if matches!(entry.read, Due::At(_)) {
                entry.read = due;
            }
        });
    }

    /// Whether this side's deadline has passed, so that it reads nothing any more.
    pub fn is_late(&self) -> bool {
        self.registration.read_passed()
    }

    /// A handle on this side's deadline, for who waits for something else first.
    pub fn timer(&self) -> Timer {
        Timer(self.registration.clone())
    }

    /// Reads may wait for ever.
    pub fn no_deadline(&self) {
        self.registration.read_whenever();
    }

    /// Says that what the peer is to get has been written: the end of the process must not take it back.
    pub fn set_finished(&self) {
        self.registration.set(|entry| entry.finished = true);
    }

    /// Says whether nothing is going on, so that a stop may end the wait.
    pub fn set_idle(&self, idle: bool) {
        self.registration.set(|entry| entry.idle = idle);
    }

    fn make_room(&mut self, most: usize) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        let length = self.buffer.len();
        let capacity = self.buffer.capacity();
        if length == capacity || (self.was_full && capacity < most) {
            let wanted = (GROWTH * capacity).clamp(INPUT_START, most.max(INPUT_START));
            self.buffer.reserve_exact(wanted.saturating_sub(length).max(1));
        }
    }

    /// Receives more behind what is there, with at most `most` bytes kept in all. Gives the number of new bytes.
    pub async fn fill(&mut self, most: usize) -> Result<usize, End> {
        if !self.is_under_way() {
            self.make_room(most);
        }
        let read = match &mut self.half {
            Incoming::Plain(half) => {
                let free = self.buffer.len()..self.buffer.capacity();
                let reading = pin!(half.read(take(&mut self.buffer).slice_mut(free)));
                let (read, slice) = self.registration.fairly(reading).await;
                self.buffer = slice.into_inner();
                read
            }
            Incoming::Ahead(ahead) => {
                if !ahead.is_under_way() {
                    ahead.give(take(&mut self.buffer));
                }
                let (read, buffer) = self.registration.fairly(pin!(ahead.result())).await;
                self.buffer = buffer;
                read
            }
            Incoming::Tls(half) => {
                let (read, buffer) =
                    self.registration.fairly(Box::pin(half.read(take(&mut self.buffer))).as_mut()).await;
                self.buffer = buffer;
                read
            }
        };
        self.was_full = self.buffer.len() == self.buffer.capacity();
        match read {
            Ok(0) if self.registration.read_passed() || self.registration.write_passed() => Err(End::TimedOut),
            Ok(0) if self.registration.broken.get() => Err(End::Broken),
            Ok(0) => Err(End::Closed),
            Ok(bytes) => Ok(bytes),
            Err(_) if self.registration.write_passed() => Err(End::TimedOut),
            // What ends a wait for records is no farewell of the peer's either.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.registration.read_passed() => {
                Err(End::TimedOut)
            }
            Err(_) => Err(End::Broken),
        }
    }
}

impl Drop for Reader {
    /// A read under way would keep the socket open until the peer has something to say.
    fn drop(&mut self) {
        if self.is_under_way() {
            self.registration.set(|entry| shut(entry.fd, Shutdown::Both));
        }
    }
}

/// The deadlines and the watch of a connection that is in use elsewhere.
pub struct Timer(Rc<Registration>);

impl Timer {
    /// As [`Reader::deadline`].
    pub fn deadline(&self, after: Duration) {
        self.0.read_within(after);
    }

    /// As [`Reader::no_deadline`].
    pub fn stop(&self) {
        self.0.read_whenever();
    }

    /// All that this client had to send has gone out: see [`Conn::watch`].
    pub fn has_sent(&self) {
        self.0.set(|entry| entry.watch = entry.watch.map(|watch| Watch { is_sending: false, ..watch }));
    }

    /// What is being sent may take for ever; the next piece has its deadline again.
    pub fn no_send_deadline(&self) {
        self.0.write_whenever();
    }
}

/// What became of bytes that were to be sent.
pub struct Sent {
    /// How it ended.
    pub result: Result<(), End>,
    /// Bytes that the kernel took.
    pub bytes: usize,
}

impl Writer {
    /// Sends all of `out`, which is given back as it was. The peer may take each piece of it `within` this time.
    pub async fn send(&mut self, out: &mut Vec<u8>, within: Duration) -> Sent {
        let mut sent = 0;
        let mut result = Ok(());
        while sent < out.len() {
            self.registration.write_within(within);
            let written = match &mut self.half {
                Outgoing::Plain(half) => {
                    let (written, slice) = self.registration.fairly(pin!(half.write(take(out).slice(sent..)))).await;
                    *out = slice.into_inner();
                    written
                }
                Outgoing::Tls(half) => {
                    let (written, bytes) = self.registration.fairly(Box::pin(half.write(&out[sent..])).as_mut()).await;
                    // Of what failed, the peer may have got whole records.
                    sent += if written.is_err() { bytes } else { 0 };
                    written.map(|()| bytes)
                }
            };
            match written {
                Ok(0) => result = Err(End::Closed),
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.registration.note(&error);
                    result = Err(End::Broken);
                }
            }
            if result.is_err() {
                break;
            }
        }
        if result.is_err() && self.registration.write_passed() {
            result = Err(End::TimedOut);
        }
        self.registration.write_whenever();
        Sent { result, bytes: sent }
    }

    /// Sends what `reader` has received, straight from its buffer.
    pub async fn send_from(&mut self, reader: &mut Reader, within: Duration) -> Result<(), End> {
        let mut buffer = take(&mut reader.buffer);
        if reader.start > 0 {
            buffer.drain(..reader.start);
            reader.start = 0;
        }
        let sent = self.send(&mut buffer, within).await;
        buffer.clear();
        reader.buffer = buffer;
        sent.result
    }

    /// Passes on what more has come, where `reader` took all that it had room for: `most` bytes at most, without waiting and
    /// without a copy. Gives how many were taken; those of them for which the peer has no room are left with the reader.
    pub fn splice(&mut self, reader: &mut Reader, most: u64, splicer: &Splicer) -> Result<usize, Broken> {
        let is_ready = reader.was_full && reader.buffer.is_empty() && !reader.is_under_way() && splicer.is_usable();
        let (Incoming::Plain(_) | Incoming::Ahead(_), Outgoing::Plain(_)) = (&reader.half, &self.half) else {
            return Ok(0);
        };
        let (Some(from), Some(to), true) = (reader.registration.fd(), self.registration.fd(), is_ready) else {
            return Ok(0);
        };
        let moved = splicer.pass(socket(from), socket(to), most, &mut reader.buffer).inspect_err(|side| {
            if let Broken::To(error) = side {
                self.registration.note(&io::Error::from(*error));
            }
        })?;
        self.registration.eager.set(self.registration.eager.get() + moved.pieces);
        let bytes = moved.bytes + reader.buffer.len();
        // Where some were moved the buffer need not grow, and a read that waits comes between two turns.
        reader.was_full = bytes == 0;
        Ok(bytes)
    }

    /// Waits without doing anything, for who must not close the connection yet.
    pub async fn hold(&self, time: Duration) {
        Box::pin(monoio::time::sleep(time)).await;
    }

    /// Tells the peer that nothing more comes.
    pub async fn finish(&mut self) {
        // A peer that has gone needs no telling.
        let _ = match &mut self.half {
            Outgoing::Plain(half) => half.shutdown().await,
            Outgoing::Tls(half) => Box::pin(half.finish()).await,
        };
    }
}
