use super::{Quota, quota, wide};
use crate::support::lua::{Asked, Virtual};
use crate::support::seed;
use fastrand::Rng;
use rateguard::limit::bucket::{Bucket, UNITS_MAX, refill};

const CASES: usize = 24_000;

/// Cases that are sent to Redis at once.
const BATCH: usize = 400;

/// Buckets that live on from case to case.
const BUCKETS: usize = 12;

/// As Unix time has it, in microseconds.
const TODAY: u64 = 1_780_000_000_000_000;

/// One bucket of a case: what is asked, and what the pure functions say.
#[derive(Debug)]
struct Part {
    key: usize,
    quota: Quota,
    is_enforced: bool,
    before: Option<Bucket>,
    after: Option<Bucket>,
    level: i64,
    is_charged: bool,
}

/// One request.
#[derive(Debug)]
struct Case {
    now: u64,
    parts: Vec<Part>,
    /// States that are put into Redis before, by key.
    written: Vec<(usize, Option<Bucket>)>,
}

/// The buckets as they should be, and the virtual clock.
struct World {
    random: Rng,
    buckets: Vec<Option<Bucket>>,
    quotas: Vec<Quota>,
    now: u64,
}

fn text_of(bucket: &Bucket) -> String {
    format!("{} {} {}", bucket.units, bucket.last, bucket.token)
}

impl World {
    fn case(&mut self) -> Case {
        self.pass_time();
        let mut case = Case { now: self.now, parts: Vec::new(), written: Vec::new() };
        let mut keys: Vec<usize> = (0..BUCKETS).collect();
        self.random.shuffle(&mut keys);
        for &key in &keys[..self.random.usize(1..=4)] {
            if self.random.u8(..4) == 0 {
                self.buckets[key] = self.state();
                case.written.push((key, self.buckets[key]));
            }
            // A bucket keeps its limit, mostly: else it would only ever be seen by another.
            if self.random.u8(..8) == 0 {
                self.quotas[key] = quota(&mut self.random);
            }
            let is_enforced = self.random.u8(..4) != 0;
            case.parts.push(self.part(key, is_enforced));
        }
        self.decide(&mut case);
        case
    }

    /// Mostly a bit later; at times the same moment, years later, or earlier.
    fn pass_time(&mut self) {
        let random = &mut self.random;
        let later = match random.u8(..8) {
            0 => 0,
            1 => wide(random, 50 * 365 * 86_400_000_000),
            2..=4 => wide(random, 1_000_000),
            _ => wide(random, 86_400_000_000),
        };
        self.now += later;
        if self.random.u8(..8) == 0 {
            self.now = self.now.saturating_sub(wide(&mut self.random, 3_600_000_000)).max(1);
        }
        if self.now > UNITS_MAX {
            self.now = if self.random.bool() { TODAY } else { 4_000_000_000 };
        }
    }

    /// What may stand in Redis: nothing, or a bucket that any limit wrote at about any time.
    fn state(&mut self) -> Option<Bucket> {
        let random = &mut self.random;
        if random.u8(..4) == 0 {
            return None;
        }
        let writer = quota(random).shape;
        let units = match random.u8(..4) {
            0 => 0,
            1 => writer.capacity - wide(random, writer.capacity),
            _ => random.u64(0..=writer.capacity),
        };
        let last = match random.u8(..4) {
            0 => (self.now + wide(random, 3_600_000_000)).min(UNITS_MAX),
            1 => self.now,
            _ => self.now - wide(random, self.now),
        };
        Some(Bucket { units, last, token: writer.token })
    }

    fn part(&self, key: usize, is_enforced: bool) -> Part {
        let before = self.buckets[key];
        let quota = self.quotas[key];
        Part { key, quota, is_enforced, before, after: before, level: 0, is_charged: false }
    }

    /// All are looked at; then all that hold the cost are charged, or none.
    fn decide(&mut self, case: &mut Case) {
        let seen: Vec<Bucket> = case.parts.iter().map(|p| refill(p.before, &p.quota.shape, case.now)).collect();
        let is_short = |part: &Part, seen: &Bucket| !seen.covers(&part.quota.shape);
        let denied = case.parts.iter().zip(&seen).any(|(part, seen)| part.is_enforced && is_short(part, seen));
        for (part, seen) in case.parts.iter_mut().zip(seen) {
            let units = i64::try_from(seen.units).unwrap();
            part.level = units;
            if is_short(part, &seen) {
                part.level = -1 - units;
            } else if !denied {
                let charged = seen.charged(&part.quota.shape);
                part.level = i64::try_from(charged.units).unwrap();
                part.after = Some(charged);
                part.is_charged = true;
                self.buckets[part.key] = part.after;
            }
        }
    }
}

