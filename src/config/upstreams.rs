//! `[upstreams]`: the groups of backends.
//!
//! Refuses waits that could never pass, and TLS that only some servers of a group would speak. Pure.

use super::error::{ConfigError, Flaw};
use super::file::{
    Section, UPSTREAM, UPSTREAM_CONNECTIONS, UPSTREAM_HEALTH, UPSTREAM_SERVER, UPSTREAM_TIMEOUTS, UPSTREAM_TLS, Value,
};
use super::server::WAIT;
use super::text;
use crate::resolve::NAMES_MAX;
use crate::tls;
use crate::upstream::proxy_protocol::ProxyProtocol;
use crate::upstream::way::Patience;
use crate::upstream::{Address, Balance, Connections, Health, Retries, Server, Settings, StatusSet, WEIGHT_MAX};
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const UPSTREAMS_MAX: usize = 1000;
const SERVERS_MAX: usize = 1000;
/// Names of servers; the others of the resolver are left to those of the store.
const SERVER_NAMES_MAX: usize = NAMES_MAX / 2;
const RETRIES_MAX: u32 = 10;
const STATUSES_MAX: usize = 32;
const THRESHOLD_MAX: u32 = 1000;
const CONNECTIONS_MAX: u32 = 1_000_000;
const IDLE_MAX: usize = 65_536;
const PATH_MAX: usize = 1024;

type Result<T> = std::result::Result<T, ConfigError>;

pub(super) fn upstreams(root: &Section<'_>) -> Result<Vec<Settings>> {
    let named = root.named("upstreams", &UPSTREAM, UPSTREAMS_MAX)?;
    if named.is_empty() {
        let example = "add [upstreams.api] with servers = [\"127.0.0.1:9001\"]";
        return Err(
            root.error_about("upstreams", Flaw::new("there is no upstream, so no request can go anywhere", example))
        );
    }
    let upstreams = named.into_iter().map(|(name, section)| upstream(name, &section)).collect::<Result<Vec<_>>>()?;
    let names: HashSet<(&str, u16)> =
        upstreams.iter().flat_map(|upstream| &upstream.servers).filter_map(name).collect();
    match names.len() > SERVER_NAMES_MAX {
        true => {
            let problem = format!("hold {} names, and {SERVER_NAMES_MAX} can be resolved", names.len());
            Err(root.error_about("upstreams", Flaw::new(problem, "use fewer names, each with several addresses")))
        }
        false => Ok(upstreams),
    }
}

/// What has to be resolved for a server.
fn name(server: &Server) -> Option<(&str, u16)> {
    match &server.address {
        Address::Tcp { host, port } if host.parse::<IpAddr>().is_err() => Some((host, *port)),
        Address::Tcp { .. } | Address::Unix(_) => None,
    }
}

