//! Which limits and which keys a request falls under.

use super::*;
use crate::http::Bounds;

const BOUNDS: Bounds = Bounds { head_max: 4096, fields_max: 64, body_max: None };

fn limit(name: &str, path: &str, by: &[By]) -> Limit {
    Limit {
        scope: Match { path: path.into(), ..Match::default() },
        by: by.to_vec(),
        ..Limit::of_each_user(name, Quota { rate: "5/s".parse().unwrap(), burst: 10 })
    }
}

/// The keys that a request falls under, and the bursts of the quotas that count.
fn applied(policy: &Policy, text: &str, endpoint: &str, plan: Option<PlanId>) -> (Vec<String>, Vec<u64>) {
    try_applied(policy, text, endpoint, plan).unwrap()
}

fn try_applied(
    policy: &Policy,
    text: &str,
    endpoint: &str,
    plan: Option<PlanId>,
) -> Result<(Vec<String>, Vec<u64>), Refusal> {
    let mut head = RequestHead::default();
    assert!(head.parse(text.as_bytes(), &BOUNDS).unwrap());
    let caller = Caller { user: b"alice".to_vec(), ip_text: b"ip:1.2.3.4".to_vec(), plan, ..Caller::default() };
    let mut sheet = Sheet::default();
    let subject = Subject {
        head: &head,
        buffer: text.as_bytes(),
        host: b"h",
        endpoint: endpoint.as_bytes(),
        route: "/r",
        caller: &caller,
    };
    policy.apply(&subject, &mut sheet)?;
    let keys = sheet.keys().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect();
    Ok((keys, sheet.applied().iter().map(|applied| policy.tier(applied).quota.burst).collect()))
}

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\nX-Tenant: t\r\n\r\n";

#[test]
fn keys_are_as_documented() {
    let cases: [(&[By], &str); 9] = [
        (&[By::User, By::Endpoint], "rate_limit:{alice}:/a%3Ab:x"),
        (&[By::User], "rate_limit:{alice}:-:x"),
        (&[], "rate_limit:{-}:-:x"),
        (&[By::Ip], "rate_limit:{ip:1.2.3.4}:-:x"),
        (&[By::User, By::Ip], "rate_limit:{alice:ip:1.2.3.4}:-:x"),
        (&[By::Endpoint], "rate_limit:{-}:/a%3Ab:x"),
        (&[By::Route], "rate_limit:{-}:/r:x"),
        (&[By::Method, By::Endpoint], "rate_limit:{-}:GET:/a%3Ab:x"),
        (&[By::Endpoint, By::User], "rate_limit:{alice}:/a%3Ab:x"),
    ];
    for (by, key) in cases {
        let policy = Policy::new(&[limit("x", "/", by)], &[], "rate_limit").unwrap();
        assert_eq!(applied(&policy, GET, "/a:b", None).0, [key]);
    }
    let policy = Policy::new(&[limit("x", "/", &[By::Header("X-Tenant".into())])], &[], "p").unwrap();
    let key = &applied(&policy, GET, "/", None).0[0];
    assert!(key.starts_with("p:{x-tenant:") && !key.contains(":t}"), "{key}");
}

#[test]
fn every_limit_that_matches_applies_in_configured_order() {
    let limits = [limit("deep", "/api/v1", &[]), limit("all", "/", &[]), limit("other", "/b", &[])];
    let policy = Policy::new(&limits, &[], "p").unwrap();
    assert_eq!(applied(&policy, GET, "/api/v1/x", None).0, ["p:{-}:-:deep", "p:{-}:-:all"]);
    assert_eq!(applied(&policy, GET, "/api", None).0, ["p:{-}:-:all"]);
}

#[test]
fn a_plan_comes_before_the_limits_own_quota() {
    let mut with_plan = limit("x", "/", &[By::User]);
    with_plan.plans = vec![("pro".into(), Quota { rate: "50/s".parse().unwrap(), burst: 100 })];
    let plans = ["free".to_string(), "pro".to_string()];
    let policy = Policy::new(&[with_plan], &plans, "p").unwrap();
    for (plan, burst) in [(None, 10), (Some(PlanId(0)), 10), (Some(PlanId(1)), 100)] {
        assert_eq!(applied(&policy, GET, "/", plan).1, [burst]);
    }
}

#[test]
fn callers_of_different_plans_never_share_a_bucket() {
    let mut by_ip = limit("x", "/", &[By::Ip]);
    by_ip.plans = vec![("pro".into(), Quota { rate: "50/s".parse().unwrap(), burst: 100 })];
    let policy = Policy::new(&[by_ip], &["pro".to_string()], "p").unwrap();
    assert_eq!(applied(&policy, GET, "/", None).0, ["p:{ip:1.2.3.4}:-:x"]);
    assert_eq!(applied(&policy, GET, "/", Some(PlanId(0))).0, ["p:{ip:1.2.3.4}:-:x:pro"]);
}

#[test]
fn limits_of_many_hosts_are_not_limits_of_one_request() {
    let of_host = |n: usize| {
        let mut limit = limit(&n.to_string(), "/", &[]);
        limit.scope.host = crate::route::HostPattern::parse(&format!("h{n}.example"));
        limit
    };
    let many: Vec<Limit> = (0..100).map(of_host).collect();
    assert!(Policy::new(&many, &[], "p").is_ok());
}

