//! The PROXY protocol's header (haproxy.org, proxy-protocol.txt): whom a connection to a backend is opened for. Pure.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Whether backends are told who their client is, and in which version of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// They are not.
    #[default]
    Off,
    /// A line of text.
    V1,
    /// The binary header.
    V2,
}

/// Who the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The client's address.
    pub source: SocketAddr,
    /// Where it connected to: our listener.
    pub destination: SocketAddr,
}

/// What starts every header of version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, and a connection that is made for nobody but the proxy itself.
const LOCAL: u8 = 0x20;

/// Version 2, and a connection that is made for a client.
const PROXY: u8 = 0x21;

const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// Both addresses, of one family.
enum Pair {
    V4(SocketAddrV4, SocketAddrV4),
    V6(SocketAddrV6, SocketAddrV6),
}

impl ProxyProtocol {
    /// What is sent before anything else; nothing where it is off. Without a `line` the connection is our own.
    pub fn header(self, line: Option<&Line>) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            ProxyProtocol::Off => {}
            ProxyProtocol::V1 => text(&mut out, line.map(Line::pair)),
            ProxyProtocol::V2 => binary(&mut out, line.map(Line::pair)),
        }
        out
    }
}

impl Line {
    /// For a client of this address on a connection between these two ends, its peer's and ours. The port of a client
    /// behind a proxy is not known: it is 0 then.
    pub fn of((peer, own): (SocketAddr, SocketAddr), client: IpAddr) -> Line {
        let is_peer = peer.ip().to_canonical() == client.to_canonical();
        Line { source: SocketAddr::new(client, if is_peer { peer.port() } else { 0 }), destination: own }
    }

    /// A listener on IPv6 sees clients of IPv4 too, by mapped addresses. Where only one of the two is of IPv4, it is
    /// mapped: a header is of one family.
    fn pair(&self) -> Pair {
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        match (canonical(self.source), canonical(self.destination)) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => Pair::V4(source, destination),
            (source, destination) => Pair::V6(mapped(source), mapped(destination)),
        }
    }
}

fn mapped(address: SocketAddr) -> SocketAddrV6 {
    let ip: Ipv6Addr = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    // A zone means something on this machine only.
    SocketAddrV6::new(ip, address.port(), 0, 0)
}

fn text(out: &mut Vec<u8>, pair: Option<Pair>) {
    // Writing to memory cannot fail.
    let _ = match pair {
        None => write!(out, "PROXY UNKNOWN\r\n"),
        Some(Pair::V4(from, to)) => {
            write!(out, "PROXY TCP4 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
        }
        Some(Pair::V6(from, to)) => {
            write!(out, "PROXY TCP6 {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
        }
    };
}

fn binary(out: &mut Vec<u8>, pair: Option<Pair>) {
    out.extend(SIGNATURE);
    let (command, family, addresses, ports) = match pair {
        None => (LOCAL, UNSPECIFIED, Vec::new(), None),
        Some(Pair::V4(from, to)) => {
            let addresses = [from.ip().octets(), to.ip().octets()].concat();
            (PROXY, TCP_OVER_IPV4, addresses, Some([from.port(), to.port()]))
        }
        Some(Pair::V6(from, to)) => {
            let addresses = [from.ip().octets(), to.ip().octets()].concat();
            (PROXY, TCP_OVER_IPV6, addresses, Some([from.port(), to.port()]))
        }
    };
    let ports: Vec<u8> = ports.into_iter().flatten().flat_map(u16::to_be_bytes).collect();
    out.extend([command, family, 0, (addresses.len() + ports.len()) as u8]);
    out.extend(addresses);
    out.extend(ports);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(source: &str, destination: &str) -> Line {
        Line { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn headers(source: &str, destination: &str) -> (String, Vec<u8>) {
        let line = line(source, destination);
        let text = ProxyProtocol::V1.header(Some(&line));
        (String::from_utf8(text).unwrap(), ProxyProtocol::V2.header(Some(&line)))
    }

    #[test]
    fn ipv4() {
        let (text, binary) = headers("192.168.0.1:56324", "192.168.0.11:443");
        assert_eq!(text, "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        let expected = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x0C\
            \xC0\xA8\x00\x01\xC0\xA8\x00\x0B\xDC\x04\x01\xBB";
        assert_eq!(binary, expected);
    }

    #[test]
    fn ipv6() {
        let (text, binary) = headers("[2001:db8::1]:1", "[2001:db8::ff]:65535");
        assert_eq!(text, "PROXY TCP6 2001:db8::1 2001:db8::ff 1 65535\r\n");
        let expected = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x21\x00\x24\
            \x20\x01\x0D\xB8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\
            \x20\x01\x0D\xB8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xFF\x00\x01\xFF\xFF";
        assert_eq!(binary, expected);
    }

    #[test]
    fn a_header_is_of_one_family() {
        let (text, binary) = headers("10.0.0.1:1000", "[2001:db8::1]:80");
        assert_eq!(text, "PROXY TCP6 ::ffff:10.0.0.1 2001:db8::1 1000 80\r\n");
        assert_eq!(binary[12..16], [0x21, 0x21, 0, 36]);
        let (text, binary) = headers("[2001:db8::1]:1000", "10.0.0.1:80");
        assert_eq!(text, "PROXY TCP6 2001:db8::1 ::ffff:10.0.0.1 1000 80\r\n");
        assert_eq!(binary[32..48], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, 0, 1]);
    }

    #[test]
    fn mapped_addresses_are_of_ipv4() {
        let (text, binary) = headers("[::ffff:10.0.0.1]:1000", "[::ffff:10.0.0.2]:80");
        assert_eq!(text, "PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n");
        assert_eq!(binary[12..24], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2]);
    }

    #[test]
    fn a_zone_stays_at_home() {
        let (text, _) = headers("[fe80::1%3]:1000", "[fe80::2%3]:80");
        assert_eq!(text, "PROXY TCP6 fe80::1 fe80::2 1000 80\r\n");
    }

    #[test]
    fn a_connection_of_our_own() {
        assert_eq!(ProxyProtocol::V1.header(None), b"PROXY UNKNOWN\r\n");
        assert_eq!(ProxyProtocol::V2.header(None), b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x20\x00\x00\x00");
    }

    #[test]
    fn off_is_silent() {
        assert_eq!(ProxyProtocol::Off.header(Some(&line("10.0.0.1:1", "10.0.0.2:2"))), b"");
    }

    #[test]
    fn the_longest_line_is_within_the_specification_s_bound() {
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
        assert!(headers(longest, longest).0.len() <= 107);
    }
}
