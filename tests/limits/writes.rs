use crate::support::client::Client;
use crate::support::gateway::Gateway;
use crate::support::store::{Store, limit};
use crate::support::{signal, suspend};
use rustix::process::Signal;

/// Clients that ask at the same time.
const CLIENTS: usize = 32;

fn written(gateway: &Gateway) -> (f64, f64) {
    (gateway.metric("rateguard_store_writes_total"), gateway.metric("rateguard_store_commands_total"))
}

#[test]
fn requests_one_after_the_other_are_a_write_each() {
    let store = Store::redis();
    let gateway = store.gateway(&limit("x", "", 100));
    let mut client = Client::connect(gateway.address);
    for asked in 0..5 {
        assert_eq!(written(&gateway), (f64::from(asked), f64::from(asked)));
        assert_eq!(client.get("/", "").status, 200);
    }
}

#[test]
fn requests_of_one_moment_share_writes() {
    let store = Store::redis();
    let gateway = store.gateway(&limit("x", "", 100));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(gateway.address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/", "").status, 200);
    }
    let before = written(&gateway);
    // What is sent to a stopped gateway is there all at once when it goes on.
    suspend(gateway.process());
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    signal(gateway.process(), Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response().status, 200);
    }
    let after = written(&gateway);
    assert_eq!(after.1 - before.1, CLIENTS as f64);
    assert!(after.0 - before.0 <= (CLIENTS / 2) as f64, "{} writes", after.0 - before.0);
}

#[test]
fn what_is_not_asked_is_not_counted() {
    let store = Store::redis();
    let gateway = store.gateway(&limit("x", "", 1));
    // One of both workers serves this connection and knows the denial.
    let mut client = Client::connect(gateway.address);
    assert_eq!((0..9).map(|_| client.get("/", "").status).filter(|&status| status == 429).count(), 8);
    assert_eq!(written(&gateway), (2.0, 2.0));
}
