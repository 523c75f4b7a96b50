use super::memory::apply;
use super::{Quota, quota, wide};
use crate::support::lua::{Asked, Virtual};
use crate::support::seed;
use fastrand::Rng;
use rateguard::limit::bucket::{Bucket, Level, Shape, refill};
use rateguard::limit::denied::Denied;
use rateguard::limit::lease::{Ask, BACK, Granted, Leases, Return};
use rateguard::limit::out::{Grant, Kept, Rest, Want};
use rateguard::limit::policy::{self, Limit, Mode, Policy, Sheet};
use rateguard::time::Micros;
use std::collections::HashMap;

/// As Unix time has it, in microseconds.
const TODAY: u64 = 1_780_000_000_000_000;

fn back_us() -> u64 {
    u64::try_from(BACK.as_micros()).unwrap()
}

/// The store as the pure functions have it.
#[derive(Default)]
struct Model {
    kept: HashMap<String, Kept>,
}

/// What is asked of one bucket.
#[derive(Clone, Debug)]
struct Part {
    key: String,
    shape: Shape,
    is_enforced: bool,
    want: Want,
}

impl Model {
    /// What the script answers, and does.
    fn ask(&mut self, parts: &[Part], back: Option<u64>, now: u64) -> Vec<i64> {
        let stored = |part: &Part| self.kept.get(&part.key).copied();
        let seen: Vec<Kept> = parts.iter().map(|part| Kept::at(stored(part), &part.shape, now)).collect();
        let is_short = |part: &Part, seen: &Kept| !seen.bucket.covers(&part.shape);
        let is_denied = parts.iter().zip(&seen).any(|(part, seen)| part.is_enforced && is_short(part, seen));
        let may_gain = parts.iter().filter_map(stored).any(|kept| kept.may_gain(now));
        let (mut levels, mut units, mut besides) = (Vec::new(), Vec::new(), Vec::new());
        for (part, mut seen) in parts.iter().zip(seen) {
            let mut grant = Grant::default();
            if is_short(part, &seen) {
                levels.push(-1 - i64::try_from(seen.bucket.units).unwrap());
            } else {
                if !is_denied {
                    seen.bucket = seen.bucket.charged(&part.shape);
                    grant = back.map_or(grant, |back| seen.lease(&part.shape, &part.want, back, now));
                    self.kept.insert(part.key.clone(), seen);
                }
                levels.push(i64::try_from(seen.bucket.units).unwrap());
            }
            units.push(i64::try_from(grant.units).unwrap());
            besides.push(i64::try_from(grant.beside).unwrap());
        }
        match (is_denied, back) {
            (true, _) if may_gain => levels.push(-1),
            (false, Some(_)) => levels.extend([i64::try_from(now).unwrap()].into_iter().chain(units).chain(besides)),
            _ => {}
        }
        levels
    }

    fn give_back(&mut self, key: &str, shape: &Shape, rest: &Rest, back: u64, now: u64) -> u64 {
        let stored = self.kept.get(key).copied();
        let Some((kept, given)) = Kept::give_back(stored, shape, rest, back, now) else { return 0 };
        self.kept.insert(key.into(), kept);
        given
    }
}

fn text_of(kept: &Kept) -> String {
    let Bucket { units, last, token } = kept.bucket;
    let out = kept.out.map(|out| format!(" {} {} {}", out.until, out.current, out.prior));
    format!("{units} {last} {token}{}", out.unwrap_or_default())
}

/// The longest of the times to full and to the end of leases, rounded up to the next or next but one millisecond.
fn check_ttl(ttl_ms: u64, kept: &Kept, shape: &Shape, what: &str) {
    let full_us = shape.time_to(kept.bucket.units, shape.capacity);
    let wait_us = full_us.max(kept.out.map_or(0, |out| out.until - kept.bucket.last));
    assert!((wait_us..=wait_us + 2000).contains(&(ttl_ms * 1000)), "{ttl_ms} ms for {wait_us} us: {what}");
}

/// A timeline on the real scripts and on the pure functions.
struct Timeline {
    server: Virtual,
    model: Model,
    random: Rng,
    now: u64,
    round: usize,
    back: u64,
    quotas: Vec<Quota>,
    /// Grants that are not settled yet, by bucket.
    held: Vec<(usize, Shape, Rest)>,
    leased: usize,
    given: usize,
    flagged: usize,
    settled: usize,
}

impl Timeline {
    fn step(&mut self) {
        let random = &mut self.random;
        self.now += match random.u8(..16) {
            0 => wide(random, 3_600_000_000),
            1..=3 => 0,
            _ => wide(random, self.back),
        };
        if random.u8(..32) == 0 {
            self.now -= wide(random, 2 * self.back);
        }
        match self.random.u8(..4) {
            0 => self.give_back(),
            _ => self.ask(),
        }
    }

