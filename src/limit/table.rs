//! Buckets by fingerprint of their key, bounded.
//!
//! One flat array of groups. A group has room for [`WAYS`] entries on three cache lines side by side, of which the first
//! tells which of them it has: a bucket is found by going to one place in memory. An entry stands in the first group with
//! room from the one its fingerprint names on, and moves back as soon as there is room before it.
//!
//! Each change drops what says nothing any more in the group it went to, and every [`HAND_EVERY`]th one in another group,
//! each in its turn: so idle entries vanish without a pause, also where nobody asks for their neighbours. A table at its
//! bound gives up, of [`EVICT_AMONG`] entries, the one that is useful for the shortest time: what is lost is the least
//! that can be.
//!
//! Memory: 48 bytes for each place, of which four fifths are taken at most and, but in small tables, half at least once
//! it has grown: 60 to 90 bytes an entry. Pure.

use super::bucket::Bucket;
use super::fingerprint::Fingerprint;

/// Entries of a group: as many as fingerprints fit in a cache line.
const WAYS: usize = 4;

/// A table is taken up to this part and no further: beyond it ever more entries stand outside their group.
const FILL_MAX: (usize, usize) = (4, 5);

/// Changes until another group is looked at.
const HAND_EVERY: usize = 32;

/// Entries from which a full table chooses the one to give up.
const EVICT_AMONG: usize = 8;

/// Buckets by fingerprint.
pub(super) struct Table {
    groups: Box<[Group]>,
    entries: usize,
    most: usize,
    evicted: u64,
    /// Counted to know when which group has its turn.
    changes: usize,
    /// The place where the last key was found, of all.
    found: usize,
}

#[derive(Clone)]
#[repr(align(64))]
struct Group {
    prints: [Fingerprint; WAYS],
    /// From then on an entry says nothing any more; [`NEVER`] where there is none.
    useful_until: [u64; WAYS],
    buckets: [Bucket; WAYS],
}

/// The end of what is not there.
const NEVER: u64 = u64::MAX;

const EMPTY: Group = Group {
    prints: [Fingerprint::NONE; WAYS],
    useful_until: [NEVER; WAYS],
    buckets: [Bucket { units: 0, last: 0, token: 1 }; WAYS],
};

/// Where an entry stands.
#[derive(Clone, Copy)]
struct Place {
    group: usize,
    way: usize,
}

struct Entry {
    print: Fingerprint,
    bucket: Bucket,
    useful_until: u64,
}

impl Group {
    fn find(&self, print: Fingerprint) -> Option<usize> {
        let hits = self.prints.iter().enumerate().fold(0u32, |hits, (way, at)| hits | u32::from(*at == print) << way);
        (hits != 0).then_some(hits.trailing_zeros() as usize)
    }

    fn free(&self) -> Option<usize> {
        self.find(Fingerprint::NONE)
    }

    fn clear(&mut self, way: usize) {
        self.prints[way] = Fingerprint::NONE;
        self.useful_until[way] = NEVER;
    }

    fn has_useless(&self, now: u64) -> bool {
        self.useful_until.iter().fold(false, |found, until| found | (*until <= now))
    }

    fn set(&mut self, way: usize, entry: &Entry) {
        self.prints[way] = entry.print;
        self.buckets[way] = entry.bucket;
        self.useful_until[way] = entry.useful_until;
    }

    fn entry(&self, way: usize) -> Entry {
        Entry { print: self.prints[way], bucket: self.buckets[way], useful_until: self.useful_until[way] }
    }
}

impl Table {
    /// Empty, for that many entries at most; at least one.
    pub fn new(most: usize) -> Table {
        Table { groups: Box::default(), entries: 0, most: most.max(1), evicted: 0, changes: 0, found: 0 }
    }

    /// Entries at present.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Entries given up at the bound so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The bucket of this key.
    pub fn find(&mut self, print: Fingerprint) -> Option<Bucket> {
        let place = self.place(print)?;
        self.found = place.group * WAYS + place.way;
        Some(self.groups[place.group].buckets[place.way])
    }

    /// Keeps a bucket, which says something until `useful_until`.
    pub fn put(&mut self, print: Fingerprint, bucket: Bucket, useful_until: u64, now: u64) {
        let now = now.min(NEVER - 1);
        let entry = Entry { print, bucket, useful_until };
        if let Some(Place { group, way }) = self.found_last(print).or_else(|| self.place(print)) {
            self.groups[group].set(way, &entry);
            self.sweep(group, now);
        } else {
            self.insert(&entry, now);
        }
        self.changes = self.changes.wrapping_add(1);
        if self.changes.is_multiple_of(HAND_EVERY) {
            self.sweep(self.changes / HAND_EVERY % self.groups.len(), now);
        }
    }

