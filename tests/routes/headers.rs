use super::{gateway, route};
use crate::support::PATIENCE;
use crate::support::client::{Client, raw};
use crate::support::gateway::{Gateway, config};
use crate::support::origin::{Origin, read_head, read_request};
use crate::support::store::limit_with;
use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};

const NONE: [&str; 0] = [];

#[test]
fn request_fields_are_set_and_removed_on_their_route_only() {
    let (app, other) = (Origin::ok(), Origin::ok());
    let rest = route(
        "path = \"/x\"\n[routes.request]\n\
         set = { \"X-Env\" = \"prod\", Host = \"inner.test:81\", \"X-Forwarded-Proto\" = \"https\" }\n\
         remove = [\"Cookie\", \"X-Api-Key\", \"X-Forwarded-Host\", \"User_Agent\"]",
    );
    let gateway = gateway(&app, &other, &rest);
    let mut client = Client::connect(gateway.address);
    let fields = "X-Env: a\r\nx-env: b\r\nX_Env: c\r\nCookie: a=b\r\nCOOKIE: c=d\r\nX-API-Key: k\r\nX_API_Key: k\r\n\
        User-Agent: me\r\nConnection: X-Env, x-kept-not\r\nX-Kept-Not: 1\r\nX-Kept: 1\r\n";
    for path in ["/x/y", "/y"] {
        assert_eq!(client.get(path, fields).status, 200);
    }
    let seen = &other.requests()[0];
    assert_eq!((seen.fields("X-Env"), seen.fields("Host")), (vec!["prod"], vec!["inner.test:81"]));
    assert_eq!((seen.fields("X-Forwarded-Proto"), seen.fields("X-Kept")), (vec!["https"], vec!["1"]));
    for gone in ["X_Env", "Cookie", "X-API-Key", "X_API_Key", "User-Agent", "X-Forwarded-Host", "X-Kept-Not"] {
        assert_eq!(seen.fields(gone), NONE, "{gone}");
    }
    for ours in ["X-Forwarded-For", "Via", "X-Request-Id"] {
        assert_eq!(seen.fields(ours).len(), 1, "{ours}");
    }
    let seen = &app.requests()[0];
    assert_eq!((seen.fields("X-Env"), seen.fields("X_Env")), (vec![], vec!["c"]), "named by Connection; another field");
    assert_eq!((seen.fields("Host"), seen.fields("Cookie")), (vec!["test"], vec!["a=b", "c=d"]));
    assert_eq!((seen.fields("X-Forwarded-Proto"), seen.fields("X-Forwarded-Host")), (vec!["http"], vec!["test"]));
}

/// Some servers take trailers for header fields.
#[test]
fn a_changed_field_does_not_come_back_as_a_trailer() {
    let (sender, received) = mpsc::channel();
    let sender = Mutex::new(sender);
    let origin = Origin::new(move |mut stream, _| {
        let mut text = read_head(&mut stream).unwrap();
        while !text[text.len() - 4..].eq("\r\n\r\n") || !text.contains("\r\n0\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        sender.lock().unwrap().send(text).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let rest = "request = { set = { \"X-Env\" = \"prod\" }, remove = \"X-Role\" }\n";
    let gateway = Gateway::start(&config("", &[origin.address], rest));
    let request = "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Role, X-Sum\r\n\r\n\
        1\r\na\r\n0\r\nX-Role: admin\r\nx_env: evil\r\nX-Sum: 1\r\n\r\n";
    assert_eq!(raw(gateway.address, request).status, 200);
    let text = received.recv_timeout(PATIENCE).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("\r\nX-Env: prod") && !head.contains("X-Role: "), "{text}");
    assert_eq!(body, "1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n");
}

#[test]
fn a_trusted_proxy_s_fields_can_be_set_and_removed() {
    let origin = Origin::ok();
    let rest = "[routes.request]\nset.X-Forwarded-Proto = \"https\"\nremove = [\"X-Forwarded-Host\", \"X-Real-IP\"]\n";
    let gateway = Gateway::start(&config("trusted_proxies = \"127.0.0.1\"", &[origin.address], rest));
    let fields = "X-Forwarded-Proto: http\r\nX-Forwarded-Host: a\r\nX-Real-IP: 1.2.3.4\r\nX-Forwarded-Port: 1\r\n\
        X-Forwarded-For: 1.2.3.4\r\n";
    assert_eq!(Client::connect(gateway.address).get("/", fields).status, 200);
    let seen = &origin.requests()[0];
    assert_eq!((seen.fields("X-Forwarded-Proto"), seen.fields("X-Forwarded-Host")), (vec!["https"], vec![]));
    assert_eq!((seen.fields("X-Real-IP"), seen.fields("X-Forwarded-Port")), (vec![], vec!["1"]));
    assert_eq!(seen.fields("X-Forwarded-For"), ["1.2.3.4, 127.0.0.1"]);
}

#[test]
fn response_fields_are_set_and_removed_but_not_those_of_interim_ones_and_our_own() {
    let origin = Origin::new(|mut stream, _| {
        while let Some(request) = read_request(&mut stream) {
            let answer: &[u8] = match request.line().contains("broken") {
                true => b"nonsense\r\n\r\n",
                false => {
                    b"HTTP/1.1 103 Early Hints\r\nServer: s\r\nLink: x\r\n\r\n\
                      HTTP/1.1 200 OK\r\nServer: s\r\nserver: t\r\nX-Powered-By: p\r\nX_Powered_By: q\r\n\
                      Cache-Control: no-store\r\nCache-Control: private\r\nRetry-After: 9\r\n\
                      Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nServer: s\r\nX-Sum: 1\r\n\r\n"
                }
            };
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    });
    let rest = "response = { set = { \"Cache-Control\" = \"max-age=60\", \"X-Frame-Options\" = \"DENY\" }, \
        remove = [\"Server\", \"X-Powered-By\", \"Retry-After\"] }\n[store]\nurl = \"memory:\"\n";
    let rest = format!("{rest}{}", limit_with("x", "", 2, ""));
    let gateway = Gateway::start(&config("", &[origin.address], &rest));
    let mut client = Client::connect(gateway.address);
    let hints = client.get("/", "");
    assert_eq!((hints.status, hints.field("Server"), hints.field("X-Frame-Options")), (103, Some("s"), None));
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "a"));
    assert_eq!(response.fields("Cache-Control"), ["max-age=60"]);
    assert_eq!((response.fields("X-Frame-Options"), response.fields("RateLimit").len()), (vec!["DENY"], 1));
    for gone in ["Server", "X-Powered-By", "X_Powered_By", "Retry-After"] {
        assert_eq!(response.fields(gone), NONE, "{gone}");
    }
    assert_eq!(response.trailers, ["X-Sum: 1"]);
    for status in [502, 429] {
        let own = raw(gateway.address, "GET /broken HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!((own.status, own.field("X-Frame-Options")), (status, None));
        assert_eq!(own.field("Retry-After").is_some(), status == 429, "our own stays");
    }
}

#[test]
fn a_switch_of_protocols_is_answered_with_the_fields_of_its_route() {
    let origin = Origin::new(|mut stream, _| {
        let _ = read_request(&mut stream);
        let _ = stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\nServer: s\r\n\r\n");
    });
    let rest = "response = { set = { \"X-A\" = \"1\" }, remove = [\"Server\"] }\n";
    let gateway = Gateway::start(&config("", &[origin.address], rest));
    let response = Client::connect(gateway.address).get("/", "Connection: Upgrade\r\nUpgrade: x\r\n");
    assert_eq!((response.status, response.field("X-A"), response.field("Server")), (101, Some("1"), None));
}
