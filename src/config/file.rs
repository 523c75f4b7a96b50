//! What may stand in `config.toml`, and a reader that knows the line and the path of every value.
//!
//! The keys of each section are declared here, and [`Section`] refuses all others when it is opened: so nothing that is
//! written is ever silently ignored. Serde's errors name neither the path nor a fix, hence a walk over the parsed tree.
//! Pure: the environment is an argument.

use super::error::{ConfigError, Flaw, did_you_mean};
use super::text::{self, Env};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// The keys of a section.
#[derive(Debug)]
pub(super) struct Keys {
    /// Where: `*` stands for a name that the user chooses.
    pub at: &'static str,
    /// What may stand there.
    pub known: &'static [&'static str],
}

macro_rules! keys {
    ($($constant:ident = $at:literal: $($key:literal)*;)*) => {
        $(pub(super) static $constant: Keys = Keys { at: $at, known: &[$($key),*] };)*
        /// Every section.
        #[cfg(test)]
        pub(super) static ALL: &[&Keys] = &[$(&$constant),*];
    };
}

keys! {
    ROOT = "": "server" "admin" "identity" "consumers" "store" "dns" "upstreams" "routes" "limits" "log";
    SERVER = "server": "listen" "workers" "io" "trusted_proxies" "max_connections" "max_head" "max_headers" "max_body"
        "timeouts";
    SERVER_TIMEOUTS = "server.timeouts": "head" "body" "idle" "write" "tunnel" "drain";
    ADMIN = "admin": "listen";
    IDENTITY = "identity": "sources" "api_key_header" "unknown_api_keys" "ipv6_prefix";
    CONSUMER = "consumers": "name" "api_key" "api_key_sha256" "plan";
    STORE = "store": "url" "deadline" "on_failure" "replicas" "key_prefix" "protocol" "tls" "sentinel";
    STORE_TLS = "store.tls": "ca" "certificate" "key" "name";
    STORE_SENTINEL = "store.sentinel": "username" "password";
    DNS = "dns": "servers" "interval" "timeout";
    UPSTREAM = "upstreams.*": "servers" "balance" "retries" "retry_statuses" "retry_budget" "timeouts" "health"
        "connections" "tls" "proxy_protocol";
    UPSTREAM_SERVER = "upstreams.*.servers": "address" "weight" "backup";
    UPSTREAM_TIMEOUTS = "upstreams.*.timeouts": "connect" "response" "attempt" "idle";
    UPSTREAM_HEALTH = "upstreams.*.health": "path" "interval" "timeout" "statuses" "unhealthy_after" "healthy_after"
        "failures" "failure_rate" "eject" "slow_start";
    UPSTREAM_CONNECTIONS = "upstreams.*.connections": "max" "max_pending" "pending" "max_idle" "max_age" "keepalive";
    UPSTREAM_TLS = "upstreams.*.tls": "ca" "certificate" "key" "name";
    ROUTE = "routes": "path" "exact" "host" "methods" "headers" "upstream" "timeouts" "max_body"
        "strip_prefix" "rewrite" "add_prefix" "request" "response" "redirect";
    ROUTE_REDIRECT = "routes.redirect": "to" "status";
    ROUTE_REQUEST = "routes.request": "set" "remove";
    ROUTE_RESPONSE = "routes.response": "set" "remove";
    ROUTE_REWRITE = "routes.rewrite": "pattern" "to";
    ROUTE_TIMEOUTS = "routes.timeouts": "connect" "response" "attempt";
    LIMIT = "limits": "name" "match" "by" "rate" "burst" "cost" "mode" "plans" "count_preflight" "on_failure"
        "lease";
    LIMIT_MATCH = "limits.match": "path" "exact" "host" "methods" "headers";
    LIMIT_PLAN = "limits.plans.*": "rate" "burst";
    LOG = "log": "denied";
}

/// Names that are all the user's.
static CHOSEN: Keys = Keys { at: "*", known: &[] };

/// Keys of the design that this version does not have, at the top level.
const LATER: [&str; 2] = ["allow", "deny"];

type Result<T> = std::result::Result<T, ConfigError>;

/// The file.
pub(super) struct Source<'s> {
    name: &'s str,
    text: &'s str,
    env: Env<'s>,
    /// Where lines end: counting them anew for each of many consumers would take minutes.
    line_ends: Vec<usize>,
}

