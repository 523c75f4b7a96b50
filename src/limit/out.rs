//! What the store keeps of units that are out on lease: the twin of that part of `lua/token_bucket.lua`, and of
//! `lua/give_back.lua`.
//!
//! Units leased are deducted at once, and may come back for a while. So that this never makes tokens, a lease knows what
//! stood beside it (the bucket, and what others had on lease), and loses of its units what would not fit into the bucket
//! with all that, refilled: a bucket and its leases never hold more than its capacity, and gain no more than its refill.
//! What others have on lease is counted in two generations, so that what a dead gateway held is forgotten. Pure.

use super::bucket::{Bucket, Shape, refill};

/// Units of a bucket that may be out on lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Out {
    /// The last microsecond, on the store's clock, in which any may come back.
    pub until: u64,
    /// Units granted after `until` - 2 `back`.
    pub current: u64,
    /// Units granted before.
    pub prior: u64,
}

/// A bucket as the store keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The bucket.
    pub bucket: Bucket,
    /// What of it is out on lease; `None` where nothing is.
    pub out: Option<Out>,
}

/// What a call asks for of one bucket beyond its cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Units, a multiple of the cost; 0 for none.
    pub units: u64,
    /// When the asker's last lease was granted.
    pub granted: u64,
    /// How many units it was of, none of which is left; 0 for none.
    pub settled: u64,
}

/// What a call was granted of one bucket beyond its cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Units leased.
    pub units: u64,
    /// Units that others may have on lease.
    pub beside: u64,
}

/// What is given back of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Units that are unspent.
    pub unspent: u64,
    /// Units that the lease was of.
    pub leased: u64,
    /// What the bucket held right after the grant, with what others had on lease.
    pub level: u64,
    /// The time of the grant.
    pub granted: u64,
}

impl Kept {
    /// The bucket at `now`, refilled, with what of it may still come back. Under another limit nothing may, once it is
    /// written.
    pub fn at(stored: Option<Kept>, shape: &Shape, now: u64) -> Kept {
        let bucket = refill(stored.map(|kept| kept.bucket), shape, now);
        let same = stored.filter(|kept| kept.bucket.token == shape.token);
        let out = same.and_then(|kept| kept.out).filter(|out| out.until >= bucket.last);
        Kept { bucket, out }
    }

    /// Whether units may come back to it after `now`, so that a denial by it is not to be remembered.
    pub fn may_gain(&self, now: u64) -> bool {
        self.out.is_some_and(|out| out.until >= self.bucket.last.max(now))
    }

    /// Takes the units wanted, after the charge at `now`; `back` is how long they may come back.
    pub fn lease(&mut self, shape: &Shape, want: &Want, back: u64, now: u64) -> Grant {
        if self.bucket.last != now {
            // A bucket whose clock is ahead of the store's leases nothing: its time is not that of the reply.
            return Grant::default();
        }
        let fresh = Out { until: now + 2 * back - 1, current: 0, prior: 0 };
        let mut out = self.out.unwrap_or(fresh);
        if now + back > out.until {
            out = Out { until: out.until + back, current: 0, prior: out.current };
        }
        if want.settled > 0 && now.saturating_sub(want.granted) <= back {
            let held = out.generation(want.granted, back);
            *held = held.saturating_sub(want.settled);
        }
        let beside = out.current + out.prior;
        let mut units = 0;
        // Never the last tokens, and none that would have overflowed.
        if self.bucket.units + beside <= shape.capacity {
            let half = self.bucket.units / 2;
            units = want.units.min(half - half % shape.cost);
            self.bucket.units -= units;
            out.current += units;
        }
        self.out = Some(out).filter(|out| out.current + out.prior > 0);
        Grant { units, beside }
    }

    /// Gives units back at `now`: the bucket then, and how many came back; `None` where nothing is to be given.
    pub fn give_back(stored: Option<Kept>, shape: &Shape, rest: &Rest, back: u64, now: u64) -> Option<(Kept, u64)> {
        let kept = stored.filter(|kept| kept.bucket.token == shape.token)?;
        let mut bucket = refill(Some(kept.bucket), shape, now);
        let mut out = kept.out?;
        let age = bucket.last.checked_sub(rest.granted).filter(|&age| age <= back)?;
        let held = out.generation(rest.granted, back);
        // What is not there has been settled, or belongs to a bucket that was removed.
        *held = held.checked_sub(rest.leased)?;
        let given = rest.unspent.min(room(shape, rest.level, age)).min(shape.capacity - bucket.units);
        bucket.units += given;
        Some((Kept { bucket, out: Some(out).filter(|out| out.current + out.prior > 0) }, given))
    }
}

