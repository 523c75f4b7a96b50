//! `[identity]`, `[[consumers]]` and `server.trusted_proxies`: who asks.
//!
//! API keys become digests here and go no further. Refuses sources that would never be looked at, and callers that
//! could not be told apart. Pure.

use super::error::{ConfigError, Flaw, did_you_mean};
use super::file::{CONSUMER, IDENTITY, Section, Value};
use super::text;
use crate::identity::{Consumer, Settings, Source, UnknownApiKeys};
use crate::limit::policy::Limit;
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

const PROXIES_MAX: usize = 1024;
const SOURCES_MAX: usize = 16;
const CONSUMERS_MAX: usize = 100_000;

pub(super) fn trusted_proxies(server: &Section<'_>) -> Result<Vec<IpNet>, ConfigError> {
    server.read("trusted_proxies", Vec::new(), |value| value.list(PROXIES_MAX, |item| item.parse(network)))
}

/// Reads `10.0.0.0/8` or `10.0.0.1`. Requests' addresses are canonical, so an IPv4-mapped network becomes IPv4.
fn network(text: &str) -> Result<IpNet, Flaw> {
    let address = |text: &str| text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    let net = text.parse::<IpNet>().ok().or_else(|| address(text));
    let flaw =
        || Flaw::new(format!("{text:?} is no network"), "write it as \"10.0.0.0/8\", \"fd00::/8\" or \"10.0.0.1\"");
    let net = net.ok_or_else(flaw)?.trunc();
    match (net.network().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(v4), Some(prefix)) if net.network().is_ipv6() => {
            IpNet::new(IpAddr::V4(v4), prefix).map_err(|_| flaw())
        }
        _ => Ok(net),
    }
}

/// The settings without their consumers.
pub(super) fn identity(root: &Section<'_>, trusted_proxies: Vec<IpNet>) -> Result<Settings, ConfigError> {
    let section = root.section("identity", &IDENTITY)?;
    let defaults = Settings::default();
    Ok(Settings {
        sources: section.read("sources", defaults.sources, sources)?,
        api_key_header: section.read("api_key_header", defaults.api_key_header, |value| value.parse(text::token))?,
        unknown_api_keys: section.read("unknown_api_keys", defaults.unknown_api_keys, |value| {
            value.choice(&[
                ("accept", UnknownApiKeys::Accept),
                ("ip", UnknownApiKeys::Ip),
                ("reject", UnknownApiKeys::Reject),
            ])
        })?,
        ipv6_prefix: section.read("ipv6_prefix", defaults.ipv6_prefix, |value| value.integer(1..=128))?,
        trusted_proxies,
        consumers: Vec::new(),
    })
}

fn sources(value: &Value<'_>) -> Result<Vec<Source>, ConfigError> {
    let sources = value.list(SOURCES_MAX, |item| item.parse(source))?;
    let ip = sources.iter().position(|source| *source == Source::Ip);
    match ip {
        _ if sources.is_empty() => Err(value.error("has no source", "write [\"ip\"] to tell clients apart by address")),
        Some(ip) if ip + 1 < sources.len() => Err(value.error(
            "what stands after \"ip\" is never looked at, because every request has an address",
            "put \"ip\" last",
        )),
        _ => Ok(sources),
    }
}

fn source(text: &str) -> Result<Source, Flaw> {
    match (text, text.split_once(':')) {
        ("api_key", _) => Ok(Source::ApiKey),
        ("ip", _) => Ok(Source::Ip),
        (_, Some(("header", name))) => text::token(name).map(Source::Header),
        (_, Some(("cookie", name))) => text::token(name).map(Source::Cookie),
        _ => {
            let known = ["api_key", "ip", "header:NAME", "cookie:NAME"];
            Err(Flaw::new(format!("{text:?} is no source"), did_you_mean(text, known.into_iter())))
        }
    }
}

