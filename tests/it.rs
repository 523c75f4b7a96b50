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
