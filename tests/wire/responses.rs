//! What backends send, and what a client gets of it.

use super::answers::{
    ASK_DELETE_BODY, ASK_EXPECTING, ASK_GET_BODY, ASK_HEAD, ASK_OLD, ASK_OPTIONS_BODY, ASK_OTHER_BODY, ASK_PATCH,
    ASK_POST, ASK_UPGRADE, AnswerRow, Behind, Gets, bad, cut, whole,
};

pub fn rows() -> Vec<AnswerRow> {
    [
        good(),
        fields(),
        bodiless(),
        status_lines(),
        heads(),
        framing(),
        chunks(),
        bad_chunks(),
        short(),
        surplus(),
        interims(),
        old(),
        large(),
    ]
    .concat()
}

const OK: &str = "HTTP/1.1 200 OK";
const TWO: &str = "Content-Length: 2";
const CHUNKED: &str = "Transfer-Encoding: chunked";

/// An answer with these lines below `200 OK`.
fn ok(lines: &str, body: &str) -> String {
    format!("{OK}\r\n{lines}\r\n\r\n{body}")
}

fn good() -> Vec<AnswerRow> {
    let of = |section, line: &'static str| whole(section, format!("{line}\r\n{TWO}\r\n\r\nok"), line, &[TWO], "ok");
    vec![
        of("RFC 9112 4", OK),
        of("RFC 9112 4 (a reason of several words)", "HTTP/1.1 200 Fine by me"),
        of("RFC 9112 4 (an empty reason)", "HTTP/1.1 200 "),
        of("RFC 9112 4 (a tab in a reason)", "HTTP/1.1 200 a\tb"),
        of("RFC 9110 15 (a status nobody knows)", "HTTP/1.1 299 Strange"),
        of("RFC 9110 15 (a status nobody knows)", "HTTP/1.1 599 Strange"),
        of("RFC 9112 4 (obs-text in a reason)", "HTTP/1.1 200 OK \u{fc}"),
        of("RFC 9110 15.5.1", "HTTP/1.1 400 Bad Request"),
        of("RFC 9110 15.6.1", "HTTP/1.1 500 Internal Server Error"),
        of("RFC 9110 15.3.7", "HTTP/1.1 206 Partial Content"),
        of("RFC 9110 15.5.22", "HTTP/1.1 426 Upgrade Required"),
        whole("RFC 9110 8.6 (leading zeros)", ok("content-length: 002", "ok"), OK, &[TWO], "ok"),
        whole("RFC 9110 8.6 (nothing)", ok("Content-Length: 0", ""), OK, &["Content-Length: 0"], ""),
        whole(
            "RFC 9110 6.4 (a body is bytes)",
            ok("Content-Length: 4", "\0\r\n\u{ff}"),
            OK,
            &["Content-Length: 4"],
            "\0\r\n\u{ff}",
        ),
        whole(
            "RFC 9110 6.6.1 (the backend's own Date)",
            ok(&format!("Date: {THEN}\r\n{TWO}"), "ok"),
            OK,
            &[&format!("Date: {THEN}"), TWO],
            "ok",
        ),
        whole("RFC 9112 6.3 (until the close)", ok("X: y", "all of it"), OK, &["X: y", CHUNKED], "all of it")
            .behind(Behind::End)
            .not_kept(),
        whole("RFC 9112 6.3 (nothing until the close)", ok("X: y", ""), OK, &["X: y", CHUNKED], "")
            .behind(Behind::End)
            .not_kept(),
        whole(
            "RFC 9112 9.6 (the last on its connection)",
            ok(&format!("Connection: close\r\n{TWO}"), "ok"),
            OK,
            &[TWO],
            "ok",
        )
        .not_kept(),
        whole("RFC 9112 9.6 (and ended)", ok(&format!("Connection: close\r\n{TWO}"), "ok"), OK, &[TWO], "ok")
            .behind(Behind::End)
            .not_kept(),
        whole("RFC 9112 9.3 (ended without a word)", ok(TWO, "ok"), OK, &[TWO], "ok").behind(Behind::End).not_kept(),
        whole(
            "RFC 9110 15.3.6 (205)",
            "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 205 Reset Content",
            &["Content-Length: 0"],
            "",
        ),
        whole(
            "RFC 9112 4 (no space behind the code)",
            format!("HTTP/1.1 200\r\n{TWO}\r\n\r\nok"),
            "HTTP/1.1 200 ",
            &[TWO],
            "ok",
        ),
    ]
}

