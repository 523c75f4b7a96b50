//! Tests of the configuration: the manual, errors, values, warnings and what is printed.

use super::file::{self, Keys};
use super::text::{duration, expand, size, write_duration, write_size};
use super::*;
use crate::identity::UnknownApiKeys;
use crate::limit::policy::By;
use crate::limit::{OnFailure, StoreKind};
use crate::redis::{Address, Credentials, Place, Version};
use crate::resolve::Interval;
use crate::route::HostPattern;
use proptest::prelude::*;
use std::collections::BTreeSet;

const MANUAL: &str = include_str!("../../config.toml");
const API: &str = "[upstreams.api]\nservers = [\"127.0.0.1:9001\"]\n";

fn env(name: &str) -> Option<String> {
    let value = match name {
        "ALICE_KEY" => "alices-key",
        "EMPTY" => "",
        "NUMBER" => "7",
        "PASS" | "SENTINEL_PASSWORD" => "s3cret",
        _ => return None,
    };
    Some(value.to_owned())
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("config.toml", text, &env)
}

fn valid(text: &str) -> Config {
    parse(&format!("{text}\n{API}")).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn invalid(text: &str) -> String {
    parse(&format!("{text}\n{API}")).expect_err(text).to_string()
}

/// The manual with the keys that are not set by default, and the store that all of them may be set for.
fn whole_manual() -> String {
    let set = |line: &str| line.starts_with('#') && !line.starts_with("# ") && line.len() > 1;
    let lines = MANUAL.lines().map(|line| if set(line) { &line[1..] } else { line });
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    text.replace("url = \"memory:\"", "url = \"rediss+sentinel://redis.internal/primary\"")
}

/// The dotted path of each key in a table, with the names that users choose as `*`, and the way to it.
fn paths(table: &toml::Table, at: &str, way: &[String], out: &mut Vec<(String, Vec<String>)>) {
    for (key, value) in table {
        let chosen =
            [".headers", ".set"].iter().any(|key| at.ends_with(key)) || matches!(at, "upstreams" | "limits.plans");
        let name = if chosen { "*" } else { key };
        let path = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let way = [way, std::slice::from_ref(key)].concat();
        out.push((path.clone(), way.clone()));
        match value {
            toml::Value::Table(inner) => paths(inner, &path, &way, out),
            toml::Value::Array(members) => {
                for (i, member) in members.iter().enumerate() {
                    if let toml::Value::Table(inner) = member {
                        paths(inner, &path, &[way.as_slice(), &[i.to_string()]].concat(), out);
                    }
                }
            }
            _ => {}
        }
    }
}

fn paths_of(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    paths(&text.parse().unwrap(), "", &[], &mut found);
    found
}

#[test]
fn the_manual_is_valid_and_has_no_warnings() {
    let config = parse(MANUAL).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings(), Vec::<String>::new());
    let config = parse(&whole_manual()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings(), Vec::<String>::new());
    assert_eq!(config.identity.consumers.len(), 2);
    assert_eq!(config.limits[0].plans.len(), 1);
}

#[test]
fn what_the_manual_sets_outside_its_example_is_the_default() {
    let (manual, default) = (parse(MANUAL).unwrap(), valid(""));
    assert_eq!(manual.server, default.server);
    assert_eq!(manual.admin, default.admin);
    assert_eq!(manual.identity, default.identity);
    assert_eq!(manual.store, default.store);
    assert_eq!(manual.dns, default.dns);
    assert_eq!(manual.routes, default.routes);
    assert_eq!(manual.log, default.log);
    let upstream = upstream::Settings { servers: manual.upstreams[0].servers.clone(), ..default.upstreams[0].clone() };
    assert_eq!(manual.upstreams, [upstream]);
}

#[test]
fn every_key_stands_in_the_manual() {
    let declared = |keys: &&Keys| {
        let at = keys.at;
        let path = move |key: &&str| if at.is_empty() { (*key).to_owned() } else { format!("{at}.{key}") };
        keys.known.iter().map(path).collect::<Vec<_>>()
    };
    let declared: BTreeSet<String> = file::ALL.iter().flat_map(declared).collect();
    let chosen = |path: &String| !path.ends_with(".*");
    let written: BTreeSet<String> =
        paths_of(&whole_manual()).into_iter().map(|(path, _)| path).filter(chosen).collect();
    assert_eq!(declared, written);
}

