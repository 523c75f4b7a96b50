use super::{ask, gateway, is_limited};
use crate::support::redis::Redis;
use crate::support::store::limit;

/// What the server says of its clients' connections: the version spoken by those that have called the script.
fn versions(redis: &Redis) -> Vec<String> {
    let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap();
    let callers = list.lines().filter(|line| line.contains("cmd=evalsha") || line.contains("cmd=script|load"));
    callers.filter_map(|line| Some(line.split("resp=").nth(1)?.split(' ').next()?.to_owned())).collect()
}

#[test]
fn limits_hold_in_either_version() {
    for (protocol, version) in [("resp2", "2"), ("resp3", "3")] {
        let redis = Redis::start();
        let store = format!("deadline = \"5s\"\nprotocol = \"{protocol}\"");
        let gateway = gateway(&redis.url(), &store, &limit("x", "\"user\"", 2));
        gateway.until_store_connected();
        assert_eq!(versions(&redis), [version, version]);
        let answers: Vec<_> = (0..3).map(|_| ask(&gateway, "alice")).collect();
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 429]);
        assert!(answers.iter().all(is_limited));
        // Errors and their remedies are the same.
        redis::cmd("SCRIPT").arg("FLUSH").exec(&mut redis.connection()).unwrap();
        assert!(is_limited(&ask(&gateway, "bob")));
        redis::cmd("LPUSH").arg(&["rate_limit:{other}:-:x", "a"]).exec(&mut redis.connection()).unwrap();
    }
}

#[test]
fn resp3_with_a_password() {
    let redis = Redis::start_with(&["--requirepass", "s3cret"]);
    let url = format!("redis://:s3cret@127.0.0.1:{}", redis.port);
    let gateway = gateway(&url, "deadline = \"5s\"\nprotocol = \"resp3\"", &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    assert!(is_limited(&ask(&gateway, "alice")));
}
