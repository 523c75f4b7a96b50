//! Redis Sentinel: where the primary is now.
//!
//! After the guidelines for Sentinel clients: the first sentinel that knows the primary is believed, and the server it
//! names must say itself that it is one. Pure.

use super::Address;
use redis_protocol::resp2::types::OwnedFrame;

/// Reads the answer to SENTINEL GET-MASTER-ADDR-BY-NAME; `None` where the sentinel knows no such primary.
pub fn primary(answer: &OwnedFrame) -> Option<Address> {
    let OwnedFrame::Array(parts) = answer else { return None };
    let [OwnedFrame::BulkString(host), OwnedFrame::BulkString(port)] = parts.as_slice() else { return None };
    let host = std::str::from_utf8(host).ok().filter(|host| !host.is_empty())?.to_owned();
    let port = std::str::from_utf8(port).ok()?.parse().ok().filter(|&port| port != 0)?;
    Some(Address::Tcp { host, port })
}

/// Whether the answer to ROLE is that of a server which takes no writes.
pub fn is_replica(answer: &OwnedFrame) -> bool {
    let OwnedFrame::Array(parts) = answer else { return false };
    matches!(parts.first(), Some(OwnedFrame::BulkString(role)) if role != b"master")
}

#[cfg(test)]
mod tests {
    use super::super::resp;
    use super::*;

    fn read(answer: &str) -> OwnedFrame {
        resp::frame(answer.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn the_primary_is_read() {
        let known = primary(&read("*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n"));
        assert_eq!(known, Some(Address::Tcp { host: "127.0.0.1".into(), port: 6379 }));
        for unknown in ["*-1\r\n", "*2\r\n$0\r\n\r\n$4\r\n6379\r\n", "*2\r\n$1\r\na\r\n$1\r\n0\r\n", "+OK\r\n"] {
            assert_eq!(primary(&read(unknown)), None, "{unknown}");
        }
    }

    #[test]
    fn a_replica_says_so() {
        assert!(!is_replica(&read("*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")));
        assert!(is_replica(&read("*2\r\n$5\r\nslave\r\n$1\r\na\r\n")));
    }
}
