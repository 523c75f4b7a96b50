//! Field lines: their grammar, Host, and the bounds of a head.

use super::row::{Row, Rows, Saw, get, got, post, posted, refused, saw, served};

pub fn rows() -> Vec<Row> {
    [good(), bad_names(), bad_values(), line_ends(), good_hosts(), bad_hosts(), bounds()].concat()
}

/// Field lines that go on as they came.
fn same(section: &'static str, lines: &[&str]) -> Vec<Row> {
    served(section, get(&lines.join("\r\n")), [got(lines)])
}

fn good() -> Vec<Row> {
    [
        same("RFC 9112 5", &["X-Y: z"]),
        same("RFC 9112 5.1 (white space is no part of a value)", &["X-A:a", "X-B:  b  ", "X-C:\tc\t", "X-D: \t "]),
        same("RFC 9110 5.5 (an empty value)", &["X-A:", "X-B: "]),
        same("RFC 9110 5.5 (obs-text)", &["X-A: \u{e4}\u{80}\u{ff}", "X-B: \u{e2}\u{84}\u{aa}"]),
        same("RFC 9110 5.5 (tabs and colons inside)", &["X-A: a\tb", "X-B: a:b: c", "X-C: ::"]),
        same("RFC 9110 5.6.2 (all of tchar)", &["!#$%&'*+-.^_`|~09aZ: x"]),
        same("RFC 9110 5.3 (lines of one name keep their order)", &["X-A: 1", "X-B: 2", "x-a: 3", "X-A: 1"]),
        same("RFC 9110 5.1 (one letter, one digit, one sign)", &["A: 1", "7: 2", "_: 3"]),
        same("RFC 9110 5.5 (bytes that mean nothing here)", &["X: ()<>@,;\\\"/[]?={}"]),
        same("RFC 9110 11.6.2, RFC 6265 5.4 (for the backend)", &["Authorization: Basic YTpi", "Cookie: a=b; c=d"]),
        same("RFC 9110 8.4 (a coding of the content is the backend's)", &["Accept-Encoding: gzip", "Accept: */*"]),
        served("RFC 9110 5.1 (names have no case)", "GET / HTTP/1.1\r\nhOST: h\r\n\r\n", [got(&[])]),
        same("RFC 9110 14.2 (ranges are the backend's)", &["Range: bytes=0-1,5-", "If-Range: \"x\""]),
        same(
            "CVE-2021-40346 (a name longer than a byte can count)",
            &[&format!("Content-Length0{}: 5", "a".repeat(255))],
        ),
        same("Sec-WebSocket-Key1 (no body follows)", &["Sec-WebSocket-Key1: 12345678"]),
    ]
    .concat()
}

fn bad_names() -> Vec<Row> {
    [
        refused(
            "RFC 9112 5.1 (white space before the colon)",
            400,
            [get("X : a"), get("X\t: a"), get("X \t : a"), post("Content-Length : 5", "hello"), get("Host : h")],
        ),
        refused(
            "RFC 9110 5.1, 5.6.2 (no token)",
            400,
            [
                get(": a"),
                get(" : a"),
                get(":"),
                get("X Y: a"),
                get("X(a): b"),
                get("X@Y: a"),
                get("\"X\": a"),
                get("X[]: a"),
                get("X/Y: a"),
                get("X\\Y: a"),
                get("{X}: a"),
                get("X\u{80}: a"),
                get("\u{e9}: a"),
                get("X\u{ff}Y: a"),
                get("X\u{7f}: a"),
                get("X\u{b}: a"),
                get("X\u{1}Y: a"),
            ],
        ),
        refused("a null before or in a name", 400, [get("X\0: a"), get("\0X: a"), get("X\0Y: a"), get("\0: a")]),
        refused("RFC 9112 5 (no colon)", 400, [get("X"), get("X a"), get("GET /x HTTP/1.1"), get("=")]),
        refused(
            "RFC 9112 2.2 (white space before the first field)",
            400,
            [
                "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
                "GET / HTTP/1.1\r\n\tX: a\r\nHost: h\r\n\r\n",
                "GET / HTTP/1.1\r\n \r\nHost: h\r\n\r\n",
            ],
        ),
    ]
    .concat()
}

fn bad_values() -> Vec<Row> {
    [
        refused(
            "RFC 9112 5.2 (obs-fold)",
            400,
            [
                get("X: a\r\n b"),
                get("X: a\r\n\tb"),
                get("X:\r\n a"),
                get("X: a\r\n "),
                get("X: a\r\n b\r\n c"),
                get("X: a\r\n Transfer-Encoding: chunked"),
            ],
        ),
        refused("RFC 9110 5.5 (null)", 400, [get("X: \0"), get("X: a\0b"), get("X: a\0"), get("X:\0a")]),
        refused(
            "RFC 9110 5.5 (controls)",
            400,
            [
                get("X: a\u{1}b"),
                get("X: \u{8}"),
                get("X: a\u{b}b"),
                get("X: a\u{c}b"),
                get("X: \u{1b}[31m"),
                get("X: \u{1f}"),
                get("X: \u{7f}"),
            ],
        ),
    ]
    .concat()
}

