//! The Redis half's wire: a question to `lua/token_bucket.lua` as one command, and its answer read back. Pure.

use super::bucket::Shape;
use super::lease::{Ask, BACK, Granted, LEASED_LIMITS_MAX, Return};
use super::out::Grant;
use super::policy::{Mode, Policy, Sheet};
use super::{APPLIED_MAX, level_of};
use crate::redis::pipeline::Purpose;
use crate::redis::resp;

/// The script's text, part of the binary.
pub const TEXT: &str = include_str!("../../lua/token_bucket.lua");

/// The text of the script that gives leases back.
pub const GIVE_BACK: &str = include_str!("../../lua/give_back.lua");

/// Arguments of each key.
const ARGUMENTS: usize = 5;

/// Arguments of each key where leases are asked for.
const LEASE_ARGUMENTS: usize = 3;

/// What a reply tells beside the levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The leases granted, where the request is allowed and asked for some.
    pub granted: Option<Granted>,
    /// The request is denied, and units on lease may come back.
    pub may_gain: bool,
}

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

/// Some of a sheet's buckets, by their places on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part(u16);

impl Part {
    /// The first `count` places, at most [`APPLIED_MAX`].
    pub fn all(count: usize) -> Part {
        (0..count.min(APPLIED_MAX)).fold(Part::default(), Part::with)
    }

    /// The same and one place more.
    pub fn with(self, place: usize) -> Part {
        Part(self.0 | 1 << place)
    }

    pub fn has(self, place: usize) -> bool {
        self.0 & 1 << place != 0
    }

    /// The first place; 0 where there is none.
    pub fn first(self) -> usize {
        if self.0 == 0 { 0 } else { self.0.trailing_zeros() as usize }
    }

    /// How many places.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }
}

/// What the script does where all buckets agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// It charges them.
    Charge,
    /// Nothing: it is only asked.
    Check,
}

/// One call of the script.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'q> {
    /// The buckets.
    pub part: Part,
    /// What becomes of them.
    pub act: Act,
    /// The leases to ask for, of all the sheet.
    pub ask: Option<&'q Ask>,
}

/// Writes the levels of a reply on the sheet; `None` where it is no answer to the question.
pub(super) fn read(numbers: &[i64], question: Question<'_>, sheet: &mut Sheet) -> Option<Told> {
    let count = question.part.count();
    let (levels, rest) = numbers.split_at_checked(count)?;
    let told = match rest {
        [] => Told::default(),
        [-1] => Told { may_gain: true, ..Told::default() },
        [at, grants @ ..] if question.ask.is_some() && grants.len() == 2 * count => {
            let (units, beside) = grants.split_at(count);
            let mut granted = Granted { at: u64::try_from(*at).ok()?, ..Granted::default() };
            for (grant, (units, beside)) in granted.grants.iter_mut().zip(units.iter().zip(beside)) {
                *grant = Grant { units: u64::try_from(*units).ok()?, beside: u64::try_from(*beside).ok()? };
            }
            Told { granted: Some(granted), ..Told::default() }
        }
        _ => return None,
    };
    let places = sheet.levels.iter_mut().enumerate().filter(|(place, _)| question.part.has(*place));
    for ((_, level), number) in places.zip(levels) {
        *level = Some(level_of(*number));
    }
    Some(told)
}

/// `EVALSHA <digest> <n> <keys> <arguments>`, spliced from prepared parts.
pub(super) fn command(
    verb: &[u8],
    script: &[u8],
    purpose: Purpose,
    policy: &Policy,
    sheet: &Sheet,
    question: Question<'_>,
    out: &mut Vec<u8>,
) {
    let Question { part, act, ask } = question;
    let count = part.count();
    let ask = ask.filter(|_| purpose == Purpose::Decision && count <= LEASED_LIMITS_MAX);
    let is_check = purpose == Purpose::Decision && act == Act::Check;
    let trailing = ask.map_or(usize::from(is_check), |_| 1 + LEASE_ARGUMENTS * count);
    resp::push_array(out, 3 + count + ARGUMENTS * count + trailing);
    resp::push_bulk(out, verb);
    resp::push_bulk(out, script);
    resp::push_bulk(out, itoa::Buffer::new().format(count).as_bytes());
    for (_, key) in sheet.keys().enumerate().filter(|(place, _)| part.has(*place)) {
        resp::push_bulk(out, key);
    }
    for (_, applied) in sheet.applied().iter().enumerate().filter(|(place, _)| part.has(*place)) {
        let tier = policy.tier(applied);
        out.extend_from_slice(match purpose {
            Purpose::Decision => &tier.arguments,
            Purpose::Probe => &tier.probe_arguments,
        });
    }
    if is_check {
        push_number(out, 0);
    } else if let Some(ask) = ask {
        push_number(out, back_us());
        for want in &ask.wants[..count] {
            for number in [want.units, want.granted, want.settled] {
                push_number(out, number);
            }
        }
    }
}

/// `EVAL` of the script that gives a lease back.
pub(super) fn give_back(back: &Return, out: &mut Vec<u8>) {
    let (shape, rest) = (&back.shape, &back.rest);
    let arguments =
        [shape.capacity, shape.refill, shape.token, rest.unspent, rest.leased, rest.level, rest.granted, back_us()];
    resp::push_array(out, 4 + arguments.len());
    for part in [b"EVAL", GIVE_BACK.as_bytes(), b"1", &back.key] {
        resp::push_bulk(out, part);
    }
    for number in arguments {
        push_number(out, number);
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    resp::push_bulk(out, itoa::Buffer::new().format(number).as_bytes());
}

fn back_us() -> u64 {
    u64::try_from(BACK.as_micros()).unwrap_or(u64::MAX)
}
