//! Heads that are taken, and everything ambiguous that is not.

use super::*;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { head_max: 1024, fields_max: 16, body_max: None };

fn parse(text: &[u8]) -> Result<Option<RequestHead>, Refusal> {
    let mut head = RequestHead::default();
    head.parse(text, &BOUNDS).map(|whole| whole.then_some(head))
}

fn whole(text: &str) -> RequestHead {
    parse(text.as_bytes()).unwrap_or_else(|refusal| panic!("{text:?}: {refusal}")).expect("a whole head")
}

fn refused(text: &str) -> Refusal {
    match parse(text.as_bytes()) {
        Err(refusal) => refusal,
        Ok(head) => panic!("{text:?} was taken: {head:?}"),
    }
}

fn response(text: &str, asked: Method) -> Result<Option<ResponseHead>, BadResponse> {
    let mut head = ResponseHead::default();
    head.parse(text.as_bytes(), &BOUNDS, asked).map(|whole| whole.then_some(head))
}

const PLAIN: &str =
    "POST /a/b?c=d HTTP/1.1\r\nHost: Example.com:80\r\nContent-Length: 12\r\nX-Empty:\r\nX-Y:  z \r\n\r\n";

#[test]
fn a_head_is_read_whole() {
    let head = whole(PLAIN);
    let buffer = PLAIN.as_bytes();
    assert_eq!(head.method.of(buffer), b"POST");
    assert_eq!(head.target.of(buffer), b"/a/b?c=d");
    assert_eq!(head.host.of(buffer), b"Example.com:80");
    assert_eq!(head.framing, Framing::Length(12));
    assert_eq!(head.len, PLAIN.len());
    assert!(head.keep_alive && !head.expects_continue);
    assert_eq!(head.field(buffer, "x-y"), Some(b"z".as_slice()));
    assert_eq!(head.field(buffer, "x-empty"), Some(b"".as_slice()));
    assert_eq!(head.fields[3].line.of(buffer), b"X-Y:  z \r\n");
}

#[test]
fn every_prefix_asks_for_more_and_every_suffix_is_left_alone() {
    for end in 0..PLAIN.len() {
        assert!(parse(&PLAIN.as_bytes()[..end]).unwrap().is_none(), "{end}");
    }
    assert_eq!(whole(&format!("{PLAIN}GET / HTTP/1.1\r\n")).len, PLAIN.len());
}

