//! Where a body ends: Content-Length, Transfer-Encoding, both, and the ways of hiding either.

use super::row::{Row, Rows, Saw, chunked, get, got, post, posted, refused, saw, served};

pub fn rows() -> Vec<Row> {
    [
        lengths(),
        bad_lengths(),
        repeated_lengths(),
        codings(),
        bad_codings(),
        repeated_codings(),
        unknown_codings(),
        both(),
        hidden(),
        lookalikes(),
        cut_short(),
    ]
    .concat()
}

const FIVE: &str = "5\r\nhello\r\n0\r\n\r\n";

fn lengths() -> Vec<Row> {
    let five = |line: &str| served("RFC 9110 8.6", post(line, "hello"), [posted("hello")]);
    [
        five("Content-Length: 5"),
        five("content-length: 5"),
        five("CONTENT-LENGTH:5"),
        five("Content-Length:\t5\t "),
        five("Content-Length: 05"),
        five("Content-Length: 0000000000000000000000000000000005"),
        served("RFC 9110 8.6 (nothing)", post("Content-Length: 0", ""), [posted("")]),
        served("RFC 9112 6.3 (no length is no body)", post("X: y", ""), [saw("POST / HTTP/1.1", &["X: y"], "")]),
        served(
            "RFC 9110 9.3.1 (a GET may have a body)",
            "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
            [got_with(&["Content-Length: 5"], "hello")],
        ),
        served(
            "RFC 9110 8.6 (a body is bytes)",
            post("Content-Length: 8", "\0\r\n\r\n\u{ff}\u{80}\n"),
            [posted("\0\r\n\r\n\u{ff}\u{80}\n")],
        ),
        served(
            "RFC 9110 9.3.8 (no body in a TRACE)",
            "TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
            [saw("TRACE / HTTP/1.1", &["Content-Length: 0"], "")],
        ),
        refused(
            "RFC 9110 9.3.8",
            400,
            [
                "TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx".to_string(),
                format!("TRACE / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{FIVE}"),
            ],
        ),
    ]
    .concat()
}

fn got_with(fields: &[&str], body: &str) -> Saw {
    saw("GET / HTTP/1.1", fields, body)
}

fn bad_lengths() -> Vec<Row> {
    let length = |value: &&str| post(&format!("Content-Length:{value}"), "hello");
    [
        refused(
            "RFC 9110 8.6, RFC 9112 6.3 (no number)",
            400,
            [
                "",
                " ",
                " +5",
                " -5",
                " -0",
                " 0x5",
                " 5x",
                " 5 5",
                " 5.0",
                " 5,",
                " ,5",
                " \"5\"",
                " '5'",
                " 5e0",
                " 1_0",
                " 5;a",
                " five",
                " \u{b}5",
                " 5\u{c}",
                " \u{a0}5",
                " \u{d9}\u{a5}",
                " 5\0",
                " #5",
                " 5-",
                " %35",
                " NaN",
                " (5)",
                " 5\u{7f}",
            ]
            .iter()
            .map(length),
        ),
        refused(
            "RFC 9110 8.6 (too large to count)",
            400,
            [" 18446744073709551616", " 99999999999999999999999", " 18446744073709551621"].iter().map(length),
        ),
        refused(
            "RFC 9110 8.6, RFC 9112 6.3 (a list)",
            400,
            [" 5, 5", " 5,5", " 5, 6", " 5,\t5", " 0, 5"].iter().map(length),
        ),
    ]
    .concat()
}

