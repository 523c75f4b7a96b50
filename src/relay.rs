//! One request and its response across a backend: attempts, both bodies streamed, nothing held longer than a buffer.
//!
//! No IO of its own. A request that is whole in the buffer is sent, then its response read; one whose body is still
//! coming runs both directions side by side, so that an early response, `100 Continue` and an echoing backend all work. A
//! failed attempt is repeated only while nothing has reached the client and the request cannot take effect twice.

mod download;
mod tries;
mod upload;

use crate::conn::{Conn, End, Reader, Timer};
use crate::gateway::{Gateway, Scratch};
use crate::http::body::{BadBody, Decoder};
use crate::http::forward::{self, Hop, LAST_CHUNK};
use crate::http::head::RequestHead;
use crate::http::{Framing, Method, Refusal, trailers};
use crate::identity::Caller;
use crate::metrics::UpstreamError;
use crate::reply::Failure;
use crate::time::Micros;
use crate::upstream::pool::{Lease, Upstream};
use crate::upstream::proxy_protocol::Line;
use crate::upstream::way::Way;
use download::Download;
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tries::Tries;
use upload::{Body, Lost, Upload};

/// Bytes gathered for one write, and bytes of a body read at once.
pub const PIECE_MAX: usize = 64 * 1024;

/// Interim responses passed on before the final one; a backend that sends more is broken.
const INTERIM_MAX: usize = 16;

/// How an exchange ended.
pub enum Outcome {
    /// The client has a whole response of this status.
    Done {
        /// The backend's status.
        status: u16,
        /// Whether the connection can carry another request.
        keep_alive: bool,
    },
    /// Nothing of a response was sent: the client gets our own answer.
    Failed {
        /// What it is told.
        failure: Failure,
        /// Whether its request was read to the end, so that the connection can carry another.
        is_whole: bool,
    },
    /// Part of a response was sent and the rest is lost: the client's connection must end here.
    Cut {
        /// The response's status.
        status: u16,
        /// Who broke off.
        by: BreakOff,
    },
    /// The client has a 101, and this connection is the other end of its tunnel.
    Switched(Box<Lease>),
    /// The client left before anything of a response was sent.
    Abandoned,
}

/// Who ended an exchange before its response was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakOff {
    /// The backend, in this way.
    Backend(UpstreamError),
    /// The client, which takes too little of it or sends too little.
    SlowClient,
    /// The client, which has gone or sends nonsense.
    Client,
}

impl From<End> for BreakOff {
    /// For what is sent to the client.
    fn from(end: End) -> BreakOff {
        match end {
            End::TimedOut => BreakOff::SlowClient,
            End::Closed | End::Broken => BreakOff::Client,
        }
    }
}