fn line_ends() -> Vec<Row> {
    [
        refused(
            "RFC 9112 2.2 (bare LF)",
            400,
            [
                "GET / HTTP/1.1\nHost: h\n\n",
                "GET / HTTP/1.1\nHost: h\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: h\n\r\n",
                "GET / HTTP/1.1\r\nHost: h\r\n\n",
                "GET / HTTP/1.1\r\nHost: h\nX: a\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: h\r\nX: a\n\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
                "GET / HTTP/1.1\r\nX:\nHost: h\r\n\r\n",
            ],
        ),
        refused(
            "RFC 9112 2.2 (bare CR)",
            400,
            [
                get("X: a\rb"),
                get("X: a\rY: b"),
                get("X: \ra"),
                get("X: a\r"),
                get("X:\r"),
                get("\rX: a"),
                get("X\r: a"),
                "GET / HTTP/1.1\rHost: h\r\r".to_string() + "\r\n\r\n",
                "GET / HTTP/1.1\r\r\nHost: h\r\n\r\n".to_string(),
                "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n".to_string(),
                "GET / HTTP/1.1\r\nHost: h\r\n\r\r\n".to_string(),
            ],
        ),
    ]
    .concat()
}

fn good_hosts() -> Vec<Row> {
    let host = |host: &'static str| {
        served("RFC 9112 3.2, RFC 3986 3.2.2", format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), [got(&[]).host(host)])
    };
    [
        host("example.com"),
        host("EXAMPLE.com."),
        host("h:81"),
        host("h:"),
        host("127.0.0.1:81"),
        host("[::1]"),
        host("[2001:db8::1]:81"),
        host("a_b-c~d"),
        served("RFC 9110 7.2 (an empty Host)", "GET / HTTP/1.1\r\nHost:\r\n\r\n", [got(&["Host:"]).host("")]),
        served("RFC 9112 5.1", "GET / HTTP/1.1\r\nHost:\t h \t\r\n\r\n", [got(&[])]),
        served("RFC 9110 7.2 (wherever it stands)", "GET / HTTP/1.1\r\nX: a\r\nHost: h\r\n\r\n", [got(&["X: a"])]),
    ]
    .concat()
}

fn bad_hosts() -> Vec<Row> {
    let host = |host: &&str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    [
        refused(
            "RFC 9112 3.2 (no Host)",
            400,
            ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nXost: h\r\n\r\n", "GET / HTTP/1.1\r\nX-Host: h\r\n\r\n"],
        ),
        refused(
            "RFC 9112 3.2 (more than one Host)",
            400,
            [get("Host: h"), get("Host: x"), get("host: h"), get("Host:"), get("X: y\r\nHOST: x")],
        ),
        refused(
            "a Host hidden from one of two (HTTP/1.1 must die)",
            400,
            [
                "GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n",
                "GET / HTTP/1.1\r\nHost : a\r\nHost: b\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: a\r\n Host: b\r\n\r\n",
                "GET / HTTP/1.1\r\nX: x\nHost: a\r\nHost: b\r\n\r\n",
                "GET / HTTP/1.1\r\n\0Host: a\r\nHost: b\r\n\r\n",
            ],
        ),
        refused(
            "RFC 9112 3.2, RFC 3986 3.2.2 (no host)",
            400,
            [
                "a b",
                "a, b",
                "a/b",
                "a/",
                "/",
                "http://a",
                "u@a",
                "u:p@a",
                "a:x",
                "a:1:2",
                "a:-1",
                ":",
                ":80",
                "[::1",
                "::1",
                "[]",
                "[g]",
                "[::1]x",
                "[::1]:x",
                "a?b",
                "a#b",
                "a\\b",
                "\"a\"",
                "<a>",
                "\u{e4}",
                "\u{c3}\u{a4}.de",
                "a\0",
                "a\u{1}",
                "a\tb",
                "a^b",
                "a|b",
                "{a}",
                "%61",
                "a%2eb",
                "a%",
            ]
            .iter()
            .map(host),
        ),
    ]
    .concat()
}

fn bounds() -> Vec<Row> {
    let x = |count: usize| "x".repeat(count);
    let fixed = get("X: ").len();
    let many = |count: usize| get(&(0..count).map(|n| format!("X-{n}: y")).collect::<Vec<_>>().join("\r\n"));
    let of = |length: usize| get(&format!("X: {}", x(length - fixed)));
    let huge = "Content-Length: 18446744073709551615";
    [
        served("RFC 9110 15.5.14 (a body of the bound)", post("Content-Length: 16", &x(16)), [posted(&x(16))]).tight(),
        refused(
            "RFC 9110 15.5.14",
            413,
            [
                post("Content-Length: 17", &x(17)),
                post("Content-Length: 100", ""),
                post(huge, ""),
                post("Expect: 100-continue\r\nContent-Length: 17", ""),
            ],
        )
        .tight()
        .past_the_parsers(),
        served("RFC 6585 5 (a head of the bound)", of(1024), [got(&[&format!("X: {}", x(1024 - fixed))])]).tight(),
        served("RFC 6585 5 (fields of the bound)", many(7), [seven()]).tight(),
        refused(
            "RFC 6585 5",
            431,
            [
                of(1025),
                of(1500),
                many(8),
                many(20),
                get(&format!("{}: a", x(1100))),
                get(&"X-Y: zzzzzzzzzz\r\n".repeat(90)),
                format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", x(1100)),
            ],
        )
        .tight(),
        refused(
            "RFC 9110 15.5.15, RFC 9112 3",
            414,
            [
                format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", x(1100)),
                format!("GET /?{} HTTP/1.1\r\nHost: h\r\n\r\n", x(2000)),
                format!("GET http://h/{} HTTP/1.1\r\nHost: h\r\n\r\n", x(1100)),
            ],
        )
        .tight(),
    ]
    .concat()
}

fn seven() -> Saw {
    let lines: Vec<String> = (0..7).map(|number| format!("X-{number}: y")).collect();
    Saw { fields: lines, ..saw("GET / HTTP/1.1", &[], "") }
}
