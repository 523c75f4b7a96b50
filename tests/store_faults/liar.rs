use super::{assert_requests_pass_unlimited, errors, gateway, until_limits_hold};
use crate::support::fields::rate_limit;
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::store::limit;
use crate::support::{signal, suspend, until};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What the liar does with a decision; a false return ends the connection.
type Lie = Box<dyn Fn(&mut TcpStream) -> bool + Send + Sync>;

/// A stand-in for Redis that opens conversations as Redis does and then lies, until it is told to be honest: then every
/// bucket it speaks of has one token, and the second request of anybody is denied.
struct Liar {
    origin: Origin,
    is_honest: Arc<AtomicBool>,
}

impl Liar {
    fn start(lie: impl Fn(&mut TcpStream) -> bool + Send + Sync + 'static) -> Liar {
        let lie: Lie = Box::new(lie);
        let is_honest = Arc::new(AtomicBool::new(false));
        let honest = is_honest.clone();
        let origin = Origin::new(move |stream, _| {
            let _ = converse(stream, &lie, &honest);
        });
        Liar { origin, is_honest }
    }

    fn gateway(&self) -> Gateway {
        gateway(&format!("redis://{}", self.origin.address), "", &limit("x", "\"user\"", 1))
    }
}

fn converse(stream: TcpStream, lie: &Lie, is_honest: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut seen = std::collections::HashSet::new();
    loop {
        let command = read_command(&mut reader)?;
        if command[0] == b"SCRIPT" {
            write!(stream, "$40\r\n{}\r\n", "0".repeat(40))?;
        } else if command[0] == b"ROLE" {
            write!(stream, "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")?;
        } else if is_honest.load(Ordering::Relaxed) {
            let level = if seen.insert(command[3].clone()) { 0 } else { -1 };
            write!(stream, "*1\r\n:{level}\r\n")?;
        } else if !lie(&mut stream) {
            return Ok(());
        }
    }
}

/// An array of bulk strings.
fn read_command(reader: &mut impl BufRead) -> std::io::Result<Vec<Vec<u8>>> {
    let number = |reader: &mut dyn BufRead| -> std::io::Result<usize> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line[1..].trim().parse().unwrap())
    };
    let parts = number(reader)?;
    let part = |_| {
        let mut bytes = vec![0; number(reader)? + 2];
        reader.read_exact(&mut bytes)?;
        bytes.truncate(bytes.len() - 2);
        Ok(bytes)
    };
    (0..parts).map(part).collect()
}

fn say(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream.write_all(bytes).is_ok()
}

/// Requests pass as if nothing were, and once the liar is honest its word counts.
fn survives(lie: impl Fn(&mut TcpStream) -> bool + Send + Sync + 'static) {
    let liar = Liar::start(lie);
    let gateway = liar.gateway();
    gateway.until_store_connected();
    assert_requests_pass_unlimited(&gateway);
    liar.is_honest.store(true, Ordering::Relaxed);
    until_limits_hold(&gateway);
}

/// As `survives`; and a stream that cannot be understood any more is given up for a new one.
fn survives_and_reconnects(lie: impl Fn(&mut TcpStream) -> bool + Send + Sync + 'static) {
    let liar = Liar::start(lie);
    let gateway = liar.gateway();
    gateway.until_store_connected();
    assert_requests_pass_unlimited(&gateway);
    until("there is a new connection", || {
        assert_requests_pass_unlimited(&gateway);
        liar.origin.connections() > 2
    });
    liar.is_honest.store(true, Ordering::Relaxed);
    until_limits_hold(&gateway);
}

