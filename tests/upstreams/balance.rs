//! Whose turn it is, as numbers.

use super::moody::{Mood, Moody};
use super::{black_hole, gateway, gateway_of};
use crate::support::client::Client;
use crate::support::gateway::{Gateway, config};
use crate::support::store::api_key;
use crate::support::until;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const REQUESTS: usize = 3_000;

/// Sends this many requests over so many connections at once; all are answered well.
fn ask(address: SocketAddr, requests: usize, clients: usize) {
    let left = AtomicUsize::new(requests);
    let more = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                while more() {
                    assert_eq!(client.get("/", "").status, 200);
                }
            });
        }
    });
}

/// Asks and gives the requests that each got.
fn counts(gateway: &Gateway, servers: &[&Moody], requests: usize, clients: usize) -> Vec<usize> {
    let before: Vec<usize> = servers.iter().map(|server| server.requests()).collect();
    ask(gateway.address, requests, clients);
    let counts: Vec<usize> = servers.iter().zip(before).map(|(server, before)| server.requests() - before).collect();
    assert_eq!(counts.iter().sum::<usize>(), requests);
    counts
}

fn moody<const N: usize>() -> [Moody; N] {
    std::array::from_fn(|_| Moody::new())
}

fn are_within(counts: &[usize], shares: &[usize], percent: usize) {
    for (count, share) in counts.iter().zip(shares) {
        assert!(count.abs_diff(*share) * 100 <= share * percent, "{counts:?} for {shares:?}");
    }
}

fn weighted(servers: &[Moody], weights: &[u32]) -> Vec<String> {
    let servers = servers.iter().zip(weights);
    servers.map(|(server, weight)| format!("{{ address = \"{}\", weight = {weight} }}", server.address)).collect()
}

#[test]
fn in_turn_each_gets_its_share_over_one_connection_and_over_many() {
    let servers = moody::<3>();
    let gateway = gateway(&servers.each_ref().map(|server| server.address), "");
    for clients in [1, 32] {
        are_within(&counts(&gateway, &servers.each_ref(), REQUESTS, clients), &[1_000; 3], 1);
    }
}

#[test]
fn in_turn_shares_follow_the_weights() {
    let servers = moody::<3>();
    let gateway = gateway_of(&weighted(&servers, &[5, 3, 1]), "");
    for clients in [1, 32] {
        are_within(&counts(&gateway, &servers.each_ref(), 2_700, clients), &[1_500, 900, 300], 1);
    }
}

#[test]
fn a_server_that_stands_there_twice_gets_twice_the_share() {
    let servers = moody::<2>();
    let [one, two] = servers.each_ref().map(|server| server.address);
    let gateway = gateway(&[one, two, one], "");
    are_within(&counts(&gateway, &servers.each_ref(), 1_500, 8), &[1_000, 500], 1);
}

#[test]
fn the_one_with_fewer_requests_is_asked_so_a_slow_one_gets_few() {
    let servers = moody::<3>();
    let gateway = gateway(&servers.each_ref().map(|server| server.address), "balance = \"least_requests\"");
    servers[1].be(Mood::Holds);
    let ask_one = |_| {
        let mut client = Client::connect(gateway.address);
        let before = servers.each_ref().map(Moody::requests);
        client.send(super::GET);
        until("it has arrived", || servers.each_ref().map(Moody::requests) != before);
        client
    };
    // Over connections of their own, so that both workers meet it.
    let clients: Vec<Client> = (0..40).map(ask_one).collect();
    let held = servers[1].under_way();
    assert!((1..=2).contains(&held), "each worker asks it once and waits: {held}");
    // One at a time, again over both workers: the others have none under way.
    for _ in 0..10 {
        assert_eq!(counts(&gateway, &[&servers[0], &servers[2]], 100, 1).len(), 2);
    }
    assert_eq!(servers[1].requests(), held);
    servers[1].be(Mood::Well);
    for mut client in clients {
        assert_eq!(client.response().status, 200);
    }
}

