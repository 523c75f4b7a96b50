//! Request lines: methods, targets, versions, and what stands before them.

use super::recorder::OWN_HOST;
use super::row::{Row, Rows, Saw, got, refused, replies, saw, served};

pub fn rows() -> Vec<Row> {
    [methods(), spaces(), good_targets(), absolute_targets(), bad_targets(), versions(), old_clients(), empty_lines()]
        .concat()
}

/// A request line with the one field that it needs.
fn line(line: &str) -> String {
    format!("{line}\r\nHost: h\r\n\r\n")
}

fn lines(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| line(text)).collect()
}

/// Passed on as it came.
fn same(section: &'static str, text: &'static str) -> Vec<Row> {
    served(section, line(text), [saw(text, &[], "")])
}

fn methods() -> Vec<Row> {
    [
        same("RFC 9110 9.3.1", "GET / HTTP/1.1"),
        same("RFC 9110 9.3.2", "HEAD / HTTP/1.1"),
        same("RFC 9110 9.3.3", "POST / HTTP/1.1"),
        same("RFC 9110 9.3.5", "DELETE /a HTTP/1.1"),
        same("RFC 9110 9.3.8", "TRACE / HTTP/1.1"),
        same("RFC 5789", "PATCH /a HTTP/1.1"),
        same("RFC 9110 9.1 (methods have case)", "get / HTTP/1.1"),
        same("RFC 9110 9.1 (any token)", "M-SEARCH / HTTP/1.1"),
        same("RFC 9110 5.6.2 (all of tchar)", "A!#$%&'*+-.^_`|~9 / HTTP/1.1"),
        same("RFC 9110 9.1 (one letter)", "X / HTTP/1.1"),
        refused(
            "RFC 9110 9.3.6",
            501,
            ["CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", "CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n"],
        ),
        refused(
            "RFC 9112 3.2.3 (authority-form is for CONNECT)",
            400,
            lines(&["connect h:443 HTTP/1.1", "GET h:443 HTTP/1.1"]),
        ),
        refused(
            "RFC 9112 3.1 (no token)",
            400,
            lines(&[
                "G\0T / HTTP/1.1",
                "G(T / HTTP/1.1",
                "GET: / HTTP/1.1",
                "\"GET\" / HTTP/1.1",
                "G\u{c9}T / HTTP/1.1",
                "GE\u{7f}T / HTTP/1.1",
                "@ / HTTP/1.1",
                "G\rT / HTTP/1.1",
            ]),
        ),
        refused("RFC 9112 3 (a TLS ClientHello)", 400, ["\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\r\n\r\n"]),
        refused(
            "RFC 9112 3 (another protocol)",
            400,
            ["EHLO h\r\n\r\n", "\u{ff}\u{fe}G\0E\0T\0\r\n\r\n", "{\"a\": 1}\r\n\r\n", "SSH-2.0-x\r\n\r\n"],
        ),
    ]
    .concat()
}

fn spaces() -> Vec<Row> {
    refused(
        "RFC 9112 3 (single spaces only)",
        400,
        lines(&[
            " GET / HTTP/1.1",
            "\tGET / HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET\t/ HTTP/1.1",
            "GET /\tHTTP/1.1",
            "GET\u{b}/ HTTP/1.1",
            "GET /\u{c}HTTP/1.1",
            "GET\r/ HTTP/1.1",
            "GET /\rHTTP/1.1",
            "GET\u{a0}/ HTTP/1.1",
            "GET / HTTP/1.1 ",
            "GET / HTTP/1.1\t",
            "GET / HTTP/1.1 GET /x HTTP/1.1",
            "GET",
            "/",
        ]),
    )
}