impl<'s> Source<'s> {
    pub fn new(name: &'s str, text: &'s str, env: Env<'s>) -> Source<'s> {
        Source { name, text, env, line_ends: memchr::memchr_iter(b'\n', text.as_bytes()).collect() }
    }

    /// Parses the file as TOML.
    pub fn table(&self) -> Result<DeTable<'s>> {
        let parsed = DeTable::parse(self.text);
        parsed.map(Spanned::into_inner).map_err(|error| {
            let span = error.span().unwrap_or_default();
            let line = error.span().map(|span| self.line(span.start));
            let message = error.message().replace('\n', ", ");
            let flaw = match (message.as_str(), self.text.get(span)) {
                ("duplicate key", Some(key)) => Flaw::new(format!("duplicate key {key:?}"), "remove one of the two"),
                _ => Flaw::new(message, "correct the TOML there: key = value, strings in double quotes"),
            };
            self.error(line, String::new(), flaw)
        })
    }

    /// The line of a position, counted from 1.
    fn line(&self, position: usize) -> usize {
        1 + self.line_ends.partition_point(|&end| end < position)
    }

    fn error(&self, line: Option<usize>, key: String, flaw: Flaw) -> ConfigError {
        ConfigError { file: self.name.to_owned(), line, key, problem: flaw.problem, fix: flaw.fix }
    }
}

/// A table of the file, or one that is not written and so is empty.
#[derive(Clone)]
pub(super) struct Section<'s> {
    source: &'s Source<'s>,
    path: String,
    line: Option<usize>,
    table: Option<&'s DeTable<'s>>,
    keys: &'static Keys,
}

impl<'s> Section<'s> {
    /// The whole file.
    pub fn root(source: &'s Source<'s>, table: &'s DeTable<'s>) -> Result<Section<'s>> {
        let root = Section { source, path: String::new(), line: None, table: Some(table), keys: &ROOT };
        for key in LATER {
            if let Some(value) = root.find(key) {
                return Err(value.blame(Flaw::later(&format!("{key:?}"), "remove it")));
            }
        }
        root.checked()
    }

    /// Refuses the first key that nobody reads.
    fn checked(self) -> Result<Section<'s>> {
        let unknown = self.entries().into_iter().find(|(key, _)| !self.keys.known.contains(key));
        match unknown {
            Some((key, value)) => Err(value.error("unknown key", did_you_mean(key, self.keys.known.iter().copied()))),
            None => Ok(self),
        }
    }

    /// All keys with their values, in the order of the file.
    fn entries(&self) -> Vec<(&'s str, Value<'s>)> {
        let mut entries: Vec<_> = self.table.iter().flat_map(|table| table.iter()).collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries.into_iter().map(|(key, raw)| (key.get_ref().as_ref(), self.value(key, raw))).collect()
    }

    fn find(&self, key: &str) -> Option<Value<'s>> {
        let (key, raw) = self.table?.get_key_value(key)?;
        Some(self.value(key, raw))
    }

    fn value(&self, key: &Spanned<DeString<'_>>, raw: &'s Spanned<DeValue<'s>>) -> Value<'s> {
        Value {
            source: self.source,
            path: join(&self.path, key.get_ref()),
            line: self.source.line(key.span().start),
            raw: raw.get_ref(),
        }
    }

    /// The value of a declared key.
    pub fn get(&self, key: &str) -> Option<Value<'s>> {
        debug_assert!(self.keys.known.contains(&key), "{key} is not declared for {}", self.keys.at);
        self.find(key)
    }

    /// The value of a key that must be there.
    pub fn require(&self, key: &str, fix: &str) -> Result<Value<'s>> {
        self.get(key).ok_or_else(|| self.error_about(key, Flaw::new("is missing", fix)))
    }

    /// What `read` makes of a value, or the default where it is not written.
    pub fn read<T>(&self, key: &str, default: T, read: impl FnOnce(&Value<'s>) -> Result<T>) -> Result<T> {
        self.get(key).map_or(Ok(default), |value| read(&value))
    }

    /// A section of this one.
    pub fn section(&self, key: &str, keys: &'static Keys) -> Result<Section<'s>> {
        match self.get(key) {
            Some(value) => value.section(keys),
            None => {
                Ok(Section { source: self.source, path: join(&self.path, key), line: self.line, table: None, keys })
            }
        }
    }

    /// A list of sections, `[[key]]`.
    pub fn sections(&self, key: &str, keys: &'static Keys, max: usize) -> Result<Vec<Section<'s>>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        if !value.raw.is_array() {
            return Err(value.wrong_type("a list of tables", &format!("write [[{key}]]")));
        }
        value.items(max)?.iter().map(|item| item.section(keys)).collect()
    }

    /// Sections by names that the user chooses, `[key.name]`, in the order of the file.
    pub fn named(&self, key: &str, keys: &'static Keys, max: usize) -> Result<Vec<(String, Section<'s>)>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let entries = value.open(keys)?.entries();
        if entries.len() > max {
            return Err(value.error(format!("has {} entries", entries.len()), format!("use at most {max}")));
        }
        let named = entries.into_iter().map(|(name, value)| {
            let name = text::name(name).map_err(|flaw| value.blame(flaw))?;
            Ok((name, value.section(keys)?))
        });
        named.collect()
    }

    /// An error about a key of this section, whether it is written or not.
    pub fn error_about(&self, key: &str, flaw: Flaw) -> ConfigError {
        let line = self.get(key).map(|value| value.line).or(self.line);
        self.source.error(line, join(&self.path, key), flaw)
    }

    /// An error about the first of these keys that is written, else about the section.
    pub fn error_at(&self, keys: &[&str], flaw: Flaw) -> ConfigError {
        match keys.iter().find_map(|key| self.get(key)) {
            Some(value) => value.blame(flaw),
            None => self.source.error(self.line, self.path.clone(), flaw),
        }
    }
}

