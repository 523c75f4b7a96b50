//! The body of a request on its way to the backend, while its response may be coming. No IO of its own.

use super::{Flight, PIECE_MAX, Stage, gather};
use crate::conn::{End, Reader, Timer, Writer};
use crate::gateway::Gateway;
use crate::http::body::Decoder;
use crate::http::head::RequestHead;
use crate::http::{Framing, Refusal};
use crate::reply::Failure;
use crate::splice::Broken;
use crate::upstream::way::Way;
use std::cell::Cell;

const CUT_SHORT: Failure = Failure::Refused(Refusal::Bad("the request body was cut short"));

/// A request body, as far as it has come.
pub(super) struct Body {
    decoder: Decoder,
    framed: Framing,
    /// Bytes that may still come before the body is too large.
    room: u64,
    /// The client sends none of it before a 100 (Continue), as far as is known.
    pub awaits_continue: bool,
}

impl Body {
    pub fn new(head: &RequestHead, way: &Way, has_begun: bool) -> Body {
        Body {
            decoder: Decoder::new(head.framing),
            framed: head.framing,
            room: way.body_max.unwrap_or(u64::MAX),
            awaits_continue: head.expects_continue && !has_begun,
        }
    }

    /// Whether all of it has come.
    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Moves what the client has sent into `out`, framed for the backend.
    pub fn gather(
        &mut self,
        gateway: &Gateway,
        way: &Way,
        reader: &mut Reader,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let stays_here = |name: &[u8]| gateway.rules.identity.watches_like(name) || way.request.touches(name);
        let moved = gather(stays_here, reader, &mut self.decoder, self.framed, out)?;
        self.room = self.room.checked_sub(moved).ok_or(Refusal::BodyTooLarge)?;
        Ok(())
    }

    /// Bytes to come that may go on as they are: those of a body whose length was checked at its head.
    fn left_as_it_is(&self) -> u64 {
        if self.framed == Framing::Chunked { 0 } else { self.decoder.data_left() }
    }

    /// Takes that many bytes as they are, where they may be.
    fn take_all(&mut self, bytes: usize) -> bool {
        self.framed != Framing::Chunked && self.decoder.take_data(bytes)
    }
}

/// Why a body did not reach the backend.
#[derive(Clone, Copy)]
pub(super) enum Lost {
    /// The client is to blame.
    Client(Failure),
    /// The client sends no more of it.
    Closed,
    /// The backend stopped reading.
    Backend,
}

impl Lost {
    /// What the client is told, where it is to blame.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Lost::Client(failure) => Some(failure),
            Lost::Closed => Some(CUT_SHORT),
            Lost::Backend => None,
        }
    }
}

/// The body on its way.
pub(super) struct Upload<'f> {
    pub flight: &'f Flight<'f>,
    /// Of the response.
    pub stage: &'f Cell<Stage>,
    /// The response's deadline.
    pub response: Timer,
}

impl Upload<'_> {
    /// Streams the body; arms the response's deadline when it is over.
    pub async fn run(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        body: &mut Body,
        out: &mut Vec<u8>,
    ) -> Result<(), Lost> {
        let sent = self.pass(reader, writer, body, out).await;
        if sent.is_ok() {
            reader.no_deadline();
            self.flight.client.has_sent();
        }
        // A backend that stopped reading may have answered before.
        if !matches!((sent, self.stage.get()), (Err(Lost::Client(_) | Lost::Closed), _) | (_, Stage::Begun(_))) {
            self.response.deadline(self.flight.patience);
        }
        sent
    }

    async fn pass(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        body: &mut Body,
        out: &mut Vec<u8>,
    ) -> Result<(), Lost> {
        let Flight { gateway, way, .. } = self.flight;
        let within = way.patience.response;
        while !body.is_done() {
            let spliced = self.splice(reader, writer, body)?;
            if !spliced && reader.data().is_empty() {
                self.receive(reader).await?;
            }
            if self.flight.awaits_continue.replace(false) {
                // It did not wait for it.
                self.response.stop();
            }
            // From here it is the backend that may be slow.
            reader.no_deadline();
            out.clear();
            let sent = match spliced || body.take_all(reader.data().len()) {
                true => writer.send_from(reader, within).await,
                false => {
                    let gathered = body.gather(gateway, way, reader, out);
                    gathered.map_err(|refusal| Lost::Client(Failure::Refused(refusal)))?;
                    writer.send(out, within).await.result
                }
            };
            sent.map_err(|_| Lost::Backend)?;
        }
        Ok(())
    }

    /// Passes on what has come of the body, where it can go as it is and is much; what the reader holds then has been counted.
    /// Not while a response is being written: the client's socket is at work then.
    fn splice(&self, reader: &mut Reader, writer: &mut Writer, body: &mut Body) -> Result<bool, Lost> {
        let left = body.left_as_it_is();
        if left == 0 || self.flight.awaits_continue.get() || !matches!(self.stage.get(), Stage::Nothing) {
            return Ok(false);
        }
        let bytes = writer.splice(reader, left, &self.flight.gateway.splicer).map_err(|side| match side {
            Broken::From => Lost::Client(CUT_SHORT),
            Broken::To(_) => Lost::Backend,
        })?;
        Ok(bytes > 0 && body.take_all(bytes))
    }

    /// Receives more of the body.
    async fn receive(&self, reader: &mut Reader) -> Result<(), Lost> {
        match (self.flight.awaits_continue.get(), self.stage.get()) {
            (_, Stage::Begun(_)) => {}
            (true, _) => self.response.deadline(self.flight.patience),
            (false, _) => reader.deadline(self.flight.gateway.rules.timeouts.body),
        }
        let received = reader.fill(PIECE_MAX).await;
        received.map(drop).map_err(|end| match end {
            End::TimedOut => Lost::Client(Failure::TooSlow),
            End::Closed => Lost::Closed,
            End::Broken => Lost::Client(CUT_SHORT),
        })
    }
}
