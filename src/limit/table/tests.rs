//! The table beside a map that forgets nothing, and what it promises of its bound, its growth and what it drops.

use super::super::bucket::Shape;
use super::super::fingerprint::Fingerprints;
use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

const MOST: usize = 8192;

/// Far behind every test.
const FOR_EVER: u64 = u64::MAX;

fn shape() -> Shape {
    Shape::new("1/s".parse().unwrap(), 10, 1).unwrap()
}

fn bucket(units: u64) -> Bucket {
    Bucket { units, last: 0, token: 1 }
}

/// Fingerprints that are spread like those of keys, and the same in each run.
fn spread(key: u64) -> Fingerprint {
    let mut random = fastrand::Rng::with_seed(key);
    Fingerprint::with_bits(random.u128(..))
}

/// Fingerprints of which many belong to the last group and to the first ones.
fn crowded(key: u64) -> Fingerprint {
    let group = match key % 3 {
        0 => u64::MAX,
        1 => 0,
        _ => spread(key).part(1 << 40) as u64 * (1 << 24),
    };
    Fingerprint::with_bits(u128::from(group) << 64 | u128::from(key) << 1)
}

fn units(table: &Table, print: Fingerprint) -> Option<u64> {
    table.place(print).map(|Place { group, way }| table.groups[group].buckets[way].units)
}

/// All entries, with their groups.
fn all(table: &Table) -> Vec<(usize, Entry)> {
    let ways = |group: usize| (0..WAYS).map(move |way| (group, way));
    let places = (0..table.groups.len()).flat_map(ways);
    let taken = places.filter(|&(group, way)| table.groups[group].prints[way] != Fingerprint::NONE);
    taken.map(|(group, way)| (group, table.groups[group].entry(way))).collect()
}

/// What must always hold: the count is right, the table is not too full, no entry is there twice, and from its own group
/// up to where it stands all groups are full.
fn check(table: &Table) {
    let all = all(table);
    assert_eq!(all.len(), table.len());
    assert!(table.len() <= table.most && table.len() <= table.room());
    let seen: HashSet<Fingerprint> = all.iter().map(|(_, entry)| entry.print).collect();
    assert_eq!(seen.len(), all.len());
    for (at, entry) in &all {
        let mut group = entry.print.part(table.groups.len());
        while group != *at {
            assert!(table.groups[group].free().is_none(), "{:?} is in {at}, with room in {group}", entry.print);
            group = table.after(group);
        }
    }
}

#[test]
fn a_group_is_three_cache_lines_and_a_table_with_its_lock_one() {
    assert_eq!((size_of::<Group>(), align_of::<Group>()), (192, 64));
    assert_eq!(size_of::<parking_lot::Mutex<Table>>(), 64);
}

#[test]
fn a_table_never_passes_its_bound_and_gives_up_the_fullest() {
    let mut table = Table::new(MOST);
    for key in 0..MOST as u64 {
        table.put(spread(key), bucket(key), if key % 4 == 0 { 1 } else { 1000 }, 0);
    }
    assert_eq!((table.len(), table.evicted()), (MOST, 0));
    for key in 0..1000 {
        table.put(spread(1_000_000 + key), bucket(key), 1000, 0);
        assert_eq!(table.len(), MOST);
    }
    check(&table);
    assert_eq!(table.evicted(), 1000);
    let gone = (0..MOST as u64).filter(|&key| units(&table, spread(key)).is_none());
    let wrongly = gone.filter(|key| key % 4 != 0).count();
    // At first a quarter is of little use, in the end an eighth: of eight, none is with probability 0.1 to 0.34.
    assert!((100..340).contains(&wrongly), "{wrongly} of 1000 were not of little use");
}

#[test]
fn of_the_entries_next_to_a_new_one_the_least_useful_is_given_up() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut table = Table::new(200);
    for key in 0..200 {
        table.put(spread(key), bucket(key), random.u64(1000..2000), 0);
    }
    for key in 200..2000 {
        let before = all(&table);
        let home = spread(key).part(table.groups.len());
        let behind = |group: &usize| (group + table.groups.len() - home) % table.groups.len();
        let mut near: Vec<_> = before.iter().map(|(group, entry)| (behind(group), entry)).collect();
        near.sort_by_key(|(distance, _)| *distance);
        let least = near[..EVICT_AMONG].iter().map(|(_, entry)| entry.useful_until).min();
        table.put(spread(key), bucket(key), random.u64(1000..2000), 0);
        let mut gone = before.iter().filter(|(_, entry)| units(&table, entry.print).is_none());
        assert_eq!((gone.next().map(|(_, entry)| entry.useful_until), gone.count()), (least, 0));
    }
}