const THEN: &str = "Tue, 01 Jan 2019 00:00:00 GMT";

/// A `Connection` field of that many members.
pub fn options(count: usize) -> String {
    format!("Connection: {}", vec!["x"; count].join(","))
}

fn fields() -> Vec<AnswerRow> {
    let of = |section, lines: &str, passed: &[&str]| {
        whole(section, ok(&format!("{lines}\r\n{TWO}"), "ok"), OK, &[passed, &[TWO]].concat(), "ok")
    };
    vec![
        of("RFC 9110 5.3", "Set-Cookie: a\r\nSet-Cookie: b\r\nX:\tc ", &["Set-Cookie: a", "Set-Cookie: b", "X: c"]),
        of("RFC 9110 5.5 (obs-text)", "X: \u{e4}\u{ff}", &["X: \u{e4}\u{ff}"]),
        of("RFC 9110 5.5 (an empty value)", "X:", &["X:"]),
        of("RFC 9110 7.6.1", "Connection: x-a\r\nX-A: 1\r\nX-B: 2", &["X-B: 2"]),
        of("RFC 9110 7.6.1", "Keep-Alive: timeout=5\r\nProxy-Connection: x\r\nConnection: keep-alive", &[]),
        of("RFC 9110 7.6.1 (the length stays)", "Connection: content-length, set-cookie\r\nSet-Cookie: a", &[]),
        of("RFC 9110 7.6.1 (as many options as may be)", &options(32), &[]),
        of("RFC 9110 7.8 (an offer of our peer's)", "Connection: Upgrade\r\nUpgrade: h2c", &[]),
        of(
            "RFC 9110 11.6.1 (for the client)",
            "WWW-Authenticate: Basic\r\nServer: x",
            &["WWW-Authenticate: Basic", "Server: x"],
        ),
        of("CL.0 (a body with a GET may be left unread)", "X: y", &["X: y"]).asking(ASK_GET_BODY).not_kept(),
        of("CL.0 (and with a DELETE)", "X: y", &["X: y"]).asking(ASK_DELETE_BODY).not_kept(),
        of("CL.0 (and with an OPTIONS)", "X: y", &["X: y"]).asking(ASK_OPTIONS_BODY).not_kept(),
        of("CL.0 (and with methods we do not know)", "X: y", &["X: y"]).asking(ASK_OTHER_BODY).not_kept(),
        of("RFC 5789 2 (a PATCH is read)", "X: y", &["X: y"]).asking(ASK_PATCH),
        of("RFC 9110 10.1.1 (answered without the body)", "X: y", &["X: y"]).asking(ASK_EXPECTING).not_kept(),
        of("RFC 9110 9.3.3 (a POST is read)", "X: y", &["X: y"]).asking(ASK_POST),
        of("RFC 9110 6.6.2 (no trailers, no Trailer)", "Trailer: X-Sum", &[]),
        of("RFC 9110 6.6.1 (no Date, so ours)", "X: y", &["X: y", "Date: *"]),
        of("RFC 9110 8.4 (a coding of the content)", "Content-Encoding: gzip", &["Content-Encoding: gzip"]),
    ]
}

