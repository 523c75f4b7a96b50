use super::{ask_as_new_user, gateway};
use crate::support::client::Client;
use crate::support::fields::rate_limit;
use crate::support::gateway::Gateway;
use crate::support::redis::{Redis, hold_port, port_of};
use crate::support::store::{api_key, limit_with};
use crate::support::{seed, until};
use fastrand::Rng;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GATEWAYS: usize = 4;
/// How much: little, or with the seconds in `RATEGUARD_TEST_CHAOS_S` as long as that and with a crowd.
struct Scale {
    lasts: Duration,
    /// Of each gateway.
    clients: usize,
    users: usize,
    burst: u64,
    /// Tokens in a second.
    rate: u64,
}

impl Scale {
    fn chosen() -> Scale {
        match std::env::var("RATEGUARD_TEST_CHAOS_S") {
            Ok(text) => {
                let seconds = text.parse().expect("RATEGUARD_TEST_CHAOS_S is a number of seconds");
                Scale { lasts: Duration::from_secs(seconds), clients: 64, users: 1000, ..Scale::small() }
            }
            Err(_) => Scale::small(),
        }
    }

    fn small() -> Scale {
        Scale { lasts: Duration::from_secs(5), clients: 4, users: 40, burst: 12, rate: 4 }
    }

    /// What the limit grants in that time. The clocks of this process and of Redis may be slewed against each other.
    fn limited(&self, time: Duration) -> f64 {
        self.burst as f64 + self.rate as f64 * time.as_secs_f64() * 1.001
    }
}

/// What one client has seen.
#[derive(Default)]
struct Seen {
    requests: u64,
    denied: u64,
    /// Passed without a decision.
    passed: u64,
    /// Each grant: the user, when the request was sent, and when its answer was there.
    grants: Vec<(usize, Duration, Duration)>,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.requests += other.requests;
        self.denied += other.denied;
        self.passed += other.passed;
        self.grants.extend(other.grants);
    }
}

/// Asks without pause, for some users far more often than for others.
fn ask(address: SocketAddr, users: usize, mut random: Rng, start: Instant, is_over: &AtomicBool) -> Seen {
    let mut client = Client::connect(address);
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        let user = (random.f64().powi(3) * users as f64) as usize;
        let sent = start.elapsed();
        let response = client.get("/", &api_key(&format!("u{user}")));
        let received = start.elapsed();
        seen.requests += 1;
        match (response.status, response.field("RateLimit").is_some()) {
            (200, true) => seen.grants.push((user, sent, received)),
            (200, false) => seen.passed += 1,
            (429, true) => seen.denied += 1,
            _ => panic!("{response:?}"),
        }
    }
    seen
}

/// What is done to the server for a while; it loses no data by it.
type Fault = fn(&mut Redis, Duration);

