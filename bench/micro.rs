//! How long the pieces of the hot path take: `cargo bench --bench micro [FILTER]`.
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]

mod pieces;

use divan::Bencher;
use pieces::{ANSWER, BROWSER, Buckets, CURL, Choice, NASTY_TARGET, PLAIN_TARGET};

fn main() {
    divan::main();
}

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

/// By the number of routes.
#[divan::bench(args = [10, 1_000])]
fn route(bencher: Bencher, routes: usize) {
    bencher.bench_local(pieces::longest(routes));
}

/// By the number of limits that match, of 1 000.
#[divan::bench(args = [1, 10])]
fn limits(bencher: Bencher, matching: usize) {
    bencher.bench_local(pieces::apply(matching, 1_000));
}

mod decision {
    use super::*;

    /// By the number of buckets, any of which may be asked for: at a million most are in no cache.
    #[divan::bench(args = [1_000, 1_000_000])]
    fn any_key(bencher: Bencher, keys: usize) {
        let buckets = Buckets::new(1, keys);
        let mut random = fastrand::Rng::with_seed(7);
        let sheet = || buckets.sheet(random.usize(..keys));
        bencher.with_inputs(sheet).bench_local_refs(|sheet| buckets.charge(sheet, 1));
    }

    /// By the number of limits on one request.
    #[divan::bench(args = [1, 3, 10])]
    fn by_limits(bencher: Bencher, limits: usize) {
        bencher.bench_local(pieces::decide(limits, 1_000));
    }

    /// All threads ask for one bucket.
    #[divan::bench(threads = [1, 2])]
    fn one_key(bencher: Bencher) {
        let buckets = Buckets::new(1, 1);
        bencher.with_inputs(|| buckets.sheet(0)).bench_refs(|sheet| buckets.charge(sheet, 1));
    }

    /// Each asks for any of a thousand.
    #[divan::bench(threads = [1, 2])]
    fn thousand_keys(bencher: Bencher) {
        let buckets = Buckets::new(1, 1_000);
        bencher.with_inputs(|| buckets.sheet(fastrand::usize(..1_000))).bench_refs(|sheet| buckets.charge(sheet, 1));
    }
}

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
}

/// By the number of buckets in a command.
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
