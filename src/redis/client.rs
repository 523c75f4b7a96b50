//! One pipelined connection: commands of one loop turn in one write, replies in order, no wait past its deadline.
//!
//! Shell. A task of its own keeps the connection: connect, AUTH, SELECT, SCRIPT LOAD, then three parts side by side
//! (write what is asked, read what is answered, end what is late) until one of them fails; then everything that waits is
//! told so, and the next attempt follows after a growing pause with jitter.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: owns the connection to Redis")]

use super::resp::{self, Reply};
use super::{Address, Fault, Settings};
use crate::resolve::Target;
use crate::time::{Micros, now};
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Split, Splitable};
use monoio::net::{TcpStream, UnixStream};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::{replace, take};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Commands that may wait for a reply on one connection; more are refused at once.
pub const IN_FLIGHT_MAX: usize = 4096;

/// A server that owes a reply for this long past its deadline has lost the connection, whatever TCP says.
const STALL_MAX: Duration = Duration::from_secs(1);

/// For connect and for the commands that open a connection, each.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after the first failed attempt; doubled after each further one, up to the longest. All with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const BACKOFF_DOUBLINGS: u32 = 6;

/// Bytes read at once; a reply to a decision is about 20.
const INPUT: usize = 16 * 1024;

/// What a connection's life is told to, for metrics and logs.
pub trait Observer {
    /// The connection is ready for decisions.
    fn connected(&self);
    /// It was lost, or could not be had; the reason holds no secret.
    fn disconnected(&self, reason: &str);
    /// The server answered a command with this error.
    fn server_error(&self, text: &str);
}

/// A worker's client.
pub struct Client {
    shared: Rc<Shared>,
    deadline: Duration,
}

struct Shared {
    is_up: Cell<bool>,
    was_tried: Cell<bool>,
    first_try: RefCell<Option<Waker>>,
    digest: RefCell<Vec<u8>>,
    out: RefCell<Vec<u8>>,
    slots: RefCell<Slab<Slot>>,
    /// Slots of commands sent or about to be, in order.
    queue: RefCell<VecDeque<usize>>,
    writer: RefCell<Option<Waker>>,
    watch: RefCell<Option<Waker>>,
    /// When the watch looks at deadlines again; `None` = not before it is woken.
    looks_at: Cell<Option<Micros>>,
    /// A deadline has come that is earlier than that.
    has_earlier: Cell<bool>,
}

/// Where a reply goes. It outlives its asker while the reply is still due, so that no other gets it.
struct Slot {
    outcome: Option<Result<Reply, Fault>>,
    waker: Option<Waker>,
    deadline: Micros,
    is_queued: bool,
    is_abandoned: bool,
}

/// What one attempt at a connection needs.
pub struct Connector {
    settings: Settings,
    target: Arc<Target>,
    script: &'static str,
    observer: Box<dyn Observer>,
}

impl Connector {
    /// `target` resolves the name of a TCP address; `script` is loaded at each connect.
    pub fn new(
        settings: Settings,
        target: Arc<Target>,
        script: &'static str,
        observer: Box<dyn Observer>,
    ) -> Connector {
        Connector { settings, target, script, observer }
    }
}

impl Client {
    /// A client whose connection is kept by a task of its own, on this thread.
    pub fn start(connector: Connector) -> Client {
        let shared = Rc::new(Shared {
            is_up: Cell::new(false),
            was_tried: Cell::new(false),
            first_try: RefCell::default(),
            digest: RefCell::default(),
            out: RefCell::default(),
            slots: RefCell::default(),
            queue: RefCell::default(),
            writer: RefCell::default(),
            watch: RefCell::default(),
            looks_at: Cell::new(None),
            has_earlier: Cell::new(false),
        });
        let deadline = connector.settings.deadline;
        monoio::spawn(keep_connected(connector, shared.clone()));
        Client { shared, deadline }
    }