    fn key(&self, bucket: usize) -> String {
        format!("r{}b{bucket}", self.round)
    }

    fn ask(&mut self) {
        let mut buckets: Vec<usize> = (0..self.quotas.len()).collect();
        self.random.shuffle(&mut buckets);
        buckets.truncate(self.random.usize(1..=2));
        let is_plain = self.random.u8(..3) == 0;
        let mut parts = Vec::new();
        for &bucket in &buckets {
            if self.random.u8(..64) == 0 {
                self.quotas[bucket] = quota(&mut self.random);
            }
            let shape = self.quotas[bucket].shape;
            let mut want = Want::default();
            if !is_plain && self.random.u8(..4) > 0 {
                want.units = wide(&mut self.random, (shape.capacity / shape.cost).min(100)) * shape.cost;
            }
            let mine = self.held.iter().position(|(of, ..)| *of == bucket);
            if let Some(mine) = mine.filter(|_| !is_plain && self.random.bool()) {
                let (.., rest) = self.held.swap_remove(mine);
                (want.granted, want.settled) = (rest.granted, rest.leased);
                self.settled += 1;
            }
            parts.push(Part { key: self.key(bucket), shape, is_enforced: self.random.u8(..4) > 0, want });
        }
        let mut trailing = Vec::new();
        if !is_plain {
            trailing.push(self.back);
            trailing.extend(parts.iter().flat_map(|part| [part.want.units, part.want.granted, part.want.settled]));
        }
        let asked = parts.iter().map(|part| {
            let Shape { capacity, refill, token, cost } = part.shape;
            (part.key.clone(), [capacity, refill, token, cost, u64::from(part.is_enforced)])
        });
        let asked: Vec<Asked> = asked.collect();
        let command = self.server.call_for(&asked, &trailing, self.now);
        let answer: Vec<i64> = command.query(&mut self.server.connection).unwrap();
        let expected = self.model.ask(&parts, (!is_plain).then_some(self.back), self.now);
        assert_eq!(answer, expected, "at {} of {parts:?}", self.now);
        self.flagged += usize::from(answer.len() == parts.len() + 1);
        if answer.len() == 3 * parts.len() + 1 {
            for (i, part) in parts.iter().enumerate() {
                let [leased, beside] = [1, 2].map(|n| u64::try_from(answer[n * parts.len() + 1 + i]).unwrap());
                if leased > 0 {
                    let level = u64::try_from(answer[i]).unwrap() + beside;
                    let rest = Rest { unspent: leased, leased, level, granted: self.now };
                    self.held.push((buckets[i], part.shape, rest));
                    self.leased += 1;
                }
            }
        }
        let is_allowed = !parts.iter().zip(&answer).any(|(part, level)| part.is_enforced && *level < 0);
        for (part, level) in parts.iter().zip(&answer) {
            self.compare(&part.key, &part.shape, is_allowed && *level >= 0);
        }
    }

    fn give_back(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (bucket, shape, mut rest) = self.held.swap_remove(self.random.usize(..self.held.len()));
        rest.unspent = self.random.u64(0..=rest.leased);
        let key = self.key(bucket);
        let Shape { capacity, refill, token, .. } = shape;
        let numbers = [capacity, refill, token, rest.unspent, rest.leased, rest.level, rest.granted, self.back];
        let command = self.server.give_back(&key, numbers, self.now);
        let given: u64 = command.query(&mut self.server.connection).unwrap();
        let before = self.model.kept.get(&key).copied();
        let expected = self.model.give_back(&key, &shape, &rest, self.back, self.now);
        assert_eq!(given, expected, "at {} of {rest:?} to {before:?} under {shape:?}", self.now);
        self.given += usize::from(given > 0);
        self.compare(&key, &shape, self.model.kept.get(&key).copied() != before);
    }

    /// What stands in Redis is what the pure functions have left, and for as long where it was written.
    fn compare(&mut self, key: &str, shape: &Shape, is_written: bool) {
        let names = [key.to_string(), format!("ttl:{key}")];
        let stored: (Option<String>, Option<u64>) =
            redis::cmd("MGET").arg(&names).query(&mut self.server.connection).unwrap();
        let kept = self.model.kept.get(key);
        assert_eq!(stored.0, kept.map(text_of), "at {}", self.now);
        if let (true, Some(kept)) = (is_written, kept) {
            check_ttl(stored.1.unwrap(), kept, shape, &format!("{kept:?} at {}", self.now));
        }
    }
}

