use super::{assert_requests_pass_unlimited, gateway, until_limits_hold};
use crate::support::client::Client;
use crate::support::fields::remaining;
use crate::support::redis::Redis;
use crate::support::store::limit;

const DEADLINE: &str = "deadline = \"5s\"";

fn admin(redis: &Redis, password: &str) -> redis::Connection {
    let url = format!("redis://:{password}@127.0.0.1:{}", redis.port);
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn keys(connection: &mut redis::Connection, database: u32) -> Vec<String> {
    redis::cmd("SELECT").arg(database).exec(connection).unwrap();
    redis::cmd("KEYS").arg("*").query(connection).unwrap()
}

#[test]
fn a_password_is_shown_to_redis() {
    let redis = Redis::start_with(&["--requirepass", "p:w/d@1"]);
    let url = format!("redis://:p%3Aw%2Fd%401@127.0.0.1:{}", redis.port);
    let gateway = gateway(&url, DEADLINE, &limit("x", "", 5));
    gateway.until_store_connected();
    assert_eq!(remaining(&Client::connect(gateway.address).get("/", ""), "x"), 4);
}

#[test]
fn a_user_and_password_are_shown_to_redis() {
    let redis = Redis::start();
    let rights = ["SETUSER", "gate", "on", ">secret", "~rate_limit:*", "+@all"];
    let mut connection = redis.connection();
    redis::cmd("ACL").arg(&rights[..]).exec(&mut connection).unwrap();
    redis::cmd("ACL").arg(&["SETUSER", "default", "off"][..]).exec(&mut connection).unwrap();
    let url = format!("redis://gate:secret@127.0.0.1:{}", redis.port);
    let gateway = gateway(&url, DEADLINE, &limit("x", "", 5));
    gateway.until_store_connected();
    assert_eq!(remaining(&Client::connect(gateway.address).get("/", ""), "x"), 4);
}

/// What the README can tell an administrator to grant.
#[test]
fn a_user_needs_no_more_rights_than_the_script_uses() {
    let redis = Redis::start();
    let rights = ["SETUSER", "gate", "on", ">secret", "~rate_limit:*", "+evalsha", "+eval", "+script|load"];
    let mut command = redis::cmd("ACL");
    command.arg(&rights[..]).arg(&["+get", "+set", "+time"][..]).exec(&mut redis.connection()).unwrap();
    let url = format!("redis://gate:secret@127.0.0.1:{}", redis.port);
    let gateway = gateway(&url, DEADLINE, &limit("x", "", 5));
    gateway.until_store_connected();
    assert_eq!(remaining(&Client::connect(gateway.address).get("/", ""), "x"), 4);
}

#[test]
fn the_database_of_the_url_is_used() {
    let redis = Redis::start();
    let gateway = gateway(&format!("{}/3", redis.url()), DEADLINE, &limit("x", "", 5));
    gateway.until_store_connected();
    assert_eq!(Client::connect(gateway.address).get("/", "").status, 200);
    let mut connection = redis.connection();
    assert_eq!(keys(&mut connection, 3), ["rate_limit:{-}:-:x"]);
    assert_eq!(keys(&mut connection, 0), [""; 0]);
}

#[test]
fn a_unix_socket_works_with_its_database() {
    let redis = Redis::start();
    let gateway = gateway(&format!("redis+unix://{}?db=2", redis.socket()), DEADLINE, &limit("x", "", 2));
    gateway.until_store_connected();
    let mut client = Client::connect(gateway.address);
    assert_eq!([(); 3].map(|()| client.get("/", "").status), [200, 200, 429]);
    assert_eq!(keys(&mut redis.connection(), 2), ["rate_limit:{-}:-:x"]);
}

#[test]
fn a_unix_socket_that_is_gone_is_found_again() {
    let mut redis = Redis::start();
    let gateway = gateway(&format!("redis+unix://{}", redis.socket()), "", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    redis.kill();
    assert_requests_pass_unlimited(&gateway);
    redis.launch();
    until_limits_hold(&gateway);
}

#[test]
fn a_wrong_password_is_told_once_by_each_worker_and_works_once_it_is_right() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let url = format!("redis://:wrong-secret@127.0.0.1:{}", redis.port);
    let gateway = gateway(&url, "", &limit("x", "\"user\"", 2));
    assert_requests_pass_unlimited(&gateway);
    crate::support::until("both workers have told", || gateway.log_of("store lost; trying to reconnect").len() >= 2);
    let lines = gateway.log_of("store lost; trying to reconnect");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line["reason"].as_str().unwrap().contains("AUTH: WRONGPASS")), "{lines:?}");
    let log: Vec<String> = gateway.log().iter().map(ToString::to_string).collect();
    assert!(!log.join("\n").contains("wrong-secret"), "{log:?}");
    let mut connection = admin(&redis, "right");
    redis::cmd("CONFIG").arg(&["SET", "requirepass", "wrong-secret"][..]).exec(&mut connection).unwrap();
    gateway.until_store_connected();
    until_limits_hold(&gateway);
}

#[test]
fn a_missing_password_is_told_and_works_once_none_is_needed() {
    let redis = Redis::start_with(&["--requirepass", "right"]);
    let gateway = gateway(&redis.url(), "", &limit("x", "\"user\"", 2));
    assert_requests_pass_unlimited(&gateway);
    crate::support::until("both workers have told", || gateway.log_of("store lost; trying to reconnect").len() >= 2);
    let lines = gateway.log_of("store lost; trying to reconnect");
    assert!(lines.iter().all(|line| line["reason"].as_str().unwrap().contains("NOAUTH")), "{lines:?}");
    let mut connection = admin(&redis, "right");
    redis::cmd("CONFIG").arg(&["SET", "requirepass", ""][..]).exec(&mut connection).unwrap();
    gateway.until_store_connected();
    until_limits_hold(&gateway);
}