fn good_targets() -> Vec<Row> {
    [
        same("RFC 9112 3.2.1", "GET /a/b?c=d&e HTTP/1.1"),
        same("RFC 9112 3.2.1 (nothing is normalised)", "GET /a//b/./../c;p=1/%2f?x=1&&y=%20 HTTP/1.1"),
        same("RFC 9112 3.2.1 (nothing is normalised)", "GET /a/%2e%2E/.%2e/%2f?x=.. HTTP/1.1"),
        same("RFC 3986 2.2, 3.3 (encoded slashes and parameters)", "GET /a%2Fb%5Cc;d/;e//%2f HTTP/1.1"),
        same("RFC 3986 5.2.4 (what all leave out alike)", "GET /../a/b%2fc/./d;x/../%2e/e HTTP/1.1"),
        same("RFC 3986 3.3 (no dot segments)", "GET /...%2f/a..;../..a%5c%252e%252e HTTP/1.1"),
        same("RFC 3986 3.4 (no path)", "GET /?\\%2f..%2f/..;x HTTP/1.1"),
        same("RFC 9112 3.2.1 (two slashes are a path)", "GET //other/a HTTP/1.1"),
        same("RFC 3986 2.2 (all reserved)", "GET /:?[]@!$&'()*+,;= HTTP/1.1"),
        same("RFC 3986 2.1 (broken percent signs are the backend's)", "GET /%zz%?% HTTP/1.1"),
        same("RFC 3986 2.1 (encoded line ends stay encoded)", "GET /a?%0d%0aX:%20y HTTP/1.1"),
        same("RFC 3986 3.3 (overlong UTF-8 stays encoded)", "GET /%c0%af..%c0%af HTTP/1.1"),
        same("RFC 3986 3.4 (question marks in a query)", "GET /??a?/b HTTP/1.1"),
        same("RFC 9112 3.2 (what browsers leave as it is)", "GET /?a={\"b\"}|^`<> HTTP/1.1"),
        same("RFC 9112 3.2.4", "OPTIONS * HTTP/1.1"),
        same("RFC 9110 9.3.7", "OPTIONS /a HTTP/1.1"),
        served(
            "RFC 9112 3 (long, but not too long)",
            line(&format!("GET /{} HTTP/1.1", "a".repeat(900))),
            [long_target()],
        )
        .tight(),
    ]
    .concat()
}

fn long_target() -> Saw {
    Saw { line: Box::leak(format!("GET /{} HTTP/1.1", "a".repeat(900)).into_boxed_str()), ..got(&[]) }
}

fn absolute_targets() -> Vec<Row> {
    let at = |text: &str, seen: &'static str, host: &'static str| {
        served("RFC 9112 3.2.2", line(text), [saw(seen, &[], "").host(host)])
    };
    [
        at("GET http://other:81/a?b HTTP/1.1", "GET /a?b HTTP/1.1", "other:81"),
        at("GET HTTP://Other/A HTTP/1.1", "GET /A HTTP/1.1", "Other"),
        at("GET https://other/ HTTP/1.1", "GET / HTTP/1.1", "other"),
        at("GET http://other HTTP/1.1", "GET / HTTP/1.1", "other"),
        at("GET http://other?q HTTP/1.1", "GET /?q HTTP/1.1", "other"),
        at("GET http://[2001:db8::1]:81/ HTTP/1.1", "GET / HTTP/1.1", "[2001:db8::1]:81"),
        at("GET http://other//x HTTP/1.1", "GET //x HTTP/1.1", "other"),
        at("GET http://other/http://inner/ HTTP/1.1", "GET /http://inner/ HTTP/1.1", "other"),
        at("OPTIONS http://other/ HTTP/1.1", "OPTIONS / HTTP/1.1", "other"),
        served(
            "RFC 9112 3.2.4 (no path asks for the server)",
            line("OPTIONS http://other HTTP/1.1"),
            [saw("OPTIONS * HTTP/1.1", &[], "").host("other")],
        ),
        refused(
            "RFC 9112 3.2 (two Hosts beside absolute-form)",
            400,
            ["GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"],
        ),
        refused("RFC 9112 3.2 (no Host beside absolute-form)", 400, ["GET http://a/ HTTP/1.1\r\n\r\n"]),
        refused("RFC 9112 3.2 (a bad Host beside absolute-form)", 400, ["GET http://a/ HTTP/1.1\r\nHost: a/b\r\n\r\n"]),
    ]
    .concat()
}