#[test]
fn scripts_and_pure_functions_agree_on_leases_bit_for_bit() {
    let seed = seed();
    let random = Rng::with_seed(seed);
    let mut timeline = Timeline {
        server: Virtual::start(),
        model: Model::default(),
        random,
        now: TODAY,
        round: 0,
        back: back_us(),
        quotas: Vec::new(),
        held: Vec::new(),
        leased: 0,
        given: 0,
        flagged: 0,
        settled: 0,
    };
    for round in 0..60 {
        timeline.round = round;
        timeline.back = if round % 3 == 0 { wide(&mut timeline.random, 10_000_000) } else { back_us() };
        timeline.quotas = (0..3).map(|_| quota(&mut timeline.random)).collect();
        timeline.held.clear();
        for _ in 0..120 {
            timeline.step();
        }
    }
    let Timeline { leased, given, flagged, settled, .. } = timeline;
    assert!(leased > 400 && given > 100 && flagged > 20 && settled > 100, "{leased} {given} {flagged} {settled}");
}

/// A worker with what it knows and holds.
#[derive(Default)]
struct Worker {
    leases: Leases,
    denied: Denied,
    /// An answer on its way: to which sheet and question, of when, and when it arrives.
    answer: Option<(Sheet, Ask, Option<Granted>, u64, u64)>,
}

/// Several workers on one store. Times are of the workers' clock; the store's is elsewhere and of another speed.
struct Crowd {
    random: Rng,
    policy: Policy,
    model: Model,
    /// What each bucket would be if every request were charged as it passes.
    ideal: HashMap<String, Bucket>,
    workers: Vec<Worker>,
    /// How many of them clients ask at present.
    busy: usize,
    /// What is on its way back, and when it arrives.
    returns: Vec<(u64, Return)>,
    now: u64,
    /// In parts of 2 000 more than ours: from -1 to 1.
    speed: i64,
    leased: usize,
    stored: usize,
    known: usize,
}

fn text(key: &[u8]) -> String {
    String::from_utf8(key.to_vec()).unwrap()
}

impl Crowd {
    fn store_clock(&self, at: u64) -> u64 {
        TODAY.checked_add_signed(at as i64 + at as i64 * self.speed / 2000).unwrap()
    }

    fn parts(&self, sheet: &Sheet, ask: Option<&Ask>) -> Vec<Part> {
        let wants = ask.map_or(Ask::default(), |ask| *ask).wants;
        let parts = sheet.applied().iter().zip(sheet.keys()).zip(wants);
        parts
            .map(|((applied, key), want)| Part {
                key: text(key),
                shape: self.policy.tier(applied).shape,
                is_enforced: self.policy.rule(applied).mode == Mode::Enforce,
                want,
            })
            .collect()
    }

    /// Never over: a request that passes is one that an ideal bucket lets pass, which is what `burst + rate * t` in every
    /// window means.
    fn admit(&mut self, sheet: &Sheet) {
        let at = self.store_clock(self.now);
        for ((applied, level), key) in sheet.outcomes().zip(sheet.keys()) {
            if level.short {
                continue;
            }
            let shape = &self.policy.tier(applied).shape;
            let found = refill(self.ideal.get(&text(key)).copied(), shape, at);
            assert!(found.covers(shape), "over the limit at {}: {found:?} under {shape:?}", self.now);
            self.ideal.insert(text(key), found.charged(shape));
        }
    }

    fn step(&mut self, user: usize) {
        self.arrive();
        let who = self.random.usize(..self.busy);
        let (now, at) = (Micros(self.now), self.store_clock(self.now));
        let mut sheet = Sheet::default();
        apply(&self.policy, user, &mut sheet);
        let worker = &mut self.workers[who];
        if worker.leases.spend(&self.policy, &mut sheet, now) {
            self.leased += 1;
            return self.admit(&sheet);
        }
        if worker.denied.denies(&self.policy, &mut sheet, now) {
            let parts = self.parts(&sheet, None);
            let mut other = Model { kept: self.model.kept.clone() };
            let levels = other.ask(&parts, None, at);
            let denies = parts.iter().zip(&levels).any(|(part, level)| part.is_enforced && *level < 0);
            assert!(denies, "a false denial at {}: {sheet:?}, and the store says {levels:?}", self.now);
            self.known += 1;
            return;
        }
        // The question was sent a while ago.
        let asked = Micros(self.now - self.random.u64(..3000).min(self.now));
        let ask = match worker.answer {
            None => worker.leases.ask(&self.policy, &sheet, asked),
            Some(_) => None,
        };
        let parts = self.parts(&sheet, ask.as_ref());
        let answer = self.model.ask(&parts, ask.map(|_| back_us()), at);
        self.stored += 1;
        let levels = answer.iter().map(|&number| rateguard::limit::level_of(number));
        levels.zip(&mut sheet.levels).for_each(|(level, place): (Level, _)| *place = Some(level));
        let worker = &mut self.workers[who];
        if !sheet.denied(&self.policy) {
            self.admit(&sheet);
        } else if answer.len() == parts.len() {
            worker.denied.note(&self.policy, &sheet, asked);
        }
        let Some(ask) = ask else { return };
        let count = parts.len();
        let granted = (answer.len() == 3 * count + 1).then(|| {
            let number = |at: usize| u64::try_from(answer[at]).unwrap();
            let mut granted = Granted { at: number(count), ..Granted::default() };
            for (i, grant) in granted.grants.iter_mut().take(count).enumerate() {
                *grant = Grant { units: number(count + 1 + i), beside: number(2 * count + 1 + i) };
            }
            granted
        });
        // Now and then the answer does not come in time.
        let granted = granted.filter(|_| self.random.u8(..32) > 0);
        let arrives = self.now + self.random.u64(..3000);
        self.workers[who].answer = Some((sheet, ask, granted, asked.0, arrives));
    }

