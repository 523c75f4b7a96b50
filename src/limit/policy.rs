//! Which limits a request falls under, and which buckets it is charged to.
//!
//! A policy is prepared once from the configured limits; finding the limits of a request costs the length of its path.
//! Pure.

use super::bucket::{BadShape, Level, Rate, Shape};
use super::lease::LEASED_LIMITS_MAX;
use super::{APPLIED_MAX, OnFailure, script};
use crate::http::body::is_token_byte;
use crate::http::head::RequestHead;
use crate::http::{Framing, Method, Refusal};
use crate::identity::{Caller, PlanId, is_written_as, other_endpoints, push_part, push_secret};
use crate::route::{Asked, Match, PathTree};
use thiserror::Error;

/// One bucket for each different value of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The user.
    User,
    /// The client's address.
    Ip,
    /// The normalised path.
    Endpoint,
    /// The route.
    Route,
    /// The method.
    Method,
    /// The value of a request field, which stands in keys as a hash.
    Header(String),
}

/// How much is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The refill.
    pub rate: Rate,
    /// Tokens of a full bucket.
    pub burst: u64,
}

impl Quota {
    /// What one of so many replicas may allow by itself, so that all together keep to it.
    fn part(self, replicas: u64, cost: u64) -> Quota {
        let period_us = self.rate.period_us.saturating_mul(replicas.max(1));
        Quota { rate: Rate { period_us, ..self.rate }, burst: (self.burst / replicas.max(1)).max(cost) }
    }
}

/// What a limit does to a request that it has no tokens for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is denied.
    #[default]
    Enforce,
    /// It is counted and logged only.
    Shadow,
}

/// A limit as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Unique; stands in keys, fields, logs and metrics.
    pub name: String,
    /// Which requests it applies to.
    pub scope: Match,
    /// One bucket for each; empty = one for all.
    pub by: Vec<By>,
    /// The quota of callers without a plan of their own here.
    pub quota: Quota,
    /// Tokens that a request takes.
    pub cost: u64,
    /// Deny or only count.
    pub mode: Mode,
    /// Quotas of plans, which come before `quota`.
    pub plans: Vec<(String, Quota)>,
    /// Whether CORS preflights are counted.
    pub count_preflight: bool,
    /// What a request is worth without the store; `None` = as for the store.
    pub on_failure: Option<OnFailure>,
    /// Tokens of a hot bucket that a worker takes at once at most; 0 = it asks for each request.
    pub lease: u64,
}

/// Which part of a limit is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// All of it: the store is shared by all replicas.
    #[default]
    Whole,
    /// One replica's, of the limits that are decided here when the store fails.
    Replica,
}

impl Limit {
    /// A limit of one token a request on all requests of each user, enforced, and without anything that is optional.
    pub fn of_each_user(name: &str, quota: Quota) -> Limit {
        Limit {
            name: name.into(),
            scope: Match { path: "/".into(), ..Match::default() },
            by: vec![By::User],
            quota,
            cost: 1,
            mode: Mode::Enforce,
            plans: Vec::new(),
            count_preflight: false,
            on_failure: None,
            lease: 0,
        }
    }

    /// Whether its buckets are told apart by who asks (or not at all), so that inventing paths gains nothing.
    pub fn bounds_a_client(&self) -> bool {
        self.mode == Mode::Enforce && !self.by.iter().any(|by| matches!(by, By::Endpoint | By::Header(_)))
    }
}

/// Why limits cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadPolicy {
    /// One limit cannot be counted.
    #[error("limit {name:?}: {reason}")]
    Shape {
        /// The limit.
        name: String,
        /// Why.
        reason: BadShape,
    },
    /// Too many limits on one request.
    #[error("{0} limits can apply to one request; at most {APPLIED_MAX} may")]
    TooMany(usize),
}

/// A limit, prepared.
#[derive(Debug)]
pub struct Rule {
    /// The name.
    pub name: String,
    /// The name as a JSON string.
    pub json_name: Vec<u8>,
    /// Deny or only count.
    pub mode: Mode,
    /// Tokens that a request takes.
    pub cost: u64,
    /// What a request is worth without the store.
    pub on_failure: OnFailure,
    /// Tokens of a hot bucket that a worker takes at once at most.
    pub lease: u64,
    own_on_failure: Option<OnFailure>,
    by: Vec<By>,
    count_preflight: bool,
    tier: Tier,
    plans: Vec<(PlanId, Tier)>,
}

