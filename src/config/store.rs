//! `[store]`: where buckets live, and what happens without it.
//!
//! A store's URL may hold a password, so no message here shows a part of one. Pure.

use super::error::{ConfigError, Flaw};
use super::file::{STORE, STORE_TLS, Section, Value};
use super::text;
use crate::limit::{OnFailure, StoreKind, StoreSettings};
use crate::redis::{Address, Settings, Tls};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
const DEADLINE_DEFAULT: Duration = Duration::from_millis(20);
const PORT_DEFAULT: u16 = 6379;
const PREFIX_MAX: usize = 64;

/// Replicas that a limit may be divided among.
const REPLICAS_MAX: u64 = 10_000;

/// Bytes of a Unix socket's path: `sockaddr_un` holds 108 with the final zero.
const SOCKET_PATH_MAX: usize = 107;

pub(super) fn store(root: &Section<'_>) -> Result<StoreSettings, ConfigError> {
    let section = root.section("store", &STORE)?;
    let deadline = section.read("deadline", DEADLINE_DEFAULT, |value| value.duration(DEADLINE))?;
    let mut kind = section.read("url", StoreKind::Memory, |value| value.parse(|text| kind(text, deadline)))?;
    secure(&section, &mut kind)?;
    let on_failure = section.read("on_failure", OnFailure::Open, on_failure)?;
    let replicas = section.read("replicas", 1, |value| value.integer(1..=REPLICAS_MAX))?;
    let key_prefix = section.read("key_prefix", "rate_limit".into(), |value| value.parse(key_prefix))?;
    Ok(StoreSettings { kind, on_failure, replicas, key_prefix })
}

pub(super) fn on_failure(value: &Value<'_>) -> Result<OnFailure, ConfigError> {
    value.choice(&[("open", OnFailure::Open), ("closed", OnFailure::Closed), ("local", OnFailure::Local)])
}

/// `[store.tls]`, which only a store that is spoken to by TLS may have.
fn secure(store: &Section<'_>, kind: &mut StoreKind) -> Result<(), ConfigError> {
    let section = store.section("tls", &STORE_TLS)?;
    let file = |key| section.read(key, None, |value| value.text().map(|path| Some(PathBuf::from(path))));
    let name = section.read("name", None, |value| value.text().map(Some))?;
    let tls = Tls { ca: file("ca")?, certificate: file("certificate")?, key: file("key")?, name };
    if tls.certificate.is_some() != tls.key.is_some() {
        let flaw = Flaw::new("a certificate and its key belong together", "set both certificate and key, or neither");
        return Err(section.error_at(&["certificate", "key"], flaw));
    }
    match kind {
        StoreKind::Redis(Settings { tls: Some(own), .. }) => *own = tls,
        _ if tls != Tls::default() => {
            let flaw = Flaw::new("the store is not spoken to by TLS", "write its url as \"rediss://…\"");
            return Err(section.error_at(&["ca", "certificate", "name"], flaw));
        }
        _ => {}
    }
    Ok(())
}

fn key_prefix(text: &str) -> Result<String, Flaw> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'{' | b'}');
    if (1..=PREFIX_MAX).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    let fix = format!("use 1 to {PREFIX_MAX} ASCII characters without spaces and braces, which mark the hash tag");
    Err(Flaw::new(format!("{text:?} cannot start a key"), fix))
}