const FAULTS: [(&str, Fault); 9] = [
    ("hung", |redis, pause| {
        redis.suspend();
        std::thread::sleep(pause);
        redis.resume();
    }),
    ("killed", |redis, pause| {
        redis.kill();
        std::thread::sleep(pause);
        redis.launch();
    }),
    ("connections killed", |redis, _| tell(redis, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
    ("scripts flushed", |redis, _| tell(redis, &["SCRIPT", "FLUSH"])),
    ("paused", |redis, pause| {
        tell(redis, &["CLIENT", "PAUSE", &pause.as_millis().to_string()]);
        // Answered at its end. A SCRIPT KILL that a pause holds up is not heard while the script runs.
        tell(redis, &["PING"]);
    }),
    ("out of memory", |redis, pause| with_setting(redis, "maxmemory", ["1", "0"], pause)),
    ("without replicas", |redis, pause| with_setting(redis, "min-replicas-to-write", ["1", "0"], pause)),
    ("a replica", |redis, pause| {
        let nobody = hold_port();
        let port = port_of(&nobody).to_string();
        tell(redis, &["REPLICAOF", "127.0.0.1", &port]);
        std::thread::sleep(pause);
        tell(redis, &["REPLICAOF", "NO", "ONE"]);
    }),
    ("busy", |redis, pause| {
        let [mut connection, mut killer] = [(); 2].map(|()| redis.connection());
        let script =
            std::thread::spawn(move || redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut connection));
        std::thread::sleep(pause);
        until("the script has ended, or was not taken", || {
            // Refused where the script does not run yet.
            let _ = redis::cmd("SCRIPT").arg("KILL").exec(&mut killer);
            script.is_finished()
        });
    }),
];

/// Says it until it is done: a server that starts or is busy refuses at first.
fn tell(redis: &Redis, words: &[&str]) {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    until(&format!("Redis does as it is told: {words:?}"), || {
        client.get_connection().and_then(|mut connection| command.exec(&mut connection)).is_ok()
    });
}

fn with_setting(redis: &Redis, name: &str, [harmful, harmless]: [&str; 2], pause: Duration) {
    tell(redis, &["CONFIG", "SET", name, harmful]);
    std::thread::sleep(pause);
    tell(redis, &["CONFIG", "SET", name, harmless]);
}

/// How one run went.
struct Run {
    scale: Scale,
    seen: Seen,
    elapsed: Duration,
    faults: [usize; FAULTS.len()],
    /// Requests that were decided from leases.
    leased: f64,
}

/// Gateways on one Redis that keeps its data through everything, clients that ask, and faults at random.
fn run(store: &str) -> Run {
    run_with(Scale::chosen(), store, "")
}

fn run_with(scale: Scale, store: &str, lines: &str) -> Run {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut redis = Redis::start_with(&[&durable[..], &["--busy-reply-threshold", "20"]].concat());
    let rule = limit_with("x", "\"user\"", scale.burst, lines).replace("1/d", &format!("{}/s", scale.rate));
    let gateways: Vec<Gateway> = (0..GATEWAYS).map(|_| gateway(&redis.url(), store, &rule)).collect();
    gateways.iter().for_each(Gateway::until_store_connected);
    let mut random = Rng::with_seed(seed());
    let is_over = AtomicBool::new(false);
    let (start, is_over) = (Instant::now(), &is_over);
    let mut run = Run { scale, seen: Seen::default(), elapsed: Duration::ZERO, faults: [0; FAULTS.len()], leased: 0.0 };
    let scale = &run.scale;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..GATEWAYS * scale.clients)
            .map(|number| (gateways[number % GATEWAYS].address, random.fork()))
            .map(|(address, random)| scope.spawn(move || ask(address, scale.users, random, start, is_over)))
            .collect();
        // The clients must end even where a fault cannot be undone, or the test would never.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while start.elapsed() < scale.lasts {
                let which = random.usize(..FAULTS.len());
                // Now and then so long that the connections are given up.
                let longest = if random.u8(..16) == 0 { 1500 } else { 120 };
                FAULTS[which].1(&mut redis, Duration::from_millis(random.u64(5..longest)));
                run.faults[which] += 1;
                std::thread::sleep(Duration::from_millis(random.u64(..200)));
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| run.seen.add(client.join().unwrap()));
        happened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    run.elapsed = start.elapsed();
    gateways.iter().for_each(until_redis_decides);
    run.leased = gateways.iter().map(|gateway| gateway.metric("rateguard_leased_total")).sum();
    run
}

/// Both workers, each of which needs somebody's request for its probe: the kernel deals out new connections.
fn until_redis_decides(gateway: &Gateway) {
    let mut decided = 0;
    until("Redis decides again", || {
        decided = if rate_limit(&ask_as_new_user(gateway.address)).is_empty() { 0 } else { decided + 1 };
        decided >= 20 && gateway.metric("rateguard_store_breakers_open") == 0.0
    });
}