/// Forwards the request in `scratch.head`, the bytes of which start the client's buffer.
pub async fn exchange(
    client: &mut Conn,
    gateway: &Gateway,
    scratch: &mut Scratch,
    hop_peer: &str,
    way: &Way,
    keep_alive: bool,
) -> Outcome {
    let upstream = &gateway.upstreams[way.upstream];
    let mut body = match prepare(client, gateway, scratch, hop_peer, way) {
        Ok(body) => body,
        Err(refusal) => return Outcome::Failed { failure: Failure::Refused(refusal), is_whole: false },
    };
    let may_repeat = scratch.head.kind.is_idempotent() && body.is_done();
    let Ok(line) = line(client, upstream, &scratch.caller) else { return Outcome::Abandoned };
    let mut tries = Tries::new(gateway, way, &scratch.caller, line, may_repeat);
    let watching = client.watch(!body.is_done());
    loop {
        let mut lease = match tries.open(&watching).await {
            Ok(lease) => lease,
            Err(why) => return tries.lost(why.outcome(body.is_done()), &mut scratch.server),
        };
        watching.waits_for(Some(&lease.conn));
        let sent = lease.conn.writer.send(&mut scratch.out, way.patience.response).await;
        if sent.result.is_err() {
            if watching.is_gone() {
                return Outcome::Abandoned;
            }
            if tries.again(lease.reused, sent.bytes == 0, UpstreamError::Send) {
                tries.leave(lease);
                continue;
            }
        }
        let flight = Flight::new(gateway, way, client, keep_alive, tries.patience());
        let ended = match body.is_done() || sent.result.is_err() {
            true => flight.answer(client, &mut lease, scratch, body.is_done(), &mut tries).await,
            // Boxed, or every connection would hold the room for two directions at once.
            false => Box::pin(flight.both_ways(client, &mut lease, scratch, &mut body)).await,
        };
        let is_gone = watching.is_gone();
        match ended {
            Ended::Unwanted => continue,
            Ended::Answered { status, keep_alive, reusable } => {
                tries.answered(status);
                flight.finish(lease, reusable && sent.result.is_ok() && flight.has_surely_read(&scratch.head));
                return Outcome::Done { status, keep_alive };
            }
            Ended::Switched => {
                tries.answered(101);
                return Outcome::Switched(Box::new(lease));
            }
            Ended::Cut { status, by } => {
                let by = if is_gone { BreakOff::Client } else { by };
                if let BreakOff::Backend(fault) = by {
                    tries.fail(fault);
                }
                return tries.lost(Outcome::Cut { status, by }, &mut scratch.server);
            }
            Ended::Failed { .. } if is_gone => return Outcome::Abandoned,
            Ended::Failed { failure, heard } => {
                if tries.again_after(&failure, heard, lease.reused) {
                    tries.leave(lease);
                    continue;
                }
                let is_whole = response_error(&failure).is_some() && body.is_done();
                return tries.lost(Outcome::Failed { failure, is_whole }, &mut scratch.server);
            }
        }
    }
}

/// Whom a connection is for, where the upstream is told.
fn line(client: &Conn, upstream: &Upstream, caller: &Caller) -> Result<Option<Line>, Gone> {
    match upstream.tells_client() {
        true => client.ends().map(|ends| Some(Line::of(ends, caller.ip))).ok_or(Gone),
        false => Ok(None),
    }
}

/// The client has left, and taken its address with it. Without that a connection would count as the gateway's own, which
/// backends may trust with more.
struct Gone;

/// Writes the head for the backend, and as much of the body as is there, into `scratch.out`.
fn prepare(
    client: &mut Conn,
    gateway: &Gateway,
    scratch: &mut Scratch,
    hop_peer: &str,
    way: &Way,
) -> Result<Body, Refusal> {
    let authority = &gateway.upstreams[way.upstream].authority;
    let hop = Hop {
        peer: hop_peer,
        trusted: scratch.caller.via_trusted,
        request_id: &scratch.request_id,
        target: (!scratch.target.is_empty()).then_some(&scratch.target),
        authority,
        changes: &way.request,
    };
    scratch.out.clear();
    scratch.offer.clear();
    if scratch.head.upgrades {
        forward::offer(&mut scratch.offer, client.reader.data(), &scratch.head);
    }
    forward::request(&mut scratch.out, client.reader.data(), &scratch.head, &hop);
    client.reader.consume(scratch.head.len);
    let mut body = Body::new(&scratch.head, way, !client.reader.data().is_empty());
    body.gather(gateway, way, &mut client.reader, &mut scratch.out)?;
    Ok(body)
}

fn response_error(failure: &Failure) -> Option<UpstreamError> {
    match failure {
        Failure::BrokenOff => Some(UpstreamError::Receive),
        Failure::BadResponse(_) => Some(UpstreamError::BadResponse),
        Failure::ResponseTimeout => Some(UpstreamError::Timeout),
        _ => None,
    }
}

