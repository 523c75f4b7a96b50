//! The configuration in force as TOML: every key with its value, defaults included.
//!
//! Passwords, the digests of API keys and header values that may be secrets read `***`; everything else parses again to the same configuration. Pure.

use super::file::join;
use super::text::{write_duration, write_size};
use super::{Config, Goal, Io, Route, Server};
use crate::http::changes::Changes;
use crate::http::field::may_be_secret;
use crate::identity::{self, Source, UnknownApiKeys};
use crate::limit::policy::{By, Limit, Mode, Quota};
use crate::limit::{OnFailure, StoreKind, StoreSettings};
use crate::redis::{Address, Credentials, Place, Settings, Version};
use crate::resolve::{self, Interval};
use crate::route::{HeaderMatch, HostPattern, Match};
use crate::upstream::proxy_protocol::ProxyProtocol;
use crate::upstream::way::{Patience, Way};
use crate::upstream::{self, Balance, StatusSet};
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

pub(super) fn config(config: &Config) -> String {
    let mut out = Page::default();
    server(&mut out, &config.server, &config.identity);
    out.section("[admin]");
    out.line("listen", quote(config.admin.map_or("off".into(), |address| address.to_string())));
    identity(&mut out, &config.identity);
    store(&mut out, &config.store);
    dns(&mut out, &config.dns);
    for upstream in &config.upstreams {
        self::upstream(&mut out, upstream);
    }
    for route in &config.routes {
        self::route(&mut out, route, &config.upstreams);
    }
    for limit in &config.limits {
        self::limit(&mut out, limit);
    }
    out.section("[log]");
    out.line("denied", config.log.denied);
    out.0
}

/// The text so far.
#[derive(Default)]
struct Page(String);

impl Page {
    fn section(&mut self, header: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.0.push_str(&format!("{gap}{header}\n"));
    }

    fn line(&mut self, key: &str, value: impl Display) {
        self.0.push_str(&format!("{key} = {value}\n"));
    }

    fn wait(&mut self, key: &str, wait: Duration) {
        self.line(key, quote(write_duration(wait)));
    }

    fn wait_or_off(&mut self, key: &str, wait: Option<Duration>) {
        self.line(key, wait_or_off(wait));
    }
}

fn wait_or_off(wait: Option<Duration>) -> String {
    quote(wait.map_or("off".into(), write_duration))
}

fn quote(text: impl Into<String>) -> String {
    // What was written for a literal "${" must be again.
    toml::Value::String(text.into().replace("${", "$${")).to_string()
}

fn quote_all<T: ToString>(members: impl IntoIterator<Item = T>) -> String {
    list(members.into_iter().map(|member| quote(member.to_string())))
}

fn list(members: impl Iterator<Item = String>) -> String {
    format!("[{}]", members.collect::<Vec<_>>().join(", "))
}

fn server(out: &mut Page, server: &Server, identity: &identity::Settings) {
    out.section("[server]");
    out.line("listen", quote_all(&server.listen));
    out.line("workers", server.workers);
    let io = match server.io {
        Io::Auto => "auto",
        Io::IoUring => "io_uring",
        Io::Epoll => "epoll",
    };
    out.line("io", quote(io));
    out.line("trusted_proxies", quote_all(&identity.trusted_proxies));
    out.line("max_connections", server.max_connections);
    out.line("max_head", quote(write_size(server.bounds.head_max as u64)));
    out.line("max_headers", server.bounds.fields_max);
    out.line("max_body", quote(body_max(server.bounds.body_max)));
    out.section("[server.timeouts]");
    out.wait("head", server.timeouts.head);
    out.wait("body", server.timeouts.body);
    out.wait("idle", server.timeouts.idle);
    out.wait("write", server.timeouts.write);
    out.wait("tunnel", server.timeouts.tunnel);
    out.wait("drain", server.drain);
}