#[test]
fn no_key_is_silently_ignored() {
    // A date is right nowhere, so whoever reads the key must refuse it.
    let date = toml::Value::Datetime("1979-05-27".parse().unwrap());
    for (path, way) in paths_of(&whole_manual()) {
        let mut document: toml::Value = toml::Value::Table(whole_manual().parse().unwrap());
        let mut at = &mut document;
        for step in &way {
            at = match at {
                toml::Value::Array(members) => &mut members[step.parse::<usize>().unwrap()],
                table => &mut table[step.as_str()],
            };
        }
        *at = date.clone();
        let error = parse(&toml::to_string(&document).unwrap()).expect_err(&path);
        let expected = way.join(".");
        let key = error.key.replace(['[', ']'], ".").replace("..", ".");
        assert_eq!(key, expected, "{error}");
        assert!(error.problem.starts_with("expected ") && error.problem.ends_with(", found a date"), "{error}");
    }
}

#[test]
fn errors_are_one_line_with_file_line_key_and_fix() {
    let error = parse("[server]\n\nlistn = []\n").unwrap_err();
    assert_eq!(error.to_string(), "config.toml:3: server.listn: unknown key; did you mean \"listen\"?");
    assert_eq!(invalid("[admin]\nport = 1"), "config.toml:2: admin.port: unknown key; use \"listen\"");
    assert_eq!(
        invalid("[[limits]]\nname = \"a\"\n[limits.plans.\"p q\"]\n"),
        "config.toml:1: limits[0].rate: is missing; say how much is allowed, such as rate = \"5/s\""
    );
    assert_eq!(
        parse("").unwrap_err().to_string(),
        "config.toml: upstreams: there is no upstream, so no request can go anywhere; \
         add [upstreams.api] with servers = [\"127.0.0.1:9001\"]"
    );
    let error = parse("[server\nlisten = 1").unwrap_err();
    assert_eq!((error.line, error.key.as_str()), (Some(1), ""), "{error}");
}

#[test]
fn lines_are_those_of_the_key() {
    for (text, line) in [
        ("[server]\nlisten = [\n  \"127.0.0.1:1\",\n  \"here\",\n]", 4),
        ("[[limits]]\nname = \"a\"\nrate = \"1/s\"\n\n[[limits]]\nname = \"a\"\nrate = \"1/s\"", 6),
        ("[[limits]]\nname = \"a\"\nrate = \"1/s\"\n\n[[limits]]\nrate = \"1/s\"", 5),
        ("[store]\n\nurl = \"\"\"\nredis:\n\"\"\"", 3),
        ("[server]\n[server.timeouts]\nhead = \"0s\"", 3),
        ("server.timeouts = { head = \"0s\" }", 1),
    ] {
        assert_eq!(parse(&format!("{text}\n{API}")).unwrap_err().line, Some(line), "{text}");
    }
}

#[test]
fn variables() {
    for (text, expanded) in [
        ("a", "a"),
        ("$a$", "$a$"),
        ("${PASS}", "s3cret"),
        ("<${PASS}${NUMBER}>", "<s3cret7>"),
        ("${NONE:-x}", "x"),
        ("${NONE:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", ""),
        ("$${PASS}", "${PASS}"),
        ("$$${PASS}", "$${PASS}"),
    ] {
        assert_eq!(expand(text, &env).as_deref(), Ok(expanded), "{text}");
    }
    for text in ["${NONE}", "${", "${}", "${1}", "${a b}", "${PASS:x}"] {
        assert!(expand(text, &env).is_err(), "{text}");
    }
    assert_eq!(valid("[server]\nworkers = \"${NUMBER}\"").server.workers, 7);
    assert!(!valid("[log]\ndenied = \"${NONE:-false}\"").log.denied);
    assert!(invalid("[server]\nworkers = \"7\"").contains("expected an integer, found a string"));
    assert!(invalid("[server]\nworkers = \"${PASS}\"").contains("server.workers"));
}

