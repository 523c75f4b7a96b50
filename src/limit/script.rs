//! The Redis half: a decision as one call of `lua/token_bucket.lua`, and its answer read back.
//!
//! The script is called by its digest; where the server does not know it (restart, failover, SCRIPT FLUSH), the same
//! question is asked once more with the script itself. That is the only command that is ever asked twice: NOSCRIPT says
//! that nothing was executed. Pure but for the call.

use super::bucket::Shape;
use super::policy::{Mode, Policy, Sheet};
use super::{APPLIED_MAX, StoreFault, level_of};
use crate::redis::client::Client;
use crate::redis::error::ServerError;
use crate::redis::pipeline::Purpose;
use crate::redis::resp::{self, Reply};
use crate::time::Micros;

/// The script's text, part of the binary.
pub const TEXT: &str = include_str!("../../lua/token_bucket.lua");

/// Arguments of each key.
const ARGUMENTS: usize = 5;

/// The encoded arguments of one bucket: capacity, refill, token, cost, enforce. A cost of 0 charges nothing, and writes the
/// bucket nonetheless.
pub(super) fn arguments(shape: &Shape, cost: u64, mode: Mode) -> Vec<u8> {
    let enforce = u64::from(mode == Mode::Enforce);
    let mut out = Vec::new();
    for number in [shape.capacity, shape.refill, shape.token, cost, enforce] {
        resp::push_bulk(&mut out, number.to_string().as_bytes());
    }
    out
}

/// Asks Redis to charge the sheet.
pub(super) async fn charge(client: &Client, policy: &Policy, sheet: &mut Sheet, now: Micros) -> Result<(), StoreFault> {
    let deadline = client.deadline_from(now);
    let by_digest = client
        .call(now, deadline, |purpose, digest, out| command(b"EVALSHA", digest, purpose, policy, sheet, out))
        .await?;
    let reply = match by_digest {
        Reply::Error(ServerError::NoScript) => {
            let text = TEXT.as_bytes();
            client.call_next(deadline, |purpose, _, out| command(b"EVAL", text, purpose, policy, sheet, out)).await?
        }
        reply => reply,
    };
    match reply {
        Reply::Numbers(numbers) if numbers.len() == sheet.applied().len() => {
            for (level, number) in sheet.levels.iter_mut().zip(numbers.as_slice()) {
                *level = Some(level_of(*number));
            }
            Ok(())
        }
        Reply::Error(error) => Err(StoreFault::Server(error)),
        Reply::Numbers(_) | Reply::Other => Err(StoreFault::Protocol),
    }
}

/// `EVALSHA <digest> <n> <keys> <arguments>`, spliced from prepared parts.
fn command(verb: &[u8], script: &[u8], purpose: Purpose, policy: &Policy, sheet: &Sheet, out: &mut Vec<u8>) {
    let count = sheet.applied().len().min(APPLIED_MAX);
    resp::push_array(out, 3 + count + ARGUMENTS * count);
    resp::push_bulk(out, verb);
    resp::push_bulk(out, script);
    resp::push_bulk(out, itoa::Buffer::new().format(count).as_bytes());
    for key in sheet.keys() {
        resp::push_bulk(out, key);
    }
    for applied in sheet.applied() {
        let tier = policy.tier(applied);
        out.extend_from_slice(match purpose {
            Purpose::Decision => &tier.arguments,
            Purpose::Probe => &tier.probe_arguments,
        });
    }
}
