//! Routes: what they take, and what they change on the way. Real gateways, and origins that remember what they got.

/// How long a route waits, and how much it takes.
mod bounds;

/// What a backend gets of a request's fields, and a client of a response's, where a route changes them.
mod headers;

/// Where clients are sent instead.
mod redirects;

/// What a backend gets of a path that a route changes.
mod paths;

/// Which route a request takes, and which limits.
mod matching;

use crate::support::gateway::{Gateway, config};
use crate::support::origin::Origin;

/// A gateway with the upstreams `app`, where everything goes that no route of `rest` takes, and `other`.
fn gateway(app: &Origin, other: &Origin, rest: &str) -> Gateway {
    let other = other.address;
    let text = format!("{rest}\n[upstreams.other]\nservers = [\"{other}\"]\n[store]\nurl = \"memory:\"\n");
    Gateway::start(&config("", &[app.address], &text))
}

/// A route to `other`, with these lines.
fn route(lines: &str) -> String {
    format!("[[routes]]\nupstream = \"other\"\n{lines}\n")
}
