//! `rateguard demo`: the gateway and its backends in one process, on the store in memory; nothing to install.
//!
//! Shell.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: starts the demo backends' threads and prints"
)]

use crate::backend;
use crate::config::{Config, ConfigError};
use crate::control::{self, StartError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::thread;
use thiserror::Error;

/// The most demo backends: each is a thread.
pub const BACKENDS_MAX: usize = 64;

/// Why the demo did not run.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The gateway did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The demo's own configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system refused a socket or a thread.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Runs until Ctrl-C.
pub fn run(listen: SocketAddr, admin: &str, backends: usize) -> Result<(), DemoError> {
    let mut servers = Vec::new();
    for number in 1..=backends {
        let listener = backend::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        servers.push(format!("\"{}\"", listener.local_addr()?));
        let name = format!("backend-{number}");
        let body = {
            let name = name.clone();
            move || {
                if let Err(error) = backend::serve(listener, name) {
                    tracing::error!(%error, "a demo backend stopped");
                }
            }
        };
        thread::Builder::new().name(name).spawn(body)?;
    }
    let text = format!(
        "[server]\nlisten = \"{listen}\"\nmax_connections = 1000\n\
         [admin]\nlisten = \"{admin}\"\n\
         [log]\ndenied = false\n\
         [upstreams.demo]\nservers = [{}]\n\
         [[routes]]\npath = \"/\"\nupstream = \"demo\"\n\
         [[limits]]\nname = \"per-user\"\nmatch = {{ path = \"/api/\" }}\nby = [\"user\", \"endpoint\"]\nrate = \"5/s\"\nburst = 10\n\
         [[limits]]\nname = \"per-user-total\"\nby = [\"user\"]\nrate = \"50/s\"\nburst = 100\n",
        servers.join(", ")
    );
    let config = Config::parse("demo", &text, &|_| None)?;
    let running = control::start(config)?;
    if let Some(address) = running.listening.first() {
        // Where nobody reads it, it serves all the same.
        let _ = writeln!(io::stdout(), "{}", what_to_try(address, running.admin, backends));
    }
    running.wait()?;
    let _ = writeln!(io::stdout(), "stopped");
    Ok(())
}

fn what_to_try(address: &SocketAddr, admin: Option<SocketAddr>, backends: usize) -> String {
    let admin = match admin {
        Some(admin) => format!("  curl http://{admin}/metrics                   what is counted\n"),
        None => String::new(),
    };
    let program = std::env::args().next().unwrap_or_else(|| "rateguard".into());
    format!(
        "\nRateGuard listens on http://{address}, in front of {backends} demo backends.\n\
         Each user may ask each endpoint under /api/ 10 times at once, then 5 times a second; all together 100 times, then 50.\n\n\
         In another terminal, try:\n\
         \x20 curl -i http://{address}/api/data                a response, with its RateLimit fields\n\
         \x20 {program} burst http://{address}/api/data -n 50   50 at once: 10 get a token, the others a 429\n\
         \x20 for i in $(seq 12); do curl -s -o /dev/null -w '%{{http_code}} ' http://{address}/api/info; done\n\
         \x20 curl -s http://{address}/api/info                 right after that: the 429 and its reason\n\
         \x20 curl -s -H 'X-API-Key: me' http://{address}/api/info   another user, another bucket\n\
         \x20 {program} spread http://{address}/hello           which backend answers\n\
         {admin}\n\
         Ctrl-C stops it."
    )
}
