//! `rateguard burst`: many requests at once, a line for each that says whether it got a token, and a summary of how
//! many did, how fast, and when the denied may come back. Shell.
#![allow(clippy::disallowed_methods, reason = "shell: starts threads, reads the clock, prints")]

use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TryRecvError};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Answer, Client, Connections, Outcome, Patience, ToolError};
use super::summary::{Record, Summary};
use super::terminal::{Colour, Paint};

/// The most requests that one run may send.
pub const REQUESTS_MAX: usize = 1_000_000;
/// The most requests in flight: each has a thread.
pub const CONCURRENCY_MAX: usize = 1024;
/// Bytes of stack for such a thread, which does little more than one request.
const STACK: usize = 512 << 10;
/// Records that wait to be printed; a slow terminal slows the burst only beyond that.
const RECORDS_WAITING_MAX: usize = 16_384;

/// What `rateguard burst` was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `http://host[:port][/path]`.
    pub url: String,
    /// How many requests, 1 to [`REQUESTS_MAX`].
    pub requests: usize,
    /// How many of them at a time, 1 to [`CONCURRENCY_MAX`].
    pub concurrency: usize,
    /// Headers to send with each, at most 64.
    pub headers: Vec<(String, String)>,
}

/// Sends the burst, prints a line for each request and the summary; an error where nothing answered at all.
pub fn run(options: &Options) -> Result<Summary, ToolError> {
    check(options)?;
    let paint = Paint::for_stdout();
    let mut out = BufWriter::new(io::stdout().lock());
    let threads = options.concurrency.min(options.requests);
    let client = || Client::new(&options.url, &options.headers, Connections::Keep, Patience::Patient);
    let clients: Vec<Client> = (0..threads).map(|_| client()).collect::<Result<_, _>>()?;
    let mut summary = Summary::new()?;
    writeln!(out, "{} requests to {}, {threads} at a time", options.requests, options.url)?;
    out.flush()?;
    let elapsed = send(clients, options.requests, |records| report(records, paint, &mut summary, &mut out))?;
    summary.elapsed = elapsed;
    if let Some(cause) = summary.unreachable() {
        return Err(ToolError::Unreachable { url: options.url.clone(), cause: cause.to_owned() });
    }
    write!(out, "\n{}", summary.draw(paint))?;
    out.flush()?;
    Ok(summary)
}

fn check(options: &Options) -> Result<(), ToolError> {
    if !(1..=REQUESTS_MAX).contains(&options.requests) {
        return Err(ToolError::Usage(format!("-n {}: 1 to {REQUESTS_MAX} requests can be sent", options.requests)));
    }
    if !(1..=CONCURRENCY_MAX).contains(&options.concurrency) {
        return Err(ToolError::Usage(format!(
            "-c {}: 1 to {CONCURRENCY_MAX} requests can be in flight",
            options.concurrency
        )));
    }
    Ok(())
}

/// Sends `requests` requests over the clients, a thread each, all released at once, while `report` consumes what they
/// record. Returns how long it took from the release to the last answer, whatever `report` took.
fn send(
    clients: Vec<Client>,
    requests: usize,
    report: impl FnOnce(&Receiver<Record>) -> io::Result<()>,
) -> Result<Duration, ToolError> {
    let next = AtomicUsize::new(1);
    // Held for writing until every thread is started; unlike a Barrier it also opens when one of them cannot be.
    let gate = RwLock::new(());
    let (sender, receiver) = mpsc::sync_channel(RECORDS_WAITING_MAX.min(requests));
    thread::scope(|scope| {
        let mut running = Vec::new();
        let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
        for client in clients {
            let sender = sender.clone();
            let (next, gate) = (&next, &gate);
            let thread = thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    drop(gate.read());
                    fire(&client, next, requests, &sender)
                })
                .map_err(|error| {
                    // Those that were started find nothing left to send.
                    next.store(requests + 1, Ordering::Relaxed);
                    ToolError::Resources(format!("a thread for each of them: {error}"))
                })?;
            running.push(thread);
        }
        drop(sender);
        let started = Instant::now();
        drop(closed);
        let reported = report(&receiver);
        // On a failed report, the threads stop at their next record.
        drop(receiver);
        reported?;
        // One that panicked had no answer.
        let ends = running.into_iter().filter_map(|thread| thread.join().ok().flatten());
        Ok(ends.max().map_or(Duration::ZERO, |end| end.duration_since(started)))
    })
}

