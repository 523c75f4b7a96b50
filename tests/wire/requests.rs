//! One row of the request table, one way of feeding it, through a running gateway.

use super::feed::{Queues, Way};
use super::message::{Answer, Head, find, latin, sorted};
use super::pure;
use super::recorder::{Recorder, Seen, answers, receive};
use super::row::{Reply, Row, SECOND, Saw, Setting};
use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, config};
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How often both ends are looked at.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// What came out of an exchange at both ends, to the byte.
pub struct Outcome {
    got: Vec<u8>,
    seen: Vec<Seen>,
    begun: Vec<Vec<u8>>,
}

/// Bytes, some of which are never the same twice: the time, and the ids that the gateway makes.
struct Print {
    bytes: Vec<u8>,
    holes: Vec<Range<usize>>,
}

impl Print {
    fn of(bytes: &[u8]) -> Print {
        let text = latin(bytes);
        let text = if text.len() == bytes.len() { text } else { String::new() };
        let mut holes = Vec::new();
        for (mark, length) in [("Date: ", 29), ("X-Request-Id: ", 32), ("\"request_id\":\"", 32)] {
            holes.extend(text.match_indices(mark).map(|(at, _)| at + mark.len()..at + mark.len() + length));
        }
        holes.sort_by_key(|hole| hole.start);
        Print { bytes: bytes.into(), holes: holes.into_iter().filter(|hole| hole.end <= bytes.len()).collect() }
    }

    fn is_of(&self, other: &[u8]) -> bool {
        let starts = std::iter::once(0).chain(self.holes.iter().map(|hole| hole.end));
        let ends = self.holes.iter().map(|hole| hole.start).chain([self.bytes.len()]);
        other.len() == self.bytes.len()
            && starts.zip(ends).all(|(start, end)| self.bytes[start..end] == other[start..end])
    }
}

/// An outcome that was found right, and what must be the same in every way.
pub struct Model {
    got: Print,
    seen: Vec<Print>,
    essence: String,
}

impl Model {
    fn is_met(&self, outcome: &Outcome) -> bool {
        self.got.is_of(&outcome.got)
            && outcome.begun.is_empty()
            && self.seen.len() == outcome.seen.len()
            && self.seen.iter().zip(&outcome.seen).all(|(print, seen)| print.is_of(&seen.bytes))
    }
}

/// A gateway and the backend behind it.
pub struct Bench {
    pub gateway: Gateway,
    pub recorder: Recorder,
    pub queues: Queues,
}

impl Bench {
    pub fn new(server: &str) -> Bench {
        let recorder = Recorder::new();
        // One worker has one pool: whether a connection is used again can then be told.
        let config = config(server, &[recorder.address], "").replace("workers = 2", "workers = 1");
        Bench { gateway: Gateway::start(&config), recorder, queues: Queues::new() }
    }

    pub fn of(setting: Setting) -> Bench {
        Bench::new(match setting {
            Setting::Usual => "",
            Setting::Tight => "max_head = \"1KiB\"\nmax_headers = 8\nmax_body = \"16\"",
            Setting::Trusting => "trusted_proxies = [\"127.0.0.0/8\"]",
        })
    }

