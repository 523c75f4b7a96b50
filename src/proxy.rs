//! One client connection, the whole story: read, identify, decide, forward or answer, again.
//!
//! Shell. Requests of a connection are served one after the other, so pipelined ones are answered in order.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: serves a client's socket")]

use crate::config::Goal;
use crate::conn::{Conn, End, INPUT_START};
use crate::coroutine::Coroutine;
use crate::gateway::{Gateway, Scratch};
use crate::http::forward::{client_request_id, push_request_id};
use crate::http::head::RequestHead;
use crate::http::{Framing, Method, Refusal, Version};
use crate::identity;
use crate::limit::policy::{Mode, Subject};
use crate::limit::{Decision, StoreFault};
use crate::log::Take;
use crate::metrics::UpstreamError;
use crate::relay::{self, BreakOff, Outcome};
use crate::reply::{self, Addressee, Denial, Failure};
use crate::route::redirect::Redirect;
use crate::route::{Asked, host_without_port};
use crate::time::{Micros, now};
use crate::tunnel;
use crate::upstream::pool::Lease;
use crate::upstream::way::Way;
use monoio::net::TcpStream;
use std::cell::RefCell;
use std::mem::take;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a body that is not wanted which are read so that the connection can go on; beyond, it is closed.
const DISCARD_MAX: u64 = 64 * 1024;

/// Bytes read and dropped from a client that still sends after its answer, so that it can read that answer.
const LINGER_MAX: usize = 64 * 1024 * 1024;

/// The status that a request is counted with whose client left before its answer; nobody gets to see it.
const CLIENT_GONE: u16 = 499;

/// How long such a client is listened to.
const LINGER: Duration = Duration::from_secs(2);

/// Stages kept for later, for each listener of a worker.
const SPARE_MAX: usize = 512;

/// What comes after a request.
enum Next {
    /// The next request.
    Request,
    /// The end, once the client has read its answer.
    Linger,
    /// The end at once.
    Close,
    /// No more requests: bytes to and from this backend.
    Tunnel(Box<Lease>),
}

/// A client, with its connection.
pub struct Client {
    conn: Conn,
    peer: Peer,
}

impl Client {
    /// The client at the other end of an accepted connection.
    pub fn new(stream: TcpStream, peer: SocketAddr, gateway: &Gateway) -> Box<Client> {
        Box::new(Client { conn: Conn::new(stream, &gateway.deadlines), peer: Peer::new(peer.ip()) })
    }
}

/// Serves the requests of all connections of a worker. What it takes to serve one is large, and most connections are idle:
/// so it is kept here for those that are not, and used in turn.
pub struct Stages {
    /// Their worker's.
    pub gateway: Rc<Gateway>,
    spare: RefCell<Vec<Stage>>,
}

type Stage = Coroutine<Box<Client>, (Box<Client>, Next)>;

impl Stages {
    /// None yet.
    pub fn new(gateway: Rc<Gateway>) -> Stages {
        Stages { gateway, spare: RefCell::default() }
    }

    /// Serves the request that the client has begun to send.
    async fn serve(&self, client: Box<Client>) -> (Box<Client>, Next) {
        let spare = self.spare.borrow_mut().pop();
        let mut stage = spare.unwrap_or_else(|| self.build());
        stage.give(client);
        let served = stage.result().await;
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(stage);
        }
        served
    }

    fn build(&self) -> Stage {
        let gateway = self.gateway.clone();
        Coroutine::new(async move |mut client: Box<Client>| {
            let next = serve_one(&mut client, &gateway).await;
            (client, next)
        })
    }
}

async fn serve_one(client: &mut Client, gateway: &Gateway) -> Next {
    let mut scratch = gateway.scratch();
    let mut request = Request {
        client: &mut client.conn,
        peer: &client.peer,
        gateway,
        scratch: &mut scratch,
        started: gateway.clock.now(),
        route: None,
    };
    let next = request.serve().await;
    gateway.return_scratch(scratch);
    client.conn.reader.shrink();
    next
}

