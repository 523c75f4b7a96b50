//! `[server]`, `[admin]` and `[log]`.
//!
//! Refuses addresses that are names, and waits and sizes without bounds. Pure.

use super::error::{ConfigError, Flaw};
use super::file::{ADMIN, LOG, SERVER_TIMEOUTS, Section};
use super::text;
use super::{Io, Log, Server};
use crate::{conn, http};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Any wait: longer than zero, and a day at most, beyond which it is a typing error.
pub(super) const WAIT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

const ADDRESSES_MAX: usize = 64;
const WORKERS_MAX: usize = 1024;
const CONNECTIONS_MAX: usize = 10_000_000;
const HEAD_BYTES: RangeInclusive<u64> = 1024..=1024 * 1024;
const HEAD_BYTES_DEFAULT: u64 = 16 * 1024;

pub(super) fn server(section: &Section<'_>) -> Result<Server, ConfigError> {
    let timeouts = section.section("timeouts", &SERVER_TIMEOUTS)?;
    let seconds = |key, default| timeouts.read(key, Duration::from_secs(default), |value| value.duration(WAIT));
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let head_max = section.read("max_head", HEAD_BYTES_DEFAULT, |value| value.size(HEAD_BYTES))?;
    Ok(Server {
        listen: section.read("listen", vec![local], |value| {
            let listen = value.list(ADDRESSES_MAX, |item| item.parse(text::socket_address))?;
            match listen.is_empty() {
                true => Err(value.error("has no address", "name at least one, such as \"127.0.0.1:8080\"")),
                false => Ok(listen),
            }
        })?,
        workers: section.read("workers", 0, |value| value.integer(0..=WORKERS_MAX))?,
        io: section.read("io", Io::Auto, |value| {
            value.choice(&[("auto", Io::Auto), ("io_uring", Io::IoUring), ("epoll", Io::Epoll)])
        })?,
        max_connections: section.read("max_connections", 20_000, |value| value.integer(1..=CONNECTIONS_MAX))?,
        bounds: http::Bounds {
            // A megabyte at most, so it fits.
            head_max: usize::try_from(head_max).unwrap_or(usize::MAX),
            fields_max: section.read("max_headers", 100, |value| value.integer(1..=http::FIELDS_MAX))?,
            body_max: body_max(section, None)?,
        },
        timeouts: conn::Timeouts {
            head: seconds("head", 10)?,
            body: seconds("body", 30)?,
            idle: seconds("idle", 75)?,
            write: seconds("write", 30)?,
            tunnel: seconds("tunnel", 600)?,
        },
        drain: seconds("drain", 30)?,
    })
}

/// The bound on a body; zero is refused, because elsewhere it means "unlimited" and here it would mean "none".
pub(super) fn body_max(section: &Section<'_>, default: Option<u64>) -> Result<Option<u64>, ConfigError> {
    let Some(value) = section.get("max_body") else { return Ok(default) };
    if value.is_text() && value.text()? == "unlimited" {
        return Ok(None);
    }
    match value.size(0..=u64::MAX) {
        Ok(0) => Err(value.error("0 would refuse every body", "write a size such as \"10MiB\", or \"unlimited\"")),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => Err(ConfigError { fix: format!("{}, or \"unlimited\"", error.fix), ..error }),
    }
}

pub(super) fn admin(root: &Section<'_>, listen: &[SocketAddr]) -> Result<Option<SocketAddr>, ConfigError> {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
    let section = root.section("admin", &ADMIN)?;
    let admin = section.read("listen", Some(local), |value| {
        value.parse(|text| if text == "off" { Ok(None) } else { text::socket_address(text).map(Some) })
    })?;
    match admin {
        Some(address) if address.port() != 0 && listen.iter().any(|other| meet(address, *other)) => Err(section
            .error_at(
                &["listen"],
                Flaw::new(format!("{address} is an address of server.listen too"), "use another port, or \"off\""),
            )),
        admin => Ok(admin),
    }
}

/// Whether a client can mean both: on one port, an address and all addresses of its kind. `[::]` is those of IPv4 too.
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let is_all_of = |all: SocketAddr, one: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4());
    one.port() == other.port() && (one == other || is_all_of(one, other) || is_all_of(other, one))
}

pub(super) fn log(root: &Section<'_>) -> Result<Log, ConfigError> {
    let section = root.section("log", &LOG)?;
    Ok(Log { denied: section.read("denied", true, |value| value.boolean())? })
}