fn bodiless() -> Vec<AnswerRow> {
    let not_modified = "HTTP/1.1 304 Not Modified";
    let empty = "HTTP/1.1 204 No Content";
    let reset = "HTTP/1.1 205 Reset Content";
    vec![
        whole(
            "RFC 9110 15.3.6 (205 with a body nonetheless)",
            format!("{reset}\r\n{TWO}\r\n\r\nok"),
            reset,
            &[TWO],
            "ok",
        ),
        whole("RFC 9112 6.3 (304 and a coding)", format!("{not_modified}\r\n{CHUNKED}\r\n\r\n"), not_modified, &[], ""),
        whole("RFC 9112 6.3 (204 and a coding)", format!("{empty}\r\n{CHUNKED}\r\n\r\n"), empty, &[], ""),
        whole("RFC 9112 6.3 (HEAD)", ok("Content-Length: 5", ""), OK, &["Content-Length: 5"], "").asking(ASK_HEAD),
        whole("RFC 9112 6.3 (HEAD and chunks)", ok(CHUNKED, ""), OK, &[], "").asking(ASK_HEAD),
        whole("RFC 9112 6.3 (HEAD, no length)", ok("X: y", ""), OK, &["X: y"], "").asking(ASK_HEAD),
        whole(
            "request tunnelling (HEAD, and a body)",
            ok("Content-Length: 5", "hello"),
            OK,
            &["Content-Length: 5"],
            "",
        )
        .asking(ASK_HEAD)
        .not_kept(),
        whole(
            "request tunnelling (HEAD, and an answer)",
            ok("Content-Length: 45", &ok("Content-Length: 4", "evil")),
            OK,
            &["Content-Length: 45"],
            "",
        )
        .asking(ASK_HEAD)
        .not_kept(),
        whole("RFC 9110 15.4.5", format!("{not_modified}\r\nETag: \"x\"\r\n\r\n"), not_modified, &["ETag: \"x\""], ""),
        whole(
            "RFC 9110 8.6 (304 and a length)",
            format!("{not_modified}\r\nContent-Length: 5\r\n\r\n"),
            not_modified,
            &["Content-Length: 5"],
            "",
        ),
        whole(
            "request tunnelling (304, and a body)",
            format!("{not_modified}\r\nContent-Length: 5\r\n\r\nhello"),
            not_modified,
            &["Content-Length: 5"],
            "",
        )
        .not_kept(),
        whole("RFC 9110 15.3.5", format!("{empty}\r\nX: y\r\n\r\n"), empty, &["X: y"], ""),
        whole("RFC 9110 8.6 (204 has no length)", format!("{empty}\r\nContent-Length: 0\r\n\r\n"), empty, &[], ""),
        whole("RFC 9112 6.3 (204, and a body)", format!("{empty}\r\nContent-Length: 5\r\n\r\nhello"), empty, &[], "")
            .not_kept(),
        whole("RFC 9112 6.3 (204, and chunks)", format!("{empty}\r\n{CHUNKED}\r\n\r\n0\r\n\r\n"), empty, &[], "")
            .not_kept(),
    ]
}

fn status_lines() -> Vec<AnswerRow> {
    let of = |line: &&str| format!("{line}\r\nContent-Length: 0\r\n\r\n");
    [
        bad(
            "RFC 9112 4 (no status line)",
            [
                "HTTP/1.1 20 No",
                "HTTP/1.1 2000 No",
                "HTTP/1.1 0200 OK",
                "HTTP/1.1 2OO OK",
                "HTTP/1.1 -20 OK",
                "HTTP/1.1 20. OK",
                "HTTP/1.1  200 OK",
                "HTTP/1.1\t200 OK",
                "HTTP/1.1200 OK",
                "HTTP/1.1 200OK",
                "HTTP/1.1 ",
                " HTTP/1.1 200 OK",
                "HTTP/1.1 \u{b2}00 OK",
                "HTTP/1.1 200\tOK",
                "HTTP/1.1",
                "HTTP/1.1 OK",
            ]
            .iter()
            .map(of),
        ),
        bad(
            "RFC 9110 15 (no status)",
            ["HTTP/1.1 099 No", "HTTP/1.1 99 No", "HTTP/1.1 000 No", "HTTP/1.1 600 No", "HTTP/1.1 999 No"]
                .iter()
                .map(of),
        ),
        bad(
            "RFC 9112 2.3 (no version of ours)",
            [
                "HTTP/2.0 200 OK",
                "HTTP/1.2 200 OK",
                "HTTP/0.9 200 OK",
                "HTTP/11 200 OK",
                "http/1.1 200 OK",
                "HTTP/1.10 200 OK",
                "HTTP/2 200 OK",
            ]
            .iter()
            .map(of),
        ),
        bad(
            "RFC 9112 4 (controls in a reason)",
            ["HTTP/1.1 200 O\0K", "HTTP/1.1 200 O\rK", "HTTP/1.1 200 \u{1}", "HTTP/1.1 200 O\u{7f}K"].iter().map(of),
        ),
        bad("RFC 1945 6 (an answer without a head)", ["<html>hello</html>\r\n\r\n", "hello"]),
        bad(
            "another protocol",
            [
                "SSH-2.0-x\r\n",
                "ICY 200 OK\r\n\r\n",
                "\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{28}",
                "220 ready\r\n",
                "\0\0\u{12}\u{4}\0\0\0\0\0",
            ],
        ),
        bad(
            "RFC 9112 2.2 (an empty line before)",
            [format!("\r\n{}", ok("Content-Length: 0", "")), format!("\n{}", ok("Content-Length: 0", ""))],
        ),
    ]
    .concat()
}