#[test]
fn sizes_and_durations() {
    for (text, bytes, printed) in
        [("16KiB", 16_384, "16KiB"), ("1 MiB", 1 << 20, "1MiB"), ("512", 512, "512B"), ("1536B", 1536, "1536B")]
    {
        assert_eq!((size(text), write_size(bytes).as_str()), (Ok(bytes), printed));
    }
    for text in ["", "KiB", "1KB", "1.5KiB", "-1", "99999999999GiB", "1k"] {
        assert!(size(text).is_err(), "{text}");
    }
    for (text, ms, printed) in
        [("20ms", 20, "20ms"), ("10s", 10_000, "10s"), ("60s", 60_000, "1min"), ("24h", 86_400_000, "1d")]
    {
        let expected = Duration::from_millis(ms);
        assert_eq!((duration(text), write_duration(expected).as_str()), (Ok(expected), printed));
    }
    for text in ["", "10", "s", "1.5s", "-1s", "1 fortnight", "99999999999999999d"] {
        assert!(duration(text).is_err(), "{text}");
    }
    assert!(invalid("[server.timeouts]\nhead = \"25h\"").contains("out of range; use 1ms to 1d"));
    assert!(invalid("[server]\nmax_head = 1023").contains("1023B is out of range; use 1KiB to 1MiB"));
    assert_eq!(valid("[server]\nmax_body = \"1MiB\"").server.bounds.body_max, Some(1 << 20));
}

#[test]
fn stores() {
    let redis = |url: &str| match valid(&format!("[store]\nurl = {url:?}")).store.kind {
        StoreKind::Redis(settings) => settings,
        StoreKind::Memory => panic!("{url}"),
    };
    let tcp = |host: &str, port| Address::Tcp { host: host.into(), port };
    let who = |username: Option<&str>, password: &str| {
        Some(Credentials { username: username.map(Into::into), password: password.into() })
    };
    assert_eq!(redis("redis://redis").place, Place::Server(tcp("redis", 6379)));
    assert_eq!(redis("redis://[::1]:1/").place, Place::Server(tcp("::1", 1)));
    let settings = redis("redis://al%40ice:p%2Fa@10.0.0.1:7000/3");
    assert_eq!((settings.place, settings.database), (Place::Server(tcp("10.0.0.1", 7000)), 3));
    assert_eq!(settings.credentials, who(Some("al@ice"), "p/a"));
    assert_eq!(redis("redis://:${PASS}@h").credentials, who(None, "s3cret"));
    let settings = redis("redis+unix:///run/redis.sock?db=2");
    let socket = Place::Server(Address::Unix("/run/redis.sock".into()));
    assert_eq!((settings.place, settings.database), (socket, 2));
    assert_eq!(redis("redis+unix://u:p@/r.sock").credentials, who(Some("u"), "p"));
    let settings = redis("redis+sentinel://u:p@s1,s2:1,[::1]/my%2Fprimary/3");
    let sentinels = vec![tcp("s1", 26379), tcp("s2", 1), tcp("::1", 26379)];
    let place = Place::Sentinel { sentinels, primary: "my/primary".into(), credentials: None };
    assert_eq!((settings.place, settings.credentials, settings.database), (place, who(Some("u"), "p"), 3));
    let settings = redis("rediss+cluster://:p@a,b:7000");
    assert_eq!(settings.place, Place::Cluster(vec![tcp("a", 6379), tcp("b", 7000)]));
    assert!(settings.tls.is_some() && settings.credentials == who(None, "p"));
    for url in [
        "redis",
        "memory",
        "redis://",
        "redis://h:0",
        "redis://h:x",
        "redis://h/x",
        "redis://h/1?a=b",
        "http://h",
        "redis://::1",
        "redis://u@h",
        "redis://:@h",
        "redis://u:%zz@h",
        "redis+unix://path",
        "redis+unix:///p?x=1",
        "redis://a,b",
        "redis+sentinel://h",
        "redis+sentinel://h/",
        "redis+sentinel:///primary",
        "redis+sentinel://h,,i/primary",
        "redis+sentinel://h/primary/x",
        "redis+cluster://",
        "redis+cluster://h/1",
        "redis+cluster://h?x",
        "rediss+unix:///p",
    ] {
        let error = invalid(&format!("[store]\nurl = {url:?}"));
        assert!(error.starts_with("config.toml:2: store.url: "), "{error}");
    }
    assert_eq!(valid("[store]\non_failure = \"closed\"").store.on_failure, OnFailure::Closed);
}

