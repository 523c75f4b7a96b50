//! One row of the response table, one way of feeding it, through a running gateway: the backend sends bytes, and the
//! client must get an answer that is whole, a 502, or an end that it can see to be too early.

use super::feed::Way;
use super::message::{Answer, latin, raw, sorted};
use super::recorder::{Seen, receive};
use super::requests::{Bench, is_nothing};
use socket2::SockRef;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// What the backend does behind its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    Nothing,
    /// It ends the connection.
    End,
    /// It breaks the connection, once the bytes have been taken.
    Reset,
}

/// What the client is to get behind the interim answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gets {
    /// This status line, these fields, this body and these trailers.
    Whole { line: &'static str, fields: Vec<String>, body: String, trailers: Vec<String> },
    /// Our own 502 that blames the backend.
    BadGateway,
    /// An answer of this status and the beginning of a body, which can be seen not to be its end.
    Cut { status: u16, body: String },
}

#[derive(Clone, Debug)]
pub struct AnswerRow {
    pub section: &'static str,
    /// What the client asks.
    pub asks: &'static str,
    pub bytes: Vec<u8>,
    pub behind: Behind,
    /// The interim answers that the client gets.
    pub interims: Vec<String>,
    pub gets: Gets,
    /// Whether the next request goes over the same connection to the backend.
    pub is_kept: bool,
}

pub const ASK: &str = "GET /asked HTTP/1.1\r\nHost: h\r\n\r\n";
pub const ASK_HEAD: &str = "HEAD /asked HTTP/1.1\r\nHost: h\r\n\r\n";
pub const ASK_OLD: &str = "GET /asked HTTP/1.0\r\nHost: h\r\n\r\n";
pub const ASK_POST: &str = "POST /asked HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
pub const ASK_PATCH: &str = "PATCH /asked HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
pub const ASK_OPTIONS_BODY: &str = "OPTIONS /asked HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
pub const ASK_OTHER_BODY: &str = "PROPFIND /asked HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
pub const ASK_GET_BODY: &str = "GET /asked HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
pub const ASK_DELETE_BODY: &str =
    "DELETE /asked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
pub const ASK_EXPECTING: &str =
    "POST /asked HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi";
pub const ASK_UPGRADE: &str = "GET /asked HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Asked when the answer is over.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: h\r\n\r\n";

fn row(section: &'static str, text: &str, gets: Gets, is_kept: bool) -> AnswerRow {
    AnswerRow { section, asks: ASK, bytes: raw(text), behind: Behind::Nothing, interims: Vec::new(), gets, is_kept }
}

/// Answers that the client gets whole, the backend's connection being kept.
pub fn whole(
    section: &'static str,
    text: impl AsRef<str>,
    line: &'static str,
    fields: &[&str],
    body: &str,
) -> AnswerRow {
    let fields = fields.iter().map(ToString::to_string).collect();
    row(section, text.as_ref(), Gets::Whole { line, fields, body: body.into(), trailers: Vec::new() }, true)
}

/// Answers in place of which the client gets a 502.
pub fn bad<T: AsRef<str>>(section: &'static str, texts: impl IntoIterator<Item = T>) -> Vec<AnswerRow> {
    texts.into_iter().map(|text| row(section, text.as_ref(), Gets::BadGateway, false)).collect()
}

/// Answers that break off behind this much of the body.
pub fn cut(section: &'static str, text: impl AsRef<str>, body: &str) -> AnswerRow {
    row(section, text.as_ref(), Gets::Cut { status: 200, body: body.into() }, false)
}

impl AnswerRow {
    pub fn asking(self, asks: &'static str) -> AnswerRow {
        AnswerRow { asks, ..self }
    }

    pub fn behind(self, behind: Behind) -> AnswerRow {
        AnswerRow { behind, ..self }
    }

    fn is_to_head(&self) -> bool {
        self.asks.starts_with("HEAD ")
    }