fn heads() -> Vec<AnswerRow> {
    let of = |line: &&str| ok(&format!("{line}\r\nContent-Length: 0"), "");
    [
        bad(
            "RFC 9112 5.2 (obs-fold)",
            ["X: a\r\n b", "X: a\r\n\tb", "X:\r\n a", " X: a", "X: a\r\n Transfer-Encoding: chunked"].iter().map(of),
        ),
        bad("RFC 9110 5.5 (null)", ["X: \0", "X: a\0b", "X\0: a", "\0X: a"].iter().map(of)),
        bad("RFC 9110 5.5 (controls)", ["X: \u{1}", "X: a\u{b}b", "X: a\u{7f}", "X: a\u{1b}[0m"].iter().map(of)),
        bad(
            "RFC 9112 5.1 (white space before the colon)",
            ["X : a", "X\t: a", "Content-Length : 5", "Transfer-Encoding : chunked"].iter().map(of),
        ),
        bad(
            "RFC 9110 7.6.1 (more options than fields)",
            [
                ok(&format!("{}\r\n{TWO}", options(33)), "ok"),
                ok(&format!("Connection: {}\r\n{TWO}", ",".repeat(32)), "ok"),
            ],
        ),
        bad("RFC 9110 5.1 (no name)", [": a", "X Y: a", "X(: a", "X\u{e4}: a", "X"].iter().map(of)),
        bad(
            "response splitting (bare CR)",
            ["X: a\rSet-Cookie: b", "X: a\r", "X: a\r\r\nY: b", "\rX: a"].iter().map(of),
        ),
        bad(
            "RFC 9112 2.2 (bare LF)",
            [
                "HTTP/1.1 200 OK\nContent-Length: 0\n\n".to_string(),
                "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n".to_string(),
                "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n".to_string(),
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n".to_string(),
                ok("X: a\nContent-Length: 0", ""),
            ],
        ),
    ]
    .concat()
}

