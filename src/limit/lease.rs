//! Leases: a worker takes several tokens of a hot bucket in one question and spends them without asking.
//!
//! They are deducted in the store before they are spent, so nothing is ever given twice; of those that are unspent, the
//! worker takes for lost what the bucket would not have held without them (see [`super::out`]), by its own clock and
//! from the time of the question, which was before the grant. What nobody asks for goes back. How hot a key is, is
//! counted in cells that several keys may share: then a lease is asked for too early, and goes back. Pure.

use super::bucket::{Level, Shape};
use super::out::{Grant, Rest, Want, room};
use super::policy::{Policy, Sheet};
use crate::time::Micros;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use std::hash::BuildHasher;
use std::mem::swap;
use std::time::Duration;

/// Leases of a worker at most; while it has as many, others ask the store for each request.
pub const LEASES_MAX: usize = 4096;

/// A request that falls under more limits is never decided here: so the reply to a question for leases is bounded.
pub const LEASED_LIMITS_MAX: usize = 5;

/// How long units may be spent and may come back after their grant. The same for all gateways on one store.
pub const BACK: Duration = Duration::from_secs(1);

/// What nobody asks for during this time goes back.
pub const IDLE: Duration = Duration::from_millis(200);

/// What is left after this time goes back although it is asked for, while that still succeeds.
pub const OLD: Duration = Duration::from_millis(500);

/// Requests for a key in one window that make it hot.
pub const HOT_MIN: u64 = 8;

/// The time in which requests for a key are counted.
const WINDOW_US: u64 = 100_000;

/// Cells for counting them.
const CELLS: usize = 16 * 1024;

/// A store's clock may run faster than ours by one part in this many: NTP slews a clock by one part in 2 000 at most.
const SLEW: u64 = 1024;

/// What two clocks that count whole microseconds may miss of an interval.
const ROUNDING_US: u64 = 2;

/// A worker's leases.
#[derive(Default)]
pub struct Leases {
    table: HashTable<Entry>,
    hasher: RandomState,
    heat: Heat,
}

struct Entry {
    hash: u64,
    key: Box<[u8]>,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// A question for a lease is on its way since then.
    Asked(Micros),
    Held(Lease),
}

#[derive(Clone, Copy)]
struct Lease {
    shape: Shape,
    /// Units that are unspent.
    left: u64,
    /// Units that it was of.
    leased: u64,
    /// What the bucket held right after the grant.
    told: u64,
    /// The same, with what others had on lease.
    level: u64,
    /// The time of the grant on the store's clock.
    granted: u64,
    /// The time of the question on ours.
    asked: Micros,
    spent: Micros,
}

/// What a question asks for beyond its charge, for each limit that applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// In the order of the sheet.
    pub wants: [Want; LEASED_LIMITS_MAX],
}

/// What was granted of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// When, on the store's clock.
    pub at: u64,
    /// In the order of the sheet.
    pub grants: [Grant; LEASED_LIMITS_MAX],
}

/// A lease that goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// The bucket's key.
    pub key: Box<[u8]>,
    /// Its limit.
    pub shape: Shape,
    /// What is given back.
    pub rest: Rest,
}

impl Leases {
    /// Charges the request to leases, where every limit on the sheet has one that covers it, and writes down the levels.
    pub fn spend(&mut self, policy: &Policy, sheet: &mut Sheet, now: Micros) -> bool {
        let mut hashes = [0; LEASED_LIMITS_MAX];
        let mut covers = true;
        for ((applied, key), hash) in sheet.applied().iter().zip(sheet.keys()).zip(&mut hashes) {
            *hash = self.hasher.hash_one(key);
            self.heat.count(*hash, now);
            covers = covers && self.held(*hash, key, &policy.tier(applied).shape, now).is_some();
        }
        if !covers {
            return false;
        }
        let mut levels = sheet.levels;
        for (((applied, key), hash), level) in sheet.applied().iter().zip(sheet.keys()).zip(hashes).zip(&mut levels) {
            let shape = &policy.tier(applied).shape;
            if let Some(lease) = self.held(hash, key, shape, now) {
                // What was lost by now stays lost.
                lease.left = lease.usable(now).saturating_sub(shape.cost);
                lease.spent = now;
                *level = Some(Level { units: (lease.told + lease.left).min(shape.capacity), short: false });
            }
        }
        sheet.levels = levels;
        true
    }

    /// What the question that the sheet is about to become, asked at `now`, should ask for beyond its charge. The answer
    /// must be told to [`Leases::settle`].
    pub fn ask(&mut self, policy: &Policy, sheet: &Sheet, now: Micros) -> Option<Ask> {
        let mut ask = Ask::default();
        let mut is_any = false;
        for ((applied, key), want) in sheet.applied().iter().zip(sheet.keys()).zip(&mut ask.wants) {
            let hash = self.hasher.hash_one(key);
            let asks = self.heat.asks(hash, now);
            if asks < HOT_MIN {
                continue;
            }
            let (shape, rule) = (&policy.tier(applied).shape, policy.rule(applied));
            let units = (rule.lease / rule.cost).min(asks / 2) * shape.cost;
            if let Some(wanted) = self.want(hash, key, shape, units, now) {
                *want = wanted;
                is_any = true;
            }
        }
        is_any.then_some(ask)
    }

