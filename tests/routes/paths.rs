use super::{gateway, route};
use crate::support::client::{Client, raw};
use crate::support::fields::remaining;
use crate::support::gateway::Gateway;
use crate::support::origin::Origin;
use crate::support::store::limit_with;

/// The request line that a backend gets for one that a client sends.
fn asked_for(gateway: &Gateway, origin: &Origin, line: &str) -> String {
    let response = raw(gateway.address, format!("{line}\r\nHost: h\r\nConnection: close\r\n\r\n"));
    assert_eq!(response.status, 200, "{line}");
    origin.requests().pop().unwrap().line().to_string()
}

#[test]
fn a_prefix_is_stripped_and_another_added() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let rest = route("path = \"/api/\"\nstrip_prefix = \"/api\"")
        + &route("path = \"/both/deep\"\nstrip_prefix = \"/both\"\nadd_prefix = \"/v1\"");
    let gateway = gateway(&app, &other, &rest);
    for (line, seen) in [
        ("GET /api HTTP/1.1", "GET / HTTP/1.1"),
        ("GET /api/ HTTP/1.1", "GET / HTTP/1.1"),
        ("GET /api/a/b/?q=/api/%2F HTTP/1.1", "GET /a/b/?q=/api/%2F HTTP/1.1"),
        ("GET //api/x HTTP/1.1", "GET /x HTTP/1.1"),
        ("GET /%61pi/%7Ex/%2f HTTP/1.1", "GET /%7Ex/%2f HTTP/1.1"),
        ("GET /a/../api/x HTTP/1.1", "GET /x HTTP/1.1"),
        ("GET /api/x/%2e%2e/y HTTP/1.1", "GET /y HTTP/1.1"),
        ("GET /api;x/y HTTP/1.1", "GET /y HTTP/1.1"),
        ("GET /api//evil.test/x HTTP/1.1", "GET /evil.test/x HTTP/1.1"),
        ("GET http://other/api/x?y HTTP/1.1", "GET /x?y HTTP/1.1"),
        ("POST /api/x HTTP/1.0", "POST /x HTTP/1.1"),
        ("GET /both/deep HTTP/1.1", "GET /v1/deep HTTP/1.1"),
        ("GET /both/deep/?q HTTP/1.1", "GET /v1/deep/?q HTTP/1.1"),
    ] {
        assert_eq!(asked_for(&gateway, &other, line), seen, "{line}");
    }
    assert_eq!(app.connections(), 0);
    // Other routes send what they got, byte for byte.
    assert_eq!(asked_for(&gateway, &app, "GET /x//./%61?y HTTP/1.1"), "GET /x//./%61?y HTTP/1.1");
}

#[test]
fn what_cannot_be_cut_cleanly_is_refused_before_it_is_charged() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let rest = route("path = \"/api/v1\"\nstrip_prefix = \"/api/v1\"") + &limit_with("x", "", 9, "");
    let gateway = gateway(&app, &other, &rest);
    let mut client = Client::connect(gateway.address);
    for path in ["/api%2Fv1/x", "/api/v1%2fx", "/api%5cv1"] {
        let response = client.get(path, "");
        assert_eq!(response.status, 400, "{path}");
        let detail = response.json()["detail"].as_str().unwrap().to_string();
        assert!(detail.contains("encoded separator where a prefix is cut off"), "{detail}");
    }
    assert_eq!(remaining(&client.get("/api/v1/%2Fx", ""), "x"), 8);
    assert_eq!((other.requests().len(), other.requests()[0].line()), (1, "GET /%2Fx HTTP/1.1"));
}

#[test]
fn a_path_is_rewritten_and_limits_see_the_one_that_was_sent() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let rest = [
        route("path = \"/old\"\nrewrite = { pattern = '^/old/(\\d+)/(.*)$', to = \"/new/$2/$1\" }"),
        route("path = \"/to\"\nrewrite = { pattern = '^/to(.*)$', to = \"/$1\" }"),
        route("path = \"/dots\"\nrewrite = { pattern = '^/dots/x(.*)$', to = \"/.$1\" }"),
        limit_with("old", "\"endpoint\"", 9, "match.path = \"/old\""),
    ];
    let gateway = gateway(&app, &other, &rest.concat());
    for (line, seen) in [
        ("GET /old/12/a/%20b/?x=/old/1/ HTTP/1.1", "GET /new/a/%20b/12?x=/old/1/ HTTP/1.1"),
        ("GET /%6Fld/3/%61 HTTP/1.1", "GET /new/a/3 HTTP/1.1"),
        ("GET /old/x/a HTTP/1.1", "GET /old/x/a HTTP/1.1"),
        ("GET /to//evil.test/x HTTP/1.1", "GET /evil.test/x HTTP/1.1"),
        ("GET http://h/to HTTP/1.1", "GET / HTTP/1.1"),
    ] {
        assert_eq!(asked_for(&gateway, &other, line), seen, "{line}");
    }
    let mut client = Client::connect(gateway.address);
    assert_eq!(remaining(&client.get("/old/12/a/%20b", ""), "old"), 7);
    // What came out of it would be several places.
    assert_eq!(client.get("/dots/x.%2fy", "").status, 400);
}

#[test]
fn the_server_itself_is_asked_for_as_it_is() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let gateway = gateway(&app, &other, &route("host = \"h\"\nadd_prefix = \"/v1\""));
    for (line, seen) in [
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("OPTIONS http://h HTTP/1.1", "OPTIONS * HTTP/1.1"),
        ("OPTIONS http://h/ HTTP/1.1", "OPTIONS /v1/ HTTP/1.1"),
        ("GET http://h HTTP/1.1", "GET /v1/ HTTP/1.1"),
        ("GET http://h?q HTTP/1.1", "GET /v1/?q HTTP/1.1"),
    ] {
        assert_eq!(asked_for(&gateway, &other, line), seen, "{line}");
    }
}
