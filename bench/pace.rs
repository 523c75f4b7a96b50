//! An open-loop load for `bench/run`: requests at a given rate, each at a moment that was chosen before, whatever became of
//! those ahead of it.
//!
//!     pace --port PORT --rate PER_SECOND [--seconds 4] [--connections 64] [--users 1] [--path /api/items] [--even] [--seed 1]
//!
//! Gaps are exponential, as those of many independent clients are, or all the same (`--even`). A request whose moment has
//! come goes out on the connection that has been free longest, or waits for one. Its latency counts from that moment, so
//! that a wait of either side is nobody's secret. Between two moments the thread sleeps, by the kernel's
//! high-resolution timers: it may share its processor with what it measures.
//!
//! The last line is a JSON object: what `load.lua` tells, further percentiles, the offered and the achieved rate, and how
//! late this program itself was (`late_…`, from a request's moment until its turn came). Where that is near the
//! latencies, they say little of the server.
#![allow(clippy::unwrap_used, reason = "a panic is how a measurement fails")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: measures over sockets")]

use clap::Parser;
use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Room for one answer.
const ANSWER_MAX: usize = 1 << 16;
const FIELDS_MAX: usize = 64;
/// How long answers are waited for after the last moment.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// For an answer before the load begins.
const FIRST_MAX: Duration = Duration::from_secs(5);
const REQUESTS_MAX: f64 = 10e6;
const SECONDS_MAX: f64 = 3_600.0;
const CONNECTIONS_MAX: usize = 10_000;
const USERS_MAX: u64 = 1_000_000;
/// The kernel may wake us later than asked by this.
const SLACK_NS: NonZeroU64 = NonZeroU64::MIN;
/// What epoll says of the timer; connections are numbered from 0.
const TIMER: u64 = u64::MAX;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    port: u16,
    /// Requests a second.
    #[arg(long)]
    rate: f64,
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// API keys, in turn.
    #[arg(long, default_value_t = 1)]
    users: u64,
    #[arg(long, default_value = "/api/items")]
    path: String,
    /// The same gap between all.
    #[arg(long)]
    even: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Options {
    fn check(&self) {
        assert!(self.rate > 0.0 && (0.0..=SECONDS_MAX).contains(&self.seconds));
        assert!(self.rate * self.seconds <= REQUESTS_MAX);
        assert!((1..=CONNECTIONS_MAX).contains(&self.connections) && (1..=USERS_MAX).contains(&self.users));
    }

    fn request(&self, user: u64) -> Vec<u8> {
        format!("GET {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nX-API-Key: user-{user}\r\n\r\n", self.path, self.port).into()
    }
}

fn main() {
    let options = Options::parse();
    options.check();
    // Where it is not to be had, lateness tells.
    let _ = rustix::thread::set_current_timer_slack(Some(SLACK_NS));
    let mut run = Run::new(&options);
    run.go();
    println!("{}", run.told(&options));
}

/// The moments at which requests are due, in nanoseconds from the start.
struct Moments {
    gap_ns: f64,
    even: bool,
    random: fastrand::Rng,
    next_ns: f64,
    end_ns: f64,
}

impl Moments {
    fn new(options: &Options) -> Moments {
        let random = fastrand::Rng::with_seed(options.seed);
        let end_ns = options.seconds * 1e9;
        let mut moments = Moments { gap_ns: 1e9 / options.rate, even: options.even, random, next_ns: 0.0, end_ns };
        moments.step();
        moments
    }

    fn step(&mut self) {
        let gaps = if self.even { 1.0 } else { -(1.0 - self.random.f64()).ln() };
        self.next_ns += self.gap_ns * gaps;
    }

    /// The next one, where there is one.
    fn peek(&self) -> Option<u64> {
        (self.next_ns < self.end_ns).then_some(self.next_ns as u64)
    }

    /// The next one, where it has come.
    fn take(&mut self, now_ns: u64) -> Option<u64> {
        let due = self.peek().filter(|&due| due <= now_ns)?;
        self.step();
        Some(due)
    }
}

