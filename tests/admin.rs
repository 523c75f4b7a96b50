//! The admin port: health, readiness and metrics, for probes and scrapers.

use crate::support::client::{self, Client, raw};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head};
use crate::support::{signal, until};
use rustix::process::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LIMITS: &str = "[[limits]]\nname = \"per-user\"\nby = [\"user\", \"endpoint\"]\nrate = \"1/h\"\nburst = 2\n";

#[test]
fn a_running_gateway_is_alive_and_ready() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    assert_eq!(client::get(gateway.admin, "/healthz").status, 200);
    until("it is ready", || client::get(gateway.admin, "/readyz").status == 200);
    let mut probe = Client::connect(gateway.admin);
    for (path, text) in [("/healthz", "alive\n"), ("/readyz", "ready\n"), ("/readyz?x=1", "ready\n")] {
        let response = probe.get(path, "");
        assert_eq!((response.status, response.text().as_str()), (200, text), "{path}");
        assert_eq!(response.field("Cache-Control"), Some("no-store"));
    }
    let last = probe.get("/healthz", "Connection: close\r\n");
    assert_eq!(last.field("Connection"), Some("close"));
    assert!(probe.is_closed());
}

#[test]
fn a_draining_gateway_is_alive_and_not_ready() {
    let (asked, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (seen, may_go) = (asked.clone(), go.clone());
    let origin = Origin::new(move |mut stream, _| {
        read_head(&mut stream).unwrap();
        seen.store(true, Ordering::SeqCst);
        until("the test lets the backend answer", || may_go.load(Ordering::SeqCst));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    });
    let mut gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut client = Client::connect(gateway.address);
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    until("the request runs", || asked.load(Ordering::SeqCst));
    signal(gateway.process(), Signal::TERM);
    until("it is not ready any more", || client::get(gateway.admin, "/readyz").status == 503);
    assert_eq!(client::get(gateway.admin, "/readyz").text(), "draining\n");
    assert_eq!(client::get(gateway.admin, "/healthz").status, 200);
    assert_eq!(gateway.metric("rateguard_draining"), 1.0);
    go.store(true, Ordering::SeqCst);
    assert_eq!(client.response().text(), "ok");
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    until("it is ready", || client::get(gateway.admin, "/readyz").status == 200);
    let mut probe = Client::connect(gateway.admin);
    for path in ["/healthz", "/readyz"] {
        let whole = probe.get(path, "");
        let head = probe.send(format!("HEAD {path} HTTP/1.1\r\nHost: h\r\n\r\n")).response_to_head();
        assert_eq!(head.head, whole.head, "{path}");
    }
    let head = probe.send("HEAD /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").response_to_head();
    assert_eq!(head.status, 200);
    assert!(probe.is_closed(), "a body followed");
}

#[test]
fn what_is_not_there_is_404_and_what_cannot_be_done_405() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    for path in ["/nope", "/metrics/", "//metrics", "/healthz%2f"] {
        assert_eq!(client::get(gateway.admin, path).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let mut probe = Client::connect(gateway.admin);
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");
        let response = probe.send(request).response();
        assert_eq!(response.status, 405, "{method}");
        assert_eq!(response.field("Allow"), Some("GET, HEAD"), "RFC 9110 section 15.5.6");
        assert_eq!(response.field("Connection"), Some("close"));
    }
}

#[test]
fn garbage_does_not_take_the_port_down() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    for garbage in ["\0\0\0\0", "GET /\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut probe = Client::connect(gateway.admin);
        probe.send(garbage);
        assert!(probe.rest().is_ok(), "{garbage:?}");
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100_000));
    let mut probe = Client::connect(gateway.admin);
    let _ = probe.stream.write_all(long.as_bytes());
    let _ = probe.rest();
    assert_eq!(client::get(gateway.admin, "/healthz").status, 200);
}

#[test]
fn idle_connections_to_the_port_are_bounded() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut probes: Vec<Client> = (0..64).map(|_| Client::connect(gateway.admin)).collect();
    assert!(probes.iter_mut().all(|probe| probe.get("/healthz", "").status == 200));
    assert!(Client::connect(gateway.admin).is_closed());
    probes.pop();
    until("there is room again", || {
        let mut probe = Client::connect(gateway.admin);
        let _ = probe.stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n");
        probe.try_response(true).is_ok_and(|response| response.status == 200)
    });
}

#[test]
fn the_admin_port_can_be_off() {
    let origin = Origin::ok();
    let text = config("", &[origin.address], "");
    let gateway = Gateway::start(&text.replace("[admin]\nlisten = \"127.0.0.1:0\"", "[admin]\nlisten = \"off\""));
    assert_eq!(client::get(gateway.address, "/").text(), "ok");
    assert!(gateway.log_of("admin port").is_empty());
}