    /// The place of this key, where it was looked for last and is still there.
    fn found_last(&self, print: Fingerprint) -> Option<Place> {
        let place = Place { group: self.found / WAYS, way: self.found % WAYS };
        (self.groups.get(place.group)?.prints[place.way] == print).then_some(place)
    }

    fn insert(&mut self, entry: &Entry, now: u64) {
        if self.entries > 0 {
            self.sweep(entry.print.part(self.groups.len()), now);
        }
        if self.entries >= self.most {
            self.evict(entry.print);
        } else if self.entries >= self.room() {
            self.grow(now);
        }
        add(&mut self.groups, entry);
        self.entries += 1;
    }

    fn place(&self, print: Fingerprint) -> Option<Place> {
        let mut group = print.part(self.groups.len());
        for _ in 0..self.groups.len() {
            let here = &self.groups[group];
            if let Some(way) = here.find(print) {
                return Some(Place { group, way });
            }
            if here.free().is_some() {
                return None;
            }
            group = self.after(group);
        }
        None
    }

    /// The group behind this one.
    fn after(&self, group: usize) -> usize {
        after(group, self.groups.len())
    }

    /// Entries that the array may hold before it grows.
    fn room(&self) -> usize {
        self.groups.len() * WAYS * FILL_MAX.0 / FILL_MAX.1
    }

    /// Moves to an array half as large again, and leaves behind what says nothing any more. Since entries stand in the
    /// order of their groups there as here, memory is gone through from one end to the other.
    #[cold]
    fn grow(&mut self, now: u64) {
        let most = (self.most * FILL_MAX.1).div_ceil(WAYS * FILL_MAX.0);
        let count = (self.groups.len() + self.groups.len().div_ceil(2)).clamp(1, most);
        let mut groups = vec![EMPTY; count].into_boxed_slice();
        self.entries = 0;
        for group in &self.groups {
            let is_useful = |&way: &usize| group.prints[way] != Fingerprint::NONE && group.useful_until[way] > now;
            for way in (0..WAYS).filter(is_useful) {
                add(&mut groups, &group.entry(way));
                self.entries += 1;
            }
        }
        self.groups = groups;
    }

    /// Drops what says nothing any more in a group.
    fn sweep(&mut self, group: usize, now: u64) {
        // Another one may come back to the place of one that is gone.
        while self.groups[group].has_useless(now) {
            for way in 0..WAYS {
                if self.groups[group].useful_until[way] <= now {
                    self.remove(Place { group, way });
                }
            }
        }
    }

    /// Makes room for this key near the place where it will stand.
    #[cold]
    fn evict(&mut self, print: Fingerprint) {
        let mut group = print.part(self.groups.len());
        let mut candidates = 0;
        let mut worst: Option<(u64, Place)> = None;
        for _ in 0..self.groups.len() {
            let here = &self.groups[group];
            for way in (0..WAYS).filter(|&way| here.prints[way] != Fingerprint::NONE) {
                let useful_until = here.useful_until[way];
                if candidates < EVICT_AMONG && worst.is_none_or(|(least, _)| useful_until < least) {
                    worst = Some((useful_until, Place { group, way }));
                }
                candidates += 1;
            }
            if candidates >= EVICT_AMONG {
                break;
            }
            group = self.after(group);
        }
        if let Some((_, place)) = worst {
            self.evicted += 1;
            self.remove(place);
        }
    }

    /// Removes an entry. Where its group was full, one that had to go past it comes back, and so on from the place that
    /// this one leaves.
    fn remove(&mut self, mut hole: Place) {
        self.entries -= 1;
        let mut was_full = self.groups[hole.group].free().is_none();
        self.groups[hole.group].clear(hole.way);
        let mut group = hole.group;
        while was_full {
            group = self.after(group);
            if group == hole.group {
                break;
            }
            was_full = self.groups[group].free().is_none();
            if let Some(way) = (0..WAYS).find(|&way| self.came_past(Place { group, way }, hole.group)) {
                let entry = self.groups[group].entry(way);
                self.groups[hole.group].set(hole.way, &entry);
                self.groups[group].clear(way);
                hole = Place { group, way };
            }
        }
    }

    /// Whether there is an entry at a place that looked for room in the group `past` before.
    fn came_past(&self, place: Place, past: usize) -> bool {
        let print = self.groups[place.group].prints[place.way];
        let count = self.groups.len();
        let back = |from: usize| (place.group + count - from) % count;
        print != Fingerprint::NONE && back(print.part(count)) >= back(past)
    }
}

fn after(group: usize, count: usize) -> usize {
    if group + 1 == count { 0 } else { group + 1 }
}

/// Puts an entry where there is room; there is.
fn add(groups: &mut [Group], entry: &Entry) {
    let mut group = entry.print.part(groups.len());
    for _ in 0..groups.len() {
        if let Some(way) = groups[group].free() {
            return groups[group].set(way, entry);
        }
        group = after(group, groups.len());
    }
}

#[cfg(test)]
mod tests;
