//! Clocks that disagree: time is Redis's, so gateways whose clocks are apart share a bucket as if they were not; and
//! should the time of Redis itself jump, a bucket still never gives more than it may.

use crate::support::client::{Client, raw};
use crate::support::fields::rate_limit;
use crate::support::gateway::{Gateway, PROGRAM, config};
use crate::support::lua::{Asked, Virtual};
use crate::support::redis::Redis;
use crate::support::seed;
use crate::support::store::backend;
use fastrand::Rng;
use rateguard::limit::bucket::Shape;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

const RATE: f64 = 5.0;

/// More than is gained in the time of the load: so that a pause of a busy machine makes no token overflow and be lost.
const BURST: f64 = 20.0;

/// How long load is offered.
const LOAD: Duration = Duration::from_secs(3);

/// What the faketime program preloads for programs with threads; this finds it wherever the system keeps it.
fn faketime_library() -> String {
    let output = Command::new("faketime").args(["-m", "-f", "+0s", "env"]).output();
    let output = output.expect("faketime is not installed; ./tests/run installs it (Debian: apt-get install faketime)");
    let text = String::from_utf8(output.stdout).unwrap();
    let library = text.lines().find_map(|line| line.strip_prefix("LD_PRELOAD="));
    library.unwrap_or_else(|| panic!("faketime preloads nothing: {text}")).to_owned()
}

/// A gateway whose wall clock is off.
struct Skewed {
    gateway: Gateway,
    // After the gateway, since fields are dropped in order.
    _leavings: Leavings,
}

/// What libfaketime leaves in shared memory where its process is killed, by process id.
struct Leavings(u32);

impl Drop for Leavings {
    fn drop(&mut self) {
        for name in ["faketime_shm", "sem.faketime_sem"] {
            let _ = std::fs::remove_file(format!("/dev/shm/{name}_{}", self.0));
        }
    }
}

/// Starts a gateway off by `offset`, such as "-1h". The library is preloaded directly: the program would stay between
/// the test and the gateway, and be killed in its place.
fn gateway_at(offset: &str, lines: &str, redis: &Redis) -> Skewed {
    let mut command = Command::new(PROGRAM);
    command.env("LD_PRELOAD", faketime_library()).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let rule = format!("[[limits]]\nname = \"x\"\nby = []\nrate = \"{RATE}/s\"\nburst = {BURST}\n{lines}\n");
    let rest = format!("{}deadline = \"5s\"\n{rule}", redis.store());
    let gateway = Gateway::start_by(&config("", &[backend()], &rest), command);
    gateway.until_store_connected();
    Skewed { _leavings: Leavings(gateway.process()), gateway }
}

/// How far the gateway's wall clock is ahead of ours: it dates its answers by it.
fn seconds_ahead(gateway: &Gateway) -> i64 {
    let refused = raw(gateway.address, "no request\r\n\r\n");
    let theirs = httpdate::parse_http_date(refused.field("Date").unwrap()).unwrap();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    seconds(theirs) as i64 - seconds(SystemTime::now()) as i64
}

/// Two gateways take turns under more load than the limit lets through.
fn two_gateways_admit_what_the_limit_says(offsets: [&str; 2], seconds_apart: i64, lines: &str) {
    let redis = Redis::start();
    let gateways = offsets.map(|offset| gateway_at(offset, lines, &redis));
    let [one, two] = gateways.each_ref().map(|skewed| seconds_ahead(&skewed.gateway));
    assert!((two - one - seconds_apart).abs() <= 3, "the clocks are not as the test wants them: {one} {two}");
    let mut clients = gateways.each_ref().map(|skewed| Client::connect(skewed.gateway.address));
    let start = Instant::now();
    let (mut admitted, mut asked) = (0.0, 0);
    // Ends with a denial: all that was gained until it was asked for has been given out.
    let last = loop {
        let sent = Instant::now();
        let response = clients[asked % 2].get("/", "");
        assert!(!rate_limit(&response).is_empty(), "the limit did not decide: {response:?}");
        asked += 1;
        match response.status {
            200 => admitted += 1.0,
            _ if start.elapsed() >= LOAD => break sent,
            _ => {}
        }
    };
    let [most, least] = [start.elapsed(), last - start].map(|time| BURST + RATE * time.as_secs_f64());
    assert!(asked as f64 > 1.5 * most, "{asked} requests are no load");
    assert!((0.9 * least..=most + 1.0).contains(&admitted), "{admitted} admitted where {most} are allowed");
}

