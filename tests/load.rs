//! The tests that need the machine for themselves: crowds, volumes, leaks. A binary of its own, whose tests run one at a
//! time, so that no other test is in their figures. Run with `--nocapture` it prints them.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "tests are shell, and a panic is how they fail"
)]

#[allow(dead_code, reason = "the other test binary uses the rest")]
mod support;

/// Memory, descriptors and sockets of a gateway, counted by the kernel.
#[path = "load/meter.rs"]
mod meter;

/// Requests that are all different, and the origin that gives each its own back.
#[path = "load/echo.rs"]
mod echo;

/// Every answer is its own, whoever else asks at the same moment.
#[path = "load/integrity.rs"]
mod integrity;

/// A gibibyte each way, in flat memory.
#[path = "load/volume.rs"]
mod volume;

/// How long the machine itself keeps a thread waiting.
#[path = "store_faults/pulse.rs"]
mod pulse;

/// Ten thousand connections, and what each of them costs.
#[path = "load/crowd.rs"]
mod crowd;

/// Nothing is left of connections that end where they should not.
#[path = "load/leaks.rs"]
mod leaks;

/// WebSockets of a real implementation on both sides.
#[path = "load/websockets.rs"]
mod websockets;

/// Who does not read holds its sender back.
#[path = "load/backpressure.rs"]
mod backpressure;

/// More than the store's queue takes.
#[path = "load/overload.rs"]
mod overload;
