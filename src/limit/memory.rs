//! Buckets in this process: one store for all workers, since SO_REUSEPORT spreads one user over them.
//!
//! Sharded by key; each shard is a hash table under a lock that is held for one decision and never over an await. Only
//! buckets that are not full are kept. Each charge looks at [`SWEEP`] old entries and drops those that have filled up
//! meanwhile, so idle buckets vanish without a pause. A shard at its bound gives up, of [`EVICT_AMONG`] entries, the
//! one that would be full the soonest: what is lost is the least that can be. Pure: no clock, no IO.

use super::bucket::{Bucket, Level, Shape, refill};
use super::policy::{Mode, Policy, Sheet};
use super::{APPLIED_MAX, bucket};
use crate::time::Micros;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// Locks: many more than cores, so that two rarely meet, and small enough shards that growing one is no pause.
const SHARDS: usize = 256;

/// Buckets in a store at most, all shards together: about 2 million.
pub const ENTRIES_MAX: usize = SHARDS * SHARD_ENTRIES_MAX;

const SHARD_ENTRIES_MAX: usize = 8192;

/// Old entries that a charge looks at.
const SWEEP: usize = 2;

/// Entries from which a full shard chooses the one to give up.
const EVICT_AMONG: usize = 8;

/// The buckets of this process.
pub struct Store {
    shards: Box<[Aligned]>,
    hasher: RandomState,
    entries: AtomicU64,
    evicted: AtomicU64,
}

/// A shard on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Aligned(Mutex<Shard>);

#[derive(Default)]
struct Shard {
    /// Positions in `entries`, by hash of the key.
    table: HashTable<usize>,
    entries: Vec<Entry>,
    /// Where the sweep goes on.
    hand: usize,
}

struct Entry {
    hash: u64,
    key: Box<[u8]>,
    bucket: Bucket,
    /// When the bucket is full again: then the entry says nothing any more.
    full_at: u64,
}

/// How many entries a change left behind.
#[derive(Default)]
struct Change {
    added: u64,
    expired: u64,
    evicted: u64,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            shards: (0..SHARDS).map(|_| Aligned::default()).collect(),
            hasher: RandomState::default(),
            entries: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }
}

type Guards<'a> = [Option<(usize, MutexGuard<'a, Shard>)>; APPLIED_MAX];

