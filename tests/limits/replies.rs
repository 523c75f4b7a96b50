use crate::support::client::{Client, Response};
use crate::support::fields::{Left, Quota, policy, rate_limit};
use crate::support::store::{Store, limit, limit_with};
use crate::support::until;

/// Sends requests to `/` until one is denied; gives that answer.
fn denial(client: &mut Client, fields: &str) -> Response {
    (0..100).map(|_| client.get("/", fields)).find(|response| response.status == 429).expect("a denial within 100")
}

fn an_admitted_response_tells_what_is_left(store: &Store) {
    let gateway = store.gateway("[[limits]]\nname = \"x\"\nby = []\nrate = \"5/h\"\nburst = 10\n");
    let response = Client::connect(gateway.address).get("/", "");
    assert_eq!(policy(&response), [Quota { name: "x".into(), quota: 10, window_s: 7200 }]);
    // The next token comes after 720 s; the decision was less than a second ago by Redis's clock.
    assert_eq!(rate_limit(&response), [Left { name: "x".into(), remaining: 9, reset_s: 720 }]);
    assert_eq!(response.field("Retry-After"), None);
}

#[test]
fn an_admitted_response_tells_what_is_left_in_memory() {
    an_admitted_response_tells_what_is_left(&Store::memory());
}

#[test]
fn an_admitted_response_tells_what_is_left_in_redis() {
    an_admitted_response_tells_what_is_left(&Store::redis());
}

