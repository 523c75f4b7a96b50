//! Many clients at the same moment: exactly as many pass as the bucket holds.

use crate::support::client::Client;
use crate::support::fields::{rate_limit, remaining};
use crate::support::store::{Store, api_key, is_leased, limit, limit_with, tokens, user_of};
use crate::support::until;
use std::net::SocketAddr;
use std::sync::{Barrier, Mutex};

const CLIENTS: usize = 64;

/// Connections of each client to each gateway.
const CONNECTIONS: usize = 2;

/// Requests on each connection.
const REQUESTS: usize = 2;

const ROUNDS: usize = 10;
const BURST: usize = 10;

/// All clients ask at once as the same user, over connections that are open already. Gives for each round how many
/// passed, and what each denial said was left of these limits.
fn race(gateways: &[SocketAddr], limits: &[&str]) -> Vec<(usize, Vec<Vec<i64>>)> {
    let start = Barrier::new(CLIENTS);
    let rounds: Vec<_> = (0..ROUNDS).map(|_| Mutex::new((0, Vec::new()))).collect();
    let run = || {
        let addresses = gateways.iter().cycle().take(gateways.len() * CONNECTIONS);
        let mut clients: Vec<Client> = addresses.map(|address| Client::connect(*address)).collect();
        for (round, counted) in rounds.iter().enumerate() {
            let request = format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", api_key(&format!("user-{round}")));
            start.wait();
            for client in &mut clients {
                client.send(request.repeat(REQUESTS));
            }
            let responses: Vec<_> = clients
                .iter_mut()
                .flat_map(|client| (0..REQUESTS).map(|_| client.response()).collect::<Vec<_>>())
                .collect();
            let mut counted = counted.lock().unwrap();
            for response in responses {
                assert!(!rate_limit(&response).is_empty(), "the limits did not decide: {response:?}");
                match response.status {
                    200 => counted.0 += 1,
                    429 => counted.1.push(limits.iter().map(|limit| remaining(&response, limit)).collect()),
                    _ => panic!("{response:?}"),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(run);
        }
    });
    rounds.into_iter().map(|round| round.into_inner().unwrap()).collect()
}

fn assert_exactly_the_burst_passed(gateways: &[SocketAddr]) {
    for (round, (passed, denied)) in race(gateways, &["x"]).into_iter().enumerate() {
        assert_eq!(passed, BURST, "in round {round}");
        assert_eq!(denied.len(), CLIENTS * CONNECTIONS * REQUESTS * gateways.len() - BURST);
        assert!(denied.iter().all(|left| left == &[0]), "{denied:?}");
    }
}

#[test]
fn exactly_the_burst_passes_through_two_gateways_on_one_redis() {
    let store = Store::redis();
    let rule = limit("x", "\"user\"", BURST as u64);
    let gateways = [store.gateway(&rule), store.gateway(&rule)];
    assert_exactly_the_burst_passed(&gateways.each_ref().map(|gateway| gateway.address));
}

#[test]
fn exactly_the_burst_passes_through_one_gateway_on_redis() {
    let store = Store::redis();
    let gateway = store.gateway(&limit("x", "\"user\"", BURST as u64));
    assert_exactly_the_burst_passed(&[gateway.address]);
}

/// With tokens taken ahead, what one worker holds another cannot give: so fewer may pass at once, and never more. What is
/// unspent is back soon after.
#[test]
fn never_more_than_the_burst_passes_with_leases() {
    const MANY: i64 = 200;
    const LEASE: i64 = 20;
    let store = Store::redis();
    let rule = limit_with("x", "\"user\"", MANY as u64, &format!("lease = {LEASE}"));
    let gateways = [store.gateway(&rule), store.gateway(&rule)];
    let rounds = race(&gateways.each_ref().map(|gateway| gateway.address), &["x"]);
    let leased: f64 = gateways.iter().map(|gateway| gateway.metric("rateguard_leased_total")).sum();
    assert!(leased > 0.0, "nothing was leased");
    for (round, (passed, _)) in rounds.into_iter().enumerate() {
        let passed = passed as i64;
        assert!((MANY - 4 * LEASE..=MANY).contains(&passed), "{passed} in round {round}");
        let key = format!("rate_limit:{{{}}}:-:x", user_of(&format!("user-{round}")));
        until("nothing is on lease", || !is_leased(&store, &key));
        let left = tokens(&store, &key);
        assert!(passed + left <= MANY, "{passed} passed and {left} are left in round {round}");
    }
}

#[test]
fn exactly_the_burst_passes_through_the_workers_of_one_process() {
    let gateway = Store::memory().gateway(&limit("x", "\"user\"", BURST as u64));
    assert_exactly_the_burst_passed(&[gateway.address]);
}

/// All-or-none, also while everybody charges the same three buckets.
fn the_smallest_of_three_limits_decides(store: &Store, gateways: usize) {
    let rules = [limit("large", "\"user\"", 30), limit("small", "\"user\"", 10), limit("medium", "\"user\"", 15)];
    let gateways: Vec<_> = (0..gateways).map(|_| store.gateway(&rules.concat())).collect();
    let addresses: Vec<SocketAddr> = gateways.iter().map(|gateway| gateway.address).collect();
    for (round, (passed, denied)) in race(&addresses, &["large", "small", "medium"]).into_iter().enumerate() {
        assert_eq!(passed, 10, "in round {round}");
        assert!(denied.iter().all(|left| left == &[20, 0, 5]), "in round {round}: {denied:?}");
    }
}

#[test]
fn the_smallest_of_three_limits_decides_in_memory() {
    the_smallest_of_three_limits_decides(&Store::memory(), 1);
}

#[test]
fn the_smallest_of_three_limits_decides_through_two_gateways_on_one_redis() {
    the_smallest_of_three_limits_decides(&Store::redis(), 2);
}