impl Store {
    /// Entries at present.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Entries given up at the bound since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Charges every bucket on the sheet, or none, and writes down their levels.
    pub fn charge(&self, policy: &Policy, sheet: &mut Sheet, now: Micros) {
        let mut hashes = [0; APPLIED_MAX];
        for (hash, key) in hashes.iter_mut().zip(sheet.keys()) {
            *hash = self.hasher.hash_one(key);
        }
        let count = sheet.applied().len();
        let mut guards = self.lock(&hashes[..count]);
        let mut buckets = [Bucket { units: 0, last: 0, token: 1 }; APPLIED_MAX];
        let mut levels = [Level::default(); APPLIED_MAX];
        let mut denied = false;
        for (i, (applied, key)) in sheet.applied().iter().zip(sheet.keys()).enumerate() {
            let shape = &policy.tier(applied).shape;
            let stored = shard_of(&mut guards, hashes[i]).and_then(|shard| shard.find(hashes[i], key));
            buckets[i] = refill(stored, shape, now.0);
            let short = !buckets[i].covers(shape);
            levels[i] = Level { units: buckets[i].units, short };
            denied |= short && policy.rule(applied).mode == Mode::Enforce;
        }
        if !denied {
            for (i, (applied, key)) in sheet.applied().iter().zip(sheet.keys()).enumerate() {
                let shape = &policy.tier(applied).shape;
                if !levels[i].short {
                    let charged = buckets[i].charged(shape);
                    levels[i].units = charged.units;
                    if let Some(shard) = shard_of(&mut guards, hashes[i]) {
                        self.count(&shard.put(hashes[i], key, charged, shape, now.0));
                    }
                }
            }
        }
        drop(guards);
        sheet.levels = levels;
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

fn shard_of<'g>(guards: &'g mut Guards<'_>, hash: u64) -> Option<&'g mut Shard> {
    let number = shard_number(hash);
    let held = guards.iter_mut().flatten().find(|(held, _)| *held == number);
    held.map(|(_, guard)| &mut **guard)
}

impl Shard {
    fn find(&self, hash: u64, key: &[u8]) -> Option<Bucket> {
        let at = self.table.find(hash, |&at| *self.entries[at].key == *key)?;
        Some(self.entries[*at].bucket)
    }

    fn put(&mut self, hash: u64, key: &[u8], bucket: bucket::Bucket, shape: &Shape, now: u64) -> Change {
        let full_at = bucket.last + shape.time_to(bucket.units, shape.capacity);
        if let Some(&at) = self.table.find(hash, |&at| *self.entries[at].key == *key) {
            self.entries[at].bucket = bucket;
            self.entries[at].full_at = full_at;
            return Change { expired: self.sweep(now), ..Change::default() };
        }
        let expired = self.sweep(now);
        let mut evicted = 0;
        if self.entries.len() >= SHARD_ENTRIES_MAX {
            self.evict();
            evicted = 1;
        }
        let at = self.entries.len();
        self.entries.push(Entry { hash, key: key.into(), bucket, full_at });
        let entries = &self.entries;
        self.table.insert_unique(hash, at, |&at| entries[at].hash);
        Change { added: 1, expired, evicted }
    }

    /// Drops what has filled up among the next [`SWEEP`] entries.
    fn sweep(&mut self, now: u64) -> u64 {
        let mut expired = 0;
        for _ in 0..SWEEP.min(self.entries.len()) {
            self.hand = (self.hand + 1) % self.entries.len();
            if self.entries[self.hand].full_at <= now {
                self.remove(self.hand);
                expired += 1;
            }
            if self.entries.is_empty() {
                break;
            }
        }
        expired
    }

    fn evict(&mut self) {
        let candidates = (1..=EVICT_AMONG).map(|step| (self.hand + step) % self.entries.len());
        if let Some(at) = candidates.min_by_key(|&at| self.entries[at].full_at) {
            self.hand = (self.hand + EVICT_AMONG) % self.entries.len();
            self.remove(at);
        }
    }

    /// Removes the entry at a position; the last one takes its place.
    fn remove(&mut self, at: usize) {
        if let Ok(found) = self.table.find_entry(self.entries[at].hash, |&other| other == at) {
            found.remove();
        }
        self.entries.swap_remove(at);
        let moved_from = self.entries.len();
        if let Some(moved) = self.entries.get(at)
            && let Some(position) = self.table.find_mut(moved.hash, |&other| other == moved_from)
        {
            *position = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape::new("1/s".parse().unwrap(), 10, 1).unwrap()
    }

    fn put(shard: &mut Shard, key: u64, units: u64, now: u64) -> Change {
        let shape = shape();
        let bucket = Bucket { units, last: now, token: shape.token };
        shard.put(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), &key.to_le_bytes(), bucket, &shape, now)
    }

    fn find(shard: &Shard, key: u64) -> Option<u64> {
        let found = shard.find(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), &key.to_le_bytes());
        found.map(|bucket| bucket.units)
    }

    #[test]
    fn a_shard_never_passes_its_bound_and_gives_up_the_fullest() {
        let mut shard = Shard::default();
        let nearly_full = shape().capacity - 1;
        for key in 0..SHARD_ENTRIES_MAX as u64 {
            put(&mut shard, key, if key % 4 == 0 { nearly_full } else { 0 }, 0);
        }
        for key in 0..1000 {
            put(&mut shard, 1_000_000 + key, 0, 0);
            assert_eq!(shard.entries.len(), SHARD_ENTRIES_MAX);
        }
        let empty_ones = (0..SHARD_ENTRIES_MAX as u64).filter(|key| key % 4 != 0);
        assert!(empty_ones.clone().all(|key| find(&shard, key) == Some(0)));
    }

    #[test]
    fn full_buckets_vanish_as_others_come() {
        let mut shard = Shard::default();
        for key in 0..1000 {
            put(&mut shard, key, 0, 0);
        }
        let later = shape().time_to_fill();
        let mut gone = 0;
        for _ in 0..600 {
            gone += put(&mut shard, 5000, 0, later).expired;
        }
        assert_eq!((gone, shard.entries.len()), (1000, 1));
        assert_eq!(shard.table.len(), 1);
    }

    #[test]
    fn table_and_entries_agree_after_random_changes() {
        let mut shard = Shard::default();
        let mut random = fastrand::Rng::with_seed(7);
        let mut expected = std::collections::HashMap::new();
        for now in 0..20_000 {
            let key = random.u64(..300);
            let units = random.u64(..1000);
            put(&mut shard, key, units, now);
            expected.insert(key, units);
        }
        assert_eq!(shard.entries.len(), expected.len());
        for (key, units) in expected {
            assert_eq!(find(&shard, key), Some(units));
        }
    }
}