fn upstream(name: String, section: &Section<'_>) -> Result<Settings> {
    let (servers, is_tls) = servers(section)?;
    let timeouts = section.section("timeouts", &UPSTREAM_TIMEOUTS)?;
    Ok(Settings {
        name,
        servers,
        balance: section.read("balance", Balance::RoundRobin, |value| {
            value.choice(&[
                ("round_robin", Balance::RoundRobin),
                ("least_requests", Balance::LeastRequests),
                ("hash", Balance::Hash),
            ])
        })?,
        retries: Retries {
            max: section.read("retries", 1, |value| value.integer(0..=RETRIES_MAX))?,
            statuses: section.read("retry_statuses", StatusSet::default(), statuses)?,
            budget_percent: section.read("retry_budget", 20, |value| value.parse(text::percent))?,
        },
        patience: patience(&timeouts, PATIENCE)?,
        idle: timeouts.read("idle", Duration::from_secs(60), |value| value.duration(WAIT))?,
        health: health(section)?,
        connections: connections(section)?,
        tls: tls(section, is_tls)?,
        proxy_protocol: section.read("proxy_protocol", ProxyProtocol::Off, |value| {
            value.choice(&[("off", ProxyProtocol::Off), ("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)])
        })?,
    })
}

/// The servers, and whether they are spoken to by TLS.
fn servers(section: &Section<'_>) -> Result<(Vec<Server>, bool)> {
    let value = section.require("servers", "name at least one, such as servers = [\"127.0.0.1:9001\"]")?;
    let mut servers: Vec<Server> = Vec::new();
    let mut is_tls = None;
    for item in value.items(SERVERS_MAX)? {
        let (server, secure) = server(&item)?;
        if *is_tls.get_or_insert(secure) != secure {
            let fix = "write all with \"https://\" or none, or make two upstreams of them";
            return Err(item.error("some servers of this upstream speak TLS and some do not", fix));
        }
        match servers.iter_mut().find(|other| other.address == server.address) {
            Some(twin) if twin.backup != server.backup => {
                return Err(item.error("is a backup for itself", "name it once, or a backup that is another server"));
            }
            // A server that stands here twice gets twice the share.
            Some(twin) => twin.weight = (twin.weight + server.weight).min(WEIGHT_MAX),
            None => servers.push(server),
        }
    }
    match servers.is_empty() {
        true => Err(value.error("has no server", "name at least one, such as \"127.0.0.1:9001\"")),
        false => Ok((servers, is_tls.unwrap_or_default())),
    }
}

fn server(item: &Value<'_>) -> Result<(Server, bool)> {
    if item.is_text() {
        let (address, is_tls) = item.parse(address)?;
        return Ok((Server { address, weight: 1, backup: false }, is_tls));
    }
    let section = item.section(&UPSTREAM_SERVER)?;
    let (address, is_tls) = section.require("address", "write address = \"127.0.0.1:9001\"")?.parse(address)?;
    let weight = section.read("weight", 1, |value| value.integer(1..=WEIGHT_MAX))?;
    let backup = section.read("backup", false, |value| value.boolean())?;
    Ok((Server { address, weight, backup }, is_tls))
}

/// `host:port`, `https://host[:port]` or `unix:/path.sock`.
fn address(text: &str) -> std::result::Result<(Address, bool), Flaw> {
    if let Some(rest) = text.strip_prefix("http://") {
        let rest = rest.trim_end_matches('/');
        return Err(Flaw::new(format!("{text:?} is a URL"), format!("write {rest:?}, without \"http://\"")));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok((Address::Unix(text::socket_path(path, "unix:/path.sock")?), false));
    }
    let (rest, default) = match text.strip_prefix("https://") {
        Some(rest) => (rest.strip_suffix('/').unwrap_or(rest), Some(443)),
        None => (text, None),
    };
    let (host, port) = text::host_and_port(rest, default)?;
    Ok((Address::Tcp { host, port }, default.is_some()))
}

/// What is used where nothing is written.
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(1), response: Duration::from_secs(30), attempt: None };

/// The waits in a section of timeouts, of an upstream or of a route; `usual` is what is not written.
pub(super) fn patience(timeouts: &Section<'_>, usual: Patience) -> Result<Patience> {
    let response = timeouts.read("response", usual.response, |value| value.duration(WAIT))?;
    let attempt = timeouts.read("attempt", usual.attempt, off_or_duration)?;
    if timeouts.get("attempt").is_some() && attempt.is_some_and(|attempt| attempt > response) {
        let flaw = Flaw::new("is longer than response, which all attempts share", "make it shorter, or \"off\"");
        return Err(timeouts.error_about("attempt", flaw));
    }
    let connect = timeouts.read("connect", usual.connect, |value| value.duration(WAIT))?;
    Ok(Patience { connect, response, attempt: attempt.map(|attempt| attempt.min(response)) })
}

fn health(section: &Section<'_>) -> Result<Health> {
    let health = section.section("health", &UPSTREAM_HEALTH)?;
    let wait = |key, default| health.read(key, Duration::from_secs(default), |value| value.duration(WAIT));
    let times = |key, default| health.read(key, default, |value| value.integer(1..=THRESHOLD_MAX));
    let interval = wait("interval", 2)?;
    Ok(Health {
        path: health.read("path", None, |value| value.parse(probe_path))?,
        interval,
        timeout: wait("timeout", 1)?,
        statuses: health.read("statuses", StatusSet(vec![200..=399]), |value| {
            let found = statuses(value)?;
            match found.0.is_empty() {
                true => Err(value.error("has no status, so no server would ever be well", "write [\"200-399\"]")),
                false => Ok(found),
            }
        })?,
        unhealthy_after: times("unhealthy_after", 3)?,
        healthy_after: times("healthy_after", 2)?,
        failures: health.read("failures", StatusSet(vec![502..=504]), statuses)?,
        failure_percent: health.read("failure_rate", Some(50), |value| {
            value.parse(|text| if text == "off" { Ok(None) } else { text::percent(text).map(Some) })
        })?,
        eject: health.read("eject", Some(Duration::from_secs(10)), off_or_duration)?,
        slow_start: health.read("slow_start", None, off_or_duration)?.unwrap_or_default(),
    })
}

/// The path that probes ask for; none where it is empty.
fn probe_path(text: &str) -> std::result::Result<Option<String>, Flaw> {
    match text.is_empty() {
        true => Ok(None),
        false if text.starts_with('/') && text.len() <= PATH_MAX && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(text.to_owned()))
        }
        false => Err(Flaw::new(format!("{text:?} is no path"), "write a path such as \"/healthz\", or \"\" for none")),
    }
}

