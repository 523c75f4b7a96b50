//! The configuration: text in, only valid values out, in the settings types that the rooms own.
//!
//! `config.toml` is its manual. Refused are unknown keys, values out of bounds, references to nothing, limits that
//! cannot be counted exactly, and what the design names but this version does not do: nothing that is written is
//! silently ignored. Each refusal names file, line, key and the fix. Pure: file and environment are arguments.

mod callers;
mod dns;
mod error;
mod file;
mod limits;
mod print;
mod routes;
mod server;
mod store;
mod text;
mod upstreams;
mod warnings;

pub use error::ConfigError;

use crate::{conn, http, identity, limit, resolve, route, upstream};
use file::{Section, Source};
use std::net::SocketAddr;
use std::time::Duration;

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What faces the clients.
    pub server: Server,
    /// Where the admin port listens; `None` = nowhere.
    pub admin: Option<SocketAddr>,
    /// How callers are told apart.
    pub identity: identity::Settings,
    /// Where buckets live.
    pub store: limit::StoreSettings,
    /// Whom to ask for the addresses of names.
    pub dns: resolve::Settings,
    /// The groups of backends, at least one, in the order of the file.
    pub upstreams: Vec<upstream::Settings>,
    /// Which requests go where, at least one.
    pub routes: Vec<Route>,
    /// The limits, in the order of the file.
    pub limits: Vec<limit::policy::Limit>,
    /// What is logged.
    pub log: Log,
}

/// What faces the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The addresses to listen on, at least one.
    pub listen: Vec<SocketAddr>,
    /// Worker threads, at most 1024; 0 = one for each core that this process may use.
    pub workers: usize,
    /// How workers wait for IO.
    pub io: Io,
    /// Client connections of the whole process, at least 1.
    pub max_connections: usize,
    /// How large a message may be.
    pub bounds: http::Bounds,
    /// How long a client may take.
    pub timeouts: conn::Timeouts,
    /// How long requests may go on after SIGTERM.
    pub drain: Duration,
}

/// How workers wait for IO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// io_uring where the kernel lets us, else epoll.
    #[default]
    Auto,
    /// io_uring or no start.
    IoUring,
    /// epoll.
    Epoll,
}

/// Sends requests to an upstream, or elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which requests.
    pub scope: route::Match,
    /// What becomes of their paths.
    pub path: route::rewrite::PathChange,
    /// Where they go.
    pub goal: Goal,
}

/// Where the requests of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// To an upstream, a position in [`Config::upstreams`].
    Upstream(upstream::way::Way),
    /// Elsewhere: their clients are told where.
    Redirect(route::redirect::Redirect),
}

/// What is logged beyond starts, stops and faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// One info line for each denied request.
    pub denied: bool,
}

impl Config {
    /// Reads a configuration. `file_name` only stands in errors; `env` looks up variables for `${NAME}`.
    pub fn parse(file_name: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let source = Source::new(file_name, text, env);
        let table = source.table()?;
        Config::read(&Section::root(&source, &table)?)
    }

    fn read(root: &Section<'_>) -> Result<Config, ConfigError> {
        let section = root.section("server", &file::SERVER)?;
        let server = server::server(&section)?;
        let admin = server::admin(root, &server.listen)?;
        let trusted_proxies = callers::trusted_proxies(&section)?;
        let mut identity = callers::identity(root, trusted_proxies)?;
        let consumers = callers::consumers(root)?;
        let store = store::store(root)?;
        let dns = dns::dns(root)?;
        let upstreams = upstreams::upstreams(root)?;
        let routes = routes::routes(root, &upstreams, server.bounds.body_max)?;
        let sections = root.sections("limits", &file::LIMIT, limits::LIMITS_MAX)?;
        let limits = limits::limits(&sections)?;
        identity.consumers = callers::with_known_plans(consumers, &limits)?;
        limits::check_together(&sections, &limits, &identity, &store)?;
        let log = server::log(root)?;
        Ok(Config { server, admin, identity, store, dns, upstreams, routes, limits, log })
    }

    /// What is valid and probably not meant, a sentence or two each.
    pub fn warnings(&self) -> Vec<String> {
        warnings::all(self)
    }

    /// The configuration in force as TOML, defaults included. Secrets read `***`, so what is printed can be shown.
    pub fn print(&self) -> String {
        print::config(self)
    }
}

#[cfg(test)]
mod tests;
