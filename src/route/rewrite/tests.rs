//! What backends get of paths that a route changes.

use super::*;
use proptest::prelude::*;

fn stripping(prefix: &str) -> PathChange {
    PathChange { strip: Some(prefix.into()), ..PathChange::default() }
}

fn rewriting(pattern: &str, to: &str) -> PathChange {
    PathChange { rewrite: Some(Rewrite::new(pattern, to).unwrap()), ..PathChange::default() }
}

fn changed(change: &PathChange, target: &str) -> Result<String, Refusal> {
    let mut out = b"old".to_vec();
    change.apply(target.as_bytes(), &mut out).map(|()| String::from_utf8(out).unwrap())
}

fn is(change: &PathChange, cases: &[(&str, &str)]) {
    for (target, expected) in cases {
        assert_eq!(changed(change, target).as_deref(), Ok(*expected), "{target}");
    }
}

#[test]
fn a_prefix_is_cut_off_however_it_is_spelled_and_the_rest_stays_as_it_was_sent() {
    is(
        &stripping("/api"),
        &[
            ("/api", "/"),
            ("/api/", "/"),
            ("/api?", "/?"),
            ("/api/x", "/x"),
            ("/api/x/", "/x/"),
            ("/api/x?a=/api/../%2F&b", "/x?a=/api/../%2F&b"),
            ("//api//x//y", "/x/y"),
            ("/%61pi/%61%2f%zz;p", "/%61%2f%zz;p"),
            ("/z/../api/x", "/x"),
            ("/z/%2e%2E/./api/x", "/x"),
            ("/api/x/..", "/"),
            ("/api/x/y/..", "/x/"),
            ("/api/x/.", "/x/"),
            ("/api;v=1/y", "/y"),
            ("/;p/api/y", "/y"),
            ("/api/;p", "/;p"),
            ("/api/%2Fevil", "/%2Fevil"),
            ("/api//evil.test/", "/evil.test/"),
            ("*", "*"),
        ],
    );
    is(&stripping("/a/b%20"), &[("/a/b%20/c", "/c"), ("//a/;x/%62%20", "/"), ("/a/z/../b%20", "/")]);
}

#[test]
fn a_prefix_that_cannot_be_cut_cleanly_is_refused() {
    let change = stripping("/api/v1");
    for target in ["/api%2Fv1/x", "/api%2fv1", "/api%5Cv1/x", "/api/v1%2Fx", "/%2Fapi/v1", "/api/%2f/v1"] {
        assert_eq!(changed(&change, target), Err(DIVIDED), "{target}");
    }
    for target in ["/", "", "/api", "/api/v2", "/v1/api", "/API/v1", "?/api/v1"] {
        assert_eq!(changed(&change, target), Err(ELSEWHERE), "{target}");
    }
}

#[test]
fn a_prefix_is_put_before() {
    let change = PathChange { add: Some("/v1".into()), ..PathChange::default() };
    is(
        &change,
        &[("/", "/v1/"), ("", "/v1/"), ("?a", "/v1/?a"), ("/x/?a", "/v1/x/?a"), ("//x/../y", "/v1/y"), ("*", "*")],
    );
    let change = PathChange { add: Some("/v1".into()), ..stripping("/api") };
    is(&change, &[("/api", "/v1"), ("/api/", "/v1/"), ("/api?q", "/v1?q"), ("/api/x", "/v1/x")]);
}

#[test]
fn a_pattern_is_replaced_once_and_only_where_it_matches() {
    let change = rewriting("^/old/(.*)$", "/new/$1");
    is(
        &change,
        &[
            ("/old/x", "/new/x"),
            ("/old/", "/new/"),
            ("/older/x", "/older/x"),
            ("/%6Fld/%7Ex/%20%2F", "/new/~x/%20%2F"),
            ("/a/../old/x?old=/old/", "/new/x?old=/old/"),
            ("/%6older", "/%6older"),
            ("/%6Flder", "/%6Flder"),
        ],
    );
    is(&rewriting("(a)(b)?", "<$2$1$0$$>"), &[("/xab/a", "/x<baab$>/a"), ("/a", "/<aa$>"), ("/x", "/x")]);
    is(&rewriting("^/", ""), &[("/x", "/x"), ("/", "/")]);
    is(&rewriting("x$", "/"), &[("/ax", "/a/"), ("/x", "/")]);
    let all = PathChange {
        strip: Some("/api".into()),
        rewrite: Some(Rewrite::new("^/([^/]+)/(.+)", "/$2/$1").unwrap()),
        add: Some("/v1".into()),
    };
    is(&all, &[("/api/a/b?q", "/v1/b/a?q"), ("/api", "/v1"), ("/api/", "/v1/"), ("/api/a", "/v1/a")]);
    is(&PathChange { add: Some("/v1".into()), ..rewriting("^/$", "/home") }, &[("/", "/v1/home")]);
}

