use super::refusal::{DEADLINE, connected, passes_while, tell, until_error_is_logged};
use super::{
    assert_not_slow, assert_requests_pass_unlimited, errors, gateway, longest_wait_since, under_load, until_limits_hold,
};
use crate::support::gateway::Gateway;
use crate::support::redis::{Redis, hold_port, port_of};
use crate::support::store::{decisions, limit};
use crate::support::{free_port, until};
use std::path::Path;
use std::time::Instant;

const LOST: &str = "store lost; trying to reconnect";

/// What INFO says there.
fn info(connection: &mut redis::Connection, section: &str, line: &str) -> bool {
    let text: String = redis::cmd("INFO").arg(section).query(connection).unwrap();
    text.lines().any(|said| said == line)
}

fn rule() -> String {
    limit("x", "\"user\"", 2)
}

/// Lines of one kind, of which one a second and worker may be written.
fn assert_told_sparingly(gateway: &Gateway, since: Instant) {
    let lines = gateway.log_of("the store answered with an error").len() as u64;
    assert!((1..=2 * (since.elapsed().as_secs() + 2)).contains(&lines), "{lines} lines");
}

/// A snapshot cannot be written, since a folder stands in its place.
#[test]
fn requests_pass_while_snapshots_fail() {
    let redis = Redis::start_with(&["--save", "900 1"]);
    let gateway = connected(&redis, DEADLINE, &rule());
    let snapshot = Path::new(&redis.socket()).with_file_name("dump.rdb");
    let mut connection = redis.connection();
    let mut save = |outcome: &str| {
        tell(&redis, &["BGSAVE"]);
        until("the snapshot is over", || {
            info(&mut connection, "persistence", "rdb_bgsave_in_progress:0")
                && info(&mut connection, "persistence", &format!("rdb_last_bgsave_status:{outcome}"))
        });
    };
    let begun = Instant::now();
    let save = std::cell::RefCell::new(&mut save);
    let refuse = || {
        std::fs::create_dir(&snapshot).unwrap();
        save.borrow_mut()("err");
    };
    let stop = || {
        std::fs::remove_dir(&snapshot).unwrap();
        save.borrow_mut()("ok");
    };
    passes_while(&gateway, refuse, stop, "MISCONF", "misconfigured");
    assert_told_sparingly(&gateway, begun);
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
}

/// Somebody else's script runs without end.
#[test]
fn requests_pass_while_another_script_keeps_redis_busy() {
    let redis = Redis::start_with(&["--busy-reply-threshold", "50"]);
    let gateway = connected(&redis, DEADLINE, &rule());
    let mut busy = redis.connection();
    let mut connection = redis.connection();
    let running = std::cell::Cell::new(None);
    let refuse = || {
        running.set(Some(std::thread::spawn(move || {
            redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut busy).unwrap_err()
        })));
        until("Redis says that it is busy", || {
            let said = redis::cmd("PING").exec(&mut connection);
            said.is_err_and(|error| error.to_string().contains("BUSY") || error.code() == Some("BUSY"))
        });
    };
    passes_while(&gateway, refuse, || tell(&redis, &["SCRIPT", "KILL"]), "BUSY", "busy");
    let killed = running.take().unwrap().join().unwrap();
    assert!(killed.to_string().contains("killed"), "{killed}");
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
}

/// A server whose snapshot takes long to load: until the delay of each key is set to 0.
fn slow_to_load() -> Redis {
    let slow = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    let redis = Redis::start_with(&[&slow[..], &["--rdbcompression", "no", "--enable-debug-command", "yes"]].concat());
    tell(&redis, &["DEBUG", "POPULATE", "4000", "filler", "1500"]);
    redis
}

fn until_loading(redis: &Redis) {
    let mut connection = redis.connection();
    until("the server loads", || info(&mut connection, "persistence", "loading:1"));
}

const LOAD_FAST: [&str; 4] = ["CONFIG", "SET", "key-load-delay", "0"];

/// A server that loads while connections to it are open.
#[test]
fn requests_pass_while_redis_loads() {
    let redis = slow_to_load();
    let gateway = connected(&redis, DEADLINE, &rule());
    let mut reloading = redis.connection();
    let refuse = || {
        std::thread::spawn(move || redis::cmd("DEBUG").arg("RELOAD").exec(&mut reloading));
        until_loading(&redis);
    };
    passes_while(&gateway, refuse, || tell(&redis, &LOAD_FAST), "LOADING", "loading");
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
}