impl Run {
    /// The most that any user was granted of what `allowed` says, over every span of time between two grants. What was
    /// sent after the start of the span and answered before its end was decided within.
    fn worst(&self, allowed: impl Fn(Duration) -> f64) -> f64 {
        let mut of_users: std::collections::HashMap<usize, Vec<(Duration, Duration)>> = Default::default();
        for &(user, sent, received) in &self.seen.grants {
            of_users.entry(user).or_default().push((received, sent));
        }
        let mut worst = 0f64;
        for grants in of_users.values_mut() {
            grants.sort_unstable();
            for &(_, begin) in grants.iter() {
                let within = grants.iter().filter(|(_, sent)| *sent >= begin);
                for (before, (received, _)) in within.enumerate() {
                    worst = worst.max((before + 1) as f64 / allowed(*received - begin));
                }
            }
        }
        worst
    }

    /// What the user with the most grants has.
    fn most(&self) -> usize {
        let mut of_users: std::collections::HashMap<usize, usize> = Default::default();
        self.seen.grants.iter().for_each(|(user, ..)| *of_users.entry(*user).or_default() += 1);
        of_users.into_values().max().unwrap_or(0)
    }

    fn faults(&self) -> usize {
        self.faults.iter().sum()
    }

    fn print(&self, worst: f64) {
        let Run { scale, seen, elapsed, faults, leased } = self;
        let faults: Vec<String> =
            FAULTS.iter().zip(faults).map(|((name, _), count)| format!("{name} {count}")).collect();
        println!(
            "{elapsed:.1?}: {} requests, {} granted, {} denied, {} passed without the store, {leased} from leases; faults: {}; \
             the most granted in any span: {worst:.3} of what is allowed; most granted to one user: {} of {:.0}",
            seen.requests,
            seen.grants.len(),
            seen.denied,
            seen.passed,
            faults.join(", "),
            self.most(),
            scale.limited(*elapsed)
        );
    }
}

/// Whatever happens to Redis and to the connections to it, what Redis itself has granted (and said so) never exceeds what
/// the limit grants, in any span of time.
#[test]
fn redis_never_grants_too_much_whatever_is_done_to_it() {
    let run = run("on_failure = \"open\"");
    let worst = run.worst(|time| run.scale.limited(time));
    run.print(worst);
    assert!(worst <= 1.0, "{worst} times what the limit grants");
    assert!(run.seen.passed > 0 && run.seen.denied > 0, "no request met a fault, or none a limit");
    assert!(run.most() as f64 > run.scale.limited(run.elapsed) / 10.0, "hardly anything was granted");
}

/// And of what workers take ahead, no more is spent in any span of time than the limit grants.
#[test]
fn leases_never_grant_too_much_whatever_is_done_to_redis() {
    let few = Scale { users: 3, burst: 100, rate: 100, ..Scale::chosen() };
    let run = run_with(few, "on_failure = \"open\"", "lease = 20");
    let worst = run.worst(|time| run.scale.limited(time));
    run.print(worst);
    assert!(worst <= 1.0, "{worst} times what the limit grants");
    assert!(run.leased > 0.0, "nothing was leased");
}

/// Where each replica decides by its share meanwhile, all that anybody admits stays within what the configuration states:
/// the limit, and one burst for each switch. However many switches there are, the shares bound it too: what Redis grants
/// and what the replicas grant alone are one limit each.
#[test]
fn redis_and_replicas_never_admit_more_than_twice_whatever_is_done_to_it() {
    let run = run(&format!("on_failure = \"local\"\nreplicas = {GATEWAYS}"));
    let worst = run.worst(|time| 2.0 * run.scale.limited(time));
    run.print(worst);
    println!("of one limit: {:.3}", run.worst(|time| run.scale.limited(time)));
    assert!(worst <= 1.0, "{worst} times the bound");
    let switches = 2 * run.faults() as u64;
    let most = run.scale.limited(run.elapsed) + (switches * run.scale.burst) as f64;
    assert!(run.most() as f64 <= most, "{} for one user, {switches} switches", run.most());
    assert_eq!(run.seen.passed, 0, "somebody always decides");
    assert!(run.seen.denied > 0, "no request met a limit");
}
