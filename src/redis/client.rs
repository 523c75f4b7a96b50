//! One connection for each worker: commands of one loop turn in one write, no wait past its deadline.
//!
//! Shell. A task of its own keeps the connection: connect, AUTH, SELECT, SCRIPT LOAD, then three parts side by side
//! (write what is asked, read what is answered, end what is late) until one of them fails; then everything that waits is
//! told so, and the next attempt follows after a growing pause with jitter.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: owns the connection to Redis")]

use super::error::Remedy;
use super::pipeline::{Observer, Pipeline, Purpose};
use super::resp::{self, Reply};
use super::tls::Secure;
use super::{Address, Fault, Settings};
use crate::resolve::Resolver;
use crate::time::{Micros, now};
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Split, Splitable};
use monoio::net::{TcpStream, UnixStream};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A server that owes a reply for this long past its deadline has lost the connection, whatever TCP says.
const STALL_MAX: Duration = Duration::from_secs(1);

/// For connect and for the commands that open a connection, each.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause after the first failed attempt; doubled after each further one, up to the longest. All with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const BACKOFF_DOUBLINGS: u32 = 5;

/// A connection that lasted this long was a good one: it is replaced at once.
const STEADY: Duration = Duration::from_secs(1);

/// Bytes read at once; a reply to a decision is about 20.
const INPUT: usize = 16 * 1024;

/// A worker's client.
pub struct Client {
    pipeline: Rc<Pipeline>,
    deadline: Duration,
}

/// What one attempt at a connection needs.
pub struct Connector {
    settings: Settings,
    resolver: Arc<Resolver>,
    tls: Option<Secure>,
    script: &'static str,
}

impl Connector {
    /// `resolver` knows the addresses of names; `script` is loaded at each connect.
    pub fn new(settings: Settings, resolver: Arc<Resolver>, tls: Option<Secure>, script: &'static str) -> Connector {
        Connector { settings, resolver, tls, script }
    }
}

impl Client {
    /// A client whose connection is kept by a task of its own, on this thread.
    pub fn start(connector: Connector, observer: Box<dyn Observer>) -> Client {
        let deadline = connector.settings.deadline;
        let pipeline = Rc::new(Pipeline::new(deadline, observer));
        monoio::spawn(keep_connected(connector, pipeline.clone()));
        Client { pipeline, deadline }
    }

    /// Waits for the first attempt at a connection to end, well or not, and no longer than one may take.
    pub async fn tried(&self) {
        // Either way the gateway goes on: what is asked without a connection has its answer.
        let _ = monoio::time::timeout(OPEN_TIMEOUT, self.pipeline.tried()).await;
    }

    /// When a question asked now must have its answer.
    pub fn deadline_from(&self, now: Micros) -> Micros {
        now.after(self.deadline)
    }

    /// As [`Client::call`], for a command that follows another: it is not sent where the deadline has passed meanwhile.
    pub async fn call_next(
        &self,
        deadline: Micros,
        write: impl FnOnce(Purpose, &[u8], &mut Vec<u8>),
    ) -> Result<Reply, Fault> {
        let present = now();
        match present >= deadline {
            true => Err(Fault::Timeout),
            false => self.call(present, deadline, write).await,
        }
    }

    /// Sends one command, which `write` appends to the batch (it is given its purpose and the script's digest), and waits
    /// for its reply.
    pub async fn call(
        &self,
        now: Micros,
        deadline: Micros,
        write: impl FnOnce(Purpose, &[u8], &mut Vec<u8>),
    ) -> Result<Reply, Fault> {
        self.pipeline.call(now, deadline, write).await
    }
}