/// One denial, told in four ways.
fn fields_and_body_of_a_denial_agree(store: &Store) {
    let gateway = store.gateway("[[limits]]\nname = \"x\"\nby = [\"user\"]\nrate = \"3/h\"\nburst = 2\n");
    let denied = denial(&mut Client::connect(gateway.address), "X-Request-Id: my-id\r\n");
    assert_eq!(denied.field("Content-Type"), Some("application/problem+json"));
    assert_eq!(denied.field("Cache-Control"), Some("no-store"));
    let body = denied.json();
    let retry_after_ms = body["retry_after_ms"].as_u64().unwrap();
    assert!((1_000_000..=1_200_000).contains(&retry_after_ms), "{retry_after_ms}");
    let retry_after_s = retry_after_ms.div_ceil(1000);
    assert_eq!(denied.field("Retry-After"), Some(retry_after_s.to_string().as_str()));
    let reset_s = i64::try_from(retry_after_s).unwrap();
    assert_eq!(rate_limit(&denied), [Left { name: "x".into(), remaining: 0, reset_s }]);
    assert_eq!(policy(&denied), [Quota { name: "x".into(), quota: 2, window_s: 2400 }]);
    assert_eq!(body["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!((&body["status"], &body["title"]), (&429.into(), &"Too Many Requests".into()));
    assert_eq!(body["violated-policies"], serde_json::json!(["x"]));
    assert_eq!((&body["limit"], &body["rate"], &body["burst"]), (&"x".into(), &"3/h".into(), &2.into()));
    assert_eq!(body["request_id"], "my-id");
    let detail = body["detail"].as_str().unwrap();
    let tenths = retry_after_ms.div_ceil(100);
    let seconds = (tenths as f64 / 10.0).to_string();
    let said = format!("Limit 'x' allows 3 requests per hour with bursts of 2. Try again in {seconds} s.");
    assert_eq!(detail, said);
}

#[test]
fn fields_and_body_of_a_denial_agree_in_memory() {
    fields_and_body_of_a_denial_agree(&Store::memory());
}

#[test]
fn fields_and_body_of_a_denial_agree_in_redis() {
    fields_and_body_of_a_denial_agree(&Store::redis());
}

fn the_log_of_a_denial_agrees_with_its_body(store: &Store) {
    let gateway = store.gateway(&limit("x", "\"user\"", 1));
    let body = denial(&mut Client::connect(gateway.address), "X-Request-Id: my-id\r\n").json();
    until("the denial is logged", || gateway.log_of("denied").len() == 1);
    let line = &gateway.log_of("denied")[0];
    for key in ["limit", "rate", "burst", "retry_after_ms", "request_id"] {
        assert_eq!(line[key], body[key], "{key}");
    }
    assert_eq!(
        (&line["user"], &line["method"], &line["endpoint"]),
        (&"ip:127.0.0.1".into(), &"GET".into(), &"/".into())
    );
}

#[test]
fn the_log_of_a_denial_agrees_with_its_body_in_memory() {
    the_log_of_a_denial_agrees_with_its_body(&Store::memory());
}

#[test]
fn the_log_of_a_denial_agrees_with_its_body_in_redis() {
    the_log_of_a_denial_agrees_with_its_body(&Store::redis());
}

fn several_limits_are_told_the_tightest_first(store: &Store) {
    let rules = [limit("wide", "", 100), limit("tight", "", 3), limit("middle", "", 10)].concat();
    let gateway = store.gateway(&rules);
    let mut client = Client::connect(gateway.address);
    for (status, left) in [(200, [2, 9, 99]), (200, [1, 8, 98]), (200, [0, 7, 97]), (429, [0, 7, 97])] {
        let response = client.get("/", "");
        assert_eq!(response.status, status);
        let names: Vec<_> = policy(&response).into_iter().map(|quota| quota.name).collect();
        assert_eq!(names, ["wide", "tight", "middle"], "the policy is in configured order");
        let told: Vec<_> = rate_limit(&response).into_iter().map(|left| (left.name, left.remaining)).collect();
        let expected = ["tight", "middle", "wide"].map(str::to_owned).into_iter().zip(left);
        assert_eq!(told, expected.collect::<Vec<_>>());
    }
}

#[test]
fn several_limits_are_told_the_tightest_first_in_memory() {
    several_limits_are_told_the_tightest_first(&Store::memory());
}

#[test]
fn several_limits_are_told_the_tightest_first_in_redis() {
    several_limits_are_told_the_tightest_first(&Store::redis());
}

/// Coming back for the shorter one would be in vain.
fn of_two_violated_limits_the_one_that_lasts_longer_says_when_to_come_back(store: &Store) {
    let rules = "[[limits]]\nname = \"short\"\nby = []\nrate = \"1/h\"\nburst = 1\n\
                 [[limits]]\nname = \"long\"\nby = []\nrate = \"1/d\"\nburst = 1\n\
                 [[limits]]\nname = \"fine\"\nby = []\nrate = \"1/d\"\nburst = 5\n";
    let gateway = store.gateway(rules);
    let denied = denial(&mut Client::connect(gateway.address), "");
    let body = denied.json();
    assert_eq!((&body["limit"], &body["rate"]), (&"long".into(), &"1/d".into()));
    assert_eq!(body["violated-policies"], serde_json::json!(["short", "long"]));
    let seconds: u64 = denied.field("Retry-After").unwrap().parse().unwrap();
    assert!((86_000..=86_400).contains(&seconds), "{seconds}");
}

#[test]
fn of_two_violated_limits_the_one_that_lasts_longer_says_when_to_come_back_in_memory() {
    of_two_violated_limits_the_one_that_lasts_longer_says_when_to_come_back(&Store::memory());
}

#[test]
fn of_two_violated_limits_the_one_that_lasts_longer_says_when_to_come_back_in_redis() {
    of_two_violated_limits_the_one_that_lasts_longer_says_when_to_come_back(&Store::redis());
}

fn a_costly_request_is_denied_until_its_whole_cost_is_there(store: &Store) {
    let gateway = store.gateway(&limit_with("x", "", 5, "cost = 4"));
    let denied = denial(&mut Client::connect(gateway.address), "");
    assert_eq!(rate_limit(&denied)[0].remaining, 1);
    // Three more tokens at one a day.
    let seconds: i64 = denied.field("Retry-After").unwrap().parse().unwrap();
    assert!((3 * 86_400 - 600..=3 * 86_400).contains(&seconds), "{seconds}");
    assert_eq!(rate_limit(&denied)[0].reset_s, seconds);
}

#[test]
fn a_costly_request_is_denied_until_its_whole_cost_is_there_in_memory() {
    a_costly_request_is_denied_until_its_whole_cost_is_there(&Store::memory());
}

#[test]
fn a_costly_request_is_denied_until_its_whole_cost_is_there_in_redis() {
    a_costly_request_is_denied_until_its_whole_cost_is_there(&Store::redis());
}

fn a_wait_below_a_second_is_told_as_one(store: &Store) {
    let gateway = store.gateway("[[limits]]\nname = \"x\"\nby = []\nrate = \"20/s\"\nburst = 1\n");
    let denied = denial(&mut Client::connect(gateway.address), "");
    assert_eq!(denied.field("Retry-After"), Some("1"));
    assert_eq!(rate_limit(&denied)[0].reset_s, 1);
    assert!((1..=50).contains(&denied.json()["retry_after_ms"].as_u64().unwrap()));
}

#[test]
fn a_wait_below_a_second_is_told_as_one_in_memory() {
    a_wait_below_a_second_is_told_as_one(&Store::memory());
}

#[test]
fn a_wait_below_a_second_is_told_as_one_in_redis() {
    a_wait_below_a_second_is_told_as_one(&Store::redis());
}

fn a_denied_head_request_gets_the_fields_without_the_body(store: &Store) {
    let gateway = store.gateway(&limit("x", "", 1));
    let mut client = Client::connect(gateway.address);
    assert_eq!(client.get("/", "").status, 200);
    let denied = client.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").response_to_head();
    assert_eq!(denied.status, 429);
    assert_eq!(rate_limit(&denied).len(), 1);
    assert!(denied.field("Retry-After").is_some());
    // A body would be read as the start of the next response.
    assert_eq!(client.get("/", "").status, 429);
}

#[test]
fn a_denied_head_request_gets_the_fields_without_the_body_in_memory() {
    a_denied_head_request_gets_the_fields_without_the_body(&Store::memory());
}

#[test]
fn a_denied_head_request_gets_the_fields_without_the_body_in_redis() {
    a_denied_head_request_gets_the_fields_without_the_body(&Store::redis());
}

fn a_request_under_no_limit_is_told_nothing(store: &Store) {
    let gateway = store.gateway(&limit_with("x", "", 1, "match = { path = \"/api\" }"));
    let mut client = Client::connect(gateway.address);
    for _ in 0..3 {
        let response = client.get("/free", "");
        assert_eq!(response.status, 200);
        assert_eq!((policy(&response), rate_limit(&response)), (Vec::new(), Vec::new()));
    }
}

#[test]
fn a_request_under_no_limit_is_told_nothing_in_memory() {
    a_request_under_no_limit_is_told_nothing(&Store::memory());
}

#[test]
fn a_request_under_no_limit_is_told_nothing_in_redis() {
    a_request_under_no_limit_is_told_nothing(&Store::redis());
}
