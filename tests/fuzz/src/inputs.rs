//! Inputs to begin with: messages that are nearly right, made from parts that matter, and small changes to any bytes.

use fastrand::Rng;

const METHODS: &[&str] =
    &["GET", "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "M-SEARCH", "get", "G@T", ""];

const TARGETS: &[&str] = &[
    "/",
    "/a/b?c=d",
    "/%61/../b",
    "*",
    "http://a.example",
    "http://a.example?q",
    "HTTPS://a.example:8443/x",
    "http://u@a/",
    "http:///x",
    "ftp://a/",
    "a.example:80",
    "/a#b",
    "/%00",
    "/%",
    "/\"<>^`{|}",
    "/a\\b?\\",
    "/a%2Fb;x?%2f..%2f",
    "/a%2f..%5Cb",
    "/..;x/b",
    "/a%2fb/../c",
    "/a;x%2fb",
    "/a//../b",
    "http://a.example/b/.;x",
    "http://a%2eexample/",
    "/\u{e4}",
    "",
];

const VERSIONS: &[&str] = &[
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.1",
    "HTTP/1.0",
    "HTTP/1.0",
    "HTTP/2.0",
    "HTTP/0.9",
    "HTTP/1.2",
    "HTTP/1.10",
    "http/1.1",
    "HTTP/11",
    "HTTP/1.",
    "",
];

const STATUSES: &[&str] = &[
    "200 OK",
    "200",
    "200 ",
    "204 No Content",
    "304 Not Modified",
    "100 Continue",
    "103 Hints",
    "101 Switching",
    "599 \u{e4}",
    "099 Low",
    "600 High",
    "20 Short",
    "2000 Long",
    "404  Two  spaces ",
    "200\tTab",
    "+20 x",
];

const NAMES: &[&str] = &[
    "Host",
    "Host",
    "Host",
    "Content-Length",
    "Content-Length",
    "Transfer-Encoding",
    "Transfer-Encoding",
    "Connection",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Upgrade",
    "Expect",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "Forwarded",
    "X-Real-IP",
    "X-Request-Id",
    "X_Forwarded_For",
    "X-Forwarded-Port",
    "Content_Length",
    "X_API_Key",
    "X_A",
    "Via",
    "Max-Forwards",
    "RateLimit",
    "RateLimit-Policy",
    "Date",
    "Set-Cookie",
    "X-A",
    "x-a",
    "A b",
    "",
    " X-A",
    "X\t",
    "Content-Length ",
];

const VALUES: &[&str] = &[
    "h",
    "a.example:80",
    "[::1]:8080",
    "[::1",
    "a%2e",
    "a,b",
    "u@h",
    "0",
    "1",
    "5",
    "007",
    "18446744073709551616",
    "+1",
    "1, 1",
    "0x1",
    "chunked",
    "Chunked",
    "chunked, chunked",
    "gzip, chunked",
    "chunked, gzip",
    "identity",
    "gzip;q=1",
    "chunked;q=1",
    ",chunked",
    "\"chunked\"",
    "close",
    "keep-alive",
    "Keep-Alive, X-A",
    "upgrade",
    "TE",
    "host, via",
    "content-length, transfer-encoding",
    "close, x-forwarded-for, expect",
    "websocket",
    "h2c",
    "trailers",
    "100-continue",
    "100-Continue",
    "tea",
    "1.2.3.4",
    "1.2.3.4, 5.6.7.8",
    "https",
    "1.1 edge",
    "",
    " ",
    "\t x \t",
    "a\0b",
    "a\u{7f}",
    "\u{e4}",
    "x: y",
    "a b",
];

const ENDS: &[&str] =
    &["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n"];

const CHUNKS: &[&str] = &[
    "5\r\nhello\r\n",
    "1\r\nx\r\n",
    "a;e=\"f g\"\r\n0123456789\r\n",
    "00B\r\n0123456789a\r\n",
    "2\r\n\r\n\r\n",
    "5\r\nhell\r\n",
    "5\nhello\n",
    "5 \r\nhello\r\n",
    "0x5\r\nhello\r\n",
    "-1\r\n",
    "g\r\n",
    "fffffffffffffff\r\nx",
    "1000000000000000\r\n",
    "0;a\r\n",
    "0\r\n",
    "0\r\n",
    "000\r\n",
];

const TRAILERS: &[&str] = &[
    "",
    "",
    "",
    "X-Sum: 1\r\n",
    "Content-Length: 5\r\n",
    "a:\r\n",
    "b : 1\r\n",
    " c: 1\r\n",
    "d: 1\n",
    "e: \0\r\n",
    "f\r\n",
    "Host: h\r\nTE: x\r\n",
    "X-Forwarded-Y: 1\r\n",
    "x-api-key: k\r\nServer-Timing: a\r\n",
];

const PATH_PARTS: &[&str] = &[
    "/", "/", "/", "/", "//", "a", "b", "A", "%61", "%2e", "%2E", ".", "..", "...", "%2f", "%2F", "%", "%2", "%zz",
    "%25", "%2561", "%00", "%c3%a4", ";v=1", ";", "%5c", "%5C", "%3b", "?q", "?", "*", "\\", "~", "%7e",
];

/// What mutations put in.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    ":",
    ",",
    ";",
    "\0",
    "\r\n\r\n",
    "\r\n ",
    "HTTP/1.1",
    "HTTP/1.0",
    "0\r\n\r\n",
    "GET / ",
    "Host: h\r\n",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: x-a\r\n",
    "chunked",
    "close",
    "%",
    "%2e",
    "%2f",
    "%5C",
    ";",
    "..",
    "/",
    "?",
    "#",
    "@",
    "\u{ff}",
];

