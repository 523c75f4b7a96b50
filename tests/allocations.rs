//! In the steady state a request allocates nothing: counted by the allocator itself, for the whole process, with a
//! client and a backend that allocate nothing either. A binary of its own, so that no other test's memory is counted.
#![allow(unsafe_code, reason = "counts allocations, which only an allocator can")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "tests are shell, and a panic is how they fail"
)]

#[allow(dead_code, reason = "the other test binary uses the rest")]
mod support;

use rateguard::config::Config;
use rateguard::control;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is left to the system's allocator; only a counter is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM_UP: usize = 200;
const REQUESTS: usize = 2_000;

/// The scan that runs ten times a second writes the date anew, and stray timers may fire: far below one a request.
const STRAY_MAX: usize = 200;

/// Answers every request, which it knows by its empty line, without looking at it.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {
                    if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// What is asked for, and how the answer must begin.
struct Case {
    request: &'static [u8],
    status: &'static [u8],
    limits: &'static str,
}

const ALLOWED: Case = Case {
    request: b"GET /api/data?x=1 HTTP/1.1\r\nHost: test\r\nX-API-Key: k\r\nAccept: */*\r\n\r\n",
    status: b"HTTP/1.1 200 OK\r\n",
    limits: "[[limits]]\nname = \"a\"\nby = [\"user\", \"endpoint\"]\nrate = \"1000000/s\"\n\
        [[limits]]\nname = \"b\"\nby = [\"ip\"]\nrate = \"1000000/s\"\n",
};

const DENIED: Case = Case {
    status: b"HTTP/1.1 429 Too Many Requests\r\n",
    limits: "[[limits]]\nname = \"a\"\nby = [\"user\", \"endpoint\"]\nrate = \"1/d\"\n\
        [[limits]]\nname = \"b\"\nby = [\"ip\"]\nrate = \"1/h\"\n",
    ..ALLOWED
};

/// Sends requests one after the other; every answer must carry a decision.
fn ask(stream: &mut TcpStream, case: &Case, requests: usize) {
    for _ in 0..requests {
        assert!(is_limited(stream, case));
    }
}

/// Whether the answer is the one that is due, and a limit had its say in it.
fn is_limited(stream: &mut TcpStream, case: &Case) -> bool {
    let mut buffer = [0; 4096];
    stream.write_all(case.request).unwrap();
    let bytes = stream.read(&mut buffer).unwrap();
    let answer = &buffer[..bytes];
    answer.starts_with(case.status) && answer.windows(11).any(|part| part == b"\r\nRateLimit")
}

/// Allocations of [`REQUESTS`] requests after a warm-up, with these lines of a configuration.
fn allocations(case: &Case, lines: &str) -> usize {
    let text = format!(
        "server.listen = \"127.0.0.1:0\"\nserver.workers = 1\nserver.io = \"{}\"\nadmin.listen = \"off\"\n\
         upstreams.app.servers = [\"{}\"]\n{lines}{}",
        support::gateway::io(),
        backend(),
        case.limits
    );
    let config = Config::parse("test", &text, &|_| None).unwrap();
    let running = control::start(config).unwrap();
    let mut stream = TcpStream::connect(running.listening[0]).unwrap();
    stream.set_nodelay(true).unwrap();
    support::until("decisions are made", || is_limited(&mut stream, case));
    ask(&mut stream, case, WARM_UP);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    ask(&mut stream, case, REQUESTS);
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

/// What a route asks of the head and changes in it; only a changed path is written somewhere first.
const ROUTES: &str = "[[routes]]\nupstream = \"app\"\nheaders = { Accept = \"*/*\", X-API-Key = \"*\" }\n\
    timeouts.response = \"9s\"\nrequest = { set = { X-Env = \"prod\" }, remove = \"Cookie\" }\n\
    response = { set = { X-Env = \"prod\" }, remove = \"Server\" }\n\
    [[routes]]\nupstream = \"app\"\nexact = true\n";

#[test]
fn a_limited_request_allocates_nothing_whether_it_is_forwarded_or_denied() {
    let redis = support::store::Store::redis();
    for store in [String::new(), redis.lines(), ROUTES.into()] {
        for (case, what) in [(ALLOWED, "forwarded"), (DENIED, "denied")] {
            let allocations = allocations(&case, &store);
            println!("{allocations} allocations in {REQUESTS} {what} requests {store}");
            assert!(allocations <= STRAY_MAX, "{allocations} allocations in {REQUESTS} {what} requests {store}");
        }
    }
}
