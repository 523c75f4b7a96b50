use crate::support::client::{Client, raw};
use crate::support::fields::remaining;
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;
use crate::support::store::{Store, decisions, limit, limit_with};

/// All that some backend could read as `/api/data` falls under the limit on `/api/`, in one and the same bucket, or is
/// refused.
fn no_spelling_of_a_path_gets_past_its_limit(store: &Store) {
    let gateway = store.gateway(&limit_with("x", "\"endpoint\"", 100, "match = { path = \"/api/\" }"));
    let counted = [
        "/api/data",
        "/api%2fdata",
        "/api%2Fdata%2f",
        "/api%5Cdata",
        "/api;a/data",
        "//api/data",
        "/api;a=b;c/data;d",
        "/;a/api/data",
        "/api%2fdata;a",
        "/%61pi%2f%64ata",
        "/x/../api%2fdata",
        "/x/%2e%2e/api/data",
        "/x;y%3B/../api/data",
        "http://other/api%2Fdata",
    ];
    let refused = [
        "%2Fapi/data",
        "/x/..%2fapi/data",
        "/x%2f../api/data",
        "/x%2f..%2fapi/data",
        "/x/%2e%2e%2fapi%2fdata",
        "/x%5c..%5capi/data",
        "/x\\..\\api\\data",
        "/api\\data",
        "/x/..;/api/data",
        "/x/..;a=b/api/data",
        "/x%2fy/../api/data",
        "/x%2fapi/../data",
        "/api//../data",
        "/api/../data",
        "//x/api/data",
        "///x@y/api/data",
        "http://other//x/api/data",
        "/api/data%0a",
        "/api/data%7F",
        "/api/x/%2e%2e/%2E./data",
        "/api/x/../%2e%2e/api/data",
        "http://other/api/../data",
        "/api/;x/../data",
        "/api/data;x%2fy",
        "http://other/x/..;/api/data",
    ];
    let status = |path: &str| {
        let response = raw(gateway.address, format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        (response.status, (response.status == 200).then(|| remaining(&response, "x")))
    };
    let mut left = 100;
    for path in counted {
        left -= 1;
        assert_eq!(status(path), (200, Some(left)), "{path}");
    }
    for path in refused {
        assert_eq!(status(path), (400, None), "{path}");
    }
    assert_eq!(status("/api/data"), (200, Some(left - 1)));
}

#[test]
fn no_spelling_of_a_path_gets_past_its_limit_in_memory() {
    no_spelling_of_a_path_gets_past_its_limit(&Store::memory());
}

#[test]
fn no_spelling_of_a_path_gets_past_its_limit_in_redis() {
    no_spelling_of_a_path_gets_past_its_limit(&Store::redis());
}

/// A configured path is read as one that is asked for.
#[test]
fn a_configured_path_may_be_spelled_in_any_way() {
    for spelling in ["/api%2fdata", "//api/x/../data/", "/api;x/%64ata", "/api%5Cdata"] {
        let scope = format!("match = {{ path = '{spelling}' }}");
        let gateway = Store::memory().gateway(&limit_with("x", "", 5, &scope));
        assert_eq!(remaining(&Client::connect(gateway.address).get("/api/data/y", ""), "x"), 4, "{spelling}");
    }
}

#[test]
fn options_for_the_server_itself_has_one_bucket_in_both_forms() {
    let gateway = Store::memory().gateway(&limit("x", "\"endpoint\"", 5));
    let mut client = Client::connect(gateway.address);
    let mut left = |target: &str| {
        remaining(&client.send(format!("OPTIONS {target} HTTP/1.1\r\nHost: test\r\n\r\n")).response(), "x")
    };
    assert_eq!(["*", "http://test", "HTTP://other", "http://test/", "*"].map(&mut left), [4, 3, 2, 4, 1]);
}

/// Which of two values a backend believes, nobody knows.
#[test]
fn what_decides_the_bucket_stands_there_once() {
    let identity = "[identity]\nsources = [\"cookie:sid\", \"ip\"]\n";
    let rules =
        [limit("user", "\"user\"", 100), limit_with("tenant", "\"header:X-Tenant\"", 100, "match.path = \"/t\"")];
    let gateway = Store::memory().gateway(&format!("{identity}{}", rules.concat()));
    let status = |path: &str, fields: &str| {
        raw(gateway.address, format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")).status
    };
    let twice = "X-Tenant: a\r\nx-tenant: b\r\n";
    assert_eq!(status("/t/x", twice), 400);
    assert_eq!(gateway.metric(&decisions("user", "allow")), 0.0);
    assert_eq!(status("/", twice), 200, "no limit here counts by it");
    assert_eq!(status("/t/x", "Cookie: sid=1; a=b\r\nCookie: a=c\r\nX-Tenant: a\r\n"), 200);
}

/// A backend that does not tell `_` from `-` gets nothing that it could take for what was counted by.
#[test]
fn a_field_like_the_one_that_is_counted_by_stays_here() {
    let origin = Origin::ok();
    let rules = limit("tenant", "\"header:X-Tenant\"", 100) + &limit("group", "\"header:A_Group\"", 100);
    let gateway = Gateway::start(&config("", &[origin.address], &format!("[store]\nurl = \"memory:\"\n{rules}")));
    let fields = "X-Tenant: a\r\nX_Tenant: b\r\nA_Group: c\r\nA-Group: d\r\nB_Group: e\r\nB-Group: f\r\n";
    assert_eq!(Client::connect(gateway.address).get("/", fields).status, 200);
    let seen = &origin.requests()[0];
    let values = ["X-Tenant", "X_Tenant", "A_Group", "A-Group", "B_Group", "B-Group"].map(|name| seen.fields(name));
    let none: Vec<&str> = Vec::new();
    assert_eq!(values, [vec!["a"], none.clone(), vec!["c"], none, vec!["e"], vec!["f"]]);
}
