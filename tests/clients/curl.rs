//! curl, as it is called every day.

use super::{Setup, noise, origin, run, text};

#[test]
fn curl_gets() {
    let setup = Setup::new();
    let output = run("curl", &["-sSi", &setup.url("/")], b"");
    let said = text(&output.stdout);
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nok"), "{said}");
}

#[test]
fn curl_posts_what_it_was_asked_to_go_on_with() {
    let setup = Setup::new();
    let body = noise(300_000);
    let arguments = ["-sSv", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-"];
    let output = run("curl", &[&arguments[..], &[&setup.url("/echo")]].concat(), &body);
    assert!(output.stdout == body, "the body was changed on the way");
    // Not the timeout made it go on.
    assert!(text(&output.stderr).contains("< HTTP/1.1 100 Continue"), "{}", text(&output.stderr));
}

#[test]
fn curl_uploads_what_has_no_length() {
    let setup = Setup::new();
    let body = noise(300_000);
    let output = run("curl", &["-sS", "-T", "-", &setup.url("/echo")], &body);
    assert!(output.stdout == body, "the body was changed on the way");
    let head = setup.origin.heads().pop().unwrap();
    assert!(head.starts_with("PUT /echo ") && head.contains("Transfer-Encoding: chunked"), "{head}");
}

#[test]
fn curl_asks_for_a_head_only() {
    let setup = Setup::new();
    // Twice on one connection: a body after the first head would be taken for the second.
    let url = setup.url("/bytes/1000");
    let output = run("curl", &["-sSI", &url, &url], b"");
    let said = text(&output.stdout);
    assert_eq!(said.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{said}");
    assert_eq!(said.to_lowercase().matches("content-length: 1000\r\n").count(), 2, "{said}");
    assert!(said.ends_with("\r\n\r\n"), "{said}");
}

#[test]
fn curl_speaks_http_1_0() {
    let setup = Setup::new();
    for path in ["/bytes/1000", "/echo/chunked"] {
        let output = run("curl", &["-sSi", "--http1.0", &setup.url(path)], b"");
        let said = text(&output.stdout);
        assert!(said.starts_with("HTTP/1.0 200 OK\r\n"), "{path}: {said}");
        assert!(!said.to_lowercase().contains("transfer-encoding"), "{path}: {said}");
    }
}

#[test]
fn curl_downloads_a_mebibyte() {
    let setup = Setup::new();
    let output = run("curl", &["-sS", &setup.url("/bytes/1048576")], b"");
    assert!(output.stdout == origin::bytes(1_048_576), "the download was changed on the way");
}