    /// The answer to a question: what was granted, where the request was allowed.
    pub fn settle(&mut self, policy: &Policy, sheet: &Sheet, ask: &Ask, granted: Option<&Granted>, asked: Micros) {
        for (i, (((applied, level), key), want)) in
            sheet.applied().iter().zip(&sheet.levels).zip(sheet.keys()).zip(&ask.wants).enumerate()
        {
            if want.units == 0 {
                continue;
            }
            let hash = self.hasher.hash_one(key);
            let Ok(mut place) = self.table.find_entry(hash, |entry| *entry.key == *key) else { continue };
            match (granted, level) {
                (Some(granted), Some(level)) if granted.grants[i].units > 0 => {
                    let Grant { units, beside } = granted.grants[i];
                    place.get_mut().state = State::Held(Lease {
                        shape: policy.tier(applied).shape,
                        left: units,
                        leased: units,
                        told: level.units,
                        level: level.units + beside,
                        granted: granted.at,
                        asked,
                        spent: asked,
                    });
                }
                _ => drop(place.remove()),
            }
        }
    }

    /// Takes out the leases that are to go back: those that nobody has asked for lately, those that grow old, or `all`.
    /// What is too old to go back is forgotten.
    pub fn returns(&mut self, all: bool, now: Micros) -> Vec<Return> {
        let mut returns = Vec::new();
        self.table.retain(|entry| match entry.state {
            State::Asked(since) => now.since(since) <= BACK,
            State::Held(lease) if lease.age_us(now).is_none() => false,
            State::Held(lease) if lease.left > 0 && (all || lease.is_to_go(now)) => {
                let Lease { left, leased, level, granted, .. } = lease;
                let rest = Rest { unspent: left, leased, level, granted };
                returns.push(Return { key: entry.key.clone(), shape: lease.shape, rest });
                false
            }
            State::Held(_) => true,
        });
        returns
    }

    /// The lease of this key that covers a request.
    fn held(&mut self, hash: u64, key: &[u8], shape: &Shape, now: Micros) -> Option<&mut Lease> {
        let entry = self.table.find_mut(hash, |entry| *entry.key == *key)?;
        match &mut entry.state {
            State::Held(lease) if lease.covers(shape, now) => Some(lease),
            _ => None,
        }
    }

    /// Notes that a lease of `units` is asked for, unless one is on its way or at hand.
    fn want(&mut self, hash: u64, key: &[u8], shape: &Shape, units: u64, now: Micros) -> Option<Want> {
        let is_full = self.table.len() >= LEASES_MAX;
        match self.table.entry(hash, |entry| *entry.key == *key, |entry| entry.hash) {
            Place::Vacant(_) if is_full => None,
            Place::Vacant(place) => {
                place.insert(Entry { hash, key: key.into(), state: State::Asked(now) });
                Some(Want { units, ..Want::default() })
            }
            Place::Occupied(mut place) => {
                let spent = match place.get().state {
                    State::Asked(since) if now.since(since) <= BACK => return None,
                    State::Held(lease) if lease.covers(shape, now) => return None,
                    State::Held(lease) if lease.age_us(now).is_some() => (lease.granted, lease.leased),
                    _ => (0, 0),
                };
                place.get_mut().state = State::Asked(now);
                Some(Want { units, granted: spent.0, settled: spent.1 })
            }
        }
    }
}

impl Lease {
    /// The time since the grant, at most; `None` once nothing of it may be spent or come back.
    fn age_us(&self, now: Micros) -> Option<u64> {
        let passed = u64::try_from(now.since(self.asked).as_micros()).ok()?;
        let most = passed + passed / SLEW + ROUNDING_US;
        (u128::from(most) <= BACK.as_micros()).then_some(most)
    }

    fn is_to_go(&self, now: Micros) -> bool {
        now.since(self.spent) >= IDLE || now.since(self.asked) >= OLD
    }

    /// Units that are unspent and not lost.
    fn usable(&self, now: Micros) -> u64 {
        self.age_us(now).map_or(0, |age| self.left.min(room(&self.shape, self.level, age)))
    }

    fn covers(&self, shape: &Shape, now: Micros) -> bool {
        self.shape == *shape && self.usable(now) >= shape.cost
    }
}

/// How often keys are asked for, by cells.
#[derive(Default)]
struct Heat {
    window: u64,
    present: Vec<u16>,
    last: Vec<u16>,
}

impl Heat {
    fn count(&mut self, hash: u64, now: Micros) {
        self.turn(now);
        let cell = &mut self.present[cell(hash)];
        *cell = cell.saturating_add(1);
    }

    /// Requests in the present window or in the one before, whichever had more.
    fn asks(&mut self, hash: u64, now: Micros) -> u64 {
        self.turn(now);
        u64::from(self.present[cell(hash)].max(self.last[cell(hash)]))
    }

    fn turn(&mut self, now: Micros) {
        let window = now.0 / WINDOW_US;
        if self.present.is_empty() {
            self.present = vec![0; CELLS];
            self.last = vec![0; CELLS];
        } else if window <= self.window {
            return;
        } else if window == self.window + 1 {
            swap(&mut self.present, &mut self.last);
            self.present.fill(0);
        } else {
            self.present.fill(0);
            self.last.fill(0);
        }
        self.window = window;
    }
}

/// The high bits: the table uses the low ones.
fn cell(hash: u64) -> usize {
    (hash >> 32) as usize % CELLS
}
