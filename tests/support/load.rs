//! Clients that ask without pause while something happens.

use super::client::{Client, Response};
use super::store::api_key;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Each asks as a user of its own, `loader-N`, on a connection of its own, until `what` is over. Gives the answers of each,
/// with the time that each took.
pub fn under_load(address: SocketAddr, clients: usize, what: impl FnOnce()) -> Vec<Vec<(Response, Duration)>> {
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    std::thread::scope(|scope| {
        let load: Vec<_> = (0..clients)
            .map(|number| {
                scope.spawn(move || {
                    let mut client = Client::connect(address);
                    let user = api_key(&format!("loader-{number}"));
                    let mut answers = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let start = Instant::now();
                        answers.push((client.get("/", &user), start.elapsed()));
                    }
                    answers
                })
            })
            .collect();
        // The load must end even where `what` fails, or the test would never.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        is_over.store(true, Ordering::Relaxed);
        let answers = load.into_iter().map(|client| client.join().unwrap()).collect();
        happened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        answers
    })
}
