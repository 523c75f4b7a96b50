use crate::support::client::Client;
use crate::support::fields::remaining;
use crate::support::redis::Redis;
use crate::support::store::{Store, api_key, hash, limit, user_of};
use std::collections::BTreeSet;

fn redis_of(store: &Store) -> &Redis {
    match store {
        Store::Redis(redis) => redis,
        Store::Memory => unreachable!("keys are a matter of Redis"),
    }
}

fn keys(store: &Store) -> BTreeSet<String> {
    redis::cmd("KEYS").arg("*").query(&mut redis_of(store).connection()).unwrap()
}

/// The keys that one request leaves.
fn keys_of(by: &str, lines: &str, server: &str, request: (&str, &str, &str)) -> Vec<String> {
    let store = Store::redis();
    let gateway = store.gateway_with(server, &format!("{}{lines}", limit("x", by, 5)));
    let (method, path, fields) = request;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n");
    assert_eq!(Client::connect(gateway.address).send(head).response().status, 200);
    keys(&store).into_iter().collect()
}

#[test]
fn a_key_names_user_endpoint_and_limit() {
    let of_user = |fields: &str| keys_of("\"user\", \"endpoint\"", "", "", ("GET", "/Api//a/?q=1", fields));
    assert_eq!(of_user(""), ["rate_limit:{ip:127.0.0.1}:/Api/a:x"]);
    assert_eq!(of_user(&api_key("k")), [format!("rate_limit:{{{}}}:/Api/a:x", user_of("k"))]);
}

#[test]
fn a_consumer_stands_in_a_key_by_name() {
    let consumer = "[[consumers]]\nname = \"al:ice{1}\"\napi_key = \"k\"\n";
    let keys = keys_of("\"user\"", consumer, "", ("GET", "/", "X-API-Key: k\r\n"));
    assert_eq!(keys, ["rate_limit:{al%3Aice%7B1%7D}:-:x"]);
}

#[test]
fn parts_that_a_limit_does_not_use_are_a_dash() {
    assert_eq!(keys_of("", "", "", ("GET", "/a", "")), ["rate_limit:{-}:-:x"]);
    assert_eq!(keys_of("\"endpoint\"", "", "", ("GET", "/a", "")), ["rate_limit:{-}:/a:x"]);
    assert_eq!(keys_of("\"method\"", "", "", ("PUT", "/a", "Content-Length: 0\r\n")), ["rate_limit:{-}:PUT:x"]);
}

#[test]
fn addresses_stand_in_keys_as_themselves() {
    let trusted = "trusted_proxies = [\"127.0.0.1\"]";
    for (forwarded, part) in [
        ("203.0.113.7", "ip:203.0.113.7"),
        ("2001:db8::1", "ip:2001:db8::/64"),
        ("::ffff:203.0.113.7", "ip:203.0.113.7"),
    ] {
        let fields = format!("X-Forwarded-For: {forwarded}\r\n");
        let keys = keys_of("\"ip\"", "", trusted, ("GET", "/", &fields));
        assert_eq!(keys, [format!("rate_limit:{{{part}}}:-:x")]);
    }
}

#[test]
fn what_could_break_a_key_apart_is_encoded() {
    let keys = keys_of("\"endpoint\"", "", "", ("GET", "/a:b/%7Bc%7D/%20/%C3%A9", ""));
    assert_eq!(keys, ["rate_limit:{-}:/a%3Ab/%7Bc%7D/%2520/%25C3%25A9:x"]);
}

#[test]
fn a_long_part_becomes_its_hash() {
    let path = format!("/{}", "a".repeat(300));
    let keys = keys_of("\"endpoint\"", "", "", ("GET", &path, ""));
    assert_eq!(keys, [format!("rate_limit:{{-}}:hash:{}:x", hash(&path))]);
}

#[test]
fn the_prefix_is_the_configured_one() {
    let store = Store::redis();
    let rest = format!("key_prefix = \"team-a\"\n{}", limit("x", "", 5));
    let gateway = store.gateway(&rest);
    assert_eq!(Client::connect(gateway.address).get("/", "").status, 200);
    assert_eq!(keys(&store), BTreeSet::from(["team-a:{-}:-:x".to_owned()]));
}

