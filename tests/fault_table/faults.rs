//! What can go wrong with one Redis, staged with a real server: the list of all faults, and those of the server itself.

use super::load::user;
use super::places;
use super::support::free_port;
use super::support::gateway::PROGRAM;
use super::support::redis::Redis;
use super::support::sentinel::info;
use super::support::store::user_of;
use super::support::until;
use std::process::Command;
use std::time::{Duration, Instant};

/// Between two strokes of what is done again and again.
const STROKE: Duration = Duration::from_millis(5);

/// A store, and what goes wrong with it.
pub trait Fault {
    /// The URL of the store.
    fn url(&self) -> String;
    /// What runs the gateway.
    fn gateway(&self) -> Command {
        Command::new(PROGRAM)
    }
    /// Servers that each worker is connected to.
    fn servers(&self) -> usize {
        1
    }
    fn begin(&mut self);
    /// Called again and again while it lasts.
    fn go_on(&mut self) {
        std::thread::sleep(STROKE);
    }
    /// Ends it, and says when it was over.
    fn end(&mut self) -> Instant;
    /// How often deciding went from the store to the process or back.
    fn switches(&self) -> u32 {
        2
    }
    /// How often the store has lost what it knew while it could be asked.
    fn losses(&self) -> u32 {
        0
    }
}

/// Sets a fault up; `None` where this machine does not allow it.
pub type Stage = fn() -> Option<Box<dyn Fault>>;

/// All of them, as the table has them.
pub const FAULTS: [(&str, Stage); 20] = [
    ("none", || on_redis(0, |_| {}, |_| Instant::now())),
    ("kill", || on_redis(2, Redis::kill, launched)),
    ("SIGSTOP", || on_redis(2, |redis| redis.suspend(), resumed)),
    ("delay 5 ms", || places::delayed(5)),
    ("delay 50 ms", || places::delayed(50)),
    ("delay 500 ms", || places::delayed(500)),
    ("connection reset", places::resets),
    ("black hole", places::black_hole),
    ("connects unanswered", places::unanswered),
    ("SCRIPT FLUSH", || Some(Box::new(Flushed(Redis::start())))),
    ("FLUSHALL", || Some(Box::new(Emptied(Redis::start())))),
    ("READONLY", || on_redis(2, demote, |redis| over_with(redis, &["REPLICAOF", "NO", "ONE"]))),
    ("OOM", || on_redis(2, |redis| memory(redis, "1"), |redis| over_with(redis, &["CONFIG", "SET", "maxmemory", "0"]))),
    ("LOADING", loading),
    ("WRONGTYPE", || on_redis(2, occupy, |redis| over_with(redis, &["DEL", &bucket_of(0)]))),
    ("name unresolved", places::nameless),
    ("clock 1 h back", || places::clock(true)),
    ("clock 1 h forth", || places::clock(false)),
    ("failover", places::failover),
    ("reshard", places::reshard),
];

pub fn tell(redis: &Redis, words: &[&str]) {
    redis::cmd(words[0]).arg(&words[1..]).exec(&mut redis.connection()).unwrap();
}

/// The key of a user's bucket.
pub fn bucket_of(number: usize) -> String {
    format!("rate_limit:{{{}}}:-:x", user_of(&user(number)))
}

/// A server, what is done to it, and how that is undone.
struct OnRedis {
    redis: Redis,
    switches: u32,
    begin: fn(&mut Redis),
    end: fn(&mut Redis) -> Instant,
}

impl Fault for OnRedis {
    fn url(&self) -> String {
        self.redis.url()
    }

    fn begin(&mut self) {
        (self.begin)(&mut self.redis);
    }

    fn end(&mut self) -> Instant {
        (self.end)(&mut self.redis)
    }

    fn switches(&self) -> u32 {
        self.switches
    }
}

fn on_redis(switches: u32, begin: fn(&mut Redis), end: fn(&mut Redis) -> Instant) -> Option<Box<dyn Fault>> {
    Some(Box::new(OnRedis { redis: Redis::start(), switches, begin, end }))
}

fn launched(redis: &mut Redis) -> Instant {
    redis.launch();
    Instant::now()
}

fn resumed(redis: &mut Redis) -> Instant {
    let end = Instant::now();
    redis.resume();
    end
}

fn over_with(redis: &mut Redis, words: &[&str]) -> Instant {
    tell(redis, words);
    Instant::now()
}

fn demote(redis: &mut Redis) {
    tell(redis, &["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
}

fn memory(redis: &mut Redis, bytes: &str) {
    tell(redis, &["CONFIG", "SET", "maxmemory", bytes]);
}

/// Somebody else's value comes to be where a user's bucket was.
fn occupy(redis: &mut Redis) {
    let key = bucket_of(0);
    redis::pipe().atomic().del(&key).lpush(&key, "mine").exec(&mut redis.connection()).unwrap();
}

fn is_loading(redis: &Redis) -> bool {
    info(redis, "persistence").contains("loading:1")
}

/// A server that is restarted with what it has saved, and takes its time to load that.
fn loading() -> Option<Box<dyn Fault>> {
    const SLOW: [&str; 4] = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    let arguments = [&SLOW[..], &["--rdbcompression", "no", "--enable-debug-command", "yes"]].concat();
    let redis = Redis::start_with(&arguments);
    tell(&redis, &["DEBUG", "POPULATE", "4000", "filler", "1500"]);
    let begin = |redis: &mut Redis| {
        tell(redis, &["SAVE"]);
        redis.kill();
        redis.launch();
        until("the server loads", || is_loading(redis));
    };
    let end = |redis: &mut Redis| {
        tell(redis, &["CONFIG", "SET", "key-load-delay", "0"]);
        until("the server has loaded", || !is_loading(redis));
        Instant::now()
    };
    Some(Box::new(OnRedis { redis, switches: 2, begin, end }))
}

/// Its scripts are flushed all the time.
struct Flushed(Redis);

impl Fault for Flushed {
    fn url(&self) -> String {
        self.0.url()
    }

    fn begin(&mut self) {}

    fn go_on(&mut self) {
        tell(&self.0, &["SCRIPT", "FLUSH"]);
        std::thread::sleep(STROKE);
    }

    fn end(&mut self) -> Instant {
        Instant::now()
    }

    fn switches(&self) -> u32 {
        0
    }
}

/// All its buckets are removed, once.
struct Emptied(Redis);

impl Fault for Emptied {
    fn url(&self) -> String {
        self.0.url()
    }

    fn begin(&mut self) {
        tell(&self.0, &["FLUSHALL"]);
    }

    fn end(&mut self) -> Instant {
        Instant::now()
    }

    fn switches(&self) -> u32 {
        0
    }

    fn losses(&self) -> u32 {
        1
    }
}