/// A value, with the place where it stands.
#[derive(Clone)]
pub(super) struct Value<'s> {
    source: &'s Source<'s>,
    path: String,
    line: usize,
    raw: &'s DeValue<'s>,
}

impl<'s> Value<'s> {
    /// An error about this value.
    pub fn blame(&self, flaw: Flaw) -> ConfigError {
        self.source.error(Some(self.line), self.path.clone(), flaw)
    }

    /// An error about this value.
    pub fn error(&self, problem: impl Into<String>, fix: impl Into<String>) -> ConfigError {
        self.blame(Flaw::new(problem, fix))
    }

    fn wrong_type(&self, expected: &str, fix: &str) -> ConfigError {
        let found = match self.raw {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.error(format!("expected {expected}, found {found}"), fix)
    }

    fn open(&self, keys: &'static Keys) -> Result<Section<'s>> {
        let DeValue::Table(table) = self.raw else {
            return Err(self.wrong_type("a table", "write it as [section] or { key = value }"));
        };
        Ok(Section { source: self.source, path: self.path.clone(), line: Some(self.line), table: Some(table), keys })
    }

    /// A table with these keys.
    pub fn section(&self, keys: &'static Keys) -> Result<Section<'s>> {
        self.open(keys)?.checked()
    }

    /// The members of a table with names that the user chooses, at most `max`, in the order of the file.
    pub fn entries(&self, max: usize) -> Result<Vec<(&'s str, Value<'s>)>> {
        let entries = self.open(&CHOSEN)?.entries();
        match entries.len() > max {
            true => Err(self.error(format!("has {} entries", entries.len()), format!("use at most {max}"))),
            false => Ok(entries),
        }
    }

    /// The members of a list, at most `max`; a single string may stand without brackets.
    pub fn items(&self, max: usize) -> Result<Vec<Value<'s>>> {
        let array = match self.raw {
            DeValue::Array(array) => array,
            DeValue::String(_) => return Ok(vec![self.clone()]),
            _ => return Err(self.wrong_type("a list", "write it in brackets, as [\"a\", \"b\"]")),
        };
        if array.len() > max {
            return Err(self.error(format!("has {} members", array.len()), format!("use at most {max}")));
        }
        let item = |(i, raw): (usize, &'s Spanned<DeValue<'s>>)| Value {
            source: self.source,
            path: format!("{}[{i}]", self.path),
            line: self.source.line(raw.span().start),
            raw: raw.get_ref(),
        };
        Ok(array.iter().enumerate().map(item).collect())
    }

    /// What `read` makes of each member of a list; refuses what stands there twice.
    pub fn list<T: PartialEq>(&self, max: usize, read: impl Fn(&Value<'s>) -> Result<T>) -> Result<Vec<T>> {
        let mut found = Vec::new();
        for item in self.items(max)? {
            let member = read(&item)?;
            if found.contains(&member) {
                return Err(item.error("stands in the list already", "remove one of the two"));
            }
            found.push(member);
        }
        Ok(found)
    }

    /// Whether this is a string.
    pub fn is_text(&self) -> bool {
        self.raw.is_str()
    }

    /// A string, with its variables replaced.
    pub fn text(&self) -> Result<String> {
        let DeValue::String(raw) = self.raw else {
            return Err(self.wrong_type("a string", "put it in double quotes"));
        };
        text::expand(raw, self.source.env).map_err(|flaw| self.blame(flaw))
    }

    /// A string that means something.
    pub fn parse<T>(&self, parse: impl FnOnce(&str) -> std::result::Result<T, Flaw>) -> Result<T> {
        parse(&self.text()?).map_err(|flaw| self.blame(flaw))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T> {
        let word = self.text()?;
        let chosen = choices.iter().find(|(name, _)| *name == word);
        chosen.map(|(_, choice)| *choice).ok_or_else(|| {
            let fix = did_you_mean(&word, choices.iter().map(|(name, _)| *name));
            self.error(format!("{word:?} is not known here"), fix)
        })
    }

    /// Whether this is a string that takes its value from a variable: so numbers can come from the environment too.
    fn variable(&self) -> Result<Option<String>> {
        match self.raw {
            DeValue::String(raw) if raw.contains("${") => self.text().map(Some),
            _ => Ok(None),
        }
    }

    /// A yes or no.
    pub fn boolean(&self) -> Result<bool> {
        let fix = "write true or false, without quotes";
        match (self.raw, self.variable()?) {
            (DeValue::Boolean(boolean), _) => Ok(*boolean),
            (_, Some(text)) => text.parse().map_err(|_| self.error(format!("{text:?} is no boolean"), fix)),
            _ => Err(self.wrong_type("a boolean", fix)),
        }
    }

    /// A whole number within a range.
    pub fn integer<T>(&self, range: RangeInclusive<T>) -> Result<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let whole = format!("a whole number from {} to {}", range.start(), range.end());
        let fix = match self.raw.is_str() && self.variable()?.is_some() {
            true => format!("set the variable to {whole}"),
            false => format!("write {whole}, without quotes"),
        };
        let (text, radix) = match (self.raw, self.variable()?) {
            (DeValue::Integer(number), _) => (number.as_str().to_owned(), number.radix()),
            (_, Some(text)) => (text, 10),
            _ => return Err(self.wrong_type("an integer", &fix)),
        };
        let number = i128::from_str_radix(&text, radix);
        let problem = if number.is_ok() { "is out of range" } else { "is no whole number" };
        let number = number.ok().and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number));
        number.ok_or_else(|| self.error(format!("{text} {problem}"), fix))
    }

    /// A duration within a range.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration> {
        if !self.raw.is_str() {
            return Err(self.wrong_type("a duration", "write it as \"20ms\", \"10s\", \"5min\" or \"1h\""));
        }
        let duration = self.parse(text::duration)?;
        let bounds = [range.start(), range.end()].map(|bound| text::write_duration(*bound));
        match range.contains(&duration) {
            true => Ok(duration),
            false => Err(self.error(
                format!("{} is out of range", text::write_duration(duration)),
                format!("use {} to {}", bounds[0], bounds[1]),
            )),
        }
    }

    /// A size in bytes within a range.
    pub fn size(&self, range: RangeInclusive<u64>) -> Result<u64> {
        let bytes = match self.raw {
            DeValue::String(_) => self.parse(text::size)?,
            DeValue::Integer(_) => self.integer(0..=u64::MAX)?,
            _ => return Err(self.wrong_type("a size", "write it as \"16KiB\", \"1MiB\" or plain bytes")),
        };
        let bounds = [range.start(), range.end()].map(|bound| text::write_size(*bound));
        match range.contains(&bytes) {
            true => Ok(bytes),
            false => Err(self.error(
                format!("{} is out of range", text::write_size(bytes)),
                format!("use {} to {}", bounds[0], bounds[1]),
            )),
        }
    }
}

/// Appends a key to a dotted path, in quotes where TOML would want them.
pub(super) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let dot = if path.is_empty() { "" } else { "." };
    match bare {
        true => format!("{path}{dot}{key}"),
        false => format!("{path}{dot}{key:?}"),
    }
}
