//! The token bucket: exact integer arithmetic, the twin of `lua/token_bucket.lua`.
//!
//! A bucket is counted in *units*, chosen for each limit so that both a token and a microsecond of refill are a whole
//! number of them: nothing is ever rounded while tokens are counted. Every number stays below 2^53, where Lua's
//! doubles are exact, so that the script and this file give the same answer to the last bit.
//! Pure.

use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The largest number of units that a bucket may hold: beyond it a double no longer counts every integer.
pub const UNITS_MAX: u64 = (1 << 53) - 1;

/// The longest period a rate may name: one that a bucket needs years for is a typing error.
pub const PERIOD_MAX_US: u64 = 366 * 86_400 * 1_000_000;

/// `tokens` for every `period_us` microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens gained in one period, at least 1.
    pub tokens: u64,
    /// The period in microseconds, at least 1 second and at most [`PERIOD_MAX_US`].
    pub period_us: u64,
}

/// Why a text is no rate.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadRate {
    /// Not of the form `N/unit`.
    #[error("a rate is written \"5/s\", \"100/min\", \"1000/h\", \"10000/d\" or \"10/15s\"")]
    Form,
    /// Nothing would ever be allowed.
    #[error("a rate of zero would deny everything for ever; use a rate of at least 1")]
    Zero,
    /// More than can be counted exactly.
    #[error("the number is too large")]
    Overflow,
}

const SECOND_US: u64 = 1_000_000;
const UNIT_NAMES: [(&str, u64, &str); 7] = [
    ("s", SECOND_US, "second"),
    ("sec", SECOND_US, "second"),
    ("min", 60 * SECOND_US, "minute"),
    ("m", 60 * SECOND_US, "minute"),
    ("h", 3_600 * SECOND_US, "hour"),
    ("d", 86_400 * SECOND_US, "day"),
    ("day", 86_400 * SECOND_US, "day"),
];

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Rate, BadRate> {
        let (count, period) = text.split_once('/').ok_or(BadRate::Form)?;
        let (count, period) = (count.trim(), period.trim());
        let digits = period.find(|c: char| !c.is_ascii_digit()).ok_or(BadRate::Form)?;
        let (times, unit) = period.split_at(digits);
        let unit_us = UNIT_NAMES.iter().find(|(name, ..)| *name == unit).ok_or(BadRate::Form)?.1;
        let tokens = whole(count)?;
        let times = if times.is_empty() { 1 } else { whole(times)? };
        if tokens == 0 || times == 0 {
            return Err(BadRate::Zero);
        }
        let period_us = times.checked_mul(unit_us).ok_or(BadRate::Overflow)?;
        if period_us > PERIOD_MAX_US {
            return Err(BadRate::Overflow);
        }
        Ok(Rate { tokens, period_us })
    }
}

fn whole(text: &str) -> Result<u64, BadRate> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadRate::Form);
    }
    text.parse().map_err(|_| BadRate::Overflow)
}

impl Rate {
    /// The period as a count of its largest whole unit, and the unit's short and long name.
    fn period(&self) -> (u64, &'static str, &'static str) {
        let fits = |unit_us: &u64| self.period_us.is_multiple_of(*unit_us);
        let (short, unit_us, long) = UNIT_NAMES
            .into_iter()
            .rev()
            .filter(|(short, ..)| matches!(*short, "s" | "min" | "h" | "d"))
            .find(|(_, unit_us, _)| fits(unit_us) && (self.period_us == *unit_us || *unit_us == SECOND_US))
            .unwrap_or(UNIT_NAMES[0]);
        (self.period_us / unit_us, short, long)
    }

    /// `5 requests per second`, `10 requests per 15 seconds`.
    pub fn words(&self, noun: &str) -> String {
        let plural = if self.tokens == 1 { "" } else { "s" };
        match self.period() {
            (1, _, unit) => format!("{} {noun}{plural} per {unit}", self.tokens),
            (times, _, unit) => format!("{} {noun}{plural} per {times} {unit}s", self.tokens),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.period() {
            (1, unit, _) => write!(f, "{}/{unit}", self.tokens),
            (times, unit, _) => write!(f, "{}/{times}{unit}", self.tokens),
        }
    }
}

/// A limit in units: what the arithmetic needs and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Units of a full bucket.
    pub capacity: u64,
    /// Units gained in a microsecond.
    pub refill: u64,
    /// Units of one token.
    pub token: u64,
    /// Units that one request takes.
    pub cost: u64,
}

