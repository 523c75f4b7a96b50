use super::{ask, assert_none_failed, count, gateway, is_limited, under_load, until_limits_hold};
use crate::support::client::Response;
use crate::support::cluster::{Cluster, PRIMARIES, slot_of};
use crate::support::fields::remaining;
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::store::{decisions, limit, user_of};
use crate::support::until;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// The others wait a second before they call a primary down, then they vote, and the map is asked for a few times a second.
const FAILOVER_MAX: Duration = Duration::from_secs(15);

fn start(cluster: &Cluster, store: &str, rest: &str) -> Gateway {
    let gateway = gateway(&cluster.url(), store, rest);
    until("both workers are connected to all primaries", || {
        gateway.metric("rateguard_store_connections") == 2.0 * PRIMARIES as f64
    });
    gateway
}

/// A user whose bucket belongs to this primary.
fn user_on(cluster: &Cluster, primary: usize) -> String {
    let user = |number: usize| format!("user-{number}");
    let place = |user: &String| cluster.owner_of(&key(user));
    (0..).map(user).find(|user| place(user) == primary).unwrap()
}

fn key(user: &str) -> String {
    format!("rate_limit:{{{}}}:-:x", user_of(user))
}

#[test]
fn each_bucket_is_on_the_primary_that_has_its_slot() {
    let cluster = Cluster::of_primaries();
    let gateway = start(&cluster, "deadline = \"5s\"", &limit("x", "\"user\"", 2));
    for number in 0..30 {
        let user = format!("u{number}");
        assert_eq!([0; 3].map(|_| ask(&gateway, &user).status), [200, 200, 429], "{user}");
        let owner = &cluster.servers[cluster.owner_of(&key(&user))];
        let exists: bool = redis::cmd("EXISTS").arg(key(&user)).query(&mut owner.connection()).unwrap();
        assert!(exists, "{user}");
    }
    assert_eq!(count(&gateway, "fail_open"), 0.0);
    assert_eq!(gateway.log_of("the store answered with an error").len(), 0);
}

/// Slots move to and fro while users ask; whatever state a move is in, each token is spent once and nobody passes unlimited.
#[test]
fn limits_are_exact_while_slots_move() {
    const BURST: i64 = 400;
    let cluster = Cluster::of_primaries();
    // The second limit's keys are in the same slots: in the middle of a move, on two servers.
    let second = limit("y", "\"user\", \"endpoint\"", 2 * BURST as u64);
    let gateway = start(&cluster, "deadline = \"5s\"", &(limit("x", "\"user\"", BURST as u64) + &second));
    let users = 3;
    let slots: Vec<(u16, usize)> = (0..users)
        .map(|number| key(&format!("loader-{number}")))
        .map(|key| (slot_of(&key), cluster.owner_of(&key)))
        .collect();
    let answers = under_load(gateway.address, users, || {
        for round in 0..6 {
            for &(slot, home) in &slots {
                let (from, to) = ((home + round) % PRIMARIES, (home + round + 1) % PRIMARIES);
                let keys = cluster.begin_move(slot, from, to);
                cluster.move_keys(&keys, from, to);
                // A bucket may have come to be on the old server meanwhile.
                let late = cluster.begin_move(slot, from, to);
                cluster.move_keys(&late, from, to);
                cluster.end_move(slot, to);
            }
        }
        until("all users have spent their tokens", || count(&gateway, "allow") >= (users as i64 * BURST) as f64);
    });
    assert_none_failed(&answers);
    assert!(answers.iter().flatten().all(is_limited), "somebody passed without the store");
    let spent = |answers: &Vec<Response>| -> Vec<i64> {
        answers.iter().filter(|answer| answer.status == 200).map(|answer| remaining(answer, "x")).collect()
    };
    let spent: Vec<Vec<i64>> = answers.iter().map(spent).collect();
    let in_turn: Vec<i64> = (0..BURST).rev().collect();
    assert!(spent.iter().all(|spent| *spent == in_turn), "tokens left after each request that passed: {spent:?}");
    let errors = gateway.log_of("the store answered with an error");
    assert!(errors.is_empty(), "{errors:?}");
}

/// The levels of the limits x and y after a request.
fn left(gateway: &Gateway, user: &str) -> (u16, i64, i64) {
    let answer = ask(gateway, user);
    (answer.status, remaining(&answer, "x"), remaining(&answer, "y"))
}

