//! After a 101: bytes both ways between a client and its backend, whatever they mean (RFC 9110 section 7.8).
//!
//! No IO of its own. The end of one direction is passed on and leaves the other open; a tunnel in which nothing moves for too long
//! is closed, and one that breaks on one side is broken on the other, so that no stream looks whole that is not.

use crate::conn::{Conn, End, INPUT_START, Reader, Timer, Writer};
use crate::relay::PIECE_MAX;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

/// Passes bytes on until both directions have ended, one has failed, or neither has moved for `idle`.
pub async fn run(client: &mut Conn, backend: &mut Conn, idle: Duration) {
    let waits = Waits { timers: [client.reader.timer(), backend.reader.timer()], idle };
    let ended = {
        let up = pin!(pump(&mut client.reader, &mut backend.writer, &waits));
        let down = pin!(pump(&mut backend.reader, &mut client.writer, &waits));
        both(up, down).await
    };
    if ended == Err(End::Broken) {
        client.abort();
        backend.abort();
    }
}

/// Runs two directions side by side, to the end of both or the failure of one.
async fn both(
    mut up: Pin<&mut impl Future<Output = Result<(), End>>>,
    mut down: Pin<&mut impl Future<Output = Result<(), End>>>,
) -> Result<(), End> {
    let (mut up_is_over, mut down_is_over) = (false, false);
    poll_fn(|context| {
        if !up_is_over && let Poll::Ready(result) = up.as_mut().poll(context) {
            up_is_over = true;
            if result.is_err() {
                return Poll::Ready(result);
            }
        }
        if !down_is_over && let Poll::Ready(result) = down.as_mut().poll(context) {
            down_is_over = true;
            if result.is_err() {
                return Poll::Ready(result);
            }
        }
        match up_is_over && down_is_over {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    })
    .await
}

/// The idle limit of both directions together.
struct Waits {
    timers: [Timer; 2],
    idle: Duration,
}

impl Waits {
    fn begin_anew(&self) {
        for timer in &self.timers {
            timer.deadline(self.idle);
        }
    }
}

/// One direction, to its end.
async fn pump(from: &mut Reader, to: &mut Writer, waits: &Waits) -> Result<(), End> {
    let mut received = from.data().len();
    loop {
        waits.begin_anew();
        if !from.data().is_empty() {
            to.send_from(from, waits.idle).await?;
            waits.begin_anew();
        }
        if received < INPUT_START {
            // Most tunnels rest most of the time.
            from.shrink();
        }
        received = match from.fill(PIECE_MAX).await {
            Ok(bytes) => bytes,
            Err(End::Closed) => {
                to.finish().await;
                return Ok(());
            }
            Err(end) => return Err(end),
        };
    }
}
