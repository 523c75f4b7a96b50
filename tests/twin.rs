//! The arithmetic twice: `limit::bucket` in Rust and `lua/token_bucket.lua` in a real Redis give the same answers to the
//! same questions, bit for bit, and so does the store in memory, which is built on the former.

/// The script against the pure functions.
mod script;

/// The store in memory against the pure functions.
mod memory;

/// The deny cache against the script.
mod denied;

/// Leases: the scripts against the pure functions, and workers that lease against the limit.
mod lease;

use fastrand::Rng;
use rateguard::limit::bucket::{PERIOD_MAX_US, Rate, Shape, UNITS_MAX};

/// A quota and the cost of a request.
#[derive(Debug, Clone, Copy)]
struct Quota {
    rate: Rate,
    burst: u64,
    cost: u64,
    shape: Shape,
}

/// Any limit that can be counted, with those at the edges often among them.
fn quota(random: &mut Rng) -> Quota {
    loop {
        let period_us = match random.u8(..6) {
            0 => 1_000_000,
            1 => PERIOD_MAX_US,
            2 => 86_400_000_000,
            _ => 1_000_000 * wide(random, 366 * 86_400),
        };
        let tokens = wide(random, UNITS_MAX);
        let rate = Rate { tokens, period_us };
        let Ok(Shape { token, .. }) = Shape::new(rate, 1, 1) else { continue };
        let most = UNITS_MAX / token;
        let burst = match random.u8(..4) {
            0 => most,
            1 => 1,
            _ => wide(random, most),
        };
        let cost = match random.u8(..4) {
            0 => burst,
            1 => wide(random, burst),
            _ => 1,
        };
        if let Ok(shape) = Shape::new(rate, burst, cost) {
            return Quota { rate, burst, cost, shape };
        }
    }
}

/// A number up to `most`, each order of magnitude as likely as any other.
fn wide(random: &mut Rng, most: u64) -> u64 {
    let bits = most.max(1).ilog2() + 1;
    let bound = 1u64 << random.u32(1..=bits).min(63);
    random.u64(1..=bound.min(most.max(1)))
}
