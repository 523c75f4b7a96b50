//! The admin port: what operators and orchestrators ask of a running gateway.
//!
//! `/healthz` says that the process lives, `/readyz` that it takes requests, `/metrics` everything countable. It runs on
//! the control thread and can be slow or fail without any worker noticing.

pub mod server;
