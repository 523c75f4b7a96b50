//! `[[routes]]`: where requests go. Also reads what a route or a limit applies to.
//!
//! Refuses routes to nowhere and routes that could never be taken. Pure.

use super::Route;
use super::error::{ConfigError, Flaw, did_you_mean};
use super::file::{ROUTE, Section};
use super::text;
use crate::identity::endpoint;
use crate::route::{HostPattern, Match};
use crate::upstream::Settings;

const ROUTES_MAX: usize = 1000;
const METHODS_MAX: usize = 32;
const PATH_MAX: usize = 1024;

/// The routes. With one upstream, none needs to be written: everything goes there.
pub(super) fn routes(root: &Section<'_>, upstreams: &[Settings]) -> Result<Vec<Route>, ConfigError> {
    let sections = root.sections("routes", &ROUTE, ROUTES_MAX)?;
    if sections.is_empty() && upstreams.len() == 1 {
        return Ok(vec![Route { scope: Match { path: "/".into(), ..Match::default() }, upstream: 0 }]);
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
        let upstream = upstream_of(section, upstreams)?;
        if let Some(other) = routes.iter().position(|other| overlap(&other.scope, &scope)) {
            let problem = format!("routes[{other}] takes the same host, path and method already");
            return Err(
                section.error_at(&["path"], Flaw::new(problem, "remove one of the two, or change what it applies to"))
            );
        }
        routes.push(Route { scope, upstream });
    }
    Ok(routes)
}

fn upstream_of(section: &Section<'_>, upstreams: &[Settings]) -> Result<usize, ConfigError> {
    let names = upstreams.iter().map(|upstream| upstream.name.as_str());
    let value = section.require("upstream", "name the upstream that these requests go to")?;
    let name = value.text()?;
    names
        .clone()
        .position(|known| known == name)
        .ok_or_else(|| value.error(format!("there is no upstream {name:?}"), did_you_mean(&name, names)))
}

/// Whether a request can fall under both with nothing to tell which is narrower.
fn overlap(a: &Match, b: &Match) -> bool {
    let methods = match (a.methods.is_empty(), b.methods.is_empty()) {
        (true, true) => true,
        (false, false) => a.methods.iter().any(|method| b.methods.contains(method)),
        _ => false,
    };
    a.host == b.host && a.path == b.path && methods
}

/// What a route or a limit applies to: the keys `path`, `host` and `methods`.
pub(super) fn scope(section: &Section<'_>) -> Result<Match, ConfigError> {
    Ok(Match {
        path: section.read("path", "/".into(), |value| value.parse(path))?,
        host: section.read("host", None, |value| value.parse(host).map(Some))?,
        methods: section.read("methods", Vec::new(), |value| {
            let methods = value.list(METHODS_MAX, |item| item.parse(method))?;
            match methods.is_empty() {
                true => Err(value.error("has no method", "name at least one, or remove the key for any method")),
                false => Ok(methods),
            }
        })?,
    })
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
