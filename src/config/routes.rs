//! `[[routes]]`: where requests go. Also reads what a route or a limit applies to.
//!
//! Refuses routes to nowhere and routes that could never be taken. Pure.

use super::error::{ConfigError, Flaw, did_you_mean};
use super::file::{
    ROUTE, ROUTE_REDIRECT, ROUTE_REQUEST, ROUTE_RESPONSE, ROUTE_REWRITE, ROUTE_TIMEOUTS, Section, Value,
};
use super::server;
use super::text;
use super::{Goal, Route};
use crate::http::changes::{BadChange, CHANGES_MAX, Changes, Kind};
use crate::identity::endpoint;
use crate::route::redirect::{Redirect, STATUSES};
use crate::route::rewrite::{BadRewrite, PATTERN_MAX, PathChange, Rewrite};
use crate::route::{HeaderMatch, HostPattern, Match};
use crate::upstream::Settings;
use crate::upstream::way::Way;

const ROUTES_MAX: usize = 1000;
const METHODS_MAX: usize = 32;
const HEADERS_MAX: usize = 16;

/// Neither method nor body change, and it may be remembered.
const STATUS: u16 = 308;

const PATH_MAX: usize = 1024;

/// The routes. With one upstream, none needs to be written: everything goes there. `body_max` is the server's.
pub(super) fn routes(
    root: &Section<'_>,
    upstreams: &[Settings],
    body_max: Option<u64>,
) -> Result<Vec<Route>, ConfigError> {
    let sections = root.sections("routes", &ROUTE, ROUTES_MAX)?;
    if let ([], [only]) = (sections.as_slice(), upstreams) {
        let patience = only.patience;
        let way = Way { upstream: 0, patience, body_max, request: Changes::default(), response: Changes::default() };
        let scope = Match { path: "/".into(), ..Match::default() };
        return Ok(vec![Route { scope, path: PathChange::default(), goal: Goal::Upstream(way) }]);
    }
    if sections.is_empty() {
        let problem = format!("there are {} upstreams and no route", upstreams.len());
        return Err(
            root.error_about("routes", Flaw::new(problem, "add [[routes]] with path = \"/\" and upstream = \"…\""))
        );
    }
    let mut routes: Vec<Route> = Vec::with_capacity(sections.len());
    for section in &sections {
        let scope = scope(section)?;
        let path = path_change(section, &scope)?;
        let goal = match section.get("redirect") {
            Some(value) => Goal::Redirect(redirect(section, &value)?),
            None => Goal::Upstream(way(section, upstreams, body_max)?),
        };
        if let Some(other) = routes.iter().position(|other| other.scope.is_like(&scope)) {
            let problem = format!("routes[{other}] takes the same host, path, method and headers already");
            return Err(section.error_at(
                &["path", "headers", "host"],
                Flaw::new(problem, "remove one of the two, or change what it applies to"),
            ));
        }
        routes.push(Route { scope, path, goal });
    }
    Ok(routes)
}

/// What becomes of paths: the keys `strip_prefix`, `rewrite` and `add_prefix`.
fn path_change(section: &Section<'_>, scope: &Match) -> Result<PathChange, ConfigError> {
    let strip = section.read("strip_prefix", None, |value| {
        let prefix = value.parse(path)?;
        let whole = Match { path: prefix.clone(), ..Match::default() };
        if prefix == "/" {
            return Err(value.error("cuts nothing off", "remove it, or write a prefix such as \"/api\""));
        }
        match whole.covers(scope) {
            true => Ok(Some(prefix)),
            false => {
                let problem = format!("the route takes {}, which does not lie below {prefix}", scope.path);
                Err(value.error(problem, format!("write a prefix of path, or path = {:?}", prefix.clone() + "/")))
            }
        }
    })?;
    let rewrite = section.read("rewrite", None, |value| rewrite(value).map(Some))?;
    let add = section.read("add_prefix", None, |value| value.parse(added).map(Some))?;
    Ok(PathChange { strip, rewrite, add })
}