fn connections(section: &Section<'_>) -> Result<Connections> {
    let connections = section.section("connections", &UPSTREAM_CONNECTIONS)?;
    let max = connections.read("max", None, |value| match value.is_text() && value.text()? == "unlimited" {
        true => Ok(None),
        false => value.integer(1..=CONNECTIONS_MAX).map(Some),
    })?;
    Ok(Connections {
        max,
        max_pending: connections.read("max_pending", 1000, |value| value.integer(0..=CONNECTIONS_MAX))?,
        pending: connections.read("pending", Duration::from_secs(1), |value| value.duration(WAIT))?,
        max_idle: connections.read("max_idle", 1000, |value| value.integer(0..=IDLE_MAX))?,
        max_age: connections.read("max_age", None, off_or_duration)?,
        keepalive: connections.read("keepalive", Some(Duration::from_secs(60)), |value| {
            let idle = off_or_duration(value)?;
            match idle.is_some_and(|idle| idle < Duration::from_secs(1)) {
                true => Err(value.error("is less than the kernel can wait", "write whole seconds, such as \"60s\"")),
                false => Ok(idle),
            }
        })?,
    })
}

fn tls(section: &Section<'_>, is_spoken: bool) -> Result<Option<tls::Settings>> {
    let keys = section.section("tls", &UPSTREAM_TLS)?;
    let own = tls_keys(&keys)?;
    if !is_spoken && own != tls::Settings::default() {
        let flaw = Flaw::new("the servers are not spoken to by TLS", "write them as \"https://host:port\"");
        return Err(keys.error_at(&["ca", "certificate", "name"], flaw));
    }
    Ok(is_spoken.then_some(own))
}

/// What a section of TLS says, the store's too.
pub(super) fn tls_keys(section: &Section<'_>) -> Result<tls::Settings> {
    let file = |key| section.read(key, None, |value| value.text().map(|path| Some(PathBuf::from(path))));
    let name = section.read("name", None, |value| value.text().map(Some))?;
    let own = tls::Settings { ca: file("ca")?, certificate: file("certificate")?, key: file("key")?, name };
    match own.certificate.is_some() == own.key.is_some() {
        true => Ok(own),
        false => {
            let flaw =
                Flaw::new("a certificate and its key belong together", "set both certificate and key, or neither");
            Err(section.error_at(&["certificate", "key"], flaw))
        }
    }
}

fn off_or_duration(value: &Value<'_>) -> Result<Option<Duration>> {
    if value.is_text() && value.text()? == "off" {
        return Ok(None);
    }
    let off = |error: ConfigError| ConfigError { fix: format!("{}, or \"off\"", error.fix), ..error };
    value.duration(WAIT).map(Some).map_err(off)
}

/// Statuses as numbers, `502`, or ranges, `"200-399"`.
fn statuses(value: &Value<'_>) -> Result<StatusSet> {
    let status = |item: &Value<'_>| match item.is_text() {
        true => item.parse(text::status_range),
        false => item.integer(100..=599).map(|status| status..=status),
    };
    value.items(STATUSES_MAX)?.iter().map(status).collect::<Result<_>>().map(StatusSet)
}
