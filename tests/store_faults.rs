//! A store that fails in every way we know: no request waits for it, none fails by it where `on_failure = "open"`, and
//! limits hold again once it is back.

/// Passwords, users, databases, Unix sockets.
mod access;

/// Faults one after the other, at random.
mod chaos;

/// Redis hangs: deadlines, and replies that come too late.
mod hang;

/// Something on Redis's port that does not speak like Redis.
mod liar;

/// The line to Redis fails, and neither end is told.
mod line;

/// Redis is gone and comes back.
mod outage;

/// Redis is gone, and the gateway decides by itself.
mod local;

/// How busy the machine is, where time is the subject.
mod pulse;

/// Redis answers with errors.
mod refusal;

/// Redis is in a state in which it refuses.
mod states;

/// Redis behind TLS.
mod tls;

use crate::support::client::{Client, Response};
use crate::support::fields::rate_limit;
use crate::support::gateway::{Gateway, config};
use crate::support::store::{api_key, backend};
use crate::support::{load, until};
use pulse::longest_wait_since;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// No answer may take longer: a deadline of 20 ms, and what a busy machine may add to it. The stall after which a
/// connection is given up, and the timeout of opening one, are a second each: waiting for those would show.
const SLOW: Duration = Duration::from_millis(500);

/// Threads that an answer passes through one after the other, each of which may have to wait for a processor.
const HANDS: u32 = 5;

/// Checks that an answer, asked for at some time after `start`, did not take too long.
fn assert_not_slow(took: Duration, start: Instant) {
    if took >= SLOW {
        let excuse = HANDS * longest_wait_since(start);
        assert!(took < SLOW + excuse, "an answer took {took:?}, of which {excuse:?} may be the machine's fault");
    }
}

/// A gateway on a store given by its URL, whatever state that is in.
fn gateway(url: &str, store: &str, rest: &str) -> Gateway {
    Gateway::start(&config("", &[backend()], &format!("[store]\nurl = \"{url}\"\n{store}\n{rest}")))
}

/// Decisions that the store did not give, for this reason.
fn errors(gateway: &Gateway, kind: &str) -> f64 {
    gateway.metric(&format!("rateguard_store_errors_total{{kind=\"{kind}\"}}"))
}

/// Sends one request on a connection of its own, as a user of its own.
fn ask_as_new_user(address: SocketAddr) -> Response {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let user = format!("new-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    Client::connect(address).get("/", &api_key(&user))
}

/// Both workers are asked, since each has a connection to the store of its own and the kernel deals out clients.
fn until_limits_hold(gateway: &Gateway) {
    let mut held = 0;
    until("limits hold for twenty requests in a row", || {
        held = if rate_limit(&ask_as_new_user(gateway.address)).is_empty() { 0 } else { held + 1 };
        held >= 20
    });
    let mut client = Client::connect(gateway.address);
    until("a request is denied", || client.get("/", "").status == 429);
}

/// Asks until requests pass without the store, then some more: each passes and none waits.
fn assert_requests_pass_unlimited(gateway: &Gateway) {
    longest_wait_since(Instant::now());
    let mut unlimited = 0;
    until("requests pass without the store", || {
        let start = Instant::now();
        let response = ask_as_new_user(gateway.address);
        assert_eq!(response.status, 200, "{response:?}");
        assert_not_slow(start.elapsed(), start);
        unlimited += usize::from(rate_limit(&response).is_empty());
        unlimited >= 20
    });
}

/// Clients that ask without pause while something happens, each as a user of its own on a connection of its own. Gives
/// all their answers with the time each took.
fn under_load(address: SocketAddr, clients: usize, what: impl FnOnce()) -> Vec<(Response, Duration)> {
    load::under_load(address, clients, what).into_iter().flatten().collect()
}
