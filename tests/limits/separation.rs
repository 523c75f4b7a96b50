use crate::support::client::{Client, raw};
use crate::support::fields::rate_limit;
use crate::support::store::{Store, api_key, limit, limit_with};

/// One request: path, method, further field lines.
type Request<'a> = (&'a str, &'a str, &'a str);

/// The limit lets one request through for each bucket. All of `first` must pass, so they meet in no bucket; then all of
/// `again` are denied, so each of them meets one of the first.
fn apart(store: &Store, by: &str, rest: &str, first: &[Request<'_>], again: &[Request<'_>]) {
    let server = "trusted_proxies = [\"127.0.0.1\"]";
    let gateway = store.gateway_with(server, &format!("{}{rest}", limit("x", by, 1)));
    let mut client = Client::connect(gateway.address);
    let mut status = |(path, method, fields): &Request<'_>| {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n{fields}\r\n");
        client.send(head).response().status
    };
    for request in first {
        assert_eq!(status(request), 200, "{request:?} should have a bucket of its own");
    }
    for request in again {
        assert_eq!(status(request), 429, "{request:?} should meet a bucket that is empty");
    }
}

fn users_are_apart(store: &Store) {
    let [alice, bob] = [api_key("a"), api_key("b")];
    let first = [("/", "GET", alice.as_str()), ("/", "GET", &bob), ("/", "GET", "")];
    let again = [("/x", "GET", alice.as_str()), ("/", "POST", &bob), ("/", "GET", "X-Other: 1\r\n")];
    apart(store, "\"user\"", "", &first, &again);
}

#[test]
fn users_are_apart_in_memory() {
    users_are_apart(&Store::memory());
}

#[test]
fn users_are_apart_in_redis() {
    users_are_apart(&Store::redis());
}

fn endpoints_are_apart(store: &Store) {
    let alice = api_key("a");
    let first = [("/a", "GET", ""), ("/b", "GET", ""), ("/a/b", "GET", ""), ("/", "GET", "")];
    let again = [("/a", "POST", ""), ("/b", "GET", alice.as_str()), ("/a/b", "GET", ""), ("/", "GET", "")];
    apart(store, "\"endpoint\"", "", &first, &again);
}

#[test]
fn endpoints_are_apart_in_memory() {
    endpoints_are_apart(&Store::memory());
}

#[test]
fn endpoints_are_apart_in_redis() {
    endpoints_are_apart(&Store::redis());
}

fn methods_are_apart(store: &Store) {
    let first = [("/", "GET", ""), ("/", "POST", ""), ("/", "PURGE", "")];
    let again = [("/x", "GET", ""), ("/x", "POST", ""), ("/x", "PURGE", "")];
    apart(store, "\"method\"", "", &first, &again);
}

#[test]
fn methods_are_apart_in_memory() {
    methods_are_apart(&Store::memory());
}

#[test]
fn methods_are_apart_in_redis() {
    methods_are_apart(&Store::redis());
}

/// The user's name is another matter: keys do not make one address into several.
fn addresses_are_apart(store: &Store) {
    let [one, two] = ["203.0.113.1", "203.0.113.2"].map(|ip| format!("X-Forwarded-For: {ip}\r\n"));
    let one_with_key = format!("{one}{}", api_key("new"));
    let first = [("/", "GET", one.as_str()), ("/", "GET", &two), ("/", "GET", "")];
    let again = [("/", "GET", one_with_key.as_str()), ("/y", "GET", &two), ("/", "POST", "")];
    apart(store, "\"ip\"", "", &first, &again);
}

#[test]
fn addresses_are_apart_in_memory() {
    addresses_are_apart(&Store::memory());
}

#[test]
fn addresses_are_apart_in_redis() {
    addresses_are_apart(&Store::redis());
}

fn one_ipv6_network_is_one_client(store: &Store) {
    let [one, same, other] =
        ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"].map(|ip| format!("X-Forwarded-For: {ip}\r\n"));
    let first = [("/", "GET", one.as_str()), ("/", "GET", &other)];
    apart(store, "\"ip\"", "", &first, &[("/", "GET", same.as_str())]);
}

#[test]
fn one_ipv6_network_is_one_client_in_memory() {
    one_ipv6_network_is_one_client(&Store::memory());
}

#[test]
fn one_ipv6_network_is_one_client_in_redis() {
    one_ipv6_network_is_one_client(&Store::redis());
}

fn routes_are_apart(store: &Store) {
    let routes = "[[routes]]\npath = \"/a\"\nupstream = \"app\"\n[[routes]]\npath = \"/a\"\nmethods = [\"POST\"]\n\
                  upstream = \"app\"\n";
    let first = [("/", "GET", ""), ("/a/1", "GET", ""), ("/a/1", "POST", "")];
    let again = [("/b", "POST", ""), ("/a/2", "GET", ""), ("/a", "POST", "")];
    apart(store, "\"route\"", routes, &first, &again);
}

#[test]
fn routes_are_apart_in_memory() {
    routes_are_apart(&Store::memory());
}

#[test]
fn routes_are_apart_in_redis() {
    routes_are_apart(&Store::redis());
}

