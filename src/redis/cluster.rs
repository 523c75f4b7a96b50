//! Redis Cluster: which server has which keys, and what a server says that has them no more.
//!
//! After the cluster specification: 16 384 slots, a key's slot from its hash tag; CLUSTER SLOTS tells who has them, MOVED
//! that another has one for good, ASK that another is to be asked this once. Pure.

use super::Address;
use redis_protocol::redis_keyslot;
use redis_protocol::resp2::types::OwnedFrame;
use std::ops::RangeInclusive;

/// Slots of a cluster.
pub const SLOTS: usize = 16_384;

/// Servers of a cluster that are spoken to at most: the specification speaks of up to 1 000.
pub const SERVERS_MAX: usize = 1024;

/// The slot of a key.
pub fn slot_of(key: &[u8]) -> u16 {
    redis_keyslot(key)
}

/// Another server is to be asked. Nothing was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The slot that was asked for.
    pub slot: u16,
    /// This once only, and announced by ASKING.
    pub asking: bool,
    host: String,
    port: u16,
}

impl Redirect {
    /// Reads `MOVED 3999 127.0.0.1:6381` or `ASK …`.
    pub fn of(text: &[u8]) -> Option<Redirect> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let asking = words.next()? == "ASK";
        let slot = words.next()?.parse().ok().filter(|&slot| usize::from(slot) < SLOTS)?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        Some(Redirect { slot, asking, host: host.into(), port: port.parse().ok().filter(|&port| port != 0)? })
    }

    /// The server to ask. One that does not say its host means its own, that of the one that was `asked`.
    pub fn server(&self, asked: &Address) -> Address {
        address(&self.host, self.port, asked)
    }
}

fn address(host: &str, port: u16, asked: &Address) -> Address {
    let host = match (host, asked) {
        ("" | "?", Address::Tcp { host, .. }) => host,
        _ => host,
    };
    Address::Tcp { host: host.into(), port }
}

/// The primaries of ranges of slots.
pub type Map = Vec<(RangeInclusive<u16>, Address)>;

/// Reads the answer of `asked` to CLUSTER SLOTS. Ranges whose primary cannot be connected to are left out; `None` where it
/// is no such answer, or tells of more slots than there are.
pub fn primaries(answer: &OwnedFrame, asked: &Address) -> Option<Map> {
    let OwnedFrame::Array(ranges) = answer else { return None };
    let mut map = Map::new();
    let mut slots = 0;
    for range in ranges {
        let (range, primary) = primary(range, asked)?;
        slots += range.len();
        if slots > SLOTS {
            return None;
        }
        map.extend(primary.map(|primary| (range, primary)));
    }
    Some(map)
}

/// `[first, last, [host, port, …], replicas…]`
fn primary(range: &OwnedFrame, asked: &Address) -> Option<(RangeInclusive<u16>, Option<Address>)> {
    let OwnedFrame::Array(parts) = range else { return None };
    let [OwnedFrame::Integer(first), OwnedFrame::Integer(last), OwnedFrame::Array(server), ..] = parts.as_slice()
    else {
        return None;
    };
    let [host, OwnedFrame::Integer(port), ..] = server.as_slice() else { return None };
    let host = match host {
        OwnedFrame::BulkString(name) => std::str::from_utf8(name).ok()?,
        OwnedFrame::Null => "",
        _ => return None,
    };
    let slot = |number: i64| u16::try_from(number).ok().filter(|&slot| usize::from(slot) < SLOTS);
    let range = slot(*first)?..=slot(*last)?;
    // 0 is the port of a server that does not listen in this way (with or without TLS).
    let port = u16::try_from(*port).ok().filter(|&port| port != 0);
    (!range.is_empty()).then(|| (range, port.map(|port| address(host, port, asked))))
}

#[cfg(test)]
mod tests {
    use super::super::resp;
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.into(), port }
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot_of(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"rate_limit:{alice}:/api:a"), slot_of(b"alice"));
        assert_eq!(slot_of(b"rate_limit:{alice}:/api:a"), slot_of(b"rate_limit:{alice}:-:b"));
    }

    #[test]
    fn redirects_are_read() {
        let asked = tcp("10.0.0.1", 6379);
        let redirect = Redirect::of(b"MOVED 3999 127.0.0.1:6381").unwrap();
        assert_eq!((redirect.slot, redirect.asking, redirect.server(&asked)), (3999, false, tcp("127.0.0.1", 6381)));
        let redirect = Redirect::of(b"ASK 16383 redis-2.internal:6379").unwrap();
        assert_eq!((redirect.asking, redirect.server(&asked)), (true, tcp("redis-2.internal", 6379)));
        assert_eq!(Redirect::of(b"MOVED 0 :6380").unwrap().server(&asked), tcp("10.0.0.1", 6380));
        assert_eq!(Redirect::of(b"MOVED 0 2001:db8::1:6380").unwrap().server(&asked), tcp("2001:db8::1", 6380));
        for bad in ["MOVED", "MOVED 1", "MOVED 16384 a:1", "MOVED x a:1", "MOVED 1 a", "MOVED 1 a:0", "MOVED 1 a:x"] {
            assert_eq!(Redirect::of(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_primary_of_each_range_is_read_and_replicas_are_not() {
        let answer = "*2\r\n*4\r\n:0\r\n:8191\r\n*4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n*0\r\n\
                      *4\r\n$9\r\n127.0.0.1\r\n:7003\r\n$2\r\nid\r\n*0\r\n\
                      *3\r\n:8192\r\n:16383\r\n*4\r\n$-1\r\n:7001\r\n$2\r\nid\r\n*0\r\n";
        let frame = resp::frame(answer.as_bytes()).unwrap().unwrap();
        let read = primaries(&frame, &tcp("seed", 1)).unwrap();
        assert_eq!(read, [(0..=8191, tcp("127.0.0.1", 7000)), (8192..=16383, tcp("seed", 7001))]);
        let range =
            |first: u16, last: u16, port: u16| format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n$1\r\na\r\n:{port}\r\n");
        let mute = resp::frame(format!("*2\r\n{}{}", range(0, 9, 0), range(10, 19, 1)).as_bytes()).unwrap().unwrap();
        assert_eq!(primaries(&mute, &tcp("seed", 1)), Some(vec![(10..=19, tcp("a", 1))]));
        let bad_ranges = [
            format!("*1\r\n{}", range(0, 16384, 1)),
            format!("*1\r\n{}", range(10, 5, 1)),
            format!("*2\r\n{}{}", range(0, 16383, 1), range(5, 5, 1)),
        ];
        for bad in ["+OK\r\n", "*1\r\n:1\r\n"].into_iter().chain(bad_ranges.iter().map(String::as_str)) {
            assert_eq!(primaries(&resp::frame(bad.as_bytes()).unwrap().unwrap(), &tcp("seed", 1)), None, "{bad}");
        }
    }
}
