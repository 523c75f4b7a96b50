//! Values written as text: sizes, durations, names, addresses, and `${NAME}` in any string.
//!
//! Refuses what could be meant in two ways: a number without a unit, `KB` for `KiB`, a fraction. Pure: the environment
//! is an argument.

use super::error::Flaw;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// How variables are looked up.
pub(super) type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Replaces `${NAME}` and `${NAME:-default}`; `$${` stands for `${` itself. As in a shell, the default also stands in
/// for a variable that is set and empty.
pub(super) fn expand(text: &str, env: Env<'_>) -> Result<String, Flaw> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let (inside, after) = rest[at + 2..]
            .split_once('}')
            .ok_or_else(|| Flaw::new("\"${\" without \"}\"", "close it, or write \"$${\" for a literal \"${\""))?;
        out.push_str(&variable(inside, env)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn variable(inside: &str, env: Env<'_>) -> Result<String, Flaw> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts_well || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(Flaw::new(
            format!("{name:?} is no name of a variable"),
            "write \"${NAME}\" or \"${NAME:-default}\", or \"$${\" for a literal \"${\"",
        ));
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Flaw::new(
            format!("the environment variable {name} is not set"),
            format!("set it, or write \"${{{name}:-default}}\""),
        )),
    }
}

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `"16KiB"`, `"1MiB"`, `"2GiB"`, `"512B"` or plain bytes.
pub(super) fn size(text: &str) -> Result<u64, Flaw> {
    let (count, unit) = number_and_unit(text);
    let factor = match unit {
        "" => Some(1),
        unit => factor_of(unit, &SIZE_UNITS),
    };
    let bytes = factor.and_then(|factor| count?.checked_mul(factor));
    bytes.ok_or_else(|| Flaw::new(format!("{text:?} is no size"), "write it as \"16KiB\", \"1MiB\" or plain bytes"))
}

/// Writes a size in its largest whole unit.
pub(super) fn write_size(bytes: u64) -> String {
    in_largest_unit(bytes, &SIZE_UNITS)
}

const DURATION_UNITS_MS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `"20ms"`, `"10s"`, `"5min"`, `"1h"`, `"1d"`.
pub(super) fn duration(text: &str) -> Result<Duration, Flaw> {
    let (count, unit) = number_and_unit(text);
    let ms = factor_of(unit, &DURATION_UNITS_MS).and_then(|factor| count?.checked_mul(factor));
    ms.map(Duration::from_millis).ok_or_else(|| {
        Flaw::new(format!("{text:?} is no duration"), "write it as \"20ms\", \"10s\", \"5min\" or \"1h\"")
    })
}

/// Writes a duration of whole milliseconds in its largest whole unit.
pub(super) fn write_duration(duration: Duration) -> String {
    in_largest_unit(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS_MS)
}

/// Bytes of a Unix socket's path: `sockaddr_un` holds 108 with the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// Reads the path of a Unix socket; `form` is how the whole is written.
pub(super) fn socket_path(path: &str, form: &str) -> Result<PathBuf, Flaw> {
    if path.starts_with('/') && !path.contains('\0') && path.len() <= SOCKET_PATH_MAX {
        return Ok(PathBuf::from(path));
    }
    let fix = format!("write \"{form}\", with a path of at most {SOCKET_PATH_MAX} bytes");
    Err(Flaw::new("has no path of a socket", fix))
}

/// Reads `"20%"`, at most a hundred.
pub(super) fn percent(text: &str) -> Result<u32, Flaw> {
    let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
    let number = number.filter(|number| *number <= 100);
    number.ok_or_else(|| Flaw::new(format!("{text:?} is no share"), "write it as \"20%\", at most \"100%\""))
}

/// Reads `"200-399"` or `"404"`.
pub(super) fn status_range(text: &str) -> Result<RangeInclusive<u16>, Flaw> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let bounds = first.parse().ok().zip(last.parse().ok());
    let fits = |&(first, last): &(u16, u16)| 100 <= first && first <= last && last <= 599;
    bounds
        .filter(fits)
        .map(|(first, last)| first..=last)
        .ok_or_else(|| Flaw::new(format!("{text:?} is no status and no range of them"), "write 503, or \"500-599\""))
}