    pub fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.gateway.address).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// Lets the backend look until `is_over`.
    pub fn wait(
        &mut self,
        what: &str,
        mut is_over: impl FnMut(&mut Recorder, &Queues) -> Result<bool, String>,
    ) -> Result<(), String> {
        let start = Instant::now();
        loop {
            self.recorder.look()?;
            if is_over(&mut self.recorder, &self.queues)? {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("waited in vain until {what}"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Writes the pieces, each once the one before it has been taken. Behind the first `wanted` bytes the gateway may
    /// have no reason to read on.
    pub fn feed(&mut self, client: &mut TcpStream, pieces: &[&[u8]], wanted: usize) -> Result<(), String> {
        let (ours, theirs) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let mut written = 0;
        for piece in pieces {
            if (1..=wanted).contains(&written) {
                self.wait("the gateway has read a piece", |_, queues| Ok(queues.unread(theirs, ours) == 0))?;
            }
            if client.write_all(piece).is_err() {
                // It was refused before this.
                return Ok(());
            }
            written += piece.len();
        }
        Ok(())
    }

    /// All that the client gets until the gateway ends the connection.
    fn rest(&mut self, client: &mut TcpStream) -> Result<Vec<u8>, String> {
        let mut got = Vec::new();
        let ended = self.wait("the gateway ends the connection", |_, _| match receive(client, &mut got) {
            Ok(is_end) => Ok(is_end),
            Err(ErrorKind::ConnectionReset) => Err("the gateway reset the connection".into()),
            Err(other) => Err(other.to_string()),
        });
        ended.map_err(|why| format!("{why}; the client got {:?}", latin(&got)))?;
        Ok(got)
    }

    /// Runs one exchange and compares what came of it with the row and, where there is one, with the model: the row's
    /// outcome in another way.
    pub fn exchange(&mut self, row: &Row, way: Way, model: &mut Option<Model>) -> Result<(), String> {
        let outcome = self.send(row, way)?;
        if model.as_ref().is_some_and(|model| model.is_met(&outcome)) {
            return Ok(());
        }
        let essence = check(row, way, &outcome)?;
        let model = model.get_or_insert_with(|| Model {
            got: Print::of(&outcome.got),
            seen: outcome.seen.iter().map(|seen| Print::of(&seen.bytes)).collect(),
            essence: essence.clone(),
        });
        match model.essence == essence {
            true => Ok(()),
            false => Err(format!("the answers differ from those to one piece:\n    {}\n    {essence}", model.essence)),
        }
    }

    fn send(&mut self, row: &Row, way: Way) -> Result<Outcome, String> {
        self.recorder.look()?;
        is_nothing(&self.recorder.take(), "before the row was sent")?;
        let mut client = self.connect();
        let feed = row.feed();
        self.feed(&mut client, &way.pieces(&feed), feed.len())?;
        if row.ends {
            // It may have been closed already.
            let _ = client.shutdown(Shutdown::Write);
        }
        let got = self.rest(&mut client)?;
        self.wait("a connection that holds half a request is ended", |recorder, _| Ok(!recorder.is_waiting()))?;
        let (seen, begun) = self.recorder.take();
        Ok(Outcome { got, seen, begun })
    }
}

/// Compares an outcome with the row; gives what must be the same in every way.
fn check(row: &Row, way: Way, Outcome { got, seen, begun }: &Outcome) -> Result<String, String> {
    check_backend(row, way, seen, begun)?;
    let is_head = |number: usize| seen.get(number).is_some_and(|seen| seen.head.line.starts_with("HEAD "));
    let answers = answers(got, |number| is_head(number) || row.is_to_head())?;
    check_answers(row, seen, &answers).map_err(|why| format!("{why}\n  the client got {:?}", latin(got)))?;
    Ok(answers.iter().map(Answer::essence).collect::<Vec<_>>().join("\n"))
}

pub fn is_nothing((seen, begun): &(Vec<Seen>, Vec<Vec<u8>>), when: &str) -> Result<(), String> {
    match seen.is_empty() && begun.is_empty() {
        true => Ok(()),
        false => Err(format!("{when}, the backend got {seen:?} and {:?}", begun.iter().map(|b| latin(b)))),
    }
}

/// Rows longer than this reach the gateway in more than one read, however they are sent.
const ONE_READ_MAX: usize = rateguard::conn::INPUT_START;

/// Whether the backend may have seen the beginning of a request: its head, and a body without an end. Only where the
/// fault is in the body, and only where the gateway had the whole head before it had the byte that is wrong. Where the
/// client ends its side, the end is what is wrong.
fn may_begin(row: &Row, way: Way) -> bool {
    let head_end = find(&row.bytes, b"\r\n\r\n").map_or(usize::MAX, |at| at + 4);
    let has_head_first = match way {
        Way::Whole => false,
        Way::ByteByByte => true,
        Way::CutAt(at) => at >= head_end && pure::faulty_from(row).is_none_or(|faulty| at < faulty),
    };
    row.in_body && (has_head_first || row.ends || row.bytes.len() > ONE_READ_MAX)
}

fn check_backend(row: &Row, way: Way, seen: &[Seen], begun: &[Vec<u8>]) -> Result<(), String> {
    let shown = || begun.iter().map(|bytes| latin(bytes)).collect::<Vec<_>>();
    if begun.len() > usize::from(may_begin(row, way)) {
        return Err(format!("the backend got half a request: {:?}", shown()));
    }
    // The recorder took it for the beginning of one well-formed request; a head without its end is none.
    for bytes in begun {
        Head::read(bytes)?.ok_or_else(|| format!("the backend got half a head: {:?}", shown()))?;
    }
    let second = Saw { fields: Vec::new(), ..super::row::saw("GET /second HTTP/1.1", &[], "") };
    let wanted: Vec<&Saw> = row.saw().chain(row.goes_on().then_some(&second)).collect();
    let lines = |seen: &[Seen]| seen.iter().map(|seen| seen.head.line.clone()).collect::<Vec<_>>();
    if seen.len() != wanted.len() {
        let wanted: Vec<&str> = wanted.iter().map(|saw| saw.line).collect();
        return Err(format!("the backend is to see {wanted:?}, and saw {:?}", lines(seen)));
    }
    wanted.iter().zip(seen).try_for_each(|(saw, seen)| check_request(saw, seen))
}

fn check_request(saw: &Saw, seen: &Seen) -> Result<(), String> {
    let wanted = (saw.line, sorted(&saw.all_fields()), saw.body.as_str(), sorted(&saw.trailers));
    let fields: Vec<String> = sorted(&seen.head.fields).into_iter().map(without_id).collect();
    let is_same_id = |line: &String| line.starts_with("x-request-id: ");
    let fields = match wanted.1.iter().find(|line| is_same_id(line)) {
        Some(own) if !own.ends_with('*') => sorted(&seen.head.fields),
        _ => fields,
    };
    let actual = (seen.head.line.as_str(), fields, seen.body.data.as_str(), sorted(&seen.body.trailers));
    match wanted == actual {
        true => Ok(()),
        false => Err(format!("the backend is to see\n    {wanted:?}\n  and saw\n    {actual:?}")),
    }
}

/// An id that the gateway made is shown as `*`.
fn without_id(line: String) -> String {
    let is_made = |id: &str| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match line.strip_prefix("x-request-id: ") {
        Some(id) if is_made(id) => "x-request-id: *".into(),
        _ => line,
    }
}

fn check_answers(row: &Row, seen: &[Seen], answers: &[Answer]) -> Result<(), String> {
    let mut targets = seen.iter().map(Seen::target);
    let mut left = answers.iter();
    let version = if row.is_old { "HTTP/1.0 " } else { "HTTP/1.1 " };
    for (number, reply) in row.replies.iter().enumerate() {
        let answer = left.next().ok_or_else(|| format!("no answer number {}", number + 1))?;
        let is_last = row.closes && number + 1 == row.replies.len();
        let is_right = match reply {
            Reply::Of(saw) => is_backend_s(answer, targets.next(), saw.line.starts_with("HEAD ")),
            Reply::Own(status) => answer.status == *status && is_own(answer),
            Reply::Refusal(status) => answer.status == *status && is_refusal(answer, row.is_to_head()),
        };
        // What is malformed may have no version that could be told.
        let has_version = row.is_old || !matches!(reply, Reply::Refusal(_));
        let is_version = answer.head.line.starts_with(version) || !has_version;
        let is_end = !is_last || row.ends || answer.field("Connection") == Some("close");
        if !(is_right && is_version && is_end) {
            return Err(format!("answer number {} is to be {reply:?}, {version}, last: {is_last}", number + 1));
        }
    }
    if row.goes_on() {
        let answer = left.next().ok_or("no answer to the second request")?;
        if !is_backend_s(answer, Some("/second"), false) || answer.field("Connection") != Some("close") {
            return Err(format!("the answer to {SECOND:?} is another"));
        }
    }
    match left.next() {
        Some(_) => Err(format!("{} answers instead of {}", answers.len(), answers.len() - left.len() - 1)),
        None => Ok(()),
    }
}

fn is_backend_s(answer: &Answer, target: Option<&str>, to_head: bool) -> bool {
    answer.status == 200 && answer.body.done && (to_head || Some(answer.body.data.as_str()) == target)
}

fn is_own(answer: &Answer) -> bool {
    let says_what_is_allowed = answer.field("Allow").is_some_and(str::is_empty);
    answer.field("Connection") != Some("close") && (answer.status != 405 || says_what_is_allowed)
}

fn is_refusal(answer: &Answer, to_head: bool) -> bool {
    let says_why = to_head || answer.is_problem("client");
    answer.field("Connection") == Some("close") && answer.body.done && says_why
}
