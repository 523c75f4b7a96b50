//! What goes on: one message in is one message out, with the framing that was decided and no field that was meant for
//! this hop only.

use super::body::{self, End, cuts, framed_anew};
use super::grammar::{self, Line, Request, Response, Verdict, members};
use super::heads::{BOUNDS, METHODS, parse_request, parse_response};
use super::{dice, shown};
use rateguard::http::forward::{self, Delivery, Hop, LAST_CHUNK, chunk, delivered_framing};
use rateguard::http::{Bounds, FIELDS_MAX, Framing, Method, Version};

/// What goes on may be longer than what came.
const WIDE: Bounds = Bounds { head_max: 64 * 1024, fields_max: FIELDS_MAX, body_max: None };

/// The peer and the request's id.
const PEER: &str = "203.0.113.9";
const REQUEST_ID: &[u8] = b"4711";

/// Fields that speak of one connection (RFC 9110 section 7.6.1), and those that are written anew.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "transfer-encoding"];

/// Fields that only a trusted proxy may set; none of them goes because `Connection` names it.
const CLAIMS: [&str; 4] = ["x-forwarded-proto", "x-forwarded-host", "forwarded", "x-real-ip"];

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
                forward_response(bytes, &read, &Delivery { version, asked, keep_alive, extra });
            }
        }
    }
}

fn forward_request(bytes: &[u8], read: &Request, trusted: bool) {
    let Ok(Some(head)) = parse_request(bytes, &BOUNDS) else { panic!("not taken: {}", shown(bytes)) };
    let mut out = Vec::new();
    let hop = Hop { peer: PEER, trusted, request_id: REQUEST_ID };
    forward::request(&mut out, bytes, &head, &hop);
    let Verdict::Whole(sent) = grammar::request(&out, &WIDE) else { panic!("no request: {}", shown(&out)) };
    let Ok(Some(again)) = parse_request(&out, &WIDE) else { panic!("not taken: {}", shown(&out)) };
    assert_eq!((again.len, sent.len), (out.len(), out.len()), "{}", shown(&out));
    assert_eq!((again.framing, again.length), (read.framing, read.length), "{}", shown(&out));
    assert_eq!((sent.framing, sent.length), (read.framing, read.length), "{}", shown(&out));
    let target = match read.target.first() {
        None if read.method == b"OPTIONS" => b"*".to_vec(),
        Some(b'/' | b'*') => read.target.clone(),
        _ => [b"/", read.target.as_slice()].concat(),
    };
    assert_eq!((&sent.method, &sent.target), (&read.method, &target), "{}", shown(&out));
    assert_eq!((&sent.host, sent.minor), (&read.host, 1), "{}", shown(&out));
    assert!(sent.keep_alive && sent.expects_continue == read.expects_continue, "{}", shown(&out));
    same_lines(&out, sent.fields, request_lines(read, trusted));
    let body = &bytes[read.len..];
    one_message(&out, body, read.framing, read.framing);
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
            () if is_any(&CLAIMS) => trusted,
            () if line.is("expect") => read.minor == 1,
            () => !nominated.contains(&line.name.to_ascii_lowercase()),
        }
    };
    let mut lines: Vec<Line> = read.fields.iter().filter(stays).cloned().collect();
    let mut add = |name: &str, value: &[u8]| lines.push(Line { name: name.into(), value: value.to_vec() });
    add("Host", &read.host);
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

fn forward_response(bytes: &[u8], read: &Response, to: &Delivery<'_>) {
    let Ok(Some(head)) = parse_response(bytes, &BOUNDS, to.asked) else { panic!("not taken: {}", shown(bytes)) };
    let is_interim = read.status < 200;
    if is_interim && (to.version == Version::Http10 || read.status == 101) {
        return;
    }
    let framing = delivered_framing(read.framing, to.version);
    let has_no_body = to.asked == Method::Head || is_interim || read.status == 204 || read.status == 304;
    assert_eq!(has_no_body && framing != Framing::Empty, false, "{framing:?} for {}", shown(bytes));
    assert!(to.version == Version::Http11 || framing != Framing::Chunked, "chunks for HTTP/1.0: {}", shown(bytes));
    let mut out = Vec::new();
    forward::response(&mut out, bytes, &head, to);
    let Verdict::Whole(sent) = grammar::response(&out, &WIDE, to.asked) else { panic!("none: {}", shown(&out)) };
    let Ok(Some(again)) = parse_response(&out, &WIDE, to.asked) else { panic!("not taken: {}", shown(&out)) };
    assert_eq!((again.len, sent.len), (out.len(), out.len()), "{}", shown(&out));
    assert_eq!((sent.status, &sent.reason, sent.minor), (read.status, &read.reason, 1), "{}", shown(&out));
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
            () => !nominated.contains(&line.name.to_ascii_lowercase()),
        }
    };
    let mut lines: Vec<Line> = read.fields.iter().filter(stays).cloned().collect();
    if read.status < 200 {
        return lines;
    }
    let mut add = |name: &str, value: &[u8]| lines.push(Line { name: name.into(), value: value.to_vec() });
    add_framing(&mut add, framing, read.length.filter(|_| read.status != 204));
    if !to.extra.is_empty() {
        add("RateLimit", b"\"a\";r=1;t=2");
        add("RateLimit-Policy", b"\"a\";q=3;w=4");
    }
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
    let (from, to) = (cuts(body.len(), &mut dice), cuts(body.len(), &mut dice));
    let read = body::decode(came, body, &from);
    let is_over = match read.end {
        End::At(_) => true,
        End::Later => came == Framing::UntilClose,
        End::Refused => false,
    };
    let sent = match (came, goes) {
        (Framing::Chunked, Framing::Chunked) => framed_anew(body, &to),
        (_, Framing::Chunked) => {
            let mut sent = Vec::new();
            chunk(&mut sent, &read.data);
            [sent.as_slice(), if is_over { LAST_CHUNK } else { b"" }].concat()
        }
        _ => read.data.clone(),
    };
    if goes == Framing::Empty {
        assert!(sent.is_empty(), "a body behind {}", shown(head));
    }
    let arrived = body::decode(goes, &sent, &to);
    assert_eq!(arrived.data, read.data, "{} as {goes:?}", shown(body));
    let end = match goes {
        Framing::UntilClose => End::Later,
        _ if is_over => End::At(sent.len()),
        _ => End::Later,
    };
    assert_eq!(arrived.end, end, "{} as {goes:?}", shown(body));
    if goes == Framing::Chunked {
        let reference = body::reference(&sent);
        assert_eq!((reference.data, reference.end), (read.data, end), "{}", shown(&sent));
    }
}