#[test]
fn nameservers() {
    let dns = valid("[dns]\nservers = [\"10.0.0.2\", \"::1\", \"[::1]:5353\"]\ninterval = \"ttl\"").dns;
    assert_eq!(
        dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.2:53", "[::1]:53", "[::1]:5353"]
    );
    assert_eq!((dns.interval, dns.timeout), (Interval::Ttl, Duration::from_secs(2)));
    let dns = valid("[dns]\nservers = \"[fd00::2]\"\ninterval = \"100ms\"\ntimeout = \"10ms\"").dns;
    assert_eq!(
        (dns.servers, dns.interval),
        (vec!["[fd00::2]:53".parse().unwrap()], Interval::Every(Duration::from_millis(100)))
    );
    for server in ["ns.example.com", "10.0.0.2:0", "10.0.0.2:x", "10.0.0.2:", "", "[10.0.0.2", "::1:x"] {
        assert!(
            invalid(&format!("[dns]\nservers = [{server:?}]")).contains("is no address of a nameserver"),
            "{server}"
        );
    }
}

#[test]
fn sentinels_may_ask_for_credentials_of_their_own() {
    let text = "[store]\nurl = \"redis+sentinel://h/primary\"\nprotocol = \"resp3\"\n\
                sentinel = { username = \"u\", password = \"${PASS}\" }";
    let config = valid(text);
    let StoreKind::Redis(settings) = &config.store.kind else { panic!("no Redis") };
    let Place::Sentinel { credentials, .. } = &settings.place else { panic!("no sentinels") };
    assert_eq!(credentials.as_ref().map(|own| own.password.as_str()), Some("s3cret"));
    assert_eq!(settings.version, Version::Three);
    assert!(invalid("[store.sentinel]\npassword = \"p\"").contains("not found by sentinels"));
    let alone = invalid("[store]\nurl = \"redis+sentinel://h/primary\"\nsentinel.username = \"u\"");
    assert!(alone.contains("a user without a password"), "{alone}");
}

#[test]
fn no_error_shows_a_password_or_a_key() {
    for text in [
        "[store]\nurl = \"redis://:${PASS}@h:x\"",
        "[store]\nurl = \"redis://${PASS}@h\"",
        "[store]\nurl = \"redis://u:${PASS}\"",
        "[store]\nurl = \"${PASS}\"",
        "[[consumers]]\nname = \"a\"\napi_key = \" ${PASS}\"",
        "[[consumers]]\nname = \"a\"\napi_key_sha256 = \"${PASS}\"",
        "[[consumers]]\nname = \"a\"\napi_key = \"s3cret\"\n[[consumers]]\nname = \"b\"\napi_key = \"s3cret\"",
    ] {
        assert!(!invalid(text).contains("s3cret"), "{text}");
    }
}

#[test]
fn callers() {
    let config = valid(
        "[server]\ntrusted_proxies = [\"10.1.2.3/8\", \"10.0.0.1\", \"::ffff:1.2.3.4/112\", \"fd00::1\"]\n\
         [identity]\nsources = [\"cookie:sid\", \"header:X-User\"]\nunknown_api_keys = \"reject\"",
    );
    let nets: Vec<String> = config.identity.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["10.0.0.0/8", "10.0.0.1/32", "1.2.0.0/16", "fd00::1/128"]);
    assert_eq!(
        config.identity.sources,
        [identity::Source::Cookie("sid".into()), identity::Source::Header("X-User".into())]
    );
    assert_eq!(config.identity.unknown_api_keys, UnknownApiKeys::Reject);
    let config = valid(
        "[[consumers]]\nname = \"a\"\napi_key = \"${ALICE_KEY}\"\n[[consumers]]\nname = \"b\"\n\
         api_key_sha256 = \"d4dec180a993cd5fa065cac46b9bbfd1528c39080afa14d683a5bc657c453892\"",
    );
    assert_eq!(config.identity.consumers[1].key_sha256[..3], [0xd4, 0xde, 0xc1]);
}

