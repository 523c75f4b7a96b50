//! The accept loop of one worker, the cap on connections, and the stop.
//!
//! Shell. An accept in flight is never dropped: it is cancelled and its result awaited, or a connection would be lost.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: accepts clients")]

use crate::conn::Conn;
use crate::gateway::Gateway;
use crate::http::{Method, Version};
use crate::log::Take;
use crate::proxy::{self, Client, Stages};
use crate::reply::{self, Addressee, Failure};
use crate::time::now;
use monoio::io::CancelHandle;
use monoio::net::{TcpListener, TcpStream};
use rustix::io::Errno;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Pause after a failed accept: with no descriptors left, accepting again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Clients over the cap that are being told so at one time, for each worker; beyond, they are just closed.
const SHEDDING_MAX: usize = 256;

/// Connections taken from the backlog when the listener closes: the kernel's own bound on it.
const BACKLOG_MAX: usize = 4096;

/// The connections of the whole process.
#[derive(Debug)]
pub struct Cap {
    open: AtomicUsize,
    most: usize,
}

impl Cap {
    /// At most so many.
    pub fn new(most: usize) -> Cap {
        Cap { open: AtomicUsize::new(0), most }
    }

    fn enter(self: &Arc<Cap>) -> Option<Pass> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let pass = Pass(self.clone());
        (before < self.most).then_some(pass)
    }
}

/// A place among the connections, given up when dropped.
struct Pass(Arc<Cap>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts clients until `stop` is cancelled, and then those that the kernel has accepted already.
pub async fn accept(
    listener: TcpListener,
    rest: std::net::TcpListener,
    gateway: Rc<Gateway>,
    cap: Arc<Cap>,
    stop: CancelHandle,
) {
    let shedding = Rc::new(Cell::new(0));
    let stages = Rc::new(Stages::new(gateway.clone()));
    while !gateway.draining.get() {
        match listener.cancelable_accept(stop.clone()).await {
            Ok((stream, peer)) => welcome(stream, peer, &stages, &cap, &shedding),
            Err(_) if gateway.draining.get() => break,
            Err(error) => {
                if matches!(Errno::from_io_error(&error), Some(Errno::MFILE | Errno::NFILE)) {
                    // Clients need the descriptors more.
                    gateway.close_idle();
                }
                if let Take::Write { suppressed } = gateway.may_log_trouble(now()) {
                    tracing::error!(%error, suppressed, "cannot accept connections");
                }
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the listener resets what waits in its backlog.
    if rest.set_nonblocking(true).is_ok() {
        for _ in 0..BACKLOG_MAX {
            let Ok((stream, peer)) = rest.accept() else { break };
            let nonblocking = stream.set_nonblocking(monoio::utils::is_legacy());
            if let (Ok(()), Ok(stream)) = (nonblocking, TcpStream::from_std(stream)) {
                welcome(stream, peer, &stages, &cap, &shedding);
            }
        }
    }
}

fn welcome(stream: TcpStream, peer: SocketAddr, stages: &Rc<Stages>, cap: &Arc<Cap>, shedding: &Rc<Cell<usize>>) {
    // Without it a response may wait for the client's delayed acknowledgement; not worth failing over.
    let _ = stream.set_nodelay(true);
    match cap.enter() {
        Some(pass) => {
            let (stages, client) = (stages.clone(), Client::new(stream, peer, &stages.gateway));
            monoio::spawn(async move {
                proxy::serve(client, stages).await;
                drop(pass);
            });
        }
        None => {
            let gateway = stages.gateway.clone();
            gateway.metrics.connection_shed();
            if let Take::Write { suppressed } = gateway.may_log_trouble(now()) {
                tracing::warn!(%peer, most = cap.most, suppressed, "turned away: server.max_connections are open");
            }
            if shedding.get() < SHEDDING_MAX {
                let shedding = shedding.clone();
                shedding.set(shedding.get() + 1);
                monoio::spawn(async move {
                    turn_away(stream, &gateway).await;
                    shedding.set(shedding.get() - 1);
                });
            }
        }
    }
}

/// Tells a client that there is no room for it.
async fn turn_away(stream: TcpStream, gateway: &Gateway) {
    let mut client = Conn::new(stream, &gateway.deadlines);
    let mut out = Vec::new();
    let date = gateway.date.borrow().clone();
    let to = Addressee { version: Version::Http11, asked: Method::Get, keep_alive: false, request_id: "", date: &date };
    reply::failure(&mut out, &Failure::Overloaded, &[], &to);
    if client.writer.send(&mut out, gateway.rules.timeouts.write).await.result.is_ok() {
        proxy::linger(&mut client).await;
    }
}