/// A quota of a rule, prepared.
#[derive(Debug)]
pub struct Tier {
    /// As configured.
    pub quota: Quota,
    /// In units.
    pub shape: Shape,
    /// One replica's part of it.
    pub replica: Shape,
    /// The script's arguments, encoded.
    pub(super) arguments: Vec<u8>,
    /// The same for a call that charges nothing.
    pub(super) probe_arguments: Vec<u8>,
    /// `:name`, and the plan where callers of several plans would meet in one bucket.
    key_tail: Vec<u8>,
    /// `"name";q=10;w=2`, a member of RateLimit-Policy.
    pub policy_member: Vec<u8>,
    /// `Limit 'name' allows 5 requests per second with bursts of 10.`, as it stands inside a JSON string.
    pub json_sentence: Vec<u8>,
    /// `"limit":"name","rate":"5/s","burst":10`, members of a JSON object.
    pub json_members: Vec<u8>,
}

/// All limits.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    tree: PathTree,
    prefix: Vec<u8>,
}

/// What a request is, as far as limits tell requests apart.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The request's head.
    pub head: &'a RequestHead,
    /// The bytes of the head.
    pub buffer: &'a [u8],
    /// The host asked for, without port.
    pub host: &'a [u8],
    /// The normalised path.
    pub endpoint: &'a [u8],
    /// The key text of the route, for limits by route.
    pub route: &'a str,
    /// Who asks.
    pub caller: &'a Caller,
}

impl<'a> Subject<'a> {
    /// The same request for the path tree, as if it asked for `path`.
    fn asked(&self, path: &'a [u8]) -> Asked<'a> {
        let Subject { head, buffer, host, caller, .. } = *self;
        Asked { host, path, head, buffer, trusted: caller.via_trusted }
    }
}

/// One limit that applies to the request at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Position of the rule in the policy.
    pub rule: usize,
    plan: Option<usize>,
}

/// What one request is charged, and what became of it. Used for many requests, so that it allocates once.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    applied: Vec<Applied>,
    keys: Vec<u8>,
    ends: Vec<usize>,
    /// One for each applied limit, as far as a decision has told.
    pub levels: [Option<Level>; APPLIED_MAX],
    /// In which units they are.
    pub share: Share,
}

impl Policy {
    /// Prepares limits; `plans` are the names that [`PlanId`]s stand for.
    pub fn new(limits: &[Limit], plans: &[String], key_prefix: &str) -> Result<Policy, BadPolicy> {
        let rules = limits.iter().map(|limit| Rule::new(limit, plans)).collect::<Result<Vec<_>, _>>()?;
        let tree = PathTree::new(limits.iter().enumerate().map(|(id, limit)| (limit.scope.clone(), id)));
        match tree.most_on_one_path() {
            most if most > APPLIED_MAX => Err(BadPolicy::TooMany(most)),
            _ => Ok(Policy { rules, tree, prefix: key_prefix.as_bytes().to_vec() }),
        }
    }

    /// The same policy where the store may fail: what its limits do then where they do not say it themselves, and among how
    /// many replicas they are divided. A burst that does not divide is rounded down, and up to the cost of one request.
    pub fn with_fallback(mut self, on_failure: OnFailure, replicas: u64) -> Result<Policy, BadPolicy> {
        for rule in &mut self.rules {
            rule.on_failure = rule.own_on_failure.unwrap_or(on_failure);
            let (name, cost) = (&rule.name, rule.cost);
            for tier in rule.plans.iter_mut().map(|(_, tier)| tier).chain([&mut rule.tier]) {
                let part = tier.quota.part(replicas, cost);
                let shape = Shape::new(part.rate, part.burst, cost);
                tier.replica = shape.map_err(|reason| BadPolicy::Shape { name: name.clone(), reason })?;
            }
        }
        Ok(self)
    }

    /// Whether one of the limits that count fails in this way.
    pub fn fails(&self, sheet: &Sheet, on_failure: OnFailure) -> bool {
        let rules = sheet.applied.iter().map(|applied| &self.rules[applied.rule]);
        let mut counting = rules.filter(|rule| rule.mode == Mode::Enforce || on_failure == OnFailure::Local);
        counting.any(|rule| rule.on_failure == on_failure)
    }

    /// Whether all limits on the sheet may be leased: else a request asks the store anyway.
    pub fn leases(&self, sheet: &Sheet) -> bool {
        let leased = |applied: &Applied| self.rules[applied.rule].lease > 0;
        (1..=LEASED_LIMITS_MAX).contains(&sheet.applied.len()) && sheet.applied.iter().all(leased)
    }

    /// The units that the sheet's levels of a limit are in.
    pub fn shape(&self, applied: &Applied, share: Share) -> &Shape {
        let tier = self.tier(applied);
        match share {
            Share::Whole => &tier.shape,
            Share::Replica => &tier.replica,
        }
    }

    /// The rule at a position.
    pub fn rule(&self, applied: &Applied) -> &Rule {
        &self.rules[applied.rule]
    }

