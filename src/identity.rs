//! Who asks, and for what: the client's address, the user, and the endpoint, as they stand in keys.
//!
//! An API key, a cookie or a header value never leaves this room in clear: only its SHA-256 does. Pure.

mod cookie;

use crate::http::field::{Field, FieldName, is_like};
use crate::http::head::RequestHead;
use crate::http::hex_digits;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};

/// Bytes of a key part; a longer one is replaced by its hash.
pub const PART_MAX: usize = 128;

/// Bytes of a digest that stand in a key, as twice as many hexadecimal digits: 128 bits do not collide by chance.
const HASH_BYTES: usize = 16;

/// Where the user is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The field [`Settings::api_key_header`].
    ApiKey,
    /// The client's address.
    Ip,
    /// A request field.
    Header(String),
    /// A cookie.
    Cookie(String),
}

/// What to do with an API key that no consumer owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownApiKeys {
    /// Each key is a user of its own.
    #[default]
    Accept,
    /// As if there were no key: the next source decides.
    Ip,
    /// 401.
    Reject,
}

/// A caller known by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Stands in keys, logs and replies.
    pub name: String,
    /// SHA-256 of its API key.
    pub key_sha256: [u8; 32],
    /// Its plan's name, where it has one.
    pub plan: Option<String>,
}

/// How callers are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// In this order; the first that is present wins, and the address ends every list.
    pub sources: Vec<Source>,
    /// The field that carries an API key.
    pub api_key_header: String,
    /// What a key of nobody means.
    pub unknown_api_keys: UnknownApiKeys,
    /// Bits of an IPv6 address that make one client, 1 to 128.
    pub ipv6_prefix: u8,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The known callers.
    pub consumers: Vec<Consumer>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            sources: vec![Source::ApiKey, Source::Ip],
            api_key_header: "X-API-Key".into(),
            unknown_api_keys: UnknownApiKeys::Accept,
            ipv6_prefix: 64,
            trusted_proxies: Vec::new(),
            consumers: Vec::new(),
        }
    }
}

/// The number of a plan, see [`Identity::plans`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanId(pub usize);

/// The settings in the form that requests are matched with.
#[derive(Debug)]
pub struct Identity {
    settings: Settings,
    plans: Vec<String>,
    /// By the SHA-256 of a key.
    known: HashMap<[u8; 32], Known, foldhash::fast::RandomState>,
    /// The fields that decide what a request is charged to.
    watched: Vec<String>,
    /// Whether one of those has a `_` in its name.
    watches_underscores: bool,
}

#[derive(Debug)]
struct Known {
    user: Vec<u8>,
    plan: Option<PlanId>,
}

/// Why nobody can be said to have sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCaller {
    /// An API key that no consumer owns, where such keys are rejected.
    UnknownKey,
    /// The field that names the user stands there more than once: the backend might believe another one than we do.
    Repeated,
}

/// Who sent a request. One is used for many requests, so that it allocates once.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The client's address.
    pub ip: IpAddr,
    /// Whether the peer's forwarding fields are believed.
    pub via_trusted: bool,
    /// The user as it stands in keys: `alice`, `key:<hash>`, `ip:203.0.113.7`, `ip:2001:db8::/64`.
    pub user: Vec<u8>,
    /// The address as it stands in keys.
    pub ip_text: Vec<u8>,
    /// The consumer's plan.
    pub plan: Option<PlanId>,
}

impl Default for Caller {
    fn default() -> Caller {
        Caller { ip: IpAddr::from([0, 0, 0, 0]), via_trusted: false, user: Vec::new(), ip_text: Vec::new(), plan: None }
    }
}

impl Identity {
    /// Prepares the settings.
    pub fn new(settings: Settings) -> Identity {
        let mut plans: Vec<String> = settings.consumers.iter().filter_map(|c| c.plan.clone()).collect();
        plans.sort();
        plans.dedup();
        let known = settings.consumers.iter().map(|consumer| {
            let mut user = Vec::new();
            push_part(&mut user, consumer.name.as_bytes());
            let plan = consumer.plan.as_ref().and_then(|plan| plans.binary_search(plan).ok());
            (consumer.key_sha256, Known { user, plan: plan.map(PlanId) })
        });
        let known = known.collect();
        let watched = settings.sources.iter().filter_map(|source| match source {
            Source::ApiKey => Some(settings.api_key_header.clone()),
            Source::Header(header) => Some(header.clone()),
            Source::Cookie(_) => Some("cookie".into()),
            Source::Ip => None,
        });
        let watched: Vec<String> = watched.collect();
        let mut identity = Identity { settings, plans, known, watched: Vec::new(), watches_underscores: false };
        identity.watch(watched.iter().map(String::as_str));
        identity
    }

