//! What matches, and what comes before what.

use super::*;
use crate::http::Bounds;

const BOUNDS: Bounds = Bounds { head_max: 4096, fields_max: 64, body_max: None };

fn rule(path: &str) -> Match {
    Match { path: path.into(), ..Match::default() }
}

fn exact(path: &str) -> Match {
    Match { exact: true, ..rule(path) }
}

fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch { name: name.into(), value: (value != "*").then(|| value.into()) }
}

/// A rule for `/` with these header fields.
fn with(headers: &[(&str, &str)]) -> Match {
    Match { headers: headers.iter().map(|(name, value)| header(name, value)).collect(), ..rule("/") }
}

/// What `ask` makes of a request with these field lines.
fn asked<T>(method: &str, host: &str, path: &str, fields: &str, ask: impl FnOnce(&Asked<'_>) -> T) -> T {
    let text = format!("{method} / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let buffer = text.as_bytes();
    let mut head = RequestHead::default();
    assert!(head.parse(buffer, &BOUNDS).unwrap());
    ask(&Asked { host: host.as_bytes(), path: path.as_bytes(), head: &head, buffer, trusted: false })
}

fn longest(tree: &PathTree, method: &str, host: &str, path: &str, fields: &str) -> Option<usize> {
    asked(method, host, path, fields, |asked| tree.longest(asked))
}

#[test]
fn the_longest_prefix_wins_and_matches_whole_segments() {
    let tree = PathTree::new([(rule("/"), 0), (rule("/api"), 1), (rule("/api/v1"), 2)]);
    let of = |path: &str| longest(&tree, "GET", "h", path, "");
    assert_eq!(of("/"), Some(0));
    assert_eq!(of("/apix"), Some(0));
    assert_eq!(of("/api"), Some(1));
    assert_eq!(of("/api/v2"), Some(1));
    assert_eq!(of("/api/v1/x"), Some(2));
}

#[test]
fn a_longer_path_that_does_not_accept_falls_back_to_a_shorter() {
    let narrow = Match { methods: vec!["POST".into()], ..rule("/api") };
    let tree = PathTree::new([(rule("/"), 0), (narrow, 1)]);
    assert_eq!(longest(&tree, "GET", "h", "/api", ""), Some(0));
    assert_eq!(longest(&tree, "POST", "h", "/api", ""), Some(1));
}

#[test]
fn an_exact_path_is_that_path_alone_and_comes_before_its_prefix() {
    let tree = PathTree::new([(rule("/a"), 0), (exact("/a"), 1), (exact("/"), 2), (exact("/a/b"), 3)]);
    let of = |path: &str| longest(&tree, "GET", "h", path, "");
    assert_eq!([of("/a"), of("/a/x"), of("/a/b"), of("/a/b/c")], [Some(1), Some(0), Some(3), Some(0)]);
    assert_eq!([of("/"), of("/b"), of("*")], [Some(2), None, None]);
}

#[test]
fn among_equal_paths_exact_host_beats_suffix_beats_none() {
    let with = |host: &str| Match { host: HostPattern::parse(host), ..rule("/") };
    let tree = PathTree::new([(rule("/"), 0), (with("*.example.com"), 1), (with("a.example.com"), 2)]);
    let of = |host: &str| longest(&tree, "GET", host, "/", "");
    assert_eq!(of("A.Example.com"), Some(2));
    assert_eq!(of("b.example.com"), Some(1));
    assert_eq!(of("example.com"), Some(0));
    assert_eq!(of(".example.com"), Some(0));
}

#[test]
fn head_falls_under_get_unless_it_is_named() {
    let of = |methods: &[&str]| Match { methods: methods.iter().map(|&method| method.into()).collect(), ..rule("/a") };
    let tree = PathTree::new([(of(&["GET"]), 0), (of(&["HEAD"]), 1), (rule("/"), 2)]);
    let found = |tree: &PathTree, method: &str| longest(tree, method, "h", "/a", "");
    assert_eq!(
        ["GET", "HEAD", "head", "POST"].map(|method| found(&tree, method)),
        [Some(0), Some(1), Some(1), Some(2)]
    );
    let tree = PathTree::new([(of(&["POST", "GET"]), 0), (rule("/"), 1)]);
    assert_eq!(["get", "HEAD", "Head", "PUT"].map(|method| found(&tree, method)), [Some(0), Some(0), Some(0), Some(1)]);
    let tree = PathTree::new([(of(&["HEAD"]), 0), (of(&["POST"]), 1)]);
    assert_eq!(found(&tree, "GET"), None);
    assert_eq!(PathTree::new([(of(&["GET"]), 0), (of(&["HEAD"]), 1)]).most_on_one_path(), 2);
}

#[test]
fn what_comes_first_among_rules_that_all_accept() {
    let host = |rule: Match| Match { host: HostPattern::parse("h"), ..rule };
    let get = |rule: Match| Match { methods: vec!["GET".into()], ..rule };
    let one = || with(&[("a", "1")]);
    // From the widest to the narrowest.
    let ladder = [
        rule("/"),
        one(),
        with(&[("a", "1"), ("b", "*")]),
        get(rule("/")),
        get(one()),
        host(rule("/")),
        host(one()),
        host(get(rule("/"))),
        exact("/"),
        Match { exact: true, ..one() },
        host(exact("/")),
    ];
    for (number, narrow) in ladder.iter().enumerate() {
        for wide in &ladder[..number] {
            for order in [[(wide.clone(), 0), (narrow.clone(), 1)], [(narrow.clone(), 1), (wide.clone(), 0)]] {
                let found = longest(&PathTree::new(order), "GET", "h", "/", "A: 1\r\nB: x\r\n");
                assert_eq!(found, Some(1), "{narrow:?} before {wide:?}");
            }
        }
    }
    // A longer path comes before all of them.
    let tree = PathTree::new([(host(get(exact("/a"))), 0), (rule("/a/b"), 1)]);
    assert_eq!(longest(&tree, "GET", "h", "/a/b", ""), Some(1));
    // Where nothing tells, the first.
    let tree = PathTree::new([(with(&[("b", "*")]), 0), (one(), 1)]);
    assert_eq!(longest(&tree, "GET", "h", "/", "A: 1\r\nB: x\r\n"), Some(0));
}

#[test]
fn header_fields_must_all_be_there_in_one_of_their_lines() {
    for (headers, fields, accepts) in [
        ([("x-v", "2")].as_slice(), "X-V: 2\r\n", true),
        (&[("x-v", "2")], "x-v:2 \r\n", true),
        (&[("x-v", "2")], "X-V: 1\r\nX-V: 2\r\n", true),
        (&[("x-v", "2")], "X-V: 1, 2\r\n", false),
        (&[("x-v", "2")], "X-V: 20\r\n", false),
        (&[("x-v", "a")], "X-V: A\r\n", false),
        (&[("x-v", "2")], "X_V: 2\r\n", false),
        (&[("x-v", "2")], "", false),
        (&[("x-v", "")], "X-V:\r\n", true),
        (&[("x-v", "*")], "X-V:\r\n", true),
        (&[("x-v", "*")], "Y: *\r\n", false),
        (&[("x-v", "*"), ("y", "1")], "Y: 1\r\nX-V: 3\r\n", true),
        (&[("x-v", "*"), ("y", "1")], "X-V: 1\r\n", false),
        // Of a peer that is not trusted.
        (&[("x-forwarded-proto", "https")], "X-Forwarded-Proto: https\r\n", false),
        (&[("x-real-ip", "*")], "X-Real-IP: 1\r\n", false),
    ] {
        let tree = PathTree::new([(with(headers), 0)]);
        assert_eq!(longest(&tree, "GET", "h", "/", fields).is_some(), accepts, "{headers:?} {fields:?}");
    }
    let tree = PathTree::new([(with(&[("x-forwarded-proto", "https")]), 0)]);
    let trusted = asked("GET", "h", "/", "X-Forwarded-Proto: https\r\n", |asked| {
        tree.longest(&Asked { trusted: true, ..*asked })
    });
    assert_eq!(trusted, Some(0));
}

#[test]
fn each_finds_every_rule_on_the_way() {
    let tree = PathTree::new([(rule("/"), 0), (rule("/api"), 1), (rule("/b"), 2), (exact("/api"), 3)]);
    let each = |path: &str| {
        let mut found = Vec::new();
        asked("GET", "h", path, "", |asked| tree.each(asked, |id| found.push(id)));
        found
    };
    assert_eq!(each("/api/x"), [0, 1]);
    assert_eq!(each("/api"), [0, 3, 1]);
    assert_eq!(tree.most_on_one_path(), 3);
}

#[test]
fn the_most_on_one_path_counts_exact_ones_where_they_are_and_header_fields_always() {
    let most = |rules: Vec<Match>| PathTree::new(rules.into_iter().zip(0..)).most_on_one_path();
    assert_eq!(most(vec![exact("/"), exact("/a"), exact("/a/b")]), 1);
    assert_eq!(most(vec![rule("/"), exact("/a"), rule("/a/b")]), 2);
    assert_eq!(most(vec![exact("/"), rule("/a"), rule("/a/b"), exact("/a/b")]), 3);
    assert_eq!(most(vec![with(&[("a", "1")]), with(&[("a", "2")]), rule("/")]), 3);
}

#[test]
fn what_covers_what() {
    let get = Match { methods: vec!["GET".into()], ..rule("/") };
    let head = Match { methods: vec!["HEAD".into()], ..rule("/") };
    for (wide, narrow, covers) in [
        (rule("/"), exact("/a"), true),
        (rule("/a"), exact("/a"), true),
        (exact("/a"), exact("/a"), true),
        (exact("/a"), rule("/a"), false),
        (exact("/a"), exact("/a/b"), false),
        (rule("/a"), rule("/ab"), false),
        (rule("/"), with(&[("a", "1")]), true),
        (with(&[("a", "1")]), rule("/"), false),
        (with(&[("a", "*")]), with(&[("a", "1")]), true),
        (with(&[("a", "1")]), with(&[("a", "*")]), false),
        (with(&[("a", "1")]), with(&[("a", "1"), ("b", "2")]), true),
        (with(&[("a", "1"), ("b", "2")]), with(&[("a", "1")]), false),
        (rule("/"), get.clone(), true),
        (get.clone(), head.clone(), true),
        (head, get.clone(), false),
        (get, with(&[("a", "1")]), false),
    ] {
        assert_eq!(wide.covers(&narrow), covers, "{wide:?} {narrow:?}");
    }
}

#[test]
fn what_cannot_be_told_apart() {
    assert!(rule("/").is_like(&rule("/")) && !rule("/").is_like(&exact("/")));
    assert!(with(&[("a", "1")]).is_like(&with(&[("a", "1")])));
    for other in [with(&[("a", "2")]), with(&[("a", "*")]), with(&[("b", "1")]), rule("/")] {
        assert!(!with(&[("a", "1")]).is_like(&other), "{other:?}");
    }
}

#[test]
fn ports_and_brackets() {
    assert_eq!(host_without_port(b"a.b:80"), b"a.b");
    assert_eq!(host_without_port(b"a.b"), b"a.b");
    assert_eq!(host_without_port(b"[::1]:80"), b"[::1]");
    assert_eq!(host_without_port(b"[::1]"), b"[::1]");
}

#[test]
fn the_dot_at_the_end_of_a_name_makes_no_other_host() {
    assert_eq!(host_without_port(b"a.b."), b"a.b");
    assert_eq!(host_without_port(b"a.b.:80"), b"a.b");
    assert_eq!(host_without_port(b"a.b.."), b"a.b.");
    assert_eq!(HostPattern::parse("A.b."), HostPattern::parse("a.b"));
    assert_eq!(HostPattern::parse("*.a.b."), HostPattern::parse("*.a.b"));
    assert_eq!((HostPattern::parse("."), HostPattern::parse("*.")), (None, None));
}
