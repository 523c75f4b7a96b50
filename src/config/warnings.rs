//! Warnings: what is valid and probably not meant.
//!
//! A warning never stops a start; what must stop one is an error. Pure.

use super::{Config, Goal};
use crate::identity::{Source, UnknownApiKeys};
use crate::limit::StoreKind;
use crate::limit::policy::{By, Limit, Mode};

pub(super) fn all(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(open_to_anybody(config));
    if config.limits.is_empty() {
        warnings.push("There is no [[limits]] entry, so nothing is limited.".into());
    }
    warnings.extend(config.limits.iter().filter_map(|limit| invented_buckets(config, limit)));
    warnings.extend(invented_keys(config));
    warnings.extend(unseen_consumers(config));
    warnings.extend(unused_upstreams(config));
    warnings.extend(idle_leases(config));
    warnings
}

fn open_to_anybody(config: &Config) -> Option<String> {
    let everybody = config.identity.trusted_proxies.iter().find(|net| net.prefix_len() == 0)?;
    Some(format!(
        "server.trusted_proxies holds {everybody}: every client is believed about its own address and can pass for \
         another. Name the addresses of your proxies only."
    ))
}

/// A limit with buckets for each path or field value, where nothing else bounds the sum of them.
fn invented_buckets(config: &Config, limit: &Limit) -> Option<String> {
    let chosen = limit.by.iter().find_map(|by| match by {
        By::Endpoint => Some("endpoint, and clients choose the paths they ask for".to_owned()),
        By::Header(name) => Some(format!("header:{name}, and clients choose its value")),
        _ => None,
    })?;
    let bounded = |other: &Limit| other.bounds_a_client() && other.scope.covers(&limit.scope);
    if limit.mode == Mode::Shadow || config.limits.iter().any(bounded) {
        return None;
    }
    Some(format!(
        "Limit {:?} counts by {chosen}: alone it does not bound what one client may send. Add a limit by user or ip \
         (or by = []) that covers the same requests.",
        limit.name
    ))
}

/// Limits by user, where a client that makes up API keys is a new user with each.
fn invented_keys(config: &Config) -> Option<String> {
    let identity = &config.identity;
    if identity.unknown_api_keys != UnknownApiKeys::Accept || !identity.sources.contains(&Source::ApiKey) {
        return None;
    }
    let by_user = |limit: &&Limit| limit.mode == Mode::Enforce && limit.by.contains(&By::User);
    let unbounded = |limit: &&Limit| {
        let bounds = |other: &Limit| {
            other.bounds_a_client() && !other.by.contains(&By::User) && other.scope.covers(&limit.scope)
        };
        !config.limits.iter().any(bounds)
    };
    let limit = config.limits.iter().filter(by_user).find(unbounded)?;
    Some(format!(
        "Limit {:?} counts by user, and identity.unknown_api_keys = \"accept\" makes each API key a user: a client that \
         invents keys is not bounded. Add a limit by ip that covers the same requests, or set unknown_api_keys to \
         \"ip\" or \"reject\".",
        limit.name
    ))
}

fn unseen_consumers(config: &Config) -> Option<String> {
    let identity = &config.identity;
    let unseen = !identity.consumers.is_empty() && !identity.sources.contains(&Source::ApiKey);
    unseen.then(|| {
        "There are [[consumers]], and identity.sources does not look for API keys: nobody is ever one of them. Add \
         \"api_key\" to the sources."
            .into()
    })
}

fn unused_upstreams(config: &Config) -> impl Iterator<Item = String> {
    let used =
        |at: usize| config.routes.iter().any(|route| matches!(&route.goal, Goal::Upstream(way) if way.upstream == at));
    let unused = config.upstreams.iter().enumerate().filter(move |(at, _)| !used(*at));
    unused.map(|(_, upstream)| format!("No route leads to upstream {:?}.", upstream.name))
}

/// Leases where there is no store to take tokens from.
fn idle_leases(config: &Config) -> Option<String> {
    let limit = config.limits.iter().find(|limit| limit.lease > 0 && config.store.kind == StoreKind::Memory)?;
    Some(format!(
        "Limit {:?} has a lease, which saves round trips to Redis: with store.url = \"memory:\" it has no effect.",
        limit.name
    ))
}