fn bad_targets() -> Vec<Row> {
    [
        refused(
            "RFC 9112 3.2 (no form of a target)",
            400,
            lines(&[
                "GET * HTTP/1.1",
                "OPTIONS *x HTTP/1.1",
                "OPTIONS ** HTTP/1.1",
                "GET a HTTP/1.1",
                "GET ../a HTTP/1.1",
                "GET ?q HTTP/1.1",
                "GET \\a HTTP/1.1",
                "GET @h/ HTTP/1.1",
                "GET h/a HTTP/1.1",
                "GET ://h/ HTTP/1.1",
            ]),
        ),
        refused(
            "RFC 9112 3.2.2, RFC 3986 3.2 (no absolute-form)",
            400,
            lines(&[
                "GET http:/a HTTP/1.1",
                "GET http:a HTTP/1.1",
                "GET http:// HTTP/1.1",
                "GET http:///a HTTP/1.1",
                "GET http://u@h/ HTTP/1.1",
                "GET http://u:p@h/ HTTP/1.1",
                "GET http://h:x/ HTTP/1.1",
                "GET http://h:-1/ HTTP/1.1",
                "GET http://[::1/ HTTP/1.1",
                "GET http://[]/ HTTP/1.1",
                "GET http://a\\@b/ HTTP/1.1",
                "GET http://%61/ HTTP/1.1",
                "GET http://a%2fb/ HTTP/1.1",
                "GET http://h#f HTTP/1.1",
                "GET ftp://h/ HTTP/1.1",
                "GET file:///a HTTP/1.1",
                "GET ws://h/ HTTP/1.1",
                "GET javascript:1 HTTP/1.1",
            ]),
        ),
        refused(
            "RFC 3986 2 (must be percent-encoded)",
            400,
            lines(&[
                "GET /a b HTTP/1.1",
                "GET /a\0b HTTP/1.1",
                "GET /a\u{1}b HTTP/1.1",
                "GET /a\tb HTTP/1.1",
                "GET /a\u{b}b HTTP/1.1",
                "GET /\u{1b}[2J HTTP/1.1",
                "GET /a\u{7f} HTTP/1.1",
                "GET /\u{e4} HTTP/1.1",
                "GET /\u{c3}\u{a4} HTTP/1.1",
                "GET /?\u{ff} HTTP/1.1",
                "GET /a\rb HTTP/1.1",
                "GET /a#b HTTP/1.1",
                "GET /# HTTP/1.1",
            ]),
        ),
        refused(
            "RFC 3986 2 (a backslash, which some take for a slash)",
            400,
            lines(&[
                "GET /a\\..\\b HTTP/1.1",
                "GET /\\ HTTP/1.1",
                "GET /a\\b?c HTTP/1.1",
                "GET http://h/a\\b HTTP/1.1",
                "OPTIONS /\\* HTTP/1.1",
            ]),
        ),
        refused(
            "RFC 3986 5.2.4 (dot segments that servers read differently)",
            400,
            lines(&[
                "GET /a/..%2fb HTTP/1.1",
                "GET /a%2F../b HTTP/1.1",
                "GET /a%2f%2e%2E%2fb HTTP/1.1",
                "GET /a%5c..%5Cb HTTP/1.1",
                "GET /.%2fa HTTP/1.1",
                "GET /a%5C%2e HTTP/1.1",
                "GET /a/..;x/b HTTP/1.1",
                "GET /a/%2e.;/b HTTP/1.1",
                "GET /.;x HTTP/1.1",
                "GET /a%2fb/../c HTTP/1.1",
                "GET /a%2fb/c/../../d HTTP/1.1",
                "GET /a//../b HTTP/1.1",
                "GET /a/b/../%2e%2e/c HTTP/1.1",
                "GET /a%0a HTTP/1.1",
                "GET /a%0D%0Ab HTTP/1.1",
                "GET /%1f/a HTTP/1.1",
                "GET /a%7F HTTP/1.1",
                "GET /a/b/.%2E/../c HTTP/1.1",
                "GET /a/;x/../b HTTP/1.1",
                "GET http://h/a/..%2fb HTTP/1.1",
                "GET http://h/a/..;x/b?c HTTP/1.1",
            ]),
        ),
        refused(
            "RFC 3986 3.3 (a parameter that ends in one place or another)",
            400,
            lines(&["GET /a;x%2fb HTTP/1.1", "GET /a;%5c HTTP/1.1"]),
        ),
        refused("a string's end in the path (%00)", 400, lines(&["GET /a%00.png HTTP/1.1", "GET /?a=%00 HTTP/1.1"])),
    ]
    .concat()
}