struct Connection {
    socket: TcpStream,
    input: Vec<u8>,
    filled: usize,
    /// The moment of the request that is on its way.
    due: Option<u64>,
}

impl Connection {
    /// One that has had an answer, so that what a server prepares for a new one is behind it.
    fn open(port: u16, request: &[u8]) -> Connection {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(FIRST_MAX)).unwrap();
        let mut connection = Connection { socket, input: vec![0; ANSWER_MAX], filled: 0, due: Some(0) };
        connection.socket.write_all(request).unwrap();
        while connection.receive().unwrap().is_none() {}
        connection.socket.set_nonblocking(true).unwrap();
        connection
    }

    /// Takes what has come; gives the answer once it is whole.
    fn receive(&mut self) -> Result<Option<Answer>, &'static str> {
        let read = match self.socket.read(&mut self.input[self.filled..]) {
            Ok(0) => return Err("closed, or an answer that is too long"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(_) => return Err("cannot be read"),
        };
        self.filled += read;
        let Some(answer) = Answer::parse(&self.input[..self.filled])? else { return Ok(None) };
        if answer.bytes != self.filled || self.due.is_none() {
            return Err("more than the answer");
        }
        self.filled = 0;
        Ok(Some(answer))
    }
}

struct Answer {
    status: u16,
    bytes: usize,
}

impl Answer {
    /// The answer at the start, once it is whole.
    fn parse(input: &[u8]) -> Result<Option<Answer>, &'static str> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(head) = response.parse(input).map_err(|_| "no HTTP")? else { return Ok(None) };
        let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
        let bytes = head + length.ok_or("an answer without a length")?;
        Ok((bytes <= input.len()).then_some(Answer { status: response.code.unwrap(), bytes }))
    }
}

struct Run {
    moments: Moments,
    requests: Vec<Vec<u8>>,
    sent: usize,
    connections: Vec<Connection>,
    epoll: OwnedFd,
    /// Set once for each moment: in a virtual machine that costs more than a system call does. epoll's own timeouts count
    /// milliseconds.
    timer: OwnedFd,
    /// What it is set to.
    alarm_ns: Option<u64>,
    start: Instant,
    /// Connections without a request, the longest free first.
    free: VecDeque<usize>,
    /// Moments of requests for which no connection was free.
    waiting: VecDeque<u64>,
    waited: u64,
    latencies: Vec<u64>,
    late: Vec<u64>,
    answered: u64,
    answered_in_time: u64,
    bytes: usize,
    refused: u64,
    broken: u64,
}