    /// Waits for the first attempt at a connection to end, well or not, and no longer than one may take.
    pub async fn tried(&self) {
        let first = poll_fn(|context| match self.shared.was_tried.get() {
            true => Poll::Ready(()),
            false => {
                *self.shared.first_try.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        });
        // Either way the gateway goes on: what is asked without a connection has its answer.
        let _ = monoio::time::timeout(OPEN_TIMEOUT, first).await;
    }

    /// When a question asked now must have its answer.
    pub fn deadline_from(&self, now: Micros) -> Micros {
        now.after(self.deadline)
    }

    /// As [`Client::call`], for a command that follows another: it is not sent where the deadline has passed meanwhile.
    pub async fn call_next(&self, deadline: Micros, write: impl FnOnce(&[u8], &mut Vec<u8>)) -> Result<Reply, Fault> {
        match now() >= deadline {
            true => Err(Fault::Timeout),
            false => self.call(deadline, write).await,
        }
    }

    /// Sends one command, which `write` appends to the batch (it is given the script's digest), and waits for its reply.
    pub async fn call(&self, deadline: Micros, write: impl FnOnce(&[u8], &mut Vec<u8>)) -> Result<Reply, Fault> {
        if !self.shared.is_up.get() {
            return Err(Fault::Disconnected);
        }
        if self.shared.queue.borrow().len() >= IN_FLIGHT_MAX {
            return Err(Fault::Overloaded);
        }
        write(&self.shared.digest.borrow(), &mut self.shared.out.borrow_mut());
        let key = self.shared.slots.borrow_mut().insert(Slot {
            outcome: None,
            waker: None,
            deadline,
            is_queued: true,
            is_abandoned: false,
        });
        self.shared.queue.borrow_mut().push_back(key);
        // The woken task runs after all that are ready now: their commands go into the same write.
        wake(&self.shared.writer);
        if self.shared.looks_at.get().is_none_or(|at| deadline < at) {
            self.shared.has_earlier.set(true);
            wake(&self.shared.watch);
        }
        Answer { shared: &self.shared, key }.await
    }
}

/// Waits for the outcome in a slot; gives the slot up when dropped.
struct Answer<'c> {
    shared: &'c Shared,
    key: usize,
}

impl Future for Answer<'_> {
    type Output = Result<Reply, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slots = self.shared.slots.borrow_mut();
        let Some(slot) = slots.get_mut(self.key) else {
            return Poll::Ready(Err(Fault::Disconnected));
        };
        match slot.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        let mut slots = self.shared.slots.borrow_mut();
        match slots.get_mut(self.key) {
            Some(slot) if slot.is_queued => slot.is_abandoned = true,
            _ => drop(slots.try_remove(self.key)),
        }
    }
}