#[test]
fn a_server_that_takes_no_connections_does_not_look_idle() {
    let (_listener, _only, hole) = black_hole();
    let server = Moody::new();
    let lines = "balance = \"least_requests\"\ntimeouts = { connect = \"10s\" }";
    let text = config("", &[hole, server.address], "").replace("workers = 2", "workers = 1");
    let gateway = Gateway::start(&text.replace("[[routes]]", &format!("{lines}\n[[routes]]")));
    let connections = format!("rateguard_upstream_server_connections{{upstream=\"app\",server=\"{hole}\"}}");
    let mut clients = Vec::new();
    until("one is tried there", || {
        let mut client = Client::connect(gateway.address);
        client.send(super::GET);
        clients.push(client);
        gateway.metric(&connections) > 0.0
    });
    let answered = "rateguard_requests_total{route=\"/\",status=\"2xx\"}";
    until("the others have none under way", || gateway.metric(answered) as usize == clients.len() - 1);
    let start = Instant::now();
    ask(gateway.address, 30, 1);
    assert!(start.elapsed() < Duration::from_secs(9), "somebody had to wait for it");
}

#[test]
fn where_all_are_idle_fewest_requests_follows_the_weights() {
    let servers = moody::<3>();
    let gateway = gateway_of(&weighted(&servers, &[2, 1, 1]), "balance = \"least_requests\"");
    // One request at a time, so nobody has any: a draw by weight, within five standard deviations.
    let counts = counts(&gateway, &servers.each_ref(), 4_000, 1);
    are_within(&counts, &[2_000, 1_000, 1_000], 14);
}

/// Which server each of the users meets, asked twice over connections of their own.
fn homes(gateway: &Gateway, servers: &[Moody], users: usize) -> Vec<usize> {
    let mut client = Client::connect(gateway.address);
    let home = |user| {
        let before: Vec<usize> = servers.iter().map(Moody::requests).collect();
        assert_eq!(client.get("/", &api_key(&format!("user-{user}"))).status, 200);
        servers.iter().zip(before).position(|(server, before)| server.requests() > before).unwrap()
    };
    (0..users).map(home).collect()
}

#[test]
fn a_user_is_always_at_the_same_server_on_every_worker_and_gateway() {
    const USERS: usize = 300;
    let servers = moody::<3>();
    let addresses = servers.each_ref().map(|server| server.address);
    // The order in a configuration does not matter.
    let other = [addresses[2], addresses[0], addresses[1]];
    let gateways = [addresses, other].map(|servers| gateway(&servers, "balance = \"hash\""));
    let at_first = homes(&gateways[0], &servers, USERS);
    for gateway in &gateways {
        // Many connections: over both workers.
        for _ in 0..4 {
            assert_eq!(homes(gateway, &servers, USERS), at_first);
        }
    }
    let counts = [0, 1, 2].map(|server| at_first.iter().filter(|home| **home == server).count());
    are_within(&counts, &[100; 3], 35);
}

#[test]
fn when_a_server_dies_only_its_users_move_and_they_come_back() {
    const USERS: usize = 150;
    let servers = moody::<3>();
    let health = "balance = \"hash\"\nhealth = { unhealthy_after = 1, eject = \"500ms\" }";
    let gateway = gateway(&servers.each_ref().map(|server| server.address), health);
    let before = homes(&gateway, &servers, USERS);
    servers[1].be(Mood::SaysAndEnds(""));
    // Whoever tries it is answered by another: where it was tried is no home.
    let mut client = Client::connect(gateway.address);
    for (user, &home) in before.iter().enumerate() {
        let counts = [0, 2].map(|server| servers[server].requests());
        assert_eq!(client.get("/", &api_key(&format!("user-{user}"))).status, 200);
        let at = [0, 2].into_iter().zip(counts).find(|(server, count)| servers[*server].requests() > *count);
        assert!(home == 1 || at.unwrap().0 == home, "user {user} has moved from {home} to {at:?}");
    }
    servers[1].be(Mood::Well);
    until("it is back", || {
        assert_eq!(client.get("/", "").status, 200);
        gateway.log_of("server is back").len() == 1
    });
    assert_eq!(homes(&gateway, &servers, USERS), before);
}

