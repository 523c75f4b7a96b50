//! Bytes from one socket to another that never enter the process: through a pipe, which takes the pages as they are.
//!
//! Shell. Nothing here waits, and a worker's pipe is empty whenever it is not at work: so one is enough for all of its
//! connections, and no deadline and no lost client has to care for what is in it.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: moves bytes between sockets")]

use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread, read, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, pipe_with, splice};
use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes that a pipe takes at once, and that may have to be copied out of it where the other side has no room: what is
/// read of a body at once otherwise.
pub const PIPE_MAX: usize = 64 * 1024;

/// Bytes that one connection may move before others have their turn: about a tenth of a millisecond.
const TURN_MAX: u64 = 512 * 1024;

/// What is less than that is copied with what comes next.
const READY_MIN: u64 = 16 * 1024;

/// What the log says where there is no pipe, or not any more.
const COPIED: &str = "large bodies are copied, since there is no pipe to move them through";

/// A worker's pipe; none where the system does not give one, or does not move bytes through it.
pub struct Splicer(RefCell<Option<Pipe>>);

struct Pipe {
    from: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    fn open() -> Result<Pipe, Errno> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user with many pipes is given small ones.
        match fcntl_getpipe_size(&into)? {
            PIPE_MAX.. => Ok(Pipe { from, into }),
            _ => Err(Errno::NOBUFS),
        }
    }
}

/// What was moved.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that the receiving side has.
    pub bytes: usize,
    /// In so many pieces.
    pub pieces: u32,
}

/// Which side is lost. A reset is told once: who read on would take it for a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// That which bytes come from.
    From,
    /// That which they go to, and why.
    To(Errno),
}

impl Default for Splicer {
    /// Made at once: so a worker's descriptors are as many at its end as they are at its start.
    fn default() -> Splicer {
        let pipe = Pipe::open();
        if let Err(error) = &pipe {
            tracing::info!(%error, "{COPIED}");
        }
        Splicer(RefCell::new(pipe.ok()))
    }
}

impl Splicer {
    /// Whether there is a pipe.
    pub fn is_usable(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Moves what has arrived at `from`, `most` bytes at most, to where `to` has room for it. Bytes that were taken and found
    /// no room are in `rest` then, [`PIPE_MAX`] at most. On neither socket an operation may be about to begin.
    pub fn pass(&self, from: BorrowedFd, to: BorrowedFd, most: u64, rest: &mut Vec<u8>) -> Result<Moved, Broken> {
        let ready = ioctl_fionread(from).unwrap_or(0);
        if ready.min(most) < READY_MIN {
            return Ok(Moved::default());
        }
        let mut state = self.0.borrow_mut();
        let Some(pipe) = &*state else { return Ok(Moved::default()) };
        // The flag of splice(2) is about the pipe alone.
        let (Ok(_from), Ok(_to)) = (Unwaiting::new(from), Unwaiting::new(to)) else { return Ok(Moved::default()) };
        let mut moved = Moved::default();
        match pipe.pass(from, to, most.min(TURN_MAX), &mut moved, rest) {
            Ok(()) => Ok(moved),
            Err(Trouble::Side(side)) => Err(side),
            Err(Trouble::Refused(error)) => {
                tracing::warn!(%error, "{COPIED}");
                *state = None;
                Ok(moved)
            }
            Err(Trouble::Stuck(error)) => {
                tracing::warn!(%error, "{COPIED}");
                // What is in it goes with it.
                *state = None;
                Err(Broken::To(error))
            }
        }
    }
}

/// What is wrong. Only a pipe that is stuck has something in it.
#[derive(Debug)]
enum Trouble {
    Side(Broken),
    /// The system moves no bytes this way. Those that were taken have been given, or taken back.
    Refused(Errno),
    Stuck(Errno),
}

impl Pipe {
    fn pass(
        &self,
        from: BorrowedFd,
        to: BorrowedFd,
        most: u64,
        moved: &mut Moved,
        rest: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        let mut left = usize::try_from(most).unwrap_or(usize::MAX);
        while left > 0 {
            let taken = match move_bytes(from, self.into.as_fd(), left.min(PIPE_MAX)) {
                // A close is for the next read to find.
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(taken) => taken,
                Err(Errno::NOMEM) => return Ok(()),
                // A socket hands out what has arrived before it tells of its end: so the first is not about the socket.
                Err(error) if moved.pieces == 0 => return Err(Trouble::Refused(error)),
                Err(_) => return Err(Trouble::Side(Broken::From)),
            };
            left -= taken;
            moved.pieces += 1;
            let (given, error) = self.give(to, taken);
            moved.bytes += given;
            if given < taken {
                self.take_back(taken - given, rest)?;
            }
            match error {
                Some(error) if is_refusal(error) => return Err(Trouble::Refused(error)),
                Some(error) => return Err(Trouble::Side(Broken::To(error))),
                None if given < taken => return Ok(()),
                None => {}
            }
        }
        Ok(())
    }

    /// Moves so many bytes on, as far as there is room for them: how many that were, and why no more, if not for that.
    fn give(&self, to: BorrowedFd, bytes: usize) -> (usize, Option<Errno>) {
        let mut given = 0;
        while given < bytes {
            match move_bytes(self.from.as_fd(), to, bytes - given) {
                Ok(0) => return (given, Some(Errno::PIPE)),
                Ok(some) => given += some,
                Err(Errno::AGAIN) => break,
                Err(error) => return (given, Some(error)),
            }
        }
        (given, None)
    }

