//! The deadlines of a worker's connections, and who of their peers has gone: one scan looks at all.
//!
//! Shell.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: owns the sockets' deadlines")]

use crate::time::Micros;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvFlags, Shutdown};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::time::Duration;

/// How often a worker looks for late connections; deadlines are late by this at most.
pub const SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// A scan that is later than this comes after a pause of the whole process (a frozen container or machine), which must not
/// count against its peers.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a client that has closed its sending side is still waited for while its backend is silent, or it has none yet.
/// Half a close is legal after a whole request, but it looks the same as a whole one.
pub const HALF_CLOSED_MAX: Duration = Duration::from_secs(1);

/// The deadlines of a worker's connections.
#[derive(Default)]
pub struct Deadlines {
    pub(crate) entries: RefCell<Slab<Entry>>,
    pub(crate) waits: Waits,
    now: Cell<Micros>,
}

/// The waits of a worker's connections for the kernel, numbered as they begin.
///
/// The loop hands over all operations that have begun before it takes what has been done. So once a wait has ended, what
/// had begun before that wait is in the kernel's hands. What had arrived for it by then has been told, where the kernel had no
/// more to tell than it does at once (20 completions, since Linux 6.13): whoever must be sure asks.
#[derive(Default)]
pub(crate) struct Waits {
    begun: Cell<u64>,
    ended: Cell<u64>,
}

impl Waits {
    /// The number of one that begins.
    pub(crate) fn begin(&self) -> u64 {
        self.begun.set(self.begun.get() + 1);
        self.begun.get()
    }

    /// This one has ended.
    pub(crate) fn end(&self, number: u64) {
        self.ended.set(self.ended.get().max(number));
    }

    /// That of the last that has begun.
    pub(crate) fn last(&self) -> u64 {
        self.begun.get()
    }

    /// Whether one that began after this one has ended.
    pub(crate) fn have_passed(&self, number: u64) -> bool {
        self.ended.get() > number
    }
}

pub(crate) struct Entry {
    pub(crate) fd: RawFd,
    pub(crate) read: Due,
    pub(crate) write: Due,
    pub(crate) idle: bool,
    /// All that its peer is to get has been written.
    pub(crate) finished: bool,
    pub(crate) watch: Option<Watch>,
}

/// A client whose answer is awaited from a backend, and may be in vain.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    /// The backend's entry, where it has been given one.
    pub(crate) backend: Option<usize>,
    /// Its request is still going out: the end of its sending, where it is seen, comes behind that.
    pub(crate) is_sending: bool,
    /// Whether it has outlived a scan: shorter exchanges are not looked at.
    pub(crate) is_long: bool,
    /// When the client's end of its sending was first seen, and the backend's deadline then: both sides have been silent
    /// as long as that deadline is still the same.
    pub(crate) ended: Option<(Micros, Micros)>,
    /// The client has gone, and the backend's connection, where it had one, was reset.
    pub(crate) gone: bool,
}

#[derive(Clone, Copy, Default)]
pub(crate) enum Due {
    #[default]
    Never,
    At(Micros),
    Passed,
}

impl Due {
    /// The time, where there is one.
    pub(crate) fn at(self) -> Option<Micros> {
        match self {
            Due::At(due) => Some(due),
            Due::Never | Due::Passed => None,
        }
    }

    /// Becomes `due`, unless it has passed: then the connection has been shut.
    pub(crate) fn change(&mut self, due: Due) {
        if !matches!(self, Due::Passed) {
            *self = due;
        }
    }

    fn move_by(&mut self, late: Duration) {
        if let Due::At(due) = self {
            *due = due.after(late);
        }
    }

    /// Whether this deadline passes now, for the first time.
    fn passes(&mut self, now: Micros) -> bool {
        match *self {
            Due::At(due) if due <= now => {
                *self = Due::Passed;
                true
            }
            _ => false,
        }
    }
}

impl Watch {
    /// Whether a half-closed client has waited long enough for a backend whose read deadline is `due`.
    fn waits_in_vain(&mut self, due: Option<Micros>, now: Micros) -> bool {
        self.ended = match (self.ended, due) {
            (Some((since, before)), Some(due)) if before == due => Some((since, due)),
            (_, Some(due)) => Some((now, due)),
            // It is not the backend that is waited for.
            (_, None) => None,
        };
        self.ended.is_some_and(|(since, _)| now.since(since) >= HALF_CLOSED_MAX)
    }
}

/// How much of a connection its peer has given up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// It sends no more.
    Half,
    /// It neither sends nor receives any more.
    Gone,
}

/// What the peers of these sockets have given up, asked of all with one system call.
pub(crate) fn ends_of(watched: &[(usize, RawFd)]) -> impl Iterator<Item = Left> {
    let mut fds: Vec<PollFd<'_>> =
        watched.iter().map(|&(_, fd)| PollFd::from_borrowed_fd(socket(fd), PollFlags::RDHUP)).collect();
    // Where the question fails, nobody is known to have left.
    let asked = fds.is_empty() || rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok();
    fds.into_iter().map(move |fd| match fd.revents() {
        ends if !asked || ends.is_empty() => Left::Nothing,
        ends if ends.intersects(PollFlags::HUP | PollFlags::ERR) => Left::Gone,
        _ => Left::Half,
    })
}

