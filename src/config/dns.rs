//! `[dns]`: who is asked for the addresses of names, and how often. Pure.

use super::error::{ConfigError, Flaw};
use super::file::{DNS, Section, Value};
use crate::resolve::lookup::SERVERS_MAX;
use crate::resolve::{Interval, Settings};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Where nameservers listen.
const PORT: u16 = 53;

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

pub(super) fn dns(root: &Section<'_>) -> Result<Settings, ConfigError> {
    let section = root.section("dns", &DNS)?;
    Ok(Settings {
        servers: section.read("servers", Vec::new(), |value| value.list(SERVERS_MAX, |item| item.parse(server)))?,
        interval: section.read("interval", Interval::Every(INTERVAL_DEFAULT), interval)?,
        timeout: section.read("timeout", TIMEOUT_DEFAULT, |value| value.duration(TIMEOUT))?,
    })
}

fn interval(value: &Value<'_>) -> Result<Interval, ConfigError> {
    if value.is_text() && value.text()? == "ttl" {
        return Ok(Interval::Ttl);
    }
    match value.duration(INTERVAL) {
        Ok(interval) => Ok(Interval::Every(interval)),
        Err(error) => Err(ConfigError { fix: format!("{}, or \"ttl\"", error.fix), ..error }),
    }
}

/// Reads an address with or without a port; an IPv6 address with one stands in brackets.
fn server(text: &str) -> Result<SocketAddr, Flaw> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, PORT)),
        Err(_) => text.parse().ok(),
    };
    address.filter(|address| address.port() != 0).ok_or_else(|| {
        let fix = "write an IP address with or without a port, such as \"10.0.0.2\" or \"[fd00::2]:53\"";
        Flaw::new(format!("{text:?} is no address of a nameserver"), fix)
    })
}
