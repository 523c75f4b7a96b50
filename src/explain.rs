//! What a request would meet, in words: who it is, where it goes, which limits and keys. Consumes nothing.
//!
//! It asks the same rooms as the proxy does, so it cannot say anything else than what happens. Pure.

use crate::config::{Config, Goal};
use crate::gateway::{Route, Rules};
use crate::http::Refusal;
use crate::http::changes::Changes;
use crate::http::field::may_be_secret;
use crate::http::head::RequestHead;
use crate::identity::{self, Caller};
use crate::limit::policy::{BadPolicy, Mode, Policy, Sheet, Subject};
use crate::reply::Failure;
use crate::route::{Asked, host_without_port};
use crate::upstream::way::Patience;
use std::fmt::Write;
use std::net::IpAddr;
use thiserror::Error;

/// A request to explain.
#[derive(Clone, Debug)]
pub struct Question {
    /// The method.
    pub method: String,
    /// The request target.
    pub path: String,
    /// The address that the connection comes from.
    pub ip: IpAddr,
    /// Field lines, `Name: value`.
    pub headers: Vec<String>,
}

/// Why there is nothing to explain.
#[derive(Debug, Error)]
pub enum BadQuestion {
    /// The limits do not fit together.
    #[error(transparent)]
    Policy(#[from] BadPolicy),
    /// Method, path or headers could not even be written as a request.
    #[error("method, path and headers must each be one line")]
    Lines,
    /// The head is incomplete or larger than allowed.
    #[error("this is not one whole request head")]
    Incomplete,
}

/// Explains what happens to the request under this configuration.
pub fn explain(config: &Config, question: &Question) -> Result<String, BadQuestion> {
    let rules = Rules::of(config)?;
    let text = request_text(question)?;
    let buffer = text.as_bytes();
    let mut head = RequestHead::default();
    let mut out = String::new();
    match head.parse(buffer, &rules.bounds) {
        Ok(true) => {}
        Ok(false) => return Err(BadQuestion::Incomplete),
        Err(refusal) => {
            push_failure(&mut out, &Failure::Refused(refusal));
            return Ok(out);
        }
    }
    if head.len != buffer.len() {
        push_failure(&mut out, &Failure::Refused(Refusal::Bad("the head ends before its last line")));
        return Ok(out);
    }
    describe(config, &rules, &head, buffer, question, &mut out);
    Ok(out)
}

fn request_text(question: &Question) -> Result<String, BadQuestion> {
    let parts = [&question.method, &question.path];
    if parts.into_iter().chain(&question.headers).any(|part| part.contains(['\r', '\n'])) {
        return Err(BadQuestion::Lines);
    }
    let mut text = format!("{} {} HTTP/1.1\r\n", question.method, question.path);
    let has_host = question.headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:"));
    if !has_host {
        text.push_str("Host: localhost\r\n");
    }
    for line in &question.headers {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    Ok(text)
}

fn describe(config: &Config, rules: &Rules, head: &RequestHead, buffer: &[u8], question: &Question, out: &mut String) {
    let mut caller = Caller::default();
    if let Err(reason) = rules.identity.of(head, buffer, question.ip, &mut caller) {
        push_failure(out, &reason.into());
        return;
    }
    let mut endpoint = Vec::new();
    identity::endpoint(head.forwarded_target(buffer), &mut endpoint);
    let host = host_without_port(head.host.of(buffer));
    let believed = if caller.via_trusted { "a trusted proxy" } else { "not a trusted proxy" };
    let _ = writeln!(out, "client    {} (connection from {}, {believed})", caller.ip, question.ip);
    let _ = writeln!(out, "user      {}", String::from_utf8_lossy(&caller.user));
    if let Some(plan) = caller.plan {
        let _ = writeln!(out, "plan      {}", rules.identity.plans()[plan.0]);
    }
    let _ = writeln!(out, "endpoint  {}", String::from_utf8_lossy(&endpoint));
    let asked = Asked { host, path: &endpoint, head, buffer, trusted: caller.via_trusted };
    let Some(route) = rules.routes.longest(&asked) else {
        push_failure(out, &Failure::NoRoute);
        return;
    };
    let entry = &rules.route_table[route];
    let mut target = Vec::new();
    let prepared = entry.prepare(head, buffer, &mut target);
    push_route(config, entry, &target, out);
    if let Err(refusal) = prepared {
        push_failure(out, &Failure::Refused(refusal));
        return;
    }
    let mut sheet = Sheet::default();
    let subject = Subject { head, buffer, host, endpoint: &endpoint, route: &entry.label, caller: &caller };
    match rules.policy.apply(&subject, &mut sheet) {
        Ok(()) => push_limits(&rules.policy, &sheet, out),
        Err(refusal) => push_failure(out, &Failure::Refused(refusal)),
    }
}

/// Where the route leads, and what it changes on the way; `target` is what that made of the target, if anything.
fn push_route(config: &Config, route: &Route, target: &[u8], out: &mut String) {
    let target = String::from_utf8_lossy(target);
    let way = match &route.goal {
        Goal::Upstream(way) => way,
        Goal::Redirect(redirect) => {
            let _ = writeln!(out, "route     {} -> redirect {} {target}", route.label, redirect.status);
            return push_changes("response", &redirect.response, out);
        }
    };
    let upstream = &config.upstreams[way.upstream];
    let servers: Vec<String> = upstream.servers.iter().map(|server| server.address.to_string()).collect();
    let _ = writeln!(out, "route     {} -> upstream {} ({})", route.label, upstream.name, servers.join(", "));
    let Patience { connect, response, attempt } = way.patience;
    let _ = write!(out, "waits     {connect:?} for a connection, {response:?} for a response");
    let _ = match attempt {
        Some(attempt) => writeln!(out, ", {attempt:?} of it for one server while there is another"),
        None => writeln!(out),
    };
    if let Some(most) = way.body_max {
        let _ = writeln!(out, "body      at most {most} bytes");
    }
    if !target.is_empty() {
        let _ = writeln!(out, "sent as   {target}");
    }
    push_changes("request", &way.request, out);
    push_changes("response", &way.response, out);
}

/// The fields that are changed, without the values of those that may be secrets.
fn push_changes(message: &str, changes: &Changes, out: &mut String) {
    for (name, value) in changes.set_fields() {
        let value = if may_be_secret(name) { "***" } else { value };
        let _ = writeln!(out, "{message:<9} {name} is set to {value:?}");
    }
    for name in changes.removed() {
        let _ = writeln!(out, "{message:<9} {name} is removed");
    }
}

fn push_limits(policy: &Policy, sheet: &Sheet, out: &mut String) {
    if sheet.applied().is_empty() {
        out.push_str("limits    none: the request is forwarded uncounted\n");
        return;
    }
    for (applied, key) in sheet.applied().iter().zip(sheet.keys()) {
        let rule = policy.rule(applied);
        let tier = policy.tier(applied);
        let mode = match rule.mode {
            Mode::Enforce => "",
            Mode::Shadow => " (shadow: counted, never denied)",
        };
        let _ = writeln!(out, "limit     {}{mode}", rule.name);
        let _ = writeln!(
            out,
            "          {} at once, then {}, that is one every {}; a request takes {}",
            tier.quota.burst,
            tier.quota.rate.words("token"),
            interval(tier.shape.token, tier.shape.refill),
            rule.cost
        );
        let _ = writeln!(out, "          key {}", String::from_utf8_lossy(key));
    }
}

/// The time between two tokens, in the largest unit that keeps it readable.
fn interval(token: u64, refill: u64) -> String {
    let micros = token as f64 / refill as f64;
    match micros {
        m if m >= 1_000_000.0 => format!("{} s", rounded(m / 1_000_000.0)),
        m if m >= 1_000.0 => format!("{} ms", rounded(m / 1_000.0)),
        m => format!("{} us", rounded(m)),
    }
}

fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

fn push_failure(out: &mut String, failure: &Failure) {
    let answer = failure.answer();
    let _ = writeln!(out, "answer    {} {}: {} (blame: {})", answer.status, answer.title, answer.detail, answer.blame);
}