impl Part {
    fn asked(&self) -> Asked {
        let shape = &self.quota.shape;
        let enforce = u64::from(self.is_enforced);
        (format!("b{}", self.key), [shape.capacity, shape.refill, shape.token, shape.cost, enforce])
    }

    /// The time to live that a charge may set: that to full, rounded up to the next or next but one millisecond.
    fn check_ttl(&self, ttl_ms: Option<u64>, case: &Case) {
        if let (true, Some(after)) = (self.is_charged, self.after) {
            let ttl_us = ttl_ms.unwrap_or_else(|| panic!("no time to live: {case:?}")) * 1000;
            let full_us = self.quota.shape.time_to(after.units, self.quota.shape.capacity);
            assert!((full_us..=full_us + 2000).contains(&ttl_us), "{ttl_us} for {full_us} us in {self:?} of {case:?}");
        }
    }
}

/// Sends the cases in one pipeline and compares each answer and each state left behind.
fn check(server: &mut Virtual, cases: &[Case]) {
    let mut pipeline = redis::pipe();
    for case in cases {
        for (key, state) in &case.written {
            match state {
                Some(bucket) => pipeline.set(format!("b{key}"), text_of(bucket)).ignore(),
                None => pipeline.del(format!("b{key}")).ignore(),
            };
        }
        let asked: Vec<Asked> = case.parts.iter().map(Part::asked).collect();
        pipeline.add_command(server.call(&asked, case.now));
        let names: Vec<&String> = asked.iter().map(|(key, _)| key).collect();
        pipeline.cmd("MGET").arg(&names);
        pipeline.cmd("MGET").arg(names.iter().map(|key| format!("ttl:{key}")).collect::<Vec<_>>());
    }
    type Answer = (Vec<i64>, Vec<Option<String>>, Vec<Option<u64>>);
    let answers: Vec<redis::Value> = pipeline.query(&mut server.connection).unwrap();
    assert_eq!(answers.len(), 3 * cases.len());
    for (case, answer) in cases.iter().zip(answers.chunks(3)) {
        let answer = redis::Value::Array(answer.to_vec());
        let (levels, states, ttls): Answer =
            redis::from_redis_value(&answer).unwrap_or_else(|e| panic!("{e}: {case:?}"));
        assert_eq!(levels, case.parts.iter().map(|part| part.level).collect::<Vec<_>>(), "levels of {case:#?}");
        let expected = case.parts.iter().map(|part| part.after.as_ref().map(text_of));
        assert_eq!(states, expected.collect::<Vec<_>>(), "states after {case:#?}");
        for (part, ttl_ms) in case.parts.iter().zip(ttls) {
            part.check_ttl(ttl_ms, case);
        }
    }
}

#[test]
fn script_and_pure_functions_agree_bit_for_bit() {
    let mut server = Virtual::start();
    let mut random = Rng::with_seed(seed());
    let quotas = (0..BUCKETS).map(|_| quota(&mut random)).collect();
    let mut world = World { random, buckets: vec![None; BUCKETS], quotas, now: TODAY };
    let (mut admitted, mut denied, mut changed) = (0, 0, 0);
    for _ in 0..CASES / BATCH {
        let cases: Vec<Case> = (0..BATCH).map(|_| world.case()).collect();
        check(&mut server, &cases);
        for case in &cases {
            let is_denied = case.parts.iter().any(|part| part.is_enforced && part.level < 0);
            denied += usize::from(is_denied);
            admitted += usize::from(!is_denied);
            let by_other = |p: &&Part| p.before.is_some_and(|before| before.token != p.quota.shape.token);
            changed += case.parts.iter().filter(by_other).count();
        }
    }
    // A test that only ever sees one side proves little.
    assert!(admitted > CASES / 10 && denied > CASES / 10 && changed > CASES / 10, "{admitted} {denied} {changed}");
}
