//! Chunked bodies: sizes, extensions, data and trailers.

use super::row::{Row, Rows, broken, chunked, chunks, saw, served};

pub fn rows() -> Vec<Row> {
    [good(), sizes(), data(), extensions(), trailers(), bad_trailers(), bounds()].concat()
}

fn good() -> Vec<Row> {
    let of = |section, body: &str, data: &str| served(section, chunks(body), [chunked(data)]);
    [
        of("RFC 9112 7.1", "5\r\nhello\r\n0\r\n\r\n", "hello"),
        of("RFC 9112 7.1 (no data)", "0\r\n\r\n", ""),
        of("RFC 9112 7.1 (many chunks)", "1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", "abcdef"),
        of("RFC 9112 7.1 (capital digits)", "A\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        of("RFC 9112 7.1 (small digits)", "a\r\n0123456789\r\n0\r\n\r\n", "0123456789"),
        of("RFC 9112 7.1 (two digits)", "10\r\n0123456789abcdef\r\n0\r\n\r\n", "0123456789abcdef"),
        of("RFC 9112 7.1 (leading zeros)", "0005\r\nhello\r\n0\r\n\r\n", "hello"),
        of("RFC 9112 7.1 (as many digits as we count)", "000000000000005\r\nhello\r\n0\r\n\r\n", "hello"),
        of("RFC 9112 7.1 (last-chunk is 1*\"0\")", "5\r\nhello\r\n000\r\n\r\n", "hello"),
        of("RFC 9112 7.1 (data is bytes)", "9\r\n\0\r\n0\r\n\r\n\u{ff}\r\n0\r\n\r\n", "\0\r\n0\r\n\r\n\u{ff}"),
        of(
            "RFC 9112 7.1 (a request as data)",
            "1c\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n\r\n0\r\n\r\n",
            "GET /x HTTP/1.1\r\nHost: h\r\n\r\n",
        ),
    ]
    .concat()
}

/// With this as the first chunk, and behind a good one.
fn both_places(section: &'static str, status: u16, bodies: &[&str]) -> Vec<Row> {
    let places = bodies.iter().flat_map(|body| [chunks(body), chunks(&format!("3\r\nabc\r\n{body}"))]);
    broken(section, status, places)
}

fn sizes() -> Vec<Row> {
    [
        both_places(
            "RFC 9112 7.1 (no size)",
            400,
            &[
                "\r\n",
                "g\r\nhello\r\n0\r\n\r\n",
                "-5\r\nhello\r\n0\r\n\r\n",
                "+5\r\nhello\r\n0\r\n\r\n",
                "0x5\r\nhello\r\n0\r\n\r\n",
                "5h\r\nhello\r\n0\r\n\r\n",
                "5_\r\nhello\r\n0\r\n\r\n",
                "5.0\r\nhello\r\n0\r\n\r\n",
                "\"5\"\r\nhello\r\n0\r\n\r\n",
                "\u{ff}\r\nhello\r\n0\r\n\r\n",
                "5\0\r\nhello\r\n0\r\n\r\n",
                "\u{0}5\r\nhello\r\n0\r\n\r\n",
                "-0\r\n\r\n",
            ],
        ),
        both_places(
            "RFC 9112 7.1 (white space about a size)",
            400,
            &[
                " 5\r\nhello\r\n0\r\n\r\n",
                "5 \r\nhello\r\n0\r\n\r\n",
                "\t5\r\nhello\r\n0\r\n\r\n",
                "5\t\r\nhello\r\n0\r\n\r\n",
                "5\u{b}\r\nhello\r\n0\r\n\r\n",
                "0 \r\n\r\n",
                "5 5\r\nhello\r\n0\r\n\r\n",
            ],
        ),
        both_places(
            "RFC 9112 7.1 (a size beyond counting)",
            400,
            &[
                "1000000000000000\r\nhello\r\n",
                "0000000000000005\r\nhello\r\n0\r\n\r\n",
                "ffffffffffffffff\r\nhello\r\n",
                "10000000000000005\r\nhello\r\n0\r\n\r\n",
                "100000005FFFFFFFF0000000000000005\r\nhello\r\n0\r\n\r\n",
            ],
        ),
        both_places(
            "RFC 9112 7.1, 2.2 (bare LF or CR behind a size)",
            400,
            &[
                "5\nhello\r\n0\r\n\r\n",
                "5\rhello\r\n0\r\n\r\n",
                "5\r\rhello\r\n0\r\n\r\n",
                "5\r\r\nhello\r\n0\r\n\r\n",
                "5\n\rhello\r\n0\r\n\r\n",
                "0\n\r\n",
                "0\r\n\n",
                "0\n\n",
                "0\r\r\n\r\n",
                "0\r\n\rX",
            ],
        ),
    ]
    .concat()
}

fn data() -> Vec<Row> {
    [
        both_places(
            "RFC 9112 7.1 (no CRLF behind the data)",
            400,
            &[
                "5\r\nhello0\r\n\r\n",
                "5\r\nhelloX\r\n0\r\n\r\n",
                "5\r\nhello\n0\r\n\r\n",
                "5\r\nhello\r0\r\n\r\n",
                "5\r\nhello\rX0\r\n\r\n",
                "5\r\nhello\n\r0\r\n\r\n",
                "5\r\nhello \r\n0\r\n\r\n",
                "5\r\nhello\0\n0\r\n\r\n",
            ],
        ),
        both_places(
            "a chunk that holds more than it says (spill)",
            400,
            &[
                "5\r\nhello!\r\n0\r\n\r\n",
                "5\r\nhelloXX0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
                "5\r\nhello\r\n\r\n0\r\n\r\n",
                "2\r\n\r\n0\r\n\r\n",
            ],
        ),
    ]
    .concat()
}

fn extensions() -> Vec<Row> {
    let of = |extension: &str| {
        let body = format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n");
        served("RFC 9112 7.1.1 (unknown extensions are ignored)", chunks(&body), [chunked("hello")])
    };
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(1100));
    [
        of(";a"),
        of(";a=b"),
        of(";a=b;c=\"d e\";f"),
        of(";a=\"\\\"\""),
        of("; a = b"),
        of(";a=\"\u{e4}\""),
        of(";a=\"5;0\""),
        both_places(
            "TERM.EXT, EXT.TERM (a bare LF in an extension)",
            400,
            &[
                "5;\nhello\r\n0\r\n\r\n",
                "5;a\nhello\r\n0\r\n\r\n",
                "2;\nxx\r\n4c\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
                "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
                "0;a\n\r\n",
            ],
        ),
        both_places(
            "RFC 9112 7.1.1, 2.2 (a bare CR in an extension)",
            400,
            &["5;a\rhello\r\n0\r\n\r\n", "5;a\rb\r\nhello\r\n0\r\n\r\n", "5;\r\r\nhello\r\n0\r\n\r\n"],
        ),
        both_places(
            "RFC 9112 7.1.1 (controls in an extension)",
            400,
            &[
                "5;a\0\r\nhello\r\n0\r\n\r\n",
                "5;a\u{1}b\r\nhello\r\n0\r\n\r\n",
                "5;\u{7f}\r\nhello\r\n0\r\n\r\n",
                "5;\u{b}\r\nhello\r\n0\r\n\r\n",
            ],
        ),
        both_places(
            "RFC 9112 7.1.1 (no semicolon)",
            400,
            &[
                "5a=b\r\nhello\r\n0\r\n\r\n",
                "5,a\r\nhello\r\n0\r\n\r\n",
                "5 a=b\r\nhello\r\n0\r\n\r\n",
                "5 ;a=b\r\nhello\r\n0\r\n\r\n",
            ],
        ),
        both_places(
            "RFC 9112 7.1.1 (a quote that does not end with its line)",
            400,
            &["5;a=\"\r\nhello\r\n0\r\n\r\n", "5;a=\"b\r\nhello\r\n0;\"\r\n\r\n"],
        ),
        broken("RFC 9112 7.1.1 (extensions are bounded)", 400, [chunks(&long)]),
    ]
    .concat()
}

