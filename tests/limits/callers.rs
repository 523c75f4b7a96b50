use crate::support::client::Client;
use crate::support::fields::{policy, rate_limit, remaining};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use crate::support::store::{Store, api_key, decisions, limit, limit_with};

const CONSUMERS: &str = "[[consumers]]\nname = \"alice\"\napi_key = \"alice-key\"\n\
                         [[consumers]]\nname = \"bob\"\napi_key = \"bob-key\"\n";

const PREFLIGHT: &str =
    "OPTIONS /x HTTP/1.1\r\nHost: test\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n";

fn identity(unknown: &str) -> String {
    format!("[identity]\nunknown_api_keys = \"{unknown}\"\n{CONSUMERS}")
}

/// As `identity`, and alice has the plan "pro".
fn with_plan() -> String {
    identity("accept").replace("\"alice-key\"", "\"alice-key\"\nplan = \"pro\"")
}

fn a_plan_comes_before_the_limits_own_quota(store: &Store) {
    let plans = "plans = { pro = { rate = \"2/d\", burst = 4 } }";
    let gateway = store.gateway(&format!("{}{}", with_plan(), limit_with("x", "\"user\"", 2, plans)));
    let mut client = Client::connect(gateway.address);
    for (key, burst, window_s) in [("alice-key", 4, 172_800), ("bob-key", 2, 172_800), ("stranger", 2, 172_800)] {
        for left in (0..burst).rev() {
            let response = client.get("/", &api_key(key));
            assert_eq!((response.status, remaining(&response, "x")), (200, left), "{key}");
            let policy = &policy(&response)[0];
            assert_eq!((policy.quota, policy.window_s), (burst, window_s), "{key}");
        }
        assert_eq!(client.get("/", &api_key(key)).status, 429, "{key}");
    }
}

#[test]
fn a_plan_comes_before_the_limits_own_quota_in_memory() {
    a_plan_comes_before_the_limits_own_quota(&Store::memory());
}

#[test]
fn a_plan_comes_before_the_limits_own_quota_in_redis() {
    a_plan_comes_before_the_limits_own_quota(&Store::redis());
}

fn a_denial_under_a_plan_tells_the_plans_rate(store: &Store) {
    let plans = "plans = { pro = { rate = \"7/h\", burst = 1 } }";
    let gateway = store.gateway(&format!("{}{}", with_plan(), limit_with("x", "\"user\"", 2, plans)));
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/", &api_key("alice-key")).status, 200);
    let body = client.get("/", &api_key("alice-key")).json();
    assert_eq!((&body["rate"], &body["burst"]), (&"7/h".into(), &1.into()));
}

#[test]
fn a_denial_under_a_plan_tells_the_plans_rate_in_memory() {
    a_denial_under_a_plan_tells_the_plans_rate(&Store::memory());
}

#[test]
fn a_denial_under_a_plan_tells_the_plans_rate_in_redis() {
    a_denial_under_a_plan_tells_the_plans_rate(&Store::redis());
}

fn a_key_of_nobody_is_refused_where_only_consumers_may_come(store: &Store) {
    let gateway = store.gateway(&format!("{}{}", identity("reject"), limit("x", "", 1)));
    let mut client = Client::connect(gateway.address);
    for _ in 0..3 {
        let refused = client.get("/", &api_key("stranger"));
        assert_eq!(refused.status, 401);
        assert_eq!(refused.field("Content-Type"), Some("application/problem+json"));
        assert_eq!(refused.json()["blame"], "client");
    }
    // And took nothing.
    assert_eq!(client.get("/", &api_key("alice-key")).status, 200);
    assert_eq!(gateway.metric(&decisions("x", "allow")), 1.0);
}

#[test]
fn a_key_of_nobody_is_refused_where_only_consumers_may_come_in_memory() {
    a_key_of_nobody_is_refused_where_only_consumers_may_come(&Store::memory());
}

#[test]
fn a_key_of_nobody_is_refused_where_only_consumers_may_come_in_redis() {
    a_key_of_nobody_is_refused_where_only_consumers_may_come(&Store::redis());
}

/// Else a client would have as many buckets as it can think of keys.
fn a_key_of_nobody_is_the_address_where_so_configured(store: &Store) {
    let gateway = store.gateway(&format!("{}{}", identity("ip"), limit("x", "\"user\"", 2)));
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/", &api_key("made-up-1")).status, 200);
    assert_eq!(client.get("/", "").status, 200);
    assert_eq!(client.get("/", &api_key("made-up-2")).status, 429);
    assert_eq!(client.get("/", &api_key("alice-key")).status, 200);
}

#[test]
fn a_key_of_nobody_is_the_address_where_so_configured_in_memory() {
    a_key_of_nobody_is_the_address_where_so_configured(&Store::memory());
}

#[test]
fn a_key_of_nobody_is_the_address_where_so_configured_in_redis() {
    a_key_of_nobody_is_the_address_where_so_configured(&Store::redis());
}

