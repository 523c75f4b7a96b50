//! `[store]`: where buckets live, and what happens without it.
//!
//! A store's URL may hold a password, so no message here shows a part of one. Pure.

use super::error::{ConfigError, Flaw};
use super::file::{STORE, STORE_SENTINEL, STORE_TLS, Section, Value};
use super::text;
use crate::limit::{OnFailure, StoreKind, StoreSettings};
use crate::redis::{Address, Credentials, Place, Settings, Version};
use crate::tls;
use std::ops::RangeInclusive;
use std::time::Duration;

const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
const DEADLINE_DEFAULT: Duration = Duration::from_millis(20);
const PORT_DEFAULT: u16 = 6379;
const SENTINEL_PORT_DEFAULT: u16 = 26379;

/// Servers that a URL may name.
const SERVERS_MAX: usize = 32;
const PREFIX_MAX: usize = 64;

/// Replicas that a limit may be divided among.
const REPLICAS_MAX: u64 = 10_000;

pub(super) fn store(root: &Section<'_>) -> Result<StoreSettings, ConfigError> {
    let section = root.section("store", &STORE)?;
    let deadline = section.read("deadline", DEADLINE_DEFAULT, |value| value.duration(DEADLINE))?;
    let mut kind = section.read("url", StoreKind::Memory, |value| value.parse(|text| kind(text, deadline)))?;
    secure(&section, &mut kind)?;
    introduce(&section, &mut kind)?;
    let versions = [("resp2", Version::Two), ("resp3", Version::Three)];
    let version = section.read("protocol", Version::Two, |value| value.choice(&versions))?;
    if let StoreKind::Redis(settings) = &mut kind {
        settings.version = version;
    }
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
    let tls = super::upstreams::tls_keys(&section)?;
    let own = match kind {
        StoreKind::Redis(settings) => settings.tls.as_mut(),
        StoreKind::Memory => None,
    };
    match own {
        Some(own) => *own = tls,
        None if tls != tls::Settings::default() => {
            let flaw = Flaw::new("the store is not spoken to by TLS", "write its url as \"rediss://…\"");
            return Err(section.error_at(&["ca", "certificate", "name"], flaw));
        }
        None => {}
    }
    Ok(())
}

/// `[store.sentinel]`: who we are to the sentinels, which only a store that is found by them may have.
fn introduce(store: &Section<'_>, kind: &mut StoreKind) -> Result<(), ConfigError> {
    let section = store.section("sentinel", &STORE_SENTINEL)?;
    let username = section.read("username", None, |value| value.text().map(Some))?;
    let password = section.read("password", None, |value| value.text().map(Some))?;
    let own = match (username, password) {
        (None, None) => return Ok(()),
        (_, None) => {
            let flaw = Flaw::new("a user without a password", "set password, or remove username");
            return Err(section.error_at(&["username"], flaw));
        }
        (username, Some(password)) => Credentials { username, password },
    };
    let place = match kind {
        StoreKind::Redis(settings) => Some(&mut settings.place),
        StoreKind::Memory => None,
    };
    match place {
        Some(Place::Sentinel { credentials, .. }) => *credentials = Some(own),
        _ => {
            let flaw = Flaw::new("the store is not found by sentinels", "write its url as \"redis+sentinel://…\"");
            return Err(section.error_at(&["username", "password"], flaw));
        }
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
    if url == "memory:" {
        return Ok(StoreKind::Memory);
    }
    let (scheme, rest) = url.split_once("://").ok_or_else(|| Flaw::new("is no URL of a store", FORMS))?;
    let (place, credentials, database) = match scheme {
        "redis" | "rediss" => tcp(rest)?,
        "redis+unix" => unix(rest)?,
        "redis+sentinel" | "rediss+sentinel" => sentinel(rest)?,
        "redis+cluster" | "rediss+cluster" => cluster(rest)?,
        _ => return Err(Flaw::new("its scheme is unknown", FORMS)),
    };
    let tls = scheme.starts_with("rediss").then(tls::Settings::default);
    let settings = Settings { place, credentials, database, deadline, tls, version: Version::Two };
    Ok(StoreKind::Redis(Box::new(settings)))
}

const FORMS: &str = "write \"memory:\", \"redis://[user:pass@]host[:port][/db]\", \"redis+unix:///path.sock\", \
                     \"redis+sentinel://host,host,host/primary\" or \"redis+cluster://host,host\"; with \"rediss\" for TLS";

type Found = (Place, Option<Credentials>, u32);

/// `[user[:pass]@]host[:port][/db]`
fn tcp(rest: &str) -> Result<Found, Flaw> {
    let form = "write \"redis://[user:pass@]host[:port][/db]\"";
    let (userinfo, place) = split_userinfo(without_query(rest, form)?);
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    let credentials = credentials(userinfo)?;
    let [server] = servers(authority, PORT_DEFAULT, form)?.try_into().map_err(|_| {
        Flaw::new("names several servers", "only \"redis+sentinel://\" and \"redis+cluster://\" take a list")
    })?;
    Ok((Place::Server(server), credentials, database_or_none(database)?))
}

/// `[user[:pass]@]host[:port],…/primary[/db]`
fn sentinel(rest: &str) -> Result<Found, Flaw> {
    let form = "write \"redis+sentinel://[user:pass@]host[:port],host[:port]/primary[/db]\"";
    let (userinfo, place) = split_userinfo(without_query(rest, form)?);
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let (primary, database) = path.split_once('/').unwrap_or((path, ""));
    let credentials = credentials(userinfo)?;
    let sentinels = servers(authority, SENTINEL_PORT_DEFAULT, form)?;
    if primary.is_empty() {
        return Err(Flaw::new("does not say what the sentinels call the primary", form));
    }
    let place = Place::Sentinel { sentinels, primary: decode(primary)?, credentials: None };
    Ok((place, credentials, database_or_none(database)?))
}

/// `[user[:pass]@]host[:port],…`
fn cluster(rest: &str) -> Result<Found, Flaw> {
    let form = "write \"redis+cluster://[user:pass@]host[:port],host[:port]\"";
    let (userinfo, place) = split_userinfo(without_query(rest, form)?);
    let credentials = credentials(userinfo)?;
    let authority = place.strip_suffix('/').unwrap_or(place);
    if authority.contains('/') {
        return Err(Flaw::new("names a database, and a cluster has none but 0", form));
    }
    Ok((Place::Cluster(servers(authority, PORT_DEFAULT, form)?), credentials, 0))
}

fn without_query<'r>(rest: &'r str, form: &str) -> Result<&'r str, Flaw> {
    if rest.contains(['?', '#']) {
        let fix = format!("{form} only; in a password, \"%3F\" and \"%23\"");
        return Err(Flaw::new("has \"?\" or \"#\", which end an address", fix));
    }
    Ok(rest)
}