fn repeated_lengths() -> Vec<Row> {
    [
        refused(
            "RFC 9112 6.3 (two of them)",
            400,
            [
                post("Content-Length: 5\r\nContent-Length: 5", "hello"),
                post("Content-Length: 5\r\nContent-Length: 6", "hello"),
                post("Content-Length: 5\r\nX: y\r\ncontent-length: 0", "hello"),
                post("Content-Length: 0\r\nContent-Length: 0", ""),
                post("Content-Length: 5\r\nContent-Length:", "hello"),
                post("Content-Length:\r\nContent-Length: 5", "hello"),
            ],
        ),
        refused(
            "RFC 9112 5.2 (a folded length)",
            400,
            [
                post("Content-Length:\r\n 5", "hello"),
                post("Content-Length: 5\r\n 5", "hello"),
                post("Content-Length: 5\r\n\t", "hello"),
            ],
        ),
    ]
    .concat()
}

fn codings() -> Vec<Row> {
    let five = |line: &str| served("RFC 9112 7.1", post(line, FIVE), [chunked("hello")]);
    [
        five("transfer-encoding:chunked"),
        five("TRANSFER-ENCODING: CHUNKED"),
        five("Transfer-Encoding: chunKed"),
        five("Transfer-Encoding:\tchunked \t"),
        served(
            "RFC 9112 6.1 (a GET may have one)",
            format!("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{FIVE}"),
            [got_with(&["Transfer-Encoding: chunked"], "hello")],
        ),
        served(
            "TE.0 (an OPTIONS with a body)",
            format!("OPTIONS / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{FIVE}"),
            [saw("OPTIONS / HTTP/1.1", &["Transfer-Encoding: chunked"], "hello")],
        ),
        served(
            "RFC 9112 6.1 (before Host)",
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: h\r\n\r\n{FIVE}"),
            [chunked("hello")],
        ),
    ]
    .concat()
}

fn bad_codings() -> Vec<Row> {
    let coding = |value: &&str| post(&format!("Transfer-Encoding:{value}"), FIVE);
    [
        refused(
            "RFC 9112 6.1, 7 (chunked twice, or not last)",
            400,
            [
                " chunked, chunked",
                " chunked,chunked",
                " chunked, gzip",
                " chunked, identity",
                " gzip, chunked, chunked",
            ]
            .iter()
            .map(coding),
        ),
        refused(
            "RFC 9110 5.6.1 (empty members)",
            400,
            ["", " ", " ,", " ,chunked", " , chunked", " chunked,", " chunked, ", " gzip,,chunked"].iter().map(coding),
        ),
        refused(
            "RFC 9112 7 (chunked has no parameters)",
            400,
            [" chunked;q=1", " chunked; a=b", " chunked;", " chunked ;", " gzip, chunked;a=b"].iter().map(coding),
        ),
        refused(
            "TE.TE obfuscation (no token)",
            400,
            [
                " \"chunked\"",
                " \u{b}chunked",
                " \u{c}chunked",
                "\u{b}chunked",
                " \0chunked",
                " chunked\0",
                " chunked\u{b}",
                " chun\0ked",
                " chun ked",
                " chunked chunked",
                " chunked\r\n , identity",
                " gzip chunked",
                " [chunked]",
                " (chunked)",
                " chunked/1.1",
                " =chunked",
                " chunked\u{a0}",
                " \u{85}chunked",
                " \u{ff}chunked",
                " chun\u{e2}\u{84}\u{aa}ed",
                " \u{ef}\u{bb}\u{bf}chunked",
                " chun\u{6b}e\u{cc}\u{81}d",
                " chunked\u{7f}",
                " {chunked}",
                " \u{1}chunked",
                " gzip;q=\"a, chunked\"",
            ]
            .iter()
            .map(coding),
        ),
    ]
    .concat()
}

fn repeated_codings() -> Vec<Row> {
    refused(
        "TE.TE (two lines)",
        400,
        [
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", FIVE),
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", FIVE),
            post("Transfer-Encoding: x\r\nTransfer-Encoding: chunked", FIVE),
            post("Transfer-Encoding: chunked\r\nTransfer-encoding: cow", FIVE),
            post("Transfer-Encoding:\r\nTransfer-Encoding: chunked", FIVE),
            post("Transfer-Encoding: gzip\r\nX: y\r\nTransfer-Encoding: chunked", FIVE),
        ],
    )
}

