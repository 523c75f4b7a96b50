//! What goes on: one message in is one message out, with the framing that was decided and no field that was meant for
//! this hop only.

use super::body::{self, Body, End, cuts, framed_anew, may_go};
use super::grammar::{self, Line, Request, Response, Verdict, list, members};
use super::heads::{BOUNDS, METHODS, parse_request, parse_response};
use super::{dice, shown};
use rateguard::http::changes::NONE;
use rateguard::http::forward::{self, Delivery, Hop, LAST_CHUNK, chunk, delivered_framing};
use rateguard::http::{Bounds, FIELDS_MAX, Framing, Method, Version};
use rateguard::identity::{Identity, Settings};

/// What goes on may be longer than what came.
const WIDE: Bounds = Bounds { head_max: 64 * 1024, fields_max: FIELDS_MAX, body_max: None };

/// The peer and the request's id.
const PEER: &str = "203.0.113.9";
const REQUEST_ID: &[u8] = b"4711";
const AUTHORITY: &str = "up:80";

/// Fields that speak of one connection (RFC 9110 section 7.6.1), and those that are written anew.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "http2-settings", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Fields that this gateway sets or acts on. A backend that follows CGI takes one with `_` for `-` for the same field.
const OURS: [&str; 16] = [
    "connection",
    "content-length",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "ratelimit",
    "ratelimit-policy",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];

/// The field that tells the caller, of which there must be no second spelling.
const KEY: &str = "x-api-key";

/// Protocols that were offered to a backend.
const OFFERED: [&[u8]; 2] = [b"a/1", b"WebSocket"];

const LIMITS: &[u8] = b"RateLimit: \"a\";r=1;t=2\r\nRateLimit-Policy: \"a\";q=3;w=4\r\n";

/// Forwards a request, or a response to every kind of request, with the body behind it.
pub fn forwarded_head(bytes: &[u8]) {
    if let Verdict::Whole(read) = grammar::request(bytes, &BOUNDS) {
        forward_request(bytes, &read, false);
        forward_request(bytes, &read, true);
    }
    for asked in METHODS {
        let Verdict::Whole(read) = grammar::response(bytes, &BOUNDS, asked) else { continue };
        for version in [Version::Http10, Version::Http11] {
            for (keep_alive, extra) in [(true, b"".as_slice()), (false, LIMITS)] {
                forward_response(
                    bytes,
                    &read,
                    &Delivery { version, asked, keep_alive, extra, changes: &NONE, date: "now" },
                );
            }
        }
    }
}

fn forward_request(bytes: &[u8], read: &Request, trusted: bool) {
    if read.max_forwards == Some(0) {
        return;
    }
    let Ok(Some(mut head)) = parse_request(bytes, &BOUNDS) else { panic!("not taken: {}", shown(bytes)) };
    Identity::new(Settings::default()).mark_aliases(&mut head, bytes);
    let mut out = Vec::new();
    let hop = Hop { peer: PEER, trusted, request_id: REQUEST_ID, target: None, authority: AUTHORITY, changes: &NONE };
    forward::request(&mut out, bytes, &head, &hop);
    let Verdict::Whole(sent) = grammar::request(&out, &WIDE) else { panic!("no request: {}", shown(&out)) };
    let Ok(Some(again)) = parse_request(&out, &WIDE) else { panic!("not taken: {}", shown(&out)) };
    assert_eq!((again.len, sent.len), (out.len(), out.len()), "{}", shown(&out));
    assert_eq!((again.framing, again.length), (read.framing, read.length), "{}", shown(&out));
    assert_eq!((sent.framing, sent.length), (read.framing, read.length), "{}", shown(&out));
    let target = match read.target.first() {
        // RFC 9112 section 3.2.4.
        None if read.method == b"OPTIONS" => b"*".to_vec(),
        Some(b'/' | b'*') => read.target.clone(),
        _ => [b"/", read.target.as_slice()].concat(),
    };
    assert_eq!((shown(&sent.method), shown(&sent.target)), (shown(&read.method), shown(&target)), "{}", shown(&out));
    assert_eq!((sent.host.as_slice(), sent.minor), (host_of(read), 1), "{}", shown(&out));
    assert!(sent.keep_alive && sent.expects_continue == read.expects_continue, "{}", shown(&out));
    assert_eq!((&sent.protocols, sent.takes_trailers), (&read.protocols, read.takes_trailers), "{}", shown(&out));
    same_lines(&out, sent.fields, request_lines(read, trusted));
    let body = &bytes[read.len..];
    one_message(&out, body, read.framing, read.framing);
}

/// The host that a backend is to be asked for.
fn host_of(read: &Request) -> &[u8] {
    match read.minor == 0 && read.host.is_empty() {
        true => AUTHORITY.as_bytes(),
        false => &read.host,
    }
}