impl Out {
    fn generation(&mut self, granted: u64, back: u64) -> &mut u64 {
        match granted + 2 * back > self.until {
            true => &mut self.current,
            false => &mut self.prior,
        }
    }
}

/// Units that still fit into the bucket beside all that stood there at the grant, refilled since.
pub fn room(shape: &Shape, level: u64, age: u64) -> u64 {
    shape.capacity.saturating_sub(level.saturating_add(age.saturating_mul(shape.refill)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACK: u64 = 1_000_000;

    fn shape(rate: &str, burst: u64) -> Shape {
        Shape::new(rate.parse().unwrap(), burst, 1).unwrap()
    }

    /// A call that is charged one token and wants so many more.
    fn take(stored: Option<Kept>, shape: &Shape, tokens: u64, now: u64) -> (Kept, Rest) {
        let mut kept = Kept::at(stored, shape, now);
        kept.bucket = kept.bucket.charged(shape);
        let want = Want { units: tokens * shape.token, ..Want::default() };
        let grant = kept.lease(shape, &want, BACK, now);
        let level = kept.bucket.units + grant.beside;
        (kept, Rest { unspent: grant.units, leased: grant.units, level, granted: now })
    }

    /// Nothing is spent after two leases; one goes back, and then the bucket fills. What is left of the other must go as
    /// the bucket takes its place: with the bucket alone in mind it would seem to have room for 15 tokens more.
    #[test]
    fn what_one_gives_back_leaves_no_room_for_what_another_holds() {
        let shape = shape("100/s", 102);
        let (kept, one) = take(None, &shape, 50, 0);
        let (kept, other) = take(Some(kept), &shape, 25, 0);
        assert_eq!([one, other].map(|rest| rest.leased / shape.token), [50, 25]);
        let (kept, given) = Kept::give_back(Some(kept), &shape, &one, BACK, 1000).unwrap();
        assert_eq!(given / shape.token, 50);
        for later in (0..BACK).step_by(1000) {
            let bucket = refill(Some(kept.bucket), &shape, 1000 + later);
            let held = other.unspent.min(room(&shape, other.level, 1000 + later));
            assert!(bucket.units + held <= shape.capacity, "after {later} us: {bucket:?} and {held}");
        }
    }

    #[test]
    fn never_the_last_tokens() {
        let shape = shape("1/d", 10);
        let (kept, rest) = take(None, &shape, 100, 0);
        assert_eq!((kept.bucket.units / shape.token, rest.leased / shape.token), (5, 4));
        let (kept, rest) = take(Some(kept), &shape, 100, 0);
        assert_eq!((kept.bucket.units / shape.token, rest.leased / shape.token), (2, 2));
        let (_, rest) =
            take(Some(Kept { bucket: Bucket { units: 2 * shape.token, ..kept.bucket }, ..kept }), &shape, 9, 0);
        assert_eq!(rest.leased, 0);
    }

    #[test]
    fn a_rest_comes_back_once_and_not_late() {
        let shape = shape("1/d", 100);
        let (kept, rest) = take(None, &shape, 10, 0);
        assert!(kept.may_gain(BACK));
        let (back, given) = Kept::give_back(Some(kept), &shape, &rest, BACK, BACK).unwrap();
        assert_eq!((given, back.out), (rest.unspent, None));
        assert_eq!(Kept::give_back(Some(back), &shape, &rest, BACK, BACK), None);
        assert_eq!(Kept::give_back(Some(kept), &shape, &rest, BACK, BACK + 1), None);
        assert_eq!(Kept::give_back(None, &shape, &rest, BACK, 1), None);
    }

    #[test]
    fn what_a_dead_gateway_held_is_forgotten_while_others_go_on() {
        let shape = shape("1/d", 1000);
        let (mut kept, dead) = take(None, &shape, 10, 0);
        let mut beside = Vec::new();
        for now in (1..=40).map(|step| step * BACK / 10) {
            let rest;
            (kept, rest) = take(Some(kept), &shape, 1, now);
            beside.push(rest.level - kept.bucket.units);
            kept = Kept::give_back(Some(kept), &shape, &rest, BACK, now).unwrap().0;
        }
        assert_eq!((beside[0], beside[39]), (dead.leased, 0));
    }
}
