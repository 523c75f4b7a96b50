//! One client connection, the whole story: read, identify, decide, forward or answer, again.
//!
//! Shell. Requests of a connection are served one after the other, so pipelined ones are answered in order.
#![allow(clippy::disallowed_types, reason = "shell: serves a client's socket")]

use crate::conn::{Conn, End, INPUT_START};
use crate::gateway::{Gateway, Rules, Scratch};
use crate::http::forward::client_request_id;
use crate::http::head::RequestHead;
use crate::http::{Framing, Refusal, Version};
use crate::identity;
use crate::limit::policy::{Mode, Subject};
use crate::limit::{Decision, StoreFault};
use crate::log::Take;
use crate::metrics::{Outcome as Counted, StoreError};
use crate::relay::{self, Outcome};
use crate::reply::{self, Addressee, Denial, Failure};
use crate::route::host_without_port;
use crate::time::Micros;
use monoio::net::TcpStream;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a body that is not wanted which are read so that the connection can go on; beyond, it is closed.
const DISCARD_MAX: u64 = 64 * 1024;

/// Bytes read and dropped from a client that still sends after its answer, so that it can read that answer.
const LINGER_MAX: usize = 1024 * 1024;

/// How long such a client is listened to.
const LINGER: Duration = Duration::from_secs(2);

/// The route of a request that has none.
const UNROUTED: Option<usize> = None;

/// What comes after a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The next request.
    Request,
    /// The end, once the client has read its answer.
    Linger,
    /// The end at once.
    Close,
}

/// Serves a client until either side is done.
pub async fn serve(stream: TcpStream, peer: SocketAddr, gateway: Rc<Gateway>) {
    let mut client = Conn::new(stream, &gateway.deadlines);
    let peer = Peer::new(peer.ip());
    gateway.metrics.connection_opened();
    gateway.open.set(gateway.open.get() + 1);
    let mut next = Next::Request;
    while next == Next::Request && await_request(&mut client, &gateway).await {
        let mut scratch = gateway.scratch();
        next = serve_request(&mut client, &peer, &gateway, &mut scratch).await;
        gateway.return_scratch(scratch);
        client.reader.shrink();
    }
    if next == Next::Linger {
        linger(&mut client).await;
    }
    gateway.open.set(gateway.open.get() - 1);
    gateway.metrics.connection_closed();
}

/// The other end of the connection.
struct Peer {
    ip: IpAddr,
    text: String,
}

impl Peer {
    fn new(ip: IpAddr) -> Peer {
        let ip = ip.to_canonical();
        Peer { ip, text: ip.to_string() }
    }
}

/// Waits for the first byte of a request; false where none comes.
async fn await_request(client: &mut Conn, gateway: &Gateway) -> bool {
    if !client.reader.data().is_empty() {
        return true;
    }
    client.reader.set_idle(true);
    client.reader.deadline(gateway.rules.timeouts.idle);
    let received = client.reader.fill(INPUT_START).await;
    client.reader.set_idle(false);
    received.is_ok()
}

/// Reads on to the end of the head. `Err(None)`: the client has gone.
async fn read_head(client: &mut Conn, gateway: &Gateway, scratch: &mut Scratch) -> Result<(), Option<Failure>> {
    let bounds = &gateway.rules.bounds;
    let mut looked_at = 0;
    let mut waiting = false;
    loop {
        let data = client.reader.data();
        // A head without its empty line is parsed once only, so that one byte at a time costs no more than it must.
        if looked_at == 0 || data.len() >= bounds.head_max || has_empty_line(data, looked_at) {
            match scratch.head.parse(data, bounds) {
                Ok(true) => break,
                Ok(false) => {}
                Err(refusal) => return Err(Some(Failure::Refused(refusal))),
            }
        }
        looked_at = data.len();
        if !waiting {
            client.reader.deadline(gateway.rules.timeouts.head);
            waiting = true;
        }
        client.reader.fill(bounds.head_max).await.map_err(|end| match end {
            End::TimedOut => Some(Failure::TooSlow),
            End::Closed | End::Broken => None,
        })?;
    }
    client.reader.no_deadline();
    Ok(())
}