/// The lines that a backend is to get.
fn request_lines(read: &Request, trusted: bool) -> Vec<Line> {
    let nominated = nominated(&read.fields);
    let has = |name: &str| trusted && read.fields.iter().any(|line| line.is(name));
    let stays = |line: &&Line| {
        let is_any = |names: &[&str]| names.iter().any(|name| line.is(name));
        match () {
            () if is_any(&HOP_BY_HOP) => false,
            () if is_any(&["host", "content-length", "x-forwarded-for", "x-request-id"]) => false,
            () if is_alias(&line.name) => false,
            () if is_claim(&line.name) => trusted,
            // These stay although `Connection` names them: what they say is not for one hop.
            () if line.is("expect") => read.minor == 1,
            () if line.is("trailer") => read.framing == Framing::Chunked,
            () if line.is("max-forwards") => read.max_forwards.is_none(),
            () => !nominated.contains(&line.name.to_ascii_lowercase()),
        }
    };
    let mut lines: Vec<Line> = read.fields.iter().filter(stays).cloned().collect();
    let mut add = |name: &str, value: &[u8]| lines.push(Line { name: name.into(), value: value.to_vec() });
    add("Host", host_of(read));
    let options: Vec<&str> = [("TE", read.takes_trailers), ("Upgrade", !read.protocols.is_empty())]
        .iter()
        .filter(|o| o.1)
        .map(|o| o.0)
        .collect();
    if !options.is_empty() {
        add("Connection", options.join(", ").as_bytes());
    }
    if read.takes_trailers {
        add("TE", b"trailers");
    }
    if !read.protocols.is_empty() {
        add("Upgrade", &read.protocols.join(b", ".as_slice()));
    }
    if let Some(left) = read.max_forwards {
        add("Max-Forwards", (left - 1).to_string().as_bytes());
    }
    add_framing(&mut add, read.framing, read.length);
    let mut chain: Vec<&[u8]> = Vec::new();
    if trusted {
        let said = read.fields.iter().filter(|line| line.is("x-forwarded-for"));
        chain.extend(said.map(|line| line.value.as_slice()).filter(|value| !value.is_empty()));
    }
    chain.push(PEER.as_bytes());
    add("X-Forwarded-For", &chain.join(b", ".as_slice()));
    if !has("x-forwarded-proto") {
        add("X-Forwarded-Proto", b"http");
    }
    if !has("x-forwarded-host") && !read.host.is_empty() {
        add("X-Forwarded-Host", &read.host);
    }
    add("Via", if read.minor == 1 { b"1.1 rateguard" } else { b"1.0 rateguard" });
    add("X-Request-Id", REQUEST_ID);
    lines
}

/// What only a trusted proxy may tell.
fn is_claim(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    name == b"forwarded" || name == b"x-real-ip" || (name.starts_with(b"x-forwarded-") && name.len() > 12)
}

/// Whether some backends take this name for another one, that matters.
fn is_alias(name: &[u8]) -> bool {
    let dashed = String::from_utf8_lossy(name).to_ascii_lowercase().replace('_', "-");
    name.contains(&b'_') && (OURS.contains(&dashed.as_str()) || dashed == KEY || is_claim(dashed.as_bytes()))
}

fn forward_response(bytes: &[u8], read: &Response, to: &Delivery<'_>) {
    let Ok(Some(head)) = parse_response(bytes, &BOUNDS, to.asked) else { panic!("not taken: {}", shown(bytes)) };
    let is_interim = read.status < 200;
    if is_interim && to.version == Version::Http10 {
        return;
    }
    if read.status == 101 && !forward::accepts(bytes, &head, &OFFERED.join(b", ".as_slice())) {
        return;
    }
    let framing = delivered_framing(read.framing, to.version);
    let has_no_body = to.asked == Method::Head || is_interim || read.status == 204 || read.status == 304;
    assert!(!has_no_body || framing == Framing::Empty, "{framing:?} for {}", shown(bytes));
    assert!(to.version == Version::Http11 || framing != Framing::Chunked, "chunks for HTTP/1.0: {}", shown(bytes));
    let minor = if to.version == Version::Http11 { 1 } else { 0 };
    let mut out = Vec::new();
    forward::response(&mut out, bytes, &head, to);
    let Verdict::Whole(sent) = grammar::response(&out, &WIDE, to.asked) else { panic!("none: {}", shown(&out)) };
    let Ok(Some(again)) = parse_response(&out, &WIDE, to.asked) else { panic!("not taken: {}", shown(&out)) };
    assert_eq!((again.len, sent.len), (out.len(), out.len()), "{}", shown(&out));
    assert_eq!((sent.status, &sent.reason, sent.minor), (read.status, &read.reason, minor), "{}", shown(&out));
    assert_eq!((again.framing, sent.framing), (framing, framing), "{}", shown(&out));
    if !is_interim {
        let keeps = to.keep_alive && framing != Framing::UntilClose;
        assert_eq!((sent.keep_alive, again.keep_alive), (keeps, keeps), "{}", shown(&out));
    }
    same_lines(&out, sent.fields, response_lines(read, to, framing));
    one_message(&out, &bytes[read.len..], read.framing, framing);
}