fn field_values_are_apart(store: &Store) {
    let first = [("/", "GET", "X-Tenant: a\r\n"), ("/", "GET", "X-Tenant: b\r\n"), ("/", "GET", "")];
    let again = [("/", "GET", "x-tenant: a\r\n"), ("/", "GET", "X-Tenant:   b  \r\n"), ("/", "GET", "X-Tenant:\r\n")];
    apart(store, "\"header:X-Tenant\"", "", &first, &again);
}

#[test]
fn field_values_are_apart_in_memory() {
    field_values_are_apart(&Store::memory());
}

#[test]
fn field_values_are_apart_in_redis() {
    field_values_are_apart(&Store::redis());
}

fn several_parts_make_one_bucket_for_each_combination(store: &Store) {
    let [alice, bob] = [api_key("a"), api_key("b")];
    let first = [("/a", "GET", alice.as_str()), ("/b", "GET", &alice), ("/a", "GET", &bob), ("/a", "POST", &alice)];
    apart(store, "\"user\", \"endpoint\", \"method\"", "", &first, &first);
}

#[test]
fn several_parts_make_one_bucket_for_each_combination_in_memory() {
    several_parts_make_one_bucket_for_each_combination(&Store::memory());
}

#[test]
fn several_parts_make_one_bucket_for_each_combination_in_redis() {
    several_parts_make_one_bucket_for_each_combination(&Store::redis());
}

fn a_limit_by_nothing_is_one_for_all(store: &Store) {
    let alice = api_key("a");
    let again = [("/a", "GET", alice.as_str()), ("/b", "POST", ""), ("/", "GET", "X-Forwarded-For: 192.0.2.1\r\n")];
    apart(store, "", "", &[("/", "GET", "")], &again);
}

#[test]
fn a_limit_by_nothing_is_one_for_all_in_memory() {
    a_limit_by_nothing_is_one_for_all(&Store::memory());
}

#[test]
fn a_limit_by_nothing_is_one_for_all_in_redis() {
    a_limit_by_nothing_is_one_for_all(&Store::redis());
}

fn spellings_of_one_path_share_a_bucket(store: &Store) {
    let spellings = [
        "//a/b",
        "/a//b",
        "/%61/b",
        "/a/b/",
        "/a/b?x=1",
        "/./a/b",
        "/a/./b",
        "/c/../a/b",
        "/../a/b",
        "/a/%62",
        "/%2e/a/b",
        "/a/b/.",
        "/a/b/c/..",
        "/a/b//",
        "http://other/a/b",
        "/a%2Fb",
        "/a%5cb%2f",
        "/a;x/b;y=%61",
        "/;x/a/b",
    ];
    let again: Vec<Request<'_>> = spellings.iter().map(|path| (*path, "GET", "")).collect();
    apart(store, "\"endpoint\"", "", &[("/a/b", "GET", ""), ("/A/b", "GET", ""), ("/a%252Fb", "GET", "")], &again);
}

#[test]
fn spellings_of_one_path_share_a_bucket_in_memory() {
    spellings_of_one_path_share_a_bucket(&Store::memory());
}

#[test]
fn spellings_of_one_path_share_a_bucket_in_redis() {
    spellings_of_one_path_share_a_bucket(&Store::redis());
}

fn a_limit_applies_to_whole_segments_of_its_path(store: &Store) {
    let gateway = store.gateway(&limit_with("x", "", 100, "match = { path = \"/api/v1/\" }"));
    let mut client = Client::connect(gateway.address);
    let mut is_limited = |path: &str| {
        let response = client.get(path, "");
        assert_eq!(response.status, 200, "{path}");
        !rate_limit(&response).is_empty()
    };
    for path in ["/api/v1", "/api/v1/", "/api/v1/x", "//api/./v1", "/api/%761?q", "/x/../api/v1/y"] {
        assert!(is_limited(path), "{path}");
    }
    for path in ["/api/v12", "/api/v", "/api", "/", "/API/v1", "/x/api/v1", "/?/api/v1"] {
        assert!(!is_limited(path), "{path}");
    }
}

#[test]
fn a_limit_applies_to_whole_segments_of_its_path_in_memory() {
    a_limit_applies_to_whole_segments_of_its_path(&Store::memory());
}

#[test]
fn a_limit_applies_to_whole_segments_of_its_path_in_redis() {
    a_limit_applies_to_whole_segments_of_its_path(&Store::redis());
}

fn a_limit_applies_to_its_host_and_methods(store: &Store) {
    let scope = "match = { host = \"*.example.com\", methods = [\"POST\"] }";
    let gateway = store.gateway(&limit_with("x", "", 100, scope));
    for (method, host, limited) in [
        ("POST", "a.example.com", true),
        ("POST", "A.EXAMPLE.com:8080", true),
        ("POST", "a.example.com.", true),
        ("POST", "a.example.com.:8080", true),
        ("GET", "a.example.com", false),
        ("POST", "example.com", false),
        ("POST", "a.example.org", false),
    ] {
        let head = format!("{method} / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
        let response = raw(gateway.address, head);
        assert_eq!(rate_limit(&response).len(), usize::from(limited), "{method} {host}");
    }
}

#[test]
fn a_limit_applies_to_its_host_and_methods_in_memory() {
    a_limit_applies_to_its_host_and_methods(&Store::memory());
}

#[test]
fn a_limit_applies_to_its_host_and_methods_in_redis() {
    a_limit_applies_to_its_host_and_methods(&Store::redis());
}