#[test]
fn a_reply_that_is_no_reply() {
    survives_and_reconnects(|stream| say(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n"));
}

#[test]
fn a_reply_of_random_bytes() {
    survives_and_reconnects(|stream| say(stream, &[0xff, 0x00, 0x0d, 0x0a, 0x2a, 0x80]));
}

#[test]
fn a_reply_with_an_array_in_an_array() {
    survives_and_reconnects(|stream| say(stream, b"*1\r\n*1\r\n:1\r\n"));
}

#[test]
fn a_reply_with_very_deep_arrays() {
    survives_and_reconnects(|stream| say(stream, &b"*1\r\n".repeat(20_000)));
}

#[test]
fn a_reply_that_announces_more_than_there_is_memory() {
    survives_and_reconnects(|stream| say(stream, b"$99999999999999\r\nabc"));
}

#[test]
fn a_reply_with_more_members_than_can_be() {
    survives_and_reconnects(|stream| say(stream, b"*2147483647\r\n:1\r\n:2\r\n"));
}

#[test]
fn a_reply_that_never_ends() {
    survives_and_reconnects(|stream| (0..10).all(|_| say(stream, &[b'+'; 16 * 1024])));
}

#[test]
fn half_a_reply_and_silence() {
    survives_and_reconnects(|stream| say(stream, b"*1\r\n:12"));
}

#[test]
fn two_replies_for_one_command() {
    survives_and_reconnects(|stream| say(stream, b"+OK\r\n+OK\r\n"));
}

#[test]
fn the_connection_is_closed_in_the_middle_of_a_reply() {
    survives_and_reconnects(|stream| {
        say(stream, b"*1\r\n:1");
        false
    });
}

#[test]
fn the_connection_is_closed_at_each_decision() {
    survives_and_reconnects(|_| false);
}

#[test]
fn too_many_numbers() {
    survives(|stream| say(stream, b"*3\r\n:1\r\n:2\r\n:3\r\n"));
}

#[test]
fn no_numbers() {
    survives(|stream| say(stream, b"*0\r\n"));
}

#[test]
fn a_null_and_other_things_that_are_no_levels() {
    survives(|stream| say(stream, b"*-1\r\n"));
    survives(|stream| say(stream, b"$2\r\nhi\r\n"));
    survives(|stream| say(stream, b"*1\r\n$1\r\n1\r\n"));
}

/// What becomes of an error besides that requests pass at once.
#[derive(Clone, Copy, PartialEq)]
enum Consequence {
    /// The server is asked again later.
    Pause,
    /// The connection is given up.
    Reconnect,
    /// None: it concerns this key alone.
    Nothing,
}

/// Every decision is answered with this error, which is counted as `kind`; then the liar is honest.
fn survives_an_error(text: &'static str, kind: &str, consequence: Consequence) {
    let liar = Liar::start(move |stream| say(stream, format!("-{text}\r\n").as_bytes()));
    let gateway = liar.gateway();
    gateway.until_store_connected();
    let begun = Instant::now();
    assert_requests_pass_unlimited(&gateway);
    assert!(errors(&gateway, kind) > 0.0, "{text} is not counted as {kind}");
    assert_eq!(errors(&gateway, "protocol"), 0.0, "{text}");
    let opened = gateway.log_of("the store keeps failing; decisions do not wait for it").len();
    let is_told = |line: &serde_json::Value| line["error"].as_str().is_some_and(|error| error.contains(text));
    until("the error is told", || gateway.log_of("the store answered with an error").iter().any(is_told));
    let told = gateway.log_of("the store answered with an error").len() as u64;
    assert!(told <= 2 * (begun.elapsed().as_secs() + 2), "{text} is told {told} times");
    if consequence == Consequence::Nothing {
        assert_eq!((opened, errors(&gateway, "breaker")), (0, 0.0), "{text}");
    }
    match consequence {
        Consequence::Reconnect => until("there is a new connection", || liar.origin.connections() > 2),
        _ => assert_eq!(liar.origin.connections(), 2, "{text} is no reason to reconnect"),
    }
    liar.is_honest.store(true, Ordering::Relaxed);
    until_limits_hold(&gateway);
}

#[test]
fn errors_that_pass_or_that_an_operator_ends() {
    for (text, kind) in [
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("BUSY Redis is busy running a script", "busy"),
        ("NOREPLICAS Not enough good replicas to write.", "primary_down"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "out_of_memory"),
        ("MISCONF Redis is configured to save RDB snapshots", "misconfigured"),
    ] {
        survives_an_error(text, kind, Consequence::Pause);
    }
}

#[test]
fn errors_of_rights_and_of_a_whole_cluster_and_without_a_code() {
    for (text, kind) in [
        ("NOPERM this user has no permissions to run the 'evalsha' command", "auth"),
        ("CLUSTERDOWN The cluster is down", "cluster"),
        ("ERR something else", "server"),
        ("", "server"),
    ] {
        survives_an_error(text, kind, Consequence::Pause);
    }
    survives(|stream| say(stream, b"-ERR \xff\xfe\r\n"));
}

#[test]
fn errors_of_a_server_whose_role_has_changed() {
    for (text, kind) in [
        ("READONLY You can't write against a read only replica.", "read_only"),
        ("MASTERDOWN Link with MASTER is down", "primary_down"),
        ("NOAUTH Authentication required.", "auth"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "auth"),
    ] {
        survives_an_error(text, kind, Consequence::Reconnect);
    }
}

/// Nobody follows these from a URL of one server; but they say nothing of other keys.
#[test]
fn errors_of_one_key() {
    for (text, kind) in [
        ("MOVED 3999 127.0.0.1:6381", "cluster"),
        ("ASK 3999 127.0.0.1:6381", "cluster"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "cluster"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "wrong_type"),
    ] {
        survives_an_error(text, kind, Consequence::Nothing);
    }
}

/// Asked twice it would loop: the second answer counts as an error.
#[test]
fn a_script_that_is_never_known() {
    survives(|stream| say(stream, b"-NOSCRIPT No matching script.\r\n"));
}

/// The gateway stands still, for longer than the deadline, while it is told that the script is unknown: the question that
/// follows has its time all the same.
#[test]
fn a_pause_does_not_count_against_the_question_that_follows() {
    const DEADLINE: Duration = Duration::from_millis(500);
    let told = Arc::new((AtomicU32::new(0), AtomicBool::new(false)));
    let shared = told.clone();
    let liar = Liar::start(move |stream| {
        let process = shared.0.load(Ordering::SeqCst);
        if !shared.1.swap(true, Ordering::SeqCst) {
            suspend(process);
            std::thread::sleep(DEADLINE + DEADLINE / 4);
            let is_said = say(stream, b"-NOSCRIPT No matching script.\r\n");
            signal(process, Signal::CONT);
            return is_said;
        }
        say(stream, b"*1\r\n:0\r\n")
    });
    let store = format!("deadline = \"{DEADLINE:?}\"");
    let gateway = gateway(&format!("redis://{}", liar.origin.address), &store, &limit("x", "\"user\"", 1));
    gateway.until_store_connected();
    told.0.store(gateway.process(), Ordering::SeqCst);
    let answer = super::ask_as_new_user(gateway.address);
    assert_eq!((rate_limit(&answer).len(), errors(&gateway, "timeout")), (1, 0.0), "{answer:?}");
}

/// Numbers beyond any bucket are no reason to fall.
#[test]
fn levels_beyond_all_bounds() {
    for reply in ["9223372036854775807", "-9223372036854775807", "99999999999999999999", "-0"] {
        let liar = Origin::new(move |stream, _| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut stream = stream;
            while let Ok(command) = read_command(&mut reader) {
                let said = match command[0].as_slice() {
                    b"SCRIPT" => write!(stream, "$40\r\n{}\r\n", "0".repeat(40)),
                    _ => write!(stream, "*1\r\n:{reply}\r\n"),
                };
                if said.is_err() {
                    return;
                }
            }
        });
        let mut gateway = gateway(&format!("redis://{}", liar.address), "", &limit("x", "\"user\"", 1));
        gateway.until_store_connected();
        for _ in 0..10 {
            assert!(matches!(super::ask_as_new_user(gateway.address).status, 200 | 429), "{reply}");
        }
        assert!(gateway.is_alive(), "{reply}");
    }
}

/// Without a word, and without having asked for one.
fn survives_a_stranger(serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let stranger = Origin::new(move |stream, _| serve(stream));
    let gateway = gateway(&format!("redis://{}", stranger.address), "", &limit("x", "\"user\"", 1));
    assert_requests_pass_unlimited(&gateway);
    until("it has been tried again", || stranger.connections() > 4);
    assert_requests_pass_unlimited(&gateway);
    until("both workers have told", || gateway.log_of("store lost; trying to reconnect").len() >= 2);
    assert_eq!(gateway.log_of("store lost; trying to reconnect").len(), 2, "{:?}", gateway.log());
    assert_eq!(gateway.log_of("store connected").len(), 0);
}

#[test]
fn connections_that_are_closed_at_once() {
    survives_a_stranger(drop);
}

#[test]
fn a_server_that_says_nothing() {
    survives_a_stranger(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
}

#[test]
fn a_web_server_instead_of_redis() {
    survives_a_stranger(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
}

#[test]
fn a_digest_that_is_none() {
    survives_a_stranger(|mut stream| {
        let _ = stream.write_all(b"$3\r\nabc\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
}