    /// The quota that counts for this caller.
    pub fn tier(&self, applied: &Applied) -> &Tier {
        let rule = self.rule(applied);
        applied.plan.map_or(&rule.tier, |plan| &rule.plans[plan].1)
    }

    /// The names of the fields that limits count by.
    pub fn header_names(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| &rule.by).filter_map(|by| match by {
            By::Header(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Writes on the sheet which limits the request falls under, in configured order, and their keys. Refuses a request
    /// with a second value for what an enforced limit counts by: the backend might believe another one than we do; and one
    /// whose path falls under more limits as some backends read it.
    pub fn apply(&self, subject: &Subject<'_>, sheet: &mut Sheet) -> Result<(), Refusal> {
        sheet.applied.clear();
        sheet.keys.clear();
        sheet.ends.clear();
        sheet.levels = [None; APPLIED_MAX];
        sheet.share = Share::Whole;
        self.tree.each(&subject.asked(subject.endpoint), |rule| {
            if sheet.applied.len() < APPLIED_MAX {
                let plan = subject.caller.plan.and_then(|plan| self.rules[rule].plan(plan));
                sheet.applied.push(Applied { rule, plan });
            }
        });
        sheet.applied.sort_unstable_by_key(|applied| applied.rule);
        if is_preflight(subject) {
            sheet.applied.retain(|applied| self.rules[applied.rule].count_preflight);
        }
        self.check_other_readings(subject, sheet)?;
        for applied in &sheet.applied {
            let rule = &self.rules[applied.rule];
            if rule.mode == Mode::Enforce && rule.is_in_doubt(subject) {
                return Err(Refusal::Bad("a field that a limit counts by stands there twice"));
            }
            rule.push_key(&self.prefix, subject, &mut sheet.keys);
            sheet.keys.extend_from_slice(&self.tier(applied).key_tail);
            sheet.ends.push(sheet.keys.len());
        }
        Ok(())
    }

    fn check_other_readings(&self, subject: &Subject<'_>, sheet: &Sheet) -> Result<(), Refusal> {
        let target = subject.head.forwarded_target(subject.buffer);
        if is_written_as(target, subject.endpoint) {
            return Ok(());
        }
        let mut escapes = false;
        for path in other_endpoints(target) {
            let is_preflight = is_preflight(subject);
            self.tree.each(&subject.asked(&path), |rule| {
                let Rule { mode, count_preflight, .. } = self.rules[rule];
                let counts = mode == Mode::Enforce && (!is_preflight || count_preflight);
                escapes |= counts && !sheet.applied.iter().any(|applied| applied.rule == rule);
            });
        }
        match escapes {
            true => Err(Refusal::Bad("some servers read this path differently: send it without dot segments and `//`")),
            false => Ok(()),
        }
    }
}

/// A CORS preflight (Fetch standard, section "CORS-preflight fetch"): the browser asks, not the user. It brings nothing
/// along, shows nobody's credentials and switches to nothing; what does is a request like all.
fn is_preflight(subject: &Subject<'_>) -> bool {
    let field = |name| subject.head.field(subject.buffer, name);
    let is_token = |value: &[u8]| !value.is_empty() && value.iter().all(|&byte| is_token_byte(byte));
    subject.head.kind == Method::Options
        && subject.head.framing == Framing::Empty
        && !subject.head.upgrades
        && field("Origin").is_some()
        && field("Access-Control-Request-Method").is_some_and(is_token)
        && field("Cookie").is_none()
        && field("Authorization").is_none()
}

impl Rule {
    fn new(limit: &Limit, plans: &[String]) -> Result<Rule, BadPolicy> {
        let tier = |quota: Quota, plan: Option<&str>| {
            let shape = Shape::new(quota.rate, quota.burst, limit.cost);
            shape
                .map(|shape| Tier::new(limit, quota, shape, plan))
                .map_err(|reason| BadPolicy::Shape { name: limit.name.clone(), reason })
        };
        let mut own = Vec::new();
        for (name, quota) in &limit.plans {
            let prepared = tier(*quota, Some(name))?;
            // A plan that no consumer has is checked, and never looked up.
            if let Ok(id) = plans.binary_search(name) {
                own.push((PlanId(id), prepared));
            }
        }
        Ok(Rule {
            name: limit.name.clone(),
            json_name: json(&limit.name).into_bytes(),
            mode: limit.mode,
            cost: limit.cost,
            on_failure: limit.on_failure.unwrap_or_default(),
            lease: limit.lease,
            own_on_failure: limit.on_failure,
            by: limit.by.clone(),
            count_preflight: limit.count_preflight,
            tier: tier(limit.quota, None)?,
            plans: own,
        })
    }

    /// Whether a field that it counts by stands there more than once.
    fn is_in_doubt(&self, subject: &Subject<'_>) -> bool {
        self.by.iter().any(|by| match by {
            By::Header(name) => subject.head.values(subject.buffer, name).nth(1).is_some(),
            _ => false,
        })
    }

    fn plan(&self, plan: PlanId) -> Option<usize> {
        self.plans.iter().position(|(id, _)| *id == plan)
    }

    /// `<prefix>:{<who>}:<what>`, to which the tier adds `:<limit>`. The braces are the cluster's hash tag: all buckets of
    /// a user share a slot. Several parts on one side are joined by a colon; those that a stranger can choose hold none
    /// unescaped, so no two different lists of parts give one key.
    fn push_key(&self, prefix: &[u8], subject: &Subject<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(prefix);
        out.extend_from_slice(b":{");
        let start = out.len();
        for by in &self.by {
            let before = out.len();
            if before > start && by.is_about_who() {
                out.push(b':');
            }
            match by {
                By::User => out.extend_from_slice(&subject.caller.user),
                By::Ip => out.extend_from_slice(&subject.caller.ip_text),
                By::Header(name) => {
                    let value = subject.head.field(subject.buffer, name).unwrap_or_default();
                    push_secret(out, name, value);
                }
                By::Endpoint | By::Route | By::Method => {}
            }
        }
        dash_if_empty(out, start);
        out.extend_from_slice(b"}:");
        let start = out.len();
        for by in self.by.iter().filter(|by| !by.is_about_who()) {
            if out.len() > start {
                out.push(b':');
            }
            match by {
                By::Method => match subject.head.method.of(subject.buffer) {
                    // Some backends take `post` for POST.
                    small if small.iter().any(u8::is_ascii_lowercase) => push_part(out, &small.to_ascii_uppercase()),
                    method => push_part(out, method),
                },
                By::Route => push_part(out, subject.route.as_bytes()),
                _ => push_part(out, subject.endpoint),
            }
        }
        dash_if_empty(out, start);
    }
}

fn dash_if_empty(out: &mut Vec<u8>, start: usize) {
    if out.len() == start {
        out.push(b'-');
    }
}

impl By {
    fn is_about_who(&self) -> bool {
        matches!(self, By::User | By::Ip | By::Header(_))
    }
}

impl Tier {
    fn new(limit: &Limit, quota: Quota, shape: Shape, plan: Option<&str>) -> Tier {
        let mut key_tail = vec![b':'];
        push_part(&mut key_tail, limit.name.as_bytes());
        // A user has one plan, so buckets by user cannot meet.
        if let Some(plan) = plan.filter(|_| !limit.by.contains(&By::User)) {
            key_tail.push(b':');
            push_part(&mut key_tail, plan.as_bytes());
        }
        let window_s = shape.time_to_fill().div_ceil(1_000_000);
        let (name, Quota { rate, burst }) = (&limit.name, quota);
        let words = rate.words(if limit.cost == 1 { "request" } else { "token" });
        let sentence = json(&format!("Limit '{name}' allows {words} with bursts of {burst}."));
        let members = format!("\"limit\":{},\"rate\":\"{rate}\",\"burst\":{burst}", json(name));
        Tier {
            quota,
            shape,
            replica: shape,
            key_tail,
            arguments: script::arguments(&shape, shape.cost, limit.mode),
            probe_arguments: script::arguments(&shape, 0, limit.mode),
            policy_member: format!("\"{name}\";q={burst};w={window_s}").into_bytes(),
            json_sentence: sentence.trim_matches('"').into(),
            json_members: members.into_bytes(),
        }
    }
}

/// A JSON string, in its quotes.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Sheet {
    /// The limits that apply.
    pub fn applied(&self) -> &[Applied] {
        &self.applied
    }

    /// The keys of the buckets, in the order of [`Sheet::applied`].
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.keys[start..end])
    }

    /// Each applied limit with its level, where that is known.
    pub fn outcomes(&self) -> impl Iterator<Item = (&Applied, &Level)> {
        self.applied.iter().zip(&self.levels).filter_map(|(applied, level)| Some((applied, level.as_ref()?)))
    }

    /// The enforced limits that are short, in configured order.
    pub fn violated(&self, policy: &Policy) -> impl Iterator<Item = (&Applied, &Level)> {
        let is_enforced = |applied| policy.rule(applied).mode == Mode::Enforce;
        self.outcomes().filter(move |(applied, level)| level.short && is_enforced(applied))
    }

    /// Whether an enforced limit is short.
    pub fn denied(&self, policy: &Policy) -> bool {
        self.violated(policy).next().is_some()
    }
}

#[cfg(test)]
mod tests;
