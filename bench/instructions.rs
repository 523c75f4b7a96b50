//! Pieces of the hot path for `bench/instructions` to count: `instructions PIECE ROUNDS` does one so many times, and
//! without arguments it names them all. What it takes to get ready costs the same for any number of rounds.
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]
#![allow(unsafe_code, reason = "stops the clock and chance, which seed hashes")]

#[allow(dead_code, reason = "the other measurement takes more of them")]
mod pieces;

use pieces::{ANSWER, BROWSER, CURL, NASTY_TARGET, PLAIN_TARGET};
use rateguard::limit::policy::By;
use std::hint::black_box;

/// Buckets and routes of a piece: rounds go through all of them, so this must divide the number of rounds.
const MANY: usize = 1_000;

/// A name, and what makes the piece where it is measured.
type Piece = (&'static str, fn() -> Box<dyn FnMut()>);

const PIECES: [Piece; 22] = [
    ("request_head_curl", || Box::new(pieces::parse_request(CURL))),
    ("request_head_browser", || Box::new(pieces::parse_request(BROWSER))),
    ("response_head", || Box::new(pieces::parse_response(ANSWER))),
    ("endpoint_plain", || Box::new(pieces::endpoint(PLAIN_TARGET))),
    ("endpoint_nasty", || Box::new(pieces::endpoint(NASTY_TARGET))),
    ("caller_unknown_key", || Box::new(pieces::caller_by_key(0))),
    ("caller_known_key", || Box::new(pieces::caller_by_key(MANY))),
    ("caller_address", || Box::new(pieces::caller_by_address())),
    ("request_id", || Box::new(pieces::request_id())),
    ("route_of_10", || Box::new(pieces::longest(10))),
    ("route_of_1000", || Box::new(pieces::longest(MANY))),
    ("limits_1_of_1000", || Box::new(pieces::apply(1, MANY, &[By::User]))),
    ("limits_10_of_1000", || Box::new(pieces::apply(10, MANY, &[By::User]))),
    ("limits_3_by_endpoint", || Box::new(pieces::apply(3, 3, &[By::User, By::Endpoint]))),
    ("decision_1_limit", || Box::new(pieces::decide(1, MANY))),
    ("decision_3_limits", || Box::new(pieces::decide(3, MANY))),
    ("forward_request_curl", || Box::new(pieces::forward_request(CURL))),
    ("forward_request_browser", || Box::new(pieces::forward_request(BROWSER))),
    ("forward_response", || Box::new(pieces::forward_response(ANSWER))),
    ("rate_limit_fields", || Box::new(pieces::rate_limit_fields(1))),
    ("too_many", || Box::new(pieces::too_many())),
    ("failure", || Box::new(pieces::failure())),
];

/// The clock stands still: foldhash mixes it into the seed of its hashes, and another seed is another way through tables.
///
/// # Safety
///
/// As `clock_gettime(2)`: `time` is null or can be written to.
// SAFETY: the name stands for the function of the C library, whose signature this is.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(_clock: i32, time: *mut [i64; 2]) -> i32 {
    // SAFETY: the caller's promise; on 64 bits a `timespec` is two numbers of 64 bits.
    if let Some(time) = unsafe { time.as_mut() } {
        *time = [1_795_694_400, 0];
    }
    0
}

/// What the system has at random is always the same: fingerprints of keys hang on it.
///
/// # Safety
///
/// As `getrandom(2)`: `length` bytes may be written to `buffer`.
// SAFETY: the name stands for the function of the C library, whose signature this is.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    // SAFETY: the caller's promise.
    unsafe { buffer.write_bytes(7, length) };
    length as isize
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(rounds)) = (arguments.next(), arguments.next()) else {
        PIECES.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, make) = PIECES.iter().find(|(known, _)| *known == name).unwrap();
    let mut piece = make();
    for _ in 0..rounds.parse().unwrap() {
        black_box(&mut piece)();
    }
}