fn versions() -> Vec<Row> {
    let version = |word: &&str| line(&format!("GET / {word}"));
    [
        refused(
            "RFC 9110 2.5, 15.6.6",
            505,
            ["HTTP/1.2", "HTTP/1.9", "HTTP/2.0", "HTTP/3.0", "HTTP/0.9", "HTTP/9.9"].iter().map(version),
        ),
        refused(
            "RFC 9112 2.3 (no version)",
            400,
            [
                "HTTP/1.10",
                "HTTP/11",
                "HTTP/1",
                "HTTP/1.",
                "HTTP/.1",
                "HTTP/2",
                "HTTP/01.1",
                "HTTP/1.01",
                "http/1.1",
                "Http/1.1",
                "HTTQ/1.1",
                "HTTPS/1.1",
                "HTTP/a.b",
                "HTTP/1,1",
                "HTTP/+1.1",
                "HTTP/1.1x",
                "HTTP/-1.1",
                "HTTP1.1",
                "HTTP /1.1",
                "HTTP/ 1.1",
                "HTTP/1 .1",
                "XHTTP/1.1",
                "HTTP/1.\u{b9}",
                "HTTP\\1.1",
                "/1.1",
            ]
            .iter()
            .map(version),
        ),
        refused("RFC 9113 3.4 (the preface)", 505, ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]),
        refused("RFC 1945 4.1 (a simple request)", 505, ["GET /path\r\n", "GET /path\n", "GET /\r\n\r\n"]),
    ]
    .concat()
}

fn old_clients() -> Vec<Row> {
    let via = "Via: 1.0 rateguard";
    let old = |text: &str, saw: Saw| served("RFC 9112 9.3, C.2.2 (HTTP/1.0)", text, [saw]).old();
    [
        old("GET / HTTP/1.0\r\nHost: h\r\n\r\n", got(&[via])).closing(),
        old("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", got(&[via])),
        old("GET / HTTP/1.0\r\nHost: h\r\nConnection: Keep-Alive\r\nKeep-Alive: 5\r\n\r\n", got(&[via])),
        old("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n", got(&[via])).closing(),
        old("GET / HTTP/1.0\r\nHost: h\r\nProxy-Connection: keep-alive\r\n\r\n", got(&[via])).closing(),
        old(
            "GET / HTTP/1.0\r\n\r\n",
            Saw { fields: vec![via.into(), format!("Host: {OWN_HOST}")], ..got(&[]).host("") },
        )
        .closing(),
        old("GET http://other/a HTTP/1.0\r\n\r\n", Saw { line: "GET /a HTTP/1.1", ..got(&[via]).host("other") })
            .closing(),
        old(
            "POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi",
            saw("POST / HTTP/1.1", &[via, "Content-Length: 2"], "hi"),
        )
        .closing(),
        old("POST / HTTP/1.0\r\nHost: h\r\n\r\n", saw("POST / HTTP/1.1", &[via], "")).closing(),
        old("HEAD / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", saw("HEAD / HTTP/1.1", &[via], "")),
        refused(
            "RFC 9110 10.1.1 (an expectation in HTTP/1.0)",
            417,
            ["GET / HTTP/1.0\r\nHost: h\r\nExpect: x\r\n\r\n"],
        )
        .old(),
        refused(
            "RFC 9112 6.1 (a coding in HTTP/1.0)",
            400,
            [
                "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
                "POST / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ],
        )
        .old(),
        refused("RFC 9110 15.5.14 (in HTTP/1.0)", 413, ["POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 17\r\n\r\n"])
            .old()
            .tight()
            .past_the_parsers(),
        refused("RFC 9112 3.2 (two Hosts in HTTP/1.0)", 400, ["GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"]).old(),
    ]
    .concat()
}

fn empty_lines() -> Vec<Row> {
    let hi = || saw("POST / HTTP/1.1", &["Content-Length: 2"], "hi");
    let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi";
    [
        served("RFC 9112 2.2 (one empty line before)", format!("\r\n{}", line("GET / HTTP/1.1")), [got(&[])]),
        served("RFC 9112 2.2 (one empty line behind a body)", format!("{post}\r\n"), [hi()]),
        refused(
            "RFC 9112 2.2 (more than one)",
            400,
            [
                format!("\r\n\r\n{}", line("GET / HTTP/1.1")),
                format!("\n{}", line("GET / HTTP/1.1")),
                format!("\r{}", line("GET / HTTP/1.1")),
                format!("\r\r\n{}", line("GET / HTTP/1.1")),
                format!("\r\n\n{}", line("GET / HTTP/1.1")),
                format!("\r\n {}", line("GET / HTTP/1.1")),
                format!("\0{}", line("GET / HTTP/1.1")),
            ],
        ),
        replies(
            "RFC 9112 2.2 (two empty lines behind a body)",
            format!("{post}\r\n\r\n"),
            [super::row::Reply::Of(hi()), super::row::Reply::Refusal(400)],
        ),
    ]
    .concat()
}