#[test]
fn limits_in_different_slots_are_charged_all_or_none() {
    let cluster = Cluster::of_primaries();
    let rules = limit("x", "\"user\"", 3) + &limit("y", "", 5);
    let gateway = start(&cluster, "deadline = \"5s\"", &rules);
    let users: Vec<String> = (0..PRIMARIES).map(|primary| user_on(&cluster, primary)).collect();
    assert_eq!(left(&gateway, &users[0]), (200, 2, 4));
    assert_eq!(left(&gateway, &users[0]), (200, 1, 3));
    assert_eq!(left(&gateway, &users[0]), (200, 0, 2));
    // Denied by the user's own limit, which takes nothing from the one for all.
    assert_eq!(ask(&gateway, &users[0]).status, 429);
    assert_eq!(left(&gateway, &users[1]), (200, 2, 1));
    assert_eq!(left(&gateway, &users[1]), (200, 1, 0));
    // Denied by the one for all, which takes nothing from anybody.
    for user in &users[1..] {
        let denied = ask(&gateway, user);
        assert_eq!((denied.status, denied.json()["limit"].as_str()), (429, Some("y")));
    }
    let stored = |user: &str| -> Option<String> {
        let owner = &cluster.servers[cluster.owner_of(&key(user))];
        redis::cmd("GET").arg(key(user)).query(&mut owner.connection()).unwrap()
    };
    let bucket = stored(&users[1]).unwrap();
    let units: u64 = bucket.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(units / 86_400_000_000, 1, "{bucket}: one token is left");
    assert_eq!(stored(&users[2]), None, "a full bucket is no key");
    assert_eq!(count(&gateway, "fail_open"), 0.0);
}

/// Many at once, each under a limit of its own and one for all in another slot: whoever wins, no more than it grants.
#[test]
fn a_race_over_two_slots_admits_no_more_than_the_limit() {
    const BURST: usize = 60;
    let cluster = Cluster::of_primaries();
    let rules = limit("x", "\"user\"", 50) + &limit("y", "", BURST as u64);
    let gateway = start(&cluster, "deadline = \"5s\"", &rules);
    let answers = under_load(gateway.address, 16, || {
        until("somebody of all is denied", || gateway.metric(&decisions("y", "deny")) >= 50.0);
    });
    assert_none_failed(&answers);
    assert!(answers.iter().flatten().all(is_limited));
    assert_eq!(answers.iter().flatten().filter(|answer| answer.status == 200).count(), BURST);
}

/// All who are sent to a server that nobody has spoken to yet wait for its connection, and no longer than that.
#[test]
fn many_are_sent_to_a_new_server_at_once() {
    let cluster = Cluster::of_primaries();
    let gateway = start(&cluster, "deadline = \"5s\"", &limit("x", "\"user\"", 100));
    let user = user_on(&cluster, 0);
    let slot = slot_of(&key(&user));
    let newcomer = cluster.join();
    let keys = cluster.begin_move_to(slot, 0, &newcomer);
    assert!(keys.is_empty());
    let start = Instant::now();
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..20).map(|_| scope.spawn(|| ask(&gateway, &user))).collect();
        asks.into_iter().map(|ask| ask.join().unwrap()).collect()
    });
    assert!(answers.iter().all(is_limited), "somebody passed without the store");
    assert!(start.elapsed() < Duration::from_secs(4), "somebody waited for the deadline");
}

/// Servers that are known by name are resolved before anybody passes unlimited.
#[test]
fn servers_may_be_announced_by_name() {
    let cluster = Cluster::of_primaries();
    for server in &cluster.servers {
        for (key, value) in
            [("cluster-announce-hostname", "localhost"), ("cluster-preferred-endpoint-type", "hostname")]
        {
            redis::cmd("CONFIG").arg(&["SET", key, value]).exec(&mut server.connection()).unwrap();
        }
    }
    until("all know the names", || {
        cluster.servers.iter().all(|server| {
            let map: String = redis::cmd("CLUSTER").arg("NODES").query(&mut server.connection()).unwrap();
            map.matches(",localhost").count() == PRIMARIES
        })
    });
    let gateway = gateway(&cluster.url(), "deadline = \"5s\"", &limit("x", "\"user\"", 2));
    for number in 0..50 {
        let answer = ask(&gateway, &format!("first-{number}"));
        assert!(is_limited(&answer), "{number}: {answer:?}");
    }
    assert!(
        gateway.log_of("store connected").iter().all(|line| line["server"].as_str().unwrap().contains("localhost"))
    );
    assert_eq!(gateway.log_of("store lost; trying to reconnect").len(), 0, "{:?}", gateway.log());
}