/// Serves a client until either side is done.
pub async fn serve(mut client: Box<Client>, stages: Rc<Stages>) {
    let gateway = &stages.gateway;
    gateway.metrics.connection_opened();
    gateway.open.set(gateway.open.get() + 1);
    let mut next = Next::Request;
    while matches!(next, Next::Request) && await_request(&mut client.conn, gateway).await {
        (client, next) = stages.serve(client).await;
    }
    match next {
        // Boxed, or every connection would hold the room for it.
        Next::Linger => Box::pin(linger(&mut client.conn)).await,
        Next::Tunnel(mut lease) => {
            Box::pin(tunnel::run(&mut client.conn, &mut lease.conn, gateway.rules.timeouts.tunnel)).await;
        }
        Next::Request | Next::Close => {}
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

/// Waits for the first byte of a request; false where none comes. An empty line is none: some clients send one behind a body
/// (RFC 9112 section 2.2), and would take the answer to a request that never came for that to their next.
async fn await_request(client: &mut Conn, gateway: &Gateway) -> bool {
    if has_begun(client.reader.data()) {
        return true;
    }
    client.reader.set_idle(true);
    client.reader.deadline(gateway.rules.timeouts.idle);
    let mut received = client.reader.fill(INPUT_START).await;
    while received.is_ok() && !has_begun(client.reader.data()) {
        received = client.reader.fill(INPUT_START).await;
    }
    client.reader.set_idle(false);
    received.is_ok()
}

fn has_begun(data: &[u8]) -> bool {
    !matches!(data, b"" | b"\r" | b"\r\n")
}

/// The request at hand: what all its parts share.
struct Request<'r> {
    client: &'r mut Conn,
    peer: &'r Peer,
    gateway: &'r Gateway,
    scratch: &'r mut Scratch,
    /// When its head was complete: the time of its decision, and what durations count from.
    started: Micros,
    /// Its route, once that is known.
    route: Option<usize>,
}

/// What the limits say.
enum Verdict {
    Pass,
    /// Holds who says so.
    Deny(&'static str),
    Unavailable(StoreFault),
}

impl Request<'_> {
    /// The whole way of one request.
    async fn serve(&mut self) -> Next {
        if let Err(failure) = self.read_head().await {
            let Some(failure) = failure else { return Next::Close };
            let RequestHead { version, kind, .. } = self.scratch.head;
            self.scratch.head = RequestHead { version, kind, ..RequestHead::default() };
            self.scratch.endpoint.clear();
            self.take_request_id();
            return self.refuse(&failure).await;
        }
        self.take_request_id();
        match self.place() {
            Ok(()) => {}
            Err(failure @ Failure::Refused(Refusal::BodyTooLarge)) => return self.refuse(&failure).await,
            Err(failure) => return self.answer(&failure).await,
        }
        match self.decide().await {
            Verdict::Pass if self.scratch.head.max_forwards == Some(0) => self.answer_as_the_last().await,
            Verdict::Pass => self.go_on().await,
            Verdict::Deny(by) => self.deny(by).await,
            Verdict::Unavailable(fault) => self.answer(&Failure::StoreClosed(fault)).await,
        }
    }

    /// Reads on to the end of the head. `Err(None)`: the client has gone.
    async fn read_head(&mut self) -> Result<(), Option<Failure>> {
        self.scratch.request_id.clear();
        self.scratch.fields.clear();
        let rules = &self.gateway.rules;
        let mut looked_at = 0;
        loop {
            let data = self.client.reader.data();
            // Parsed at its start, after its first line and at its end only, so that one byte at a time costs no more
            // than it must.
            let is_worth_it = looked_at == 0
                || data.len() >= rules.bounds.head_max
                || ends_first_line(data, looked_at)
                || has_empty_line(data, looked_at);
            if is_worth_it {
                match self.scratch.head.parse(data, &rules.bounds) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(refusal) => return Err(Some(Failure::Refused(refusal))),
                }
            }
            if looked_at == 0 {
                self.client.reader.deadline(rules.timeouts.head);
            }
            looked_at = data.len();
            self.client.reader.fill(rules.bounds.head_max).await.map_err(|end| match end {
                End::TimedOut => Some(Failure::TooSlow),
                End::Closed | End::Broken => None,
            })?;
        }
        self.client.reader.no_deadline();
        self.started = self.gateway.clock.now();
        Ok(())
    }

    /// Keeps the client's request id, or makes one.
    fn take_request_id(&mut self) {
        let id = &mut self.scratch.request_id;
        match client_request_id(&self.scratch.head, self.client.reader.data()) {
            Some(given) => id.extend_from_slice(given),
            None => push_request_id(id, fastrand::u128(..)),
        }
    }

    /// Who asks, for what, where it goes, and which limits apply.
    fn place(&mut self) -> Result<(), Failure> {
        let rules = &self.gateway.rules;
        let Scratch { head, caller, endpoint, target, sheet, .. } = &mut *self.scratch;
        let buffer = self.client.reader.data();
        rules.identity.mark_aliases(head, buffer);
        identity::endpoint(head.forwarded_target(buffer), endpoint);
        rules.identity.of(head, buffer, self.peer.ip, caller)?;
        let host = host_without_port(head.host.of(buffer));
        let asked = Asked { host, path: endpoint, head, buffer, trusted: caller.via_trusted };
        let number = rules.routes.longest(&asked).ok_or(Failure::NoRoute)?;
        self.route = Some(number);
        let route = &rules.route_table[number];
        route.prepare(head, buffer, target).map_err(Failure::Refused)?;
        let subject = Subject { head, buffer, host, endpoint, route: &route.label, caller };
        rules.policy.apply(&subject, sheet).map_err(Failure::Refused)
    }

    async fn decide(&mut self) -> Verdict {
        let Gateway { rules, limiter, metrics, clock, .. } = self.gateway;
        let sheet = &mut self.scratch.sheet;
        if sheet.applied().is_empty() {
            return Verdict::Pass;
        }
        let decision = limiter.decide(&rules.policy, sheet, self.started, now).await;
        if limiter.is_remote() && !matches!(decision, Decision::DenyKnown | Decision::AllowLeased) {
            metrics.decision_took(clock.now().since(self.started));
        }
        self.gateway.count(sheet, decision);
        match decision {
            Decision::Allow | Decision::AllowLeased | Decision::LocalAllow(_) => {
                self.log_shadow();
                reply::rate_limit_fields(&mut self.scratch.fields, &rules.policy, &self.scratch.sheet);
                Verdict::Pass
            }
            Decision::Deny | Decision::DenyKnown | Decision::LocalDeny(_) => {
                self.log_shadow();
                Verdict::Deny(match decision {
                    Decision::DenyKnown => "cache",
                    Decision::LocalDeny(_) => "local",
                    _ => "store",
                })
            }
            Decision::FailOpen(_) => Verdict::Pass,
            Decision::FailClosed(fault) => Verdict::Unavailable(fault),
        }
    }

    /// Answers 429, with the reason in fields, body and log.
    async fn deny(&mut self, by: &'static str) -> Next {
        let policy = &self.gateway.rules.policy;
        let Some(denial) = Denial::of(policy, &self.scratch.sheet) else { return Next::Close };
        self.log_denial(&denial, by);
        let keep_alive = self.can_go_on();
        let mut out = take(&mut self.scratch.back);
        out.clear();
        reply::rate_limit_fields(&mut self.scratch.fields, policy, &self.scratch.sheet);
        reply::too_many(
            &mut out,
            &denial,
            &self.scratch.fields,
            &addressee(self.scratch, keep_alive, &self.gateway.date.borrow()),
        );
        self.scratch.back = out;
        self.send(429, keep_alive).await
    }

    /// Goes where the route leads.
    async fn go_on(&mut self) -> Next {
        let Some(route) = self.route else { return Next::Close };
        match &self.gateway.rules.route_table[route].goal {
            Goal::Upstream(way) => self.forward(way).await,
            Goal::Redirect(redirect) => self.redirect(redirect).await,
        }
    }

    /// Tells the client where to ask instead.
    async fn redirect(&mut self, redirect: &Redirect) -> Next {
        let keep_alive = self.can_go_on();
        let mut out = take(&mut self.scratch.back);
        out.clear();
        let Scratch { target, fields, .. } = &*self.scratch;
        reply::redirect(
            &mut out,
            redirect,
            target,
            fields,
            &addressee(self.scratch, keep_alive, &self.gateway.date.borrow()),
        );
        self.scratch.back = out;
        self.send(redirect.status, keep_alive).await
    }

    /// Forwards to the route's upstream; our own answer where that fails.
    async fn forward(&mut self, way: &Way) -> Next {
        let upstream = way.upstream;
        let keep_alive = self.scratch.head.keep_alive && !self.gateway.draining.get();
        let peer = &self.peer.text;
        match relay::exchange(self.client, self.gateway, self.scratch, peer, way, keep_alive).await {
            Outcome::Done { status, keep_alive } => {
                self.count_answer(status);
                match keep_alive {
                    true => Next::Request,
                    false => Next::Linger,
                }
            }
            Outcome::Cut { status, by } => {
                self.count_answer(status);
                self.log_cut(status, by, upstream);
                if self.scratch.head.version == Version::Http10 {
                    // Its body may end with the connection: only a reset tells that this is not its end.
                    self.client.abort();
                }
                Next::Close
            }
            Outcome::Switched(lease) => {
                self.count_answer(101);
                Next::Tunnel(lease)
            }
            Outcome::Abandoned => {
                self.count_answer(CLIENT_GONE);
                Next::Close
            }
            Outcome::Failed { failure, is_whole } => {
                self.log_trouble(&failure, upstream);
                let keep_alive = keep_alive && is_whole;
                self.write_failure(&failure, keep_alive);
                match (self.send_out(failure.answer().status).await, keep_alive) {
                    (false, _) => Next::Close,
                    (true, true) => Next::Request,
                    (true, false) => Next::Linger,
                }
            }
        }
    }

    /// Answers a request that may not be passed on any more: `Max-Forwards: 0` (RFC 9110 section 7.6.2).
    async fn answer_as_the_last(&mut self) -> Next {
        if self.scratch.head.kind == Method::Trace {
            return self.answer(&Failure::TraceEndsHere).await;
        }
        let keep_alive = self.can_go_on();
        let mut out = take(&mut self.scratch.back);
        out.clear();
        reply::options(
            &mut out,
            &self.scratch.fields,
            &addressee(self.scratch, keep_alive, &self.gateway.date.borrow()),
        );
        self.scratch.back = out;
        self.send(204, keep_alive).await
    }

    /// Answers a failure to a request whose head is still in the buffer; the connection goes on where it can.
    async fn answer(&mut self, failure: &Failure) -> Next {
        let keep_alive = self.can_go_on();
        self.write_failure(failure, keep_alive);
        self.send(failure.answer().status, keep_alive).await
    }

    /// Answers a failure and ends the connection.
    async fn refuse(&mut self, failure: &Failure) -> Next {
        self.write_failure(failure, false);
        self.send(failure.answer().status, false).await
    }

    fn write_failure(&mut self, failure: &Failure, keep_alive: bool) {
        self.log_refusal(failure);
        let mut out = take(&mut self.scratch.back);
        out.clear();
        let fields = &self.scratch.fields;
        reply::failure(&mut out, failure, fields, &addressee(self.scratch, keep_alive, &self.gateway.date.borrow()));
        self.scratch.back = out;
    }

    /// Whether the connection can carry another request after our own answer: the body must not be long.
    fn can_go_on(&self) -> bool {
        let head = &self.scratch.head;
        let is_short = match head.framing {
            Framing::Empty => true,
            Framing::Length(length) => {
                let here = self.client.reader.data().len().saturating_sub(head.len) as u64;
                here >= length || (length <= DISCARD_MAX && !head.expects_continue)
            }
            Framing::Chunked | Framing::UntilClose => false,
        };
        is_short && head.keep_alive && !self.gateway.draining.get()
    }

    /// Sends the answer that stands in `scratch.back`, and reads the rest of the request where the connection goes on.
    async fn send(&mut self, status: u16, keep_alive: bool) -> Next {
        if !self.send_out(status).await {
            return Next::Close;
        }
        if !keep_alive {
            return Next::Linger;
        }
        let reader = &mut self.client.reader;
        reader.consume(self.scratch.head.len);
        let Framing::Length(mut left) = self.scratch.head.framing else { return Next::Request };
        loop {
            let here = reader.data().len();
            let used = usize::try_from(left).unwrap_or(usize::MAX).min(here);
            reader.consume(used);
            left -= used as u64;
            if left == 0 {
                return Next::Request;
            }
            reader.deadline(self.gateway.rules.timeouts.body);
            if reader.fill(relay::PIECE_MAX).await.is_err() {
                return Next::Close;
            }
        }
    }

    /// Sends and counts what stands in `scratch.back`; false where the client does not take it.
    async fn send_out(&mut self, status: u16) -> bool {
        let sent = self.client.writer.send(&mut self.scratch.back, self.gateway.rules.timeouts.write).await;
        self.count_answer(status);
        sent.result.is_ok()
    }

    fn count_answer(&self, status: u16) {
        self.gateway.metrics.request(self.route, status, self.gateway.clock.now().since(self.started));
    }

    /// The client, where that is known and not the peer.
    fn client_behind(&self) -> Option<IpAddr> {
        let ip = self.scratch.caller.ip;
        (self.endpoint().is_some() && ip != self.peer.ip).then_some(ip)
    }

    /// What was asked for; `None` where the head could not be read.
    fn endpoint(&self) -> Option<&str> {
        let endpoint = &self.scratch.endpoint;
        (!endpoint.is_empty()).then(|| text(endpoint))
    }

    /// The server that was asked last, where one was.
    fn server(&self) -> Option<&str> {
        let server = &self.scratch.server;
        (!server.is_empty()).then_some(server)
    }

    fn method(&self) -> &str {
        text(self.scratch.head.method.of(self.client.reader.data()))
    }

    fn log_denial(&self, denial: &Denial<'_>, by: &'static str) {
        if !self.gateway.rules.log_denied {
            return;
        }
        let Take::Write { suppressed } = self.gateway.may_log_denial(self.started) else { return };
        tracing::info!(
            limit = denial.rule.name,
            rate = %denial.tier.quota.rate,
            burst = denial.tier.quota.burst,
            retry_after_ms = denial.retry_after_ms(),
            by,
            user = text(&self.scratch.caller.user),
            client = self.client_behind().map(display),
            peer = self.peer.text,
            method = self.method(),
            endpoint = text(&self.scratch.endpoint),
            request_id = text(&self.scratch.request_id),
            suppressed,
            "denied"
        );
    }

    /// Tells which limits in shadow mode would have denied the request.
    fn log_shadow(&self) {
        let policy = &self.gateway.rules.policy;
        let outcomes = self.scratch.sheet.outcomes();
        let rules = outcomes.filter(|(_, level)| level.short).map(|(applied, _)| policy.rule(applied));
        let mut names = rules.filter(|rule| rule.mode == Mode::Shadow).map(|rule| rule.name.as_str()).peekable();
        if names.peek().is_none() || !self.gateway.rules.log_denied {
            return;
        }
        let Take::Write { suppressed } = self.gateway.may_log_denial(self.started) else { return };
        tracing::info!(
            limits = names.collect::<Vec<_>>().join(","),
            user = text(&self.scratch.caller.user),
            client = self.client_behind().map(display),
            peer = self.peer.text,
            method = self.method(),
            endpoint = text(&self.scratch.endpoint),
            request_id = text(&self.scratch.request_id),
            suppressed,
            "would deny (shadow)"
        );
    }

    fn log_cut(&self, status: u16, by: BreakOff, upstream: usize) {
        let what = match by {
            // Clients leave all the time.
            BreakOff::Client => return,
            BreakOff::SlowClient => "cut off: the client took or sent too little in time",
            BreakOff::Backend(UpstreamError::Timeout) => "cut off: the backend paused for too long in its response",
            BreakOff::Backend(_) => "the backend broke off in its response",
        };
        let Take::Write { suppressed } = self.gateway.may_log_trouble(self.started) else { return };
        tracing::warn!(
            upstream = self.gateway.upstreams[upstream].settings().name,
            server = self.server(),
            status,
            endpoint = text(&self.scratch.endpoint),
            request_id = text(&self.scratch.request_id),
            client = self.client_behind().map(display),
            peer = self.peer.text,
            suppressed,
            "{what}"
        );
    }

    fn log_refusal(&self, failure: &Failure) {
        let answer = failure.answer();
        if answer.blame != "client" {
            return;
        }
        let Take::Write { suppressed } = self.gateway.may_log_refusal(self.gateway.clock.now()) else { return };
        tracing::info!(
            status = answer.status,
            reason = answer.detail,
            client = self.client_behind().map(display),
            peer = self.peer.text,
            endpoint = self.endpoint(),
            request_id = text(&self.scratch.request_id),
            suppressed,
            "refused"
        );
    }

    fn log_trouble(&self, failure: &Failure, upstream: usize) {
        let answer = failure.answer();
        if answer.blame != "upstream" {
            return;
        }
        let Take::Write { suppressed } = self.gateway.may_log_trouble(self.started) else { return };
        tracing::warn!(
            upstream = self.gateway.upstreams[upstream].settings().name,
            server = self.server(),
            status = answer.status,
            endpoint = text(&self.scratch.endpoint),
            request_id = text(&self.scratch.request_id),
            client = self.client_behind().map(display),
            peer = self.peer.text,
            suppressed,
            "{}",
            answer.detail
        );
    }
}

/// Whether the first line that is not empty ends in the bytes from `from` on.
fn ends_first_line(data: &[u8], from: usize) -> bool {
    let start = if data.starts_with(b"\r\n") { 2 } else { 0 };
    memchr::memchr(b'\n', &data[start..]).is_some_and(|at| start + at >= from)
}

/// Whether an empty line ends in the bytes from `from` on.
fn has_empty_line(data: &[u8], from: usize) -> bool {
    let tail = &data[from.saturating_sub(3)..];
    memchr::memchr_iter(b'\n', tail).any(|at| matches!(&tail[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("(not text)")
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

/// Lets the client read its answer although it may still be sending: closing with unread bytes would reset the
/// connection and take the answer with it (RFC 9112 section 9.6).
pub async fn linger(client: &mut Conn) {
    client.reader.set_finished();
    client.writer.finish().await;
    if client.reader.is_late() {
        // What it still sends goes nowhere, but a close would answer it with a reset.
        client.writer.hold(LINGER).await;
        return;
    }
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
