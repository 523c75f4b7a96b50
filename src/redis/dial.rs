//! Connections to servers, by whatever way they are reached, and single questions on them.
//!
//! Shell. Every wait is bounded by [`OPEN_TIMEOUT`].
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: opens connections to Redis")]

use super::resp;
use super::{Address, Credentials, Settings};
use crate::resolve::{Resolver, Target};
use crate::time::now;
use crate::tls::{self, Secure};
use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRent, AsyncWriteRentExt, Splitable};
use monoio::net::{TcpStream, UnixStream};
use redis_protocol::resp2::types::OwnedFrame;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// For connect, for the commands that open a connection, and for a question on one of its own, each.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a new name is looked at.
const RESOLVE_POLL: Duration = Duration::from_millis(2);

/// Bytes read at once of what is answered while a connection is opened.
const INPUT: usize = 4 * 1024;

/// Reaches servers.
pub struct Dialer {
    pub(super) settings: Settings,
    pub(super) tls: Option<Secure>,
    resolver: Arc<Resolver>,
    /// Those of the configuration: the resolver forgets names that nobody holds.
    _named: Vec<Arc<Target>>,
}

impl Dialer {
    /// `resolver` knows the addresses of names.
    pub fn new(settings: Settings, resolver: Arc<Resolver>, tls: Option<Secure>) -> Dialer {
        let named = settings.place.named().iter().filter_map(|address| match address {
            Address::Tcp { host, port } => Some(resolver.target(host, *port)),
            Address::Unix(_) => None,
        });
        let named = named.collect();
        Dialer { settings, tls, resolver, _named: named }
    }

    /// Connects. Of a name with several addresses each `turn` takes another.
    pub(super) async fn tcp(&self, host: &str, port: u16, turn: usize) -> io::Result<TcpStream> {
        let target = self.resolver.target(host, port);
        let start = now();
        let address = loop {
            match target.address(turn) {
                Some(address) => break address,
                // A name that a server has just announced has been asked for this moment.
                None if target.is_pending() && now().since(start) < OPEN_TIMEOUT => {
                    monoio::time::sleep(RESOLVE_POLL).await
                }
                None => {
                    target.ask();
                    return Err(io::Error::other(format!("{host} does not resolve")));
                }
            }
        };
        let connected = bounded(TcpStream::connect_addr(address)).await;
        if connected.is_err() {
            target.ask();
        }
        let stream = connected?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// This server is dead, or another than it was: its name may stand for another by now.
    pub(super) fn look_up_again(&self, server: &Address) {
        if let Address::Tcp { host, port } = server {
            self.resolver.target(host, *port).ask();
        }
    }

    /// Asks a server one question on a connection of its own, in RESP2.
    pub(super) async fn inquire(
        &self,
        server: &Address,
        credentials: Option<&Credentials>,
        question: &[&[u8]],
        turn: usize,
    ) -> io::Result<OwnedFrame> {
        bounded(async {
            match (server, &self.tls) {
                (Address::Unix(path), _) => {
                    inquire_on(UnixStream::connect(path).await?.into_split(), credentials, question).await
                }
                (Address::Tcp { host, port }, None) => {
                    inquire_on(self.tcp(host, *port, turn).await?.into_split(), credentials, question).await
                }
                (Address::Tcp { host, port }, Some(tls)) => {
                    let stream = tls.open(host, self.tcp(host, *port, turn).await?).await?;
                    inquire_on((stream.reader, stream.writer), credentials, question).await
                }
            }
        })
        .await
    }
}

async fn inquire_on(
    mut halves: (impl Receive, impl Transmit),
    credentials: Option<&Credentials>,
    question: &[&[u8]],
) -> io::Result<OwnedFrame> {
    if let Some(credentials) = credentials {
        ask(&mut halves, &auth(credentials), "AUTH").await?;
    }
    let name = String::from_utf8_lossy(question.first().copied().unwrap_or_default()).into_owned();
    let answer = ask(&mut halves, question, &name).await?;
    resp::frame(&answer).map_err(io::Error::other)?.ok_or_else(|| io::Error::other("half an answer"))
}

/// AUTH as these credentials want it.
pub(super) fn auth(credentials: &Credentials) -> Vec<&[u8]> {
    let user = credentials.username.as_ref().map(String::as_bytes);
    [Some(b"AUTH".as_slice()), user, Some(credentials.password.as_bytes())].into_iter().flatten().collect()
}

/// Waits for no longer than opening a connection may take.
pub(super) async fn bounded<T>(open: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match monoio::time::timeout(OPEN_TIMEOUT, open).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer while connecting")),
    }
}

