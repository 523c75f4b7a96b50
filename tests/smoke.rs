use crate::support::client::Client;
use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;

#[test]
fn a_request_is_limited_and_forwarded() {
    let origin = Origin::ok();
    let limits = "[[limits]]\nname = \"per-user\"\nby = [\"user\", \"endpoint\"]\nrate = \"1/h\"\nburst = 2\n";
    let gateway = Gateway::start(&config("", &[origin.address], limits));
    let mut client = Client::connect(gateway.address);
    let first = client.get("/api/x", "");
    assert_eq!((first.status, first.text().as_str()), (200, "ok"));
    assert_eq!(first.field("RateLimit"), Some("\"per-user\";r=1;t=3600"));
    assert_eq!(client.get("/api/x", "").status, 200);
    let denied = client.get("/api/x", "");
    assert_eq!(denied.status, 429, "{denied:?}");
    assert_eq!(denied.json()["limit"], "per-user");
    assert_eq!(client.get("/api/y", "").status, 200);
    assert_eq!(origin.requests().len(), 3);
}