/// Decodes what `reader` holds and appends it to `out`, framed anew, up to about [`PIECE_MAX`] bytes; the end of the body
/// too, without the trailers that stay here. Gives the bytes of data.
fn gather(
    stays_here: impl Fn(&[u8]) -> bool,
    reader: &mut Reader,
    body: &mut Decoder,
    framed: Framing,
    out: &mut Vec<u8>,
) -> Result<u64, BadBody> {
    let was_done = body.is_done();
    let mut moved = 0;
    while !body.is_done() && !reader.data().is_empty() && out.len() < PIECE_MAX {
        let step = body.step(reader.data())?;
        let data = &reader.data()[step.data];
        moved += data.len() as u64;
        match framed {
            Framing::Chunked => forward::chunk(out, data),
            _ => out.extend_from_slice(data),
        }
        reader.consume(step.used);
    }
    if body.is_done() && !was_done && framed == Framing::Chunked {
        out.extend_from_slice(LAST_CHUNK);
        trailers::append(out, body.trailers(), stays_here);
        out.extend_from_slice(b"\r\n");
    }
    Ok(moved)
}

/// How far the response has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing of it was written: our own answer is possible.
    Nothing,
    /// An interim response is being written.
    Interim,
    /// The final response with this status has begun.
    Begun(u16),
}

/// What came back of an attempt that failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Not one byte.
    Nothing,
    /// Some, of which the client knows nothing.
    Something,
    /// The client knows of it, or is itself to blame.
    PassedOn,
}

impl Heard {
    /// Of a response whose head is not whole, after so many interim ones.
    fn of(reader: &Reader, interims: usize) -> Heard {
        match (interims, reader.data()) {
            (0, []) => Heard::Nothing,
            (0, _) => Heard::Something,
            _ => Heard::PassedOn,
        }
    }
}

/// How one attempt ended.
enum Ended {
    /// The response was not passed on, since another server is asked instead.
    Unwanted,
    /// The client has a 101.
    Switched,
    Answered {
        status: u16,
        keep_alive: bool,
        reusable: bool,
    },
    Failed {
        failure: Failure,
        heard: Heard,
    },
    Cut {
        status: u16,
        by: BreakOff,
    },
}

impl Ended {
    fn failed(failure: Failure, heard: Heard) -> Ended {
        Ended::Failed { failure, heard }
    }
}

/// One attempt on an open connection.
struct Flight<'g> {
    gateway: &'g Gateway,
    way: &'g Way,
    keep_alive: bool,
    /// For the head of the response.
    patience: Duration,
    /// When the request, or the first part of it, was sent.
    asked: Micros,
    /// Of the client.
    client: Timer,
    /// The backend has said 100 (Continue).
    continued: Cell<bool>,
    /// The client waits for that with its body, and nobody else is waited for.
    awaits_continue: Cell<bool>,
}

