//! The head that goes on: hop-by-hop fields out, forwarding fields in (RFC 9110 sections 7.6 and 7.6.3).
//!
//! Lines that stay are copied in runs, byte for byte; framing is written anew from what was decided, never copied from
//! what was said. Pure.

use super::changes::Changes;
use super::field::{Field, FieldName, protocols, switched_to, tokens};
use super::head::{RequestHead, ResponseHead};
use super::{Framing, Method, Span, Version, hex_digits};

/// Our name in `Via`.
const VIA: &[u8] = b"Via: 1.1 rateguard\r\n";
const VIA_10: &[u8] = b"Via: 1.0 rateguard\r\n";

/// Bytes of a client's `X-Request-Id` that are kept; a longer one is replaced.
pub const REQUEST_ID_MAX: usize = 128;

/// What is known of the client's side of a request, for the forwarding fields.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// The peer's address as text.
    pub peer: &'a str,
    /// Whether the peer is a trusted proxy, whose forwarding fields are kept.
    pub trusted: bool,
    /// The id of this request.
    pub request_id: &'a [u8],
    /// The target to ask for, where it is not the one that was sent.
    pub target: Option<&'a [u8]>,
    /// The host for a request that names none, as HTTP/1.0 may: a backend need not take an empty one.
    pub authority: &'a str,
    /// What its route sets and removes.
    pub changes: &'a Changes,
}

/// The client's own `X-Request-Id`, where it is one that can be passed on and logged.
pub fn client_request_id<'b>(head: &RequestHead, buffer: &'b [u8]) -> Option<&'b [u8]> {
    let field = head.fields.iter().find(|field| field.known == FieldName::RequestId)?;
    let id = field.value.of(buffer);
    let fits = !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.iter().all(u8::is_ascii_graphic);
    fits.then_some(id)
}

/// Appends the id that a request gets here: 32 hexadecimal digits.
pub fn push_request_id(out: &mut Vec<u8>, random: u128) {
    for word in 0..4 {
        out.extend_from_slice(&hex_digits((random >> (32 * word)) as u32));
    }
}

/// Appends the request head for the backend to `out`.
pub fn request(out: &mut Vec<u8>, buffer: &[u8], head: &RequestHead, hop: &Hop<'_>) {
    out.extend_from_slice(head.method.of(buffer));
    out.push(b' ');
    let target = hop.target.unwrap_or(head.target.of(buffer));
    if target.is_empty() && head.kind == Method::Options {
        // An absolute target without path and query asks about the server itself (RFC 9112 section 3.2.4).
        out.push(b'*');
    } else if target.first() != Some(&b'/') && target != b"*" {
        out.push(b'/');
    }
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = match (hop.changes.host(), head.version, head.host.is_empty()) {
        (Some(host), _, _) => host.as_bytes(),
        (_, Version::Http10, true) => hop.authority.as_bytes(),
        _ => head.host.of(buffer),
    };
    line(out, b"Host: ", host);
    let nominates = head.nominates;
    let is_nominated = |field: &Field| nominates && nominated(buffer, &head.fields, field);
    let changes = !hop.changes.is_none();
    let is_kept = |field: &Field| !(changes && hop.changes.touches(field.name.of(buffer)));
    copy_lines(out, buffer, &head.fields, |field| match field.known {
        FieldName::Host
        | FieldName::Alias
        | FieldName::Connection
        | FieldName::HopByHop
        | FieldName::Te
        | FieldName::Upgrade
        | FieldName::TransferEncoding
        | FieldName::ContentLength
        | FieldName::ForwardedFor
        | FieldName::RequestId => false,
        FieldName::ForwardedProto | FieldName::ForwardedHost | FieldName::ClientClaim => hop.trusted && is_kept(field),
        FieldName::Expect => head.expects_continue,
        FieldName::Trailer => head.framing == Framing::Chunked,
        FieldName::MaxForwards => head.max_forwards.is_none(),
        FieldName::RateLimit | FieldName::Date | FieldName::Underscored | FieldName::Other => {
            !is_nominated(field) && is_kept(field)
        }
    });
    hop_by_hop(out, buffer, head);
    if head.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    content_length(out, head.length);
    forwarded(out, buffer, head, hop);
    out.extend_from_slice(match head.version {
        Version::Http11 => VIA,
        Version::Http10 => VIA_10,
    });
    line(out, b"X-Request-Id: ", hop.request_id);
    out.extend_from_slice(hop.changes.lines());
    out.extend_from_slice(b"\r\n");
}

