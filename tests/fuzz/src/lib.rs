//! What must hold of the HTTP core for any bytes: one property for each fuzz target.
//!
//! The fuzzer and the ordinary tests run the same functions (`tests/properties.rs`). Each takes bytes that anybody may
//! have made up and panics where the property does not hold. What the core decides is compared with a second reading that
//! is slow, simple and shares no code with it: [`grammar`] for heads, [`body`] and [`path`] have their own. Choices such
//! as where to cut are made by a generator that the input seeds, so an input shows the same thing each time.

pub mod body;
pub mod forwarding;
pub mod grammar;
pub mod heads;
pub mod inputs;
pub mod path;

pub use body::chunked_body;
pub use forwarding::forwarded_head;
pub use heads::{request_head, response_head};
pub use path::path;

/// Choices that depend on the input alone.
pub fn dice(bytes: &[u8]) -> fastrand::Rng {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    fastrand::Rng::with_seed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}

/// Bytes as they stand in a message about them.
pub fn shown(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
