//! Faults around a server: of the line to it, its name, its clock, and of the arrangement that it is part of.

use super::faults::{Fault, bucket_of};
use super::support::Folder;
use super::support::cluster::{Cluster, PRIMARIES, slot_of};
use super::support::gateway::PROGRAM;
use super::support::line::Line;
use super::support::redis::Redis;
use super::support::sentinel::{Watched, has_role};
use super::support::until;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Between two resets of all connections.
const RESETS: Duration = Duration::from_millis(100);

/// A server at the end of a line, and what is done to the line.
struct OnLine {
    line: Line,
    begin: Box<dyn Fn(&mut Line)>,
    go_on: fn(&Line) -> u32,
    end: fn(&mut Line),
    switches: u32,
    _redis: Redis,
}

impl Fault for OnLine {
    fn url(&self) -> String {
        self.line.url()
    }

    fn begin(&mut self) {
        (self.begin)(&mut self.line);
    }

    fn go_on(&mut self) {
        self.switches += (self.go_on)(&self.line);
    }

    fn end(&mut self) -> Instant {
        (self.end)(&mut self.line);
        Instant::now()
    }

    fn switches(&self) -> u32 {
        self.switches
    }
}

fn on_line(begin: impl Fn(&mut Line) + 'static, end: fn(&mut Line)) -> OnLine {
    let redis = Redis::start();
    let go_on = |_: &Line| {
        std::thread::sleep(Duration::from_millis(5));
        0
    };
    OnLine { line: Line::to(redis.port), begin: Box::new(begin), go_on, end, switches: 2, _redis: redis }
}

/// Each reply comes so much later.
pub fn delayed(delay_ms: u64) -> Option<Box<dyn Fault>> {
    let delay = Duration::from_millis(delay_ms);
    Some(Box::new(on_line(move |line| line.delay(delay), |line| line.delay(Duration::ZERO))))
}

/// All connections are reset, again and again.
pub fn resets() -> Option<Box<dyn Fault>> {
    let go_on = |line: &Line| {
        line.reset();
        std::thread::sleep(RESETS);
        2
    };
    Some(Box::new(OnLine { go_on, ..on_line(|_| {}, |_| {}) }))
}

/// What is open carries nothing any more, and what is opened neither.
pub fn black_hole() -> Option<Box<dyn Fault>> {
    Some(Box::new(on_line(|line| line.set_mute(true), |line| line.set_mute(false))))
}

/// Connections end, and attempts at new ones have no answer.
pub fn unanswered() -> Option<Box<dyn Fault>> {
    Some(Box::new(on_line(Line::go_deaf, Line::hear)))
}

/// Runs a program whose names stand in a file of its own, and nowhere else.
const WITH_NAMES: &str =
    "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/nsswitch.conf && shift 2 && exec \"$@\"";

/// A server that is killed while its name is gone too.
struct Nameless {
    redis: Redis,
    names: PathBuf,
    sources: PathBuf,
    _folder: Folder,
}

const NAME: &str = "store.test";