/// Takes numbers and sends requests until all are taken or nobody listens; gives when the last was answered.
fn fire(client: &Client, next: &AtomicUsize, requests: usize, sender: &SyncSender<Record>) -> Option<Instant> {
    let mut last = None;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number > requests {
            return last;
        }
        let sent = Instant::now();
        let fetched = client.fetch();
        let end = Instant::now();
        last = Some(end);
        if sender.send(Record { number, took: end.duration_since(sent), fetched }).is_err() {
            return last;
        }
    }
}

/// Prints and counts records until the last thread is done; flushes whenever it has to wait.
fn report(records: &Receiver<Record>, paint: Paint, summary: &mut Summary, out: &mut impl Write) -> io::Result<()> {
    loop {
        let record = match records.try_recv() {
            Ok(record) => record,
            Err(TryRecvError::Disconnected) => return out.flush(),
            Err(TryRecvError::Empty) => {
                out.flush()?;
                match records.recv() {
                    Ok(record) => record,
                    Err(_) => return Ok(()),
                }
            }
        };
        writeln!(out, "{}", line(&record, paint))?;
        summary.add(&record);
    }
}

/// One request as a line: number, status, milliseconds, verdict, and what the answer tells.
fn line(record: &Record, paint: Paint) -> String {
    let ms = record.took.as_secs_f64() * 1e3;
    let (status, outcome) = match &record.fetched {
        Ok(answer) => (answer.status.to_string(), answer.outcome()),
        Err(_) => ("---".to_owned(), Outcome::Failed),
    };
    // Padded before it is painted: escape sequences have no width.
    let verdict = match outcome {
        Outcome::Token => paint.paint(Colour::Green, "token    "),
        Outcome::Throttled => paint.paint(Colour::Red, "throttled"),
        Outcome::Failed => paint.paint(Colour::Yellow, "failed   "),
    };
    let number = format!("#{}", record.number);
    let mut line = format!("{number:>6}  {status}  {ms:>8.1} ms  {verdict}");
    match &record.fetched {
        Ok(answer) => {
            for told in told(answer, outcome) {
                line += "  ";
                line += &told;
            }
        }
        Err(cause) => {
            line += "  ";
            line += cause;
        }
    }
    line
}

/// What an answer tells beyond its status.
fn told(answer: &Answer, outcome: Outcome) -> Vec<String> {
    let detail = answer.detail.clone().filter(|_| outcome == Outcome::Failed);
    [
        answer.hostname.clone(),
        answer.remaining.map(|left| format!("{left} left")),
        answer.retry_after_s.map(|seconds| format!("retry after {seconds} s")),
        detail,
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fetched: Result<Answer, String>) -> Record {
        Record { number: 7, took: Duration::from_micros(3_250), fetched }
    }

    #[test]
    fn a_line_says_what_became_of_it() {
        let token = Answer { status: 200, remaining: Some(3), hostname: Some("b1".to_owned()), ..Answer::default() };
        let throttled = Answer {
            status: 429,
            remaining: Some(0),
            retry_after_s: Some(1),
            detail: Some("Limit 'x'".to_owned()),
            ..Answer::default()
        };
        let failed = Answer { status: 502, detail: Some("no backend".to_owned()), ..Answer::default() };
        let lines = [
            (Ok(token), "    #7  200       3.2 ms  token      b1  3 left"),
            (Ok(throttled), "    #7  429       3.2 ms  throttled  0 left  retry after 1 s"),
            (Ok(failed), "    #7  502       3.2 ms  failed     no backend"),
            (Err("refused".to_owned()), "    #7  ---       3.2 ms  failed     refused"),
        ];
        for (fetched, expected) in lines {
            assert_eq!(line(&record(fetched), Paint::Plain), expected);
        }
    }

    #[test]
    fn colour_tells_the_verdict() {
        let denied = Answer { status: 429, ..Answer::default() };
        assert!(line(&record(Ok(denied)), Paint::Colour).contains("\x1b[31mthrottled\x1b[0m"));
    }

    #[test]
    fn amounts_are_bounded() {
        let options = |requests, concurrency| Options {
            url: "http://127.0.0.1:1/".to_owned(),
            requests,
            concurrency,
            headers: Vec::new(),
        };
        for (requests, concurrency) in [(0, 1), (1, 0), (REQUESTS_MAX + 1, 1), (1, CONCURRENCY_MAX + 1)] {
            assert!(matches!(check(&options(requests, concurrency)), Err(ToolError::Usage(_))));
        }
        assert!(check(&options(REQUESTS_MAX, CONCURRENCY_MAX)).is_ok());
    }
}