#[test]
fn clocks_ten_milliseconds_apart_change_nothing() {
    two_gateways_admit_what_the_limit_says(["+0s", "+0.010s"], 0, "");
}

#[test]
fn a_clock_an_hour_ahead_changes_nothing() {
    two_gateways_admit_what_the_limit_says(["+0s", "+1h"], 3600, "");
}

#[test]
fn a_clock_an_hour_behind_changes_nothing() {
    two_gateways_admit_what_the_limit_says(["+0s", "-1h"], -3600, "");
}

/// What has been taken ahead is reckoned by the workers' clocks too, and by these only from one moment to a later one.
#[test]
fn clocks_an_hour_apart_change_nothing_with_leases() {
    two_gateways_admit_what_the_limit_says(["+0s", "+1h"], 3600, "lease = 10");
}

/// How the time of Redis moves from one request to the next, in microseconds.
type Motion = fn(&mut Rng, usize) -> i64;

const HOUR: i64 = 3_600_000_000;

/// As many steps forward as back, so that it only ever swings about where it was.
const MOTIONS: [(&str, Motion); 6] = [
    ("stands still", |_, _| 0),
    ("goes on evenly", |_, _| 50_000),
    ("swings by ten milliseconds", |_, step| if step % 2 == 0 { 10_000 } else { -10_000 }),
    ("swings by an hour", |_, step| if step % 2 == 0 { HOUR } else { -HOUR }),
    ("jumps at random and goes on", |random, _| random.i64(-HOUR..=HOUR) / 1000 + 10_000),
    ("goes back an hour and makes up for it", |_, step| if step % 500 == 0 { -HOUR } else { HOUR / 499 }),
];

/// Never over: whatever the clock does, no more passes than the burst and what was gained between the earliest and the
/// latest time that Redis ever told.
#[test]
fn a_clock_that_jumps_gives_nothing() {
    let mut server = Virtual::start();
    let mut random = Rng::with_seed(seed());
    for (name, motion) in MOTIONS {
        for (rate, burst) in [("25/s", 5), ("7/s", 1), ("100/min", 100), ("1/h", 10)] {
            let shape = Shape::new(rate.parse().unwrap(), burst, 1).unwrap();
            let arguments = [shape.capacity, shape.refill, shape.token, shape.cost, 1];
            let asked: [Asked; 1] = [(format!("{name} {rate}"), arguments)];
            let mut now = 1_780_000_000_000_000;
            let (mut earliest, mut latest) = (now, now);
            let mut pipeline = redis::pipe();
            for step in 0..2000 {
                pipeline.add_command(server.call(&asked, now));
                (earliest, latest) = (earliest.min(now), latest.max(now));
                now = now.checked_add_signed(motion(&mut random, step)).unwrap();
            }
            let levels: Vec<Vec<i64>> = pipeline.query(&mut server.connection).unwrap();
            let admitted = levels.iter().filter(|levels| levels[0] >= 0).count() as u128;
            let gained = u128::from(latest - earliest) * u128::from(shape.refill) / u128::from(shape.token);
            let allowed = u128::from(burst) + gained;
            assert!(admitted <= allowed, "where time {name}, {rate} admits {admitted} instead of {allowed}");
            assert!(admitted >= u128::from(burst), "where time {name}, {rate} admits {admitted} only");
        }
    }
}