fn identity(out: &mut Page, identity: &identity::Settings) {
    out.section("[identity]");
    let source = |source: &Source| match source {
        Source::ApiKey => "api_key".into(),
        Source::Ip => "ip".into(),
        Source::Header(name) => format!("header:{name}"),
        Source::Cookie(name) => format!("cookie:{name}"),
    };
    out.line("sources", quote_all(identity.sources.iter().map(source)));
    out.line("api_key_header", quote(&identity.api_key_header));
    let unknown = match identity.unknown_api_keys {
        UnknownApiKeys::Accept => "accept",
        UnknownApiKeys::Ip => "ip",
        UnknownApiKeys::Reject => "reject",
    };
    out.line("unknown_api_keys", quote(unknown));
    out.line("ipv6_prefix", identity.ipv6_prefix);
    for consumer in &identity.consumers {
        out.section("[[consumers]]");
        out.line("name", quote(&consumer.name));
        out.line("api_key_sha256", quote("***"));
        if let Some(plan) = &consumer.plan {
            out.line("plan", quote(plan));
        }
    }
}

fn store(out: &mut Page, store: &StoreSettings) {
    out.section("[store]");
    match &store.kind {
        // Memory never makes anybody wait, so it has no deadline.
        StoreKind::Memory => out.line("url", quote("memory:")),
        StoreKind::Redis(settings) => {
            out.line("url", quote(url(settings)));
            out.wait("deadline", settings.deadline);
        }
    }
    out.line("on_failure", quote(on_failure(store.on_failure)));
    out.line("replicas", store.replicas);
    out.line("key_prefix", quote(&store.key_prefix));
    if let StoreKind::Redis(settings) = &store.kind {
        redis(out, settings);
    }
}

fn redis(out: &mut Page, settings: &Settings) {
    out.line("protocol", quote(if settings.version == Version::Three { "resp3" } else { "resp2" }));
    if let Place::Sentinel { credentials: Some(own), .. } = &settings.place {
        out.section("[store.sentinel]");
        if let Some(username) = &own.username {
            out.line("username", quote(username));
        }
        out.line("password", quote("***"));
    }
    if let Some(own) = &settings.tls {
        out.section("[store.tls]");
        tls(out, [&own.ca, &own.certificate, &own.key], own.name.as_deref());
    }
}

fn on_failure(mode: OnFailure) -> &'static str {
    match mode {
        OnFailure::Open => "open",
        OnFailure::Closed => "closed",
        OnFailure::Local => "local",
    }
}

/// The store's URL with its password masked.
fn url(settings: &Settings) -> String {
    let tls = if settings.tls.is_some() { "s" } else { "" };
    let userinfo = settings.credentials.as_ref().map(userinfo).unwrap_or_default();
    let list = |servers: &[Address]| servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let database = settings.database;
    match &settings.place {
        Place::Server(Address::Unix(path)) => {
            format!("redis+unix://{userinfo}{}?db={database}", encode(&path.to_string_lossy()))
        }
        Place::Server(server) => format!("redis{tls}://{userinfo}{server}/{database}"),
        Place::Sentinel { sentinels, primary, .. } => {
            let primary = encode(primary).replace('/', "%2F");
            format!("redis{tls}+sentinel://{userinfo}{}/{primary}/{database}", list(sentinels))
        }
        Place::Cluster(seeds) => format!("redis{tls}+cluster://{userinfo}{}", list(seeds)),
    }
}

fn userinfo(credentials: &Credentials) -> String {
    format!("{}:***@", credentials.username.as_deref().map(encode).unwrap_or_default())
}

