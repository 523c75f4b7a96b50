//! Who asks, for what, and how that stands in keys.

use super::*;
use crate::http::Bounds;
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds { head_max: 16 * 1024, fields_max: 100, body_max: None };

fn caller(settings: Settings, peer: &str, fields: &str) -> Result<Caller, NoCaller> {
    let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let mut head = RequestHead::default();
    assert!(head.parse(text.as_bytes(), &BOUNDS).unwrap());
    let mut caller = Caller::default();
    Identity::new(settings).of(&head, text.as_bytes(), peer.parse().unwrap(), &mut caller)?;
    Ok(caller)
}

fn user(settings: Settings, peer: &str, fields: &str) -> String {
    String::from_utf8(caller(settings, peer, fields).unwrap().user).unwrap()
}

fn trusting(nets: &[&str]) -> Settings {
    Settings { trusted_proxies: nets.iter().map(|net| net.parse().unwrap()).collect(), ..Settings::default() }
}

fn path(target: &str) -> String {
    let mut out = Vec::new();
    endpoint(target.as_bytes(), &mut out);
    String::from_utf8(out).unwrap()
}

fn part(raw: &[u8]) -> String {
    let mut out = Vec::new();
    push_part(&mut out, raw);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_field_that_a_backend_could_take_for_the_caller_s_is_an_alias() {
    let kinds_with = |settings: Settings, counted: &[&str]| {
        let text = "GET / HTTP/1.1\r\nHost: h\r\nX_API-Key: a\r\nX_Mine: b\r\nA_b: c\r\nX-Api-Key: d\r\n\r\n";
        let mut head = RequestHead::default();
        assert!(head.parse(text.as_bytes(), &BOUNDS).unwrap());
        let mut identity = Identity::new(settings);
        identity.watch(counted.iter().copied());
        identity.mark_aliases(&mut head, text.as_bytes());
        head.fields.iter().map(|field| field.known).collect::<Vec<_>>()
    };
    let kinds = |settings| kinds_with(settings, &[]);
    use FieldName::{Alias, Host, Other, Underscored};
    assert_eq!(kinds(Settings::default()), [Host, Alias, Underscored, Underscored, Other]);
    let by = |name: &str| Settings { sources: vec![Source::Header(name.into())], ..Settings::default() };
    assert_eq!(kinds(by("x-mine")), [Host, Underscored, Alias, Underscored, Other]);
    assert_eq!(kinds(by("X_Mine")), [Host, Underscored, Underscored, Underscored, Other], "it is the caller's itself");
    assert_eq!(kinds_with(by("x-mine"), &["a-b"]), [Host, Underscored, Alias, Alias, Other]);
    assert_eq!(kinds_with(by("X_Mine"), &["a_b"]), [Host, Underscored, Underscored, Underscored, Other]);
    assert_eq!(kinds(by("x_api_key")), [Host, Alias, Underscored, Underscored, Alias], "in both directions");
    assert_eq!(kinds(by("x_api-key")), [Host, Underscored, Underscored, Underscored, Alias], "as configured");
    assert_eq!(kinds_with(by("x_api-key"), &["x-api-key"]), [Host, Underscored, Underscored, Underscored, Other]);
}

#[test]
fn trailers_like_a_field_that_decides_are_told_in_any_spelling() {
    let mut identity = Identity::new(Settings { sources: vec![Source::Cookie("a".into())], ..Settings::default() });
    identity.watch(["x-tenant_id"].into_iter());
    for name in ["COOKIE", "X-Tenant-Id", "x_tenant_id", "x-tenant_id"] {
        assert!(identity.watches_like(name.as_bytes()), "{name}");
    }
    for name in ["a", "x-tenant", "x-tenant-idx", "xatenant_id", "x-api-key"] {
        assert!(!identity.watches_like(name.as_bytes()), "{name}");
    }
}

#[test]
fn spellings_of_one_path_are_one_endpoint() {
    for spelling in
        ["/a", "//a", "/%61", "/a/", "/a?x", "/./a", "/b/../a", "/a//", "/../a", "/a/.", "/a/b/..", "/%2e/a"]
    {
        assert_eq!(path(spelling), "/a", "{spelling}");
    }
    for (target, endpoint) in [
        ("/", "/"),
        ("", "/"),
        ("?x", "/"),
        ("//", "/"),
        ("/..", "/"),
        ("*", "*"),
        ("/a%2fb", "/a/b"),
        ("/a%2Fb%2f", "/a/b"),
        ("/a%5cb%5C", "/a/b"),
        ("/a\\b", "/a/b"),
        ("/a;x/b;y=1;z", "/a/b"),
        ("/;x", "/"),
        ("/a;x%2Fb", "/a/b"),
        ("/a/..;x/b", "/b"),
        ("/a%2f..%5cb", "/b"),
        ("/a%3bx", "/a%3Bx"),
        ("/a%252fb", "/a%252fb"),
        ("/a%2%2fb", "/a%252/b"),
        ("/a%", "/a%25"),
        ("/a%zz", "/a%25zz"),
        ("/%%361", "/%2561"),
        ("/A", "/A"),
        ("/a/b", "/a/b"),
        ("/...", "/..."),
    ] {
        assert_eq!(path(target), endpoint, "{target}");
    }
}

#[test]
fn the_peer_is_the_client_where_nobody_is_trusted() {
    let spoof = "X-Forwarded-For: 9.9.9.9\r\n";
    assert_eq!(user(Settings::default(), "203.0.113.7", spoof), "ip:203.0.113.7");
}

#[test]
fn forwarded_for_is_walked_from_the_right_past_trusted_addresses() {
    let settings = || trusting(&["10.0.0.0/8", "fd00::/8"]);
    for (fields, client) in [
        ("X-Forwarded-For: 1.1.1.1, 9.9.9.9\r\n", "9.9.9.9"),
        ("X-Forwarded-For: 1.1.1.1, 9.9.9.9, 10.0.0.2\r\n", "9.9.9.9"),
        ("X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 10.0.0.2\r\n", "9.9.9.9"),
        ("X-Forwarded-For: 9.9.9.9:4711\r\n", "9.9.9.9"),
        ("X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n", "10.0.0.3"),
        ("X-Forwarded-For: 9.9.9.9, junk, 10.0.0.2\r\n", "10.0.0.2"),
        ("X-Forwarded-For: junk\r\n", "10.0.0.1"),
        ("X-Forwarded-For: ::ffff:9.9.9.9\r\n", "9.9.9.9"),
        ("X-Forwarded-For: , 9.9.9.9 ,,\r\n", "9.9.9.9"),
        ("", "10.0.0.1"),
    ] {
        assert_eq!(user(settings(), "10.0.0.1", fields), format!("ip:{client}"), "{fields}");
    }
    let six = "X-Forwarded-For: [2001:db8::1]:99\r\n";
    assert_eq!(user(settings(), "::ffff:10.0.0.1", six), "ip:2001:db8::/64");
}

#[test]
fn an_ipv6_client_owns_its_prefix() {
    let with = |ipv6_prefix| Settings { ipv6_prefix, ..Settings::default() };
    assert_eq!(user(with(64), "2001:db8:1:2:3:4:5:6", ""), "ip:2001:db8:1:2::/64");
    assert_eq!(user(with(48), "2001:db8:1:2:3:4:5:6", ""), "ip:2001:db8:1::/48");
    assert_eq!(user(with(128), "2001:db8::1", ""), "ip:2001:db8::1");
    assert_eq!(user(with(64), "::ffff:1.2.3.4", ""), "ip:1.2.3.4");
}

#[test]
fn the_first_source_present_wins() {
    let settings = Settings {
        sources: vec![Source::Cookie("sid".into()), Source::Header("X-User".into()), Source::ApiKey],
        ..Settings::default()
    };
    let of = |fields| user(settings.clone(), "1.2.3.4", fields);
    assert!(of("Cookie: a=b; sid=s3cret\r\nX-User: u\r\n").starts_with("sid:"));
    assert!(of("Cookie: xsid=1\r\nX-User: u\r\nX-API-Key: k\r\n").starts_with("x-user:"));
    assert!(of("X-API-Key: k\r\n").starts_with("key:"));
    assert_eq!(of("X-API-Key:\r\n"), "ip:1.2.3.4");
    assert!(!of("Cookie: sid=s3cret\r\n").contains("s3cret"));
}

#[test]
fn consumers_and_unknown_keys() {
    let settings = |unknown| Settings {
        unknown_api_keys: unknown,
        consumers: vec![Consumer {
            name: "al:ice".into(),
            key_sha256: Sha256::digest("k1").into(),
            plan: Some("pro".into()),
        }],
        ..Settings::default()
    };
    let known = caller(settings(UnknownApiKeys::Reject), "1.2.3.4", "x-api-key: k1\r\n").unwrap();
    assert_eq!((known.user.as_slice(), known.plan), (b"al%3Aice".as_slice(), Some(PlanId(0))));
    let other = "X-API-Key: k2\r\n";
    assert_eq!(
        user(settings(UnknownApiKeys::Accept), "1.2.3.4", other),
        format!("key:{}", &format!("{:x}", Sha256::digest("k2"))[..32])
    );
    assert_eq!(user(settings(UnknownApiKeys::Ip), "1.2.3.4", other), "ip:1.2.3.4");
    assert_eq!(caller(settings(UnknownApiKeys::Reject), "1.2.3.4", other).unwrap_err(), NoCaller::UnknownKey);
    assert_eq!(user(settings(UnknownApiKeys::Reject), "1.2.3.4", ""), "ip:1.2.3.4");
}

#[test]
fn a_user_named_twice_is_nobody() {
    let twice = "X-API-Key: k1\r\nx-api-key: k2\r\n";
    assert_eq!(caller(Settings::default(), "1.2.3.4", twice).unwrap_err(), NoCaller::Repeated);
}

#[test]
fn a_cookie_names_a_user_where_it_says_one_thing() {
    let by_cookie = |lines: &str| {
        let settings = Settings { sources: vec![Source::Cookie("sid".into())], ..Settings::default() };
        user(settings, "1.2.3.4", lines)
    };
    // Browsers send two where paths or domains overlap; which one counts is the backend's choice.
    for several in ["Cookie: sid=a; sid=b\r\n", "Cookie: sid=a\r\nX: y\r\ncookie: b=c;sid=b\r\n", "Cookie: sid=\r\n"] {
        assert_eq!(by_cookie(several), "ip:1.2.3.4", "{several}");
    }
    let once = by_cookie("Cookie: sid=b:c\r\n");
    assert_ne!(once, "ip:1.2.3.4");
    for same in [
        "Cookie: sid = b:c\r\n",
        "Cookie: a=sid=1; SID=2; sid=b:c; sidx=3; sid\r\nCookie: xsid=4\r\n",
        "Cookie: sid=b:c; sid=; sid=b:c\r\n",
        "Cookie: sid=\"b:c\"\r\n",
        "Cookie: sid=b%3Ac; sid=\"b\\072c\"\r\n",
    ] {
        assert_eq!(by_cookie(same), once, "{same}");
    }
}

#[test]
fn parts_are_encoded_and_bounded() {
    assert_eq!(part(b"/a-b_c.d~e"), "/a-b_c.d~e");
    assert_eq!(part(b"{a} :%\x01\xff"), "%7Ba%7D%20%3A%25%01%FF");
    assert_eq!(part(&[b'a'; PART_MAX]).len(), PART_MAX);
    let hashed = part(&[b'a'; PART_MAX + 1]);
    assert!(hashed.starts_with("hash:") && hashed.len() == 5 + 32);
    assert_ne!(hashed, part(&[b'a'; PART_MAX + 2]));
}

proptest! {
    #[test]
    fn the_short_way_to_an_endpoint_leads_where_the_long_one_does(target in r"(/[a-c]{0,5}\.?){0,9}[%;\\/.]?[a-c/]{0,9}") {
        let mut long = Vec::new();
        write_endpoint(target.as_bytes(), true, &mut long);
        prop_assert_eq!(path(&target).into_bytes(), long);
        let has = |parts: &[&str]| parts.iter().any(|part| target.contains(part));
        let is_plain = target.starts_with('/') && !has(&["//", "/.", "%", ";", "\\"]);
        prop_assert_eq!(is_endpoint(target.as_bytes()), is_plain && (target == "/" || !target.ends_with('/')));
    }

    #[test]
    fn normalising_twice_changes_nothing(target in r"/[a-c./%0-9A-F?;\\]{0,40}") {
        let once = path(&target);
        prop_assert!(once.starts_with('/') && !once.contains("//") && (once == "/" || !once.ends_with('/')));
        prop_assert!(!once.split('/').any(|s| s == "." || s == ".."));
        prop_assert!(!once.contains([';', '\\']) && !once.contains("%2F") && !once.contains("%5C"));
        // A decoded escape may spell a new one (`%2561`), which stays as it is: `%25` is no unreserved character.
        prop_assert_eq!(&path(&once), &once);
        for target in [target, once] {
            let is_endpoint = is_written_as(target.as_bytes(), path(&target).as_bytes());
            prop_assert!(!is_endpoint || other_endpoints(target.as_bytes()).is_empty());
        }
    }

    #[test]
    fn parts_of_different_texts_differ(a in proptest::collection::vec(any::<u8>(), 0..60), b in proptest::collection::vec(any::<u8>(), 0..60)) {
        prop_assert_eq!(part(&a) == part(&b), a == b);
    }
}