fn one<'a>(dice: &mut Rng, of: &[&'a str]) -> &'a str {
    of[dice.usize(..of.len())]
}

/// A request, most often with all it needs.
pub fn request(dice: &mut Rng) -> Vec<u8> {
    let mut text = String::new();
    if dice.u8(..12) == 0 {
        text.push_str(one(dice, &["\r\n", "\r\n\r\n", "\n", " "]));
    }
    let gap = if dice.u8(..40) == 0 { one(dice, &["  ", "\t", ""]) } else { " " };
    text.push_str(one(dice, METHODS));
    text.push_str(gap);
    text.push_str(one(dice, TARGETS));
    text.push(' ');
    text.push_str(one(dice, VERSIONS));
    text.push_str(one(dice, ENDS));
    if dice.u8(..4) > 0 {
        text.push_str("Host: h\r\n");
    }
    fields(dice, &mut text);
    body(dice, &mut text);
    text.into_bytes()
}

/// A response.
pub fn response(dice: &mut Rng) -> Vec<u8> {
    let mut text = String::new();
    text.push_str(one(dice, VERSIONS));
    text.push(' ');
    text.push_str(one(dice, STATUSES));
    text.push_str(one(dice, ENDS));
    fields(dice, &mut text);
    body(dice, &mut text);
    text.into_bytes()
}

fn fields(dice: &mut Rng, text: &mut String) {
    for _ in 0..dice.usize(..5) {
        // A field with a value that suits it, or any with any.
        let line = match dice.u8(..8) {
            0 => "Transfer-Encoding: chunked".into(),
            1 => format!("Content-Length: {}", dice.u8(..20)),
            2 => format!("Connection: {}", one(dice, &["close", "keep-alive", "x-a", "te, x-a", "Upgrade"])),
            _ => {
                let colon = one(dice, &[": ", ": ", ": ", ":", ":\t ", " : ", ""]);
                format!("{}{colon}{}", one(dice, NAMES), one(dice, VALUES))
            }
        };
        text.push_str(&line);
        text.push_str(one(dice, ENDS));
    }
    text.push_str(one(dice, ENDS));
}

fn body(dice: &mut Rng, text: &mut String) {
    match dice.u8(..4) {
        0 => text.push_str("hello, world"),
        1 => text.push_str(&String::from_utf8_lossy(&chunks(dice))),
        2 => text.push_str("GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
        _ => {}
    }
}

/// A chunked body.
pub fn chunks(dice: &mut Rng) -> Vec<u8> {
    let mut text: String = (0..dice.usize(..5)).map(|_| one(dice, CHUNKS)).collect();
    if dice.u8(..4) > 0 {
        text.push_str(one(dice, &["0\r\n", "0\r\n", "0;x\r\n", "00\r\n"]));
        text.extend((0..dice.usize(..3)).map(|_| one(dice, TRAILERS)));
        text.push_str(one(dice, ENDS));
    }
    if dice.u8(..4) == 0 {
        text.push_str("next");
    }
    text.into_bytes()
}

/// A request target.
pub fn target(dice: &mut Rng) -> Vec<u8> {
    let parts: String = (0..dice.usize(..12)).map(|_| one(dice, PATH_PARTS)).collect();
    if dice.u8(..10) == 0 { parts.into_bytes() } else { format!("/{parts}").into_bytes() }
}

/// Some small changes.
pub fn mutate(dice: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..dice.usize(1..4) {
        let at = dice.usize(..=bytes.len());
        let end = (at + dice.usize(..8)).min(bytes.len());
        match dice.u8(..7) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, dice.u8(..)),
            2 | 3 => drop(bytes.splice(at..at, one(dice, PIECES).bytes())),
            4 if at < bytes.len() => bytes[at] = dice.u8(..),
            5 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ if !others.is_empty() => {
                let other = &others[dice.usize(..others.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[dice.usize(..=other.len())..]);
            }
            _ => bytes.truncate(at),
        }
    }
}