/// What a client sends must not put together what it could not send itself.
#[test]
fn a_rewrite_makes_no_second_meaning() {
    let change = rewriting("^/x(.*)$", "/.$1");
    is(&change, &[("/xa", "/.a"), ("/x.a", "/..a")]);
    assert!(changed(&change, "/x./a").is_err());
    assert!(changed(&change, "/x%2e/a").is_err());
    assert!(changed(&change, "/x/a").is_err());
    assert!(changed(&change, "/x.%2fa").is_err());
    assert!(changed(&change, "/x.;/a").is_err());
    assert!(changed(&rewriting("^/x(.*)$", "/%$1"), "/x0a").is_err());
    is(&rewriting("^/to/(.*)$", "/$1"), &[("/to//evil.test", "/evil.test")]);
    is(&rewriting("^/to(.*)$", "/$1"), &[("/to/evil.test", "/evil.test")]);
    let below = rewriting("^/files/(.*)$", "/public/$1");
    is(
        &below,
        &[
            ("/files/%%32e%%32e/a", "/public/%252e%252e/a"),
            ("/files/%2%65%2%65/a", "/public/%252e%252e/a"),
            ("/files/a%%32fb", "/public/a%252fb"),
            ("/files/%zz%", "/public/%25zz%25"),
            ("/files/%252e%2525%20%2F%41", "/public/%252e%2525%20%2FA"),
        ],
    );
    for path in ["/x./a", "/x%2e/a", "/x%2E", "/x."] {
        assert!(changed(&rewriting("^/x(.*)$", "/users/.$1"), path).is_err(), "{path}");
    }
    let large = rewriting("^/(.*)$", "/$1/$1/$1/$1/$1/$1/$1/$1");
    assert_eq!(changed(&large, &format!("/{}", "x".repeat(10_000))), Err(Refusal::TargetTooLong));
}

#[test]
fn what_no_rewrite_can_be() {
    let pattern = |pattern: &str| match Rewrite::new(pattern, "/") {
        Err(BadRewrite::Pattern(problem)) => problem,
        other => panic!("{pattern}: {other:?}"),
    };
    assert!(pattern("(a").starts_with("is no pattern: "), "{}", pattern("(a"));
    assert_eq!(pattern("\\w{1000}{1000}"), "is too large once compiled");
    assert_eq!(pattern(&"a".repeat(PATTERN_MAX + 1)), "is too long or not ASCII");
    for to in ["/$", "/$x", "/${1}", "/$2", "/a?b", "/a b", "/a\r\nX: y", "/\\", &"$0".repeat(17), &"a".repeat(2000)] {
        assert!(matches!(Rewrite::new("(a)", to), Err(BadRewrite::To(_))), "{to}");
    }
}

/// Time is linear in the path: this pattern takes engines that go back for ever.
#[test]
fn no_pattern_takes_for_ever() {
    let change = rewriting("^/(a+)+$", "/x");
    let path = format!("/{}!", "a".repeat(16_000));
    assert_eq!(changed(&change, &path), Ok(path));
}

fn normal(target: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    endpoint(target, &mut out);
    out
}

/// Targets that are taken at all, mostly below `/api/v1`.
fn targets() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "api",
        "%61pi",
        "ap%69;p",
        "api;x=1;y",
        "v1",
        "%761",
        "v1;",
        "x",
        "y%20",
        "%zz",
        "~",
        "",
        ";p",
        ".",
        "..",
        "%2e",
        "%2E%2e",
        "%%32e%%32e",
        "%2%65.",
        "...",
        "z%2Fw",
        "%5cw",
        "api%2fv1",
        "*",
    ]);
    let query = prop::sample::select(vec!["", "?", "?a=/../b", "?/api/v1"]);
    let start = prop::sample::select(vec!["", "/api/v1", "//%61pi/./v1", "/x/../api/;p/v1;q"]);
    let target = (start, prop::collection::vec(piece, 0..7), query)
        .prop_map(|(start, pieces, query)| format!("{start}/{}{query}", pieces.join("/")).into_bytes());
    target.prop_filter("a path that is refused at once", |target| {
        path::check(&target[..target.iter().position(|&b| b == b'?').unwrap_or(target.len())]).is_ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_is_the_normal_form_without_the_prefix(target in targets()) {
        let asked = normal(&target);
        let rest = asked.strip_prefix(b"/api/v1").filter(|rest| rest.is_empty() || rest[0] == b'/');
        let mut out = Vec::new();
        match (stripping("/api/v1").apply(&target, &mut out), rest) {
            (Ok(()), Some(rest)) => {
                let rest = if rest.is_empty() { b"/" } else { rest };
                prop_assert_eq!(normal(&out), rest);
                let has_query = out.contains(&b'?');
                prop_assert!(out[0] == b'/' && !out.starts_with(b"//") && has_query == target.contains(&b'?'));
                let path = out.split(|&b| b == b'?').next().unwrap();
                prop_assert!(path::check(path).is_ok());
                let mut again = Vec::new();
                PathChange::default().apply(&out, &mut again).unwrap();
                prop_assert_eq!(&again, &out, "nothing is left to resolve");
            }
            (Ok(()), None) => prop_assert!(false, "cut off where it is not"),
            (Err(refusal), Some(_)) => {
                prop_assert_eq!(refusal, DIVIDED);
                prop_assert!(path::encoded_separator(&target).is_some());
            }
            (Err(_), None) => {}
        }
    }

    #[test]
    fn what_is_rewritten_below_a_prefix_stays_below_it(target in targets()) {
        let mut out = Vec::new();
        rewriting("^/(.*)$", "/public/$1").apply(&target, &mut out).unwrap();
        let asked = normal(&target);
        let rest: &[u8] = if asked == b"/" { b"" } else { &asked };
        prop_assert_eq!(normal(&out), [b"/public", rest].concat());
    }

    #[test]
    fn without_a_change_the_normal_form_stays(target in targets()) {
        let mut out = Vec::new();
        PathChange::default().apply(&target, &mut out).unwrap();
        prop_assert_eq!(normal(&out), normal(&target));
        prop_assert!(out[0] == b'/' && !out.starts_with(b"//"));
    }
}
