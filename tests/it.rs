//! The integration tests: one binary, one module for each concern. Every test starts what it needs on ports that the
//! kernel gives and ends it by process id. `RATEGUARD_TEST_IO=io_uring|epoll` chooses what the gateways run on.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "tests are shell, and a panic is how they fail"
)]

/// Gateways, origins, raw clients and Redis servers to test with.
mod support;

/// Broken configurations, one file for each fault, and the manual.
mod config;

/// The demo, end to end: the main job in one page.
mod smoke;

/// What is refused, and that nothing after it is served.
mod http;

/// What must hold of the HTTP core for any bytes; the fuzzer runs the same.
mod properties;

/// The wire as a table: bytes, answers, and what the backend saw.
mod wire;

/// What a backend gets of a request, and a client of its response.
mod proxying;

/// Routes: what they take, and what they change on the way.
mod routes;

/// Programs that people really use, each through the gateway.
mod clients;

/// Bodies: passed on byte for byte, in bounded memory, and never made to look whole when they are not.
mod bodies;

/// Large uploads: kept apart, in both directions at once, and nothing of what comes behind them.
mod uploads;

/// Connections that switch protocols.
mod tunnels;

/// Clients that go away while their answer is awaited.
mod leaving;

/// Connections to backends, over TLS and unix sockets too.
mod dialing;

/// TLS, unix sockets and PROXY headers through a gateway.
mod ways_to_backends;

/// Backends that are dead, stale, mute or broken, and what is tried again.
mod upstreams;

/// One backend of three goes wrong under load, and comes back.
mod backend_faults;

/// Backends that are asked how they are.
mod probes;

/// Names of backends and of the store, and what nameservers do to them.
mod names;

/// What limits do, over both stores.
mod limits;

/// The script in Redis and the arithmetic in Rust, bit for bit.
mod twin;

/// Many clients at the same moment, over connections and processes.
mod race;

/// Clocks that disagree, and time that goes backwards.
mod skew;

/// A store that fails in every way we know.
mod store_faults;

/// Redis behind sentinels, in a cluster, by either version of its protocol.
mod topologies;

/// Starting, stopping, and what ends connections in between.
mod lifecycle;

/// The admin port: health, readiness and metrics.
mod admin;

/// Log lines, and readers of them that do not read.
mod logs;

/// The commands as a user meets them.
mod cli;

/// The source as the house rules want it.
mod tidy;