/// Percent-encodes what has a meaning of its own in a URL (RFC 3986 section 2.2).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn upstream(out: &mut Page, upstream: &upstream::Settings) {
    out.section(&format!("[{}]", join("upstreams", &upstream.name)));
    let scheme = if upstream.tls.is_some() { "https://" } else { "" };
    let server = |server: &upstream::Server| {
        let address = quote(format!("{scheme}{}", server.address));
        format!("{{ address = {address}, weight = {}, backup = {} }}", server.weight, server.backup)
    };
    out.line("servers", list(upstream.servers.iter().map(server)));
    out.line(
        "balance",
        quote(match upstream.balance {
            Balance::RoundRobin => "round_robin",
            Balance::LeastRequests => "least_requests",
            Balance::Hash => "hash",
        }),
    );
    out.line("retries", upstream.retries.max);
    out.line("retry_statuses", statuses(&upstream.retries.statuses));
    out.line("retry_budget", quote(format!("{}%", upstream.retries.budget_percent)));
    out.line(
        "proxy_protocol",
        quote(match upstream.proxy_protocol {
            ProxyProtocol::Off => "off",
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2 => "v2",
        }),
    );
    upstream_sections(out, upstream);
}

fn upstream_sections(out: &mut Page, upstream: &upstream::Settings) {
    let header = |name: &str| format!("[{}.{name}]", join("upstreams", &upstream.name));
    let Patience { connect, response, attempt } = upstream.patience;
    out.section(&header("timeouts"));
    out.wait("connect", connect);
    out.wait("response", response);
    out.wait_or_off("attempt", attempt);
    out.wait("idle", upstream.idle);
    let health = &upstream.health;
    out.section(&header("health"));
    out.line("path", quote(health.path.as_deref().unwrap_or_default()));
    out.wait("interval", health.interval);
    out.wait("timeout", health.timeout);
    out.line("statuses", statuses(&health.statuses));
    out.line("unhealthy_after", health.unhealthy_after);
    out.line("healthy_after", health.healthy_after);
    out.line("failures", statuses(&health.failures));
    out.line("failure_rate", quote(health.failure_percent.map_or("off".into(), |percent| format!("{percent}%"))));
    out.wait_or_off("eject", health.eject);
    out.wait_or_off("slow_start", Some(health.slow_start).filter(|time| !time.is_zero()));
    let connections = &upstream.connections;
    out.section(&header("connections"));
    match connections.max {
        Some(max) => out.line("max", max),
        None => out.line("max", quote("unlimited")),
    }
    out.line("max_pending", connections.max_pending);
    out.wait("pending", connections.pending);
    out.line("max_idle", connections.max_idle);
    out.wait_or_off("max_age", connections.max_age);
    out.wait_or_off("keepalive", connections.keepalive);
    if let Some(own) = &upstream.tls {
        out.section(&header("tls"));
        tls(out, [&own.ca, &own.certificate, &own.key], own.name.as_deref());
    }
}

fn tls(out: &mut Page, files: [&Option<PathBuf>; 3], name: Option<&str>) {
    for (key, file) in ["ca", "certificate", "key"].into_iter().zip(files) {
        if let Some(path) = file {
            out.line(key, quote(path.to_string_lossy()));
        }
    }
    if let Some(name) = name {
        out.line("name", quote(name));
    }
}

fn statuses(set: &StatusSet) -> String {
    list(set.0.iter().map(|range| match range.start() == range.end() {
        true => range.start().to_string(),
        false => quote(format!("{}-{}", range.start(), range.end())),
    }))
}

fn dns(out: &mut Page, dns: &resolve::Settings) {
    out.section("[dns]");
    out.line("servers", quote_all(&dns.servers));
    match dns.interval {
        Interval::Every(interval) => out.wait("interval", interval),
        Interval::Ttl => out.line("interval", quote("ttl")),
    }
    out.wait("timeout", dns.timeout);
}

fn route(out: &mut Page, route: &Route, upstreams: &[upstream::Settings]) {
    out.section("[[routes]]");
    scope(out, &route.scope);
    match &route.goal {
        Goal::Upstream(way) => self::way(out, way, upstreams),
        Goal::Redirect(redirect) => {
            let (to, status) = (quote(redirect.to()), redirect.status);
            out.line("redirect", format!("{{ to = {to}, status = {status} }}"));
            changes(out, "response", &redirect.response);
        }
    }
    if let Some(prefix) = &route.path.strip {
        out.line("strip_prefix", quote(prefix));
    }
    if let Some(rewrite) = &route.path.rewrite {
        let (pattern, to) = (quote(rewrite.pattern()), quote(rewrite.to()));
        out.line("rewrite", format!("{{ pattern = {pattern}, to = {to} }}"));
    }
    if let Some(prefix) = &route.path.add {
        out.line("add_prefix", quote(prefix));
    }
}