/// Whoever speaks for the cluster may say anything: it is refused, and nobody falls.
#[test]
fn absurd_maps_are_refused() {
    let range = |first: &str, last: &str| format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n$9\r\n127.0.0.1\r\n:1\r\n");
    for map in [
        format!("*1\r\n{}", range("10", "5")),
        format!("*1\r\n{}", range("0", "99999")),
        format!("*1\r\n{}", range("-1", "5")),
        format!("*2\r\n{}{}", range("0", "16383"), range("0", "16383")),
        "*0\r\n".into(),
        "$18446744073709551591\r\n".into(),
        "*50000000\r\n$18446744073709551588\r\n".into(),
        "-ERR This instance has cluster support disabled\r\n".into(),
    ] {
        let said = map.clone();
        let liar = Origin::new(move |mut stream, _| {
            while stream.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0) {
                if stream.write_all(said.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let mut gateway = gateway(&format!("redis+cluster://{}", liar.address), "", &limit("x", "\"user\"", 2));
        until("both workers have told", || gateway.log_of("no server tells the map of the cluster").len() == 2);
        assert_eq!(ask(&gateway, "alice").status, 200);
        assert!(gateway.is_alive(), "{map:?}");
    }
}

/// Half of a user's keys have gone over: each by itself is somewhere.
#[test]
fn keys_of_one_slot_on_two_servers_are_charged_one_by_one() {
    let cluster = Cluster::of_primaries();
    let rules = limit("x", "\"user\"", 5) + &limit("y", "\"user\", \"endpoint\"", 9);
    let gateway = start(&cluster, "deadline = \"5s\"", &rules);
    let user = user_on(&cluster, 0);
    let slot = slot_of(&key(&user));
    assert_eq!(left(&gateway, &user), (200, 4, 8));
    cluster.begin_move(slot, 0, 1);
    cluster.move_keys(&[key(&user)], 0, 1);
    assert_eq!(left(&gateway, &user), (200, 3, 7));
    assert_eq!(left(&gateway, &user), (200, 2, 6));
    // Somebody who is new has none of his keys anywhere.
    let namesake = (0..).map(|number| format!("new-{number}")).find(|name| slot_of(&key(name)) == slot).unwrap();
    assert_eq!(left(&gateway, &namesake), (200, 4, 8));
    assert_eq!(count(&gateway, "fail_open"), 0.0);
    assert_eq!(gateway.metric("rateguard_store_errors_total{kind=\"cluster\"}"), 0.0);
}

#[test]
fn where_one_of_two_servers_is_gone_nothing_is_taken_on_the_other() {
    let mut cluster = Cluster::of_primaries();
    let rules = limit("x", "\"user\"", 3) + &limit("y", "", 5);
    let gateway = start(&cluster, "deadline = \"5s\"\non_failure = \"closed\"", &rules);
    let of_all = cluster.owner_of("rate_limit:{-}:-:y");
    let elsewhere = (of_all + 1) % PRIMARIES;
    let user = user_on(&cluster, elsewhere);
    assert_eq!(left(&gateway, &user), (200, 2, 4));
    let spent = (0..).map(|number| format!("spent-{number}")).find(|name| cluster.owner_of(&key(name)) == elsewhere);
    let spent = spent.unwrap();
    assert_eq!([0; 3].map(|_| ask(&gateway, &spent).status), [200; 3]);
    cluster.servers[of_all].kill();
    until("the loss is noticed", || ask(&gateway, &user).status == 503);
    // Whoever is denied where there is an answer stays denied.
    assert_eq!(ask(&gateway, &spent).status, 429);
    for _ in 0..5 {
        assert_eq!(ask(&gateway, &user).status, 503);
    }
    let mut owner = cluster.servers[elsewhere].connection();
    let bucket: String = redis::cmd("GET").arg(key(&user)).query(&mut owner).unwrap();
    assert!(bucket.starts_with("172800000000 "), "{bucket}: two tokens are left");
}

/// In the middle of a move a bucket that has gone over is asked for there, and one that is still here is asked for here.
#[test]
fn a_slot_under_way_is_asked_for_where_its_bucket_is() {
    let cluster = Cluster::of_primaries();
    let gateway = start(&cluster, "deadline = \"5s\"", &limit("x", "\"user\"", 5));
    let user = user_on(&cluster, 0);
    let slot = slot_of(&key(&user));
    assert_eq!(remaining(&ask(&gateway, &user), "x"), 4);
    let keys = cluster.begin_move(slot, 0, 1);
    assert_eq!(keys, [key(&user)]);
    assert_eq!(remaining(&ask(&gateway, &user), "x"), 3);
    cluster.move_keys(&keys, 0, 1);
    // ASK each time: the slot is not the other's yet.
    assert_eq!(remaining(&ask(&gateway, &user), "x"), 2);
    // Its new server does not know the script any more: asked once more, and announced once more.
    redis::cmd("SCRIPT").arg("FLUSH").exec(&mut cluster.servers[1].connection()).unwrap();
    assert_eq!(remaining(&ask(&gateway, &user), "x"), 1);
    cluster.end_move(slot, 1);
    // MOVED once for each worker, then straight.
    for left in [0, 0, 0] {
        assert_eq!(remaining(&ask(&gateway, &user), "x"), left);
    }
    assert_eq!(count(&gateway, "fail_open"), 0.0);
}

#[test]
fn a_killed_primary_costs_its_slots_a_failover_and_the_others_nothing() {
    let mut cluster = Cluster::with_replicas();
    let gateway = start(&cluster, "", &limit("x", "\"user\"", 100_000));
    let users = [0, 1, 2].map(|primary| user_on(&cluster, primary));
    let answers = under_load(gateway.address, 2, || {
        cluster.servers[0].kill();
        until("its users pass without the store", || !is_limited(&ask(&gateway, &users[0])));
        let killed = Instant::now();
        while !is_limited(&ask(&gateway, &users[0])) {
            for other in &users[1..] {
                assert_eq!(ask(&gateway, other).status, 200);
            }
            assert!(killed.elapsed() < FAILOVER_MAX, "no failover within {FAILOVER_MAX:?}");
        }
    });
    assert_none_failed(&answers);
    until_limits_hold(&gateway);
    let lost = gateway.log_of("store lost; trying to reconnect");
    let dead = format!("127.0.0.1:{}", cluster.servers[0].port);
    assert!(lost.iter().all(|line| line["server"] == dead.as_str()), "{lost:?}");
    until("both workers have let go of it", || gateway.log_of("the server has left the store's cluster").len() == 2);
}

#[test]
fn a_cluster_that_is_not_there_lets_requests_pass_and_is_found_later() {
    let mut cluster = Cluster::of_primaries();
    for server in &mut cluster.servers {
        server.kill();
    }
    let gateway = gateway(&cluster.url(), "", &limit("x", "\"user\"", 2));
    until("both workers have told", || gateway.log_of("no server tells the map of the cluster").len() == 2);
    assert_eq!(ask(&gateway, "alice").status, 200);
    for server in &mut cluster.servers {
        server.launch();
    }
    cluster.settle();
    until_limits_hold(&gateway);
    assert_eq!(gateway.log_of("the map of the cluster is known").len(), 2);
}

/// Who names one of a cluster's servers as if it were the only one is told of the mistake, and nobody hangs.
#[test]
fn a_cluster_s_server_that_is_taken_for_the_only_one_says_so() {
    let cluster = Cluster::of_primaries();
    let gateway = gateway(&cluster.servers[0].url(), "deadline = \"5s\"", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    let elsewhere = user_on(&cluster, 1);
    let answer = ask(&gateway, &elsewhere);
    assert_eq!((answer.status, is_limited(&answer)), (200, false));
    until("it is logged", || !gateway.log_of("the store answered with an error").is_empty());
    let said = &gateway.log_of("the store answered with an error")[0];
    assert!(said["error"].as_str().unwrap().starts_with("MOVED "), "{said}");
    assert!(is_limited(&ask(&gateway, &user_on(&cluster, 0))));
    assert_eq!(gateway.metric("rateguard_store_errors_total{kind=\"cluster\"}"), 1.0);
}