/// A server that was restarted and loads: connections are taken, and the script is not.
#[test]
fn requests_pass_after_a_restart_until_redis_has_loaded() {
    let mut redis = slow_to_load();
    let old = gateway(&redis.url(), "", &rule());
    old.until_store_connected();
    until_limits_hold(&old);
    tell(&redis, &["SAVE"]);
    redis.kill();
    redis.launch();
    until_loading(&redis);
    let new = gateway(&redis.url(), "", &rule());
    for gateway in [&old, &new] {
        assert_requests_pass_unlimited(gateway);
        assert!(errors(gateway, "disconnected") > 0.0);
        until("both workers have told", || gateway.log_of(LOST).len() >= 2);
        assert_eq!(gateway.log_of(LOST).len(), 2, "once by each worker: {:?}", gateway.log());
    }
    let reasons = new.log_of(LOST);
    let is_told = |line: &serde_json::Value| line["reason"].as_str().unwrap().contains("SCRIPT LOAD: LOADING");
    assert!(reasons.iter().all(is_told), "{reasons:?}");
    assert!(info(&mut redis.connection(), "persistence", "loading:1"), "it had loaded before the end of this");
    tell(&redis, &LOAD_FAST);
    for gateway in [&old, &new] {
        until_limits_hold(gateway);
    }
}

/// A failover, from the side of the server that was the primary: it becomes a replica, loses its new primary, and is
/// made a primary again.
#[test]
fn requests_pass_while_redis_is_a_replica_of_a_live_and_of_a_dead_primary() {
    let mut primary = Redis::start_with(&["--repl-diskless-sync-delay", "0"]);
    let redis = Redis::start_with(&["--replica-serve-stale-data", "no"]);
    let gateway = connected(&redis, DEADLINE, &rule());
    until_limits_hold(&gateway);
    let mut connection = redis.connection();
    tell(&redis, &["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    until("the replica is in step", || info(&mut connection, "replication", "master_link_status:up"));
    until("READONLY is counted", || {
        assert_requests_pass_unlimited(&gateway);
        errors(&gateway, "read_only") > 0.0
    });
    until_error_is_logged(&gateway, "READONLY");
    // It is asked again and again what it is, and not taken for the store.
    until("both workers have told what it is", || {
        assert_requests_pass_unlimited(&gateway);
        let lines = gateway.log_of("store still lost");
        lines.iter().filter(|line| line["reason"].as_str().unwrap().contains("is a replica")).count() == 2
    });
    assert_eq!(gateway.metric("rateguard_store_connections"), 0.0);
    assert_eq!((gateway.log_of("store connected").len(), gateway.log_of(LOST).len()), (2, 2), "once for each worker");
    tell(&redis, &["REPLICAOF", "NO", "ONE"]);
    until_limits_hold(&gateway);
    primary.kill();
    tell(&redis, &["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    until("MASTERDOWN is counted", || {
        assert_requests_pass_unlimited(&gateway);
        errors(&gateway, "primary_down") > 0.0
    });
    until_error_is_logged(&gateway, "MASTERDOWN");
    tell(&redis, &["REPLICAOF", "NO", "ONE"]);
    until_limits_hold(&gateway);
}

#[test]
fn no_request_fails_or_waits_while_redis_becomes_a_replica_under_load() {
    let redis = Redis::start();
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 1000));
    gateway.until_store_connected();
    let nobody = free_port().to_string();
    let count = |outcome: &str| gateway.metric(&decisions("x", outcome));
    let start = Instant::now();
    longest_wait_since(start);
    let answers = under_load(gateway.address, 4, || {
        until("requests are limited", || count("allow") >= 20.0);
        for _ in 0..3 {
            let passed = count("fail_open");
            tell(&redis, &["REPLICAOF", "127.0.0.1", &nobody]);
            until("requests pass without the store", || count("fail_open") >= passed + 50.0);
            tell(&redis, &["REPLICAOF", "NO", "ONE"]);
            let decided = count("allow") + count("deny");
            until("requests are limited again", || count("allow") + count("deny") >= decided + 50.0);
        }
    });
    assert!(answers.iter().all(|(answer, _)| matches!(answer.status, 200 | 429)));
    assert_not_slow(answers.iter().map(|(_, took)| *took).max().unwrap(), start);
}

