//! Buckets in this process: one store for all workers, since SO_REUSEPORT spreads one user over them.
//!
//! Sharded by key; each shard is a table under a lock that is held for one decision and never over an await. Only
//! buckets that are not full are kept; a shard at its bound gives up one that would be full soon. Pure: no clock, no IO.

use super::bucket::{Bucket, Level, Shape, refill};
use super::policy::{Mode, Policy, Share, Sheet};
use super::table::{Change, Table};
use super::{APPLIED_MAX, OnFailure};
use crate::time::Micros;
use foldhash::fast::RandomState;
use parking_lot::{Mutex, MutexGuard};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// Locks: many more than cores, so that two rarely meet, and small enough shards that growing one is no pause.
const SHARDS: usize = 256;

/// Buckets in a store at most, all shards together: about 2 million.
pub const ENTRIES_MAX: usize = SHARDS * SHARD_ENTRIES_MAX;

const SHARD_ENTRIES_MAX: usize = 8192;

/// The buckets of this process.
pub struct Store {
    shards: Box<[Aligned]>,
    hasher: RandomState,
    entries: AtomicU64,
    evicted: AtomicU64,
}

/// A shard on cache lines of its own.
#[repr(align(128))]
struct Aligned(Mutex<Table>);

impl Default for Store {
    fn default() -> Store {
        Store {
            shards: (0..SHARDS).map(|_| Aligned(Mutex::new(Table::new(SHARD_ENTRIES_MAX)))).collect(),
            hasher: RandomState::default(),
            entries: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }
}

type Guards<'a> = [Option<(usize, MutexGuard<'a, Table>)>; APPLIED_MAX];

impl Store {
    /// Entries at present.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Entries given up at the bound since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Charges every bucket on the sheet, or none, and writes down their levels. Of a replica's share, only the limits that
    /// are decided here when the store fails.
    pub fn charge(&self, policy: &Policy, sheet: &mut Sheet, share: Share, now: Micros) {
        let mut hashes = [0; APPLIED_MAX];
        for (hash, key) in hashes.iter_mut().zip(sheet.keys()) {
            *hash = self.hasher.hash_one(key);
        }
        let count = sheet.applied().len();
        let mut guards = self.lock(&hashes[..count]);
        let mut buckets = [Bucket { units: 0, last: 0, token: 1 }; APPLIED_MAX];
        let mut levels = [None; APPLIED_MAX];
        let mut denied = false;
        for (i, (applied, key)) in sheet.applied().iter().zip(sheet.keys()).enumerate() {
            if share == Share::Replica && policy.rule(applied).on_failure != OnFailure::Local {
                continue;
            }
            let shape = policy.shape(applied, share);
            let stored = shard_of(&mut guards, hashes[i]).and_then(|shard| shard.find(hashes[i], key));
            buckets[i] = refill(stored, shape, now.0);
            let short = !buckets[i].covers(shape);
            levels[i] = Some(Level { units: buckets[i].units, short });
            denied |= short && policy.rule(applied).mode == Mode::Enforce;
        }
        if !denied {
            for (i, (applied, key)) in sheet.applied().iter().zip(sheet.keys()).enumerate() {
                let shape = policy.shape(applied, share);
                let Some(level) = levels[i].as_mut().filter(|level| !level.short) else { continue };
                let charged = buckets[i].charged(shape);
                level.units = charged.units;
                if let Some(shard) = shard_of(&mut guards, hashes[i]) {
                    self.put(shard, hashes[i], key, charged, shape, now);
                }
            }
        }
        drop(guards);
        sheet.levels = levels;
        sheet.share = share;
    }

    /// Takes what the store has granted from this replica's share too, so that the share is worth no more than it was when
    /// it comes to decide alone.
    pub fn keep_warm(&self, policy: &Policy, sheet: &Sheet, now: Micros) {
        for (applied, key) in sheet.applied().iter().zip(sheet.keys()) {
            if policy.rule(applied).on_failure != OnFailure::Local {
                continue;
            }
            let (hash, shape) = (self.hasher.hash_one(key), policy.shape(applied, Share::Replica));
            let mut shard = self.shards[shard_number(hash)].0.lock();
            let left = refill(shard.find(hash, key), shape, now.0).charged(shape);
            self.put(&mut shard, hash, key, left, shape, now);
        }
    }

    fn put(&self, shard: &mut Table, hash: u64, key: &[u8], bucket: Bucket, shape: &Shape, now: Micros) {
        let full_at = bucket.last + shape.time_to(bucket.units, shape.capacity);
        self.count(&shard.put(hash, key, bucket, full_at, now.0));
    }

    /// Locks the shards of these hashes, each once and in order, so that two requests never wait for each other.
    fn lock(&self, hashes: &[u64]) -> Guards<'_> {
        let mut wanted = [usize::MAX; APPLIED_MAX];
        for (shard, hash) in wanted.iter_mut().zip(hashes) {
            *shard = shard_number(*hash);
        }
        let wanted = &mut wanted[..hashes.len()];
        wanted.sort_unstable();
        let mut guards: Guards<'_> = [const { None }; APPLIED_MAX];
        let mut last = None;
        for (guard, &mut number) in guards.iter_mut().zip(wanted) {
            if last != Some(number) {
                *guard = Some((number, self.shards[number].0.lock()));
                last = Some(number);
            }
        }
        guards
    }

    fn count(&self, change: &Change) {
        let gone = change.expired + change.evicted;
        if change.added > gone {
            self.entries.fetch_add(change.added - gone, Ordering::Relaxed);
        } else if gone > change.added {
            self.entries.fetch_sub(gone - change.added, Ordering::Relaxed);
        }
        if change.evicted > 0 {
            self.evicted.fetch_add(change.evicted, Ordering::Relaxed);
        }
    }
}

/// The high bits: the table within a shard uses the low ones.
fn shard_number(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

fn shard_of<'g>(guards: &'g mut Guards<'_>, hash: u64) -> Option<&'g mut Table> {
    let number = shard_number(hash);
    let held = guards.iter_mut().flatten().find(|(held, _)| *held == number);
    held.map(|(_, guard)| &mut **guard)
}