    /// Adds fields that tell a request's bucket or its route as those of the sources tell its user: no backend may take
    /// another field for one of them.
    pub fn watch<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        for name in names {
            if !self.watches_exactly(name.as_bytes()) {
                self.watched.push(name.to_owned());
            }
        }
        self.watches_underscores = self.watched.iter().any(|name| name.contains('_'));
    }

    /// The names of all plans that consumers have; a [`PlanId`] is a position in it.
    pub fn plans(&self) -> &[String] {
        &self.plans
    }

    /// Whether this address is a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.settings.trusted_proxies.iter().any(|net| net.contains(&address))
    }

    /// Whether a field with this name decides what the request is charged to, for us or for a backend that does not tell
    /// `_` from `-`.
    pub fn watches_like(&self, name: &[u8]) -> bool {
        self.watched.iter().any(|watched| is_like(watched.as_bytes(), name))
    }

    /// Whether a field with just this name, but for case, decides what the request is charged to.
    fn watches_exactly(&self, name: &[u8]) -> bool {
        self.watched.iter().any(|watched| name.eq_ignore_ascii_case(watched.as_bytes()))
    }

    /// Marks fields that a backend could take for one that decides what the request is charged to, while we do not: they
    /// are not passed on.
    pub fn mark_aliases(&self, head: &mut RequestHead, buffer: &[u8]) {
        let may_be_one = |field: &&mut Field| match field.known {
            FieldName::Underscored => true,
            FieldName::Other => self.watches_underscores,
            _ => false,
        };
        for field in head.fields.iter_mut().filter(may_be_one) {
            let name = field.name.of(buffer);
            let is_alias = self.watches_like(name) && !self.watches_exactly(name);
            if is_alias {
                field.known = FieldName::Alias;
            }
        }
    }

    /// Finds out who sent the request that `head` describes over a connection from `peer`.
    pub fn of(&self, head: &RequestHead, buffer: &[u8], peer: IpAddr, caller: &mut Caller) -> Result<(), NoCaller> {
        let peer = peer.to_canonical();
        caller.via_trusted = self.trusts(peer);
        let ip = match caller.via_trusted {
            true => self.forwarded_for(head, buffer, peer),
            false => peer,
        };
        if caller.ip_text.is_empty() || caller.ip != ip {
            caller.ip = ip;
            caller.ip_text.clear();
            push_address(&mut caller.ip_text, ip, self.settings.ipv6_prefix);
        }
        caller.plan = None;
        caller.user.clear();
        for source in &self.settings.sources {
            if self.take_user(source, head, buffer, caller)? {
                return Ok(());
            }
        }
        caller.user.extend_from_slice(&caller.ip_text);
        Ok(())
    }

    /// Walks `X-Forwarded-For` from the right past trusted addresses. A malformed entry ends the walk: what stands
    /// left of it was not written by anybody we trust.
    fn forwarded_for(&self, head: &RequestHead, buffer: &[u8], peer: IpAddr) -> IpAddr {
        let mut client = peer;
        let lines = head.fields.iter().rev().filter(|field| field.known == FieldName::ForwardedFor);
        for entry in lines.flat_map(|field| field.value.of(buffer).rsplit(|&b| b == b',')) {
            let entry = entry.trim_ascii();
            if entry.is_empty() {
                continue;
            }
            let Some(address) = parse_address(entry) else { break };
            client = address;
            if !self.trusts(address) {
                break;
            }
        }
        client
    }

    fn take_user(
        &self,
        source: &Source,
        head: &RequestHead,
        buffer: &[u8],
        caller: &mut Caller,
    ) -> Result<bool, NoCaller> {
        match source {
            Source::Ip => {
                caller.user.extend_from_slice(&caller.ip_text);
                Ok(true)
            }
            Source::ApiKey => match present(only(head.values(buffer, &self.settings.api_key_header))?) {
                Some(key) => self.take_api_key(key, caller),
                None => Ok(false),
            },
            Source::Header(name) => {
                let value = present(only(head.values(buffer, name))?);
                Ok(value.is_some_and(|value| push_secret(&mut caller.user, name, value)))
            }
            Source::Cookie(name) => {
                let value = cookie::only(head, buffer, name);
                Ok(value.is_some_and(|value| push_secret(&mut caller.user, name, &value)))
            }
        }
    }

    fn take_api_key(&self, key: &[u8], caller: &mut Caller) -> Result<bool, NoCaller> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        if let Some(known) = self.known.get(&digest) {
            caller.user.extend_from_slice(&known.user);
            caller.plan = known.plan;
            return Ok(true);
        }
        match self.settings.unknown_api_keys {
            UnknownApiKeys::Accept => {
                caller.user.extend_from_slice(b"key:");
                push_hash(&mut caller.user, &digest);
                Ok(true)
            }
            UnknownApiKeys::Ip => Ok(false),
            UnknownApiKeys::Reject => Err(NoCaller::UnknownKey),
        }
    }
}