fn unknown_codings() -> Vec<Row> {
    refused(
        "RFC 9112 6.1 (a coding that is not known)",
        501,
        [
            "identity",
            "gzip",
            "deflate",
            "compress",
            "x-gzip",
            "xchunked",
            "chunkedx",
            "chunkedchunked",
            "chunk",
            "chunked-not",
            "x-chunked",
            "'chunked'",
            "0",
            "gzip, chunked",
            "gzip,chunked",
            "identity, chunked",
            "gzip;q=1, chunked",
            "gzip, deflate",
            "br;level=1",
            "identity, gzip, chunked",
        ]
        .iter()
        .map(|value| post(&format!("Transfer-Encoding: {value}"), FIVE)),
    )
}

fn both() -> Vec<Row> {
    let te = "Transfer-Encoding: chunked";
    let length = |bytes: usize| format!("Content-Length: {bytes}");
    let smuggled = "GET /admin HTTP/1.1\r\nHost: h\r\nX: ";
    let cl_te = format!("0\r\n\r\n{smuggled}");
    let te_cl = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    [
        refused(
            "RFC 9112 6.3 (CL.TE)",
            400,
            [
                post(&format!("{}\r\n{te}", length(cl_te.len())), &cl_te),
                post(&format!("{te}\r\n{}", length(cl_te.len())), &cl_te),
                post(&format!("{}\r\n{te}", length(6)), "0\r\n\r\nG"),
                post(&format!("{}\r\nTransfer-Encoding:chunked", length(0)), FIVE),
                post(&format!("{}\r\n{te}\r\n{}", length(6), length(6)), "0\r\n\r\nG"),
            ],
        ),
        refused(
            "RFC 9112 6.3 (TE.CL)",
            400,
            [
                post(&format!("{}\r\n{te}", length(4)), &te_cl),
                post(&format!("{te}\r\nX: y\r\n{}", length(3)), &te_cl),
                post(&format!("{te}\r\nContent-Length: "), FIVE),
                post(&format!("{te}\r\n{}", length(FIVE.len())), FIVE),
            ],
        ),
        refused(
            "RFC 9112 6.3 (a length beside a coding not known)",
            400,
            [
                post("Content-Length: 5\r\nTransfer-Encoding: identity", "hello"),
                post("Content-Length: 5\r\nTransfer-Encoding: xchunked", "hello"),
                post("Content-Length: 5\r\nTransfer-Encoding: gzip, chunked", "hello"),
            ],
        ),
        refused(
            "RFC 9112 6.1, 6.3 (both in HTTP/1.0)",
            400,
            [format!("POST / HTTP/1.0\r\nHost: h\r\n{te}\r\n{}\r\n\r\n{FIVE}", length(5))],
        )
        .old(),
    ]
    .concat()
}

