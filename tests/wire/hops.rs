//! What one connection says and the next does not hear: Connection and all that it names, forwarding fields, Expect,
//! Max-Forwards, TE and Upgrade.

use super::responses::options;
use super::row::{Reply, Row, Rows, Saw, get, got, post, posted, refused, replies, saw, served};

pub fn rows() -> Vec<Row> {
    [connection(), nominated(), forwarded(), trusted(), ids(), expect(), max_forwards(), te(), upgrade()].concat()
}

/// A GET with these lines, of which the backend sees those.
fn kept(section: &'static str, lines: &str, seen: &[&str]) -> Vec<Row> {
    served(section, get(lines), [got(seen)])
}

fn connection() -> Vec<Row> {
    let closing = |lines: &str| kept("RFC 9112 9.6", lines, &[]).closing();
    let staying = |lines: &str| kept("RFC 9112 9.3", lines, &[]);
    [
        closing("Connection: close"),
        closing("connection: CLOSE"),
        closing("Connection: keep-alive, close"),
        closing("Connection: close, keep-alive"),
        closing("Connection: ,, close ,"),
        closing("Connection: keep-alive\r\nConnection: close"),
        closing("Connection: x,\tclose\t,y"),
        staying("Connection: keep-alive"),
        staying("Connection: Keep-Alive\r\nKeep-Alive: timeout=5, max=1"),
        staying("Connection:"),
        staying("Connection: ,"),
        staying("Connection: closed"),
        staying("Connection: not-close"),
        staying("Proxy-Connection: close"),
        staying("Keep-Alive: timeout=0"),
        staying(&options(32)),
        refused(
            "RFC 9110 7.6.1 (more options than fields)",
            400,
            [
                get(&options(33)),
                get(&format!("{}\r\n{}", options(16), options(17))),
                get(&format!("Connection: x{}", ",".repeat(32))),
            ],
        ),
    ]
    .concat()
}

fn nominated() -> Vec<Row> {
    let goes = |lines: &str, seen: &[&str]| kept("RFC 9110 7.6.1", lines, seen);
    let stays = |name: &str, line: &'static str| {
        let text = post(&format!("Connection: {name}\r\n{line}\r\nContent-Length: 2"), "hi");
        served(
            "RFC 9110 7.6.1 (cannot be named away)",
            text,
            [Saw { fields: vec![line.into(), "Content-Length: 2".into()], ..posted("hi") }],
        )
    };
    let kept_at_all =
        "Connection: host, content-length, x-forwarded-for, x-forwarded-proto, x-forwarded-host, via, x-request-id";
    [
        goes("Connection: x-a\r\nX-A: 1", &[]),
        goes("X-A: 1\r\nConnection: X-a\r\nX-B: 2", &["X-B: 2"]),
        goes("Connection: x-a, x-b\r\nX-B: 1\r\nX-C: 2\r\nX-A: 3", &["X-C: 2"]),
        goes("Connection: x-a\r\nX-A: 1\r\nx-a: 2", &[]),
        goes("Connection: x-a\r\nConnection: x-b\r\nX-A: 1\r\nX-B: 2", &[]),
        goes("Connection: ,x-a,,\tx-b ,\r\nX-A: 1\r\nX-B: 2", &[]),
        goes("Connection: keep-alive, cookie\r\nCookie: a=b", &[]),
        goes("Connection: x-absent\r\nX-A: 1", &["X-A: 1"]),
        goes("Connection: x-a\r\nX-AB: 1\r\nX: 2", &["X-AB: 1", "X: 2"]),
        goes("Keep-Alive: 5\r\nProxy-Connection: x\r\nX-A: 1", &["X-A: 1"]),
        served(
            "RFC 9110 7.6.1 (Host and length stay)",
            post(&format!("{kept_at_all}\r\nContent-Length: 2"), "hi"),
            [posted("hi")],
        ),
        stays("x-request-id", "X-Request-Id: own"),
        served(
            "RFC 9110 7.6.1 (the coding stays)",
            post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked", "2\r\nhi\r\n0\r\n\r\n"),
            [super::row::chunked("hi")],
        ),
        served(
            "RFC 9110 7.6.1 (what is named is gone, and the end is kept)",
            get("Connection: close, x-a\r\nX-A: 1"),
            [got(&[])],
        )
        .closing(),
    ]
    .concat()
}

