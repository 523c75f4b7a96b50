//! Buckets by key, bounded.
//!
//! Each change looks at [`SWEEP`] old entries and drops those that say nothing any more, so idle entries vanish without
//! a pause. A table at its bound gives up, of [`EVICT_AMONG`] entries, the one that is useful for the shortest time:
//! what is lost is the least that can be. Pure.

use super::bucket::Bucket;
use hashbrown::HashTable;

/// Old entries that a change looks at.
const SWEEP: usize = 2;

/// Entries from which a full table chooses the one to give up.
const EVICT_AMONG: usize = 8;

/// Buckets by key. Who uses it brings the hashes.
pub(super) struct Table {
    /// Positions in `entries`, by hash of the key.
    positions: HashTable<usize>,
    entries: Vec<Entry>,
    most: usize,
    /// Where the sweep goes on.
    hand: usize,
}

struct Entry {
    hash: u64,
    key: Box<[u8]>,
    bucket: Bucket,
    /// From then on the entry says nothing any more.
    useful_until: u64,
}

/// How many entries a change left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub added: u64,
    pub expired: u64,
    pub evicted: u64,
}

impl Table {
    /// Empty, for that many entries at most; at least one.
    pub fn new(most: usize) -> Table {
        Table { positions: HashTable::new(), entries: Vec::new(), most: most.max(1), hand: 0 }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The bucket of this key.
    pub fn find(&self, hash: u64, key: &[u8]) -> Option<Bucket> {
        let at = self.positions.find(hash, |&at| *self.entries[at].key == *key)?;
        Some(self.entries[*at].bucket)
    }

    /// Keeps a bucket, which says something until `useful_until`.
    pub fn put(&mut self, hash: u64, key: &[u8], bucket: Bucket, useful_until: u64, now: u64) -> Change {
        if let Some(&at) = self.positions.find(hash, |&at| *self.entries[at].key == *key) {
            self.entries[at].bucket = bucket;
            self.entries[at].useful_until = useful_until;
            return Change { expired: self.sweep(now), ..Change::default() };
        }
        let expired = self.sweep(now);
        let mut evicted = 0;
        if self.entries.len() >= self.most {
            self.evict();
            evicted = 1;
        }
        let at = self.entries.len();
        self.entries.push(Entry { hash, key: key.into(), bucket, useful_until });
        let entries = &self.entries;
        self.positions.insert_unique(hash, at, |&at| entries[at].hash);
        Change { added: 1, expired, evicted }
    }

    /// Drops what says nothing any more among the next [`SWEEP`] entries.
    fn sweep(&mut self, now: u64) -> u64 {
        let mut expired = 0;
        for _ in 0..SWEEP.min(self.entries.len()) {
            self.hand = (self.hand + 1) % self.entries.len();
            if self.entries[self.hand].useful_until <= now {
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
        if let Some(at) = candidates.min_by_key(|&at| self.entries[at].useful_until) {
            self.hand = (self.hand + EVICT_AMONG) % self.entries.len();
            self.remove(at);
        }
    }

    /// Removes the entry at a position; the last one takes its place.
    fn remove(&mut self, at: usize) {
        if let Ok(found) = self.positions.find_entry(self.entries[at].hash, |&other| other == at) {
            found.remove();
        }
        self.entries.swap_remove(at);
        let moved_from = self.entries.len();
        if let Some(moved) = self.entries.get(at)
            && let Some(position) = self.positions.find_mut(moved.hash, |&other| other == moved_from)
        {
            *position = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket::Shape;
    use super::*;

    const MOST: usize = 8192;

    fn shape() -> Shape {
        Shape::new("1/s".parse().unwrap(), 10, 1).unwrap()
    }

    fn put(table: &mut Table, key: u64, units: u64, now: u64) -> Change {
        let shape = shape();
        let bucket = Bucket { units, last: now, token: shape.token };
        let full_at = now + shape.time_to(units, shape.capacity);
        table.put(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), &key.to_le_bytes(), bucket, full_at, now)
    }

    fn find(table: &Table, key: u64) -> Option<u64> {
        let found = table.find(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), &key.to_le_bytes());
        found.map(|bucket| bucket.units)
    }

    #[test]
    fn a_table_never_passes_its_bound_and_gives_up_the_fullest() {
        let mut table = Table::new(MOST);
        let nearly_full = shape().capacity - 1;
        for key in 0..MOST as u64 {
            put(&mut table, key, if key % 4 == 0 { nearly_full } else { 0 }, 0);
        }
        for key in 0..1000 {
            put(&mut table, 1_000_000 + key, 0, 0);
            assert_eq!(table.entries.len(), MOST);
        }
        let empty_ones = (0..MOST as u64).filter(|key| key % 4 != 0);
        assert!(empty_ones.clone().all(|key| find(&table, key) == Some(0)));
    }

    #[test]
    fn full_buckets_vanish_as_others_come() {
        let mut table = Table::new(MOST);
        for key in 0..1000 {
            put(&mut table, key, 0, 0);
        }
        let later = shape().time_to_fill();
        let mut gone = 0;
        for _ in 0..600 {
            gone += put(&mut table, 5000, 0, later).expired;
        }
        assert_eq!((gone, table.entries.len()), (1000, 1));
        assert_eq!(table.positions.len(), 1);
    }

    #[test]
    fn table_and_entries_agree_after_random_changes() {
        let mut table = Table::new(MOST);
        let mut random = fastrand::Rng::with_seed(7);
        let mut expected = std::collections::HashMap::new();
        for now in 0..20_000 {
            let key = random.u64(..300);
            let units = random.u64(..1000);
            put(&mut table, key, units, now);
            expected.insert(key, units);
        }
        assert_eq!(table.entries.len(), expected.len());
        for (key, units) in expected {
            assert_eq!(find(&table, key), Some(units));
        }
    }
}
