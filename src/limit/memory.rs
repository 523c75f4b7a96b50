//! Buckets in this process: one store for all workers, since SO_REUSEPORT spreads one user over them.
//!
//! Sharded by key; each shard is a table under a lock that is held for one decision and never over an await. Only
//! buckets that are not full are kept; a shard at its bound gives up one that would be full soon. Pure: no clock, no IO.

use super::bucket::{Bucket, Level, Shape, refill};
use super::fingerprint::{Fingerprint, Fingerprints};
use super::policy::{Mode, Policy, Share, Sheet};
use super::table::Table;
use super::{APPLIED_MAX, OnFailure};
use crate::time::Micros;
use parking_lot::{Mutex, MutexGuard};
use std::hint::spin_loop;

/// Locks: many more than cores, so that two rarely meet, and small enough shards that growing one is no long pause: 0.13
/// ms where it was measured (bench/runs/2026-11-27-memory-store).
const SHARDS: usize = 512;

/// Buckets in a store at most, all shards together: about 2 million.
pub const ENTRIES_MAX: usize = SHARDS * SHARD_ENTRIES_MAX;

const SHARD_ENTRIES_MAX: usize = 4096;

/// The buckets of this process.
pub struct Store {
    shards: Box<[Aligned]>,
    prints: Fingerprints,
}

/// A shard on cache lines of its own.
#[repr(align(128))]
struct Aligned(Mutex<Table>);

/// Pauses of the processor before a lock that is taken is tried again: some 35 us in all, and then the thread sleeps. They
/// grow fast: two threads that hand a shard to and fro for each decision wait for its cache lines most of the time, so each
/// had better decide several times in a row.
const PAUSES: [u32; 4] = [16, 64, 256, 1024];

impl Aligned {
    fn lock(&self) -> MutexGuard<'_, Table> {
        for pauses in PAUSES {
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
            for _ in 0..pauses {
                spin_loop();
            }
        }
        self.0.lock()
    }
}

impl Default for Store {
    fn default() -> Store {
        Store {
            shards: (0..SHARDS).map(|_| Aligned(Mutex::new(Table::new(SHARD_ENTRIES_MAX)))).collect(),
            prints: Fingerprints::default(),
        }
    }
}

/// The shards of a sheet, locked, each once.
struct Guards<'a, const N: usize> {
    held: [Option<MutexGuard<'a, Table>>; N],
    /// Which of them has a key.
    of_key: [usize; N],
}

impl Store {
    /// Entries at present.
    pub fn entries(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().len() as u64).sum()
    }

    /// Entries given up at the bound since the start.
    pub fn evicted(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().evicted()).sum()
    }

    /// Charges every bucket on the sheet, or none, and writes down their levels. Of a replica's share, only the limits that
    /// are decided here when the store fails.
    pub fn charge(&self, policy: &Policy, sheet: &mut Sheet, share: Share, now: Micros) {
        // Most requests fall under one limit or a few: then less is set up and gone through.
        match sheet.applied().len() {
            0 | 1 => self.charge_some::<1>(policy, sheet, share, now),
            2..=4 => self.charge_some::<4>(policy, sheet, share, now),
            _ => self.charge_some::<APPLIED_MAX>(policy, sheet, share, now),
        }
    }

    /// The same for up to `N` limits.
    fn charge_some<const N: usize>(&self, policy: &Policy, sheet: &mut Sheet, share: Share, now: Micros) {
        let mut prints = [Fingerprint::NONE; N];
        for (print, key) in prints.iter_mut().zip(sheet.keys()) {
            *print = self.prints.of(key);
        }
        let count = sheet.applied().len();
        let prints = &prints[..count.min(N)];
        let mut buckets = [Bucket { units: 0, last: 0, token: 1 }; N];
        let mut levels = [None; N];
        let mut denied = false;
        let mut guards = self.lock::<N>(prints);
        for (i, (applied, print)) in sheet.applied().iter().zip(prints).enumerate() {
            if share == Share::Replica && policy.rule(applied).on_failure != OnFailure::Local {
                continue;
            }
            let shape = policy.shape(applied, share);
            let stored = guards.shard(i).and_then(|shard| shard.find(*print));
            buckets[i] = refill(stored, shape, now.0);
            let short = !buckets[i].covers(shape);
            levels[i] = Some(Level { units: buckets[i].units, short });
            denied |= short && policy.rule(applied).mode == Mode::Enforce;
        }
        if !denied {
            for (i, (applied, print)) in sheet.applied().iter().zip(prints).enumerate() {
                let shape = policy.shape(applied, share);
                let Some(level) = levels[i].as_mut().filter(|level| !level.short) else { continue };
                let charged = buckets[i].charged(shape);
                level.units = charged.units;
                if let Some(shard) = guards.shard(i) {
                    put(shard, *print, charged, shape, now);
                }
            }
        }
        drop(guards);
        sheet.levels = [None; APPLIED_MAX];
        sheet.levels[..N].copy_from_slice(&levels);
        sheet.share = share;
    }

    /// Takes what the store has granted from this replica's share too, so that the share is worth no more than it was when
    /// it comes to decide alone.
    pub fn keep_warm(&self, policy: &Policy, sheet: &Sheet, now: Micros) {
        for (applied, key) in sheet.applied().iter().zip(sheet.keys()) {
            if policy.rule(applied).on_failure != OnFailure::Local {
                continue;
            }
            let (print, shape) = (self.prints.of(key), policy.shape(applied, Share::Replica));
            let mut shard = self.shards[print.shard(SHARDS)].lock();
            let left = refill(shard.find(print), shape, now.0).charged(shape);
            put(&mut shard, print, left, shape, now);
        }
    }

    /// Locks the shards of these keys, each once and in order, so that two requests never wait for each other.
    fn lock<const N: usize>(&self, prints: &[Fingerprint]) -> Guards<'_, N> {
        // Shard and key in one number, which is quick to sort.
        let mut wanted = [usize::MAX; N];
        for (i, (wanted, print)) in wanted.iter_mut().zip(prints).enumerate() {
            *wanted = print.shard(SHARDS) * N + i;
        }
        let wanted = &mut wanted[..prints.len()];
        wanted.sort_unstable();
        let mut guards = Guards { held: [const { None }; N], of_key: [0; N] };
        let (mut last, mut count) = (None, 0);
        for wanted in wanted {
            let (shard, i) = (*wanted / N, *wanted % N);
            if last != Some(shard) {
                guards.held[count] = Some(self.shards[shard].lock());
                count += 1;
                last = Some(shard);
            }
            guards.of_key[i] = count - 1;
        }
        guards
    }
}

impl<const N: usize> Guards<'_, N> {
    fn shard(&mut self, key: usize) -> Option<&mut Table> {
        self.held[self.of_key[key]].as_deref_mut()
    }
}

fn put(shard: &mut Table, print: Fingerprint, bucket: Bucket, shape: &Shape, now: Micros) {
    let full_at = bucket.last + shape.time_to(bucket.units, shape.capacity);
    shard.put(print, bucket, full_at, now.0);
}