#[test]
fn a_slow_start_moves_no_users() {
    let servers = moody::<2>();
    let health = "balance = \"hash\"\nhealth = { unhealthy_after = 1, eject = \"200ms\", slow_start = \"1h\" }";
    let gateway = gateway(&servers.each_ref().map(|server| server.address), health);
    let before = homes(&gateway, &servers, 60);
    servers[1].be(Mood::SaysAndEnds(""));
    let mut client = Client::connect(gateway.address);
    until("it is sick", || {
        for user in 0..60 {
            assert_eq!(client.get("/", &api_key(&format!("user-{user}"))).status, 200);
        }
        gateway.log_of("server is left alone").len() == 1
    });
    servers[1].be(Mood::Well);
    until("it is back", || {
        assert_eq!(client.get("/", "").status, 200);
        gateway.log_of("server is back").len() == 1
    });
    assert_eq!(homes(&gateway, &servers, 60), before);
}

#[test]
fn backups_are_asked_only_while_all_others_are_sick() {
    let servers = moody::<3>();
    let mut items = weighted(&servers, &[1, 1, 1]);
    items[2] = format!("{{ address = \"{}\", backup = true }}", servers[2].address);
    let gateway = gateway_of(&items, "health = { unhealthy_after = 1, eject = \"300ms\" }");
    assert_eq!(counts(&gateway, &servers.each_ref(), 200, 8)[2], 0);
    servers[0].be(Mood::SaysAndEnds(""));
    // Others that are well are enough.
    ask(gateway.address, 200, 8);
    assert_eq!(servers[2].requests(), 0);
    servers[1].be(Mood::SaysAndEnds(""));
    let mut client = Client::connect(gateway.address);
    until("both are sick, and it takes their place", || {
        client.get("/", "");
        servers[2].requests() >= 20
    });
    servers[..2].iter().for_each(|server| server.be(Mood::Well));
    until("both are back", || {
        client.get("/", "");
        [0, 1].iter().all(|&server| {
            let address = servers[server].address;
            gateway.metric(&format!("rateguard_upstream_server_up{{upstream=\"app\",server=\"{address}\"}}")) == 1.0
        })
    });
    assert_eq!(counts(&gateway, &servers.each_ref(), 200, 8)[2], 0);
}

#[test]
fn a_backup_gets_the_request_that_all_others_have_failed() {
    let servers = moody::<2>();
    let mut items = weighted(&servers, &[1, 1]);
    items[1] = format!("{{ address = \"{}\", backup = true }}", servers[1].address);
    let gateway = gateway_of(&items, "");
    servers[0].be(Mood::SaysAndEnds(""));
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/", "").status, 200);
    servers[0].be(Mood::Well);
    assert_eq!(client.get("/", "").status, 200);
    assert_eq!(servers.each_ref().map(Moody::requests), [2, 1]);
}

#[test]
fn a_backup_that_is_sick_is_not_tried_while_it_is_not_needed() {
    let servers = moody::<2>();
    let mut items = weighted(&servers, &[1, 1]);
    items[1] = format!("{{ address = \"{}\", backup = true }}", servers[1].address);
    let gateway = gateway_of(&items, "health = { unhealthy_after = 1, eject = \"100ms\" }");
    servers.iter().for_each(|server| server.be(Mood::SaysAndEnds("")));
    let mut client = Client::connect(gateway.address);
    until("both are sick", || {
        client.get("/", "");
        gateway.log_of("server is left alone").len() == 2
    });
    servers[0].be(Mood::Well);
    until("the first is back", || {
        client.get("/", "");
        gateway.log_of("server is back").len() == 1
    });
    let before = servers[1].requests();
    // Long beyond its ejection.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1_500) {
        assert_eq!(client.get("/", "").status, 200);
    }
    assert_eq!(servers[1].requests(), before);
}
