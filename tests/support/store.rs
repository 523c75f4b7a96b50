//! The two stores, so that one suite runs over both.

use super::gateway::{Gateway, config};
use super::origin::Origin;
use super::redis::Redis;
use std::net::SocketAddr;
use std::sync::OnceLock;

/// Where the buckets of a test live.
pub enum Store {
    Memory,
    Redis(Redis),
}

impl Store {
    pub fn memory() -> Store {
        Store::Memory
    }

    pub fn redis() -> Store {
        Store::Redis(Redis::start())
    }

    /// `[store]` lines. The deadline is far away: a slow machine must not make decisions fail where that is not the subject.
    pub fn lines(&self) -> String {
        match self {
            Store::Memory => "[store]\nurl = \"memory:\"\n".into(),
            Store::Redis(redis) => format!("{}deadline = \"5s\"\n", redis.store()),
        }
    }

    /// A gateway on this store, ready for decisions, in front of a backend that always says ok.
    pub fn gateway(&self, rest: &str) -> Gateway {
        self.gateway_with("", rest)
    }

    /// As `gateway`, with `[server]` lines of its own.
    pub fn gateway_with(&self, server: &str, rest: &str) -> Gateway {
        let gateway = Gateway::start(&config(server, &[backend()], &format!("{}{rest}", self.lines())));
        if let Store::Redis(_) = self {
            gateway.until_store_connected();
        }
        gateway
    }

    /// Says of these buckets what Redis holds; `None` for the store in memory, which nobody can look into.
    pub fn stored(&self, keys: &[&str]) -> Option<Vec<Option<String>>> {
        match self {
            Store::Memory => None,
            Store::Redis(redis) => Some(redis::cmd("MGET").arg(keys).query(&mut redis.connection()).unwrap()),
        }
    }
}

/// A backend that says ok, one for the whole run.
pub fn backend() -> SocketAddr {
    static BACKEND: OnceLock<Origin> = OnceLock::new();
    BACKEND.get_or_init(Origin::ok).address
}

/// A limit that does not refill while a test runs.
pub fn limit(name: &str, by: &str, burst: u64) -> String {
    limit_with(name, by, burst, "")
}

/// As `limit`, with further lines.
pub fn limit_with(name: &str, by: &str, burst: u64, lines: &str) -> String {
    format!("[[limits]]\nname = \"{name}\"\nby = [{by}]\nrate = \"1/d\"\nburst = {burst}\n{lines}\n")
}

/// Whether units of this bucket may be out on lease.
pub fn is_leased(store: &Store, key: &str) -> bool {
    let Store::Redis(redis) = store else { return false };
    let mut connection = redis.connection();
    let [seconds, micros]: [u64; 2] = redis::cmd("TIME").query(&mut connection).unwrap();
    let stored: Option<String> = redis::cmd("GET").arg(key).query(&mut connection).unwrap();
    let until = stored.and_then(|text| text.split(' ').nth(3)?.parse::<u64>().ok());
    until.is_some_and(|until| until >= seconds * 1_000_000 + micros)
}

/// Whole tokens in a bucket that Redis holds and that does not refill while a test runs.
pub fn tokens(store: &Store, key: &str) -> i64 {
    let stored = store.stored(&[key]).and_then(|mut stored| stored.remove(0)).expect("the bucket is stored");
    let numbers: Vec<i64> = stored.split(' ').map(|number| number.parse().unwrap()).collect();
    numbers[0] / numbers[2]
}

/// The field line by which a client shows an API key.
pub fn api_key(key: &str) -> String {
    format!("X-API-Key: {key}\r\n")
}

/// How the owner of an unknown API key stands in Redis keys.
pub fn user_of(api_key: &str) -> String {
    format!("key:{}", hash(api_key))
}

/// How a secret stands in Redis keys: half of its SHA-256.
pub fn hash(secret: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(secret);
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The series of a limit's decisions.
pub fn decisions(limit: &str, outcome: &str) -> String {
    format!("rateguard_decisions_total{{limit=\"{limit}\",outcome=\"{outcome}\"}}")
}
