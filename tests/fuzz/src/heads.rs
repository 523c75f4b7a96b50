//! Request and response heads: what the parser says is what the grammar says, wherever the bytes are cut.

use super::grammar::{self, Line, Verdict};
use super::{dice, shown};
use rateguard::http::field::Field;
use rateguard::http::head::{RequestHead, ResponseHead};
use rateguard::http::{BadResponse, Bounds, Method, Refusal, Span, Version};
use std::fmt::Debug;
use std::sync::LazyLock;

/// Small, so that short inputs reach them.
pub const BOUNDS: Bounds = Bounds { head_max: 512, fields_max: 12, body_max: None };

/// Every kind of method.
pub const METHODS: [Method; 7] =
    [Method::Get, Method::Head, Method::Put, Method::Delete, Method::Options, Method::Trace, Method::Other];

/// What may follow: nothing of it may change what was decided.
const TAILS: [&[u8]; 8] = [
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b":\r\n\r\n",
    b" HTTP/1.1\r\nHost: h\r\n\r\n",
    b".1\r\nHost: h\r\n\r\n",
    b"\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
];

/// A refusal's status.
pub fn status(refusal: Refusal) -> u16 {
    match refusal {
        Refusal::Bad(_) => 400,
        Refusal::BodyTooLarge => 413,
        Refusal::TargetTooLong => 414,
        Refusal::Expectation => 417,
        Refusal::HeadTooLarge => 431,
        Refusal::NotImplemented(_) => 501,
        Refusal::Version => 505,
    }
}

/// Parses a request head, into a head that was used before.
pub fn parse_request(bytes: &[u8], bounds: &Bounds) -> Result<Option<RequestHead>, Refusal> {
    let (head, result) = parse_used(bytes, bounds);
    result.map(|whole| whole.then_some(head))
}

fn parse_used(bytes: &[u8], bounds: &Bounds) -> (RequestHead, Result<bool, Refusal>) {
    const EARLIER: [&[u8]; 2] = [
        b"OPTIONS http://a.example/b HTTP/1.0\r\nHost: c\r\nConnection: keep-alive\r\nContent-Length: 7\r\n\
            Max-Forwards: 3\r\n\r\n",
        b"GET /b HTTP/1.1\r\nHost: c\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\n\
            Expect: 100-continue\r\n\r\n",
    ];
    static USED: LazyLock<[RequestHead; 2]> = LazyLock::new(|| {
        EARLIER.map(|text| {
            let mut head = RequestHead::default();
            assert_eq!(head.parse(text, &BOUNDS), Ok(true));
            head
        })
    });
    let mut head = USED[bytes.len() % 2].clone();
    let result = head.parse(bytes, bounds);
    (head, result)
}

/// Parses a response head, into a head that was used before.
pub fn parse_response(bytes: &[u8], bounds: &Bounds, asked: Method) -> Result<Option<ResponseHead>, BadResponse> {
    const EARLIER: &[u8] = b"HTTP/1.0 206 Part\r\nConnection: keep-alive\r\nContent-Length: 7\r\nX: y\r\n\r\n";
    static USED: LazyLock<ResponseHead> = LazyLock::new(|| {
        let mut head = ResponseHead::default();
        assert_eq!(head.parse(EARLIER, &BOUNDS, Method::Get), Ok(true));
        head
    });
    let mut head = USED.clone();
    head.parse(bytes, bounds, asked).map(|whole| whole.then_some(head))
}

/// The parser of requests refuses exactly what the grammar refuses, for one of its reasons; what it takes it reads as the
/// grammar does; and it says the same whatever has arrived of what follows.
pub fn request_head(bytes: &[u8]) {
    let parse = |bytes: &[u8]| parse_request(bytes, &BOUNDS);
    let seen = parse(bytes);
    let wanted = grammar::request(bytes, &BOUNDS);
    match (&seen, &wanted) {
        (Ok(Some(head)), Verdict::Whole(read)) => same_request(bytes, head, read),
        (Ok(None), Verdict::Unfinished(_)) => {
            assert!(bytes.len() < BOUNDS.head_max, "waits beyond the bound: {}", shown(bytes));
        }
        (Err(refusal), Verdict::Faulty(faults) | Verdict::Unfinished(faults)) => {
            assert!(faults.contains(&status(*refusal)), "{refusal:?} but {faults:?}: {}", shown(bytes));
        }
        _ => panic!("{seen:?} but {wanted:?}: {}", shown(bytes)),
    }
    let same = |a: &Refusal, b: &Refusal| {
        // Too much has come before what else is wrong can be seen.
        status(*a) == status(*b) || [414, 431].contains(&status(*a)) || [414, 431].contains(&status(*b))
    };
    cut_anywhere(bytes, &seen, parse, |head| (head.len, &head.fields), same);
    if seen.is_err() {
        answered_in_kind(bytes);
    }
    if seen.is_err() && matches!(wanted, Verdict::Unfinished(_)) {
        // Refused early: then no ending makes it good.
        for tail in TAILS {
            let longer = [bytes, tail].concat();
            let verdict = grammar::request(&longer, &BOUNDS);
            assert!(!matches!(verdict, Verdict::Whole(_)), "refused before its end: {}", shown(&longer));
        }
    }
}

