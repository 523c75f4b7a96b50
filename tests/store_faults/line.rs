use super::{ask_as_new_user, assert_not_slow, assert_requests_pass_unlimited, errors, gateway, until_limits_hold};
use crate::support::client::Client;
use crate::support::fields::rate_limit;
use crate::support::gateway::Gateway;
use crate::support::redis::Redis;
use crate::support::store::limit;
use crate::support::until;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// A line to a server on which things go wrong that the server knows nothing of.
struct Line {
    address: SocketAddr,
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
    fn to(port: u16) -> Line {
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

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Ends what is open; from now on a connect gets no answer at all: its SYN meets a full queue and is dropped.
    fn go_deaf(&mut self) {
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

    fn hear(&mut self) {
        self.fillers.clear();
        rustix::net::listen(&self.listener, BACKLOG).unwrap();
        self.state.is_deaf.store(false, Ordering::SeqCst);
    }

    /// What is open stays open for ever and carries nothing any more, either way; while it is mute, so does what is new.
    fn set_mute(&self, is_mute: bool) {
        self.state.is_mute.store(is_mute, Ordering::SeqCst);
        self.state.turns.fetch_add(1, Ordering::SeqCst);
    }

    /// Each byte of a reply is so much later.
    fn delay(&self, delay: Duration) {
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

fn on_a_line(rule: &str) -> (Redis, Line, Gateway) {
    let redis = Redis::start();
    let line = Line::to(redis.port);
    let gateway = gateway(&line.url(), "", rule);
    gateway.until_store_connected();
    (redis, line, gateway)
}

fn until_told(gateway: &Gateway, words: &str) {
    until("both workers have told why", || {
        let lines = gateway.log_of("store lost; trying to reconnect");
        lines.iter().filter(|line| line["reason"].as_str().unwrap().contains(words)).count() == 2
    });
}

#[test]
fn a_gateway_starts_although_no_connect_is_answered_and_finds_redis_once_one_is() {
    let redis = Redis::start();
    let mut line = Line::to(redis.port);
    line.go_deaf();
    let begun = Instant::now();
    let gateway = gateway(&line.url(), "", &limit("x", "\"user\"", 2));
    assert_not_slow(begun.elapsed().saturating_sub(Duration::from_secs(1)), begun);
    assert_requests_pass_unlimited(&gateway);
    until_told(&gateway, "no answer while connecting");
    let lost = gateway.log_of("store lost; trying to reconnect");
    assert_eq!(lost.len(), 2, "once by each worker: {lost:?}");
    line.hear();
    gateway.until_store_connected();
    until_limits_hold(&gateway);
}

/// Also while attempts go on for a while, each of which ends by its timeout: nothing of them may be left.
#[test]
fn an_address_that_falls_silent_costs_nothing() {
    let (_redis, mut line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", gateway.process())).unwrap().count();
    let before = descriptors();
    line.go_deaf();
    let deaf = Instant::now();
    while deaf.elapsed() < Duration::from_secs(5) {
        assert_requests_pass_unlimited(&gateway);
    }
    assert_eq!(gateway.log_of("store lost; trying to reconnect").len(), 2, "{:?}", gateway.log());
    until("nothing is left of the attempts", || descriptors() <= before);
    line.hear();
    until_limits_hold(&gateway);
}

/// The peer has vanished without a word, as behind a firewall that has forgotten the connection.
#[test]
fn a_connection_that_carries_nothing_any_more_is_replaced() {
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    line.set_mute(true);
    let mute = Instant::now();
    while mute.elapsed() < Duration::from_secs(3) {
        assert_requests_pass_unlimited(&gateway);
    }
    until_told(&gateway, "the server stopped answering");
    let waited = errors(&gateway, "timeout");
    assert!(waited > 0.0 && errors(&gateway, "breaker") > waited, "{waited} waited");
    line.set_mute(false);
    until_limits_hold(&gateway);
}

#[test]
fn replies_within_the_deadline_decide() {
    const DELAY: Duration = Duration::from_millis(5);
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    line.delay(DELAY);
    until_limits_hold(&gateway);
    let mut decided = 0;
    until("the store has decided fifty times more", || {
        let begun = Instant::now();
        let response = ask_as_new_user(gateway.address);
        if !rate_limit(&response).is_empty() {
            assert!(begun.elapsed() >= DELAY, "the reply took {:?}", begun.elapsed());
            decided += 1;
        }
        decided >= 50
    });
}

/// Replies that all come too late: a few requests wait in vain, the others do not wait.
fn late_replies_are_not_waited_for(delay: Duration) {
    let (_redis, line, gateway) = on_a_line(&limit("x", "\"user\"", 2));
    until_limits_hold(&gateway);
    let [timeouts, refused] = ["timeout", "breaker"].map(|kind| errors(&gateway, kind));
    line.delay(delay);
    assert_requests_pass_unlimited(&gateway);
    // One connection is one worker's.
    let mut client = Client::connect(gateway.address);
    let (begun, mut sent) = (Instant::now(), 20.0);
    while begun.elapsed() < Duration::from_millis(1500) {
        let response = client.get("/", "X-API-Key: one\r\n");
        assert_eq!((response.status, rate_limit(&response)), (200, Vec::new()));
        sent += 1.0;
    }
    let waited = errors(&gateway, "timeout") - timeouts;
    assert!((1.0..=6.0).contains(&waited), "{waited} of {sent} requests waited");
    let passed = waited + errors(&gateway, "breaker") - refused;
    assert!(passed >= sent, "{passed} of {sent} passed without the store");
    assert_eq!(gateway.log_of("store connected").len(), 2, "slow is no reason to reconnect");
    line.delay(Duration::ZERO);
    until_limits_hold(&gateway);
}

#[test]
fn replies_of_50_ms_are_not_waited_for() {
    late_replies_are_not_waited_for(Duration::from_millis(50));
}

#[test]
fn replies_of_500_ms_are_not_waited_for() {
    late_replies_are_not_waited_for(Duration::from_millis(500));
}
