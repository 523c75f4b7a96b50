//! The deny cache: a worker answers what it knows to be denied without asking the store.
//!
//! A denial tells what a bucket held when the script ran, and that was not before the question was asked. Until it is
//! asked again others can only take, so what it held then, refilled from the time of the question on, is an upper bound
//! on what it holds now. While that bound is below the cost, the store would deny: no denial from here is a false one.
//! A denial while units on lease may come back is not noted here; later leases give back no more than they took.
//! Somebody who removes a bucket from the store by hand, or sets its clock, is not heard of here: so nothing is known for
//! longer than [`KEEP_MAX`]. Pure.

use super::APPLIED_MAX;
use super::bucket::{Bucket, Level, refill};
use super::fingerprint::Fingerprints;
use super::policy::{Mode, Policy, Sheet};
use super::table::Table;
use crate::time::Micros;
use std::time::Duration;

/// Buckets that a worker remembers at most: with more, those that would be asked about again the soonest are forgotten.
pub const ENTRIES_MAX: usize = 16 * 1024;

/// The longest time that a denial is known: the wait after an operator has given a user a full bucket.
pub const KEEP_MAX: Duration = Duration::from_secs(5);

/// A store's clock may run faster than ours by one part in this many without making a denial false: NTP slews a clock by
/// one part in 2 000 at most.
const SLEW: u32 = 1024;

/// Buckets that are known not to hold the cost of a request.
pub struct Denied {
    table: Table,
    prints: Fingerprints,
}

impl Default for Denied {
    fn default() -> Denied {
        Denied { table: Table::new(ENTRIES_MAX), prints: Fingerprints::default() }
    }
}

impl Denied {
    /// Remembers the buckets of a denial that the store gave to a question of the time `asked`.
    pub fn note(&mut self, policy: &Policy, sheet: &Sheet, asked: Micros) {
        let waits = sheet.outcomes().map(|(applied, level)| policy.tier(applied).shape.retry_after_us(level));
        let known_for = Duration::from_micros(waits.max().unwrap_or(0)).min(KEEP_MAX);
        for ((applied, level), key) in sheet.applied().iter().zip(&sheet.levels).zip(sheet.keys()) {
            let Some(level) = level else { continue };
            let bucket = Bucket { units: level.units, last: asked.0, token: policy.tier(applied).shape.token };
            self.table.put(self.prints.of(key), bucket, asked.after(known_for).0, asked.0);
        }
    }

    /// Whether the store would deny the request at `now`, as far as is known here. Then the sheet tells what the buckets
    /// hold at most, those of which something is known.
    pub fn denies(&mut self, policy: &Policy, sheet: &mut Sheet, now: Micros) -> bool {
        if self.table.len() == 0 {
            return false;
        }
        let mut levels = [None; APPLIED_MAX];
        let mut denies = false;
        for ((applied, level), key) in sheet.applied().iter().zip(&mut levels).zip(sheet.keys()) {
            let Some(known) = self.table.find(self.prints.of(key)) else { continue };
            let age = now.since(Micros(known.last));
            if age >= KEEP_MAX {
                continue;
            }
            let shape = &policy.tier(applied).shape;
            let bound = refill(Some(known), shape, Micros(known.last).after(age + age / SLEW).0);
            let short = !bound.covers(shape);
            *level = Some(Level { units: bound.units, short });
            denies |= short && policy.rule(applied).mode == Mode::Enforce;
        }
        if denies {
            sheet.levels = levels;
        }
        denies
    }
}