    /// Where the final answer ends; what is malformed has no end.
    fn answer_end(&self) -> usize {
        let mut at = 0;
        while let Ok(Some((answer, used))) = Answer::read(&self.bytes[at..], self.is_to_head(), false) {
            at += used;
            if answer.status >= 200 {
                return at;
            }
        }
        self.bytes.len()
    }

    /// The backend's connection carries no other request.
    pub fn not_kept(self) -> AnswerRow {
        AnswerRow { is_kept: false, ..self }
    }

    pub fn interims(self, lines: &[&str]) -> AnswerRow {
        AnswerRow { interims: lines.iter().map(ToString::to_string).collect(), ..self }
    }

    pub fn trailers(mut self, lines: &[&str]) -> AnswerRow {
        if let Gets::Whole { trailers, .. } = &mut self.gets {
            *trailers = lines.iter().map(ToString::to_string).collect();
        }
        self
    }
}

/// What the client got.
struct Got {
    interims: Vec<Answer>,
    last: Answer,
    /// How the connection ended; `None` where it goes on.
    end: Option<Option<ErrorKind>>,
    /// Bytes behind the answer.
    rest: Vec<u8>,
}

/// Runs one row in one way.
pub fn exchange(bench: &mut Bench, row: &AnswerRow, way: Way) -> Result<(), String> {
    bench.recorder.look()?;
    is_nothing(&bench.recorder.take(), "before the row was sent")?;
    let mut client = bench.connect();
    bench.recorder.answers = false;
    bench.feed(&mut client, &[row.asks.as_bytes()], 0)?;
    bench.wait("the backend has the request", |recorder, _| Ok(!recorder.requests.is_empty()))?;
    let on = bench.recorder.take().0[0].on;
    answer(bench, row, way, on)?;
    let got = read(bench, row, &mut client)?;
    check(row, &got)?;
    bench.recorder.answers = true;
    let (next, seen) = ask_again(bench, client, got.end.is_some())?;
    if next.body.data != "/next" || next.status != 200 {
        return Err(format!("the next request got {next:?}"));
    }
    if (seen.on == on) != row.is_kept {
        let again = if seen.on == on { "was" } else { "was not" };
        return Err(format!("the backend's connection {again} used again; the client got {:?}", got.last));
    }
    if !row.is_kept {
        bench.wait("the backend's connection is ended", |recorder, _| Ok(recorder.link(on).is_none()))?;
    }
    is_nothing(&bench.recorder.take(), "behind the row")
}

/// Sends the row's bytes over the backend's connection.
fn answer(bench: &mut Bench, row: &AnswerRow, way: Way, on: usize) -> Result<(), String> {
    let link = bench.recorder.link(on).ok_or("the gateway has left before it was answered")?;
    let mut stream = link.stream.try_clone().unwrap();
    bench.feed(&mut stream, &way.pieces(&row.bytes), row.answer_end())?;
    match row.behind {
        Behind::Nothing => {}
        // A gateway that has refused the answer may have gone before.
        Behind::End => drop(stream.shutdown(Shutdown::Write)),
        Behind::Reset => {
            let (ours, theirs) = (stream.local_addr().unwrap(), stream.peer_addr());
            if let Ok(theirs) = theirs {
                bench.wait("the gateway has read the answer", |_, queues| Ok(queues.unread(theirs, ours) == 0))?;
            }
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
            bench.recorder.links.retain(|link| link.number != on);
        }
    }
    Ok(())
}

