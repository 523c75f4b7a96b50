use crate::support::client::{Client, get};
use crate::support::gateway::Gateway;
use crate::support::store::{Store, api_key, hash, limit};
use crate::support::until;

const KNOWN: &str = "sk-live-known-4711";
const UNKNOWN: &str = "sk-live-unknown-0815";
const COOKIE: &str = "sid-of-somebody-1234";
const TENANT: &str = "tenant-that-nobody-may-know";

/// Sends each secret often enough to be admitted and denied, in every place where one may stand.
fn use_secrets(gateway: &Gateway) {
    let mut client = Client::connect(gateway.address);
    let [known, unknown] = [KNOWN, UNKNOWN].map(api_key);
    for fields in [known, unknown, format!("Cookie: sid={COOKIE}\r\n"), format!("X-Tenant: {TENANT}\r\n")] {
        for _ in 0..2 {
            client.get("/api", &format!("{fields}X-Tenant: {TENANT}\r\n"));
        }
    }
}

fn config(unknown: &str) -> String {
    let identity = format!(
        "[identity]\nsources = [\"api_key\", \"cookie:sid\", \"ip\"]\nunknown_api_keys = \"{unknown}\"\n\
         [[consumers]]\nname = \"alice\"\napi_key = \"{KNOWN}\"\n"
    );
    let shadow = "[[limits]]\nname = \"tried\"\nby = [\"user\"]\nrate = \"1/d\"\nburst = 1\nmode = \"shadow\"\n";
    let by_field = limit("by-field", "\"header:X-Tenant\", \"header:X-API-Key\"", 100);
    [identity, shadow.into(), by_field, limit("x", "\"user\"", 1)].concat()
}

fn assert_hidden(place: &str, text: &str) {
    for secret in [KNOWN, UNKNOWN, COOKIE, TENANT] {
        assert!(!text.contains(secret), "{secret} stands in {place}: {text}");
    }
}

fn no_secret_stands_in_a_log_or_a_metric(store: &Store) {
    for unknown in ["accept", "reject"] {
        let gateway = store.gateway(&config(unknown));
        use_secrets(&gateway);
        until("denials are logged", || !gateway.log_of("denied").is_empty());
        let log: Vec<String> = gateway.log().iter().map(ToString::to_string).collect();
        assert_hidden("the log", &log.join("\n"));
        for page in ["/metrics", "/stats.json", "/"] {
            assert_hidden(page, &get(gateway.admin, page).text());
        }
    }
}

#[test]
fn no_secret_stands_in_a_log_or_a_metric_in_memory() {
    no_secret_stands_in_a_log_or_a_metric(&Store::memory());
}

#[test]
fn no_secret_stands_in_a_log_or_a_metric_in_redis() {
    no_secret_stands_in_a_log_or_a_metric(&Store::redis());
}

#[test]
fn no_secret_stands_in_redis() {
    let store = Store::redis();
    let gateway = store.gateway(&config("accept"));
    use_secrets(&gateway);
    let Store::Redis(redis) = &store else { unreachable!() };
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis.connection()).unwrap();
    for hidden in [hash(UNKNOWN), hash(COOKIE), hash(TENANT), "alice".into()] {
        assert!(keys.iter().any(|key| key.contains(&hidden)), "{hidden} in {keys:?}");
    }
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let values = store.stored(&names);
    assert_hidden("Redis", &format!("{keys:?} {values:?}"));
}