#[test]
fn limits_and_their_defaults() {
    let config = valid(
        "[[limits]]\nname = \"a\"\nrate = \"5/s\"\ncost = 7\n[limits.plans]\npro = { rate = \"50/s\" }\n\
         big = { burst = 100 }\n\
         [[limits]]\nname = \"b\"\nrate = \"1/min\"\nby = [\"header:X-Tenant\", \"ip\"]\n\
         match = { path = \"/%61/./b/\", host = \"*.Example.com\", methods = [\"POST\"] }",
    );
    let [a, b] = config.limits.as_slice() else { panic!() };
    assert_eq!((a.scope.path.as_str(), a.by.as_slice()), ("/", [By::User, By::Endpoint].as_slice()));
    assert_eq!((a.quota.burst, b.quota.burst), (7, 1));
    let plans: Vec<_> = a.plans.iter().map(|(name, quota)| (name.as_str(), quota.rate.tokens, quota.burst)).collect();
    assert_eq!(plans, [("pro", 50, 7), ("big", 5, 100)]);
    assert_eq!(b.by, [By::Header("x-tenant".into()), By::Ip]);
    assert_eq!((b.scope.path.as_str(), b.scope.methods.as_slice()), ("/a/b", ["POST".to_owned()].as_slice()));
    assert_eq!(b.scope.host, HostPattern::parse("*.example.com"));
}

#[test]
fn routes_by_default_and_by_method() {
    let config = valid("");
    assert_eq!((config.routes.len(), config.routes[0].scope.path.as_str()), (1, "/"));
    let route = |methods: &str| format!("[[routes]]\nupstream = \"api\"\n{methods}\n");
    valid(&format!("{}{}{}", route(""), route("methods = [\"GET\"]"), route("methods = [\"POST\", \"PUT\"]")));
    let twice = format!("{}{}", route("methods = [\"GET\"]"), route("methods = [\"PUT\", \"GET\"]"));
    assert!(invalid(&twice).contains("routes[0] takes the same"));
    let error = invalid("[upstreams.other]\nservers = [\"h:1\"]\n");
    assert!(error.contains("routes: there are 2 upstreams and no route"), "{error}");
}

#[test]
fn a_route_waits_and_takes_as_its_upstream_and_the_server_do_where_it_does_not_say() {
    let config = valid(
        "server.max_body = \"1MiB\"\n[upstreams.b]\nservers = [\"h:1\"]\ntimeouts = { connect = \"3s\", response = \"4s\" }\n\
         [[routes]]\nupstream = \"b\"\n[[routes]]\nupstream = \"b\"\npath = \"/x\"\ntimeouts = { response = \"5min\" }\n\
         max_body = \"unlimited\"",
    );
    let told = |at: usize| {
        let Goal::Upstream(way) = &config.routes[at].goal else { panic!() };
        (way.patience.connect.as_secs(), way.patience.response.as_secs(), way.body_max)
    };
    assert_eq!((told(0), told(1)), ((3, 4, Some(1 << 20)), (3, 300, None)));
}

#[test]
fn what_a_route_asks_of_the_head() {
    let config = valid(
        "[[routes]]\nupstream = \"api\"\npath = \"/a\"\nexact = true\n\
         headers = { \"X-Version\" = \"2\", \"X-Beta\" = \"*\" }\n\
         [[routes]]\nupstream = \"api\"\npath = \"/a\"\n[[routes]]\nupstream = \"api\"\npath = \"/a\"\n\
         headers.X-Version = \"2\"",
    );
    let scope = &config.routes[0].scope;
    let pairs: Vec<_> = scope.headers.iter().map(|header| (header.name.as_str(), header.value.as_deref())).collect();
    assert_eq!((scope.exact, pairs), (true, vec![("x-beta", None), ("x-version", Some("2"))]));
    let many: Vec<String> = (0..17).map(|number| format!("a{number} = \"1\"")).collect();
    let error = invalid(&format!("[[routes]]\nupstream = \"api\"\nheaders = {{ {} }}", many.join(", ")));
    assert!(error.contains("routes[0].headers: has 17 entries; use at most 16"), "{error}");
}