fn trailers() -> Vec<Row> {
    let of = |section, lines: &str, passed: &[&str]| {
        served(section, chunks(&format!("5\r\nhello\r\n0\r\n{lines}\r\n")), [chunked("hello").trailers(passed)])
    };
    let dropped = |line: &str| of("RFC 9110 6.5.1 (may not be a trailer)", &format!("{line}\r\n"), &[]);
    [
        of("RFC 9112 7.1.2", "X-Sum: 1\r\n", &["X-Sum: 1"]),
        of("RFC 9112 7.1.2", "X-A: 1\r\nX-B:\r\nX-A: \u{e4}\r\n", &["X-A: 1", "X-B:", "X-A: \u{e4}"]),
        served(
            "RFC 9110 6.6.2 (Trailer goes with them)",
            super::row::post("Trailer: X-Sum\r\nTransfer-Encoding: chunked", "0\r\nX-Sum: 1\r\n\r\n"),
            [saw("POST / HTTP/1.1", &["Trailer: X-Sum", "Transfer-Encoding: chunked"], "").trailers(&["X-Sum: 1"])],
        ),
        of("trailer smuggling", "Content-Length: 5\r\nX-Sum: 1\r\nTransfer-Encoding: chunked\r\n", &["X-Sum: 1"]),
        of("trailer smuggling (in any case)", "cOntent-lEngth: 5\r\nHOST: evil\r\nconnection: close\r\n", &[]),
        of(
            "who asks is told in the head",
            "X-Forwarded-For: 1.2.3.4\r\nX-A: b\r\nForwarded: for=x\r\nX-Real-IP: 1.2.3.4\r\n",
            &["X-A: b"],
        ),
        dropped("Host: evil"),
        dropped("content_length: 5\r\nTransfer_Encoding: chunked\r\nA_b: c"),
        dropped("Transfer-Encoding: chunked"),
        dropped("Connection: close, X-Sum"),
        dropped("Trailer: X-Sum"),
        dropped("TE: trailers\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nUpgrade: h2c"),
        dropped("Expect: 100-continue\r\nMax-Forwards: 0\r\nRange: bytes=0-1\r\nIf-Match: \"x\"\r\nIf-None-Match: *"),
        dropped("Authorization: Basic YTpi\r\nCookie: a=b\r\nProxy-Authorization: Basic YTpi"),
        dropped("Content-Encoding: gzip\r\nContent-Type: a/b\r\nContent-Range: bytes 0-1/2\r\nCache-Control: no-store"),
        dropped("X-Forwarded-Host: evil\r\nX-Forwarded-Proto: https\r\nX-Request-Id: evil\r\nVia: 1.1 evil"),
    ]
    .concat()
}

