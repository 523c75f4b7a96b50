//! One connection to one server: commands of one loop turn in one write, no wait past its deadline.
//!
//! Shell. A task of its own keeps the connection: connect, AUTH, HELLO, SELECT, SCRIPT LOAD, then three parts side by side
//! (write what is asked, read what is answered, end what is late) until one of them fails; then everything that waits is
//! told so, and the next attempt follows after a growing pause with jitter.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: owns a connection to Redis")]

use super::dial::{Dialer, Receive, Transmit, ask, auth, bounded, fill};
use super::error::Remedy;
use super::pipeline::{Pipeline, RESUMED, TICK};
use super::resp::{self, Reply};
use super::{Address, Credentials, Place, Version, sentinel};
use crate::deadlines::has_unread;
use crate::time::now;
use monoio::io::Splitable;
use monoio::net::UnixStream;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

/// A server that owes a reply for this long past its deadline has lost the connection, whatever TCP says.
const STALL_MAX: Duration = Duration::from_secs(1);

/// Pause after the first failed attempt; doubled after each further one, up to the longest. All with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const BACKOFF_DOUBLINGS: u32 = 5;

/// A connection that lasted this long, and on which decisions were answered, was a good one: it is replaced at once.
const STEADY: Duration = Duration::from_secs(1);

/// Bytes read at once: the replies of a turn of thousands of requests, about 20 bytes to each decision.
const INPUT: usize = 64 * 1024;

/// Bytes of a batch for which room is kept; one that sends the script with every command is larger.
const BATCH_KEPT_MAX: usize = 1024 * 1024;

/// How connections are opened: what all of a worker have in common.
pub(super) struct Opener {
    pub dialer: Dialer,
    /// Loaded at each connect.
    pub script: &'static str,
}

/// A server that is asked for decisions.
pub(super) struct Server {
    /// Where it is; `None` = wherever the sentinels say.
    pub address: Option<Address>,
    /// What is asked of it.
    pub pipeline: Rc<Pipeline>,
    /// Attempts at a connection so far.
    turn: Cell<usize>,
    /// It has said that its role, or ours, is another now.
    was_refused: Cell<bool>,
}

impl Server {
    pub fn new(address: Option<Address>, pipeline: Pipeline) -> Server {
        Server { address, pipeline: Rc::new(pipeline), turn: Cell::new(0), was_refused: Cell::new(false) }
    }
}

/// Keeps a server connected until it is retired.
pub(super) async fn keep_connected(server: Rc<Server>, opener: Rc<Opener>) {
    let pipeline = &server.pipeline;
    let mut failures = 0;
    loop {
        let began = now();
        let lived = attempt(&server, &opener).await;
        let was_steady = pipeline.is_up() && pipeline.has_answered() && now().since(began) >= STEADY;
        pipeline.fail_all();
        if pipeline.is_retired() {
            pipeline.observer().retired();
            return;
        }
        if let Err(error) = lived {
            pipeline.observer().disconnected(&error.to_string());
        }
        server.turn.set(server.turn.get() + 1);
        // A connection that had lasted is replaced at once; what fails again is waited for, longer each time.
        failures = if was_steady { 0 } else { failures + 1 };
        if failures > 0 {
            let pause = BACKOFF_MIN.saturating_mul(1 << (failures - 1).min(BACKOFF_DOUBLINGS)).min(BACKOFF_MAX);
            monoio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        }
    }
}

/// Finds the server and reaches it.
async fn attempt(server: &Server, opener: &Opener) -> io::Result<()> {
    let dialer = &opener.dialer;
    let turn = server.turn.get();
    let found = match (&server.address, &dialer.settings.place) {
        (Some(address), _) => address.clone(),
        (None, Place::Sentinel { sentinels, primary, credentials }) => {
            find_primary(dialer, sentinels, primary, credentials.as_ref(), turn).await?
        }
        (None, Place::Server(_) | Place::Cluster(_)) => return Err(io::Error::other("a server without an address")),
    };
    let lived = reach(&found, server, opener).await;
    if lived.is_err() {
        dialer.look_up_again(&found);
    }
    lived
}