/// A refusal is answered in the client's version, as far as there is one.
fn answered_in_kind(bytes: &[u8]) {
    let (head, _) = parse_used(bytes, &BOUNDS);
    let line = bytes.strip_prefix(b"\r\n").unwrap_or(bytes).split(|&b| b == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let Some(&[method, target, version]) = words.first_chunk::<3>() else {
        assert_eq!(head.version, Version::Http11, "{}", shown(bytes));
        return;
    };
    let is_old = version.starts_with(b"HTTP/1.0");
    assert!(is_old || head.version == Version::Http11, "{}", shown(bytes));
    let is_line = words.len() == 3 && grammar::is_token(method) && target.iter().all(u8::is_ascii_graphic);
    if is_line && !target.is_empty() && version == b"HTTP/1.0" && bytes.len() > line.len() {
        assert_eq!((head.version, head.kind), (Version::Http10, kind(method)), "{}", shown(bytes));
    }
}

fn same_request(bytes: &[u8], head: &RequestHead, read: &grammar::Request) {
    let told = |what: &str| format!("{what} of {}", shown(bytes));
    assert_eq!(head.len, read.len, "{}", told("length"));
    assert_eq!(head.method.of(bytes), read.method, "{}", told("method"));
    assert_eq!(head.kind, kind(&read.method), "{}", told("kind"));
    assert_eq!(head.target.of(bytes), read.target, "{}", told("target"));
    assert_eq!(head.host.of(bytes), read.host, "{}", told("host"));
    assert_eq!(head.version == Version::Http11, read.minor == 1, "{}", told("version"));
    assert_eq!((head.framing, head.length), (read.framing, read.length), "{}", told("framing"));
    assert_eq!(head.keep_alive, read.keep_alive, "{}", told("persistence"));
    assert_eq!(head.expects_continue, read.expects_continue, "{}", told("expectation"));
    assert_eq!(head.takes_trailers, read.takes_trailers, "{}", told("trailers"));
    assert_eq!(head.upgrades, !read.protocols.is_empty(), "{}", told("upgrade"));
    assert_eq!(head.max_forwards, read.max_forwards, "{}", told("forwards"));
    in_order(bytes, head.len, &[head.method, head.target], &head.fields);
    same_lines(bytes, &head.fields, &read.fields);
    for line in &read.fields {
        let name = String::from_utf8(line.name.clone()).unwrap();
        let first = read.fields.iter().find(|other| other.is(&name)).map(|line| line.value.as_slice());
        assert_eq!(head.field(bytes, &name), first, "{}", told("a field"));
    }
}

fn kind(method: &[u8]) -> Method {
    match method {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        b"POST" => Method::Post,
        b"PUT" => Method::Put,
        b"PATCH" => Method::Patch,
        b"DELETE" => Method::Delete,
        b"OPTIONS" => Method::Options,
        b"TRACE" => Method::Trace,
        _ => Method::Other,
    }
}

/// The same for responses, whatever was asked.
pub fn response_head(bytes: &[u8]) {
    let cut = METHODS[dice(bytes).usize(..METHODS.len())];
    for asked in METHODS {
        let parse = |bytes: &[u8]| parse_response(bytes, &BOUNDS, asked);
        let seen = parse(bytes);
        let wanted = grammar::response(bytes, &BOUNDS, asked);
        match (&seen, &wanted) {
            (Ok(Some(head)), Verdict::Whole(read)) => same_response(bytes, head, read),
            (Ok(None), Verdict::Unfinished(_)) => {
                assert!(bytes.len() < BOUNDS.head_max, "waits beyond the bound: {}", shown(bytes));
            }
            (Err(_), Verdict::Faulty(_) | Verdict::Unfinished(_)) => {}
            _ => panic!("{seen:?} but {wanted:?} ({asked:?}): {}", shown(bytes)),
        }
        if asked != cut {
            continue;
        }
        cut_anywhere(bytes, &seen, parse, |head| (head.len, &head.fields), |_, _| true);
        if seen.is_err() && matches!(wanted, Verdict::Unfinished(_)) {
            for tail in TAILS {
                let longer = [bytes, tail].concat();
                let verdict = grammar::response(&longer, &BOUNDS, asked);
                assert!(!matches!(verdict, Verdict::Whole(_)), "refused before its end: {}", shown(&longer));
            }
        }
    }
}

fn same_response(bytes: &[u8], head: &ResponseHead, read: &grammar::Response) {
    let told = |what: &str| format!("{what} of {}", shown(bytes));
    assert_eq!((head.len, head.status), (read.len, read.status), "{}", told("length and status"));
    assert_eq!(head.reason.of(bytes), read.reason, "{}", told("reason"));
    assert_eq!((head.framing, head.length), (read.framing, read.length), "{}", told("framing"));
    assert_eq!(head.keep_alive, read.keep_alive, "{}", told("persistence"));
    let reason = if head.reason.is_empty() { Span::new(0, 12) } else { head.reason };
    in_order(bytes, head.len, &[reason], &head.fields);
    same_lines(bytes, &head.fields, &read.fields);
}

/// The start line's parts, then line after line without a gap, then the empty line.
fn in_order(bytes: &[u8], len: usize, start_line: &[Span], fields: &[Field]) {
    let mut at = 0;
    for part in start_line {
        assert!(at <= part.start() && part.start() <= part.end(), "{part:?} of {}", shown(bytes));
        at = part.end();
    }
    let first_line_end = bytes[at..].iter().position(|&b| b == b'\n').unwrap() + at + 1;
    at = first_line_end;
    for field in fields {
        let parts = [field.name.start(), field.name.end(), field.value.start(), field.value.end(), field.line.end()];
        assert!(field.line.start() == at && parts[0] == at && parts.is_sorted(), "{field:?} of {}", shown(bytes));
        assert!(field.line.of(bytes).ends_with(b"\r\n"), "{field:?} of {}", shown(bytes));
        at = field.line.end();
    }
    assert_eq!((at + 2, &bytes[at..at + 2]), (len, b"\r\n".as_slice()), "{}", shown(bytes));
}

fn same_lines(bytes: &[u8], fields: &[Field], lines: &[Line]) {
    let of = |field: &Field| Line { name: field.name.of(bytes).to_vec(), value: field.value.of(bytes).to_vec() };
    assert_eq!(fields.iter().map(of).collect::<Vec<_>>(), lines, "fields of {}", shown(bytes));
}

fn same_fields(a: &[Field], b: &[Field]) -> bool {
    let key = |field: &Field| (field.known, field.name, field.value, field.line);
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| key(a) == key(b))
}