#[test]
fn full_buckets_vanish_while_one_key_is_asked_for() {
    let mut table = Table::new(MOST);
    for key in 0..1000 {
        table.put(spread(key), bucket(0), shape().time_to_fill(), 0);
    }
    let groups = table.groups.len();
    for _ in 0..groups * HAND_EVERY {
        table.put(spread(5000), bucket(0), FOR_EVER, shape().time_to_fill());
    }
    assert_eq!(all(&table).len(), 1);
    assert_eq!((table.len(), table.groups.len()), (1, groups));
}

/// Those that come drop those that are gone: the table holds little more than what is of use.
#[test]
fn a_table_of_keys_that_come_once_does_not_fill() {
    const USEFUL: u64 = 500;
    let mut table = Table::new(MOST);
    let mut longest = 0;
    for now in 0..100_000 {
        table.put(spread(now), bucket(0), now + USEFUL, now);
        longest = longest.max(table.len());
    }
    check(&table);
    assert_eq!(table.evicted(), 0);
    assert!((500..1000).contains(&longest), "{longest} at once");
}

#[test]
fn a_table_that_grows_leaves_behind_what_says_nothing() {
    let mut table = Table::new(MOST);
    // None of them near the first group, where the new one will look.
    let elsewhere =
        |key: u64| Fingerprint::with_bits(u128::from((1 << 60) + spread(key).part(14 << 50) as u64 * 1024) << 64);
    let mut key = 0;
    while table.len() < table.room() || table.groups.len() < 100 {
        table.put(elsewhere(key), bucket(0), if key % 4 == 0 { FOR_EVER } else { 10 }, 0);
        key += 1;
    }
    let groups = table.groups.len();
    table.put(Fingerprint::with_bits(0), bucket(0), FOR_EVER, 10);
    check(&table);
    assert!(table.groups.len() > groups);
    assert_eq!(table.len() as u64, key.div_ceil(4) + 1);
}

#[test]
fn an_empty_table_knows_nothing() {
    let mut table = Table::new(0);
    assert_eq!((table.find(spread(1)).is_none(), table.len(), table.evicted()), (true, 0, 0));
    let prints = Fingerprints::default();
    let mut smallest = Table::new(0);
    for key in [b"a", b"b", b"b"] {
        smallest.put(prints.of(key), bucket(3), FOR_EVER, 0);
    }
    assert_eq!((smallest.len(), smallest.evicted(), units(&smallest, prints.of(b"b"))), (1, 1, Some(3)));
}

#[test]
fn what_is_useful_for_ever_outlives_time() {
    let mut table = Table::new(2);
    for key in [0, 1, 0] {
        table.put(spread(key), bucket(key), FOR_EVER - key, u64::MAX);
    }
    assert_eq!((table.len(), units(&table, spread(0))), (1, Some(0)));
    check(&table);
}

#[derive(Clone, Copy, Debug)]
struct Step {
    key: u64,
    units: u64,
    useful_for: u64,
    pause: u64,
}

fn steps() -> impl Strategy<Value = (usize, bool, Vec<Step>)> {
    let step = |keys: u64| {
        (
            0..keys,
            0..1000u64,
            prop_oneof![Just(0u64), 1..50u64, Just(1 << 40)],
            prop_oneof![9 => Just(0u64), 1 => 1..30u64],
        )
            .prop_map(|(key, units, useful_for, pause)| Step { key, units, useful_for, pause })
    };
    (1..300usize, any::<bool>(), 2..600u64)
        .prop_flat_map(move |(most, crowd, keys)| (Just(most), Just(crowd), prop::collection::vec(step(keys), 1..400)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is put in, in whatever order: nothing is found but what was put in last, nothing useful is lost but what
    /// was given up at the bound, and the table stays in order, also where its end meets its beginning.
    #[test]
    fn a_table_agrees_with_a_map((most, crowd, steps) in steps()) {
        let print = if crowd { crowded } else { spread };
        let mut table = Table::new(most);
        let mut model: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut now = 0;
        for Step { key, units: held, useful_for, pause } in steps {
            now += pause;
            let evicted = table.evicted();
            let needs_room = units(&table, print(key)).is_none() && table.len() == most;
            table.put(print(key), bucket(held), now + useful_for, now);
            model.insert(key, (held, now + useful_for));
            check(&table);
            prop_assert!(table.evicted() - evicted <= u64::from(needs_room));
            let mut lost = 0;
            model.retain(|&key, &mut (held, useful_until)| {
                let found = units(&table, print(key));
                assert!(found.is_none_or(|found| found == held), "{key}: {found:?}, not {held}");
                lost += u64::from(found.is_none() && useful_until > now);
                found.is_some()
            });
            prop_assert_eq!(model.len(), table.len());
            prop_assert!(lost <= table.evicted() - evicted, "{} lost at {}", lost, now);
        }
    }
}