/// What we ask of the next connection ourselves, because the client asked it of its own.
fn hop_by_hop(out: &mut Vec<u8>, buffer: &[u8], head: &RequestHead) {
    out.extend_from_slice(match (head.takes_trailers, head.upgrades) {
        (false, false) => b"".as_slice(),
        (true, false) => b"Connection: TE\r\nTE: trailers\r\n",
        (false, true) => b"Connection: Upgrade\r\n",
        (true, true) => b"Connection: TE, Upgrade\r\nTE: trailers\r\n",
    });
    if head.upgrades {
        out.extend_from_slice(b"Upgrade: ");
        offer(out, buffer, head);
        out.extend_from_slice(b"\r\n");
    }
    if let Some(left) = head.max_forwards {
        line(out, b"Max-Forwards: ", itoa::Buffer::new().format(left.saturating_sub(1)).as_bytes());
    }
}

/// Appends the protocols that the client offers to switch to, as a list.
pub fn offer(out: &mut Vec<u8>, buffer: &[u8], head: &RequestHead) {
    let lines = head.fields.iter().filter(|field| field.known == FieldName::Upgrade);
    for (number, protocol) in lines.flat_map(|field| protocols(field.value.of(buffer))).enumerate() {
        if number > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(protocol);
    }
}

/// Whether a 101 switches to one of the protocols in `offered`, a list that [`offer`] wrote.
pub fn accepts(buffer: &[u8], head: &ResponseHead, offered: &[u8]) -> bool {
    let chosen = switched_to(buffer, &head.fields);
    chosen.is_some_and(|chosen| protocols(offered).any(|offer| offer.eq_ignore_ascii_case(chosen)))
}

/// `X-Forwarded-*`: the chain so far is believed only from a trusted proxy.
fn forwarded(out: &mut Vec<u8>, buffer: &[u8], head: &RequestHead, hop: &Hop<'_>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    let has = |known| head.fields.iter().any(|field| field.known == known);
    if hop.trusted {
        for field in head.fields.iter().filter(|field| field.known == FieldName::ForwardedFor) {
            if !field.value.is_empty() {
                out.extend_from_slice(field.value.of(buffer));
                out.extend_from_slice(b", ");
            }
        }
    }
    out.extend_from_slice(hop.peer.as_bytes());
    out.extend_from_slice(b"\r\n");
    let is_ours = |name: &str| !hop.changes.touches(name.as_bytes());
    if !(hop.trusted && has(FieldName::ForwardedProto)) && is_ours("X-Forwarded-Proto") {
        out.extend_from_slice(b"X-Forwarded-Proto: http\r\n");
    }
    let has_host = hop.trusted && has(FieldName::ForwardedHost);
    if !has_host && !head.host.is_empty() && is_ours("X-Forwarded-Host") {
        line(out, b"X-Forwarded-Host: ", head.host.of(buffer));
    }
}

/// How a response goes to the client.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The client's version: HTTP/1.0 knows no chunks.
    pub version: Version,
    /// The method asked with.
    pub asked: Method,
    /// Whether the client's connection stays open afterwards.
    pub keep_alive: bool,
    /// Whole field lines to add, such as the rate limit's.
    pub extra: &'a [u8],
    /// What the route sets and removes.
    pub changes: &'a Changes,
    /// The time as an HTTP date, for a response without one (RFC 9110 section 6.6.1).
    pub date: &'a str,
}

/// How a response body is framed towards this client: what has no length is chunked, or ends with the connection
/// where the client does not know chunks.
pub fn delivered_framing(framing: Framing, version: Version) -> Framing {
    match (framing, version) {
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
        (framing, _) => framing,
    }
}

