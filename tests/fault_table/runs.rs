//! One fault in one mode: load, the fault, its end, and what is promised of what the client saw meanwhile.

use super::faults::{Fault, Stage};
use super::figures::{Statuses, Waits, ms, over, recovery};
use super::load::{BURST, Load, PROBES, Record, rules};
use super::pulse::longest_wait_since;
use super::support::client::get;
use super::support::gateway::{Gateway, config};
use super::support::origin::Origin;
use super::support::until;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub const MODES: [&str; 3] = ["open", "closed", "local"];

/// The deadline of a decision, in milliseconds: the default.
const DEADLINE_MS: f64 = 20.0;

/// A thread that waits for a processor as long as this has others beside it.
const BUSY_GAP_MS: f64 = 30.0;

/// The longest that an answer may take where others keep the processors busy.
const BUSY_MS: f64 = 500.0;

/// Requests before the fault of which a 99th percentile can be told.
const SAMPLE_MIN: usize = 500;

/// The share of the machine that is idle under this load, unless others are at work too.
const IDLE_MIN: f64 = 0.8;

/// After so much of a hang the breaker has been opened.
const OPENED: Duration = Duration::from_millis(100);

/// Requests before this are not counted: connections are opened.
const WARM_UP: Duration = Duration::from_millis(100);

/// Threads that an answer passes through one after the other, each of which may have to wait for a processor.
const HANDS: f64 = 5.0;

/// How long the parts of a run take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub before: Duration,
    pub fault: Duration,
    /// At most.
    pub after: Duration,
    /// The load goes on for so long after the recovery.
    pub settled: Duration,
}

/// What the client saw.
#[derive(Debug)]
pub struct Run {
    pub fault: &'static str,
    pub mode: &'static str,
    pub statuses_before: Statuses,
    pub statuses: Statuses,
    pub statuses_after: Statuses,
    pub waits_before: Waits,
    /// During the fault, and until the recovery.
    pub waits: Waits,
    /// In the first tenth of a second of the fault, and in the rest of it.
    pub waits_until_opened: Waits,
    pub waits_once_open: Waits,
    pub fault_ms: f64,
    pub recovery_ms: Option<f64>,
    /// Requests of the worst user beyond the limit: whoever decided, and by the store alone.
    pub over: f64,
    pub over_by_store: f64,
    /// How many bursts more than the limit may pass: by the switches in `local`, and where the store has lost its buckets.
    pub switches: u32,
    pub losses: u32,
    /// Decisions that the store did not give, by kind; those of the probes are among them.
    pub errors: String,
    /// The longest that a thread waited for a processor.
    pub pulse_ms: f64,
    /// The share of the machine that nobody used.
    pub idle: f64,
}

/// `None` where the fault cannot be staged on this machine.
pub fn run(name: &'static str, stage: Stage, mode: &'static str, times: Times, seed: u64) -> Option<Run> {
    let mut fault = stage()?;
    let store = format!("[store]\nurl = \"{}\"\non_failure = \"{mode}\"\nreplicas = 1\n", fault.url());
    let gateway = Gateway::start_by(&config("", &[backend()], &(store + &rules())), fault.gateway());
    until("the gateway is connected to the store", || {
        gateway.metric("rateguard_store_connections") >= 2.0 * fault.servers() as f64
    });
    assert_eq!(get(gateway.address, "/load").status, 200);
    let (began, idle_before) = (Instant::now(), processors());
    longest_wait_since(began);
    let (records, (begin, end, recovery)) =
        Load::during(gateway.address, seed, |load| happen(fault.as_mut(), load, began, times));
    let idle_after = processors();
    let idle = (idle_after.0 - idle_before.0) / (idle_after.1 - idle_before.1).max(1.0);
    let between = |from: Instant, to: Instant| -> Vec<Record> {
        records.iter().filter(|record| record.sent >= from && record.sent < to).copied().collect()
    };
    let before = between(began + WARM_UP, begin);
    let recovered = end + recovery.unwrap_or(times.after);
    let last = records.iter().map(|record| record.ended).max()?;
    Some(Run {
        fault: name,
        mode,
        statuses_before: Statuses::of(&before),
        statuses: Statuses::of(&between(begin, end)),
        statuses_after: Statuses::of(&between(end, last)),
        waits_before: Waits::of(&before),
        waits: Waits::of(&between(begin, recovered.max(end))),
        waits_until_opened: Waits::of(&between(begin, begin + OPENED)),
        waits_once_open: Waits::of(&between(begin + OPENED, end)),
        fault_ms: ms(end - begin),
        recovery_ms: recovery.map(ms),
        over: over(&records, |_| true),
        over_by_store: over(&records, |record| record.by_store),
        switches: fault.switches(),
        losses: fault.losses(),
        errors: errors(&gateway),
        pulse_ms: ms(longest_wait_since(began)),
        idle,
    })
}