#[test]
fn what_is_printed_parses_again_to_the_same() {
    let text = "[server]\nlisten = [\"127.0.0.1:0\", \"[::1]:0\"]\nmax_body = 5000\ntrusted_proxies = [\"10.0.0.0/8\"]\n\
         [admin]\nlisten = \"off\"\n[store]\nurl = \"redis+unix:///a%20b?db=3\"\ndeadline = \"1500ms\"\n\
         [upstreams.\"a.b\"]\nservers = [\"h:1\", \"[::1]:2\"]\nretries = 0\n\
         [[routes]]\nupstream = \"a.b\"\nhost = \"*.x\"\n[[routes]]\nupstream = \"api\"\nmethods = [\"GET\"]\n\
         [[routes]]\nupstream = \"api\"\npath = \"/a/b\"\nstrip_prefix = \"/a/\"\nrequest.remove = \"Cookie\"\n\
         response = { set = { \"X-A\" = \"$${x}\", \"x.b\" = \"\" }, remove = [\"Server\", \"Via\"] }\nadd_prefix = \"/v1/\"\n\
         rewrite = { pattern = '^/(\\d)\"$', to = \"/$1$$${x}\" }\n\
         [[routes]]\npath = \"/r\"\nadd_prefix = \"/x\"\nresponse.set.X-A = \"1\"\n\
         redirect = { to = \"https://{host}{path}\", status = 303 }\n\
         [[routes]]\nupstream = \"api\"\nexact = true\nmax_body = \"unlimited\"\ntimeouts.connect = \"7s\"\nheaders = { \"X-A\" = \"$${x}\", \"X-B\" = \"*\" }\n\
         [[limits]]\nname = \"l\"\nrate = \"10/15s\"\nby = []\n[limits.plans.\"p.q\"]\nburst = 5\n\
         [identity]\nsources = [\"header:X-A\", \"cookie:c\", \"ip\"]\n\
         [dns]\nservers = [\"10.0.0.2\", \"::1\"]\ninterval = \"ttl\"\ntimeout = \"1500ms\"";
    let stores = ["redis+sentinel://s1,[::1]:1/a%2Fb/3", "rediss+cluster://a,b:1", "rediss://h/2"];
    let stores = stores.map(|url| valid(&format!("[store]\nurl = \"{url}\"\nprotocol = \"resp3\"")));
    for config in [parse(MANUAL).unwrap(), valid(text)].into_iter().chain(stores) {
        assert_eq!(parse(&config.print()).unwrap_or_else(|e| panic!("{e}\n{}", config.print())), config);
    }
}

#[test]
fn what_is_printed_shows_no_secret() {
    let text = "[store]\nurl = \"redis://al:${PASS}@h\"\n[[consumers]]\nname = \"alice\"\napi_key = \"${ALICE_KEY}\"";
    let printed = valid(text).print();
    assert!(!printed.contains("s3cret") && !printed.contains("alices-key"), "{printed}");
    assert!(printed.contains("redis://al:***@h:6379/0"), "{printed}");
    let text = "[store]\nurl = \"redis+sentinel://h/p\"\nsentinel = { username = \"u\", password = \"${PASS}\" }";
    let printed = valid(text).print();
    assert!(!printed.contains("s3cret") && printed.contains("username = \"u\""), "{printed}");
    printed.parse::<toml::Table>().unwrap();
    let text =
        "[[routes]]\nupstream = \"api\"\nheaders.X-Token = \"${PASS}\"\nrequest.set.Authorization = \"B ${PASS}\"\n";
    let printed = valid(text).print();
    assert!(!printed.contains("s3cret") && printed.contains("set = { Authorization = \"***\" }"), "{printed}");
}

/// A limit `name` with more keys.
fn limit(name: &str, by: &str, rest: &str) -> String {
    format!("[[limits]]\nname = {name:?}\nrate = \"1/s\"\nby = {by}\n{rest}\n")
}

/// The warnings of a config in which API keys that nobody owns are no users.
fn warnings_of(text: &str) -> Vec<String> {
    valid(&format!("identity.unknown_api_keys = \"ip\"\n{text}")).warnings()
}