fn rewrite(value: &Value<'_>) -> Result<Rewrite, ConfigError> {
    let section = value.section(&ROUTE_REWRITE)?;
    let pattern = section.require("pattern", "write what is replaced, such as \"^/old/(.*)$\"")?;
    let to = section.require("to", "write what stands for it, such as \"/new/$1\"")?;
    Rewrite::new(&pattern.text()?, &to.text()?).map_err(|bad| match bad {
        BadRewrite::Pattern(problem) => {
            let fix = format!("use a regular expression of at most {PATTERN_MAX} characters, without look-around");
            pattern.error(problem, fix)
        }
        BadRewrite::To(problem) => {
            to.error(problem, "write a path with $0 to $9 for groups of the pattern, and $$ for \"$\"")
        }
    })
}

/// A prefix that is put before a path stands there as it is written.
fn added(text: &str) -> Result<String, Flaw> {
    let normal = path(text)?;
    let prefix = text.trim_end_matches('/');
    match normal == prefix && !prefix.is_empty() {
        true => Ok(normal),
        false => {
            let fix = "write visible characters as they are, without empty and dot segments, %2F, \";\" and \"\\\"";
            Err(Flaw::new(format!("{text:?} is no prefix in normal form"), fix))
        }
    }
}

/// How requests go to their upstream: as that says, and the server, where the route does not.
fn way(section: &Section<'_>, upstreams: &[Settings], body_max: Option<u64>) -> Result<Way, ConfigError> {
    let upstream = upstream_of(section, upstreams)?;
    let timeouts = section.section("timeouts", &ROUTE_TIMEOUTS)?;
    let patience = super::upstreams::patience(&timeouts, upstreams[upstream].patience)?;
    Ok(Way {
        upstream,
        patience,
        body_max: server::body_max(section, body_max)?,
        request: changes(&section.section("request", &ROUTE_REQUEST)?, Kind::Request)?,
        response: changes(&section.section("response", &ROUTE_RESPONSE)?, Kind::Response)?,
    })
}

/// What a redirect has nothing to do with: nothing is sent to a backend.
const FORWARDING: [&str; 4] = ["upstream", "timeouts", "max_body", "request"];

/// Fields of its answer that a redirect writes itself.
const REDIRECT_WRITES: [&str; 2] = ["Location", "Content-Type"];

fn redirect(route: &Section<'_>, value: &Value<'_>) -> Result<Redirect, ConfigError> {
    let section = value.section(&ROUTE_REDIRECT)?;
    let to = section.require("to", "write where to, such as \"https://{host}{path}\"")?;
    let status = section.read("status", STATUS, |value| {
        let status = value.integer(100..=599)?;
        match STATUSES.contains(&status) {
            true => Ok(status),
            false => Err(value.error(format!("{status} does not lead elsewhere"), "use 301, 302, 303, 307 or 308")),
        }
    })?;
    if let Some(other) = FORWARDING.iter().find_map(|key| route.get(key)) {
        return Err(other.error("goes with an upstream, and this route redirects", "remove it, or redirect"));
    }
    let response = route.section("response", &ROUTE_RESPONSE)?;
    let changes = changes(&response, Kind::Response)?;
    let is_taken = |name: &&str| changes.touches(name.as_bytes());
    if let Some(name) = REDIRECT_WRITES.into_iter().find(is_taken) {
        let problem = format!("{name} is written by the redirect");
        return Err(response.error_at(&["set", "remove"], Flaw::new(problem, "remove it")));
    }
    if !changes.removed().is_empty() {
        let flaw = Flaw::new("there is no backend's response to remove it from", "remove it");
        return Err(response.error_at(&["remove"], flaw));
    }
    Redirect::new(&to.text()?, status, changes).map_err(|bad| {
        let fix = "write \"https://{host}{path}\", \"https://example.com/there\" or \"/there{path}\"";
        to.error(bad.to_string(), fix)
    })
}