/// The consumers with their sections, so that their plans can be checked once the limits are known.
pub(super) fn consumers<'s>(root: &Section<'s>) -> Result<Vec<(Section<'s>, Consumer)>, ConfigError> {
    let mut names = HashMap::new();
    let mut keys = HashMap::new();
    let mut consumers = Vec::new();
    for (i, section) in root.sections("consumers", &CONSUMER, CONSUMERS_MAX)?.into_iter().enumerate() {
        let value = section.require("name", "give the consumer a name, such as name = \"alice\"")?;
        let name = value.parse(consumer_name)?;
        let key_sha256 = key_sha256(&section)?;
        let plan = section.read("plan", None, |value| value.parse(text::name).map(Some))?;
        if let Some(other) = names.insert(name.clone(), i) {
            let problem = format!("consumers[{other}] has the name {name:?} already");
            return Err(value.error(problem, "use another name"));
        }
        if let Some(other) = keys.insert(key_sha256, i) {
            let flaw = Flaw::new(format!("consumers[{other}] has the same API key"), "give each consumer its own");
            return Err(section.error_at(&["api_key", "api_key_sha256"], flaw));
        }
        consumers.push((section, Consumer { name, key_sha256, plan }));
    }
    Ok(consumers)
}

/// Bytes of a consumer's name, as much as a part of a key.
const CONSUMER_NAME_MAX: usize = crate::identity::PART_MAX;

fn consumer_name(text: &str) -> Result<String, Flaw> {
    if (1..=CONSUMER_NAME_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(text.to_owned());
    }
    let fix = format!("use 1 to {CONSUMER_NAME_MAX} ASCII characters without spaces");
    Err(Flaw::new(format!("{text:?} cannot be a consumer's name"), fix))
}

fn key_sha256(section: &Section<'_>) -> Result<[u8; 32], ConfigError> {
    match (section.get("api_key"), section.get("api_key_sha256")) {
        (Some(_), Some(digest)) => Err(digest.error("api_key is there too", "keep one of the two")),
        (None, Some(digest)) => digest.parse(|text| {
            let example = "write the 64 hexadecimal digits that `printf %s \"$KEY\" | sha256sum` prints";
            read_sha256(text).ok_or_else(|| Flaw::new("is no SHA-256 digest", example))
        }),
        (key, None) => {
            let key = match key {
                Some(key) => key,
                None => section.require("api_key", "give the consumer an api_key or an api_key_sha256")?,
            };
            key.parse(digest_of_key)
        }
    }
}

/// Neither message may show the key.
fn digest_of_key(key: &str) -> Result<[u8; 32], Flaw> {
    if key.is_empty() {
        return Err(Flaw::new("the key is empty", "set the variable that it comes from, or write the key"));
    }
    if key.trim() != key || !key.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        let problem = "the key has characters that no header field can carry, or spaces around it";
        return Err(Flaw::new(problem, "use printable ASCII"));
    }
    Ok(Sha256::digest(key.as_bytes()).into())
}

fn read_sha256(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 2 * digest.len() || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |i: usize| char::from(digits[i]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(digest)
}

/// The consumers, once each of their plans is found in a limit.
pub(super) fn with_known_plans(
    consumers: Vec<(Section<'_>, Consumer)>,
    limits: &[Limit],
) -> Result<Vec<Consumer>, ConfigError> {
    let plans: BTreeSet<&str> = limits.iter().flat_map(|limit| &limit.plans).map(|(name, _)| name.as_str()).collect();
    let checked = consumers.into_iter().map(|(section, consumer)| match &consumer.plan {
        Some(plan) if !plans.contains(plan.as_str()) => {
            let flaw = Flaw::new(format!("no limit has a plan {plan:?}"), did_you_mean(plan, plans.iter().copied()));
            Err(section.error_at(&["plan"], flaw))
        }
        _ => Ok(consumer),
    });
    checked.collect()
}
