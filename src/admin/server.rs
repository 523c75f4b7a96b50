//! The admin port's listener and its few answers.
//!
//! Shell. HTTP/1.1 with the gateway's own parser; one task for each connection, a bounded number of them.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: serves the admin port")]

use crate::conn::{Conn, Deadlines, SCAN_INTERVAL};
use crate::http::head::RequestHead;
use crate::http::{Bounds, Framing, Method};
use crate::limit::memory;
use crate::metrics::{self, Registry};
use crate::time::now;
use crate::upstream::members::Group;
use crate::worker::Signals;
use monoio::net::{TcpListener, TcpStream};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Admin connections at one time; more are closed.
const CONNECTIONS_MAX: usize = 64;

/// For a request to arrive, an answer to be taken, and between requests.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const BOUNDS: Bounds = Bounds { head_max: 8 * 1024, fields_max: 64, body_max: Some(0) };

/// What the admin port can tell.
pub struct Admin {
    /// The counters.
    pub registry: Arc<Registry>,
    /// Whether the gateway is stopping.
    pub signals: Arc<Signals>,
    /// The store in this process.
    pub memory: Arc<memory::Store>,
    /// The upstreams.
    pub groups: Arc<[Arc<Group>]>,
    /// How many workers there are.
    pub workers: usize,
    /// What the workers run on.
    pub io: &'static str,
}

/// Serves the port for ever.
pub async fn serve(listener: std::net::TcpListener, admin: Admin) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the admin port is lost");
            return;
        }
    };
    let admin = Rc::new(admin);
    let deadlines = Rc::new(Deadlines::default());
    let open = Rc::new(Cell::new(0));
    monoio::spawn(scan(deadlines.clone()));
    loop {
        match listener.accept().await {
            Ok((stream, _)) if open.get() < CONNECTIONS_MAX => {
                open.set(open.get() + 1);
                let (admin, deadlines, open) = (admin.clone(), deadlines.clone(), open.clone());
                monoio::spawn(async move {
                    converse(stream, &admin, &deadlines).await;
                    open.set(open.get() - 1);
                });
            }
            Ok(_) => {}
            Err(_) => monoio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn scan(deadlines: Rc<Deadlines>) {
    loop {
        deadlines.scan(now());
        monoio::time::sleep(SCAN_INTERVAL).await;
    }
}

/// Answers the requests of one connection.
async fn converse(stream: TcpStream, admin: &Admin, deadlines: &Rc<Deadlines>) {
    let mut client = Conn::new(stream, deadlines);
    let mut head = RequestHead::default();
    loop {
        client.reader.deadline(PATIENCE);
        loop {
            match head.parse(client.reader.data(), &BOUNDS) {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => return,
            }
            if client.reader.fill(BOUNDS.head_max).await.is_err() {
                return;
            }
        }
        let target = head.target.of(client.reader.data());
        let path = target.split(|&b| b == b'?').next().unwrap_or_default();
        let mut out = answer(admin, path, &head);
        client.reader.consume(head.len);
        let sent = client.writer.send(&mut out, PATIENCE).await;
        if sent.result.is_err() || !head.keep_alive || head.framing != Framing::Empty {
            return;
        }
    }
}

fn answer(admin: &Admin, path: &[u8], head: &RequestHead) -> Vec<u8> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let draining = admin.signals.draining.load(Ordering::Acquire);
    let (status, kind, body) = match (head.kind, path) {
        (Method::Get | Method::Head, b"/healthz") => ("200 OK", TEXT, "alive\n".to_string()),
        (Method::Get | Method::Head, b"/readyz") if draining => {
            ("503 Service Unavailable", TEXT, "draining\n".to_string())
        }
        (Method::Get | Method::Head, b"/readyz") if admin.signals.serving.load(Ordering::Acquire) < admin.workers => {
            ("503 Service Unavailable", TEXT, "starting\n".to_string())
        }
        (Method::Get | Method::Head, b"/readyz") => ("200 OK", TEXT, "ready\n".to_string()),
        (Method::Get | Method::Head, b"/metrics") => {
            admin.registry.set_memory_store(admin.memory.entries(), admin.memory.evicted());
            admin.registry.set_draining(draining);
            admin.registry.set_groups(admin.groups.iter().map(|group| group.report(now())).collect());
            let text = admin.registry.exposition(env!("CARGO_PKG_VERSION"), admin.io);
            ("200 OK", metrics::content_type(), text)
        }
        (Method::Get | Method::Head, _) => ("404 Not Found", TEXT, "/healthz /readyz /metrics\n".to_string()),
        _ => ("405 Method Not Allowed", TEXT, "only GET and HEAD\n".to_string()),
    };
    let keep_alive = match head.keep_alive && head.framing == Framing::Empty {
        true => "keep-alive",
        false => "close",
    };
    let shown = if head.kind == Method::Head { "" } else { &body };
    // RFC 9110 section 15.5.6.
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         {allow}Connection: {keep_alive}\r\n\r\n{shown}",
        body.len()
    )
    .into_bytes()
}
