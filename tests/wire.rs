//! The wire as a table: raw bytes, the answer to them, and what the backend saw, with the section that says so. Every
//! row is fed in one piece, byte by byte and cut in two at its bytes, and means the same in all these ways.

/// Strict reading of messages at both ends.
mod message;

/// Cutting bytes, and knowing when a piece has been taken.
mod feed;

/// The backend that writes down what it gets.
mod recorder;

/// What a row says.
mod row;

/// Rows through a gateway.
mod requests;

/// Rows on the parsers alone.
mod pure;

/// Methods, targets, versions.
mod start_line;

/// Field lines and Host.
mod fields;

/// Lengths and codings.
mod framing;

/// Chunked bodies.
mod chunks;

/// What ends with a connection.
mod hops;

/// Several requests on one connection.
mod pipelines;

/// Rows of backends through a gateway.
mod answers;

/// What backends send.
mod responses;

use crate::wire::answers::AnswerRow;
use crate::wire::feed::Way;
use crate::wire::message::latin;
use crate::wire::requests::Bench;
use crate::wire::row::{Row, Setting};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Gateways with a backend each, at the same time; for so many rows one more is started.
const BENCHES: usize = 3;
const ROWS_OF_A_BENCH: usize = 16;

/// Faults shown at once: one broken rule breaks many rows.
const SHOWN_MAX: usize = 40;

/// Bytes of a row that are shown.
const SHOWN_BYTES_MAX: usize = 400;

fn request_rows() -> Vec<Row> {
    [start_line::rows(), fields::rows(), framing::rows(), chunks::rows(), hops::rows(), pipelines::rows()].concat()
}

fn shown(section: &str, bytes: &[u8], way: &str, why: &str) -> String {
    let text = latin(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
    format!("{section}\n  {text:?} ({} bytes)\n  {way}: {why}", bytes.len())
}

fn none(faults: &[String], rows: usize) {
    let list = faults[..faults.len().min(SHOWN_MAX)].join("\n\n");
    assert!(faults.is_empty(), "{} of {rows} rows are not as they should be:\n\n{list}\n", faults.len());
}

/// Runs `check` on every item over several threads, each with a bench of its own; gives what it finds wrong.
fn on_benches<T: Sync>(
    items: &[T],
    bench: impl Fn() -> Bench + Sync,
    check: impl Fn(&mut Bench, &T) -> Result<(), String> + Sync,
) -> Vec<String> {
    let threads = BENCHES.min(items.len().div_ceil(ROWS_OF_A_BENCH));
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = bench();
                loop {
                    let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if let Err(why) = check(&mut own, item) {
                        faults.lock().unwrap().push(why);
                        // A fault may have left something behind.
                        own = bench();
                    }
                }
            });
        }
    });
    faults.into_inner().unwrap()
}

/// A row, and the ways in which it is fed.
struct Plan<T> {
    row: T,
    ways: Vec<Way>,
}

/// Rows in the order of their bytes, so that neighbours have as much in common as they can.
fn plans<T>(mut rows: Vec<T>, bytes: impl Fn(&T) -> &[u8]) -> Vec<Plan<T>> {
    rows.sort_by(|a, b| bytes(a).cmp(bytes(b)));
    let ways = |number: usize| {
        let before = number.checked_sub(1).map_or(b"".as_slice(), |before| bytes(&rows[before]));
        Way::all(bytes(&rows[number]), before, number)
    };
    let ways: Vec<Vec<Way>> = (0..rows.len()).map(ways).collect();
    rows.into_iter().zip(ways).map(|(row, ways)| Plan { row, ways }).collect()
}

fn check_request(bench: &mut Bench, Plan { row, ways }: &Plan<Row>) -> Result<(), String> {
    let mut model = None;
    for &way in ways {
        let told = |why: String| shown(row.section, &row.bytes, &way.to_string(), &why);
        bench.exchange(row, way, &mut model).map_err(told)?;
    }
    Ok(())
}

fn requests_of(setting: Setting) {
    let rows: Vec<Row> = request_rows().into_iter().filter(|row| row.setting == setting).collect();
    let plans = plans(rows, |row| &row.bytes);
    none(&on_benches(&plans, || Bench::of(setting), check_request), plans.len());
}

#[test]
fn requests_are_answered_as_the_table_says_however_they_arrive() {
    requests_of(Setting::Usual);
}

#[test]
fn requests_within_tight_bounds_are_answered_as_the_table_says() {
    requests_of(Setting::Tight);
}

#[test]
fn requests_of_trusted_proxies_are_answered_as_the_table_says() {
    requests_of(Setting::Trusting);
}

fn check_answer(bench: &mut Bench, Plan { row, ways }: &Plan<AnswerRow>) -> Result<(), String> {
    for &way in ways {
        let told = |why: String| shown(row.section, &row.bytes, &way.to_string(), &why);
        answers::exchange(bench, row, way).map_err(told)?;
    }
    Ok(())
}

#[test]
fn answers_reach_the_client_as_the_table_says_however_they_arrive() {
    let plans = plans(responses::rows(), |row| &row.bytes);
    none(&on_benches(&plans, || Bench::of(Setting::Usual), check_answer), plans.len());
}

#[test]
fn the_parsers_alone_say_the_same_at_every_prefix() {
    let rows = request_rows();
    let told = |row: &Row| {
        let checked = pure::check(row);
        checked.err().map(|why| shown(row.section, &row.bytes, "on the parsers alone", &why))
    };
    none(&rows.iter().filter_map(told).collect::<Vec<_>>(), rows.len());
}

#[test]
fn every_row_is_another() {
    let rows = request_rows();
    let mut known = BTreeSet::new();
    let twice = rows.iter().filter(|row| !known.insert((&row.bytes, row.setting as u8, row.ends)));
    let twice = twice.map(|row| shown(row.section, &row.bytes, "as a row", "stands there twice"));
    let answers = responses::rows();
    let mut known = BTreeSet::new();
    let also = answers.iter().filter(|row| !known.insert((&row.bytes, row.asks, row.behind as u8)));
    let also = also.map(|row| shown(row.section, &row.bytes, "as an answer", "stands there twice"));
    let twice: Vec<String> = twice.chain(also).collect();
    none(&twice, rows.len());
    let ways = |plans: usize, of: &dyn Fn(usize) -> usize| (0..plans).map(of).sum::<usize>();
    let answers = plans(responses::rows(), |row| &row.bytes);
    let requests = plans(rows.clone(), |row| &row.bytes);
    println!("{} request rows in {} ways", requests.len(), ways(requests.len(), &|n| requests[n].ways.len()));
    println!("{} response rows in {} ways", answers.len(), ways(answers.len(), &|n| answers[n].ways.len()));
}