impl<'g> Flight<'g> {
    fn new(gateway: &'g Gateway, way: &'g Way, client: &Conn, keep_alive: bool, patience: Duration) -> Flight<'g> {
        Flight {
            gateway,
            way,
            keep_alive,
            patience,
            asked: gateway.clock.now(),
            client: client.reader.timer(),
            continued: Cell::new(false),
            awaits_continue: Cell::new(false),
        }
    }

    /// The request is sent: reads the response and passes it on.
    async fn answer(
        &self,
        client: &mut Conn,
        lease: &mut Lease,
        scratch: &mut Scratch,
        is_whole: bool,
        tries: &mut Tries<'_>,
    ) -> Ended {
        lease.conn.reader.deadline(self.patience);
        let stage = Cell::new(Stage::Nothing);
        let keep_alive = Cell::new(self.keep_alive && is_whole);
        let download = Download {
            flight: self,
            stage: &stage,
            version: scratch.head.version,
            asked: scratch.head.kind,
            fields: &scratch.fields,
            offer: &scratch.offer,
            keep_alive: &keep_alive,
        };
        let (reader, writer, head) = (&mut lease.conn.reader, &mut client.writer, &mut scratch.response);
        let interims = match download.final_head(reader, writer, head, &mut scratch.back).await {
            Ok(interims) => interims,
            Err(ended) => return ended,
        };
        if interims == 0 && tries.again_instead_of(head.status) {
            return Ended::Unwanted;
        }
        tries.responded(head.status);
        download.pass_on(reader, writer, head, &mut scratch.back).await
    }

    /// The rest of the request goes out while the response comes in.
    async fn both_ways(&self, client: &mut Conn, lease: &mut Lease, scratch: &mut Scratch, body: &mut Body) -> Ended {
        self.awaits_continue.set(body.awaits_continue);
        let stage = Cell::new(Stage::Nothing);
        let keep_alive = Cell::new(false);
        let upload = Upload { flight: self, stage: &stage, response: lease.conn.reader.timer() };
        let download = Download {
            flight: self,
            stage: &stage,
            version: scratch.head.version,
            asked: scratch.head.kind,
            fields: &scratch.fields,
            offer: &scratch.offer,
            keep_alive: &keep_alive,
        };
        let mut sending = pin!(upload.run(&mut client.reader, &mut lease.conn.writer, body, &mut scratch.out));
        let mut receiving =
            pin!(download.run(&mut lease.conn.reader, &mut client.writer, &mut scratch.response, &mut scratch.back));
        let mut uploaded: Option<Result<(), Lost>> = None;
        poll_fn(|context| {
            if uploaded.is_none()
                && let Poll::Ready(result) = sending.as_mut().poll(context)
            {
                uploaded = Some(result);
                keep_alive.set(self.keep_alive && result.is_ok());
                if let (Err(Lost::Closed), Stage::Begun(_)) = (result, stage.get()) {
                    // It has its answer, or soon will: what it waits for is that.
                    self.client.has_sent();
                } else if let Some(failure) = result.err().and_then(Lost::failure) {
                    let by = if failure == Failure::TooSlow { BreakOff::SlowClient } else { BreakOff::Client };
                    return Poll::Ready(match stage.get() {
                        Stage::Nothing => Ended::failed(failure, Heard::PassedOn),
                        Stage::Interim => Ended::Cut { status: failure.answer().status, by },
                        Stage::Begun(status) => Ended::Cut { status, by },
                    });
                }
            }
            let received = receiving.as_mut().poll(context);
            if uploaded.is_none() && matches!(stage.get(), Stage::Begun(_)) {
                // A backend may answer without taking the rest; the deadlines of its answer hold.
                upload.response.no_send_deadline();
            }
            received.map(|ended| match (ended, uploaded) {
                (ended, Some(Ok(()))) => ended,
                // Answered before the request was over: neither connection can carry another.
                (Ended::Answered { status, .. }, _) => Ended::Answered { status, keep_alive: false, reusable: false },
                (ended, _) => ended,
            })
        })
        .await
    }

    /// Whether the backend is to be trusted to have taken the body for this request's. One that answers without reading
    /// it may take it for the next request, which would be another client's. So the methods whose purpose is a body are
    /// trusted with one, and nobody who was to say 100 first and did not.
    fn has_surely_read(&self, head: &RequestHead) -> bool {
        let is_usual =
            head.framing == Framing::Empty || matches!(head.kind, Method::Post | Method::Put | Method::Patch);
        is_usual && (!head.expects_continue || self.continued.get())
    }

    /// Keeps the connection where nothing is due on it, and the buffer in any case.
    fn finish(&self, mut lease: Lease, reusable: bool) {
        let Some(buffer) = lease.conn.reader.reclaim() else { return };
        let rest = match reusable {
            true => {
                lease.conn.reader.no_deadline();
                let upstream = &self.gateway.upstreams[self.way.upstream];
                upstream.keep(lease, buffer, self.gateway.deadlines.coarse_now())
            }
            false => Some(buffer),
        };
        if let Some(buffer) = rest {
            self.gateway.return_buffer(buffer);
        }
    }
}