/// Only where a process may have mounts of its own.
pub fn nameless() -> Option<Box<dyn Fault>> {
    let folder = Folder::new();
    let names = folder.write("hosts", &format!("127.0.0.1 {NAME}\n"));
    let sources = folder.write("nsswitch.conf", "hosts: files\n");
    let fault = Nameless { redis: Redis::start(), names, sources, _folder: folder };
    let mut probe = fault.within("getent");
    let can = probe.args(["hosts", NAME]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    can.is_ok_and(|status| status.success()).then(|| -> Box<dyn Fault> { Box::new(fault) })
}

impl Nameless {
    fn within(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", WITH_NAMES, "sh"]);
        command.args([&self.names, &self.sources]).arg(program);
        command
    }
}

impl Fault for Nameless {
    fn url(&self) -> String {
        format!("redis://{NAME}:{}", self.redis.port)
    }

    fn gateway(&self) -> Command {
        self.within(PROGRAM)
    }

    fn begin(&mut self) {
        // Written in its place: the mount is of this file, not of its name.
        std::fs::write(&self.names, "\n").unwrap();
        self.redis.kill();
    }

    fn end(&mut self) -> Instant {
        std::fs::write(&self.names, format!("127.0.0.1 {NAME}\n")).unwrap();
        self.redis.launch();
        Instant::now()
    }
}

/// A server whose clock is put wrong, and right again.
struct Clock {
    redis: Redis,
    is_back: bool,
    file: PathBuf,
    _folder: Folder,
}

/// What moves the clock: libfaketime cannot do it to a server with an allocator of its own, which asks for the time before
/// that library can tell it.
const MOVES_CLOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fault_table/clock.c");

const HOUR: Duration = Duration::from_secs(3600);

/// Only where there is a C compiler.
pub fn clock(is_back: bool) -> Option<Box<dyn Fault>> {
    let folder = Folder::new();
    let library = folder.path().join("clock.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(MOVES_CLOCK).status();
    built.ok().filter(ExitStatus::success)?;
    let file = folder.path().join("shift");
    std::fs::write(&file, 0i64.to_ne_bytes()).unwrap();
    let [library, path] = [&library, &file].map(|path| path.display().to_string());
    let redis = Redis::start_in(&[("LD_PRELOAD", &library), ("SHIFT_FILE", &path)], &[]);
    Some(Box::new(Clock { redis, is_back, file, _folder: folder }))
}

impl Clock {
    /// In its place: the server has this very file in its memory.
    fn put(&self, us: i64) {
        let file = OpenOptions::new().write(true).open(&self.file).unwrap();
        file.write_all_at(&us.to_ne_bytes(), 0).unwrap();
    }

    fn seconds(&self) -> i64 {
        let [seconds, _]: [String; 2] = redis::cmd("TIME").query(&mut self.redis.connection()).unwrap();
        seconds.parse().unwrap()
    }
}

impl Fault for Clock {
    fn url(&self) -> String {
        self.redis.url()
    }

    fn begin(&mut self) {
        let before = self.seconds();
        let us = HOUR.as_micros() as i64;
        self.put(if self.is_back { -us } else { us });
        let jump = self.seconds() - before;
        assert!((jump.unsigned_abs()).abs_diff(HOUR.as_secs()) < 10, "the clock jumped by {jump} s");
    }

    fn end(&mut self) -> Instant {
        self.put(0);
        Instant::now()
    }

    fn switches(&self) -> u32 {
        0
    }

    /// An hour's time fills a bucket. An hour back leaves it as it is; but one that is charged at that very moment may be
    /// written with an end of its life that is an hour too early.
    fn losses(&self) -> u32 {
        1
    }
}

struct Failover(Watched);

/// The primary is killed; over when its replica has been made the primary.
pub fn failover() -> Option<Box<dyn Fault>> {
    Some(Box::new(Failover(Watched::start())))
}

impl Fault for Failover {
    fn url(&self) -> String {
        self.0.url()
    }

    fn begin(&mut self) {
        self.0.servers[0].kill();
    }

    fn end(&mut self) -> Instant {
        until("the replica is the primary", || has_role(&self.0.servers[1], "master"));
        Instant::now()
    }
}

/// Users whose slots move.
const MOVED: usize = 4;

struct Reshard {
    cluster: Cluster,
    round: usize,
}

/// Slots move on, over and over, with the buckets in them.
pub fn reshard() -> Option<Box<dyn Fault>> {
    Some(Box::new(Reshard { cluster: Cluster::of_primaries(), round: 0 }))
}

impl Reshard {
    /// Waits until all primaries have heard of the last change: two that made the next ones at once would quarrel.
    fn agree(&self) {
        let epoch = |server: &Redis| {
            let state: String = redis::cmd("CLUSTER").arg("INFO").query(&mut server.connection()).unwrap();
            state.lines().find(|line| line.starts_with("cluster_current_epoch:")).map(str::to_owned)
        };
        until("the servers agree on the epoch", || {
            let first = epoch(&self.cluster.servers[0]);
            self.cluster.servers.iter().all(|server| epoch(server) == first)
        });
    }
}

impl Fault for Reshard {
    fn url(&self) -> String {
        self.cluster.url()
    }

    fn servers(&self) -> usize {
        PRIMARIES
    }

    fn begin(&mut self) {}

    fn go_on(&mut self) {
        for user in 0..MOVED {
            let key = bucket_of(user);
            let (slot, home) = (slot_of(&key), self.cluster.owner_of(&key));
            let (from, to) = ((home + self.round) % PRIMARIES, (home + self.round + 1) % PRIMARIES);
            // A bucket may have come to be on the old server meanwhile.
            for _ in 0..2 {
                let keys = self.cluster.begin_move(slot, from, to);
                self.cluster.move_keys(&keys, from, to);
            }
            self.cluster.end_move(slot, to);
            self.agree();
        }
        self.round += 1;
    }

    fn end(&mut self) -> Instant {
        Instant::now()
    }
}
