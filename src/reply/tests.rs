//! What our own answers say.

use super::*;
use crate::http::Bounds;
use crate::http::head::RequestHead;
use crate::identity::Caller;
use crate::limit::bucket::Level;
use crate::limit::policy::{Limit, Quota, Subject};

const TO: Addressee<'static> = Addressee {
    version: Version::Http11,
    asked: Method::Get,
    keep_alive: true,
    request_id: "id\"1",
    date: "Sun, 06 Nov 1994 08:49:37 GMT",
};

fn limit(name: &str, rate: &str, burst: u64, mode: Mode) -> Limit {
    Limit { mode, ..Limit::of_each_user(name, Quota { rate: rate.parse().unwrap(), burst }) }
}

/// A policy of `limits` and the sheet of a plain request, its levels filled in as (tokens, short).
fn sheet(limits: &[Limit], levels: &[(f64, bool)]) -> (Policy, Sheet) {
    let policy = Policy::new(limits, &[], "rate_limit").unwrap();
    let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut head = RequestHead::default();
    let bounds = Bounds { head_max: 1000, fields_max: 10, body_max: None };
    assert!(head.parse(text, &bounds).unwrap());
    let caller = Caller { user: b"u".to_vec(), ..Caller::default() };
    let mut sheet = Sheet::default();
    let subject = Subject { head: &head, buffer: text, host: b"h", endpoint: b"/", route: "/", caller: &caller };
    policy.apply(&subject, &mut sheet).unwrap();
    for (i, (tokens, short)) in levels.iter().enumerate() {
        let token = policy.tier(&sheet.applied()[i]).shape.token as f64;
        sheet.levels[i] = Some(Level { units: (tokens * token) as u64, short: *short });
    }
    (policy, sheet)
}

fn fields(policy: &Policy, sheet: &Sheet) -> String {
    let mut out = Vec::new();
    rate_limit_fields(&mut out, policy, sheet);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_fields_of_an_allowed_request() {
    let (policy, sheet) = sheet(&[limit("per-user", "5/s", 10, Mode::Enforce)], &[(7.5, false)]);
    assert_eq!(
        fields(&policy, &sheet),
        "RateLimit-Policy: \"per-user\";q=10;w=2\r\nRateLimit: \"per-user\";r=7;t=1\r\n"
    );
}

#[test]
fn the_tightest_comes_first_and_shadows_are_not_told() {
    let limits = [
        limit("a", "5/s", 10, Mode::Enforce),
        limit("b", "1/min", 3, Mode::Enforce),
        limit("c", "1/s", 1, Mode::Shadow),
    ];
    let (policy, sheet) = sheet(&limits, &[(7.0, false), (1.5, false), (0.0, true)]);
    assert_eq!(
        fields(&policy, &sheet),
        "RateLimit-Policy: \"a\";q=10;w=2, \"b\";q=3;w=180\r\nRateLimit: \"b\";r=1;t=30, \"a\";r=7;t=1\r\n"
    );
    assert!(Denial::of(&policy, &sheet).is_none());
}

#[test]
fn a_denial_says_which_limit_what_rate_and_when() {
    let (policy, sheet) = sheet(&[limit("per-user", "5/s", 10, Mode::Enforce)], &[(0.0, true)]);
    let denial = Denial::of(&policy, &sheet).unwrap();
    let mut out = Vec::new();
    too_many(&mut out, &denial, fields(&policy, &sheet).as_bytes(), &TO);
    let text = String::from_utf8(out).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
    for line in [
        "Retry-After: 1",
        "Content-Type: application/problem+json",
        "Cache-Control: no-store",
        "RateLimit: \"per-user\";r=0;t=1",
    ] {
        assert!(head.lines().any(|l| l == line), "{line} in {head}");
    }
    assert_eq!(
        body,
        "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\"title\":\"Too Many Requests\",\
         \"status\":429,\"detail\":\"Limit 'per-user' allows 5 requests per second with bursts of 10. Try again in 0.2 s.\",\
         \"violated-policies\":[\"per-user\"],\"limit\":\"per-user\",\"rate\":\"5/s\",\"burst\":10,\"retry_after_ms\":200,\
         \"blame\":\"client\",\"request_id\":\"id\\\"1\"}\n"
    );
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
}

#[test]
fn of_several_violated_limits_the_longest_wait_counts() {
    let limits = [limit("a", "5/s", 10, Mode::Enforce), limit("b", "1/min", 3, Mode::Enforce)];
    let (policy, sheet) = sheet(&limits, &[(0.0, true), (0.5, true)]);
    let denial = Denial::of(&policy, &sheet).unwrap();
    let violated: Vec<&str> = denial.violated().map(|rule| rule.name.as_str()).collect();
    assert_eq!((denial.rule.name.as_str(), violated, denial.retry_after_s()), ("b", vec!["a", "b"], 30));
}

#[test]
fn times_are_never_told_too_early() {
    for (micros, text) in [(1, "0.1"), (100_000, "0.1"), (100_001, "0.2"), (950_000, "1"), (1_000_001, "1.1")] {
        let mut out = Vec::new();
        push_tenths(&mut out, micros);
        assert_eq!(out, text.as_bytes());
    }
}

#[test]
fn every_failure_has_a_status_and_a_blame() {
    for (failure, status, blame) in [
        (Failure::Refused(Refusal::Bad("x")), 400, "client"),
        (Failure::Refused(Refusal::BodyTooLarge), 413, "client"),
        (Failure::Refused(Refusal::TargetTooLong), 414, "client"),
        (Failure::Refused(Refusal::Expectation), 417, "client"),
        (Failure::Refused(Refusal::HeadTooLarge), 431, "client"),
        (Failure::Refused(Refusal::NotImplemented("x")), 501, "client"),
        (Failure::Refused(Refusal::Version), 505, "client"),
        (Failure::UnknownKey, 401, "client"),
        (Failure::NoRoute, 404, "client"),
        (Failure::TooSlow, 408, "client"),
        (Failure::Unreachable, 502, "upstream"),
        (Failure::BrokenOff, 502, "upstream"),
        (Failure::BadResponse(BadResponse("x")), 502, "upstream"),
        (Failure::ConnectTimeout, 504, "upstream"),
        (Failure::ResponseTimeout, 504, "upstream"),
        (Failure::StoreClosed(StoreFault::Timeout), 503, "store"),
        (Failure::Overloaded, 503, "gateway"),
    ] {
        let answer = failure.answer();
        assert_eq!((answer.status, answer.blame), (status, blame), "{failure:?}");
        let mut out = Vec::new();
        super::failure(&mut out, &failure, b"RateLimit: x\r\n", &TO);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} {}\r\n", answer.title)));
        assert_eq!(text.contains("Retry-After: 1\r\n"), status == 503);
    }
}

#[test]
fn a_head_request_gets_the_length_and_no_body() {
    let mut out = Vec::new();
    failure(&mut out, &Failure::NoRoute, b"", &Addressee { asked: Method::Head, ..TO });
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with("\r\n\r\n") && text.contains("Content-Length: 1"));
}

#[test]
fn what_json_cannot_hold_is_escaped_and_all_else_stands() {
    for text in ["", "plain", "\"", "a\"b\\c", "\u{0}\n\u{1f}\u{7f}", "häßlich \u{85}", "\\\\\"\"end"] {
        let mut out = b"before".to_vec();
        push_json(&mut out, text);
        let json = std::str::from_utf8(&out[6..]).unwrap();
        assert_eq!(serde_json::from_str::<String>(json).unwrap(), text, "{json}");
    }
}
