//! Redis in every arrangement: limits hold as on one server, and go on holding while it changes.

/// Slots, moves and killed primaries.
mod cluster;

/// The primary that sentinels name.
mod sentinel;

/// RESP2 and RESP3.
mod versions;

use crate::support::client::{Client, Response};
use crate::support::fields::rate_limit;
use crate::support::gateway::{Gateway, config};
use crate::support::store::{api_key, backend, decisions};
use crate::support::{load, until};
use std::net::SocketAddr;

/// A gateway on the store at this URL. The deadline is far away where time is not the subject.
fn gateway(url: &str, store: &str, rest: &str) -> Gateway {
    let store = format!("[store]\nurl = \"{url}\"\n{store}\n");
    Gateway::start(&config("", &[backend()], &format!("{store}{rest}")))
}

/// Asks as this user, once.
fn ask(gateway: &Gateway, user: &str) -> Response {
    Client::connect(gateway.address).get("/", &api_key(user))
}

/// Whether the store has decided.
fn is_limited(response: &Response) -> bool {
    !rate_limit(response).is_empty()
}

fn count(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&decisions("x", outcome))
}

/// Waits until the store decides for many users in a row, on either worker.
fn until_limits_hold(gateway: &Gateway) {
    let mut held = 0;
    until("limits hold for forty requests in a row", || {
        held = if is_limited(&ask(gateway, &format!("holds-{held}"))) { held + 1 } else { 0 };
        held >= 40
    });
}

/// Users that ask all the time, each on a connection of its own, until `what` is over. Gives each one's answers.
fn under_load(address: SocketAddr, users: usize, what: impl FnOnce()) -> Vec<Vec<Response>> {
    let answers = load::under_load(address, users, what);
    answers.into_iter().map(|of_one| of_one.into_iter().map(|(answer, _)| answer).collect()).collect()
}

/// Checks that every request passed or was denied.
fn assert_none_failed(answers: &[Vec<Response>]) {
    let failed: Vec<&Response> =
        answers.iter().flatten().filter(|answer| !matches!(answer.status, 200 | 429)).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
