//! A backend that does what the test wants of it now, and counts.

use crate::support::origin::{Origin, read_request};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// 200, and the connection is kept.
    Well,
    /// These bytes, and the connection is kept.
    Says(&'static str),
    /// These bytes, and the connection is closed.
    SaysAndEnds(&'static str),
    /// Nothing, until the mood changes: then what that says, unless the gateway has hung up.
    Holds,
}

/// The backend.
pub struct Moody {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    mood: Mutex<Option<Mood>>,
    /// The lines of requests in their order.
    lines: Mutex<Vec<String>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    /// Every connection that was accepted.
    streams: Mutex<Vec<TcpStream>>,
    most_open: AtomicUsize,
}

impl State {
    fn mood(&self) -> Mood {
        self.mood.lock().unwrap().unwrap_or(Mood::Well)
    }

    /// What a request gets in the end; `None` where the gateway has hung up.
    fn decide(&self, stream: &mut TcpStream) -> Option<Mood> {
        stream.set_nonblocking(true).unwrap();
        let is_there = loop {
            match stream.peek(&mut [0]) {
                Ok(0) => break false,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break false,
                _ if self.mood() != Mood::Holds => break true,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        stream.set_nonblocking(false).unwrap();
        is_there.then(|| self.mood())
    }

    fn serve(&self, stream: &mut TcpStream) {
        while let Some(request) = read_request(stream) {
            self.lines.lock().unwrap().push(request.line().to_string());
            let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
            let mood = self.decide(stream);
            // Before the answer: it may bring the next request.
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            let (answer, ends) = match mood {
                Some(Mood::Well) => ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false),
                Some(Mood::Says(answer)) => (answer, false),
                Some(Mood::SaysAndEnds(answer)) => (answer, true),
                Some(Mood::Holds) | None => return,
            };
            if stream.write_all(answer.as_bytes()).is_err() || ends {
                return;
            }
        }
    }

    /// Notes a connection, and how many are open now as the kernel sees it: those whose other end has not closed.
    fn accepted(&self, stream: &TcpStream) {
        let mut streams = self.streams.lock().unwrap();
        streams.push(stream.try_clone().unwrap());
        self.most_open.fetch_max(open(&streams), Ordering::SeqCst);
    }
}

fn open(streams: &[TcpStream]) -> usize {
    let ask = |stream| rustix::event::PollFd::new(stream, rustix::event::PollFlags::RDHUP);
    let mut fds: Vec<_> = streams.iter().map(ask).collect();
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap();
    fds.iter().filter(|fd| fd.revents().is_empty()).count()
}

impl Moody {
    /// One that is well.
    pub fn new() -> Moody {
        Moody::in_mood(Mood::Well)
    }

    /// One in this mood.
    pub fn in_mood(mood: Mood) -> Moody {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let origin = Origin::new(move |mut stream, _| {
            shared.accepted(&stream);
            shared.serve(&mut stream);
            // The list holds another copy of it.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            let _ = stream.read(&mut [0]);
        });
        let moody = Moody { address: origin.address, state };
        moody.be(mood);
        moody
    }

    /// From now on, requests get this.
    pub fn be(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = Some(mood);
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.state.lines.lock().unwrap().len()
    }

    /// The first lines of the requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.state.lines.lock().unwrap().clone()
    }

    /// Requests being held.
    pub fn under_way(&self) -> usize {
        self.state.under_way.load(Ordering::SeqCst)
    }

    /// The most requests that were under way at once.
    pub fn most_under_way(&self) -> usize {
        self.state.most_under_way.load(Ordering::SeqCst)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.streams.lock().unwrap().len()
    }

    /// The most connections that were open at once.
    pub fn most_open(&self) -> usize {
        self.state.most_open.load(Ordering::SeqCst)
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        open(&self.state.streams.lock().unwrap())
    }
}