fn bad_trailers() -> Vec<Row> {
    let bodies = [
        "0\r\nX Y: 1\r\n\r\n",
        "0\r\n: 1\r\n\r\n",
        "0\r\nX : 1\r\n\r\n",
        "0\r\n X: 1\r\n\r\n",
        "0\r\nX: 1\r\n folded\r\n\r\n",
        "0\r\nX\r\n\r\n",
        "0\r\nX: 1\n\r\n",
        "0\r\nX: 1\r\n\n",
        "0\r\nX: 1\r\r\n\r\n",
        "0\r\nX: a\rb\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
        "0\r\nX: \u{1}\r\n\r\n",
        "0\r\nX\0: 1\r\n\r\n",
        "0\r\nX\u{e4}: 1\r\n\r\n",
        "0\r\nGET /x HTTP/1.1\r\nHost: h\r\n\r\n",
    ];
    both_places("RFC 9112 7.1.2 (no trailer section)", 400, &bodies)
}

fn bounds() -> Vec<Row> {
    [
        served(
            "RFC 9110 15.5.14 (chunks up to the bound)",
            chunks("f\r\n0123456789abcde\r\n1\r\nf\r\n0\r\n\r\n"),
            [chunked("0123456789abcdef")],
        )
        .tight(),
        broken(
            "RFC 9110 15.5.14 (chunks beyond the bound)",
            413,
            [
                chunks("11\r\n0123456789abcdefg\r\n0\r\n\r\n"),
                chunks("f\r\n0123456789abcde\r\n1\r\nf\r\n1\r\ng\r\n0\r\n\r\n"),
                chunks("ffffffffffffff\r\n0123456789abcdefghij"),
            ],
        )
        .tight()
        .past_the_parsers(),
        broken(
            "RFC 9112 7.1.2 (trailers are bounded)",
            400,
            [chunks(&format!("0\r\n{}\r\n", "X: y\r\n".repeat(1400)))],
        ),
    ]
    .concat()
}