#[test]
fn a_limit_by_what_clients_choose_wants_another_beside_it() {
    let api = "match = { path = \"/api\" }";
    for by in ["[\"endpoint\"]", "[\"user\", \"endpoint\"]", "[\"header:X-A\"]"] {
        let alone = limit("a", by, api);
        let warnings = warnings_of(&alone);
        assert!(warnings.len() == 1 && warnings[0].starts_with("Limit \"a\" counts by "), "{warnings:?}");
        for (by, rest, enough) in [
            ("[\"user\"]", api, true),
            ("[\"ip\"]", "", true),
            ("[]", "match = { path = \"/\" }", true),
            ("[\"user\"]", "match = { path = \"/api/x\" }", false),
            ("[\"user\"]", "match = { path = \"/ap\" }", false),
            ("[\"user\"]", "match = { methods = [\"GET\"] }", false),
            ("[\"user\"]", "match = { host = \"a.b\" }", false),
            ("[\"user\"]", "mode = \"shadow\"", false),
            ("[\"user\", \"header:X-B\"]", "mode = \"shadow\"", false),
        ] {
            let both = format!("{alone}{}", limit("b", by, rest));
            assert_eq!(warnings_of(&both).is_empty(), enough, "{both}");
        }
    }
    assert!(warnings_of(&limit("a", "[\"endpoint\"]", "mode = \"shadow\"")).is_empty());
    let hosts = |wide: &str, narrow: &str| {
        let [wide, narrow] = [wide, narrow].map(|host| format!("match = {{ host = {host:?} }}"));
        warnings_of(&format!("{}{}", limit("w", "[]", &wide), limit("n", "[\"endpoint\"]", &narrow))).is_empty()
    };
    assert!(hosts("*.b.c", "a.b.c") && hosts("*.b.c", "*.b.c") && hosts("*.c", "*.b.c") && hosts("a", "a"));
    assert!(!hosts("a.b.c", "*.b.c") && !hosts("*.b.c", "b.c") && !hosts("*.b.c", "*.c") && !hosts("a", "b"));
}

#[test]
fn warnings_of_other_kinds() {
    let by_ip = limit("ip", "[\"ip\"]", "");
    let by_user = limit("user", "[\"user\"]", "");
    for (text, part) in [
        (String::new(), Some("nothing is limited")),
        (by_ip.clone(), None),
        (by_user.clone(), Some("invents keys")),
        (format!("{by_user}{by_ip}"), None),
        (format!("identity.unknown_api_keys = \"reject\"\n{by_user}"), None),
        (format!("identity.sources = [\"ip\"]\n{by_user}"), None),
        (format!("server.trusted_proxies = \"::/0\"\n{by_ip}"), Some("::/0")),
        (format!("server.trusted_proxies = \"0.0.0.0/0\"\n{by_ip}"), Some("0.0.0.0/0")),
        (
            format!("identity.sources = [\"ip\"]\n{by_ip}[[consumers]]\nname = \"a\"\napi_key = \"k\"\n"),
            Some("nobody is ever"),
        ),
        (
            format!("{by_ip}[upstreams.b]\nservers = [\"h:1\"]\n[[routes]]\nupstream = \"api\"\n"),
            Some("No route leads to upstream \"b\""),
        ),
        (limit("ip", "[\"ip\"]", "burst = 10\nlease = 5"), Some("it has no effect")),
        (format!("store.url = \"redis://h\"\n{}", limit("ip", "[\"ip\"]", "burst = 10\nlease = 5")), None),
    ] {
        let warnings = valid(&text).warnings();
        assert_eq!(warnings.len(), usize::from(part.is_some()), "{text}\n{warnings:?}");
        assert!(warnings.iter().all(|warning| part.is_some_and(|part| warning.contains(part))), "{warnings:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_an_error_of_one_line_and_never_a_panic(
        at in 0..MANUAL.len(), cut in 0..40usize, put in "[\\[\\]{}$.=\"a-z0-9 \n-]{0,6}",
    ) {
        let mut bytes = whole_manual().into_bytes();
        let at = at % bytes.len();
        bytes.splice(at..(at + cut).min(bytes.len()), put.bytes());
        if let Err(error) = parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

#[test]
fn no_more_names_than_can_be_resolved() {
    let upstream = |number: u32, names: std::ops::Range<u32>| {
        let servers: Vec<String> = names.map(|name| format!("\"s{name}.test:80\"")).collect();
        format!(
            "[upstreams.u{number}]\nservers = [{}]\n[[routes]]\npath = \"/{number}\"\nupstream = \"u{number}\"\n",
            servers.join(",")
        )
    };
    let text = upstream(0, 0..1000) + &upstream(1, 500..1500) + &upstream(2, 1500..2048);
    assert!(parse(&text).is_ok(), "those of two upstreams count once");
    let error = parse(&(text + &upstream(3, 9000..9001))).unwrap_err().to_string();
    assert!(error.contains("hold 2049 names"), "{error}");
}