    /// What has arrived by now; and what the workers send back.
    fn arrive(&mut self) {
        for worker in &mut self.workers {
            if let Some((sheet, ask, granted, asked, _)) = worker.answer.take_if(|answer| answer.4 <= self.now) {
                worker.leases.settle(&self.policy, &sheet, &ask, granted.as_ref(), Micros(asked));
            }
            if self.random.u8(..16) == 0 {
                for back in worker.leases.returns(self.random.u8(..8) == 0, Micros(self.now)) {
                    self.returns.push((self.now + self.random.u64(..5000), back));
                }
            }
            if self.random.u16(..2000) == 0 {
                // It has died, and another takes its place.
                *worker = Worker::default();
            }
        }
        let at = self.store_clock(self.now);
        for (_, back) in self.returns.extract_if(.., |(arrives, _)| *arrives <= self.now) {
            self.model.give_back(&text(&back.key), &back.shape, &back.rest, back_us(), at);
        }
    }
}

/// Limits that are emptied and filled within a second or two, so that leases meet full and empty buckets.
fn limits(random: &mut Rng) -> Vec<Limit> {
    let limit = |i: usize, random: &mut Rng| {
        let cost = if random.bool() { 1 } else { random.u64(1..=3) };
        let burst = random.u64(2 * cost..=400);
        let rate = format!("{}/s", random.u64(1..=2 * burst)).parse().unwrap();
        Limit {
            cost,
            mode: if random.u8(..6) == 0 { Mode::Shadow } else { Mode::Enforce },
            lease: random.u64(cost..=burst / 2),
            ..Limit::of_each_user(&format!("l{i}"), policy::Quota { rate, burst })
        }
    };
    let count = if random.bool() { 1 } else { random.usize(1..=3) };
    (0..count).map(|i| limit(i, random)).collect()
}

/// On any timeline, with any number of workers that lease, spend, give back and die: never over in any window, and what
/// a worker knows to be denied the store would have denied.
#[test]
fn workers_that_lease_never_pass_the_limit_nor_deny_falsely() {
    let mut random = Rng::with_seed(seed());
    let (mut leased, mut stored, mut known) = (0, 0, 0);
    for _ in 0..200 {
        let policy = Policy::new(&limits(&mut random), &[], "p").unwrap();
        let workers = random.usize(1..=4);
        let mut crowd = Crowd {
            policy,
            model: Model::default(),
            ideal: HashMap::new(),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            busy: workers,
            returns: Vec::new(),
            now: random.u64(..1 << 30),
            speed: random.i64(-1..=1),
            leased: 0,
            stored: 0,
            known: 0,
            random: Rng::with_seed(random.u64(..)),
        };
        let mut pause_max = 1000;
        for _ in 0..1500 {
            match crowd.random.u16(..300) {
                0 => crowd.now += crowd.random.u64(..1_500_000),
                1..=3 => pause_max = [200, 1000, 5000, 20_000][crowd.random.usize(..4)],
                4..=5 => crowd.busy = crowd.random.usize(1..=workers),
                // Everybody at once: all that there is, is taken.
                6 => {
                    let busy = std::mem::replace(&mut crowd.busy, workers);
                    (0..600).for_each(|_| crowd.step(0));
                    crowd.busy = busy;
                }
                _ => crowd.now += crowd.random.u64(..pause_max),
            }
            let user = usize::from(crowd.random.u8(..8) == 0);
            crowd.step(user);
        }
        leased += crowd.leased;
        stored += crowd.stored;
        known += crowd.known;
    }
    assert!(leased > 20_000 && stored > 20_000 && known > 5_000, "{leased} leased, {stored} asked, {known} known");
}
