//! A nameserver whose answers the test changes while it runs.

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};

/// Bytes of an answer in a datagram, to who asks for no more (RFC 1035 section 4.2.1).
const DATAGRAM_MAX: usize = 512;

/// Follows no longer chains of aliases.
const ALIASES_MAX: usize = 8;

/// What is said of a name.
#[derive(Clone, Debug)]
pub enum Says {
    /// It has these addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// It is another name for this one, whose addresses follow.
    Alias(&'static str, u32),
    /// It is another name for this one, which must be asked for.
    BareAlias(&'static str, u32),
    /// These addresses, though never in a datagram.
    Truncated(Vec<IpAddr>),
    /// These IPv4 addresses, and nothing at all about others.
    OnlyFour(Vec<IpAddr>),
    /// These IPv6 addresses, and SERVFAIL of IPv4.
    OnlySix(Vec<IpAddr>),
    /// NXDOMAIN.
    NoName,
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Nothing,
}

/// These addresses, for a minute.
pub fn addresses(addresses: &[&str]) -> Says {
    for_seconds(60, addresses)
}

/// These addresses, for so many seconds.
pub fn for_seconds(ttl: u32, addresses: &[&str]) -> Says {
    Says::Addresses(addresses.iter().map(|address| address.parse().unwrap()).collect(), ttl)
}

/// A nameserver on a port of 127.0.0.1, over UDP and TCP. It says NXDOMAIN of what it does not know.
pub struct Dns {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

#[derive(Default)]
struct Zone {
    names: HashMap<String, Says>,
    /// Of each name, how often its IPv4 addresses were asked for.
    questions: HashMap<String, usize>,
    over_tcp: usize,
}

impl Dns {
    pub fn start() -> Dns {
        let (udp, tcp) = sockets();
        let dns = Dns { address: tcp.local_addr().unwrap(), zone: Arc::default() };
        let zone = dns.zone.clone();
        std::thread::spawn(move || {
            let mut question = [0; DATAGRAM_MAX];
            while let Ok((length, from)) = udp.recv_from(&mut question) {
                let answer =
                    Message::from_vec(&question[..length]).ok().and_then(|question| answer(&zone, &question, true));
                if let Some(answer) = answer {
                    let _ = udp.send_to(&answer, from);
                }
            }
        });
        let zone = dns.zone.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                let zone = zone.clone();
                std::thread::spawn(move || serve(stream, &zone));
            }
        });
        dns
    }

    /// Says this of a name from now on.
    pub fn say(&self, name: &str, says: Says) {
        self.zone.lock().unwrap().names.insert(name.into(), says);
    }

    /// How often a name's IPv4 addresses were asked for.
    pub fn questions(&self, name: &str) -> usize {
        self.zone.lock().unwrap().questions.get(name).copied().unwrap_or_default()
    }

    /// Questions that came by TCP.
    pub fn over_tcp(&self) -> usize {
        self.zone.lock().unwrap().over_tcp
    }
}

/// Both on the same port.
fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

/// Answers what comes on one connection; each message has its length in front.
fn serve(mut stream: TcpStream, zone: &Mutex<Zone>) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        if stream.read_exact(&mut question).is_err() {
            return;
        }
        zone.lock().unwrap().over_tcp += 1;
        let Some(answer) = Message::from_vec(&question).ok().and_then(|question| answer(zone, &question, false)) else {
            continue;
        };
        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
        if stream.write_all(&[&length[..], &answer].concat()).is_err() {
            return;
        }
    }
}

fn answer(zone: &Mutex<Zone>, question: &Message, is_datagram: bool) -> Option<Vec<u8>> {
    let mut zone = zone.lock().unwrap();
    let query = question.queries.first()?;
    let asked = key(query.name());
    if query.query_type() == RecordType::A {
        *zone.questions.entry(asked).or_default() += 1;
    }
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    let mut name = query.name().clone();
    for _ in 0..ALIASES_MAX {
        let says = zone.names.get(&key(&name)).cloned().unwrap_or(Says::NoName);
        let (alias, ttl, is_followed) = match says {
            Says::Addresses(addresses, ttl) => {
                answer.add_answers(records(&name, &addresses, ttl, query.query_type()));
                break;
            }
            Says::Truncated(addresses) => {
                answer.metadata.truncation = is_datagram;
                let shown = if is_datagram { &[] } else { addresses.as_slice() };
                answer.add_answers(records(&name, shown, 60, query.query_type()));
                break;
            }
            Says::OnlyFour(_) if query.query_type() != RecordType::A => return None,
            Says::OnlyFour(addresses) => {
                answer.add_answers(records(&name, &addresses, 60, query.query_type()));
                break;
            }
            Says::OnlySix(_) if query.query_type() == RecordType::A => {
                answer.metadata.response_code = ResponseCode::ServFail;
                break;
            }
            Says::OnlySix(addresses) => {
                answer.add_answers(records(&name, &addresses, 60, query.query_type()));
                break;
            }
            Says::NoName => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                break;
            }
            Says::Failure => {
                answer.metadata.response_code = ResponseCode::ServFail;
                break;
            }
            Says::Nothing => return None,
            Says::Alias(alias, ttl) => (alias, ttl, true),
            Says::BareAlias(alias, ttl) => (alias, ttl, false),
        };
        let alias = Name::from_ascii(format!("{alias}.")).unwrap();
        answer.add_answer(Record::from_rdata(name, ttl, RData::CNAME(CNAME(alias.clone()))));
        name = alias;
        if !is_followed {
            break;
        }
    }
    let bytes = answer.to_vec().unwrap();
    if is_datagram && bytes.len() > DATAGRAM_MAX {
        return answer.truncate().to_vec().ok();
    }
    Some(bytes)
}

/// A name as the tests write it.
fn key(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn records(name: &Name, addresses: &[IpAddr], ttl: u32, kind: RecordType) -> Vec<Record> {
    let records = addresses.iter().map(|&address| Record::from_rdata(name.clone(), ttl, RData::from(address)));
    records.filter(|record| record.record_type() == kind).collect()
}