/// Reads up to the end of the final answer, or of the connection.
fn read(bench: &mut Bench, row: &AnswerRow, client: &mut TcpStream) -> Result<Got, String> {
    let mut bytes = Vec::new();
    let mut at = 0;
    let mut interims = Vec::new();
    let mut found: Option<(Answer, Option<Option<ErrorKind>>)> = None;
    let waited = bench.wait("the client has an answer", |_, _| {
        let before = bytes.len();
        let end = match receive(client, &mut bytes) {
            Ok(false) => None,
            Ok(true) => Some(None),
            Err(kind) => Some(Some(kind)),
        };
        if bytes.len() == before && end.is_none() {
            return Ok(false);
        }
        while let Some((answer, used)) = Answer::read(&bytes[at..], row.is_to_head(), end.is_some())? {
            let closes = answer.field("Connection") == Some("close") && end.is_none();
            if answer.status >= 200 && closes {
                return Ok(false);
            }
            at += used;
            if answer.status >= 200 {
                found = Some((answer, end));
                return Ok(true);
            }
            interims.push(answer);
        }
        match end {
            Some(end) => Err(format!("the stream ended ({end:?}) without an answer")),
            None => Ok(false),
        }
    });
    waited.map_err(|why| format!("{why}; the client got {:?}", latin(&bytes)))?;
    let (last, end) = found.ok_or("no answer")?;
    Ok(Got { interims, last, end, rest: bytes.split_off(at) })
}

fn check(row: &AnswerRow, got: &Got) -> Result<(), String> {
    let interims: Vec<String> = got.interims.iter().map(|interim| interim.head.line.clone()).collect();
    if interims != row.interims {
        return Err(format!("the interim answers are to be {:?}: {interims:?}", row.interims));
    }
    if !got.rest.is_empty() {
        return Err(format!("behind the answer, the client got {:?}", latin(&got.rest)));
    }
    let last = &got.last;
    let was_reset = matches!(got.end, Some(Some(_)));
    let is_right = match &row.gets {
        Gets::Whole { line, fields, body, trailers } => {
            let actual = with_known_date(&last.head.fields, fields);
            let same_fields = sorted(&actual) == sorted(fields) && sorted(&last.body.trailers) == sorted(trailers);
            last.head.line == *line && same_fields && last.body.data == *body && last.body.done && !was_reset
        }
        Gets::BadGateway => {
            let is_told = row.is_to_head() || last.is_problem("upstream");
            let is_502 = last.status == 502 && is_told && last.body.done;
            // The client's request was whole, so its connection goes on.
            is_502 && last.field("Connection") != Some("close") && got.end.is_none()
        }
        Gets::Cut { status, body } => {
            let is_seen = !last.body.done || was_reset;
            last.status == *status && last.body.data == *body && is_seen && got.end.is_some()
        }
    };
    match is_right {
        true => Ok(()),
        false => Err(format!("the client is to get\n    {:?}\n  and got (end {:?})\n    {last:?}", row.gets, got.end)),
    }
}

/// The fields with the time as `*`, where the row asks for one; else without it, unless it is the backend's.
fn with_known_date(actual: &[String], wanted: &[String]) -> Vec<String> {
    let asks = wanted.iter().any(|line| line == "Date: *");
    let known = |line: &String| match line.strip_prefix("Date: ") {
        Some(time) if asks && time.len() == 29 && time.ends_with(" GMT") => Some("Date: *".into()),
        Some(_) if !wanted.contains(line) => None,
        _ => Some(line.clone()),
    };
    actual.iter().filter_map(known).collect()
}

/// Asks once more, on the same connection where it goes on; gives the answer and what the backend saw.
fn ask_again(bench: &mut Bench, client: TcpStream, is_over: bool) -> Result<(Answer, Seen), String> {
    let mut client = if is_over { bench.connect() } else { client };
    let sent = client.write_all(NEXT.as_bytes());
    sent.map_err(|error| format!("the connection was to go on: {error}"))?;
    let mut bytes = Vec::new();
    let mut found = None;
    bench.wait("the next answer comes", |_, _| {
        let is_end = receive(&mut client, &mut bytes).map_err(|kind| kind.to_string())?;
        found = Answer::read(&bytes, false, is_end)?;
        match is_end && found.is_none() {
            true => Err("the connection was to go on".into()),
            false => Ok(found.is_some()),
        }
    })?;
    let (answer, used) = found.ok_or("no answer to the next request")?;
    if bytes.len() > used {
        return Err(format!("behind the next answer, the client got {:?}", latin(&bytes[used..])));
    }
    let seen = bench.recorder.take().0.pop().ok_or("the next request did not reach the backend")?;
    Ok((answer, seen))
}