/// Why a limit cannot be counted exactly, or never lets anything pass.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadShape {
    /// A bucket without room for one token denies everything.
    #[error("burst must be at least 1")]
    NoBurst,
    /// A free request is not limited.
    #[error("cost must be at least 1")]
    NoCost,
    /// No request could ever pass.
    #[error("burst {burst} is below cost {cost}, so no request could ever pass; raise burst to at least {cost}")]
    BurstBelowCost {
        /// Tokens of a full bucket.
        burst: u64,
        /// Tokens that a request takes.
        cost: u64,
    },
    /// The units of a full bucket pass 2^53.
    #[error(
        "rate {rate} with burst {burst} cannot be counted exactly (its bucket needs more than 2^53 units); \
         use a smaller burst, or a rate whose numbers share a larger divisor"
    )]
    NotExact {
        /// The rate as written.
        rate: Rate,
        /// Tokens of a full bucket.
        burst: u64,
    },
}

impl Shape {
    /// Chooses the units: with `rate` = n tokens in P microseconds and g = gcd(n, P), a token is P/g units and a
    /// microsecond refills n/g of them.
    pub fn new(rate: Rate, burst: u64, cost: u64) -> Result<Shape, BadShape> {
        if burst == 0 {
            return Err(BadShape::NoBurst);
        }
        if cost == 0 {
            return Err(BadShape::NoCost);
        }
        if burst < cost {
            return Err(BadShape::BurstBelowCost { burst, cost });
        }
        let shared = gcd(rate.tokens, rate.period_us);
        let token = rate.period_us / shared;
        let refill = rate.tokens / shared;
        let not_exact = BadShape::NotExact { rate, burst };
        let capacity = token.checked_mul(burst).filter(|&units| units <= UNITS_MAX).ok_or(not_exact)?;
        if refill > UNITS_MAX {
            return Err(not_exact);
        }
        Ok(Shape { capacity, refill, token, cost: cost * token })
    }

    /// Microseconds until a bucket that holds `units` holds `wanted`; zero where it does already.
    pub fn time_to(&self, units: u64, wanted: u64) -> u64 {
        wanted.saturating_sub(units).div_ceil(self.refill)
    }

    /// Whole tokens in a bucket.
    pub fn remaining(&self, level: &Level) -> u64 {
        level.units / self.token
    }

    /// Microseconds until a bucket has one token more; zero where it is full.
    pub fn until_next_us(&self, level: &Level) -> u64 {
        let next = (level.units / self.token + 1) * self.token;
        self.time_to(level.units, next.min(self.capacity))
    }

    /// Microseconds until a bucket covers the cost.
    pub fn retry_after_us(&self, level: &Level) -> u64 {
        self.time_to(level.units, self.cost)
    }

    /// Microseconds from empty to full.
    pub fn time_to_fill(&self) -> u64 {
        self.time_to(0, self.capacity)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What a store keeps for a bucket that is not full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Units at `last`.
    pub units: u64,
    /// When `units` was right, in microseconds of the store's clock. It never runs backwards.
    pub last: u64,
    /// Units of a token when this was written: tells that the limit has changed since.
    pub token: u64,
}

/// The bucket as it is at `now`: refilled, its clock monotone. No stored bucket is a full one.
///
/// A bucket written under another limit keeps its whole tokens; the fraction is dropped, so a change of limits
/// never makes tokens.
pub fn refill(stored: Option<Bucket>, shape: &Shape, now: u64) -> Bucket {
    let full = Bucket { units: shape.capacity, last: now, token: shape.token };
    let Some(stored) = stored else { return full };
    let mut units = stored.units;
    if stored.token != shape.token {
        units = (units / stored.token).saturating_mul(shape.token);
    }
    let units = units.min(shape.capacity);
    let last = now.max(stored.last);
    let gained = (last - stored.last).saturating_mul(shape.refill);
    Bucket {
        units: if gained >= shape.capacity - units { shape.capacity } else { units + gained },
        last,
        token: shape.token,
    }
}

impl Bucket {
    /// Whether it holds enough for one request.
    pub fn covers(&self, shape: &Shape) -> bool {
        self.units >= shape.cost
    }

    /// The bucket after one request; ask [`Bucket::covers`] first.
    pub fn charged(self, shape: &Shape) -> Bucket {
        Bucket { units: self.units.saturating_sub(shape.cost), ..self }
    }
}

/// What a store says of one bucket after a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Units in the bucket: after the charge where it was charged, else as found.
    pub units: u64,
    /// The bucket did not hold the cost.
    pub short: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(rate: &str, burst: u64, cost: u64) -> Shape {
        Shape::new(rate.parse().unwrap(), burst, cost).unwrap()
    }