/// The lines that a client is to get.
fn response_lines(read: &Response, to: &Delivery<'_>, framing: Framing) -> Vec<Line> {
    let nominated = nominated(&read.fields);
    let stays = |line: &&Line| {
        let is_any = |names: &[&str]| names.iter().any(|name| line.is(name));
        match () {
            () if is_any(&HOP_BY_HOP) || line.is("content-length") => false,
            () if is_any(&["ratelimit", "ratelimit-policy"]) => to.extra.is_empty(),
            () if line.is("trailer") => framing == Framing::Chunked,
            () if line.is("date") => true,
            () => !nominated.contains(&line.name.to_ascii_lowercase()),
        }
    };
    let mut lines: Vec<Line> = read.fields.iter().filter(stays).cloned().collect();
    if read.status < 200 && read.status != 101 {
        return lines;
    }
    let mut add = |name: &str, value: &[u8]| lines.push(Line { name: name.into(), value: value.to_vec() });
    if !to.extra.is_empty() {
        add("RateLimit", b"\"a\";r=1;t=2");
        add("RateLimit-Policy", b"\"a\";q=3;w=4");
    }
    if read.status == 101 {
        let named = read.fields.iter().filter(|line| line.is("upgrade")).flat_map(|line| list(&line.value));
        let named: Vec<&[u8]> = named.collect();
        assert!(named.len() == 1 && OFFERED.iter().any(|offer| named[0].eq_ignore_ascii_case(offer)), "{named:?}");
        add("Connection", b"Upgrade");
        add("Upgrade", named[0]);
        return lines;
    }
    if !read.fields.iter().any(|line| line.is("date")) {
        add("Date", b"now");
    }
    add_framing(&mut add, framing, read.length.filter(|_| read.status != 204));
    match (to.keep_alive && framing != Framing::UntilClose, to.version) {
        (true, Version::Http11) => {}
        (true, Version::Http10) => add("Connection", b"keep-alive"),
        (false, _) => add("Connection", b"close"),
    }
    lines
}

fn add_framing(add: &mut impl FnMut(&str, &[u8]), framing: Framing, length: Option<u64>) {
    if framing == Framing::Chunked {
        add("Transfer-Encoding", b"chunked");
    }
    if let Some(length) = length {
        add("Content-Length", length.to_string().as_bytes());
    }
}

fn nominated(fields: &[Line]) -> Vec<Vec<u8>> {
    fields.iter().filter(|line| line.is("connection")).flat_map(|line| members(&line.value)).collect()
}

/// The same lines, those of one name in the same order.
fn same_lines(out: &[u8], mut sent: Vec<Line>, mut wanted: Vec<Line>) {
    let name = |line: &Line| line.name.to_ascii_lowercase();
    sent.sort_by_key(name);
    wanted.sort_by_key(name);
    assert_eq!(sent, wanted, "{}", shown(out));
}

/// The body behind the head goes on as the relay passes it on: the head's `framing` then finds the same data in it, and
/// nothing after its end.
fn one_message(head: &[u8], body: &[u8], came: Framing, goes: Framing) {
    let mut dice = dice(body);
    let read = body::decode(came, body, &cuts(body.len(), &mut dice));
    let is_over = match read.end {
        End::At(_) => true,
        End::Later => came == Framing::UntilClose,
        End::Refused => false,
    };
    let sent = match (came, goes) {
        (Framing::Chunked, Framing::Chunked) => framed_anew(body, &cuts(body.len(), &mut dice)),
        (_, Framing::Chunked) => {
            let mut sent = Vec::new();
            chunk(&mut sent, &read.data);
            [sent.as_slice(), if is_over { LAST_CHUNK } else { b"" }, if is_over { b"\r\n" } else { b"" }].concat()
        }
        _ => read.data.clone(),
    };
    if goes == Framing::Empty {
        assert!(sent.is_empty(), "a body behind {}", shown(head));
    }
    let end = if is_over && goes != Framing::UntilClose { End::At(sent.len()) } else { End::Later };
    let trailers = if goes == Framing::Chunked { may_go(&read.trailers) } else { Vec::new() };
    let wanted = Body { data: read.data, trailers, end };
    assert_eq!(body::decode(goes, &sent, &cuts(sent.len(), &mut dice)), wanted, "{} as {goes:?}", shown(body));
    if goes == Framing::Chunked {
        assert_eq!(body::reference(&sent), wanted, "{}", shown(&sent));
    }
}
