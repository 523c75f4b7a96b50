use super::{gateway, route};
use crate::support::client::{Client, raw};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_request};
use crate::upstreams::black_hole;
use std::io::Read;

#[test]
fn a_route_waits_as_long_as_it_says_for_a_response() {
    let (app, silent) = (Origin::ok(), Origin::new(|mut stream, _| while read_request(&mut stream).is_some() {}));
    let gateway = gateway(&app, &silent, &route("path = \"/slow\"\ntimeouts = { response = \"200ms\" }"));
    let mut client = Client::connect(gateway.address);
    let response = client.get("/slow/report", "");
    assert_eq!((response.status, response.json()["blame"].as_str()), (504, Some("upstream")));
    assert_eq!(client.get("/", "").status, 200);
}

#[test]
fn a_route_waits_longer_than_its_upstream_does_for_others() {
    let slow = Origin::new(|mut stream, _| {
        while read_request(&mut stream).is_some() {
            std::thread::sleep(std::time::Duration::from_millis(500));
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let text = config("", &[slow.address], &route("path = \"/slow\"\ntimeouts.response = \"20s\""));
    let text =
        text.replace("\"other\"", "\"app\"").replacen("[[routes]]", "timeouts.response = \"100ms\"\n[[routes]]", 1);
    let gateway = Gateway::start(&text);
    assert_eq!(Client::connect(gateway.address).get("/slow", "").status, 200);
    assert_eq!(Client::connect(gateway.address).get("/fast", "").status, 504);
}

#[test]
fn a_route_waits_as_long_as_it_says_for_a_connection() {
    let (_socket, _only, hole) = black_hole();
    let rest = route("path = \"/x\"\ntimeouts = { connect = \"200ms\" }").replace("\"other\"", "\"app\"");
    let gateway = Gateway::start(&config("", &[hole], &rest).replacen(
        "[[routes]]",
        "retries = 0\ntimeouts.connect = \"20s\"\n[[routes]]",
        1,
    ));
    let response = Client::connect(gateway.address).get("/x", "");
    assert_eq!(response.status, 504);
    assert!(response.json()["detail"].as_str().unwrap().contains("connection in time"), "{response:?}");
}

#[test]
fn a_route_takes_bodies_as_large_as_it_says_in_both_framings() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let rest = route("path = \"/small\"\nmax_body = 8") + &route("path = \"/any\"\nmax_body = \"unlimited\"");
    let gateway = {
        let text = format!("{rest}[upstreams.other]\nservers = [\"{}\"]\n", other.address);
        Gateway::start(&config("max_body = 16", &[app.address], &text))
    };
    let post = |path: &str, length: usize, chunked: bool| {
        let body = "x".repeat(length);
        let framed = match chunked {
            true => format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"),
            false => format!("Content-Length: {length}\r\n\r\n{body}"),
        };
        raw(gateway.address, format!("POST {path} HTTP/1.1\r\nHost: h\r\n{framed}")).status
    };
    for chunked in [false, true] {
        assert_eq!([post("/", 16, chunked), post("/", 17, chunked)], [200, 413], "{chunked}");
        assert_eq!([post("/small/x", 8, chunked), post("//small", 9, chunked)], [200, 413], "{chunked}");
        assert_eq!(post("/any", 4000, chunked), 200, "{chunked}");
    }
    let series = "rateguard_requests_total{route=\"/small\",status=\"4xx\"}";
    assert_eq!(gateway.metric(series), 2.0, "a body that is too large for a route is counted there");
}

/// Where a body would go is known before how large it may be.
#[test]
fn a_large_body_for_no_route_is_told_that_there_is_none() {
    let origin = Origin::ok();
    let text = config("max_body = 8", &[origin.address], "").replace("path = \"/\"", "path = \"/a\"");
    let gateway = Gateway::start(&text);
    let post = |path: &str| {
        raw(gateway.address, format!("POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999\r\n\r\n"))
    };
    assert_eq!([post("/a").status, post("/b").status], [413, 404]);
}

#[test]
fn a_body_that_is_too_large_ends_the_connection_and_charges_nothing() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let limit = crate::support::store::limit("x", "", 5);
    let gateway = gateway(&app, &other, &(route("path = \"/small\"\nmax_body = 8") + &limit));
    let mut client = Client::connect(gateway.address);
    client.send("POST /small HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.field("Connection")), (413, Some("close")));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    let left = crate::support::fields::remaining(&Client::connect(gateway.address).get("/", ""), "x");
    assert_eq!((left, other.connections()), (4, 0));
}