fn way(out: &mut Page, way: &Way, upstreams: &[upstream::Settings]) {
    let upstream = upstreams.get(way.upstream).map(|upstream| upstream.name.as_str());
    out.line("upstream", quote(upstream.unwrap_or_default()));
    let Patience { connect, response, attempt } = way.patience;
    let [connect, response, attempt] = [Some(connect), Some(response), attempt].map(wait_or_off);
    out.line("timeouts", format!("{{ connect = {connect}, response = {response}, attempt = {attempt} }}"));
    out.line("max_body", quote(body_max(way.body_max)));
    changes(out, "request", &way.request);
    changes(out, "response", &way.response);
}

fn changes(out: &mut Page, key: &str, changes: &Changes) {
    if !changes.is_none() {
        let set = changes.set_fields().iter().map(|(name, value)| (name.as_str(), value.clone()));
        let (set, removed) = (fields(set), quote_all(changes.removed()));
        out.line(key, format!("{{ set = {set}, remove = {removed} }}"));
    }
}

fn body_max(bytes: Option<u64>) -> String {
    bytes.map_or("unlimited".into(), write_size)
}

fn scope(out: &mut Page, scope: &Match) {
    out.line("path", quote(&scope.path));
    out.line("exact", scope.exact);
    if let Some(host) = &scope.host {
        out.line("host", quote(host_text(host)));
    }
    if !scope.methods.is_empty() {
        out.line("methods", quote_all(&scope.methods));
    }
    if !scope.headers.is_empty() {
        let value = |header: &HeaderMatch| header.value.clone().unwrap_or_else(|| "*".into());
        out.line("headers", fields(scope.headers.iter().map(|header| (header.name.as_str(), value(header)))));
    }
}

/// Header fields with their values, as a table; what may be a secret is masked.
fn fields<'n>(fields: impl Iterator<Item = (&'n str, String)>) -> String {
    let shown = |name: &str, value: String| if may_be_secret(name) && value != "*" { "***".into() } else { value };
    let members: Vec<String> =
        fields.map(|(name, value)| format!("{} = {}", join("", name), quote(shown(name, value)))).collect();
    format!("{{ {} }}", members.join(", "))
}

fn host_text(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.clone(),
        HostPattern::Suffix(tail) => format!("*{tail}"),
    }
}

fn limit(out: &mut Page, limit: &Limit) {
    out.section("[[limits]]");
    out.line("name", quote(&limit.name));
    let by = |by: &By| match by {
        By::User => "user".into(),
        By::Ip => "ip".into(),
        By::Endpoint => "endpoint".into(),
        By::Route => "route".into(),
        By::Method => "method".into(),
        By::Header(name) => format!("header:{name}"),
    };
    out.line("by", quote_all(limit.by.iter().map(by)));
    quota(out, limit.quota);
    out.line("cost", limit.cost);
    let mode = match limit.mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
    };
    out.line("mode", quote(mode));
    out.line("count_preflight", limit.count_preflight);
    if let Some(mode) = limit.on_failure {
        out.line("on_failure", quote(on_failure(mode)));
    }
    out.line("lease", limit.lease);
    out.section("[limits.match]");
    scope(out, &limit.scope);
    for (plan, own) in &limit.plans {
        out.section(&format!("[{}]", join("limits.plans", plan)));
        quota(out, *own);
    }
}

fn quota(out: &mut Page, quota: Quota) {
    out.line("rate", quote(quota.rate.to_string()));
    out.line("burst", quota.burst);
}
