//! What the tests are made of: real gateways as processes, scripted origins, raw clients, real Redis servers.

pub mod authority;
pub mod client;
pub mod cluster;
pub mod dns;
pub mod fields;
pub mod gateway;
pub mod line;
pub mod load;
pub mod lua;
pub mod origin;
pub mod redis;
pub mod sentinel;
pub mod store;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// No test waits longer than this for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder that vanishes with its owner.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        Folder::below(&std::env::temp_dir())
    }

    /// A folder whose files wait for no disk, where the system has one.
    pub fn in_memory() -> Folder {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Folder::below(memory) } else { Folder::new() }
    }

    fn below(parent: &Path) -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("rateguard-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Polls until `condition` holds; fails the test where it does not in time.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port on which nothing listens at this moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal to a process that the test started.
pub fn signal(process: u32, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    rustix::process::kill_process(process, signal).unwrap();
}

/// Stops a process that the test started, and waits until none of its threads runs any more: the signal itself only asks.
pub fn suspend(process: u32) {
    signal(process, rustix::process::Signal::STOP);
    until("the process has stopped", || {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        threads.map_while(Result::ok).all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // Behind the name, which may hold anything.
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    });
}

/// A seed for random tests: `RATEGUARD_TEST_SEED`, or a new one; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = match std::env::var("RATEGUARD_TEST_SEED") {
        Ok(text) => text.parse().expect("RATEGUARD_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("RATEGUARD_TEST_SEED={seed}");
    seed
}