/// Header fields that are changed: the keys `set` and `remove`.
fn changes(section: &Section<'_>, kind: Kind) -> Result<Changes, ConfigError> {
    let mut changes = Changes::default();
    let refused = |value: &Value<'_>, name: &str, bad: BadChange| {
        let fix = match bad {
            BadChange::Framing | BadChange::Ours => "remove it",
            BadChange::HostRemoved => "set it, or remove this",
            BadChange::BadHost => "write \"example.com\" or \"example.com:8080\"",
            BadChange::Twice => "remove one of the two",
        };
        value.error(format!("{name:?} {bad}"), fix)
    };
    section.read("set", (), |value| {
        for (name, value) in value.entries(CHANGES_MAX)? {
            let name = text::token(name).map_err(|flaw| value.blame(flaw))?;
            let text = value.parse(text::field_value)?;
            changes.set(kind, &name, &text).map_err(|bad| refused(&value, &name, bad))?;
        }
        Ok(())
    })?;
    section.read("remove", (), |value| {
        for item in value.items(CHANGES_MAX)? {
            let name = item.parse(text::token)?;
            changes.remove(kind, &name).map_err(|bad| refused(&item, &name, bad))?;
        }
        Ok(())
    })?;
    Ok(changes)
}

fn upstream_of(section: &Section<'_>, upstreams: &[Settings]) -> Result<usize, ConfigError> {
    let names = upstreams.iter().map(|upstream| upstream.name.as_str());
    let value = section
        .require("upstream", "name the upstream that these requests go to, or write redirect = { to = \"…\" }")?;
    let name = value.text()?;
    names
        .clone()
        .position(|known| known == name)
        .ok_or_else(|| value.error(format!("there is no upstream {name:?}"), did_you_mean(&name, names)))
}

/// What a route or a limit applies to: the keys `path`, `exact`, `host`, `methods` and `headers`.
pub(super) fn scope(section: &Section<'_>) -> Result<Match, ConfigError> {
    Ok(Match {
        path: section.read("path", "/".into(), |value| value.parse(path))?,
        exact: section.read("exact", false, |value| value.boolean())?,
        host: section.read("host", None, |value| value.parse(host).map(Some))?,
        methods: section.read("methods", Vec::new(), |value| {
            let methods = value.list(METHODS_MAX, |item| item.parse(method))?;
            match methods.is_empty() {
                true => Err(value.error("has no method", "name at least one, or remove the key for any method")),
                false => Ok(methods),
            }
        })?,
        headers: section.read("headers", Vec::new(), |value| headers(value))?,
    })
}

/// The header fields that must be there, sorted, so that the same conditions are equal.
fn headers(value: &Value<'_>) -> Result<Vec<HeaderMatch>, ConfigError> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for (name, value) in value.entries(HEADERS_MAX)? {
        let name = text::token(name).map_err(|flaw| value.blame(flaw))?.to_ascii_lowercase();
        if name == "host" {
            return Err(value.error("the host asked for is no header here", "use the key host"));
        }
        if headers.iter().any(|other| other.name == name) {
            return Err(value.error("stands there twice, since case does not count", "remove one of the two"));
        }
        let text = value.parse(text::field_value)?;
        headers.push(HeaderMatch { name, value: (text != "*").then_some(text) });
    }
    headers.sort();
    Ok(headers)
}

fn path(text: &str) -> Result<String, Flaw> {
    let flaw = |problem: &str, fix: &str| Err(Flaw::new(format!("{text:?} {problem}"), fix));
    if !text.starts_with('/') {
        return flaw("does not start with \"/\"", "write a path such as \"/api/\"");
    }
    if text.contains('*') {
        return flaw("has a \"*\"", "write the prefix only: \"/api/\" matches /api and everything below it");
    }
    if text.contains(['?', '#']) {
        return flaw("has a query or fragment", "only the path is matched");
    }
    if text.len() > PATH_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return flaw("is no path as it stands on the wire", "percent-encode spaces and non-ASCII characters, as %20");
    }
    let mut normal = Vec::new();
    endpoint(text.as_bytes(), &mut normal);
    Ok(String::from_utf8_lossy(&normal).into_owned())
}

fn host(text: &str) -> Result<HostPattern, Flaw> {
    let fix = "write \"example.com\" or \"*.example.com\", without a port";
    HostPattern::parse(text).ok_or_else(|| Flaw::new(format!("{text:?} is no host"), fix))
}

/// Methods are case-sensitive (RFC 9110 section 9.1), so `get` would match nothing that is ever sent.
fn method(text: &str) -> Result<String, Flaw> {
    if text::is_token(text) && !text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Ok(text.to_owned());
    }
    Err(Flaw::new(format!("{text:?} is no method"), "write methods in capitals, such as \"GET\""))
}
