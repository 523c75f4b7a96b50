//! The Redis half: a decision as one call of `lua/token_bucket.lua`, and its answer read back.
//!
//! The script is called by its digest; where the server does not know it (restart, failover, SCRIPT FLUSH), the same
//! question is asked once more with the script itself, and where another server of a cluster has the key, that one is
//! asked. No other command is ever asked twice: NOSCRIPT, MOVED and ASK say that nothing was executed. Pure but for the
//! call.

use super::bucket::Shape;
use super::policy::{Mode, Policy, Sheet};
use super::{APPLIED_MAX, StoreFault, level_of};
use crate::redis::client::{Client, To};
use crate::redis::error::ServerError;
use crate::redis::pipeline::{Answer, Purpose};
use crate::redis::resp::{self, Numbers, Reply};
use crate::time::Micros;

/// The script's text, part of the binary.
pub const TEXT: &str = include_str!("../../lua/token_bucket.lua");

/// The text of the script that gives leases back.
pub const GIVE_BACK: &str = include_str!("../../lua/give_back.lua");

/// Answers that say "elsewhere" or "with the script" before a question is given up: a slot that moves while its new server
/// has lost the script takes three.
const HOPS_MAX: usize = 5;

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
    let Some(key) = sheet.keys().next() else { return Ok(()) };
    let to = client.server_of(key)?;
    let deadline = client.deadline_from(now);
    let asked = client
        .ask(&to, now, deadline, |purpose, digest, out| command(b"EVALSHA", digest, purpose, policy, sheet, out))?;
    let numbers = settle(client, policy, sheet, to, asked, deadline).await?;
    for (level, number) in sheet.levels.iter_mut().zip(numbers.as_slice()) {
        *level = Some(level_of(*number));
    }
    Ok(())
}

/// Waits for the answer, and asks again where it says that nothing was executed: with the script itself, or another server.
async fn settle(
    client: &Client,
    policy: &Policy,
    sheet: &Sheet,
    mut to: To,
    asked: Answer,
    deadline: Micros,
) -> Result<Numbers, StoreFault> {
    let mut reply = asked.await?;
    let mut is_known = true;
    for _ in 0..HOPS_MAX {
        match reply {
            Reply::Numbers(numbers) if numbers.len() == sheet.applied().len() => return Ok(numbers),
            Reply::Error(ServerError::NoScript) if is_known => is_known = false,
            Reply::Redirect(redirect) if client.is_cluster() => to = client.follow(&redirect, &to, deadline).await?,
            Reply::Redirect(_) => return Err(StoreFault::Server(ServerError::Moved)),
            Reply::Error(error) => return Err(StoreFault::Server(error)),
            Reply::Numbers(_) | Reply::Other | Reply::Unasked => return Err(StoreFault::Protocol),
        }
        let write = |purpose, digest: &[u8], out: &mut Vec<u8>| match is_known {
            true => command(b"EVALSHA", digest, purpose, policy, sheet, out),
            false => command(b"EVAL", TEXT.as_bytes(), purpose, policy, sheet, out),
        };
        reply = client.ask_next(&to, deadline, write).await?;
    }
    Err(StoreFault::Server(ServerError::Moved))
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
