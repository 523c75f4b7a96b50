//! A line to Redis that fails in every way, and neither end is told.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// A line to a server on which things go wrong that the server knows nothing of.
pub struct Line {
    pub address: SocketAddr,
    listener: Arc<TcpListener>,
    state: Arc<State>,
    /// What keeps the queue of a deaf listener full.
    fillers: Vec<TcpStream>,
}

#[derive(Default)]
struct State {
    is_deaf: AtomicBool,
    is_mute: AtomicBool,
    /// Changes of `is_mute`: what was opened before the last one relays nothing any more.
    turns: AtomicUsize,
    delay_ms: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
}

impl State {
    fn relays(&self, born: usize) -> bool {
        !self.is_mute.load(Ordering::SeqCst) && self.turns.load(Ordering::SeqCst) == born
    }
}

const BACKLOG: i32 = 128;

impl Line {
    /// A line to the server on this port.
    pub fn to(port: u16) -> Line {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let (accepting, shared) = (listener.clone(), state.clone());
        std::thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                while shared.is_deaf.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                relay(stream, server, &shared);
            }
        });
        Line { address, listener, state, fillers: Vec::new() }
    }

    /// The URL of the store at its end.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Ends what is open; from now on a connect gets no answer at all: its SYN meets a full queue and is dropped.
    pub fn go_deaf(&mut self) {
        self.state.is_deaf.store(true, Ordering::SeqCst);
        rustix::net::listen(&self.listener, 0).unwrap();
        self.fill();
        for stream in self.state.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The thread that accepts may have been waiting, and has taken one yet.
        self.fill();
    }

    fn fill(&mut self) {
        while let Ok(stream) = TcpStream::connect_timeout(&self.address, Duration::from_millis(300)) {
            self.fillers.push(stream);
        }
    }

    /// Connects are answered again.
    pub fn hear(&mut self) {
        self.fillers.clear();
        rustix::net::listen(&self.listener, BACKLOG).unwrap();
        self.state.is_deaf.store(false, Ordering::SeqCst);
    }

    /// What is open stays open for ever and carries nothing any more, either way; while it is mute, so does what is new.
    pub fn set_mute(&self, is_mute: bool) {
        self.state.is_mute.store(is_mute, Ordering::SeqCst);
        self.state.turns.fetch_add(1, Ordering::SeqCst);
    }

    /// Resets what is open: both ends get a RST.
    pub fn reset(&self) {
        for stream in self.state.connections.lock().unwrap().drain(..) {
            // Whoever has another copy of it finds it ended too.
            let _ = rustix::net::connect_unspec(&stream);
        }
    }

    /// Each byte of a reply is so much later.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis().try_into().unwrap(), Ordering::SeqCst);
    }
}

fn relay(client: TcpStream, server: TcpStream, state: &Arc<State>) {
    let born = state.turns.load(Ordering::SeqCst);
    let [_, _] = [&client, &server].map(|stream| stream.set_nodelay(true).unwrap());
    let copies = [&client, &server].map(|stream| stream.try_clone().unwrap());
    state.connections.lock().unwrap().extend(copies);
    pump(client.try_clone().unwrap(), server.try_clone().unwrap(), state.clone(), born, false);
    pump(server, client, state.clone(), born, true);
}

/// Carries bytes one way: one thread takes them, another gives them on when it is time.
fn pump(mut from: TcpStream, mut to: TcpStream, state: Arc<State>, born: usize, is_delayed: bool) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    let giving = state.clone();
    std::thread::spawn(move || {
        for (due, bytes) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if giving.relays(born) && to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut piece = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            let delay_ms = if is_delayed { state.delay_ms.load(Ordering::SeqCst) } else { 0 };
            if sender.send((Instant::now() + Duration::from_millis(delay_ms), piece[..length].to_vec())).is_err() {
                break;
            }
        }
    });
}
