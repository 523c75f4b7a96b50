use super::{gateway, route};
use crate::support::client::{Client, raw};
use crate::support::fields::{rate_limit, remaining};
use crate::support::origin::Origin;
use crate::support::store::{Store, limit_with};

/// A backend that says who it is.
fn named(name: &str) -> Origin {
    Origin::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

#[test]
fn exact_paths_and_header_fields_choose_the_backend() {
    let (app, other) = (named("app"), named("other"));
    let rest = [
        route("path = \"/exact\"\nexact = true"),
        route("path = \"/v\"\nheaders = { \"X-Version\" = \"2\", \"X-Beta\" = \"*\" }"),
        route("path = \"/v/deep\"\nhost = \"deep.test\""),
        "[[routes]]\nupstream = \"app\"\npath = \"/v/deep\"\nheaders.X-Version = \"2\"\n".into(),
    ];
    let gateway = gateway(&app, &other, &rest.concat());
    let mut client = Client::connect(gateway.address);
    for (path, fields, backend) in [
        ("/exact", "", "other"),
        ("/exact/", "", "other"),
        ("//%65xact;a?b", "", "other"),
        ("/exact/below", "", "app"),
        ("/exactly", "", "app"),
        ("/v", "X-Version: 2\r\n", "app"),
        ("/v", "X-Beta: yes\r\n", "app"),
        ("/v", "X-Version: 2\r\nx-beta: yes\r\n", "other"),
        ("/v/below", "X-Version: 1\r\nX-VERSION: 2\r\nX-Beta:\r\n", "other"),
        ("/v", "X-Version: 1, 2\r\nX-Beta: yes\r\n", "app"),
        ("/v", "X_Version: 2\r\nX-Beta: yes\r\n", "app"),
        ("/v/deep", "X-Version: 2\r\n", "app"),
    ] {
        let response = client.get(path, fields);
        assert_eq!((response.status, response.text().as_str()), (200, backend), "{path} {fields}");
    }
    // The narrower host comes before headers, whatever the order of the file.
    let deep = raw(gateway.address, "GET /v/deep HTTP/1.1\r\nHost: deep.test:1\r\nX-Version: 2\r\n\r\n");
    assert_eq!(deep.text(), "other");
    let metric = |label: &str| gateway.metric(&format!("rateguard_requests_total{{route=\"{label}\",status=\"2xx\"}}"));
    assert_eq!((metric("=/exact"), metric("/v x-beta:* x-version:2")), (3.0, 2.0));
}

/// A backend that takes X_Version for X-Version would serve another version than the one that was chosen by it.
#[test]
fn what_a_backend_could_take_for_a_field_that_is_matched_on_does_not_pass() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let rest = route("headers.X-Version = \"2\"") + &limit_with("x", "", 9, "match.headers.A-Plan = \"pro\"");
    let gateway = gateway(&app, &other, &rest);
    let fields = "X_Version: 2\r\nX-Version: 1\r\nA_Plan: pro\r\nB_Plan: 1\r\n";
    let response = Client::connect(gateway.address).get("/", fields);
    assert_eq!((response.status, rate_limit(&response).len()), (200, 0));
    let seen = &app.requests()[0];
    let values = ["X_Version", "X-Version", "A_Plan", "B_Plan"].map(|name| seen.fields(name));
    assert_eq!(values, [vec![], vec!["1"], vec![], vec!["1"]]);
}

#[test]
fn limits_ask_for_exact_paths_and_header_fields_too() {
    let rules = [
        limit_with("login", "", 100, "match = { path = \"/login\", exact = true }"),
        limit_with("beta", "", 100, "match.headers = { \"X-Beta\" = \"*\", \"X-Kind\" = \"a\" }"),
    ];
    let gateway = Store::memory().gateway(&rules.concat());
    let mut client = Client::connect(gateway.address);
    let mut left = |path: &str, fields: &str| {
        let response = client.get(path, fields);
        assert_eq!(response.status, 200, "{path}");
        let mut names: Vec<String> = rate_limit(&response).into_iter().map(|left| left.name).collect();
        names.sort();
        names
    };
    assert_eq!(left("/login/", ""), ["login"]);
    assert_eq!(left("/%6cogin;x?y", "X-Beta: 1\r\nX-Kind: b\r\n"), ["login"]);
    assert_eq!(left("/login/below", "x-beta: 1\r\nX-Kind: b\r\nx-kind: a\r\n"), ["beta"]);
    assert_eq!(left("/login", "X-Beta:\r\nX-Kind: a\r\n"), ["beta", "login"]);
    assert_eq!(left("/", "X-Kind: a\r\n"), [""; 0]);
    assert_eq!(remaining(&client.get("/login", ""), "login"), 96);
    // A server that takes `..` for a name would serve the limited path uncounted, or the other way round.
    assert_eq!(client.get("/login/../x", "").status, 200);
    assert_eq!(client.get("/x/../login", "").status, 200);
}

#[test]
fn what_no_route_takes_is_told_so() {
    let origin = Origin::ok();
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nio = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[upstreams.app]\n\
         servers = [\"{}\"]\n[[routes]]\npath = \"/a\"\nupstream = \"app\"\nheaders.X-Version = \"2\"\n",
        crate::support::gateway::io(),
        origin.address
    );
    let gateway = crate::support::gateway::Gateway::start(&text);
    let mut client = Client::connect(gateway.address);
    for (path, fields) in [("/b", "X-Version: 2\r\n"), ("/a", ""), ("/ab", "X-Version: 2\r\n")] {
        let response = client.get(path, &format!("X-Request-Id: id-1\r\n{fields}"));
        assert_eq!((response.status, response.field("Content-Type")), (404, Some("application/problem+json")));
        let body = response.json();
        assert_eq!((&body["status"], &body["title"]), (&404.into(), &"Not Found".into()));
        assert_eq!((&body["type"], &body["blame"]), (&"about:blank".into(), &"client".into()));
        assert_eq!(body["request_id"], "id-1");
        assert!(body["detail"].as_str().unwrap().starts_with("no route matches"), "{body}");
    }
    assert_eq!(client.get("/a/b", "X-Version: 2\r\n").status, 200, "the connection has stayed open");
    assert_eq!(origin.requests().len(), 1);
}