/// Connects to the server at this address, and keeps the connection until it breaks.
async fn reach(found: &Address, server: &Server, opener: &Opener) -> io::Result<()> {
    let dialer = &opener.dialer;
    let turn = server.turn.get();
    match (found, &dialer.tls) {
        (Address::Unix(path), _) => {
            let stream = bounded(UnixStream::connect(path)).await?;
            live(stream.as_raw_fd(), stream.into_split(), server, opener).await
        }
        (Address::Tcp { host, port }, None) => {
            let stream = dialer.tcp(host, *port, turn).await?;
            live(stream.as_raw_fd(), stream.into_split(), server, opener).await
        }
        (Address::Tcp { host, port }, Some(tls)) => {
            let stream = dialer.tcp(host, *port, turn).await?;
            let stream = bounded(tls.open(host, stream)).await?;
            live(stream.as_raw_fd(), (stream.reader, stream.writer), server, opener).await
        }
    }
}

/// Asks the sentinels one after the other, each time another one first.
async fn find_primary(
    dialer: &Dialer,
    sentinels: &[Address],
    name: &str,
    credentials: Option<&Credentials>,
    turn: usize,
) -> io::Result<Address> {
    let mut last = io::Error::other("there is no sentinel");
    for step in 0..sentinels.len() {
        let asked = &sentinels[(turn + step) % sentinels.len()];
        let question: [&[u8]; 3] = [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name.as_bytes()];
        match dialer.inquire(asked, credentials, &question, turn).await {
            Ok(answer) => match sentinel::primary(&answer) {
                Some(primary) => return Ok(primary),
                None => last = io::Error::other(format!("the sentinel {asked} knows no {name:?}")),
            },
            Err(error) => last = io::Error::new(error.kind(), format!("the sentinel {asked}: {error}")),
        }
    }
    Err(last)
}

/// Opens the conversation and carries it on until it breaks. `fd` is the socket of `halves`.
async fn live(
    fd: RawFd,
    mut halves: (impl Receive, impl Transmit),
    server: &Server,
    opener: &Opener,
) -> io::Result<()> {
    let pipeline = &server.pipeline;
    let is_cluster = matches!(opener.dialer.settings.place, Place::Cluster(_));
    // Whoever turned out to be a replica is asked before it is taken for the store again.
    let must_be_primary = server.address.is_none() || server.was_refused.get();
    let opened = bounded(open(&mut halves, must_be_primary, opener)).await?;
    server.was_refused.set(false);
    let (mut reader, mut writer) = halves;
    pipeline.opened(opened, now());
    // Whichever ends first ends the connection, so what is in flight in the others does not matter. What has come is read
    // before anybody looks who is late.
    monoio::select! {
        biased;
        result = read_replies(&mut reader, server, is_cluster) => result,
        result = write_batches(&mut writer, pipeline) => result,
        result = watch(pipeline, fd) => result,
    }
}

/// AUTH, HELLO, SELECT and SCRIPT LOAD; gives the script's digest.
async fn open(
    halves: &mut (impl Receive, impl Transmit),
    must_be_primary: bool,
    opener: &Opener,
) -> io::Result<Vec<u8>> {
    let settings = &opener.dialer.settings;
    if let Some(credentials) = &settings.credentials {
        ask(halves, &auth(credentials), "AUTH").await?;
    }
    // Who may not ask for the role learns it from the first decision.
    if must_be_primary
        && let Ok(role) = ask(halves, &[b"ROLE"], "ROLE").await
        && resp::frame(&role).map_err(io::Error::other)?.is_some_and(|role| sentinel::is_replica(&role))
    {
        return Err(io::Error::other("the server is a replica"));
    }
    if settings.version == Version::Three {
        ask(halves, &[b"HELLO", b"3"], "HELLO").await?;
    }
    if settings.database != 0 {
        let number = settings.database.to_string();
        ask(halves, &[b"SELECT", number.as_bytes()], "SELECT").await?;
    }
    let loaded = ask(halves, &[b"SCRIPT", b"LOAD", opener.script.as_bytes()], "SCRIPT LOAD").await?;
    resp::text(&loaded)
        .filter(|digest| digest.len() == 40)
        .ok_or_else(|| io::Error::other("SCRIPT LOAD gave no digest"))
}