fn kind(url: &str, deadline: Duration) -> Result<StoreKind, Flaw> {
    let forms = "write \"memory:\", \"redis://[user:pass@]host[:port][/db]\", the same with \"rediss://\", or \
                 \"redis+unix:///path.sock\"";
    if url == "memory:" {
        return Ok(StoreKind::Memory);
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(|| Flaw::new("is no URL of a store", forms))?;
    let settings = match scheme {
        "redis" => tcp(rest, deadline),
        "rediss" => tcp(rest, deadline).map(|settings| Settings { tls: Some(Tls::default()), ..settings }),
        "redis+unix" => unix(rest, deadline),
        "redis+sentinel" | "redis+cluster" => {
            Err(Flaw::later(&format!("{scheme}://"), "use redis://, rediss:// or redis+unix://"))
        }
        _ => Err(Flaw::new("its scheme is unknown", forms)),
    };
    settings.map(StoreKind::Redis)
}

/// `[user[:pass]@]host[:port][/db]`
fn tcp(rest: &str, deadline: Duration) -> Result<Settings, Flaw> {
    if rest.contains(['?', '#']) {
        return Err(Flaw::new(
            "has \"?\" or \"#\", which end an address",
            "write \"redis://[user:pass@]host[:port][/db]\" only; in a password, \"%3F\" and \"%23\"",
        ));
    }
    let (userinfo, place) = split_userinfo(rest);
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let (username, password) = credentials(userinfo)?;
    // Without its "@", a password stands where the host is looked for.
    let (host, port) = text::host_and_port(authority, Some(PORT_DEFAULT)).map_err(|_| {
        Flaw::new(
            "has no valid host and port",
            "write \"redis://[user:pass@]host[:port][/db]\", special characters as %40",
        )
    })?;
    Ok(Settings {
        address: Address::Tcp { host, port },
        username,
        password,
        database: if database.is_empty() { 0 } else { read_database(database)? },
        deadline,
        tls: None,
    })
}

/// `[user[:pass]@]/path.sock[?db=N]`
fn unix(rest: &str, deadline: Duration) -> Result<Settings, Flaw> {
    let (userinfo, place) = split_userinfo(rest);
    let (path, query) = place.split_once('?').map_or((place, None), |(path, query)| (path, Some(query)));
    let database = match query.map(|query| query.strip_prefix("db=")) {
        None => 0,
        Some(Some(number)) => read_database(number)?,
        Some(None) => return Err(Flaw::new("has an unknown option", "only \"?db=N\" may stand after the path")),
    };
    let path = decode(path)?;
    if !path.starts_with('/') || path.contains('\0') || path.len() > SOCKET_PATH_MAX {
        let fix = format!("write \"redis+unix:///path.sock\", with a path of at most {SOCKET_PATH_MAX} bytes");
        return Err(Flaw::new("has no path of a socket", fix));
    }
    let (username, password) = credentials(userinfo)?;
    Ok(Settings { address: Address::Unix(PathBuf::from(path)), username, password, database, deadline, tls: None })
}

fn split_userinfo(rest: &str) -> (Option<&str>, &str) {
    rest.rsplit_once('@').map_or((None, rest), |(userinfo, place)| (Some(userinfo), place))
}

fn read_database(text: &str) -> Result<u32, Flaw> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| Flaw::new("the database is no number", "write its number, such as \"/0\" or \"?db=0\""))
}

/// The user and the password of `user:pass` or `:pass`.
fn credentials(userinfo: Option<&str>) -> Result<(Option<String>, Option<String>), Flaw> {
    let Some(userinfo) = userinfo else { return Ok((None, None)) };
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let (user, password) = (decode(user)?, decode(password)?);
    match (user.is_empty(), password.is_empty()) {
        (_, true) => Err(Flaw::new(
            "the password is empty",
            "write \"user:pass@\" or \":pass@\", or remove the part before \"@\"; is its variable set?",
        )),
        (true, false) => Ok((None, Some(password))),
        (false, false) => Ok((Some(user), Some(password))),
    }
}

/// Percent-decoding (RFC 3986 section 2.1).
fn decode(text: &str) -> Result<String, Flaw> {
    let flaw = || Flaw::new("has a \"%\" that is not followed by two hexadecimal digits", "write \"%25\" for \"%\"");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let value = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
        out.push(value.ok_or_else(flaw)?);
    }
    String::from_utf8(out).map_err(|_| Flaw::new("is not UTF-8 when decoded", "write text, with \"%25\" for \"%\""))
}