/// An administrator takes rights away while the gateway is at work, and gives them back.
#[test]
fn requests_pass_while_rights_are_missing() {
    let redis = Redis::start();
    let rights = |rights: &[&str]| tell(&redis, &[&["ACL", "SETUSER", "gate"], rights].concat());
    rights(&["on", ">secret", "~rate_limit:*", "+evalsha", "+eval", "+script|load", "+get", "+set", "+time"]);
    let gateway = gateway(&format!("redis://gate:secret@127.0.0.1:{}", redis.port), DEADLINE, &rule());
    gateway.until_store_connected();
    for (take, give, error, kind) in [
        (&["-evalsha"][..], &["+evalsha"][..], "NOPERM", "auth"),
        (&["resetkeys", "~other:*"], &["~rate_limit:*"], "NOPERM", "auth"),
        // What the script itself may not do is told without a code.
        (&["-set"], &["+set"], "can't run this command", "auth"),
    ] {
        passes_while(&gateway, || rights(take), || rights(give), error, kind);
    }
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
}

#[test]
fn without_the_right_to_load_the_script_requests_pass_until_it_is_given() {
    let redis = Redis::start();
    let rights = |rights: &[&str]| tell(&redis, &[&["ACL", "SETUSER", "gate"], rights].concat());
    rights(&["on", ">secret", "~rate_limit:*", "+evalsha", "+eval", "+get", "+set", "+time"]);
    let gateway = gateway(&format!("redis://gate:secret@127.0.0.1:{}", redis.port), "", &rule());
    assert_requests_pass_unlimited(&gateway);
    until("both workers have told", || gateway.log_of(LOST).len() >= 2);
    let lines = gateway.log_of(LOST);
    assert!(lines.iter().all(|line| line["reason"].as_str().unwrap().contains("SCRIPT LOAD: NOPERM")), "{lines:?}");
    rights(&["+script|load"]);
    gateway.until_store_connected();
    until_limits_hold(&gateway);
}

/// A password changes while the gateway is connected: what is open stays open; what is opened anew is turned away, until
/// the password is right again.
fn survives_another_password(arguments: &[&str], url: &str, change: &[&str], undo: &[&str]) {
    let redis = Redis::start_with(arguments);
    let gateway = gateway(&url.replace("PORT", &redis.port.to_string()), "", &rule());
    gateway.until_store_connected();
    until_limits_hold(&gateway);
    // Opened before the change, as the gateway's.
    let mut admin = redis::Client::open(url.replace("PORT", &redis.port.to_string()).replace("gate:", ":"))
        .unwrap()
        .get_connection()
        .unwrap();
    let mut tell = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut admin).unwrap();
    tell(change);
    until_limits_hold(&gateway);
    assert_eq!(gateway.log_of(LOST).len(), 0, "{:?}", gateway.log());
    tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert_requests_pass_unlimited(&gateway);
    until("both workers have told", || gateway.log_of(LOST).len() >= 2);
    assert_eq!(gateway.log_of(LOST).len(), 2, "once by each worker: {:?}", gateway.log());
    assert!(errors(&gateway, "disconnected") > 0.0);
    tell(undo);
    until_limits_hold(&gateway);
}

#[test]
fn another_password_counts_for_new_connections() {
    let [change, undo] = ["new", "old"].map(|password| ["CONFIG", "SET", "requirepass", password]);
    survives_another_password(&["--requirepass", "old"], "redis://:old@127.0.0.1:PORT", &change, &undo);
}

#[test]
fn a_password_where_there_was_none_counts_for_new_connections() {
    let [change, undo] = ["new", ""].map(|password| ["CONFIG", "SET", "requirepass", password]);
    survives_another_password(&[], "redis://127.0.0.1:PORT", &change, &undo);
}

/// A node of a cluster in which nobody has the slots.
#[test]
fn requests_pass_while_a_cluster_is_down() {
    let held = hold_port();
    let bus = port_of(&held).to_string();
    let redis = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let gateway = connected(&redis, DEADLINE, &rule());
    assert_requests_pass_unlimited(&gateway);
    assert!(errors(&gateway, "cluster") > 0.0);
    until_error_is_logged(&gateway, "CLUSTERDOWN");
    tell(&redis, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    until_limits_hold(&gateway);
    assert_eq!(gateway.log_of("store connected").len(), 2, "that is no reason to reconnect");
}