/// The one value of what may stand there once only.
fn only<'b>(mut values: impl Iterator<Item = &'b [u8]>) -> Result<Option<&'b [u8]>, NoCaller> {
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(NoCaller::Repeated),
        (first, None) => Ok(first),
    }
}

fn present(value: Option<&[u8]>) -> Option<&[u8]> {
    value.filter(|value| !value.is_empty())
}

/// `203.0.113.7`, `203.0.113.7:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`.
fn parse_address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().map(|with_port: std::net::SocketAddr| with_port.ip());
    let address: Option<IpAddr> = bare.parse().ok().or_else(|| with_port().ok());
    address.map(|address| address.to_canonical())
}

fn push_address(out: &mut Vec<u8>, address: IpAddr, ipv6_prefix: u8) {
    // Writing into a Vec cannot fail.
    let _ = match address {
        IpAddr::V4(address) => return push_ipv4(out, address),
        IpAddr::V6(address) if ipv6_prefix < 128 => {
            let mask = u128::MAX << (128 - u32::from(ipv6_prefix.max(1)));
            let network = std::net::Ipv6Addr::from(u128::from(address) & mask);
            write!(out, "ip:{network}/{ipv6_prefix}")
        }
        IpAddr::V6(address) => write!(out, "ip:{address}"),
    };
}

fn push_ipv4(out: &mut Vec<u8>, address: Ipv4Addr) {
    let mut before: &[u8] = b"ip:";
    for part in address.octets() {
        out.extend_from_slice(before);
        out.extend_from_slice(itoa::Buffer::new().format(part).as_bytes());
        before = b".";
    }
}

/// Appends `name:<hash of value>`; always true, for use in a chain.
pub(crate) fn push_secret(out: &mut Vec<u8>, name: &str, value: &[u8]) -> bool {
    push_part(out, name.to_ascii_lowercase().as_bytes());
    out.push(b':');
    push_hash(out, &Sha256::digest(value).into());
    true
}

/// Appends a part of a key: `{ } : %`, spaces, controls and non-ASCII percent-encoded; a part over [`PART_MAX`] bytes
/// becomes `hash:` and its hash.
pub fn push_part(out: &mut Vec<u8>, raw: &[u8]) {
    let is_plain = |byte: u8| byte.is_ascii_graphic() & !matches!(byte, b'{' | b'}' | b':' | b'%');
    // Asked of many bytes at once, since hardly any part has to be written in another way.
    if raw.len() <= PART_MAX && raw.iter().fold(true, |all, &byte| all & is_plain(byte)) {
        return out.extend_from_slice(raw);
    }
    let start = out.len();
    for &byte in raw.iter().take(PART_MAX + 1) {
        if is_plain(byte) {
            out.push(byte);
        } else {
            out.push(b'%');
            push_hex_upper(out, byte);
        }
    }
    if out.len() - start > PART_MAX {
        out.truncate(start);
        out.extend_from_slice(b"hash:");
        push_hash(out, &Sha256::digest(raw).into());
    }
}

/// Appends as much of a digest as stands in a key.
fn push_hash(out: &mut Vec<u8>, digest: &[u8; 32]) {
    for word in digest[..HASH_BYTES].as_chunks().0 {
        // The digits come out lowest first.
        let mut digits = hex_digits(u32::from_be_bytes(*word));
        digits.reverse();
        out.extend_from_slice(&digits);
    }
}

fn push_hex_upper(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push(DIGITS[usize::from(byte >> 4)]);
    out.push(DIGITS[usize::from(byte & 15)]);
}

/// Writes the endpoint of a request target: the path with visible characters decoded but for `%`, `?`, `#` and `;`, dot
/// segments resolved (5.2.4), empty segments merged, without query and trailing slash. `//a`, `/%61`, `/a/`, `/a?x` and
/// `/./a` are all `/a`.
///
/// It goes further where some servers do: `%2F`, `%5C` and `\` are separators, and path parameters are dropped, so that
/// `/a%2Fb` and `/a;x/b` are `/a/b`. Whichever reading the backend has, a limit on a prefix applies to all of them.
/// Case is kept.
pub fn endpoint(target: &[u8], out: &mut Vec<u8>) {
    out.clear();
    match path_of(target) {
        b"*" => out.push(b'*'),
        path if is_endpoint(path) => out.extend_from_slice(path),
        path => write_endpoint(path, true, out),
    }
}

