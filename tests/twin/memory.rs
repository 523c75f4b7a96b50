use super::{quota, wide};
use crate::support::seed;
use fastrand::Rng;
use rateguard::http::Bounds;
use rateguard::http::head::RequestHead;
use rateguard::identity::Caller;
use rateguard::limit::bucket::{Bucket, Level, refill};
use rateguard::limit::memory::Store;
use rateguard::limit::policy::{Limit, Mode, Policy, Quota, Share, Sheet, Subject};
use rateguard::time::Micros;
use std::collections::HashMap;

const ROUNDS: usize = 400;
const STEPS: usize = 80;
const USERS: usize = 3;

/// A bucket as it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Possible {
    bucket: Bucket,
    /// From then on the store may have dropped it.
    full_at: u64,
}

/// Buckets by key, each in all states that agree with everything the store has said. There are several because nobody
/// but the store knows which full buckets it has dropped, and a dropped one is full under any limit and at any time.
type Model = HashMap<Vec<u8>, Vec<Option<Possible>>>;

/// Limits `l0`, `l1`, … with random quotas: those of two policies share their buckets.
pub fn policy(random: &mut Rng, limits: usize) -> Policy {
    let limits: Vec<Limit> = (0..limits)
        .map(|i| {
            let quota = quota(random);
            Limit {
                cost: quota.cost,
                mode: if random.u8(..4) == 0 { Mode::Shadow } else { Mode::Enforce },
                ..Limit::of_each_user(&format!("l{i}"), Quota { rate: quota.rate, burst: quota.burst })
            }
        })
        .collect();
    Policy::new(&limits, &[], "p").unwrap()
}

/// Writes on the sheet what a request of a user falls under.
pub fn apply(policy: &Policy, user: usize, sheet: &mut Sheet) {
    let buffer = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut head = RequestHead::default();
    assert!(head.parse(buffer, &Bounds { head_max: 1024, fields_max: 8, body_max: None }).unwrap());
    let caller = Caller { user: format!("u{user}").into_bytes(), ..Caller::default() };
    policy
        .apply(&Subject { head: &head, buffer, host: b"h", endpoint: b"/", route: "/", caller: &caller }, sheet)
        .unwrap();
}

/// What a level says of a bucket that was found so, and the bucket that is left.
fn outcome(found: Bucket, shape: &rateguard::limit::bucket::Shape, denied: bool) -> (Level, Bucket) {
    let short = !found.covers(shape);
    let left = if short || denied { found } else { found.charged(shape) };
    (Level { units: left.units, short }, left)
}

/// Compares a sheet with the model and moves the model on; gives how many buckets had one possible answer only.
fn check(policy: &Policy, sheet: &Sheet, model: &mut Model, now: u64, latest: u64) -> usize {
    let denied = sheet.denied(policy);
    let mut certain = 0;
    for ((applied, level), key) in sheet.outcomes().zip(sheet.keys()) {
        let shape = &policy.tier(applied).shape;
        let mut before = model.remove(key).unwrap_or_else(|| vec![None]);
        if before.iter().flatten().any(|possible| possible.full_at <= latest) && !before.contains(&None) {
            before.push(None);
        }
        certain += usize::from(before.len() == 1);
        let mut after = Vec::new();
        for state in &before {
            let found = refill(state.map(|state| state.bucket), shape, now);
            let (expected, left) = outcome(found, shape, denied);
            let full_at = left.last + shape.time_to(left.units, shape.capacity);
            let charged = (!level.short && !denied).then_some(Possible { bucket: left, full_at });
            let next = charged.or(*state);
            if expected == *level && !after.contains(&next) {
                after.push(next);
            }
        }
        assert!(
            !after.is_empty(),
            "{level:?} at {now} under {shape:?}, while the bucket can only be one of {before:?}"
        );
        model.insert(key.to_vec(), after);
    }
    certain
}

#[test]
fn the_store_in_memory_agrees_with_the_pure_functions() {
    let mut random = Rng::with_seed(seed());
    let (mut certain, mut denials) = (0, 0);
    for _ in 0..ROUNDS {
        let limits = random.usize(1..=4);
        let policies = [policy(&mut random, limits), policy(&mut random, limits)];
        let store = Store::default();
        let mut model = Model::new();
        let mut sheet = Sheet::default();
        let (mut now, mut latest) = (random.u64(..1 << 40), 0);
        for _ in 0..STEPS {
            now += match random.u8(..8) {
                0 => wide(&mut random, 10 * 365 * 86_400_000_000),
                1..=3 => 0,
                _ => wide(&mut random, 60_000_000),
            };
            if random.u8(..8) == 0 {
                now = now.saturating_sub(wide(&mut random, 3_600_000_000));
            }
            latest = latest.max(now);
            let policy = &policies[usize::from(random.u8(..16) == 0)];
            apply(policy, random.usize(..USERS), &mut sheet);
            store.charge(policy, &mut sheet, Share::Whole, Micros(now));
            certain += check(policy, &sheet, &mut model, now, latest);
            denials += usize::from(sheet.denied(policy));
        }
        assert!(store.entries() <= model.len() as u64);
    }
    let steps = ROUNDS * STEPS;
    assert!(certain > steps / 2 && denials > steps / 10, "{certain} certain and {denials} denied of {steps}");
}

/// Two threads, each with many requests under the same limits, which lie in different shards: exactly as many pass as the
/// smallest bucket holds, and each of them is charged to all.
#[test]
fn two_threads_never_admit_more_than_there_is_and_charge_all_or_none() {
    const ASKS: u64 = 20_000;
    let bursts = [30_000, 7_000, 11_000, 39_999, 25_000];
    let limit =
        |(number, burst)| Limit::of_each_user(&format!("l{number}"), Quota { rate: "1/h".parse().unwrap(), burst });
    let limits: Vec<Limit> = bursts.into_iter().enumerate().map(limit).collect();
    for some in [&limits[1..2], &limits[..3], &limits] {
        let policy = Policy::new(some, &[], "p").unwrap();
        let store = Store::default();
        let ask = || {
            let mut sheet = Sheet::default();
            apply(&policy, 1, &mut sheet);
            let mut passed = 0;
            for _ in 0..ASKS {
                store.charge(&policy, &mut sheet, Share::Whole, Micros(1));
                passed += u64::from(!sheet.denied(&policy));
            }
            (passed, sheet)
        };
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(ask);
            (ask(), one.join().unwrap())
        });
        assert_eq!(one.0 + other.0, 7_000, "under {} limits", some.len());
        let left: Vec<u64> =
            one.1.outcomes().map(|(applied, level)| policy.shape(applied, Share::Whole).remaining(level)).collect();
        assert_eq!(left, some.iter().map(|limit| limit.quota.burst - 7_000).collect::<Vec<_>>());
    }
}