fn framing() -> Vec<AnswerRow> {
    let of = |lines: &&str| ok(lines, "2\r\nok\r\n0\r\n\r\n");
    let old = format!("HTTP/1.0 200 OK\r\n{CHUNKED}\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    [
        bad(
            "RFC 9112 6.3 (both)",
            [
                "Content-Length: 2\r\nTransfer-Encoding: chunked",
                "Transfer-Encoding: chunked\r\nContent-Length: 2",
                "Transfer-Encoding: gzip\r\nContent-Length: 2",
                "Content-Length: 0\r\nTransfer-Encoding: chunked",
            ]
            .iter()
            .map(of),
        ),
        bad(
            "RFC 9112 6.3 (lengths)",
            [
                "Content-Length: 2\r\nContent-Length: 2",
                "Content-Length: 2\r\nContent-Length: 3",
                "Content-Length: 2, 2",
                "Content-Length: 2, 3",
                "Content-Length: -2",
                "Content-Length: +2",
                "Content-Length: 0x2",
                "Content-Length:",
                "Content-Length: 2 2",
                "Content-Length: 18446744073709551616",
                "Content-Length: two",
                "Content-Length: 2;a",
            ]
            .iter()
            .map(of),
        ),
        bad(
            "RFC 9112 6.1, 6.3 (codings)",
            [
                "Transfer-Encoding: gzip",
                "Transfer-Encoding: gzip, chunked",
                "Transfer-Encoding: chunked, gzip",
                "Transfer-Encoding: chunked, chunked",
                "Transfer-Encoding: identity",
                "Transfer-Encoding: chunked;a=b",
                "Transfer-Encoding:",
                "Transfer-Encoding: \u{b}chunked",
                "Transfer-Encoding: \"chunked\"",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                "Transfer-Encoding: xchunked",
                "Transfer-Encoding: ,chunked",
            ]
            .iter()
            .map(of),
        ),
        bad("RFC 9112 6.1 (a coding in HTTP/1.0)", [old]),
        bad("RFC 9112 6.3 (both, to a HEAD)", [ok("Content-Length: 2\r\nTransfer-Encoding: chunked", "")])
            .into_iter()
            .map(|row| row.asking(ASK_HEAD))
            .collect(),
    ]
    .concat()
}