#[test]
fn preflights_are_not_counted_unless_asked() {
    let preflight = "OPTIONS / HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nAccess-Control-Request-Method: PUT\r\n\r\n";
    let plain = "OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut counted = limit("counted", "/", &[]);
    counted.count_preflight = true;
    let policy = Policy::new(&[limit("usual", "/", &[]), counted], &[], "p").unwrap();
    assert_eq!(applied(&policy, preflight, "/", None).0, ["p:{-}:-:counted"]);
    assert_eq!(applied(&policy, plain, "/", None).0.len(), 2);
    for more in [
        "Content-Length: 1",
        "Transfer-Encoding: chunked",
        "Connection: upgrade\r\nUpgrade: websocket",
        "Cookie: a=b",
        "Authorization: Basic YTpi",
    ] {
        let laden = preflight.replace("Host: h", &format!("Host: h\r\n{more}"));
        assert_eq!(applied(&policy, &laden, "/", None).0.len(), 2, "{more}");
    }
    for method in ["", "P T", "P,T"] {
        assert_eq!(applied(&policy, &preflight.replace("PUT", method), "/", None).0.len(), 2, "{method}");
    }
    let empty = preflight.replace("Host: h", "Host: h\r\nContent-Length: 0");
    assert_eq!(applied(&policy, &empty, "/", None).0.len(), 1);
}

#[test]
fn a_path_that_falls_under_more_limits_unresolved_is_refused() {
    let policy = Policy::new(&[limit("x", "/api", &[])], &[], "p").unwrap();
    let asked = |path: &str, endpoint: &str| {
        let applied = try_applied(&policy, &GET.replace("GET /", &format!("GET {path}")), endpoint, None);
        applied.map(|(keys, _)| keys.len())
    };
    for path in ["/api/../y", "/api/%2e%2e/y", "/api/x/%2E./.%2e/y", "/api/../y?z"] {
        assert!(matches!(asked(path, "/y"), Err(Refusal::Bad(_))), "{path}");
    }
    assert_eq!(asked("/x/../api", "/api"), Ok(1), "it falls under no other limit unresolved");
    assert_eq!(asked("/api/x/../y", "/api/y"), Ok(1), "and this under the same");
    assert_eq!(asked("/y?/api/../x", "/y"), Ok(0), "nor is a query a path");
    for path in ["//x/api", "///x/api/y", "//x@y//api", "http://h//x/api"] {
        assert!(matches!(asked(path, "/x/api"), Err(Refusal::Bad(_))), "{path}");
    }
    assert_eq!(asked("//api/x", "/api/x"), Ok(1));
    assert_eq!(asked("/x//api", "/x/api"), Ok(0), "only at the start");
    assert_eq!(asked("/y/..api/", "/y/..api"), Ok(0));
    let shadow = Policy::new(&[Limit { mode: Mode::Shadow, ..limit("x", "/api", &[]) }], &[], "p").unwrap();
    let text = GET.replace("GET /", "GET /api/../y");
    assert!(try_applied(&shadow, &text, "/y", None).is_ok(), "it denies nobody");
}

#[test]
fn a_request_with_two_values_for_what_a_limit_counts_by_is_refused() {
    let by = [By::User, By::Header("x-tenant".into())];
    let twice = GET.replace("X-Tenant: t", "X-Tenant: t\r\nx-tenant: u");
    let enforced = Policy::new(&[limit("x", "/a", &by)], &[], "p").unwrap();
    assert!(matches!(try_applied(&enforced, &twice, "/a", None), Err(Refusal::Bad(_))));
    assert!(try_applied(&enforced, GET, "/a", None).is_ok());
    assert!(try_applied(&enforced, &twice, "/b", None).is_ok(), "no limit of this path counts by it");
    let shadow = Limit { mode: Mode::Shadow, ..limit("x", "/a", &by) };
    let shadow = Policy::new(&[shadow], &[], "p").unwrap();
    assert!(try_applied(&shadow, &twice, "/a", None).is_ok(), "it denies nobody");
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let mut bad = limit("x", "/", &[]);
    bad.cost = 11;
    assert!(matches!(Policy::new(&[bad], &[], "p"), Err(BadPolicy::Shape { .. })));
    let many: Vec<Limit> = (0..=APPLIED_MAX).map(|n| limit(&n.to_string(), "/", &[])).collect();
    assert_eq!(Policy::new(&many, &[], "p").unwrap_err(), BadPolicy::TooMany(APPLIED_MAX + 1));
}

#[test]
fn only_a_limit_by_who_or_by_nothing_bounds_a_client() {
    for (by, bounds) in [
        (vec![], true),
        (vec![By::User], true),
        (vec![By::Ip, By::Method], true),
        (vec![By::User, By::Endpoint], false),
        (vec![By::Header("a".into())], false),
    ] {
        assert_eq!(limit("x", "/", &by).bounds_a_client(), bounds, "{by:?}");
    }
}