/// Whether an empty line ends in the bytes from `from` on.
fn has_empty_line(data: &[u8], from: usize) -> bool {
    let tail = &data[from.saturating_sub(3)..];
    memchr::memchr_iter(b'\n', tail).any(|at| matches!(&tail[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

/// Serves the request that starts the client's buffer.
async fn serve_request(client: &mut Conn, peer: &Peer, gateway: &Gateway, scratch: &mut Scratch) -> Next {
    scratch.fields.clear();
    if let Err(failure) = read_head(client, gateway, scratch).await {
        let Some(failure) = failure else { return Next::Close };
        scratch.request_id.clear();
        scratch.head = RequestHead::default();
        return refuse(client, gateway, scratch, &failure, UNROUTED, gateway.clock.now()).await;
    }
    let started = gateway.clock.now();
    take_request_id(client, scratch);
    let rules = &gateway.rules;
    if let (Framing::Length(length), Some(most)) = (scratch.head.framing, rules.bounds.body_max)
        && length > most
    {
        let failure = Failure::Refused(Refusal::BodyTooLarge);
        return refuse(client, gateway, scratch, &failure, UNROUTED, started).await;
    }
    let route = match place(rules, client, peer, scratch) {
        Ok(route) => route,
        Err(failure) => return answer(client, gateway, scratch, &failure, UNROUTED, started).await,
    };
    match decide(client, gateway, scratch, route, started).await {
        Verdict::Pass => {}
        Verdict::Deny => return deny(client, peer, gateway, scratch, route, started).await,
        Verdict::Unavailable(fault) => {
            let failure = Failure::StoreClosed(fault);
            return answer(client, gateway, scratch, &failure, Some(route), started).await;
        }
    }
    forward(client, peer, gateway, scratch, route, started).await
}

/// Keeps the client's request id, or makes one.
fn take_request_id(client: &Conn, scratch: &mut Scratch) {
    scratch.request_id.clear();
    match client_request_id(&scratch.head, client.reader.data()) {
        Some(id) => scratch.request_id.extend_from_slice(id),
        None => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            let random = fastrand::u128(..);
            let digits = (0..32).map(|place| DIGITS[(random >> (4 * place)) as usize & 15]);
            scratch.request_id.extend(digits);
        }
    }
}

/// Who asks, for what, and which limits apply; gives the route.
fn place(rules: &Rules, client: &Conn, peer: &Peer, scratch: &mut Scratch) -> Result<usize, Failure> {
    let Scratch { head, caller, endpoint, sheet, .. } = scratch;
    let buffer = client.reader.data();
    rules.identity.of(head, buffer, peer.ip, caller)?;
    identity::endpoint(head.target.of(buffer), endpoint);
    let host = host_without_port(head.host.of(buffer));
    let route = rules.routes.longest(host, endpoint, head.method.of(buffer)).ok_or(Failure::NoRoute)?;
    let route_label = &rules.route_table[route].label;
    let subject = Subject { head, buffer, host, endpoint, route: route_label, caller };
    rules.policy.apply(&subject, sheet);
    Ok(route)
}

/// What the limits say.
enum Verdict {
    Pass,
    Deny,
    Unavailable(StoreFault),
}

async fn decide(client: &Conn, gateway: &Gateway, scratch: &mut Scratch, route: usize, started: Micros) -> Verdict {
    let rules = &gateway.rules;
    let sheet = &mut scratch.sheet;
    if sheet.applied().is_empty() {
        return Verdict::Pass;
    }
    let decision = gateway.limiter.decide(&rules.policy, sheet, rules.on_failure, started).await;
    if gateway.limiter.is_remote() {
        gateway.metrics.decision_took(gateway.clock.now().since(started));
    }
    count(gateway, scratch, decision);
    let shadowed =
        scratch.sheet.outcomes().any(|(applied, level)| level.short && rules.policy.rule(applied).mode == Mode::Shadow);
    match decision {
        Decision::Allow | Decision::Deny if shadowed => log_shadow(client, gateway, scratch, route, started),
        _ => {}
    }
    match decision {
        Decision::Allow => {
            reply::rate_limit_fields(&mut scratch.fields, &rules.policy, &scratch.sheet);
            Verdict::Pass
        }
        Decision::Deny => Verdict::Deny,
        Decision::FailOpen(_) => Verdict::Pass,
        Decision::FailClosed(fault) => Verdict::Unavailable(fault),
    }
}

/// Counts what each limit said.
fn count(gateway: &Gateway, scratch: &Scratch, decision: Decision) {
    let policy = &gateway.rules.policy;
    let fault = match decision {
        Decision::Allow | Decision::Deny => None,
        Decision::FailOpen(fault) | Decision::FailClosed(fault) => Some(fault),
    };
    if let Some(fault) = fault {
        gateway.metrics.store_error(match fault {
            StoreFault::Disconnected => StoreError::Disconnected,
            StoreFault::Timeout => StoreError::Timeout,
            StoreFault::Overloaded => StoreError::Overloaded,
            StoreFault::Server => StoreError::Server,
            StoreFault::Protocol => StoreError::Protocol,
        });
    }
    for (applied, level) in scratch.sheet.outcomes() {
        let outcome = match (decision, level.short, policy.rule(applied).mode) {
            (Decision::FailOpen(_), ..) => Counted::FailOpen,
            (Decision::FailClosed(_), ..) => Counted::FailClosed,
            (_, true, Mode::Shadow) => Counted::ShadowDeny,
            (_, true, Mode::Enforce) => Counted::Deny,
            // A limit that had room is not what denied the request.
            (_, false, _) => Counted::Allow,
        };
        gateway.metrics.decision(applied.rule, outcome);
    }
}

/// Answers 429, with the reason in fields, body and log.
async fn deny(
    client: &mut Conn,
    peer: &Peer,
    gateway: &Gateway,
    scratch: &mut Scratch,
    route: usize,
    started: Micros,
) -> Next {
    let policy = &gateway.rules.policy;
    let Some(denial) = Denial::of(policy, &scratch.sheet) else { return Next::Close };
    reply::rate_limit_fields(&mut scratch.fields, policy, &scratch.sheet);
    if gateway.rules.log_denied
        && let Take::Write { suppressed } = gateway.may_log_denial(started)
    {
        tracing::info!(
            limit = denial.limit,
            rate = %denial.rate,
            burst = denial.burst,
            retry_after_ms = denial.retry_after_ms(),
            user = text(&scratch.caller.user),
            peer = peer.text,
            method = text(scratch.head.method.of(client.reader.data())),
            endpoint = text(&scratch.endpoint),
            request_id = text(&scratch.request_id),
            suppressed,
            "denied"
        );
    }
    let mut out = std::mem::take(&mut scratch.back);
    out.clear();
    let keep_alive = can_go_on(client, gateway, scratch);
    let date = gateway.date.borrow().clone();
    reply::too_many(&mut out, &denial, &scratch.fields, &addressee(scratch, keep_alive, &date));
    scratch.back = out;
    send_answer(client, gateway, scratch, 429, Some(route), keep_alive, started).await
}

fn log_shadow(client: &Conn, gateway: &Gateway, scratch: &Scratch, route: usize, started: Micros) {
    if !gateway.rules.log_denied {
        return;
    }
    let Take::Write { suppressed } = gateway.may_log_denial(started) else { return };
    let policy = &gateway.rules.policy;
    let mut limits = String::new();
    for (applied, level) in scratch.sheet.outcomes() {
        let rule = policy.rule(applied);
        if level.short && rule.mode == Mode::Shadow {
            let _ = write!(limits, "{}{}", if limits.is_empty() { "" } else { "," }, rule.name);
        }
    }
    tracing::info!(
        limits,
        user = text(&scratch.caller.user),
        method = text(scratch.head.method.of(client.reader.data())),
        endpoint = text(&scratch.endpoint),
        route = gateway.rules.route_table[route].label,
        suppressed,
        "would deny (shadow)"
    );
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("(not text)")
}

/// Forwards to the route's upstream; our own answer where that fails.
async fn forward(
    client: &mut Conn,
    peer: &Peer,
    gateway: &Gateway,
    scratch: &mut Scratch,
    route: usize,
    started: Micros,
) -> Next {
    let upstream = gateway.rules.route_table[route].upstream;
    let keep_alive = scratch.head.keep_alive && !gateway.draining.get();
    match relay::exchange(client, gateway, scratch, &peer.text, upstream, keep_alive).await {
        Outcome::Done { status, keep_alive } => {
            gateway.metrics.request(Some(route), status, gateway.clock.now().since(started));
            match keep_alive {
                true => Next::Request,
                false => Next::Linger,
            }
        }
        Outcome::Cut(status) => {
            gateway.metrics.request(Some(route), status, gateway.clock.now().since(started));
            if scratch.head.version == Version::Http10 {
                // Its body may end with the connection: only a reset tells that this is not its end.
                client.abort();
            }
            Next::Close
        }
        Outcome::Failed(failure) => {
            log_trouble(gateway, scratch, &failure, upstream, started);
            // The head has been used up, and it is not known how much of the body.
            refuse(client, gateway, scratch, &failure, Some(route), started).await
        }
    }
}

fn log_trouble(gateway: &Gateway, scratch: &Scratch, failure: &Failure, upstream: usize, started: Micros) {
    let answer = failure.answer();
    if answer.blame != "upstream" {
        return;
    }
    if let Take::Write { suppressed } = gateway.may_log_trouble(started) {
        tracing::warn!(
            upstream = gateway.upstreams[upstream].settings.name,
            status = answer.status,
            endpoint = text(&scratch.endpoint),
            request_id = text(&scratch.request_id),
            suppressed,
            "{}",
            answer.detail
        );
    }
}

/// Whether the connection can carry another request after our own answer: the body must not be long.
fn can_go_on(client: &Conn, gateway: &Gateway, scratch: &Scratch) -> bool {
    let head = &scratch.head;
    let short = match head.framing {
        Framing::Empty => true,
        Framing::Length(length) => {
            let here = client.reader.data().len().saturating_sub(head.len) as u64;
            here >= length || (length <= DISCARD_MAX && !head.expects_continue)
        }
        Framing::Chunked | Framing::UntilClose => false,
    };
    short && head.keep_alive && !gateway.draining.get()
}

fn addressee<'s>(scratch: &'s Scratch, keep_alive: bool, date: &'s str) -> Addressee<'s> {
    Addressee {
        version: scratch.head.version,
        asked: scratch.head.kind,
        keep_alive,
        request_id: text(&scratch.request_id),
        date,
    }
}

/// Answers a failure to a request whose head is still in the buffer; the connection goes on where it can.
async fn answer(
    client: &mut Conn,
    gateway: &Gateway,
    scratch: &mut Scratch,
    failure: &Failure,
    route: Option<usize>,
    started: Micros,
) -> Next {
    let keep_alive = can_go_on(client, gateway, scratch);
    write_failure(gateway, scratch, failure, keep_alive);
    let status = failure.answer().status;
    send_answer(client, gateway, scratch, status, route, keep_alive, started).await
}

/// Answers a failure and ends the connection.
async fn refuse(
    client: &mut Conn,
    gateway: &Gateway,
    scratch: &mut Scratch,
    failure: &Failure,
    route: Option<usize>,
    started: Micros,
) -> Next {
    write_failure(gateway, scratch, failure, false);
    let status = failure.answer().status;
    send_answer(client, gateway, scratch, status, route, false, started).await
}

fn write_failure(gateway: &Gateway, scratch: &mut Scratch, failure: &Failure, keep_alive: bool) {
    let mut out = std::mem::take(&mut scratch.back);
    out.clear();
    let date = gateway.date.borrow();
    reply::failure(&mut out, failure, &addressee(scratch, keep_alive, &date));
    drop(date);
    scratch.back = out;
}

/// Sends the answer that stands in `scratch.back`, and reads the rest of the request where the connection goes on.
async fn send_answer(
    client: &mut Conn,
    gateway: &Gateway,
    scratch: &mut Scratch,
    status: u16,
    route: Option<usize>,
    keep_alive: bool,
    started: Micros,
) -> Next {
    let timeouts = &gateway.rules.timeouts;
    let sent = client.writer.send(&mut scratch.back, timeouts.write).await;
    gateway.metrics.request(route, status, gateway.clock.now().since(started));
    if sent.result.is_err() {
        return Next::Close;
    }
    if !keep_alive {
        return Next::Linger;
    }
    client.reader.consume(scratch.head.len);
    let Framing::Length(mut left) = scratch.head.framing else { return Next::Request };
    loop {
        let here = client.reader.data().len();
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(here);
        client.reader.consume(take);
        left -= take as u64;
        if left == 0 {
            return Next::Request;
        }
        client.reader.deadline(timeouts.body);
        if client.reader.fill(relay::PIECE_MAX).await.is_err() {
            return Next::Close;
        }
    }
}

/// Lets the client read its answer although it may still be sending: closing with unread bytes would reset the
/// connection and take the answer with it (RFC 9112 section 9.6).
pub async fn linger(client: &mut Conn) {
    client.writer.finish().await;
    client.reader.deadline(LINGER);
    let mut dropped = 0;
    while dropped < LINGER_MAX {
        let here = client.reader.data().len();
        client.reader.consume(here);
        dropped += here;
        if client.reader.fill(relay::PIECE_MAX).await.is_err() {
            return;
        }
    }
}