fn chunks() -> Vec<AnswerRow> {
    let of = |section, body: &str, data: &str| whole(section, ok(CHUNKED, body), OK, &[CHUNKED], data);
    vec![
        of("RFC 9112 7.1", "2\r\nok\r\n0\r\n\r\n", "ok"),
        of("RFC 9112 7.1 (no data)", "0\r\n\r\n", ""),
        of("RFC 9112 7.1 (several)", "1\r\na\r\n0A\r\n0123456789\r\n000\r\n\r\n", "a0123456789"),
        of("RFC 9112 7.1.1 (white space before extensions)", "2 \t;a=b\r\nok\r\n0 ;e\r\n\r\n", "ok"),
        of("RFC 9112 7.1.1 (padded sizes)", "2  \r\nok\r\n0     \r\n\r\n", "ok"),
        of("RFC 9112 7.1.1", "2;a=b;c=\"d\"\r\nok\r\n0;e\r\n\r\n", "ok"),
        of("RFC 9112 7.1.2", "2\r\nok\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n", "ok").trailers(&["X-Sum: 1", "X-B: 2"]),
        of(
            "RFC 9110 6.5.1 (may not be trailers)",
            "0\r\nContent-Length: 5\r\nSet-Cookie: a\r\nX: y\r\nLocation: /evil\r\n\r\n",
            "",
        )
        .trailers(&["X: y"]),
        of(
            "RFC 9110 6.5.1 (may not be trailers)",
            "0\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nDate: x\r\nAge: 1\r\n\r\n",
            "",
        ),
        of("RFC 9112 7.1 (answers as data)", "13\r\nHTTP/1.1 200 OK\r\n\r\n\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
        whole(
            "RFC 9110 6.6.2",
            ok(&format!("Trailer: X-Sum\r\n{CHUNKED}"), "0\r\nX-Sum: 1\r\n\r\n"),
            OK,
            &["Trailer: X-Sum", CHUNKED],
            "",
        )
        .trailers(&["X-Sum: 1"]),
        whole("RFC 9112 7 (no case)", ok("Transfer-Encoding: Chunked", "0\r\n\r\n"), OK, &[CHUNKED], ""),
        of("RFC 9112 7.1 (to a POST)", "2\r\nok\r\n0\r\n\r\n", "ok").asking(ASK_POST),
        of("RFC 9112 9.3 (and ended)", "2\r\nok\r\n0\r\n\r\n", "ok").behind(Behind::End).not_kept(),
    ]
}

fn bad_chunks() -> Vec<AnswerRow> {
    let at_once = [
        "g\r\nok",
        "-2\r\nok\r\n",
        "0x2\r\nok\r\n",
        " 2\r\nok\r\n",
        "2 2\r\nok\r\n",
        "2 \nok\r\n",
        "2\nok\r\n",
        "\r\n",
        "10000000000000002\r\nok\r\n",
        "2;\nok\r\n",
        "2;a\rb\r\nok\r\n",
        "2;\0\r\nok\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ];
    let behind = [
        "2\r\nokX",
        "2\r\nok\n0\r\n\r\n",
        "2\r\nok\r\ng\r\n",
        "2\r\nok\r\n0\n\r\n",
        "2\r\nok\r\n0\r\nX Y: 1\r\n\r\n",
        "2\r\nok\r\n0\r\nX: a\n\r\n",
        "2\r\nok\r\n0\r\n\n",
        "2\r\nok0\r\n\r\n",
    ];
    let of = |body: &&str, data| cut("RFC 9112 7.1, 8 (malformed chunks)", ok(CHUNKED, body), data);
    [at_once.iter().map(|body| of(body, "")).collect::<Vec<_>>(), behind.iter().map(|body| of(body, "ok")).collect()]
        .concat()
}

fn short() -> Vec<AnswerRow> {
    let mut rows = Vec::new();
    for behind in [Behind::End, Behind::Reset] {
        rows.extend([
            cut("RFC 9112 8 (fewer bytes than said)", ok("Content-Length: 5", "hell"), "hell").behind(behind),
            cut("RFC 9112 8 (none of the bytes)", ok("Content-Length: 5", ""), "").behind(behind),
            cut("RFC 9112 8 (no last chunk)", ok(CHUNKED, "2\r\nok\r\n"), "ok").behind(behind),
            cut("RFC 9112 8 (half a chunk)", ok(CHUNKED, "5\r\nhell"), "hell").behind(behind),
            cut("RFC 9112 8 (half a last chunk)", ok(CHUNKED, "2\r\nok\r\n0\r\n"), "ok").behind(behind),
            cut("RFC 9112 8 (half the trailers)", ok(CHUNKED, "2\r\nok\r\n0\r\nX: y\r\n"), "ok").behind(behind),
        ]);
        let halves = bad(
            "RFC 9112 8 (half a head)",
            ["H", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nX: y\r\n\r"],
        );
        rows.extend(halves.into_iter().map(|row| row.behind(behind).asking(ASK_POST)));
    }
    rows.push(cut("RFC 9112 8 (until the close, but broken)", ok("X: y", "half of"), "half of").behind(Behind::Reset));
    rows.push(
        cut("RFC 9112 8 (the same for HTTP/1.0)", ok("X: y", "half of"), "half of")
            .behind(Behind::Reset)
            .asking(ASK_OLD),
    );
    rows.push(
        cut("RFC 9112 8 (chunks for HTTP/1.0)", ok(CHUNKED, "2\r\nok\r\n"), "ok").behind(Behind::End).asking(ASK_OLD),
    );
    rows
}

fn surplus() -> Vec<AnswerRow> {
    let evil = ok("Content-Length: 4", "evil");
    let of = |section, text: String, fields: &[&str], body: &str| whole(section, text, OK, fields, body).not_kept();
    vec![
        of("RFC 9112 6.3 (bytes behind the length)", ok(TWO, "ok!"), &[TWO], "ok"),
        of("RFC 9112 6.3 (an empty line behind)", ok(TWO, "ok\r\n"), &[TWO], "ok"),
        of("RFC 9112 6.3 (a null behind)", ok(TWO, "ok\0"), &[TWO], "ok"),
        of("RFC 9112 6.3 (bytes behind nothing)", ok("Content-Length: 0", "x"), &["Content-Length: 0"], ""),
        of(
            "RFC 9112 7.1 (bytes behind the last chunk)",
            ok(CHUNKED, "2\r\nok\r\n0\r\n\r\n0\r\n\r\n"),
            &[CHUNKED],
            "ok",
        ),
        of("response queue poisoning (two answers)", format!("{}{evil}", ok(TWO, "ok")), &[TWO], "ok"),
        of("response queue poisoning (three answers)", format!("{}{evil}{evil}", ok(TWO, "ok")), &[TWO], "ok"),
        of("response queue poisoning (behind chunks)", format!("{}{evil}", ok(CHUNKED, "0\r\n\r\n")), &[CHUNKED], ""),
        of("response queue poisoning (half an answer)", format!("{}HTTP/1.1 200", ok(TWO, "ok")), &[TWO], "ok"),
        of(
            "response queue poisoning (an interim one)",
            format!("{}HTTP/1.1 103 Early Hints\r\n\r\n", ok(TWO, "ok")),
            &[TWO],
            "ok",
        ),
        of(
            "response splitting (an empty line in the head)",
            ok(&format!("Content-Length: 0\r\n\r\n{OK}\r\n{TWO}"), "ok"),
            &["Content-Length: 0"],
            "",
        ),
        of("response queue poisoning (behind a 304)", format!("{NOT_MODIFIED}{evil}"), &[], "")
            .being("HTTP/1.1 304 Not Modified"),
        of("response queue poisoning (and the end)", format!("{}{evil}", ok(TWO, "ok")), &[TWO], "ok")
            .behind(Behind::End),
    ]
}

const NOT_MODIFIED: &str = "HTTP/1.1 304 Not Modified\r\n\r\n";

impl AnswerRow {
    /// With this status line.
    fn being(mut self, wanted: &'static str) -> AnswerRow {
        if let Gets::Whole { line, .. } = &mut self.gets {
            *line = wanted;
        }
        self
    }
}

fn interims() -> Vec<AnswerRow> {
    let last = ok(TWO, "ok");
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let hint = "HTTP/1.1 103 Early Hints";
    let of = |section, text: String, lines: &[&str]| whole(section, text, OK, &[TWO], "ok").interims(lines);
    let flood = |count: usize| format!("{}{last}", "HTTP/1.1 102 Processing\r\n\r\n".repeat(count));
    let switching = |lines: &str| format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n");
    let mut rows = vec![
        of("RFC 9110 15.2", format!("{hints}{last}"), &[hint]),
        of(
            "RFC 9110 10.1.1 (the body was asked for)",
            format!("HTTP/1.1 100 Continue\r\n\r\n{last}"),
            &["HTTP/1.1 100 Continue"],
        )
        .asking(ASK_EXPECTING),
        of("RFC 9110 15.2 (two)", format!("{hints}{hints}{last}"), &[hint, hint]),
        of(
            "RFC 9110 15.2 (100 that nobody asked for)",
            format!("HTTP/1.1 100 Continue\r\n\r\n{last}"),
            &["HTTP/1.1 100 Continue"],
        ),
        of(
            "RFC 9110 15.2 (one nobody knows)",
            format!("HTTP/1.1 199 Strange\r\n\r\n{last}"),
            &["HTTP/1.1 199 Strange"],
        ),
        of(
            "RFC 9112 6.3 (an interim one has no body)",
            format!("HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n{last}"),
            &[hint],
        ),
        of("RFC 9110 15.2 (as many as may be)", flood(16), &["HTTP/1.1 102 Processing"; 16]),
        of("RFC 9110 15.2 (to a HEAD)", format!("{hints}{}", ok(TWO, "")), &[hint]).asking(ASK_HEAD).empty(),
    ];
    rows.extend(
        bad("RFC 9110 15.2 (a flood)", [flood(17), flood(40)])
            .into_iter()
            .map(|row| row.interims(&["HTTP/1.1 102 Processing"; 16])),
    );
    rows.extend(
        bad("RFC 9110 15.2 (malformed behind)", [format!("{hints}HTTP/1.1 2 OK\r\n\r\n")])
            .into_iter()
            .map(|row| row.interims(&[hint])),
    );
    rows.extend(bad(
        "RFC 9110 15.2.2 (101 that nobody asked for)",
        [switching("Connection: Upgrade\r\nUpgrade: websocket\r\n"), switching("")],
    ));
    let asked = bad(
        "RFC 9110 15.2.2, 7.8 (101 to something else)",
        [
            switching("Connection: Upgrade\r\nUpgrade: h2c\r\n"),
            switching("Upgrade: x, y\r\nConnection: Upgrade\r\n"),
            switching("X: y\r\n"),
            switching(""),
        ],
    );
    rows.extend(asked.into_iter().map(|row| row.asking(ASK_UPGRADE)));
    rows.push(of("RFC 9110 7.8 (an offer declined)", last.clone(), &[]).asking(ASK_UPGRADE));
    rows
}

impl AnswerRow {
    /// With no body.
    fn empty(mut self) -> AnswerRow {
        if let Gets::Whole { body, .. } = &mut self.gets {
            body.clear();
        }
        self
    }
}

fn old() -> Vec<AnswerRow> {
    let line = "HTTP/1.0 200 OK";
    let close = "Connection: close";
    let backend = |lines: &str, body: &str| format!("{line}\r\n{lines}\r\n\r\n{body}");
    vec![
        whole("RFC 9112 9.3 (a backend of HTTP/1.0)", backend(TWO, "ok"), OK, &[TWO], "ok").not_kept(),
        whole(
            "RFC 9112 C.2.2 (that keeps its connection)",
            backend(&format!("Connection: keep-alive\r\n{TWO}"), "ok"),
            OK,
            &[TWO],
            "ok",
        ),
        whole("RFC 9112 6.3 (that ends with the body)", backend("X: y", "ok"), OK, &["X: y", CHUNKED], "ok")
            .behind(Behind::End)
            .not_kept(),
        whole("RFC 9112 2.3 (a client of HTTP/1.0)", ok(TWO, "ok"), line, &[TWO, close], "ok").asking(ASK_OLD),
        whole(
            "RFC 9110 6.5 (nor trailers)",
            ok(&format!("Trailer: X\r\n{CHUNKED}"), "0\r\nX: y\r\n\r\n"),
            line,
            &[close],
            "",
        )
        .asking(ASK_OLD),
        whole("RFC 9112 7 (that knows no chunks)", ok(CHUNKED, "2\r\nok\r\n0\r\nX: y\r\n\r\n"), line, &[close], "ok")
            .asking(ASK_OLD),
        whole("RFC 9112 6.3 (that waits for the close)", ok("X: y", "ok"), line, &["X: y", close], "ok")
            .asking(ASK_OLD)
            .behind(Behind::End)
            .not_kept(),
        whole(
            "RFC 9110 15.2 (that knows no interim answers)",
            format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", ok(TWO, "ok")),
            line,
            &[TWO, close],
            "ok",
        )
        .asking(ASK_OLD),
    ]
}

fn large() -> Vec<AnswerRow> {
    let fixed = ok("Content-Length: 0\r\nX: ", "").len();
    let of = |bytes: usize| format!("X: {}", "x".repeat(bytes - fixed));
    let many = |count: usize| (0..count).map(|number| format!("X{number}:")).collect::<Vec<_>>();
    let joined = |count: usize| ok(&format!("{}\r\nContent-Length: 0", many(count).join("\r\n")), "");
    let (fits, lines) = (of(64 * 1024), many(255));
    let passed: Vec<&str> = lines.iter().map(String::as_str).chain(["Content-Length: 0"]).collect();
    let mut rows = vec![
        whole(
            "RFC 9112 5.4 (a head of 64 KiB)",
            ok(&format!("Content-Length: 0\r\n{fits}"), ""),
            OK,
            &["Content-Length: 0", &fits],
            "",
        ),
        whole("RFC 9112 5.4 (256 fields)", joined(255), OK, &passed, ""),
    ];
    rows.extend(bad(
        "RFC 9112 5.4 (a head without bounds)",
        [ok(&format!("Content-Length: 0\r\n{}", of(64 * 1024 + 1)), ""), joined(256), joined(400)],
    ));
    rows
}
