//! `[upstreams]`: the groups of backends. Pure.

use super::error::{ConfigError, Flaw};
use super::file::{Section, UPSTREAM, UPSTREAM_HEALTH, UPSTREAM_TIMEOUTS, Value};
use super::server::WAIT;
use super::text;
use crate::upstream::{Server, Settings};
use std::time::Duration;

const UPSTREAMS_MAX: usize = 1000;
const SERVERS_MAX: usize = 1000;
const RETRIES_MAX: u32 = 10;

pub(super) fn upstreams(root: &Section<'_>) -> Result<Vec<Settings>, ConfigError> {
    let named = root.named("upstreams", &UPSTREAM, UPSTREAMS_MAX)?;
    if named.is_empty() {
        let example = "add [upstreams.api] with servers = [\"127.0.0.1:9001\"]";
        return Err(
            root.error_about("upstreams", Flaw::new("there is no upstream, so no request can go anywhere", example))
        );
    }
    named.into_iter().map(|(name, section)| upstream(name, &section)).collect()
}

fn upstream(name: String, section: &Section<'_>) -> Result<Settings, ConfigError> {
    let value = section.require("servers", "name at least one, such as servers = [\"127.0.0.1:9001\"]")?;
    // Members may repeat: that gives a server a greater share.
    let servers: Vec<_> = value.items(SERVERS_MAX)?.iter().map(|item| item.parse(server)).collect::<Result<_, _>>()?;
    if servers.is_empty() {
        return Err(value.error("has no server", "name at least one, such as \"127.0.0.1:9001\""));
    }
    section.read("balance", (), |value| {
        match value.choice(&[("round_robin", true), ("least_requests", false), ("hash", false)])? {
            true => Ok(()),
            false => Err(value.blame(Flaw::later("another balance than round_robin", "use \"round_robin\""))),
        }
    })?;
    let timeouts = section.section("timeouts", &UPSTREAM_TIMEOUTS)?;
    let seconds = |key, default| timeouts.read(key, Duration::from_secs(default), |value| value.duration(WAIT));
    refuse_active_health(section)?;
    Ok(Settings {
        name,
        servers,
        retries: section.read("retries", 1, |value| value.integer(0..=RETRIES_MAX))?,
        connect: seconds("connect", 1)?,
        response: seconds("response", 30)?,
        idle: seconds("idle", 60)?,
    })
}

fn server(text: &str) -> Result<Server, Flaw> {
    if let Some(rest) = text.strip_prefix("http://") {
        let rest = rest.trim_end_matches('/');
        return Err(Flaw::new(format!("{text:?} is a URL"), format!("write {rest:?}, without \"http://\"")));
    }
    for scheme in ["unix:", "https://"] {
        if text.starts_with(scheme) {
            return Err(Flaw::later(
                &format!("{scheme} as a server"),
                "use a server \"host:port\" that speaks plain HTTP",
            ));
        }
    }
    let (host, port) = text::host_and_port(text, None)?;
    Ok(Server { host, port })
}

/// Only the defaults may stand there, so that nobody relies on probes that are never sent.
fn refuse_active_health(section: &Section<'_>) -> Result<(), ConfigError> {
    let health = section.section("health", &UPSTREAM_HEALTH)?;
    let later =
        |value: &Value<'_>| value.blame(Flaw::later("active health checking", "remove it, or leave its default"));
    health.read("path", (), |value| if value.text()?.is_empty() { Ok(()) } else { Err(later(value)) })?;
    health.read("interval", (), |value| match value.duration(WAIT)? == Duration::from_secs(2) {
        true => Ok(()),
        false => Err(later(value)),
    })?;
    for (key, default) in [("unhealthy_after", 3), ("healthy_after", 2)] {
        health.read(key, (), |value| if value.integer(1..=1000)? == default { Ok(()) } else { Err(later(value)) })?;
    }
    Ok(())
}