impl Run {
    fn new(options: &Options) -> Run {
        let requests: Vec<_> = (1..=options.users).map(|user| options.request(user)).collect();
        let opened = (0..options.connections).map(|_| Connection::open(options.port, &requests[0]));
        let connections: Vec<_> = opened.collect();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (number, connection) in connections.iter().enumerate() {
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, &connection.socket, data, epoll::EventFlags::IN).unwrap();
        }
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN).unwrap();
        let expected = (options.rate * options.seconds * 1.1) as usize;
        Run {
            moments: Moments::new(options),
            requests,
            sent: 0,
            free: (0..connections.len()).collect(),
            connections,
            epoll,
            timer,
            alarm_ns: None,
            start: Instant::now(),
            waiting: VecDeque::new(),
            waited: 0,
            latencies: Vec::with_capacity(expected),
            late: Vec::with_capacity(expected),
            answered: 0,
            answered_in_time: 0,
            bytes: 0,
            refused: 0,
            broken: 0,
        }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Sends and receives until all is answered, or nothing more is waited for.
    fn go(&mut self) {
        self.start = Instant::now();
        let last_ns = self.moments.end_ns as u64 + DRAIN_MAX.as_nanos() as u64;
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        loop {
            self.send_due();
            let next_ns = self.moments.peek();
            let is_over = next_ns.is_none() && self.waiting.is_empty() && self.in_flight().next().is_none();
            if is_over || self.now_ns() >= last_ns {
                break;
            }
            self.set_alarm(next_ns.unwrap_or(last_ns));
            events.clear();
            let awaited = || epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None);
            rustix::io::retry_on_intr(awaited).unwrap();
            for event in events.iter().filter(|event| event.data.u64() != TIMER) {
                self.receive(event.data.u64() as usize);
                // What is due does not wait until all have been looked at.
                self.send_due();
            }
        }
        // They have taken that long at least.
        let unanswered: Vec<_> = self.in_flight().chain(self.waiting.iter().copied()).collect();
        let now_ns = self.now_ns();
        self.broken += unanswered.len() as u64;
        self.latencies.extend(unanswered.iter().map(|due| now_ns - due));
    }

    fn in_flight(&self) -> impl Iterator<Item = u64> {
        self.connections.iter().filter_map(|connection| connection.due)
    }

    fn set_alarm(&mut self, at_ns: u64) {
        if self.alarm_ns.replace(at_ns) == Some(at_ns) {
            return;
        }
        // Zero would switch it off.
        let left = Duration::from_nanos(at_ns.saturating_sub(self.now_ns()).max(1));
        let it_interval = Timespec::default();
        let alarm = Itimerspec { it_interval, it_value: Timespec::try_from(left).unwrap() };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &alarm).unwrap();
    }

    fn send_due(&mut self) {
        loop {
            let now_ns = self.now_ns();
            let Some(due) = self.moments.take(now_ns) else { return };
            self.late.push(now_ns - due);
            match self.free.pop_front() {
                Some(number) => self.send(number, due),
                None => {
                    self.waited += 1;
                    self.waiting.push_back(due);
                }
            }
        }
    }

    fn send(&mut self, number: usize, due: u64) {
        let request = &self.requests[self.sent % self.requests.len()];
        self.sent += 1;
        let connection = &mut self.connections[number];
        connection.due = Some(due);
        // An empty socket has room for it.
        if !matches!(connection.socket.write(request), Ok(written) if written == request.len()) {
            self.end(number);
        }
    }

    fn receive(&mut self, number: usize) {
        let answer = match self.connections[number].receive() {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(_) => return self.end(number),
        };
        let now_ns = self.now_ns();
        if let Some(due) = self.connections[number].due.take() {
            self.latencies.push(now_ns - due);
        }
        self.answered += 1;
        self.answered_in_time += u64::from(now_ns as f64 <= self.moments.end_ns);
        self.refused += u64::from(!(200..400).contains(&answer.status));
        self.bytes += answer.bytes;
        match self.waiting.pop_front() {
            Some(due) => self.send(number, due),
            None => self.free.push_back(number),
        }
    }

    /// A connection that failed is not used again.
    fn end(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        let _ = epoll::delete(&self.epoll, &connection.socket);
        self.broken += 1;
        if let Some(due) = connection.due.take() {
            let latency = self.now_ns() - due;
            self.latencies.push(latency);
        }
        self.free.retain(|&free| free != number);
    }

    fn told(&mut self, options: &Options) -> serde_json::Value {
        self.latencies.sort_unstable();
        self.late.sort_unstable();
        let at = |sorted: &[u64], share: f64| {
            let place = (sorted.len() as f64 * share).ceil() as usize;
            sorted.get(place.saturating_sub(1)).map_or(0.0, |&ns| (ns / 100) as f64 / 10.0)
        };
        let latency = |share| at(&self.latencies, share);
        let late = |share| at(&self.late, share);
        serde_json::json!({
            "requests": self.answered,
            "duration_us": (options.seconds * 1e6) as u64,
            "bytes": self.bytes,
            "p50_us": latency(0.5), "p90_us": latency(0.9), "p99_us": latency(0.99), "p999_us": latency(0.999),
            "refused": self.refused, "broken": self.broken,
            "offered": self.late.len() as f64 / options.seconds,
            "achieved": self.answered_in_time as f64 / options.seconds,
            "waited": self.waited,
            "late_p50_us": late(0.5), "late_p99_us": late(0.99), "late_max_us": late(1.0),
            "seed": options.seed,
        })
    }
}