/// Appends the response head for the client to `out`.
pub fn response(out: &mut Vec<u8>, buffer: &[u8], head: &ResponseHead, to: &Delivery<'_>) {
    out.extend_from_slice(status_line_start(to.version));
    out.extend_from_slice(itoa::Buffer::new().format(head.status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.reason.of(buffer));
    out.extend_from_slice(b"\r\n");
    let (nominates, changes) = (head.nominates, !to.changes.is_none());
    let is_nominated = |field: &Field| nominates && nominated(buffer, &head.fields, field);
    let is_kept = |field: &Field| !(changes && to.changes.touches(field.name.of(buffer)));
    let limited = !to.extra.is_empty();
    let framing = delivered_framing(head.framing, to.version);
    copy_lines(out, buffer, &head.fields, |field| match field.known {
        FieldName::Connection
        | FieldName::HopByHop
        | FieldName::Te
        | FieldName::Upgrade
        | FieldName::TransferEncoding
        | FieldName::ContentLength => false,
        FieldName::Trailer => framing == Framing::Chunked,
        FieldName::RateLimit => !limited,
        FieldName::Date => true,
        _ => !is_nominated(field) && is_kept(field),
    });
    out.extend_from_slice(to.changes.lines());
    if head.status == 101 {
        let protocol = switched_to(buffer, &head.fields).unwrap_or_default();
        line(out, b"Connection: Upgrade\r\nUpgrade: ", protocol);
        out.extend_from_slice(to.extra);
    } else if !head.is_interim() {
        if !head.fields.iter().any(|field| field.known == FieldName::Date) {
            line(out, b"Date: ", to.date.as_bytes());
        }
        if framing == Framing::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if head.status != 204 {
            content_length(out, head.length);
        }
        out.extend_from_slice(to.extra);
        connection(out, to.version, to.keep_alive && framing != Framing::UntilClose);
    }
    out.extend_from_slice(b"\r\n");
}

/// A status line up to its code. A client is answered in its own version (RFC 9112 section 2.3 allows more): one that
/// speaks HTTP/1.0 may take HTTP/1.1 for a promise.
pub fn status_line_start(version: Version) -> &'static [u8] {
    match version {
        Version::Http11 => b"HTTP/1.1 ",
        Version::Http10 => b"HTTP/1.0 ",
    }
}

/// The `Connection` line for the client, where the version's default is not what happens.
pub fn connection(out: &mut Vec<u8>, version: Version, keep_alive: bool) {
    out.extend_from_slice(match (version, keep_alive) {
        (Version::Http11, true) => b"".as_slice(),
        (Version::Http10, true) => b"Connection: keep-alive\r\n",
        (_, false) => b"Connection: close\r\n",
    });
}

/// Appends one chunk of a chunked body (RFC 9112 section 7.1); nothing for no data, which would end the body.
pub fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - data.len().leading_zeros()).div_ceil(4);
    for place in (0..digits).rev() {
        out.push(DIGITS[data.len() >> (4 * place) & 15]);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// The last chunk; trailers and an empty line follow.
pub const LAST_CHUNK: &[u8] = b"0\r\n";

/// Appends the length that was decided on, not the digits that were sent.
fn content_length(out: &mut Vec<u8>, length: Option<u64>) {
    if let Some(length) = length {
        line(out, b"Content-Length: ", itoa::Buffer::new().format(length).as_bytes());
    }
}

/// `start` is the name with its colon.
#[inline]
fn line(out: &mut Vec<u8>, start: &[u8], value: &[u8]) {
    out.extend_from_slice(start);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Copies the lines that `keep` accepts, neighbours in one piece.
fn copy_lines(out: &mut Vec<u8>, buffer: &[u8], fields: &[Field], keep: impl Fn(&Field) -> bool) {
    let mut pending: Option<Span> = None;
    for field in fields {
        pending = match (pending, keep(field)) {
            (Some(run), true) => Some(Span::new(run.start(), field.line.end())),
            (None, true) => Some(field.line),
            (Some(run), false) => {
                out.extend_from_slice(run.of(buffer));
                None
            }
            (None, false) => None,
        };
    }
    if let Some(run) = pending {
        out.extend_from_slice(run.of(buffer));
    }
}

/// Whether `Connection` names this field, which then goes no further (RFC 9110 section 7.6.1).
fn nominated(buffer: &[u8], fields: &[Field], field: &Field) -> bool {
    let lines = fields.iter().filter(|line| line.known == FieldName::Connection);
    let mut names = lines.flat_map(|line| tokens(line.value.of(buffer)));
    names.any(|name| name.eq_ignore_ascii_case(field.name.of(buffer)))
}

#[cfg(test)]
mod tests;