impl Shared {
    /// Gives the oldest command its reply.
    fn answer(&self, reply: Reply) -> Result<(), &'static str> {
        let Some(key) = self.queue.borrow_mut().pop_front() else {
            return Err("a reply to nothing");
        };
        self.settle(key, Ok(reply));
        Ok(())
    }

    /// The command of this slot is over.
    fn settle(&self, key: usize, outcome: Result<Reply, Fault>) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else { return };
        slot.is_queued = false;
        if slot.is_abandoned {
            slots.remove(key);
            return;
        }
        // A slot that was told of its timeout already keeps that outcome.
        slot.outcome.get_or_insert(outcome);
        if let Some(waker) = slot.waker.take() {
            waker.wake();
        }
    }

    /// The first attempt at a connection is over.
    fn tried(&self) {
        self.was_tried.set(true);
        wake(&self.first_try);
    }

    fn fail_all(&self) {
        self.is_up.set(false);
        self.tried();
        self.out.borrow_mut().clear();
        let waiting = take(&mut *self.queue.borrow_mut());
        for key in waiting {
            self.settle(key, Err(Fault::Disconnected));
        }
    }

    /// Tells the askers whose deadline has passed; gives the earliest deadline still ahead.
    fn expire(&self, now: Micros) -> Option<Micros> {
        let mut next = None;
        let mut slots = self.slots.borrow_mut();
        for &key in self.queue.borrow().iter() {
            let Some(slot) = slots.get_mut(key) else { continue };
            if slot.is_abandoned || slot.outcome.is_some() {
                continue;
            }
            if slot.deadline <= now {
                slot.outcome = Some(Err(Fault::Timeout));
                if let Some(waker) = slot.waker.take() {
                    waker.wake();
                }
            } else {
                next = Some(next.map_or(slot.deadline, |earliest: Micros| earliest.min(slot.deadline)));
            }
        }
        next
    }

    /// Waits until a command is asked whose deadline the watch would miss.
    async fn earlier_deadline(&self) {
        poll_fn(|context| match self.has_earlier.take() {
            true => Poll::Ready(()),
            false => {
                *self.watch.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
    }

    /// The deadline of the oldest command that is still owed a reply.
    fn oldest(&self) -> Option<Micros> {
        let front = *self.queue.borrow().front()?;
        self.slots.borrow().get(front).map(|slot| slot.deadline)
    }
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = place.borrow_mut().take() {
        waker.wake();
    }
}

async fn keep_connected(connector: Connector, shared: Rc<Shared>) {
    let mut failures = 0;
    let mut turn = 0;
    loop {
        let began = now();
        let lived = match &connector.settings.address {
            Address::Tcp { .. } => match connect_tcp(&connector, turn).await {
                Ok(stream) => live(stream, &connector, &shared).await,
                Err(error) => Err(error),
            },
            Address::Unix(path) => match bounded(UnixStream::connect(path)).await {
                Ok(stream) => live(stream, &connector, &shared).await,
                Err(error) => Err(error),
            },
        };
        let was_steady = shared.is_up.get() && now().since(began) >= BACKOFF_MAX;
        shared.fail_all();
        if let Err(error) = lived {
            connector.observer.disconnected(&error.to_string());
        }
        turn += 1;
        // A connection that had lasted is replaced at once; what fails again is waited for, longer each time.
        failures = if was_steady { 0 } else { failures + 1 };
        if failures > 0 {
            let pause = BACKOFF_MIN.saturating_mul(1 << (failures - 1).min(BACKOFF_DOUBLINGS)).min(BACKOFF_MAX);
            monoio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        }
    }
}

async fn connect_tcp(connector: &Connector, turn: usize) -> io::Result<TcpStream> {
    let Some(address) = connector.target.address(turn) else {
        return Err(io::Error::other(format!("{} does not resolve", connector.target.host())));
    };
    let stream = bounded(TcpStream::connect_addr(address)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn bounded<T>(open: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match monoio::time::timeout(OPEN_TIMEOUT, open).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer while connecting")),
    }
}

/// Opens the conversation and carries it on until it breaks.
async fn live<S>(stream: S, connector: &Connector, shared: &Rc<Shared>) -> io::Result<()>
where
    S: AsyncReadRent + AsyncWriteRent + Split + 'static,
{
    let (mut reader, mut writer) = stream.into_split();
    let opened = bounded(open(&mut reader, &mut writer, connector)).await?;
    *shared.digest.borrow_mut() = opened;
    shared.is_up.set(true);
    shared.tried();
    connector.observer.connected();
    // Whichever ends first ends the connection, so what is in flight in the others does not matter.
    monoio::select! {
        result = write_batches(&mut writer, shared) => result,
        result = read_replies(&mut reader, shared, connector) => result,
        result = watch(shared) => result,
    }
}

/// AUTH, SELECT and SCRIPT LOAD; gives the script's digest.
async fn open<R: AsyncReadRent, W: AsyncWriteRent>(
    reader: &mut R,
    writer: &mut W,
    connector: &Connector,
) -> io::Result<Vec<u8>> {
    let settings = &connector.settings;
    if let Some(password) = &settings.password {
        let user = settings.username.as_ref().map(String::as_bytes);
        let parts: Vec<&[u8]> =
            [Some(b"AUTH".as_slice()), user, Some(password.as_bytes())].into_iter().flatten().collect();
        ask(reader, writer, &parts, "AUTH").await?;
    }
    if settings.database != 0 {
        let number = settings.database.to_string();
        ask(reader, writer, &[b"SELECT", number.as_bytes()], "SELECT").await?;
    }
    let loaded = ask(reader, writer, &[b"SCRIPT", b"LOAD", connector.script.as_bytes()], "SCRIPT LOAD").await?;
    resp::text(&loaded)
        .filter(|digest| digest.len() == 40)
        .ok_or_else(|| io::Error::other("SCRIPT LOAD gave no digest"))
}

/// Sends one command by itself and gives its whole reply; an error reply is an error.
async fn ask<R: AsyncReadRent, W: AsyncWriteRent>(
    reader: &mut R,
    writer: &mut W,
    parts: &[&[u8]],
    name: &str,
) -> io::Result<Vec<u8>> {
    writer.write_all(resp::command(parts)).await.0?;
    let mut input = Vec::with_capacity(1024);
    loop {
        let length = input.len();
        input.reserve(1024);
        let room = input.capacity();
        let (read, slice) = reader.read(input.slice_mut(length..room)).await;
        input = slice.into_inner();
        if read? == 0 {
            return Err(io::Error::other(format!("the connection was closed at {name}")));
        }
        match resp::parse(&input).map_err(io::Error::other)? {
            Some(parsed) if matches!(parsed.reply, Reply::Error | Reply::NoScript) => {
                let text = String::from_utf8_lossy(&input[parsed.error_text.0..parsed.error_text.1]);
                // Some servers repeat the command's arguments: of AUTH, only the error's code may be told.
                let text = if name == "AUTH" { text.split(' ').next().unwrap_or_default() } else { &text };
                return Err(io::Error::other(format!("{name}: {text}")));
            }
            Some(_) => return Ok(input),
            None => {}
        }
    }
}

/// Writes whatever was asked since the last write, as one.
async fn write_batches<W: AsyncWriteRent>(writer: &mut W, shared: &Shared) -> io::Result<()> {
    let mut spare = Vec::new();
    loop {
        poll_fn(|context| match shared.out.borrow().is_empty() {
            false => Poll::Ready(()),
            true => {
                *shared.writer.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await;
        let batch = replace(&mut *shared.out.borrow_mut(), spare);
        let (written, mut batch) = writer.write_all(batch).await;
        written?;
        batch.clear();
        spare = batch;
    }
}

async fn read_replies<R: AsyncReadRent>(reader: &mut R, shared: &Shared, connector: &Connector) -> io::Result<()> {
    let mut input = Vec::with_capacity(INPUT);
    loop {
        let length = input.len();
        if length == input.capacity() {
            // Only a reply longer than the buffer fills it; resp::parse bounds that.
            input.reserve(INPUT);
        }
        let room = input.capacity();
        let (read, slice) = reader.read(input.slice_mut(length..room)).await;
        input = slice.into_inner();
        if read? == 0 {
            return Err(io::Error::other("the server closed the connection"));
        }
        let mut used = 0;
        while let Some(parsed) = resp::parse(&input[used..]).map_err(io::Error::other)? {
            if parsed.reply == Reply::Error {
                let text = &input[used + parsed.error_text.0..used + parsed.error_text.1];
                connector.observer.server_error(&String::from_utf8_lossy(text));
            }
            used += parsed.used;
            shared.answer(parsed.reply).map_err(io::Error::other)?;
        }
        input.drain(..used);
    }
}

/// Ends waits whose deadline has passed, and the connection when its server owes a reply for too long.
async fn watch(shared: &Shared) -> io::Result<()> {
    loop {
        let present = now();
        let next = shared.expire(present);
        let stalled = shared.oldest().map(|deadline| deadline.after(STALL_MAX));
        if stalled.is_some_and(|at| at <= present) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server stopped answering"));
        }
        let look_again = next.into_iter().chain(stalled).min();
        shared.looks_at.set(look_again);
        match look_again {
            Some(at) => {
                // The runtime's timer counts milliseconds.
                let pause = at.since(present).max(Duration::from_millis(1));
                monoio::select! {
                    () = monoio::time::sleep(pause) => {}
                    () = shared.earlier_deadline() => {}
                }
            }
            None => shared.earlier_deadline().await,
        }
    }
}
