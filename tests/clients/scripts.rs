//! The clients that come with Python and Node, each with a script that checks what it gets.

use super::{Setup, run};

fn script(name: &str) -> String {
    format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn python_s_client_works() {
    let setup = Setup::new();
    let port = setup.gateway.address.port().to_string();
    run("python3", &[&script("client.py"), &port], b"");
    assert_eq!(setup.origin.requests(), 104);
}

#[test]
fn node_s_client_works() {
    let setup = Setup::new();
    let port = setup.gateway.address.port().to_string();
    run("node", &[&script("client.js"), &port], b"");
    assert_eq!(setup.origin.requests(), 104);
}