/// Gives when the fault began and ended, and how long after it the store decided again.
fn happen(fault: &mut dyn Fault, load: &Load, began: Instant, times: Times) -> (Instant, Instant, Option<Duration>) {
    std::thread::sleep((began + times.before).saturating_duration_since(Instant::now()));
    let begin = Instant::now();
    fault.begin();
    while begin.elapsed() < times.fault {
        fault.go_on();
    }
    let end = fault.end();
    loop {
        let found = recovery(&load.probes.lock().unwrap(), PROBES, end);
        let enough = found.map_or(times.after, |found| (found + times.settled).min(times.after));
        if end.elapsed() >= enough {
            return (begin, end, found);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Run {
    pub fn added_p50(&self) -> f64 {
        self.waits.p50 - self.waits_before.p50
    }

    pub fn added_p99(&self) -> f64 {
        self.waits.p99 - self.waits_before.p99
    }

    /// Requests beyond the limit that may pass: by the store, and in all.
    pub fn bounds(&self) -> [f64; 2] {
        let by_store = f64::from(self.losses) * BURST;
        let in_all = match self.mode {
            "open" => f64::INFINITY,
            "closed" => by_store,
            _ => by_store + f64::from(self.switches) * BURST,
        };
        [by_store, in_all]
    }

    /// What is promised and was not kept, unless the machine may be to blame.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |is_kept: bool, what: String| {
            if !is_kept {
                broken.push(what);
            }
        };
        let all = [self.statuses_before, self.statuses, self.statuses_after];
        let refused: usize = all.iter().map(|statuses| statuses.refused).sum();
        let other: usize = all.iter().map(|statuses| statuses.other).sum();
        check(other == 0, format!("{other} requests failed"));
        check(self.mode == "closed" || refused == 0, format!("{refused} requests got a 503"));
        let [by_store, in_all] = self.bounds();
        // What is measured from outside is exact but for the rounding of times.
        check(self.over_by_store <= by_store + 0.1, format!("the store admitted {:.1} too many", self.over_by_store));
        check(self.over <= in_all + 0.1, format!("{:.1} too many were admitted, at most {in_all}", self.over));
        let excuse = HANDS * self.pulse_ms;
        let wait = self.waits.longest;
        let longest = if self.is_busy() { BUSY_MS } else { self.waits_before.longest + DEADLINE_MS + 5.0 };
        check(wait <= longest + excuse, format!("an answer took {wait:.1} ms"));
        if self.fault == "SIGSTOP" {
            self.check_hang(excuse, &mut check);
        }
        broken
    }

    /// The figures asked of a store that hangs.
    fn check_hang(&self, excuse: f64, check: &mut impl FnMut(bool, String)) {
        let [until_opened, once_open] = self.added_by_hang();
        let most = if self.is_busy() { BUSY_MS } else { DEADLINE_MS + 5.0 };
        check(until_opened <= most + excuse, format!("until the breaker opened p99 + {until_opened:.2} ms"));
        // Of a few requests the 99th percentile is the longest, which says something else.
        let is_told = !self.is_busy() && self.statuses_before.sum() >= SAMPLE_MIN;
        check(once_open <= 0.2 || !is_told, format!("with the breaker open p99 + {once_open:.2} ms"));
        let recovered = self.recovery_ms.is_some_and(|took| took <= 1000.0 + excuse);
        check(recovered, format!("recovery took {:?} ms", self.recovery_ms));
    }

    /// By how much the 99th percentile grew, until the breaker opened and after that.
    pub fn added_by_hang(&self) -> [f64; 2] {
        [self.waits_until_opened.p99, self.waits_once_open.p99].map(|p99| p99 - self.waits_before.p99)
    }

    /// Whether others kept the processors from the gateway: then a tenth of a millisecond says nothing.
    pub fn is_busy(&self) -> bool {
        self.idle < IDLE_MIN || self.pulse_ms >= BUSY_GAP_MS
    }
}

/// Such as `timeout=3 breaker=20`.
fn errors(gateway: &Gateway) -> String {
    let text = get(gateway.admin, "/metrics").text();
    let series = text.lines().filter_map(|line| line.strip_prefix("rateguard_store_errors_total{kind=\""));
    let counted = series.filter_map(|line| line.split_once("\"} ")).filter(|(_, count)| *count != "0");
    counted.map(|(kind, count)| format!("{kind}={count}")).collect::<Vec<_>>().join(" ")
}

/// Time that processors had nothing to do, and all their time.
fn processors() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap();
    let times: Vec<f64> = text.lines().next().unwrap().split_whitespace().skip(1).flat_map(str::parse).collect();
    (times[3] + times[4], times.iter().sum())
}

/// A backend that says ok and remembers nothing.
fn backend() -> SocketAddr {
    static BACKEND: OnceLock<Origin> = OnceLock::new();
    let serve = |mut stream: std::net::TcpStream, _| {
        let (mut piece, mut head) = ([0; 4096], Vec::new());
        while let Ok(length @ 1..) = stream.read(&mut piece) {
            head.extend_from_slice(&piece[..length]);
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                    return;
                }
            }
        }
    };
    BACKEND.get_or_init(|| Origin::new(serve)).address
}