/// In a cluster they are in one slot, so that one script may touch them.
#[test]
fn all_buckets_of_a_user_have_one_hash_tag() {
    let store = Store::redis();
    let rules = [limit("total", "\"user\"", 9), limit("here", "\"user\", \"endpoint\"", 9)].concat();
    let gateway = store.gateway(&rules);
    assert_eq!(Client::connect(gateway.address).get("/a", &api_key("k")).status, 200);
    let user = user_of("k");
    let expected = [format!("rate_limit:{{{user}}}:-:total"), format!("rate_limit:{{{user}}}:/a:here")];
    assert_eq!(keys(&store), BTreeSet::from(expected));
}

/// So that an idle bucket vanishes when it has nothing more to say, and not before.
#[test]
fn a_key_lives_until_its_bucket_is_full() {
    let store = Store::redis();
    let gateway = store.gateway("[[limits]]\nname = \"x\"\nby = []\nrate = \"1/h\"\nburst = 10\n");
    let mut client = Client::connect(gateway.address);
    let mut connection = redis_of(&store).connection();
    for taken in 1..=3 {
        assert_eq!(client.get("/", "").status, 200);
        let ttl_ms: i64 = redis::cmd("PTTL").arg("rate_limit:{-}:-:x").query(&mut connection).unwrap();
        let full_ms = taken * 3_600_000;
        assert!((full_ms - 60_000..=full_ms + 2).contains(&ttl_ms), "{ttl_ms} after {taken}");
    }
}

#[test]
fn a_full_bucket_is_no_key() {
    let store = Store::redis();
    let gateway = store.gateway("[[limits]]\nname = \"x\"\nby = []\nrate = \"10/s\"\nburst = 1\n");
    assert_eq!(Client::connect(gateway.address).get("/", "").status, 200);
    crate::support::until("the key has expired", || keys(&store).is_empty());
}

#[test]
fn a_denial_writes_nothing() {
    let store = Store::redis();
    let rules = [limit("first", "", 1), limit("second", "\"endpoint\"", 9)].concat();
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/a", "").status, 200);
    let before = keys(&store);
    assert_eq!(client.get("/b", "").status, 429);
    assert_eq!(keys(&store), before);
}

#[test]
fn two_gateways_share_buckets() {
    let store = Store::redis();
    let rules = limit("x", "\"user\"", 6);
    let gateways = [store.gateway(&rules), store.gateway(&rules)];
    let mut clients = gateways.each_ref().map(|gateway| Client::connect(gateway.address));
    let left: Vec<i64> = (0..6).map(|turn| remaining(&clients[turn % 2].get("/", ""), "x")).collect();
    assert_eq!(left, [5, 4, 3, 2, 1, 0]);
    for client in &mut clients {
        assert_eq!(client.get("/", "").status, 429);
    }
}

#[test]
fn buckets_outlive_a_gateway() {
    let store = Store::redis();
    let rules = limit("x", "", 3);
    let before = store.gateway(&rules);
    assert_eq!(remaining(&Client::connect(before.address).get("/", ""), "x"), 2);
    drop(before);
    let after = store.gateway(&rules);
    assert_eq!(remaining(&Client::connect(after.address).get("/", ""), "x"), 1);
}

/// Raising a burst gives nothing for free: whole tokens are kept, and no more.
#[test]
fn a_changed_limit_keeps_the_tokens_of_its_bucket() {
    let store = Store::redis();
    let before = store.gateway(&limit("x", "", 3));
    let mut client = Client::connect(before.address);
    assert_eq!((0..2).map(|_| remaining(&client.get("/", ""), "x")).last(), Some(1));
    drop(before);
    let rule = limit("x", "", 50).replace("1/d", "1/h");
    let after = store.gateway(&rule);
    let mut client = Client::connect(after.address);
    assert_eq!((client.get("/", "").status, client.get("/", "").status), (200, 429));
}

#[test]
fn gateways_with_other_prefixes_share_nothing() {
    let store = Store::redis();
    let [one, two] = ["one", "two"].map(|prefix| {
        let rest = format!("key_prefix = \"{prefix}\"\n{}", limit("x", "", 1));
        store.gateway(&rest)
    });
    assert_eq!(Client::connect(one.address).get("/", "").status, 200);
    assert_eq!(Client::connect(two.address).get("/", "").status, 200);
    assert_eq!(Client::connect(one.address).get("/", "").status, 429);
}