impl Deadlines {
    /// Ends the waits whose deadline has passed. Reads stop at the socket's reading side only, so that a late client can
    /// still be told; writes end the connection.
    pub fn scan(&self, now: Micros) {
        let late = now.since(self.now.replace(now)).saturating_sub(SCAN_INTERVAL);
        if late > PAUSE_MAX {
            self.move_all(late);
        }
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.write.passes(now) {
                shut(entry.fd, Shutdown::Both);
            } else if entry.read.passes(now) {
                shut(entry.fd, Shutdown::Read);
            }
        }
        self.release_abandoned(now);
    }

    /// The process did not run for this long, so no peer could be served: all deadlines come later.
    fn move_all(&self, late: Duration) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            entry.read.move_by(late);
            entry.write.move_by(late);
        }
    }

    /// Ends the backends' connections of exchanges whose client has gone.
    fn release_abandoned(&self, now: Micros) {
        let mut entries = self.entries.borrow_mut();
        let mut watched = Vec::new();
        for (key, entry) in entries.iter_mut() {
            // A client that we have shut ourselves has not gone.
            let is_open = !matches!(entry.write, Due::Passed);
            if let Some(watch) = entry.watch.as_mut().filter(|watch| is_open && !watch.gone) {
                match watch.is_long {
                    true => watched.push((key, entry.fd)),
                    false => watch.is_long = true,
                }
            }
        }
        for ((key, _), left) in watched.iter().zip(ends_of(&watched)) {
            let backend = entries[*key].watch.and_then(|watch| watch.backend);
            let due = match backend.map(|key| entries.get(key)) {
                Some(Some(backend)) => backend.read.at(),
                Some(None) => continue,
                // It waits for one: nothing is heard of that.
                None => Some(Micros::default()),
            };
            let was_ended = matches!(entries[*key].read, Due::Passed);
            let Some(watch) = entries[*key].watch.as_mut() else { continue };
            // A direction that we closed ourselves tells nothing of the client.
            let is_half = left == Left::Half && !was_ended && !watch.is_sending;
            watch.gone = left == Left::Gone || (is_half && watch.waits_in_vain(due, now));
            if watch.gone
                && let Some(backend) = backend.and_then(|key| entries.get_mut(key))
            {
                // Not a mere close: that would wait behind unsent bytes, and some backends work on for a client that
                // only sends no more.
                reset(backend.fd);
                // Where that can only be a close, nobody is to take it for the end of a message.
                backend.read = Due::Passed;
            }
        }
    }

    /// Ends the waits of all connections on which nothing is going on, and nothing has arrived.
    pub fn end_idle(&self) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            if entry.idle && has_nothing(entry.fd) {
                entry.read = Due::Passed;
                shut(entry.fd, Shutdown::Read);
            }
        }
    }

    /// Resets what is still under way when the process ends: a mere end could pass for the end of a message. Gives how many
    /// connections that are.
    pub fn reset_busy(&self) -> usize {
        let entries = self.entries.borrow();
        let busy = entries.iter().filter(|(_, entry)| !entry.idle && !entry.finished);
        busy.inspect(|(_, entry)| reset(entry.fd)).count()
    }

    /// The time of the last scan: late by [`SCAN_INTERVAL`] at most, and free.
    pub fn coarse_now(&self) -> Micros {
        self.now.get()
    }
}

/// The socket of an entry, or of a connection to the store that is being watched.
#[allow(unsafe_code)]
pub(crate) fn socket<'e>(fd: RawFd) -> std::os::fd::BorrowedFd<'e> {
    // SAFETY: every `fd` here is that of an entry, and an entry is removed (Registration::drop) before its socket is
    // closed; or that of a connection to the store, whose halves outlive who watches it (redis::connection::live). So it
    // is open and ours. Holding duplicates instead would double the descriptors; a timer for each wait
    // measures 2 % of a request's CPU time.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

pub(crate) fn shut(fd: RawFd, how: Shutdown) {
    // A socket that is not connected any more has no wait to end.
    let _ = rustix::net::shutdown(socket(fd), how);
}

pub(crate) fn reset(fd: RawFd) {
    // A connection that is gone already needs no reset, and a unix socket knows none: its waits are to end all the same.
    rustix::net::connect_unspec(socket(fd)).unwrap_or_else(|_| shut(fd, Shutdown::Both));
}

/// Whether bytes have arrived that nobody has received yet.
pub(crate) fn has_unread(fd: RawFd) -> bool {
    rustix::io::ioctl_fionread(socket(fd)).is_ok_and(|bytes| bytes > 0)
}

/// Whether the peer has neither sent anything nor closed.
pub(crate) fn has_nothing(fd: RawFd) -> bool {
    let mut byte = [0u8; 1];
    let peeked = rustix::net::recv(socket(fd), &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    /// Two ends of a connection.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (far, listener.accept().unwrap().0)
    }

    #[test]
    fn a_client_that_closed_its_side_is_taken_for_gone_not_before_its_request_is_out() {
        let ((client, near), (backend, asked)) = (connection(), connection());
        let deadlines = Deadlines::default();
        let entry = |stream: &TcpStream, read, watch| {
            let entry = Entry { fd: stream.as_raw_fd(), read, write: Due::Never, idle: false, finished: false, watch };
            deadlines.entries.borrow_mut().insert(entry)
        };
        let backend_key = entry(&asked, Due::At(Micros(60_000_000)), None);
        let watch = Watch { backend: Some(backend_key), is_sending: true, is_long: false, ended: None, gone: false };
        let client_key = entry(&near, Due::Never, Some(watch));
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut now = Micros(0);
        let mut is_gone_after = |time: Duration| {
            let end = now.after(time);
            while now < end {
                now = now.after(SCAN_INTERVAL);
                deadlines.scan(now);
            }
            deadlines.entries.borrow()[client_key].watch.unwrap().gone
        };
        assert!(!is_gone_after(Duration::from_secs(30)));
        deadlines.entries.borrow_mut()[client_key].watch = Some(Watch { is_sending: false, ..watch });
        assert!(!is_gone_after(HALF_CLOSED_MAX));
        assert!(is_gone_after(2 * SCAN_INTERVAL));
        let read = std::io::Read::read(&mut &backend, &mut [0]);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
}