/// Writes whatever was asked since the last write, as one.
async fn write_batches(writer: &mut impl Transmit, pipeline: &Pipeline) -> io::Result<()> {
    let mut spare = Vec::new();
    loop {
        let batch = pipeline.batch(spare).await;
        let (written, mut batch) = writer.transmit(batch).await;
        written?;
        pipeline.written(now());
        batch.clear();
        batch.shrink_to(BATCH_KEPT_MAX);
        spare = batch;
    }
}

/// Gives replies to who waits for them. Only in a cluster is one that names another server no error.
async fn read_replies(reader: &mut impl Receive, server: &Server, is_cluster: bool) -> io::Result<()> {
    let pipeline = &server.pipeline;
    let mut input = Vec::with_capacity(INPUT);
    loop {
        // Only a reply longer than the buffer makes it grow; resp::parse bounds that.
        let read;
        (read, input) = fill(reader, input, INPUT).await;
        if read? == 0 {
            return Err(io::Error::other("the server closed the connection"));
        }
        if input.len() < input.capacity() {
            pipeline.has_read();
        }
        let mut used = 0;
        let read_at = now();
        while let Some(parsed) = resp::parse(&input[used..]).map_err(io::Error::other)? {
            let text = used + parsed.error_text.0..used + parsed.error_text.1;
            used += parsed.used;
            // Those that are applied at once are no news for an operator.
            let remedy = match &parsed.reply {
                Reply::Unasked => continue,
                Reply::Error(error) => match error.remedy() {
                    Remedy::SendScript => None,
                    Remedy::Split if is_cluster => None,
                    remedy => Some(remedy),
                },
                Reply::Redirect(_) if !is_cluster => Some(Remedy::Follow),
                _ => None,
            };
            pipeline.answer(parsed.reply, read_at).map_err(io::Error::other)?;
            if let Some(remedy) = remedy {
                let text = String::from_utf8_lossy(&input[text]);
                pipeline.observer().server_error(&text);
                if remedy == Remedy::Reconnect {
                    server.was_refused.set(true);
                    return Err(io::Error::other(text.into_owned()));
                }
            }
        }
        input.drain(..used);
    }
}

/// Ends waits whose deadline has passed, and the connection when its server owes a reply for too long or has none to give
/// any more.
async fn watch(pipeline: &Pipeline, fd: RawFd) -> io::Result<()> {
    let mut was_stalled = false;
    loop {
        let present = now();
        let next = pipeline.expire(present, || has_unread(fd));
        let oldest = pipeline.oldest();
        if oldest.is_none() && pipeline.is_retired() {
            return Err(io::Error::other("the server has no slots any more"));
        }
        let mut stalled = oldest.map(|deadline| deadline.after(STALL_MAX));
        let is_stalled = stalled.is_some_and(|at| at <= present) && !has_unread(fd);
        if is_stalled && was_stalled {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the server stopped answering"));
        }
        if stalled.is_some_and(|at| at <= present) {
            // Perhaps it was this process that stopped: then the answers are read until the next look.
            stalled = Some(present.after(RESUMED));
        }
        was_stalled = is_stalled;
        let look_again = next.into_iter().chain(stalled).min();
        pipeline.looks_at(look_again);
        match look_again {
            Some(at) => {
                // The runtime's timer counts milliseconds.
                let pause = at.since(present).max(TICK);
                monoio::select! {
                    () = monoio::time::sleep(pause) => {}
                    () = pipeline.earlier_deadline() => {}
                }
            }
            None => pipeline.earlier_deadline().await,
        }
    }
}