    /// Empties the pipe of so many bytes.
    fn take_back(&self, bytes: usize, rest: &mut Vec<u8>) -> Result<(), Trouble> {
        rest.reserve_exact(bytes);
        rest.resize(bytes, 0);
        let mut at = 0;
        while at < bytes {
            match retry_on_intr(|| read(&self.from, &mut rest[at..])) {
                Ok(some @ 1..) => at += some,
                ended => {
                    rest.clear();
                    return Err(Trouble::Stuck(ended.err().unwrap_or(Errno::PIPE)));
                }
            }
        }
        Ok(())
    }
}

/// Whether it is no fault of the socket: a system or sandbox that does not do this.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS)
}

fn move_bytes(from: BorrowedFd, to: BorrowedFd, most: usize) -> Result<usize, Errno> {
    retry_on_intr(|| splice(from, None, to, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK))
}

/// A socket on which no call waits, as long as this lives.
struct Unwaiting<'s>(Option<BorrowedFd<'s>>);

impl Unwaiting<'_> {
    fn new(socket: BorrowedFd) -> Result<Unwaiting, Errno> {
        if monoio::utils::is_legacy() {
            // It is so all the time.
            return Ok(Unwaiting(None));
        }
        ioctl_fionbio(socket, true)?;
        Ok(Unwaiting(Some(socket)))
    }
}

impl Drop for Unwaiting<'_> {
    fn drop(&mut self) {
        if let Some(socket) = self.0 {
            // As it was: some operations of io_uring end at once on a socket that does not wait.
            let _ = ioctl_fionbio(socket, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{Shutdown, shutdown};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// Two ends of a connection, the second of which never waits.
    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (far, near)
    }

    fn pass(pipe: &Pipe, from: &TcpStream, to: &TcpStream, most: u64) -> (Result<(), Trouble>, Moved, Vec<u8>) {
        let (mut moved, mut rest) = (Moved::default(), Vec::new());
        let result = pipe.pass(from.as_fd(), to.as_fd(), most, &mut moved, &mut rest);
        (result, moved, rest)
    }

    #[test]
    fn what_finds_no_room_is_taken_back_and_leaves_the_pipe_empty() {
        let (pipe, (mut origin, from), (mut reader, to)) = (Pipe::open().unwrap(), connection(), connection());
        let mut sent = Vec::new();
        let mut given = 0;
        let rest = loop {
            let block: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(PIPE_MAX).collect();
            origin.write_all(&block).unwrap();
            sent.extend_from_slice(&block);
            let (result, moved, rest) = pass(&pipe, &from, &to, u64::MAX);
            assert!(result.is_ok());
            given += moved.bytes;
            if !rest.is_empty() {
                break rest;
            }
        };
        assert!(rest.len() <= PIPE_MAX);
        assert_eq!(ioctl_fionread(&pipe.from).unwrap(), 0);
        let mut got = vec![0; given];
        reader.read_exact(&mut got).unwrap();
        got.extend_from_slice(&rest);
        assert!(got == sent[..got.len()], "changed on the way");
    }

    #[test]
    fn no_more_is_taken_than_was_asked_for() {
        let (pipe, (mut origin, from), (mut reader, to)) = (Pipe::open().unwrap(), connection(), connection());
        origin.write_all(b"one answer, and more").unwrap();
        let (_, moved, rest) = pass(&pipe, &from, &to, 10);
        assert_eq!((moved, rest), (Moved { bytes: 10, pieces: 1 }, Vec::new()));
        let mut got = [0; 10];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"one answer");
        assert_eq!(ioctl_fionread(&from).unwrap(), 10);
    }

    #[test]
    fn where_the_system_refuses_the_second_half_nothing_is_lost() {
        let (pipe, (mut origin, from)) = (Pipe::open().unwrap(), connection());
        // Nothing is spliced to what is only appended to.
        let path = std::env::temp_dir().join(format!("rateguard-splice-{}", std::process::id()));
        let to = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        origin.write_all(b"all of it").unwrap();
        let (mut moved, mut rest) = (Moved::default(), Vec::new());
        let result = pipe.pass(from.as_fd(), to.as_fd(), 100, &mut moved, &mut rest);
        assert!(matches!(result, Err(Trouble::Refused(Errno::INVAL))), "{result:?}");
        assert_eq!((moved, rest), (Moved { bytes: 0, pieces: 1 }, b"all of it".to_vec()));
        assert_eq!(ioctl_fionread(&pipe.from).unwrap(), 0);
    }

    #[test]
    fn it_is_told_which_side_is_lost() {
        let (pipe, (mut origin, from), (_reader, to)) = (Pipe::open().unwrap(), connection(), connection());
        assert!(matches!(pass(&pipe, &from, &to, 10), (Ok(()), Moved { bytes: 0, .. }, _)), "nothing has come yet");
        origin.write_all(b"some").unwrap();
        shutdown(&to, Shutdown::Write).unwrap();
        assert!(matches!(pass(&pipe, &from, &to, 10).0, Err(Trouble::Side(Broken::To(Errno::PIPE)))));
        assert_eq!(ioctl_fionread(&pipe.from).unwrap(), 0);

        let (pipe, (mut origin, from), (_reader, to)) = (Pipe::open().unwrap(), connection(), connection());
        origin.write_all(b"some").unwrap();
        socket2::SockRef::from(&origin).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(origin);
        let (result, moved, _) = pass(&pipe, &from, &to, 10);
        assert!(matches!(result, Err(Trouble::Side(Broken::From))), "a reset: {result:?}");
        assert_eq!(moved.bytes, 4, "what came before it is passed on");

        let (pipe, (origin, from), (_reader, to)) = (Pipe::open().unwrap(), connection(), connection());
        drop(origin);
        assert!(matches!(pass(&pipe, &from, &to, 10), (Ok(()), Moved { bytes: 0, .. }, _)), "a close");
    }
}
