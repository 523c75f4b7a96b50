//! `[[limits]]`: how much is allowed, and to whom.
//!
//! Refuses limits that could not be counted exactly, that would deny everything, or that are too many for one request.
//! Pure.

use super::error::{ConfigError, Flaw, did_you_mean};
use super::file::{LIMIT_MATCH, LIMIT_PLAN, Section, Value};
use super::{routes, store, text};
use crate::identity::{self, Identity};
use crate::limit::StoreSettings;
use crate::limit::bucket::{BadRate, Rate, Shape};
use crate::limit::policy::{BadPolicy, By, Limit, Mode, Policy, Quota};

/// Limits in a file.
pub(super) const LIMITS_MAX: usize = 1000;

/// Tokens that a worker may take ahead.
const LEASE_MAX: u64 = 10_000;

const PLANS_MAX: usize = 1000;
const BY_MAX: usize = 8;

/// The largest integer of a structured field (RFC 9651 section 3.3.1): `burst` stands in one.
const BURST_MAX: u64 = 999_999_999_999_999;

pub(super) fn limits(sections: &[Section<'_>]) -> Result<Vec<Limit>, ConfigError> {
    let mut limits: Vec<Limit> = Vec::with_capacity(sections.len());
    for section in sections {
        let limit = limit(section)?;
        if let Some(other) = limits.iter().position(|other| other.name == limit.name) {
            let problem = format!("limits[{other}] has the name {:?} already", limit.name);
            return Err(section.error_at(&["name"], Flaw::new(problem, "use another name")));
        }
        limits.push(limit);
    }
    Ok(limits)
}

fn limit(section: &Section<'_>) -> Result<Limit, ConfigError> {
    let name = section.require("name", "give the limit a name: it stands in replies, logs and metrics")?;
    let name = name.parse(text::name)?;
    let scope = routes::scope(&section.section("match", &LIMIT_MATCH)?)?;
    let by = section.read("by", vec![By::User, By::Endpoint], |value| value.list(BY_MAX, |item| item.parse(by)))?;
    let cost = section.read("cost", 1, |value| value.integer(1..=BURST_MAX))?;
    let rate = section.require("rate", "say how much is allowed, such as rate = \"5/s\"")?;
    let rate = read_rate(&rate)?;
    let quota = quota(section, Quota { rate, burst: rate.tokens.clamp(cost, BURST_MAX) }, cost)?;
    let mode = section
        .read("mode", Mode::Enforce, |value| value.choice(&[("enforce", Mode::Enforce), ("shadow", Mode::Shadow)]))?;
    let mut plans = Vec::new();
    for (plan, section) in section.named("plans", &LIMIT_PLAN, PLANS_MAX)? {
        plans.push((plan, self::quota(&section, quota, cost)?));
    }
    let count_preflight = section.read("count_preflight", false, |value| value.boolean())?;
    let on_failure = section.read("on_failure", None, |value| store::on_failure(value).map(Some))?;
    let lease = section.read("lease", 0, |value| value.integer(0..=LEASE_MAX))?;
    let smallest = plans.iter().map(|(_, own)| own.burst).fold(quota.burst, u64::min);
    if lease > 0 && !(cost..=smallest / 2).contains(&lease) {
        let problem = format!("{lease} tokens cannot be taken ahead");
        let fix = match smallest / 2 {
            most if most < cost => "remove it: half a burst must cover the cost of a request".into(),
            most => format!("use {cost} to {most}: what a request costs to half of the smallest burst"),
        };
        return Err(section.error_at(&["lease"], Flaw::new(problem, fix)));
    }
    Ok(Limit { name, scope, by, quota, cost, mode, plans, count_preflight, on_failure, lease })
}

/// The keys `rate` and `burst`, checked together.
fn quota(section: &Section<'_>, defaults: Quota, cost: u64) -> Result<Quota, ConfigError> {
    let rate = section.read("rate", defaults.rate, read_rate)?;
    let burst = section.read("burst", defaults.burst, |value| value.integer(1..=BURST_MAX))?;
    match Shape::new(rate, burst, cost) {
        Ok(_) => Ok(Quota { rate, burst }),
        Err(reason) => Err(section.error_at(&["burst", "rate"], flaw(&reason.to_string()))),
    }
}

/// Splits a sentence of the limiter's into what is wrong and what helps.
fn flaw(sentence: &str) -> Flaw {
    let (problem, fix) = sentence.split_once("; ").unwrap_or((sentence, "use a smaller number"));
    Flaw::new(problem, fix)
}

fn read_rate(value: &Value<'_>) -> Result<Rate, ConfigError> {
    value.parse(|text| {
        text.parse().map_err(|reason| match reason {
            BadRate::Form => Flaw::new(format!("{text:?} is no rate"), reason.to_string()),
            BadRate::Zero | BadRate::Overflow => flaw(&reason.to_string()),
        })
    })
}

fn by(text: &str) -> Result<By, Flaw> {
    match (text, text.split_once(':')) {
        ("user", _) => Ok(By::User),
        ("ip", _) => Ok(By::Ip),
        ("endpoint", _) => Ok(By::Endpoint),
        ("route", _) => Ok(By::Route),
        ("method", _) => Ok(By::Method),
        // Field names are compared without case, so that "X-A" and "x-a" count as one here too.
        (_, Some(("header", name))) => text::token(name).map(|name| By::Header(name.to_ascii_lowercase())),
        _ => {
            let known = ["user", "ip", "endpoint", "route", "method", "header:NAME"];
            Err(Flaw::new(format!("limits cannot count by {text:?}"), did_you_mean(text, known.into_iter())))
        }
    }
}

/// Builds the policy once, as every worker will: what it refuses is refused here.
pub(super) fn check_together(
    sections: &[Section<'_>],
    limits: &[Limit],
    identity: &identity::Settings,
    settings: &StoreSettings,
) -> Result<(), ConfigError> {
    let identity = Identity::new(identity.clone());
    let build = |count: usize| {
        Policy::new(&limits[..count], identity.plans(), &settings.key_prefix)?
            .with_fallback(settings.on_failure, settings.replicas)
    };
    let Err(reason) = build(limits.len()) else { return Ok(()) };
    let counts: Vec<usize> = (1..=limits.len()).collect();
    let first_bad = counts.partition_point(|&count| build(count).is_ok()) + 1;
    let fix = match reason {
        BadPolicy::TooMany(_) => "remove some, or narrow what they match",
        BadPolicy::Shape { .. } => "change its rate or burst",
    };
    // An empty list builds, so there is a last one.
    match sections.get(first_bad.saturating_sub(1)) {
        Some(section) => Err(section.error_at(&[], Flaw::new(reason.to_string(), fix))),
        None => Ok(()),
    }
}
