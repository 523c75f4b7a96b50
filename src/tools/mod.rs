//! The commands that look at a gateway from outside, as a client does: a burst, a spread, a health check.
//!
//! They share one blocking client and one idea of a terminal; the gateway itself uses none of this. Shell: the leaves
//! that open sockets or read the environment say so.

pub mod burst;
pub mod client;
pub mod healthcheck;
pub mod spread;
pub mod summary;
pub mod terminal;