async fn keep_connected(connector: Connector, pipeline: Rc<Pipeline>) {
    let mut failures = 0;
    let mut turn = 0;
    loop {
        let began = now();
        let lived = attempt(&connector, &pipeline, turn).await;
        let was_steady = pipeline.is_up() && now().since(began) >= STEADY;
        pipeline.fail_all();
        if let Err(error) = lived {
            pipeline.observer().disconnected(&error.to_string());
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

/// Connects, and keeps the connection until it breaks.
async fn attempt(connector: &Connector, pipeline: &Pipeline, turn: usize) -> io::Result<()> {
    match (&connector.settings.address, &connector.tls) {
        (Address::Unix(path), _) => live(bounded(UnixStream::connect(path)).await?, connector, pipeline).await,
        (Address::Tcp { host, port }, None) => {
            live(connect_tcp(connector, host, *port, turn).await?, connector, pipeline).await
        }
        (Address::Tcp { host, port }, Some(tls)) => {
            let stream = connect_tcp(connector, host, *port, turn).await?;
            live(bounded(tls.open(stream)).await?, connector, pipeline).await
        }
    }
}

async fn connect_tcp(connector: &Connector, host: &str, port: u16, turn: usize) -> io::Result<TcpStream> {
    let target = connector.resolver.target(host, port);
    let Some(address) = target.address(turn) else {
        return Err(io::Error::other(format!("{host} does not resolve")));
    };
    let connected = bounded(TcpStream::connect_addr(address)).await;
    if connected.is_err() {
        connector.resolver.ask(&target);
    }
    let stream = connected?;
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
async fn live<S>(stream: S, connector: &Connector, pipeline: &Pipeline) -> io::Result<()>
where
    S: AsyncReadRent + AsyncWriteRent + Split + 'static,
{
    let (mut reader, mut writer) = stream.into_split();
    let opened = bounded(open(&mut reader, &mut writer, connector)).await?;
    pipeline.opened(opened);
    // Whichever ends first ends the connection, so what is in flight in the others does not matter.
    monoio::select! {
        result = write_batches(&mut writer, pipeline) => result,
        result = read_replies(&mut reader, pipeline) => result,
        result = watch(pipeline) => result,
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
            Some(parsed) if matches!(parsed.reply, Reply::Error(_)) => {
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
async fn write_batches<W: AsyncWriteRent>(writer: &mut W, pipeline: &Pipeline) -> io::Result<()> {
    let mut spare = Vec::new();
    loop {
        let batch = pipeline.batch(spare).await;
        let (written, mut batch) = writer.write_all(batch).await;
        written?;
        batch.clear();
        spare = batch;
    }
}

async fn read_replies<R: AsyncReadRent>(reader: &mut R, pipeline: &Pipeline) -> io::Result<()> {
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
            let text = used + parsed.error_text.0..used + parsed.error_text.1;
            used += parsed.used;
            pipeline.answer(parsed.reply, now()).map_err(io::Error::other)?;
            if let Reply::Error(error) = parsed.reply
                && error.remedy() != Remedy::SendScript
            {
                let text = String::from_utf8_lossy(&input[text]);
                pipeline.observer().server_error(&text);
                if error.remedy() == Remedy::Reconnect {
                    return Err(io::Error::other(text.into_owned()));
                }
            }
        }
        input.drain(..used);
    }
}

/// Ends waits whose deadline has passed, and the connection when its server owes a reply for too long.
async fn watch(pipeline: &Pipeline) -> io::Result<()> {
    loop {
        let present = now();
        let next = pipeline.expire(present);
        let stalled = pipeline.oldest().map(|deadline| deadline.after(STALL_MAX));
        if stalled.is_some_and(|at| at <= present) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server stopped answering"));
        }
        let look_again = next.into_iter().chain(stalled).min();
        pipeline.looks_at(look_again);
        match look_again {
            Some(at) => {
                // The runtime's timer counts milliseconds.
                let pause = at.since(present).max(Duration::from_millis(1));
                monoio::select! {
                    () = monoio::time::sleep(pause) => {}
                    () = pipeline.earlier_deadline() => {}
                }
            }
            None => pipeline.earlier_deadline().await,
        }
    }
}