/// What a scrape says.
struct Scrape {
    /// Families by name, with their types.
    families: BTreeMap<String, String>,
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Scrape {
    /// Reads OpenMetrics text; fails where it is not well formed.
    fn parse(text: &str) -> Scrape {
        let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
        assert!(!body.contains("# EOF"), "# EOF stands once");
        let mut scrape = Scrape { families: BTreeMap::new(), samples: Vec::new() };
        let mut family = String::new();
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let words: Vec<&str> = rest.splitn(3, ' ').collect();
                let [what, name, value] = words[..] else { panic!("{line:?}") };
                assert!(["HELP", "TYPE", "UNIT"].contains(&what), "{line:?}");
                if what == "TYPE" {
                    let known = scrape.families.insert(name.into(), value.into());
                    assert_eq!(known, None, "{name} is there twice");
                }
                family = name.to_string();
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, Scrape::labels(labels.strip_suffix('}').unwrap())),
                None => (series, Vec::new()),
            };
            assert!(name.starts_with(&family), "{line:?} stands under {family}");
            let value = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
            scrape.samples.push(Sample { name: name.into(), labels, value });
        }
        scrape
    }

    fn labels(text: &str) -> Vec<(String, String)> {
        let label = |part: &str| {
            let (name, value) = part.split_once("=\"").unwrap_or_else(|| panic!("{text:?}"));
            (name.to_string(), value.to_string())
        };
        text.strip_suffix('"').unwrap().split("\",").map(label).collect()
    }
}

#[test]
fn metrics_are_well_formed() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], LIMITS));
    for path in ["/a", "/a", "/a", "/b"] {
        client::get(gateway.address, path);
    }
    let response = client::get(gateway.admin, "/metrics");
    let kind = response.field("Content-Type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let scrape = Scrape::parse(&response.text());
    let series: BTreeSet<String> =
        scrape.samples.iter().map(|sample| format!("{}{:?}", sample.name, sample.labels)).collect();
    assert_eq!(series.len(), scrape.samples.len(), "a series stands twice");
    for (family, kind) in &scrape.families {
        let is_own = |name: &str| {
            let suffix = name.strip_prefix(family.as_str());
            suffix.is_some_and(|suffix| ["", "_total", "_info", "_bucket", "_count", "_sum"].contains(&suffix))
        };
        let own: Vec<_> = scrape.samples.iter().filter(|sample| is_own(&sample.name)).collect();
        assert!(family.starts_with("rateguard_") && !own.is_empty(), "{family}");
        if kind == "counter" {
            assert!(own.iter().all(|sample| sample.name == format!("{family}_total")), "{family}");
        }
        if kind == "histogram" {
            let ending = |end: &str| -> Vec<f64> {
                own.iter().filter(|sample| sample.name.ends_with(end)).map(|sample| sample.value).collect()
            };
            let (buckets, count) = (ending("_bucket"), ending("_count")[0]);
            assert!(buckets.is_sorted() && buckets.last() == Some(&count), "{family}: {buckets:?} {count}");
        }
    }
}

#[test]
fn metrics_count_what_happened() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], LIMITS));
    for path in ["/a", "/a", "/a", "/b"] {
        client::get(gateway.address, path);
    }
    raw(gateway.address, "nonsense\r\n\r\n");
    for (series, value) in [
        ("rateguard_requests_total{route=\"/\",status=\"2xx\"}", 3.0),
        ("rateguard_requests_total{route=\"/\",status=\"4xx\"}", 1.0),
        ("rateguard_requests_total{route=\"none\",status=\"4xx\"}", 1.0),
        ("rateguard_decisions_total{limit=\"per-user\",outcome=\"allow\"}", 3.0),
        ("rateguard_decisions_total{limit=\"per-user\",outcome=\"deny\"}", 1.0),
        ("rateguard_request_duration_seconds_count", 5.0),
        ("rateguard_upstream_duration_seconds_count", 3.0),
        ("rateguard_memory_store_entries", 2.0),
        ("rateguard_draining", 0.0),
    ] {
        // Counted after the answer is sent, so perhaps a moment after it is read.
        until(&format!("{series} is {value}"), || gateway.metric(series) == value);
    }
}

/// A connection from another address of this machine.
fn connect_from(own: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((own, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

#[test]
fn nothing_that_a_client_sends_becomes_a_label() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], LIMITS));
    let series = || {
        let scrape = Scrape::parse(&client::get(gateway.admin, "/metrics").text());
        let labels = scrape.samples.into_iter().map(|sample| (sample.name, sample.labels));
        labels.collect::<BTreeSet<_>>()
    };
    // So that every status class has been seen before.
    for _ in 0..3 {
        client::get(gateway.address, "/");
    }
    until("all are counted", || gateway.metric("rateguard_requests_total{route=\"/\",status=\"4xx\"}") == 1.0);
    let before = series();
    for number in 0..50 {
        let fields = format!("X-API-Key: secret{number}\r\nX-Request-Id: id{number}\r\n");
        let mut client = Client::from(connect_from([127, 0, 0, 9], gateway.address));
        client.get(&format!("/secret-path-{number}"), &fields);
    }
    assert_eq!(series(), before);
    let text = client::get(gateway.admin, "/metrics").text();
    for sent in ["secret", "127.0.0.9", "key:", "ip:"] {
        assert!(!text.contains(sent), "{sent} stands in the metrics");
    }
    let known = ["route", "status", "limit", "outcome", "kind", "upstream", "server", "le", "version", "io"];
    let names: BTreeSet<String> = before.into_iter().flat_map(|(_, labels)| labels).map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| known.contains(&name.as_str())), "{names:?}");
}

#[test]
fn a_scraper_that_says_nothing_holds_nobody_up() {
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let mut mute = Client::connect(gateway.admin);
    mute.send("GET /metr");
    assert_eq!(client::get(gateway.admin, "/healthz").status, 200);
    assert_eq!(client::get(gateway.address, "/").status, 200);
    // Its patience is bounded: in the end it is closed.
    assert_eq!(mute.stream.read(&mut [0]).unwrap_or(0), 0);
}