/// Sends one command by itself and gives its whole reply; an error reply is an error.
pub(super) async fn ask(
    (reader, writer): &mut (impl Receive, impl Transmit),
    parts: &[&[u8]],
    name: &str,
) -> io::Result<Vec<u8>> {
    writer.transmit(resp::command(parts)).await.0?;
    let mut input = Vec::new();
    loop {
        let read;
        (read, input) = fill(reader, input, INPUT).await;
        if read? == 0 {
            return Err(io::Error::other(format!("the connection was closed at {name}")));
        }
        if resp::measure(&input, resp::ANSWER_MAX).map_err(io::Error::other)?.is_none() {
            continue;
        }
        if let Some(text) = resp::refusal(&input) {
            let text = String::from_utf8_lossy(text);
            let text = if name == "AUTH" { without_secrets(&text) } else { &text };
            return Err(io::Error::other(format!("{name}: {text}")));
        }
        return Ok(input);
    }
}

/// What AUTH is refused with by Redis, without a password in it.
const AUTH_REFUSALS: [&str; 4] = [
    "WRONGPASS invalid username-password pair or user is disabled",
    "ERR invalid password",
    "ERR AUTH <password> called without any password configured for the default user",
    "ERR Client sent AUTH, but no password is set",
];

/// Some servers repeat a command's arguments: of AUTH, only what is known to hold none may be told, else the error's code.
fn without_secrets(refusal: &str) -> &str {
    let known = AUTH_REFUSALS.into_iter().find(|known| refusal.starts_with(known));
    known.unwrap_or_else(|| refusal.split(' ').next().unwrap_or_default())
}

/// Reads into the room behind what is there; makes some, of `step` bytes, where there is none.
pub(super) async fn fill(reader: &mut impl Receive, mut input: Vec<u8>, step: usize) -> (io::Result<usize>, Vec<u8>) {
    if input.len() == input.capacity() {
        input.reserve(step);
    }
    reader.receive(input).await
}

/// Where bytes come from, with TLS or without.
pub(super) trait Receive {
    /// Reads into the room behind what is there.
    async fn receive(&mut self, input: Vec<u8>) -> (io::Result<usize>, Vec<u8>);
}

impl<R: AsyncReadRent> Receive for R {
    async fn receive(&mut self, input: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let (length, room) = (input.len(), input.capacity());
        let (read, slice) = self.read(input.slice_mut(length..room)).await;
        (read, slice.into_inner())
    }
}

impl Receive for tls::ReadHalf {
    async fn receive(&mut self, input: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        self.read(input).await
    }
}

/// Where bytes go to, with TLS or without.
pub(super) trait Transmit {
    /// Sends all of them and gives the buffer back.
    async fn transmit(&mut self, output: Vec<u8>) -> (io::Result<()>, Vec<u8>);
}

impl<W: AsyncWriteRent> Transmit for W {
    async fn transmit(&mut self, output: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let (written, output) = self.write_all(output).await;
        (written.map(drop), output)
    }
}

impl Transmit for tls::WriteHalf {
    async fn transmit(&mut self, output: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let mut sent = 0;
        while sent < output.len() {
            match self.write(&output[sent..]).await {
                (Ok(()), bytes) => sent += bytes,
                (Err(error), _) => return (Err(error), output),
            }
        }
        (Ok(()), output)
    }
}