fn forwarded() -> Vec<Row> {
    let goes = |lines: &str, seen: &[&str]| kept("RFC 7239 8.1 (a stranger's claims)", lines, seen);
    [
        goes("X-Forwarded-For: 192.0.2.1", &[]),
        goes("x-forwarded-for: 192.0.2.1\r\nX-FORWARDED-FOR: 192.0.2.2", &[]),
        goes("X-Forwarded-For: 127.0.0.1, \r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil", &[]),
        goes("Forwarded: for=192.0.2.1;host=evil\r\nX-Real-IP: 192.0.2.1", &[]),
        goes("X-Forwarded-Port: 1\r\nX-Forwarded-Server: evil\r\nX-Forwarded-Prefix: /evil", &[]),
        goes("X_Forwarded_For: 192.0.2.1\r\nX-Forwarded_Host: evil\r\nx_real_ip: 192.0.2.1\r\nA_B: c", &["A_B: c"]),
        goes("X_Request_Id: evil\r\nX_API_KEY: evil\r\nHTTP2_Settings: x", &[]),
        goes("X-Forwarded-Host:\r\nX-Forwarded-Host: a\r\nX-Forwarded-Host: b", &[]),
        kept("RFC 9110 7.6.3", "Via: 1.0 front", &["Via: 1.0 front", "Via: 1.1 rateguard"]),
        kept(
            "RFC 9110 7.6.3 (loops are not ours to guess)",
            "Via: 1.1 rateguard",
            &["Via: 1.1 rateguard", "Via: 1.1 rateguard"],
        ),
    ]
    .concat()
}

fn trusted() -> Vec<Row> {
    let goes = |lines: &str, seen: &[&str]| kept("RFC 7239 4 (a trusted proxy's words)", lines, seen).trusting();
    [
        goes("X-A: 1", &["X-A: 1"]),
        goes("X-Forwarded-For: 192.0.2.1", &["X-Forwarded-For: 192.0.2.1, 127.0.0.1"]),
        goes(
            "X-Forwarded-For: 192.0.2.1\r\nx-forwarded-for: 192.0.2.2",
            &["X-Forwarded-For: 192.0.2.1, 192.0.2.2, 127.0.0.1"],
        ),
        goes("X-Forwarded-For:\r\nX-Forwarded-For: 192.0.2.1", &["X-Forwarded-For: 192.0.2.1, 127.0.0.1"]),
        goes("X-Forwarded-Proto: https", &["X-Forwarded-Proto: https"]),
        goes("X-Forwarded-Host: outside", &["X-Forwarded-Host: outside"]),
        goes("Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1", &["Forwarded: for=192.0.2.1", "X-Real-IP: 192.0.2.1"]),
        goes("Connection: x-forwarded-for\r\nX-Forwarded-For: 192.0.2.1", &["X-Forwarded-For: 192.0.2.1, 127.0.0.1"]),
        goes("Connection: x-forwarded-proto\r\nX-Forwarded-Proto: https", &["X-Forwarded-Proto: https"]),
        refused(
            "RFC 9112 6.3 (trust is not for framing)",
            400,
            [post("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG")],
        )
        .trusting(),
    ]
    .concat()
}

