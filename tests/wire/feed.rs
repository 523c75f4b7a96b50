//! The ways in which bytes arrive, and a look at whether the gateway has taken what was sent: only then is the next
//! piece a piece of its own.

use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// How bytes are cut into writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Whole,
    /// One write for each byte.
    ByteByByte,
    /// Two writes, the second from this byte on.
    CutAt(usize),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Whole => f.write_str("in one piece"),
            Way::ByteByByte => f.write_str("byte by byte"),
            Way::CutAt(at) => write!(f, "cut at byte {at}"),
        }
    }
}

/// Beyond this, single bytes become runs of this many: what is so long is filler.
const SINGLE_MAX: usize = 4096;

/// Of what a row begins and ends with, every byte is cut at; the filler between them so many times.
const BEGINNING: usize = 256;
const END: usize = 128;
const FILLER_CUTS: usize = 64;

/// Among the bytes that a row begins with like the row before it, only every so many are cut at: up to such a cut the
/// gateway has read what it had read of the other row. Rows take turns, so that all these cuts are made too.
/// `RATEGUARD_TEST_CUTS=all` makes them all in every row.
const SHARED_STEP: usize = 8;

impl Way {
    /// The ways to feed these bytes, a cut behind the last one included. `before` is the row before this, `number` is
    /// the place of this row.
    pub fn all(bytes: &[u8], before: &[u8], number: usize) -> Vec<Way> {
        let shared_step =
            if std::env::var("RATEGUARD_TEST_CUTS").is_ok_and(|cuts| cuts == "all") { 1 } else { SHARED_STEP };
        let shared = bytes.iter().zip(before).take_while(|(a, b)| a == b).count();
        let is_due = |at: &usize| match *at {
            at if at > BEGINNING && at + END < bytes.len() => at.is_multiple_of(bytes.len() / FILLER_CUTS),
            at => at >= shared || (at + number).is_multiple_of(shared_step),
        };
        let cuts = (1..=bytes.len()).filter(is_due).map(Way::CutAt);
        [Way::Whole, Way::ByteByByte].into_iter().chain(cuts).collect()
    }

    pub fn pieces<'b>(&self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        match *self {
            Way::Whole => vec![bytes],
            Way::ByteByByte => bytes.chunks(if bytes.len() > SINGLE_MAX { SINGLE_MAX } else { 1 }).collect(),
            Way::CutAt(at) => vec![&bytes[..at.min(bytes.len())], &bytes[at.min(bytes.len())..]],
        }
    }
}

/// Asks the kernel what waits unread on a socket, whoever has it (sock_diag(7)).
pub struct Queues(OwnedFd);

const QUERY: usize = 72;
const QUERY_BY_FAMILY: u16 = 20;
const FLAG_REQUEST: u16 = 1;

impl Queues {
    pub fn new() -> Queues {
        let diag = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::SOCK_DIAG));
        Queues(diag.expect("the kernel tells about its sockets"))
    }

    /// Bytes that `reader`, connected to `writer`, has not taken; 0 where there is no such socket any more.
    pub fn unread(&self, reader: SocketAddr, writer: SocketAddr) -> u32 {
        let mut query = Vec::with_capacity(QUERY);
        query.extend_from_slice(&(QUERY as u32).to_ne_bytes());
        query.extend_from_slice(&QUERY_BY_FAMILY.to_ne_bytes());
        query.extend_from_slice(&FLAG_REQUEST.to_ne_bytes());
        query.extend_from_slice(&[0; 8]);
        // AF_INET, IPPROTO_TCP, in any state.
        query.extend_from_slice(&[2, 6, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        query.extend_from_slice(&reader.port().to_be_bytes());
        query.extend_from_slice(&writer.port().to_be_bytes());
        for address in [reader, writer] {
            let SocketAddr::V4(address) = address else { panic!("the tests speak IPv4") };
            query.extend_from_slice(&address.ip().octets());
            query.extend_from_slice(&[0; 12]);
        }
        // Any interface; no cookie.
        query.extend_from_slice(&0u32.to_ne_bytes());
        query.extend_from_slice(&[0xff; 8]);
        assert_eq!(send(&self.0, &query, SendFlags::empty()).unwrap(), QUERY);
        let mut answer = [0u8; 1024];
        let (length, _) = recv(&self.0, &mut answer, RecvFlags::empty()).unwrap();
        let is_socket = u16::from_ne_bytes([answer[4], answer[5]]) == QUERY_BY_FAMILY;
        // A header of 16 bytes, then the state, the identity (48) and the timer before the queue.
        match is_socket && length >= 76 {
            true => u32::from_ne_bytes([answer[72], answer[73], answer[74], answer[75]]),
            false => 0,
        }
    }
}

#[test]
fn what_waits_unread_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut reader, _) = listener.accept().unwrap();
    let (from, to) = (writer.local_addr().unwrap(), reader.local_addr().unwrap());
    let queues = Queues::new();
    assert_eq!(queues.unread(to, from), 0);
    writer.write_all(b"seven!!").unwrap();
    assert_eq!(queues.unread(to, from), 7);
    reader.read_exact(&mut [0; 7]).unwrap();
    assert_eq!(queues.unread(to, from), 0);
}