    #[test]
    fn rates_read_and_print() {
        for (text, tokens, period, printed) in [
            ("5/s", 5, 1_000_000, "5/s"),
            ("100/min", 100, 60_000_000, "100/min"),
            ("1000/h", 1000, 3_600_000_000, "1000/h"),
            ("10000/d", 10_000, 86_400_000_000, "10000/d"),
            ("10/15s", 10, 15_000_000, "10/15s"),
            ("3/2h", 3, 7_200_000_000, "3/7200s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.tokens, rate.period_us), (tokens, period), "{text}");
            assert_eq!(rate.to_string(), printed);
        }
        assert_eq!("5/s".parse::<Rate>().unwrap().words("request"), "5 requests per second");
        assert_eq!("1/15s".parse::<Rate>().unwrap().words("request"), "1 request per 15 seconds");
    }

    #[test]
    fn bad_rates() {
        for text in ["", "5", "5/", "/s", "-1/s", "5/fortnight", "5.5/s", "5/s/s", "+5/s"] {
            assert_eq!(text.parse::<Rate>(), Err(BadRate::Form), "{text}");
        }
        assert_eq!("0/s".parse::<Rate>(), Err(BadRate::Zero));
        assert_eq!("1/0s".parse::<Rate>(), Err(BadRate::Zero));
        assert_eq!("99999999999999999999/s".parse::<Rate>(), Err(BadRate::Overflow));
        assert_eq!("1/99999999999d".parse::<Rate>(), Err(BadRate::Overflow));
    }

    #[test]
    fn units_are_the_smallest_exact_ones() {
        let s = shape("5/s", 10, 1);
        assert_eq!((s.token, s.refill, s.capacity), (200_000, 1, 2_000_000));
        let s = shape("7/s", 7, 1);
        assert_eq!((s.token, s.refill), (1_000_000, 7));
    }

    #[test]
    fn shapes_that_cannot_be() {
        let rate: Rate = "1/d".parse().unwrap();
        assert_eq!(Shape::new(rate, 0, 1), Err(BadShape::NoBurst));
        assert_eq!(Shape::new(rate, 1, 0), Err(BadShape::NoCost));
        assert_eq!(Shape::new(rate, 1, 2), Err(BadShape::BurstBelowCost { burst: 1, cost: 2 }));
        assert!(matches!(Shape::new(rate, 1_000_000_000, 1), Err(BadShape::NotExact { .. })));
        assert!(matches!(Shape::new(rate, u64::MAX, 1), Err(BadShape::NotExact { .. })));
    }

    #[test]
    fn a_day_of_refill_is_exactly_the_rate() {
        let shape = shape("7/s", 3, 1);
        let mut stored = None;
        let mut admitted = 0u64;
        for now in (0..86_400_000_000u64).step_by(97_001) {
            let bucket = refill(stored, &shape, now);
            if bucket.covers(&shape) {
                stored = Some(bucket.charged(&shape));
                admitted += 1;
            }
        }
        let ideal = 3 + 7 * 86_400;
        assert!((ideal - 1..=ideal).contains(&admitted), "{admitted} of {ideal}");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let shape = shape("1/s", 1, 1);
        let empty = refill(None, &shape, 10_000_000).charged(&shape);
        for now in [0, 9_000_000, 10_000_000, 10_999_999] {
            let seen = refill(Some(empty), &shape, now);
            assert!(!seen.covers(&shape), "at {now}");
            assert!(seen.last >= empty.last);
        }
        assert!(refill(Some(empty), &shape, 11_000_000).covers(&shape));
    }

    #[test]
    fn a_changed_limit_keeps_whole_tokens_only() {
        let old = shape("5/s", 10, 1);
        let new = shape("7/s", 10, 1);
        let stored = Bucket { units: 3 * old.token + old.token - 1, last: 0, token: old.token };
        assert_eq!(refill(Some(stored), &new, 0).units, 3 * new.token);
        let smaller = shape("7/s", 2, 1);
        assert_eq!(refill(Some(stored), &smaller, 0).units, smaller.capacity);
    }

    proptest! {
        #[test]
        fn never_above_capacity_and_retry_after_is_exact(
            tokens in 1u64..100_000, period_s in 1u64..86_400, burst in 1u64..1_000, cost in 1u64..10,
            spent in 0u64..1_000_000_000, later in 0u64..u64::from(u32::MAX),
        ) {
            prop_assume!(burst >= cost);
            let rate = Rate { tokens, period_us: period_s * 1_000_000 };
            let Ok(shape) = Shape::new(rate, burst, cost) else { return Ok(()) };
            let stored = Bucket { units: shape.capacity - spent.min(shape.capacity), last: 5, token: shape.token };
            let seen = refill(Some(stored), &shape, 5 + later);
            prop_assert!(seen.units <= shape.capacity && seen.units >= stored.units);
            if !seen.covers(&shape) {
                let wait = shape.time_to(seen.units, shape.cost);
                prop_assert!(!refill(Some(seen), &shape, seen.last + wait - 1).covers(&shape));
                prop_assert!(refill(Some(seen), &shape, seen.last + wait).covers(&shape));
            }
        }
    }
}