fn ids() -> Vec<Row> {
    let long = "i".repeat(128);
    let longer = format!("X-Request-Id: {}i", long);
    let replaced = |line: &str| kept("X-Request-Id (not one to pass on)", line, &[]);
    [
        kept("X-Request-Id (the client's)", "X-Request-Id: a-B_9.z~", &["X-Request-Id: a-B_9.z~"]),
        kept("X-Request-Id (as long as may be)", &format!("X-Request-Id: {long}"), &[&format!("X-Request-Id: {long}")]),
        replaced("X-Request-Id:"),
        replaced("X-Request-Id: a b"),
        replaced("X-Request-Id: \u{e4}"),
        replaced(&longer),
    ]
    .concat()
}

fn expect() -> Vec<Row> {
    let expecting = |line: &str| post(&format!("{line}\r\nContent-Length: 5"), "hello");
    let seen = |line: &str| Saw { fields: vec![line.into(), "Content-Length: 5".into()], ..posted("hello") };
    [
        served("RFC 9110 10.1.1", expecting("Expect: 100-continue"), [seen("Expect: 100-continue")]),
        served("RFC 9110 10.1.1 (no case)", expecting("expect: 100-Continue"), [seen("Expect: 100-Continue")]),
        served(
            "RFC 9110 10.1.1 (in HTTP/1.0 there is none)",
            "POST / HTTP/1.0\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
            [Saw { fields: vec!["Content-Length: 5".into(), "Via: 1.0 rateguard".into()], ..posted("hello") }],
        )
        .old()
        .closing(),
        kept("RFC 9110 10.1.1 (without a body)", "Expect: 100-continue", &["Expect: 100-continue"]),
        served(
            "Expect-based desync (the request behind the body)",
            format!("{}GET /b HTTP/1.1\r\nHost: h\r\n\r\n", expecting("Expect: 100-continue")),
            [seen("Expect: 100-continue"), saw("GET /b HTTP/1.1", &[], "")],
        ),
        served(
            "RFC 9110 10.1.1 (with chunks)",
            post("Expect: 100-continue\r\nTransfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
            [saw("POST / HTTP/1.1", &["Expect: 100-continue", "Transfer-Encoding: chunked"], "hello")],
        ),
        refused(
            "RFC 9110 10.1.1, Expect-based desync",
            417,
            [
                expecting("Expect: 200-maybe"),
                expecting("Expect:"),
                expecting("Expect: y 100-continue"),
                expecting("Expect: 100-continue, 100-continue"),
                expecting("Expect: 100-continue\r\nExpect: x"),
                expecting("Expect: 100-continue;a=b"),
                expecting("Expect: \"100-continue\""),
                expecting("Expect: 100 continue"),
                get("Expect: x"),
            ],
        ),
        refused(
            "Expect-based desync (hidden)",
            400,
            [
                expecting("Expect : 100-continue"),
                expecting("Expect:\r\n 100-continue"),
                expecting("Expect: \n100-continue"),
                expecting("Expect: 100-continue\0"),
                expecting("Expect: \u{b}100-continue"),
            ],
        ),
    ]
    .concat()
}

fn max_forwards() -> Vec<Row> {
    let asking = |method: &str, lines: &str| format!("{method} / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n");
    let counted = |method: &'static str, line: &'static str, before: &str, after: &str| {
        let seen = saw(line, &[&format!("Max-Forwards: {after}")], "");
        served("RFC 9110 7.6.2", asking(method, &format!("Max-Forwards: {before}")), [seen])
    };
    let bad: Vec<String> = ["-1", "+1", "x", "", "1, 2", "0x1", "1.0", "1\r\nMax-Forwards: 1", "1 1"]
        .iter()
        .flat_map(|value| ["OPTIONS", "TRACE"].map(|method| asking(method, &format!("Max-Forwards: {value}"))))
        .collect();
    [
        counted("OPTIONS", "OPTIONS / HTTP/1.1", "3", "2"),
        counted("OPTIONS", "OPTIONS / HTTP/1.1", "10", "9"),
        counted("TRACE", "TRACE / HTTP/1.1", "1", "0"),
        counted("GET", "GET / HTTP/1.1", "0", "0"),
        counted("GET", "GET / HTTP/1.1", "x", "x"),
        counted("POST", "POST / HTTP/1.1", "7", "7"),
        replies("RFC 9110 7.6.2 (no further)", asking("OPTIONS", "Max-Forwards: 0"), [Reply::Own(204)]),
        replies("RFC 9110 7.6.2 (no further)", asking("TRACE", "Max-Forwards: 0"), [Reply::Own(405)]),
        replies(
            "RFC 9110 7.6.2 (no further, and its body is not the next request)",
            asking("OPTIONS", "Max-Forwards: 0\r\nContent-Length: 31") + "GET /evil HTTP/1.1\r\nHost: h\r\n\r\n",
            [Reply::Own(204)],
        ),
        served(
            "RFC 9110 7.6.2 (the server's own options)",
            "OPTIONS * HTTP/1.1\r\nHost: h\r\nMax-Forwards: 2\r\n\r\n",
            [saw("OPTIONS * HTTP/1.1", &["Max-Forwards: 1"], "")],
        ),
        refused("RFC 9110 7.6.2 (1*DIGIT)", 400, bad),
    ]
    .concat()
}

fn te() -> Vec<Row> {
    let passes = |lines: &str| kept("RFC 9110 10.1.4", lines, &["TE: trailers", "Connection: TE"]);
    let stops = |lines: &str| kept("RFC 9110 10.1.4 (codings of one connection)", lines, &[]);
    [
        passes("TE: trailers\r\nConnection: TE"),
        passes("te: Trailers\r\nConnection: te"),
        passes("TE: gzip;q=0.5, trailers\r\nConnection: TE"),
        stops("TE: gzip\r\nConnection: TE"),
        stops("TE: chunked, deflate;q=0.5\r\nConnection: te"),
        stops("TE:\r\nConnection: te"),
        stops("Trailer: X-Sum"),
    ]
    .concat()
}

fn upgrade() -> Vec<Row> {
    let ws = ["Upgrade: websocket", "Connection: Upgrade"];
    let passes = |lines: &str, seen: &[&str]| kept("RFC 9110 7.8", lines, seen);
    let stops = |section, lines: &str| kept(section, lines, &[]);
    let settings = "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA";
    let h2c = |more: &str| stops("RFC 9110 7.8 (h2c smuggling)", &format!("{more}\r\n{settings}"));
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    [
        passes("Connection: Upgrade\r\nUpgrade: websocket", &ws),
        passes("connection: keep-alive, upgrade\r\nupgrade: websocket", &ws),
        passes(&format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}"), &[ws[0], ws[1], key]),
        passes("Connection: Upgrade\r\nUpgrade: h2c, websocket", &ws),
        passes("Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket", &ws),
        h2c("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"),
        h2c("Connection: HTTP2-Settings, Upgrade\r\nUpgrade: H2C"),
        h2c("Connection: Upgrade\r\nConnection: http2-settings\r\nUpgrade: h2, h2c, HTTP/2.0"),
        h2c("Connection: HTTP2-Settings\r\nUpgrade: h2c"),
        h2c("Connection: Upgrade\r\nUpgrade: h2c"),
        h2c("X: y\r\nConnection: X"),
        stops("RFC 2817 (TLS is not ours to pass)", "Connection: Upgrade\r\nUpgrade: TLS/1.0"),
        stops("RFC 9110 7.8 (HTTP is no other protocol)", "Connection: Upgrade\r\nUpgrade: HTTP/2.0, HTTP/1.1"),
        stops("RFC 9110 7.8 (not named by Connection)", "Upgrade: websocket"),
        stops("RFC 9110 7.8 (no protocol)", "Connection: Upgrade"),
        served(
            "RFC 9110 7.8 (not with a body)",
            post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2", "hi"),
            [posted("hi")],
        ),
        served(
            "RFC 9110 7.8 (not in HTTP/1.0)",
            "GET / HTTP/1.0\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            [got(&["Via: 1.0 rateguard"])],
        )
        .old()
        .closing(),
    ]
    .concat()
}