fn number_and_unit(text: &str) -> (Option<u64>, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    (count.parse().ok(), unit.trim_start())
}

fn factor_of(unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

fn in_largest_unit(count: u64, units: &[(&str, u64)]) -> String {
    let fits = units.iter().find(|(_, factor)| count > 0 && count.is_multiple_of(*factor));
    let (unit, factor) = fits.or(units.last()).copied().unwrap_or(("", 1));
    format!("{}{unit}", count / factor)
}

/// Bytes of a name.
const NAME_MAX: usize = 64;

/// Reads the name of a limit, plan or upstream: it stands in keys, header fields and metrics, so it is kept plain.
pub(super) fn name(text: &str) -> Result<String, Flaw> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(Flaw::new(
        format!("{text:?} cannot be a name"),
        format!("use 1 to {NAME_MAX} letters, digits, \"_\", \".\" and \"-\""),
    ))
}

/// Reads a token (RFC 9110 section 5.6.2): the name of a header field or a cookie.
pub(super) fn token(text: &str) -> Result<String, Flaw> {
    if is_token(text) {
        return Ok(text.to_owned());
    }
    Err(Flaw::new(
        format!("{text:?} cannot be the name of a header field or cookie"),
        "use letters, digits and \"-\", without spaces or \":\"",
    ))
}

/// Bytes of a field's value.
const VALUE_MAX: usize = 4096;

/// Reads the value of a header field. What is wrong with it does not show it: it may be a secret.
pub(super) fn field_value(text: &str) -> Result<String, Flaw> {
    let fits = |c: char| c == '\t' || !c.is_control();
    if text.len() <= VALUE_MAX && text.chars().all(fits) && text.trim_matches([' ', '\t']) == text {
        return Ok(text.to_owned());
    }
    let fix = format!("use at most {VALUE_MAX} bytes on one line, without control characters and spaces around it");
    Err(Flaw::new("cannot be the value of a header field", fix))
}

pub(super) fn is_token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(fits)
}

/// Reads an address to listen on, `ip:port`. Names are refused: which of their addresses is meant would be a guess.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Flaw> {
    let fix = match text.split_once(':') {
        Some(("", port)) => {
            format!("write \"0.0.0.0:{port}\" for all interfaces or \"127.0.0.1:{port}\" for this host")
        }
        Some(("localhost", port)) => format!("write \"127.0.0.1:{port}\""),
        _ => "write an IP address and a port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"".into(),
    };
    text.parse().map_err(|_| Flaw::new(format!("{text:?} is no address to listen on"), fix))
}

/// Reads the host and port of a server: `name:port`, `ip:port`, `[ipv6]:port`; the port may have a default.
pub(super) fn host_and_port(text: &str, default_port: Option<u16>) -> Result<(String, u16), Flaw> {
    let flaw = |problem: String| Flaw::new(problem, "write \"host:port\", \"ip:port\" or \"[ipv6]:port\"");
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            address.parse::<std::net::Ipv6Addr>().map_err(|_| flaw(format!("{address:?} is no IPv6 address")))?;
            (address, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
        }
        None => {
            let (host, port) = text.split_once(':').unwrap_or((text, ""));
            (is_host(host).then_some(host).ok_or_else(|| flaw(format!("{host:?} is no host")))?, Some(port))
        }
    };
    let port = match (port, default_port) {
        (Some(""), Some(default)) => default,
        (Some(""), None) => return Err(flaw(format!("{text:?} has no port"))),
        (port, _) => {
            let number = port.and_then(|port| port.parse().ok()).filter(|&port| port != 0);
            number.ok_or_else(|| flaw(format!("{text:?} has no valid port")))?
        }
    };
    Ok((host.to_owned(), port))
}

/// Bytes of a host name, and of each of its labels (RFC 1035 section 2.3.4).
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Whether it is a name or an IPv4 address. Numbers alone are no name (RFC 1123 section 2.1), but a mistyped address.
fn is_host(host: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let is_label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(fits);
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_number = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (1..=HOST_MAX).contains(&host.len())
        && name.split('.').all(is_label)
        && (!is_number || host.parse::<std::net::Ipv4Addr>().is_ok())
}
