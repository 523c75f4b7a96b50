use super::memory::{apply, policy};
use crate::support::lua::{Asked, Virtual};
use crate::support::seed;
use fastrand::Rng;
use rateguard::limit::denied::Denied;
use rateguard::limit::level_of;
use rateguard::limit::policy::{Limit, Mode, Policy, Quota, Sheet};
use rateguard::time::Micros;

const ROUNDS: usize = 80;
const STEPS: usize = 150;
const USERS: usize = 3;

/// The longest way of a question to the store.
const DELAY_MAX_US: u64 = 20_000;

/// The store's clock: somewhere else than ours, and as much faster as NTP may make it.
fn store_clock(offset: u64, now: u64) -> u64 {
    offset + now + now / 2000
}

/// What the script makes of the sheet at this time.
fn ask(store: &mut Virtual, policy: &Policy, sheet: &mut Sheet, at: u64) {
    let keys = sheet.keys().map(|key| String::from_utf8(key.to_vec()).unwrap());
    let buckets: Vec<Asked> = keys
        .zip(sheet.applied())
        .map(|(key, applied)| {
            let shape = &policy.tier(applied).shape;
            let enforce = u64::from(policy.rule(applied).mode == Mode::Enforce);
            (key, [shape.capacity, shape.refill, shape.token, shape.cost, enforce])
        })
        .collect();
    let numbers: Vec<i64> = store.call(&buckets, at).query(&mut store.connection).unwrap();
    for (level, number) in sheet.levels.iter_mut().zip(numbers) {
        *level = Some(level_of(number));
    }
}

/// On any timeline, with other workers between and questions that take their time: whenever the cache denies, the script
/// at that moment would have too, and no bucket holds more than the cache says.
#[test]
fn the_deny_cache_never_denies_what_the_script_would_allow() {
    let mut random = Rng::with_seed(seed());
    let mut store = Virtual::start();
    let (mut cached, mut asked_again) = (0, 0);
    for round in 0..ROUNDS {
        let limits = random.usize(1..=3);
        let policy = policy(&mut random, limits);
        let offset = random.u64(1_000_000_000..1 << 50);
        let mut denied = Denied::default();
        let (mut now, mut sheet) = (random.u64(..1 << 30), Sheet::default());
        for _ in 0..STEPS {
            now += super::wide(&mut random, 1_500_000);
            apply(&policy, round * USERS + random.usize(..USERS), &mut sheet);
            if random.u8(..3) == 0 {
                // Another worker's.
                ask(&mut store, &policy, &mut sheet, store_clock(offset, now));
            } else if denied.denies(&policy, &mut sheet, Micros(now)) {
                let known = sheet.clone();
                ask(&mut store, &policy, &mut sheet, store_clock(offset, now));
                assert!(sheet.denied(&policy), "round {round} at {now}: {known:?}, and the script says {sheet:?}");
                for (bound, level) in known.levels.iter().zip(&sheet.levels) {
                    let holds = bound.zip(*level).is_none_or(|(bound, level)| level.units <= bound.units);
                    assert!(holds, "round {round} at {now}: at most {bound:?}, and the script says {level:?}");
                }
                cached += 1;
            } else {
                let asked = now;
                now += random.u64(..DELAY_MAX_US);
                ask(&mut store, &policy, &mut sheet, store_clock(offset, now));
                if sheet.denied(&policy) {
                    denied.note(&policy, &sheet, Micros(asked));
                    asked_again += 1;
                }
            }
        }
    }
    assert!(cached > 200 && asked_again > 100, "{cached} denials from the cache, {asked_again} from the store");
}

/// A user who asks all the time costs one question for each time it could have passed, and one now and then.
#[test]
fn a_denied_user_costs_one_question_for_each_wait() {
    let mut store = Virtual::start();
    for (rate, seconds, most) in [("1/s", 20, 21), ("5/s", 20, 101), ("1/h", 20, 5), ("1/h", 3600, 721)] {
        let limit = Limit { quota: Quota { rate: rate.parse().unwrap(), burst: 3 }, ..limit(rate) };
        let policy = Policy::new(&[limit], &[], "p").unwrap();
        let (mut denied, mut sheet) = (Denied::default(), Sheet::default());
        let (mut allowed, mut questions) = (0, 0);
        let start = 1 << 40;
        for now in (start..start + seconds * 1_000_000).step_by(5_000) {
            apply(&policy, seconds as usize, &mut sheet);
            if denied.denies(&policy, &mut sheet, Micros(now)) {
                continue;
            }
            ask(&mut store, &policy, &mut sheet, now);
            match sheet.denied(&policy) {
                true => denied.note(&policy, &sheet, Micros(now)),
                false => allowed += 1,
            }
            questions += u64::from(sheet.denied(&policy));
        }
        assert!(questions <= most, "{rate} for {seconds} s: {questions} questions");
        assert!(allowed >= 3, "{rate} for {seconds} s: {allowed} allowed");
    }
}

fn limit(name: &str) -> Limit {
    Limit::of_each_user(name, Quota { rate: "1/s".parse().unwrap(), burst: 1 })
}