/// A whole head asks for more at every shorter length and is the same whatever follows; one that waits has never been
/// refused; one that is refused stays so, for the `same` reason.
fn cut_anywhere<H: Debug, E: Debug>(
    bytes: &[u8],
    seen: &Result<Option<H>, E>,
    parse: impl Fn(&[u8]) -> Result<Option<H>, E>,
    parts: impl Fn(&H) -> (usize, &Vec<Field>),
    same: impl Fn(&E, &E) -> bool,
) {
    let len = |head: &H| parts(head).0;
    let is_same = |a: &H, b: &H| len(a) == len(b) && same_fields(parts(a).1, parts(b).1);
    let mut dice = dice(bytes);
    let mut cuts: Vec<usize> = (0..6).map(|_| dice.usize(..=bytes.len())).collect();
    cuts.push(bytes.len().saturating_sub(1));
    if let Ok(Some(head)) = seen {
        cuts.extend([len(head) - 1, len(head)]);
    }
    for cut in cuts {
        let part = parse(&bytes[..cut]);
        let fits = match (seen, &part) {
            (Ok(Some(head)), Ok(None)) => cut < len(head),
            (Ok(Some(head)), Ok(Some(shorter))) => cut >= len(head) && is_same(head, shorter),
            (Ok(None) | Err(_), Ok(None)) => true,
            (Err(refusal), Err(earlier)) => same(refusal, earlier),
            _ => false,
        };
        assert!(fits, "{part:?} at {cut}, then {seen:?}: {}", shown(bytes));
    }
    let longer = [bytes, TAILS[dice.usize(..TAILS.len())]].concat();
    let more = parse(&longer);
    let fits = match (seen, &more) {
        (Ok(Some(head)), Ok(Some(longer))) => is_same(head, longer),
        (Err(refusal), Err(later)) => same(refusal, later),
        (Ok(None), _) => true,
        _ => false,
    };
    assert!(fits, "{seen:?}, then {more:?}: {}", shown(&longer));
}