#[test]
fn targets_and_hosts() {
    for (line, host, target, wanted_host) in [
        ("GET / HTTP/1.1", "Host: h\r\n", "/", "h"),
        ("GET http://a.example/b?c HTTP/1.1", "Host: h\r\n", "/b?c", "a.example"),
        ("GET HTTPS://a.example:8443 HTTP/1.1", "Host: h\r\n", "", "a.example:8443"),
        ("GET http://a.example?q HTTP/1.1", "Host: h\r\n", "?q", "a.example"),
        ("OPTIONS * HTTP/1.1", "Host: h\r\n", "*", "h"),
        ("GET / HTTP/1.0", "", "/", ""),
        ("GET / HTTP/1.1", "Host: [::1]:80\r\n", "/", "[::1]:80"),
        ("GET / HTTP/1.1", "Host:\r\n", "/", ""),
    ] {
        let text = format!("{line}\r\n{host}\r\n");
        let head = whole(&text);
        assert_eq!(head.target.of(text.as_bytes()), target.as_bytes(), "{line}");
        assert_eq!(head.host.of(text.as_bytes()), wanted_host.as_bytes(), "{line}");
    }
    for line in [
        "GET * HTTP/1.1",
        "GET a HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET http://u@a/ HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a%00 HTTP/1.1",
        "GET /?%00 HTTP/1.1",
        "GET /\u{e4} HTTP/1.1",
        "GET http://a:b/ HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        "GET / a HTTP/1.1",
        "GET /\tHTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
    ] {
        assert!(matches!(refused(&format!("{line}\r\nHost: h\r\n\r\n")), Refusal::Bad(_)), "{line}");
    }
    assert!(matches!(refused("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal::NotImplemented(_)));
}

#[test]
fn what_is_ambiguous_is_refused() {
    for fields in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: u@a\r\n",
        "Host: a,b:1\r\n\r\nHost: b:x\r\n",
        "Host: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n",
        "Host: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        "Host: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Host: h\r\nContent-Length: +1\r\n",
        "Host: h\r\nContent-Length: -1\r\n",
        "Host: h\r\nContent-Length: 1, 1\r\n",
        "Host: h\r\nContent-Length: 0x1\r\n",
        "Host: h\r\nContent-Length: 1 1\r\n",
        "Host: h\r\nContent-Length:\r\n",
        "Host: h\r\nContent-Length: 99999999999999999999\r\n",
        "Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Host: h\r\nTransfer-Encoding: chunked, chunked\r\n",
        "Host: h\r\nTransfer-Encoding: \"chunked\"\r\n",
        "Host: h\r\nTransfer-Encoding:\r\n",
        "Host: h\r\nTransfer-Encoding: chunked;q=1\r\n",
        "Host: h\r\n folded\r\n",
        "Host: h\r\nA : b\r\n",
        "Host: h\r\n: b\r\n",
        "Host: h\r\nA: b\0\r\n",
        "Host: h\nA: b\r\n",
        "Host: h\r\nA: b\rc\r\n",
        "Host: h\r\nA: b\x01c\r\n",
        "Host: h\r\nA\r\n",
    ] {
        let text = format!("GET / HTTP/1.1\r\n{fields}\r\n");
        let fine = fields.contains("b:x");
        if !fine {
            assert!(matches!(refused(&text), Refusal::Bad(_)), "{fields:?}");
        }
    }
    assert!(matches!(refused("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Refusal::Bad(_)));
    assert!(matches!(refused("GET / HTTP/1.1\nHost: h\n\n"), Refusal::Bad(_)));
    assert!(matches!(refused("GET / HTTP/1.1\r\nHost: h\r\n\n"), Refusal::Bad(_)));
    assert!(matches!(refused("TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n"), Refusal::Bad(_)));
}

#[test]
fn refusals_have_their_status() {
    let gzip = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n";
    assert!(matches!(refused(gzip), Refusal::NotImplemented(_)));
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n"), Refusal::Expectation);
    assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Refusal::Version);
    assert_eq!(refused("GET / HTTP/3.0\r\n\r\n"), Refusal::Version);
    assert!(matches!(refused("GET / HTTQ/1.1\r\n\r\n"), Refusal::Bad(_)));
    assert_eq!(refused(&format!("GET /{}", "a".repeat(BOUNDS.head_max))), Refusal::TargetTooLong);
    let long = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}", "a".repeat(BOUNDS.head_max));
    assert_eq!(refused(&long), Refusal::HeadTooLarge);
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(BOUNDS.fields_max));
    assert_eq!(refused(&many), Refusal::HeadTooLarge);
}

#[test]
fn transfer_codings_that_are_not_known_are_told_from_what_is_none() {
    let refused = |value: &str| refused(&format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: {value}\r\n\r\n"));
    for value in ["gzip", "identity", "gzip, chunked", "gzip;q=1 ,\tChunked", "a,b,chunked"] {
        assert!(matches!(refused(value), Refusal::NotImplemented(_)), "{value}");
    }
    for value in
        ["chunked, chunked", "chunked, gzip", "chunked;a=b", ", chunked", "chunked,", "gzip,,chunked", "g z", ";a"]
    {
        assert!(matches!(refused(value), Refusal::Bad(_)), "{value}");
    }
}

#[test]
fn versions_that_are_not_served_are_told_from_what_is_none() {
    for text in
        ["GET /\r\n", "GET /\n", "\r\nGET /\r\n", "GET / HTTP/1.2\r\n", "GET / HTTP/0.9\r\n", "GET / HTTP/2.0\r\n"]
    {
        assert_eq!(refused(text), Refusal::Version, "{text:?}");
        let head = format!("{text}Host: h\r\n\r\n");
        assert_eq!(refused(&head), Refusal::Version, "{head:?}");
        for end in 0..text.len() - 2 {
            assert!(parse(&text.as_bytes()[..end]).unwrap().is_none(), "{text:?} to {end}");
        }
    }
    for text in
        ["GET / HTTP/1.10\r\n", "GET / HTTP/1.23\r\n", "GET / http/1.1\r\n", "GET / HTTP/11\r\n", "GET /\rX", "GET\r\n"]
    {
        assert!(matches!(refused(text), Refusal::Bad(_)), "{text:?}");
    }
}

#[test]
fn a_request_line_at_the_bound_is_refused_for_the_same_reason_wherever_it_is_cut() {
    let target = "a".repeat(BOUNDS.head_max - "GET /".len() - 1);
    for text in [format!("GET /{target}\r\n"), format!("GET /{} HTTP/2.0x\r\n", &target[10..])] {
        for end in BOUNDS.head_max..=text.len() {
            assert_eq!(parse(&text.as_bytes()[..end]).unwrap_err(), Refusal::TargetTooLong, "{end} of {}", text.len());
        }
    }
}

#[test]
fn a_refused_head_tells_version_and_method_as_far_as_they_are_known() {
    let mut head = RequestHead::default();
    assert!(head.parse(b"HEAD / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", &BOUNDS).is_err());
    assert_eq!((head.version, head.kind), (Version::Http10, Method::Head));
    assert!(head.parse(b"\0", &BOUNDS).is_err());
    assert_eq!((head.version, head.kind), (Version::Http11, Method::Get));
}

#[test]
fn forwards_are_counted_for_two_methods_only() {
    let left = |method: &str, fields: &str| {
        let text = format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        parse(text.as_bytes()).map(|head| head.unwrap().max_forwards)
    };
    assert_eq!(left("TRACE", "Max-Forwards: 0\r\n"), Ok(Some(0)));
    assert_eq!(left("OPTIONS", "Max-Forwards: 99999999999999999999\r\n"), Ok(Some(u64::MAX)));
    assert_eq!(left("OPTIONS", ""), Ok(None));
    assert_eq!(left("GET", "Max-Forwards: x\r\n"), Ok(None));
    for bad in
        ["Max-Forwards: x\r\n", "Max-Forwards:\r\n", "Max-Forwards: -1\r\n", "Max-Forwards: 1\r\nMax-Forwards: 1\r\n"]
    {
        assert!(left("TRACE", bad).is_err(), "{bad}");
    }
}

#[test]
fn one_empty_line_before_a_request_is_tolerated() {
    let text = "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(whole(text).len, text.len());
    assert!(parse(b"\r").unwrap().is_none() && parse(b"\r\n").unwrap().is_none());
    assert!(matches!(refused(&format!("\r\n{text}")), Refusal::Bad(_)));
    assert!(matches!(refused("\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"), Refusal::Bad(_)));
}

#[test]
fn persistence_and_expectations() {
    for (version, fields, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = whole(&format!("GET / HTTP/{version}\r\nHost: h\r\n{fields}\r\n"));
        assert_eq!(head.keep_alive, keep_alive, "{version} {fields}");
    }
    let expecting = |version| whole(&format!("PUT / HTTP/{version}\r\nHost: h\r\nExpect: 100-Continue\r\n\r\n"));
    assert!(expecting("1.1").expects_continue && !expecting("1.0").expects_continue);
}

#[test]
fn responses_end_where_the_specification_says() {
    let get = Method::Get;
    for (text, asked, framing, keep_alive) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", get, Framing::Length(3), true),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", get, Framing::Empty, true),
        ("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", get, Framing::Chunked, true),
        ("HTTP/1.1 200 OK\r\n\r\n", get, Framing::UntilClose, false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", get, Framing::Length(3), false),
        ("HTTP/1.1 204 No\r\n\r\n", get, Framing::Empty, true),
        ("HTTP/1.1 304 No\r\nContent-Length: 3\r\n\r\n", get, Framing::Empty, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Head, Framing::Empty, true),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n", get, Framing::Length(3), false),
    ] {
        let head = response(text, asked).unwrap().expect("whole");
        assert_eq!((head.framing, head.keep_alive, head.len), (framing, keep_alive, text.len()), "{text:?}");
        for end in 0..text.len() {
            assert!(response(&text[..end], asked).unwrap().is_none(), "{text:?} to {end}");
        }
    }
}

#[test]
fn responses_that_nobody_may_guess_at_are_bad() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 99 OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "hello\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 3\n\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n fold\r\n\r\n",
    ] {
        assert!(response(text, Method::Get).is_err(), "{text:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(BOUNDS.head_max));
    assert!(response(&long, Method::Get).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let _ = ResponseHead::default().parse(&bytes, &BOUNDS, Method::Get);
    }

    #[test]
    fn nearly_good_heads_do_not_make_it_panic(cut in 0usize..80, byte: u8) {
        let mut bytes = PLAIN.as_bytes().to_vec();
        let at = cut % bytes.len();
        bytes[at] = byte;
        let _ = parse(&bytes);
    }
}
