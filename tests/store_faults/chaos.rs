use super::gateway;
use crate::support::client::Client;
use crate::support::fields::rate_limit;
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::store::{api_key, limit_with};
use crate::support::{seed, until};
use fastrand::Rng;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const GATEWAYS: usize = 2;
const CLIENTS: usize = 12;
const USERS: usize = 20;
const BURST: u64 = 20;
const RATE: u64 = 30;
const LASTS: Duration = Duration::from_secs(6);

/// Does one harmful thing to the server, which loses no data by it, and undoes it.
fn harm(redis: &Redis, random: &mut Rng) {
    let mut connection = redis.connection();
    let mut tell = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).exec(&mut connection);
    let pause = Duration::from_millis(random.u64(5..150));
    match random.u8(..5) {
        0 => {
            redis.suspend();
            std::thread::sleep(pause);
            redis.resume();
        }
        1 => tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).unwrap(),
        2 => tell(&["SCRIPT", "FLUSH"]).unwrap(),
        3 => {
            tell(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
            std::thread::sleep(pause);
            tell(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
        }
        _ => tell(&["CLIENT", "PAUSE", &pause.as_millis().to_string()]).unwrap(),
    }
    std::thread::sleep(Duration::from_millis(random.u64(..60)));
}

/// Whatever happens to Redis and to the connections to it, what Redis itself has granted (and said so) never exceeds what
/// the limit grants.
#[test]
fn redis_never_grants_too_much_whatever_is_done_to_it() {
    whatever_is_done_to_redis_it_never_grants_too_much(USERS, "");
}

/// And of what is taken ahead, no more is spent than was deducted.
#[test]
fn leases_never_grant_too_much_whatever_is_done_to_redis() {
    let leased = whatever_is_done_to_redis_it_never_grants_too_much(3, "lease = 10");
    assert!(leased > 0.0, "nothing was leased");
}

/// Gives how many requests were decided from leases.
fn whatever_is_done_to_redis_it_never_grants_too_much(users: usize, lines: &str) -> f64 {
    let redis = Redis::start();
    let rule = limit_with("x", "\"user\"", BURST, lines).replace("1/d", &format!("{RATE}/s"));
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(|_| gateway(&redis.url(), "", &rule)).collect();
    gateways.iter().for_each(Gateway::until_store_connected);
    let granted: Vec<AtomicU64> = (0..users).map(|_| AtomicU64::new(0)).collect();
    let (passed, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut random = Rng::with_seed(seed());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (granted, passed, is_over) = (&granted, &passed, &is_over);
            let address = gateways[number % GATEWAYS].address;
            let mut random = random.fork();
            scope.spawn(move || {
                let mut client = Client::connect(address);
                while !is_over.load(Ordering::Relaxed) {
                    let user = random.usize(..users);
                    let response = client.get("/", &api_key(&format!("u{user}")));
                    assert!(matches!(response.status, 200 | 429), "{response:?}");
                    match rate_limit(&response).is_empty() {
                        true => passed.fetch_add(1, Ordering::Relaxed),
                        false if response.status == 200 => granted[user].fetch_add(1, Ordering::Relaxed),
                        false => 0,
                    };
                }
            });
        }
        while start.elapsed() < LASTS {
            harm(&redis, &mut random);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let most = BURST as f64 + RATE as f64 * start.elapsed().as_secs_f64();
    let granted: Vec<u64> = granted.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(granted.iter().all(|&count| count as f64 <= most), "{granted:?} granted, at most {most} each");
    let all: u64 = granted.iter().sum();
    assert!(all as f64 > most * users as f64 / 4.0, "{all} granted in all");
    assert!(passed.load(Ordering::Relaxed) > 0, "no request met a fault");
    gateways.iter().for_each(until_redis_decides);
    gateways.iter().map(|gateway| gateway.metric("rateguard_leased_total")).sum()
}

fn until_redis_decides(gateway: &Gateway) {
    let mut client = Client::connect(gateway.address);
    until("Redis decides again", || !rate_limit(&client.get("/", &api_key("new"))).is_empty());
}