/// `host[:port],host[:port]`
fn servers(authority: &str, port: u16, form: &str) -> Result<Vec<Address>, Flaw> {
    let server = |text| {
        // Without its "@", a password stands where the host is looked for: so the text is not shown.
        let (host, port) = text::host_and_port(text, Some(port))
            .map_err(|_| Flaw::new("has no valid host and port", format!("{form}, special characters as %40")))?;
        Ok(Address::Tcp { host, port })
    };
    let servers = authority.split(',').map(server).collect::<Result<Vec<_>, _>>()?;
    match servers.len() {
        0..=SERVERS_MAX => Ok(servers),
        _ => Err(Flaw::new("names too many servers", format!("name {SERVERS_MAX} at most: the others are found"))),
    }
}

/// `[user[:pass]@]/path.sock[?db=N]`
fn unix(rest: &str) -> Result<Found, Flaw> {
    let (userinfo, place) = split_userinfo(rest);
    let (path, query) = place.split_once('?').map_or((place, None), |(path, query)| (path, Some(query)));
    let database = match query.map(|query| query.strip_prefix("db=")) {
        None => 0,
        Some(Some(number)) => read_database(number)?,
        Some(None) => return Err(Flaw::new("has an unknown option", "only \"?db=N\" may stand after the path")),
    };
    let path = text::socket_path(&decode(path)?, "redis+unix:///path.sock")?;
    Ok((Place::Server(Address::Unix(path)), credentials(userinfo)?, database))
}

fn split_userinfo(rest: &str) -> (Option<&str>, &str) {
    rest.rsplit_once('@').map_or((None, rest), |(userinfo, place)| (Some(userinfo), place))
}

fn database_or_none(text: &str) -> Result<u32, Flaw> {
    if text.is_empty() { Ok(0) } else { read_database(text) }
}

fn read_database(text: &str) -> Result<u32, Flaw> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| Flaw::new("the database is no number", "write its number, such as \"/0\" or \"?db=0\""))
}

/// The user and the password of `user:pass` or `:pass`.
fn credentials(userinfo: Option<&str>) -> Result<Option<Credentials>, Flaw> {
    let Some(userinfo) = userinfo else { return Ok(None) };
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let (user, password) = (decode(user)?, decode(password)?);
    match (user.is_empty(), password.is_empty()) {
        (_, true) => Err(Flaw::new(
            "the password is empty",
            "write \"user:pass@\" or \":pass@\", or remove the part before \"@\"; is its variable set?",
        )),
        (is_default, false) => Ok(Some(Credentials { username: (!is_default).then_some(user), password })),
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
