//! How long the pieces of the hot path take: `cargo bench --bench micro [FILTER]`.
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]

mod pieces;

use divan::Bencher;
use pieces::{ANSWER, BROWSER, Buckets, CURL, Choice, NASTY_TARGET, PLAIN_TARGET};
use rateguard::limit::policy::By;

/// Rounds of a sample, and samples: what divan chooses by itself, after one round, is too little for cold pieces.
const ROUNDS: u32 = 200;
const SAMPLES: u32 = 500;

fn main() {
    divan::main();
}

#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod head {
    use super::*;

    #[divan::bench]
    fn request_of_curl(bencher: Bencher) {
        bencher.bench_local(pieces::parse_request(CURL));
    }

    #[divan::bench]
    fn request_of_browser(bencher: Bencher) {
        bencher.bench_local(pieces::parse_request(BROWSER));
    }

    #[divan::bench]
    fn response(bencher: Bencher) {
        bencher.bench_local(pieces::parse_response(ANSWER));
    }
}

#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod endpoint {
    use super::*;

    #[divan::bench]
    fn plain(bencher: Bencher) {
        bencher.bench_local(pieces::endpoint(PLAIN_TARGET));
    }

    #[divan::bench]
    fn nasty(bencher: Bencher) {
        bencher.bench_local(pieces::endpoint(NASTY_TARGET));
    }
}

#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod caller {
    use super::*;

    /// By the number of consumers; with none, the key is nobody's.
    #[divan::bench(args = [0, 1_000])]
    fn by_key(bencher: Bencher, consumers: usize) {
        bencher.bench_local(pieces::caller_by_key(consumers));
    }

    #[divan::bench]
    fn by_address(bencher: Bencher) {
        bencher.bench_local(pieces::caller_by_address());
    }
}

#[divan::bench(sample_size = ROUNDS, sample_count = SAMPLES)]
fn request_id(bencher: Bencher) {
    bencher.bench_local(pieces::request_id());
}

/// By the number of routes.
#[divan::bench(args = [10, 1_000], sample_size = ROUNDS, sample_count = SAMPLES)]
fn route(bencher: Bencher, routes: usize) {
    bencher.bench_local(pieces::longest(routes));
}

/// By the number of limits that match, of 1 000.
#[divan::bench(args = [1, 10], sample_size = ROUNDS, sample_count = SAMPLES)]
fn limits(bencher: Bencher, matching: usize) {
    bencher.bench_local(pieces::apply(matching, 1_000, &[By::User]));
}

#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod decision {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use governor::{Quota, RateLimiter};
    use rateguard::limit::policy::Sheet;
    use std::cell::RefCell;
    use std::num::NonZeroU32;

    /// By the number of buckets, any of which may be asked for: at a million most are in no cache.
    #[divan::bench(args = [1_000, 1_000_000])]
    fn any_key(bencher: Bencher, keys: usize) {
        let buckets = Buckets::new(1, keys);
        let mut random = fastrand::Rng::with_seed(7);
        let sheet = || buckets.sheet(random.usize(..keys));
        bencher.with_inputs(sheet).bench_local_refs(|sheet| buckets.charge(sheet, 1));
    }

    /// The same with the keyed limiter of the governor crate, to compare.
    #[divan::bench(args = [1_000, 1_000_000])]
    fn any_key_of_governor(bencher: Bencher, keys: usize) {
        let key = |number: usize| format!("rl:{{key:{number:032x}}}:-:limit-0").into_bytes();
        let quota = Quota::per_second(NonZeroU32::MIN).allow_burst(NonZeroU32::new(1_000_000_000).unwrap());
        let limiter = RateLimiter::dashmap_with_clock(quota, FakeRelativeClock::default());
        (0..keys).for_each(|number| limiter.check_key(&key(number)).unwrap());
        let mut random = fastrand::Rng::with_seed(7);
        let any = || key(random.usize(..keys));
        bencher.with_inputs(any).bench_local_refs(|key| limiter.check_key(key).unwrap());
    }

    /// By the number of limits on one request.
    #[divan::bench(args = [1, 3, 10])]
    fn by_limits(bencher: Bencher, limits: usize) {
        bencher.bench_local(pieces::decide(limits, 1_000));
    }

    /// All threads ask for one bucket.
    #[divan::bench(threads = [1, 2], sample_size = TOGETHER, sample_count = 100)]
    fn one_key(bencher: Bencher) {
        side_by_side(bencher, 1);
    }

    /// Each asks for any of a thousand.
    #[divan::bench(threads = [1, 2], sample_size = TOGETHER, sample_count = 100)]
    fn thousand_keys(bencher: Bencher) {
        side_by_side(bencher, 1_000);
    }

    /// Rounds of a sample on several threads: long enough that they run at the same time for the most part.
    const TOGETHER: u32 = 20_000;

    thread_local! {
        static SHEETS: RefCell<Vec<Sheet>> = RefCell::default();
    }

    /// A decision on one of each thread's own sheets, for so many users.
    fn side_by_side(bencher: Bencher, users: usize) {
        let buckets = Buckets::new(1, users);
        bencher.bench(|| {
            SHEETS.with_borrow_mut(|sheets| {
                if sheets.len() != users {
                    *sheets = (0..users).map(|user| buckets.sheet(user)).collect();
                }
                buckets.charge(&mut sheets[fastrand::usize(..users)], 1);
            });
        });
    }
}

#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod forward {
    use super::*;

    #[divan::bench]
    fn request_of_curl(bencher: Bencher) {
        bencher.bench_local(pieces::forward_request(CURL));
    }

    #[divan::bench]
    fn request_of_browser(bencher: Bencher) {
        bencher.bench_local(pieces::forward_request(BROWSER));
    }

    #[divan::bench]
    fn response(bencher: Bencher) {
        bencher.bench_local(pieces::forward_response(ANSWER));
    }
}

#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod reply {
    use super::*;

    /// By the number of limits on one request.
    #[divan::bench(args = [1, 10])]
    fn rate_limit_fields(bencher: Bencher, limits: usize) {
        bencher.bench_local(pieces::rate_limit_fields(limits));
    }

    #[divan::bench]
    fn too_many(bencher: Bencher) {
        bencher.bench_local(pieces::too_many());
    }

    #[divan::bench]
    fn failure(bencher: Bencher) {
        bencher.bench_local(pieces::failure());
    }
}

/// By the number of buckets in a command.
#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod redis {
    use super::*;

    #[divan::bench(args = [1, 10])]
    fn encode(bencher: Bencher, buckets: usize) {
        bencher.bench_local(pieces::encode(buckets));
    }

    #[divan::bench(args = [1, 10])]
    fn decode(bencher: Bencher, buckets: usize) {
        bencher.bench_local(pieces::decode(buckets));
    }
}

/// By the number of servers.
#[divan::bench_group(sample_size = ROUNDS, sample_count = SAMPLES)]
mod balance {
    use super::*;

    #[divan::bench(args = [3, 1_000])]
    fn in_turn(bencher: Bencher, servers: usize) {
        bencher.bench_local(pieces::choose(Choice::InTurn, servers));
    }

    #[divan::bench(args = [3, 1_000])]
    fn least_requests(bencher: Bencher, servers: usize) {
        bencher.bench_local(pieces::choose(Choice::LeastRequests, servers));
    }

    #[divan::bench(args = [3, 1_000])]
    fn by_hash(bencher: Bencher, servers: usize) {
        bencher.bench_local(pieces::choose(Choice::ByHash, servers));
    }
}
