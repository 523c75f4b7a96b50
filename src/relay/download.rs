//! The response of one attempt on its way to the client: its heads, then its body. No IO of its own.

use super::{BreakOff, Ended, Flight, Heard, INTERIM_MAX, PIECE_MAX, Stage, gather};
use crate::conn::{End, Reader, Writer};
use crate::http::body::Decoder;
use crate::http::changes::NONE;
use crate::http::forward::{self, Delivery, LAST_CHUNK};
use crate::http::head::ResponseHead;
use crate::http::{BadResponse, Framing, Method, RESPONSE_BOUNDS, Version};
use crate::metrics::UpstreamError;
use crate::reply::Failure;
use crate::splice::Broken;
use std::cell::Cell;
use std::time::Duration;

/// The response on its way.
pub(super) struct Download<'f> {
    pub flight: &'f Flight<'f>,
    pub stage: &'f Cell<Stage>,
    pub version: Version,
    pub asked: Method,
    pub fields: &'f [u8],
    /// The protocols that the client offered to switch to.
    pub offer: &'f [u8],
    /// Whether the client's connection can carry another request: not before this one has come to its end.
    pub keep_alive: &'f Cell<bool>,
}

impl Download<'_> {
    pub async fn run(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        head: &mut ResponseHead,
        out: &mut Vec<u8>,
    ) -> Ended {
        match self.final_head(reader, writer, head, out).await {
            Ok(_) => self.pass_on(reader, writer, head, out).await,
            Err(ended) => ended,
        }
    }

    /// Passes on the response whose head has been read.
    pub async fn pass_on(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        head: &mut ResponseHead,
        out: &mut Vec<u8>,
    ) -> Ended {
        self.stage.set(Stage::Begun(head.status));
        self.flight.awaits_continue.set(false);
        reader.no_deadline();
        // Who has its answer may stop sending (RFC 9112 section 9.5); the response's own deadlines hold.
        self.flight.client.stop();
        let gateway = self.flight.gateway;
        gateway.metrics.upstream_took(gateway.clock.now().since(self.flight.asked));
        let framed = forward::delivered_framing(head.framing, self.version);
        let keep_alive = self.keep_alive.get() && framed != Framing::UntilClose && !gateway.draining.get();
        out.clear();
        let (version, asked, extra) = (self.version, self.asked, self.fields);
        let changes = &self.flight.way.response;
        forward::response(
            out,
            reader.data(),
            head,
            &Delivery { version, asked, keep_alive, extra, changes, date: &gateway.date.borrow() },
        );
        reader.consume(head.len);
        if head.status == 101 {
            let sent = writer.send(out, gateway.rules.timeouts.write).await;
            return sent.result.map_or_else(|end| Ended::Cut { status: 101, by: end.into() }, |()| Ended::Switched);
        }
        let mut body = Decoder::of_response(head.framing);
        match self.pass_body(reader, writer, &mut body, framed, out).await {
            Ok(()) => Ended::Answered {
                status: head.status,
                keep_alive,
                reusable: head.keep_alive && body.is_done() && reader.data().is_empty(),
            },
            Err(by) => Ended::Cut { status: head.status, by },
        }
    }

    /// Reads up to the final response's head, passing interim ones on; gives how many there were.
    pub async fn final_head(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        head: &mut ResponseHead,
        out: &mut Vec<u8>,
    ) -> Result<usize, Ended> {
        let mut interims = 0;
        loop {
            self.next_head(reader, head, interims).await?;
            let bad = |words| Err(Ended::failed(Failure::BadResponse(BadResponse(words)), Heard::of(reader, interims)));
            match head.status {
                101 if forward::accepts(reader.data(), head, self.offer) => return Ok(interims),
                101 => return bad("an upgrade nobody asked for"),
                100..200 if interims == INTERIM_MAX => return bad("too many interim responses"),
                100..200 => {
                    interims += 1;
                    self.flight.continued.set(self.flight.continued.get() || head.status == 100);
                    self.pass_interim(reader, writer, head, out).await?;
                    self.go_on_after_interim(reader);
                }
                _ => return Ok(interims),
            }
        }
    }

    /// Reads up to the end of a head, after so many interim ones.
    async fn next_head(&self, reader: &mut Reader, head: &mut ResponseHead, interims: usize) -> Result<(), Ended> {
        loop {
            let parsed = match reader.data() {
                [] => Ok(false),
                data => head.parse(data, &RESPONSE_BOUNDS, self.asked),
            };
            let heard = Heard::of(reader, interims);
            if parsed.map_err(|bad| Ended::failed(Failure::BadResponse(bad), heard))? {
                return Ok(());
            }
            reader.fill(RESPONSE_BOUNDS.head_max).await.map_err(|end| match end {
                End::TimedOut => Ended::failed(Failure::ResponseTimeout, heard),
                End::Closed | End::Broken => Ended::failed(Failure::BrokenOff, heard),
            })?;
        }
    }

    /// An interim response is a sign of life; the first 100 makes it the client's turn.
    fn go_on_after_interim(&self, reader: &Reader) {
        let flight = self.flight;
        match flight.continued.get() && flight.awaits_continue.replace(false) {
            true => {
                reader.no_deadline();
                flight.client.deadline(flight.gateway.rules.timeouts.body);
            }
            false => reader.move_deadline(flight.way.patience.response),
        }
    }

    /// Passes an interim response on to a client that knows them.
    async fn pass_interim(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        head: &ResponseHead,
        out: &mut Vec<u8>,
    ) -> Result<(), Ended> {
        if self.version == Version::Http11 {
            out.clear();
            let (version, asked) = (self.version, self.asked);
            let delivery = Delivery { version, asked, keep_alive: true, extra: &[], changes: &NONE, date: "" };
            forward::response(out, reader.data(), head, &delivery);
            self.stage.set(Stage::Interim);
            let sent = writer.send(out, self.flight.gateway.rules.timeouts.write).await;
            sent.result.map_err(|end| Ended::Cut { status: head.status, by: end.into() })?;
            self.stage.set(Stage::Nothing);
        }
        reader.consume(head.len);
        Ok(())
    }

    /// Streams the response body behind the head that stands in `out`.
    async fn pass_body(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        body: &mut Decoder,
        framed: Framing,
        out: &mut Vec<u8>,
    ) -> Result<(), BreakOff> {
        let write = self.flight.gateway.rules.timeouts.write;
        loop {
            let Flight { gateway, way, .. } = self.flight;
            let stays_here = |name: &[u8]| gateway.rules.identity.watches_like(name) || way.response.touches(name);
            let bad = gather(stays_here, reader, body, framed, out).is_err();
            if !out.is_empty() {
                writer.send(out, write).await.result?;
                out.clear();
            }
            if bad {
                return Err(BreakOff::Backend(UpstreamError::BadResponse));
            }
            let spliced = framed != Framing::Chunked && self.splice(reader, writer, body)?;
            if !spliced && body.is_done() {
                return Ok(());
            }
            if !spliced && reader.data().is_empty() && self.is_over(reader, body).await? {
                return self.end_by_close(writer, framed, out, write).await;
            }
            if spliced || (framed != Framing::Chunked && body.take_data(reader.data().len())) {
                writer.send_from(reader, write).await?;
            }
        }
    }

    /// Passes on what has come of the body, where it can go as it is and is much; what the reader holds then has been counted.
    fn splice(&self, reader: &mut Reader, writer: &mut Writer, body: &mut Decoder) -> Result<bool, BreakOff> {
        let left = body.data_left();
        if left == 0 {
            return Ok(false);
        }
        let bytes = writer.splice(reader, left, &self.flight.gateway.splicer).map_err(|side| match side {
            Broken::From => BreakOff::Backend(UpstreamError::Receive),
            Broken::To(_) => BreakOff::Client,
        })?;
        Ok(bytes > 0 && body.take_data(bytes))
    }

    /// Receives more of the body; true where the close was its proper end.
    async fn is_over(&self, reader: &mut Reader, body: &Decoder) -> Result<bool, BreakOff> {
        reader.deadline(self.flight.way.patience.response);
        let received = reader.fill(PIECE_MAX).await;
        // From here it is the client that may be slow.
        reader.no_deadline();
        match received {
            Ok(_) => Ok(false),
            Err(End::Closed) if body.ends_at_close() => Ok(true),
            Err(End::TimedOut) => Err(BreakOff::Backend(UpstreamError::Timeout)),
            Err(End::Closed | End::Broken) => Err(BreakOff::Backend(UpstreamError::Receive)),
        }
    }

    async fn end_by_close(
        &self,
        writer: &mut Writer,
        framed: Framing,
        out: &mut Vec<u8>,
        write: Duration,
    ) -> Result<(), BreakOff> {
        if framed != Framing::Chunked {
            return Ok(());
        }
        out.extend_from_slice(LAST_CHUNK);
        out.extend_from_slice(b"\r\n");
        writer.send(out, write).await.result?;
        out.clear();
        Ok(())
    }
}
