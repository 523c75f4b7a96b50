use super::{assert_requests_pass_unlimited, gateway, until_limits_hold};
use crate::support::authority::Authority;
use crate::support::client::Client;
use crate::support::fields::remaining;
use crate::support::gateway::Gateway;
use crate::support::redis::{Redis, hold_port, port_of};
use crate::support::store::limit;
use crate::support::until;
use std::process::Command;

/// A server that speaks TLS on this port too, under a certificate for `host`.
fn redis(authority: &Authority, host: &str, port: u16, asks_for_certificates: bool) -> Redis {
    authority.vouch("server", host);
    let asks = if asks_for_certificates { "yes" } else { "no" };
    let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|name| authority.path(name));
    let port = port.to_string();
    let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    Redis::start_with(&[&["--tls-port", &port, "--tls-auth-clients", asks], &files[..]].concat())
}

/// A gateway that speaks TLS with Redis on this port.
fn secured(port: u16, tls: &str) -> Gateway {
    let store = format!("deadline = \"5s\"\ntls = {{ {tls} }}");
    gateway(&format!("rediss://127.0.0.1:{port}"), &store, &limit("x", "\"user\"", 5))
}

fn until_told(gateway: &Gateway, words: &str) {
    until("the reason is logged", || {
        let lines = gateway.log_of("store lost; trying to reconnect");
        lines.iter().any(|line| line["reason"].as_str().is_some_and(|reason| reason.contains(words)))
    });
}

#[test]
fn limits_hold_over_tls_with_an_authority_of_one_s_own() {
    let (authority, held) = (Authority::new(), hold_port());
    let port = port_of(&held);
    let _redis = redis(&authority, "127.0.0.1", port, false);
    let gateway = secured(port, &format!("ca = \"{}\"", authority.path("ca.pem")));
    gateway.until_store_connected();
    let mut client = Client::connect(gateway.address);
    assert_eq!([(); 5].map(|()| remaining(&client.get("/", ""), "x")), [4, 3, 2, 1, 0]);
    until_limits_hold(&gateway);
}

#[test]
fn a_server_that_asks_for_it_is_shown_a_certificate() {
    let (authority, held) = (Authority::new(), hold_port());
    let port = port_of(&held);
    let _redis = redis(&authority, "127.0.0.1", port, true);
    authority.vouch("client", "gateway");
    let [ca, certificate, key] = ["ca.pem", "client.pem", "client.key"].map(|name| authority.path(name));
    let anonymous = secured(port, &format!("ca = \"{ca}\""));
    assert_requests_pass_unlimited(&anonymous);
    let known = secured(port, &format!("ca = \"{ca}\", certificate = \"{certificate}\", key = \"{key}\""));
    known.until_store_connected();
    assert_eq!(remaining(&Client::connect(known.address).get("/", ""), "x"), 4);
}

#[test]
fn a_server_that_nobody_trusted_vouches_for_decides_nothing() {
    let (authority, held) = (Authority::new(), hold_port());
    let port = port_of(&held);
    let server = redis(&authority, "127.0.0.1", port, false);
    let stranger = Authority::new();
    let gateway = secured(port, &format!("ca = \"{}\"", stranger.path("ca.pem")));
    assert_requests_pass_unlimited(&gateway);
    until_told(&gateway, "certificate");
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut server.connection()).unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn the_server_s_name_is_checked() {
    let (authority, held) = (Authority::new(), hold_port());
    let port = port_of(&held);
    let _redis = redis(&authority, "redis.internal", port, false);
    let ca = format!("ca = \"{}\"", authority.path("ca.pem"));
    let gateway = secured(port, &ca);
    assert_requests_pass_unlimited(&gateway);
    until_told(&gateway, "name");
    let named = secured(port, &format!("{ca}, name = \"redis.internal\""));
    named.until_store_connected();
    assert_eq!(remaining(&Client::connect(named.address).get("/", ""), "x"), 4);
}

#[test]
fn a_hang_is_survived_over_tls_too() {
    let (authority, held) = (Authority::new(), hold_port());
    let port = port_of(&held);
    let server = redis(&authority, "127.0.0.1", port, false);
    let store = format!("tls = {{ ca = \"{}\" }}", authority.path("ca.pem"));
    let gateway = gateway(&format!("rediss://127.0.0.1:{port}"), &store, &limit("x", "\"user\"", 2));
    gateway.until_store_connected();
    until_limits_hold(&gateway);
    server.suspend();
    assert_requests_pass_unlimited(&gateway);
    server.resume();
    until_limits_hold(&gateway);
}

#[test]
fn files_that_cannot_be_used_are_told_before_anything_starts() {
    let authority = Authority::new();
    authority.write("empty.pem", "");
    let (missing, empty) = (authority.path("missing.pem"), authority.path("empty.pem"));
    for (tls, told) in [
        (format!("ca = \"{missing}\""), "store.tls.ca: "),
        (format!("ca = \"{empty}\""), "holds no certificate"),
        (format!("certificate = \"{empty}\", key = \"{empty}\""), "store.tls.certificate: "),
    ] {
        let config = format!(
            "upstreams.a.servers = [\"127.0.0.1:1\"]\n[store]\nurl = \"rediss://127.0.0.1\"\ntls = {{ {tls} }}\n"
        );
        authority.write("config.toml", &config);
        for command in ["check", "run"] {
            let ended = Command::new(env!("CARGO_BIN_EXE_rateguard"))
                .args([command, "--config", &authority.path("config.toml")])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!((ended.status.code(), said.contains(told)), (Some(2), true), "{command} {tls}: {said}");
        }
    }
}
