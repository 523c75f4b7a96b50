use super::{ask, assert_none_failed, count, gateway, is_limited, under_load, until_limits_hold};
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::sentinel::{PRIMARY, Watched, has_role};
use crate::support::store::limit;
use crate::support::until;
use std::time::{Duration, Instant};

/// The sentinels wait half a second before they call the primary down, then they vote, and what they decide takes a second
/// or two to come about.
const FAILOVER_MAX: Duration = Duration::from_secs(15);

fn wait_for_decisions(gateway: &Gateway) {
    let before = count(gateway, "allow");
    until("the store decides", || count(gateway, "allow") >= before + 100.0);
}

#[test]
fn a_killed_primary_is_replaced_by_its_replica() {
    let mut watched = Watched::start();
    let gateway = gateway(&watched.url(), "", &limit("x", "\"user\"", 100_000));
    gateway.until_store_connected();
    let url = watched.url();
    let answers = under_load(gateway.address, 4, || {
        wait_for_decisions(&gateway);
        watched.servers[0].kill();
        until("requests pass without the store", || count(&gateway, "fail_open") >= 20.0);
        let killed = Instant::now();
        wait_for_decisions(&gateway);
        assert!(killed.elapsed() < FAILOVER_MAX, "limits held again after {:?}", killed.elapsed());
    });
    assert_none_failed(&answers);
    assert!(has_role(&watched.servers[1], "master"), "{url}");
    until_limits_hold(&gateway);
}

/// What was spent before the failover is still spent: the replica has it.
#[test]
fn a_failover_by_hand_keeps_the_buckets() {
    let watched = Watched::start();
    let gateway = gateway(&watched.url(), "deadline = \"2s\"", &limit("x", "\"user\"", 3));
    gateway.until_store_connected();
    for expected in [200, 200, 200, 429] {
        assert_eq!(ask(&gateway, "alice").status, expected);
    }
    until("the replica has it all", || {
        let keys: usize = redis::cmd("DBSIZE").query(&mut watched.servers[1].connection()).unwrap();
        keys == 1
    });
    watched.fail_over();
    until("the replica is the primary", || has_role(&watched.servers[1], "master"));
    until("the old primary follows", || has_role(&watched.servers[0], "slave"));
    until_limits_hold(&gateway);
    let answer = ask(&gateway, "alice");
    assert!(answer.status == 429 && is_limited(&answer), "{answer:?}");
}

#[test]
fn sentinels_that_are_gone_or_want_a_password() {
    let mut watched = Watched::start_with("requirepass watch0r");
    let gone = watched.sentinels.remove(0).port;
    let url = watched.url().replace("redis+sentinel://", &format!("redis+sentinel://127.0.0.1:{gone},"));
    let store = "deadline = \"5s\"\nsentinel = { password = \"watch0r\" }";
    let gateway = gateway(&url, store, &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    assert_eq!([0; 3].map(|_| ask(&gateway, "alice").status), [200, 200, 429]);
}

/// A stale sentinel may name a server that follows another by now: it must not be charged, nor taken for the store.
#[test]
fn a_replica_is_not_taken_for_the_primary() {
    let replica = Redis::start();
    let nobody = crate::support::free_port();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(nobody).exec(&mut replica.connection()).unwrap();
    let named = replica.port;
    let sentinel = crate::support::origin::Origin::new(move |mut stream, _| {
        use std::io::{Read, Write};
        let port = named.to_string();
        while stream.read(&mut [0; 1024]).is_ok_and(|bytes| bytes > 0) {
            let answer = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    let gateway = gateway(&format!("redis+sentinel://{}/{PRIMARY}", sentinel.address), "", &limit("x", "\"user\"", 2));
    until("both workers have told", || gateway.log_of("store lost; trying to reconnect").len() == 2);
    let said = gateway.log_of("store lost; trying to reconnect");
    assert!(said.iter().all(|line| line["reason"].as_str().unwrap().contains("is a replica")), "{said:?}");
    assert_eq!(ask(&gateway, "alice").status, 200);
    redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).exec(&mut replica.connection()).unwrap();
    until_limits_hold(&gateway);
}

#[test]
fn a_name_that_the_sentinels_do_not_know_is_told() {
    let watched = Watched::start_with("");
    let url = watched.url().replace(PRIMARY, "nonsense");
    let gateway = gateway(&url, "", &limit("x", "\"user\"", 2));
    until("both workers have told", || gateway.log_of("store lost; trying to reconnect").len() == 2);
    let said = &gateway.log_of("store lost; trying to reconnect")[0];
    assert!(said["reason"].as_str().unwrap().contains("knows no \"nonsense\""), "{said}");
    assert_eq!(ask(&gateway, "alice").status, 200);
}
