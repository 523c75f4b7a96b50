//! What the kernel counts of a gateway: memory, descriptors, sockets. And the lock that lets one test run at a time.

use crate::support::gateway::Gateway;
use crate::support::until;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub const KIB: usize = 1024;
pub const MIB: usize = 1024 * KIB;

/// A machine that is busy with a crowd may take its time for a connection.
pub const PATIENT: &str = "[upstreams.app.timeouts]\nconnect = \"20s\"";

/// Descriptors of the test itself, beside those that it asks for.
const FILES_RESERVED: u64 = 200;

/// The machine for one test, until the guard is dropped.
pub fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing behind that the next could stumble over.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets this process, and the gateways that it starts, open so many files.
pub fn allow_files(wanted: u64) {
    let wanted = wanted + FILES_RESERVED;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    assert!(raised.is_ok(), "this test opens {wanted} files, and the limit (ulimit -n, ulimit -Hn) is {limit:?}");
}

/// Memory that is in use at this moment, in bytes.
pub fn resident(gateway: &Gateway) -> usize {
    status(gateway, "VmRSS:")
}

/// The most memory that was in use at any moment, in bytes.
pub fn peak(gateway: &Gateway) -> usize {
    status(gateway, "VmHWM:")
}

fn status(gateway: &Gateway, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.process())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * KIB
}

/// Open descriptors.
pub fn files(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.process())).unwrap().count()
}

/// Waits until a count stays the same, and gives it.
pub fn until_still(mut count: impl FnMut() -> usize) -> usize {
    let (mut last, mut still) = (usize::MAX, 0);
    until("nothing moves any more", || {
        let now = count();
        still = if now == last { still + 1 } else { 0 };
        last = now;
        still == 40
    });
    last
}