fn hidden() -> Vec<Row> {
    let both = |line: &&str| post(&format!("Content-Length: 6\r\n{line}"), "0\r\n\r\nG");
    [
        refused(
            "TE.TE obfuscation (hidden beside a length)",
            400,
            [
                "Transfer-Encoding : chunked",
                "Transfer-Encoding\t: chunked",
                " Transfer-Encoding: chunked",
                "\tTransfer-Encoding: chunked",
                "Transfer-Encoding:\u{b}chunked",
                "Transfer-Encoding:\r\n chunked",
                "Transfer-Encoding\r\n : chunked",
                "X: X\nTransfer-Encoding: chunked",
                "X: X\rTransfer-Encoding: chunked",
                "X: X\r\n Transfer-Encoding: chunked",
                "Transfer-Encoding\0: chunked",
                "\0Transfer-Encoding: chunked",
                "Transfer\0-Encoding: chunked",
                "Transfer-Encoding: chunked\r\n\tX: y",
                "\u{b}Transfer-Encoding: chunked",
                "Transfer-Encoding\u{b}: chunked",
                "Transfer-Encoding\u{a0}: chunked",
                ":Transfer-Encoding: chunked",
                "Transfer Encoding: chunked",
                "Transfer-Encoding; chunked",
                "Transfer-Encoding=chunked",
                "Transfer-Encod\u{e4}ng: chunked",
                "\"Transfer-Encoding\": chunked",
            ]
            .iter()
            .map(both),
        ),
        refused(
            "a length hidden from one of two (0.CL)",
            400,
            [
                post("Content-Length\0: 5", "hello"),
                post("\0Content-Length: 5", "hello"),
                post("X: y\nContent-Length: 5", "hello"),
                post("X: y\rContent-Length: 5", "hello"),
                post(" Content-Length: 5", "hello"),
                post("X: y\r\n Content-Length: 5", "hello"),
                post("Content-Length\u{b}: 5", "hello"),
                post("Content-Length\u{a0}: 5", "hello"),
                post("Content\u{ad}Length: 5", "hello"),
            ],
        ),
    ]
    .concat()
}

fn lookalikes() -> Vec<Row> {
    let gone = |line: &str, body: &str| {
        let text = post(&format!("{line}\r\nContent-Length: 5"), body);
        served("RFC 3875 4.1.18 (what CGI takes for the real one)", text, [posted(body)])
    };
    let ordinary = |section, line: &'static str, body| {
        let text = post(&format!("{line}\r\nContent-Length: 5"), body);
        served(section, text, [saw("POST / HTTP/1.1", &[line, "Content-Length: 5"], body)])
    };
    [
        gone("Content_Length: 3", "hello"),
        gone("CONTENT_length: 0\r\ncontent_length: 3", "hello"),
        gone("Transfer_Encoding: chunked", "0\r\n\r\n"),
        ordinary("another field (a sign of its own)", "Content_Size: 3", "hello"),
        ordinary("another field (a sign more)", "Transfer-Encoding-: chunked", "0\r\n\r\n"),
        ordinary("another field (X-Transfer-Encoding)", "X-Transfer-Encoding: chunked", "0\r\n\r\n"),
        ordinary("another field (Content-Encoding)", "Content-Encoding: chunked", "0\r\n\r\n"),
        ordinary("another field (in a value)", "X: Transfer-Encoding: chunked", "0\r\n\r\n"),
        served(
            "CL.0 (a body that nobody expects)",
            clothed(),
            [Saw { line: "GET /static HTTP/1.1", ..with_request() }],
        ),
    ]
    .concat()
}

const INNER: &str = "GET /evil HTTP/1.1\r\nHost: h\r\n\r\n";

fn clothed() -> String {
    format!("GET /static HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{INNER}", INNER.len())
}

fn with_request() -> Saw {
    got_with(&[&format!("Content-Length: {}", INNER.len())], INNER)
}

fn cut_short() -> Vec<Row> {
    let silence = |texts: &[&str]| -> Vec<Row> {
        texts.iter().flat_map(|text| served("RFC 9112 8 (an unfinished head)", text, [])).collect()
    };
    let cut = |texts: &[String]| super::row::broken("RFC 9112 8 (an unfinished body)", 400, texts);
    [
        silence(&["G", "GET / HTTP/1.1", "GET / HTTP/1.1\r\nHost: h\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r"]).ending(),
        cut(&[
            post("Content-Length: 5", "hell"),
            post("Content-Length: 5", ""),
            post("Transfer-Encoding: chunked", ""),
            post("Transfer-Encoding: chunked", "5"),
            post("Transfer-Encoding: chunked", "5\r\nhello"),
            post("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
            post("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n"),
            post("Transfer-Encoding: chunked", "0\r\nX: y\r\n"),
        ])
        .ending(),
        served("RFC 9112 9.6 (a client that is done)", get("X: y"), [got(&["X: y"])]).ending(),
    ]
    .concat()
}