fn the_first_source_that_is_present_says_who_it_is(store: &Store) {
    let identity = "[identity]\nsources = [\"header:X-User\", \"cookie:sid\", \"ip\"]\n";
    let gateway = store.gateway(&format!("{identity}{}", limit("x", "\"user\"", 1)));
    let mut client = Client::connect(gateway.address);
    for fields in ["X-User: u\r\nCookie: sid=1\r\n", "Cookie: a=b; sid=1\r\n", ""] {
        assert_eq!(client.get("/", fields).status, 200, "{fields:?}");
    }
    for fields in ["X-User: u\r\n", "Cookie: sid=1\r\n", "X-API-Key: k\r\n"] {
        assert_eq!(client.get("/", fields).status, 429, "{fields:?}");
    }
}

#[test]
fn the_first_source_that_is_present_says_who_it_is_in_memory() {
    the_first_source_that_is_present_says_who_it_is(&Store::memory());
}

#[test]
fn the_first_source_that_is_present_says_who_it_is_in_redis() {
    the_first_source_that_is_present_says_who_it_is(&Store::redis());
}

/// An untrusted client cannot choose its address.
fn a_forged_address_changes_nothing(store: &Store) {
    let gateway = store.gateway(&limit("x", "\"ip\"", 2));
    let mut client = Client::connect(gateway.address);
    let statuses =
        [1, 2, 3].map(|i| client.get("/", &format!("X-Forwarded-For: 203.0.113.{i}\r\nForwarded: for={i}\r\n")).status);
    assert_eq!(statuses, [200, 200, 429]);
}

#[test]
fn a_forged_address_changes_nothing_in_memory() {
    a_forged_address_changes_nothing(&Store::memory());
}

#[test]
fn a_forged_address_changes_nothing_in_redis() {
    a_forged_address_changes_nothing(&Store::redis());
}

fn a_preflight_is_not_counted(store: &Store) {
    let gateway = store.gateway(&limit("x", "", 2));
    let mut client = Client::connect(gateway.address);
    for _ in 0..5 {
        let response = client.send(PREFLIGHT).response();
        assert_eq!(response.status, 200);
        assert_eq!(rate_limit(&response), []);
    }
    assert_eq!(remaining(&client.get("/x", ""), "x"), 1);
}

#[test]
fn a_preflight_is_not_counted_in_memory() {
    a_preflight_is_not_counted(&Store::memory());
}

#[test]
fn a_preflight_is_not_counted_in_redis() {
    a_preflight_is_not_counted(&Store::redis());
}

/// Only what a browser sends by itself is free: any other OPTIONS request is one like all.
fn an_options_request_that_is_no_preflight_is_counted(store: &Store) {
    let gateway = store.gateway(&limit("x", "", 6));
    let mut client = Client::connect(gateway.address);
    for fields in ["", "Origin: https://a.example\r\n", "Access-Control-Request-Method: PUT\r\n"] {
        assert_eq!(client.send(format!("OPTIONS /x HTTP/1.1\r\nHost: h\r\n{fields}\r\n")).response().status, 200);
    }
    for (more, body) in [
        ("Content-Length: 2", "hi"),
        ("Transfer-Encoding: chunked", "0\r\n\r\n"),
        ("Connection: Upgrade\r\nUpgrade: websocket", ""),
    ] {
        let head = PREFLIGHT.replace("Host: test", &format!("Host: test\r\n{more}"));
        let response = client.send(head + body).response();
        assert_eq!((response.status, rate_limit(&response).len()), (200, 1), "{more}");
    }
    assert_eq!(client.get("/x", "").status, 429);
}

#[test]
fn an_options_request_that_is_no_preflight_is_counted_in_memory() {
    an_options_request_that_is_no_preflight_is_counted(&Store::memory());
}

#[test]
fn an_options_request_that_is_no_preflight_is_counted_in_redis() {
    an_options_request_that_is_no_preflight_is_counted(&Store::redis());
}

fn a_preflight_is_counted_by_limits_that_ask_for_it(store: &Store) {
    let rules = limit_with("all", "", 2, "count_preflight = true") + &limit("usual", "", 10);
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    let statuses = [(); 3].map(|()| client.send(PREFLIGHT).response().status);
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(gateway.metric(&decisions("usual", "allow")), 0.0);
}

#[test]
fn a_preflight_is_counted_by_limits_that_ask_for_it_in_memory() {
    a_preflight_is_counted_by_limits_that_ask_for_it(&Store::memory());
}

#[test]
fn a_preflight_is_counted_by_limits_that_ask_for_it_in_redis() {
    a_preflight_is_counted_by_limits_that_ask_for_it(&Store::redis());
}

fn the_backend_sees_admitted_requests_only(store: &Store) {
    let origin = Origin::ok();
    let rest = format!("{}{}", store.lines(), limit("x", "", 3));
    let gateway = Gateway::start(&config("", &[origin.address], &rest));
    if let Store::Redis(_) = store {
        gateway.until_store_connected();
    }
    let mut client = Client::connect(gateway.address);
    for i in 0..6 {
        client.get(&format!("/{i}"), "");
    }
    let lines: Vec<String> = origin.requests().iter().map(|request| request.line().to_owned()).collect();
    assert_eq!(lines, ["GET /0 HTTP/1.1", "GET /1 HTTP/1.1", "GET /2 HTTP/1.1"]);
}

#[test]
fn the_backend_sees_admitted_requests_only_in_memory() {
    the_backend_sees_admitted_requests_only(&Store::memory());
}

#[test]
fn the_backend_sees_admitted_requests_only_in_redis() {
    the_backend_sees_admitted_requests_only(&Store::redis());
}