/// Whether a path is its own endpoint, as most are: nothing to decode or to drop, and no segment that is empty or begins
/// with a dot. Asked of all bytes at once, each with the one before it.
fn is_endpoint(path: &[u8]) -> bool {
    let [b'/', rest @ ..] = path else { return false };
    let is_special = |byte: u8| (byte == b'%') | (byte == b'\\') | (byte == b';');
    let ends_segment = |byte: u8| (byte == b'/') | (byte == b'.');
    let pairs = path.iter().zip(rest);
    let differs = pairs.fold(false, |any, (&last, &byte)| any | is_special(byte) | (last == b'/') & ends_segment(byte));
    !differs && rest.last() != Some(&b'/')
}

/// The endpoints that the target has to servers which read paths in another way, where there are any.
///
/// Many frameworks take `..` for a name, since browsers resolve it before they send a path. Those that read a target as a
/// reference to their own address take what follows `//` for a host (RFC 3986 section 4.2).
pub fn other_endpoints(target: &[u8]) -> Vec<Vec<u8>> {
    let path = path_of(target);
    let mut others = Vec::new();
    if path.windows(2).any(|two| matches!(two, b".." | b"%2" | b".%")) {
        let mut unresolved = Vec::new();
        write_endpoint(path, false, &mut unresolved);
        if unresolved.split(|&b| b == b'/').any(|segment| segment == b"..") {
            others.push(unresolved);
        }
    }
    if path.starts_with(b"//") {
        let from = path.iter().position(|&b| b != b'/').unwrap_or(path.len());
        let named = &path[from..];
        let mut behind = Vec::new();
        write_endpoint(&named[memchr::memchr(b'/', named).unwrap_or(named.len())..], true, &mut behind);
        others.push(behind);
    }
    others
}

/// Whether the target's path is the endpoint to the letter, as most are: then it has no other one.
pub fn is_written_as(target: &[u8], endpoint: &[u8]) -> bool {
    target.strip_prefix(endpoint).is_some_and(|rest| matches!(rest, [] | [b'?', ..]))
}

fn path_of(target: &[u8]) -> &[u8] {
    &target[..memchr::memchr(b'?', target).unwrap_or(target.len())]
}

/// `climbs`: whether `..` takes the segment before it away.
fn write_endpoint(path: &[u8], climbs: bool, out: &mut Vec<u8>) {
    for segment in path.split(|&b| b == b'/') {
        let mut rest = Some(segment);
        while let Some(piece) = rest {
            let start = out.len();
            out.push(b'/');
            rest = push_decoded(out, piece);
            settle(out, start, climbs);
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
}

/// Drops the parameters of the segment that was written from `start` on, and the segment itself where it is none.
fn settle(out: &mut Vec<u8>, start: usize, climbs: bool) {
    if let Some(at) = memchr::memchr(b';', &out[start..]) {
        out.truncate(start + at);
    }
    match &out[start + 1..] {
        b"" | b"." => out.truncate(start),
        b".." if climbs => {
            out.truncate(start);
            let parent = out.iter().rposition(|&b| b == b'/').unwrap_or(0);
            out.truncate(parent);
        }
        _ => {}
    }
}

/// Appends a path segment with its characters decoded as in [`endpoint`]; other escapes stay, in capitals. A separator
/// that is no slash ends it: then what is behind that is returned.
fn push_decoded<'s>(out: &mut Vec<u8>, segment: &'s [u8]) -> Option<&'s [u8]> {
    let mut rest = segment;
    while let Some(at) = memchr::memchr2(b'%', b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        if rest[0] == b'\\' {
            return Some(&rest[1..]);
        }
        let digits = rest.get(1..3).and_then(|two| Some((hex(two[0])?, hex(two[1])?)));
        match digits.map(|(high, low)| high << 4 | low) {
            Some(b'/' | b'\\') => return Some(&rest[3..]),
            Some(byte) => {
                if byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b';') {
                    out.push(byte);
                } else {
                    out.push(b'%');
                    push_hex_upper(out, byte);
                }
                rest = &rest[3..];
            }
            // Not an escape: the sign itself is meant.
            None => {
                out.extend_from_slice(b"%25");
                rest = &rest[1..];
            }
        }
    }
    out.extend_from_slice(rest);
    None
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests;
