use super::gateway;
use crate::support::client::{Client, raw};
use crate::support::fields::remaining;
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::store::limit_with;
use std::process::Command;

/// A gateway in front of `app` that redirects with these lines.
fn redirecting(app: &Origin, routes: &[&str], rest: &str) -> Gateway {
    let routes: Vec<String> = routes.iter().map(|lines| format!("[[routes]]\n{lines}\n")).collect();
    gateway(app, app, &format!("{}{rest}", routes.concat()))
}

#[test]
fn clients_are_sent_elsewhere_with_host_path_and_query() {
    let origin = Origin::ok();
    let routes = [
        "path = \"/tls\"\nredirect.to = \"https://{host}{path}\"",
        "path = \"/moved\"\nstrip_prefix = \"/moved\"\nadd_prefix = \"/new\"\nredirect = { to = \"https://b.test:8443{path}\", status = 301 }",
        "path = \"/here\"\nrewrite = { pattern = \"^/here\", to = \"\" }\nredirect = { to = \"{path}\", status = 302 }",
        "path = \"/fixed\"\nredirect = { to = \"/there?x=1\", status = 303 }",
    ];
    let gateway = redirecting(&origin, &routes, "");
    let mut client = Client::connect(gateway.address);
    for (path, host, status, location) in [
        ("/tls", "a.test:8080", "308 Permanent Redirect", "https://a.test/tls"),
        ("/tls/x/?a=b&c", "a.test", "308 Permanent Redirect", "https://a.test/tls/x/?a=b&c"),
        ("//tls/../tls/%2F", "[::1]:1", "308 Permanent Redirect", "https://[::1]/tls/%2F"),
        ("http://c.test:81/tls", "a.test", "308 Permanent Redirect", "https://c.test/tls"),
        ("/moved", "a.test", "301 Moved Permanently", "https://b.test:8443/new"),
        ("/moved/x?y", "a.test", "301 Moved Permanently", "https://b.test:8443/new/x?y"),
        ("/here//evil.test/x", "a.test", "302 Found", "/evil.test/x"),
        ("/fixed/x?y", "a.test", "303 See Other", "/there?x=1"),
    ] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let response = client.response();
        assert!(response.head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{response:?}");
        assert_eq!(response.fields("Location"), [location], "{path}");
        assert_eq!((response.text().as_str(), response.field("Connection")), ("See the Location field.\n", None));
        assert_eq!((response.fields("Date").len(), response.field("Content-Type")), (1, Some("text/plain")));
    }
    assert_eq!(origin.connections(), 0);
    assert_eq!(gateway.metric("rateguard_requests_total{route=\"/tls\",status=\"3xx\"}"), 4.0);
}

#[test]
fn every_method_and_version_is_redirected_and_the_connection_goes_on() {
    let origin = Origin::ok();
    let lines =
        "path = \"/r\"\nredirect.to = \"https://{host}{path}\"\nresponse.set = { \"Cache-Control\" = \"no-store\" }";
    let gateway = redirecting(&origin, &[lines], "");
    let mut client = Client::connect(gateway.address);
    let head = client.send("HEAD /r HTTP/1.1\r\nHost: h\r\n\r\n").response_to_head();
    assert_eq!((head.status, head.field("Content-Length")), (308, Some("24")));
    assert_eq!(head.fields("Cache-Control"), ["no-store"]);
    client.send("POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!((client.response().status, client.get("/r", "").status, client.get("/", "").status), (308, 308, 200));
    let chunked = "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let response = client.send(chunked).response();
    assert_eq!((response.status, response.field("Connection")), (308, Some("close")));
    assert!(client.is_closed());
    let old = raw(gateway.address, "GET /r HTTP/1.0\r\nHost: h\r\n\r\n");
    assert!(old.head.starts_with("HTTP/1.0 308 Permanent Redirect\r\n"), "{old:?}");
    for nowhere in
        ["GET /r HTTP/1.0\r\n\r\n", "GET /r HTTP/1.1\r\nHost:\r\n\r\n", "GET /r HTTP/1.1\r\nHost: a/b\r\n\r\n"]
    {
        let response = raw(gateway.address, nowhere);
        assert_eq!((response.status, response.field("Location")), (400, None), "{nowhere:?}");
    }
}

#[test]
fn a_redirect_is_charged_and_denied_like_all() {
    let origin = Origin::ok();
    let gateway =
        redirecting(&origin, &["path = \"/r\"\nredirect.to = \"https://h.test{path}\""], &limit_with("x", "", 2, ""));
    let mut client = Client::connect(gateway.address);
    for left in [1, 0] {
        let response = client.get("/r", "");
        assert_eq!((response.status, remaining(&response, "x")), (308, left));
    }
    assert_eq!(client.get("/r", "").status, 429);
}

#[test]
fn curl_follows_a_redirect() {
    let origin = Origin::ok();
    let routes =
        ["path = \"/old\"\nrewrite = { pattern = \"^/old/(.*)$\", to = \"/new/$1\" }\nredirect.to = \"{path}\""];
    let gateway = redirecting(&origin, &routes, "");
    let url = format!("http://{}/old/a%20b?x=/old/", gateway.address);
    let output = Command::new("curl")
        .args(["-sS", "-L", "--max-time", "20", "--data", "hello", "-w", " %{num_redirects} %{http_code}", &url])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok 1 200", "{output:?}");
    let seen = &origin.requests()[0];
    assert_eq!((seen.line(), seen.body.as_slice()), ("POST /new/a%20b?x=/old/ HTTP/1.1", b"hello".as_slice()));
}
