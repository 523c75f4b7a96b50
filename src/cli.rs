//! The command line: what was asked for, and the exit code.
//!
//! Shell. 0 is good, 1 failed at run time, 2 is wrong usage or configuration.
#![allow(clippy::disallowed_methods, reason = "shell: reads the configuration file and the environment")]

use crate::config::{Config, ConfigError};
use crate::control::StartError;
use crate::explain::{self, Question};
use crate::tools::client::ToolError;
use crate::tools::{burst, healthcheck, spread};
use crate::{backend, control, demo, log};
use clap::{Args, Parser, Subcommand};
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};

const RUN_FAILED: u8 = 1;
const WRONG_CONFIG: u8 = 2;
/// The kernel keeps signals that nobody handles from this process, which a container's first one is.
const FIRST_PROCESS: u32 = 1;
/// What a shell calls the end by a signal: this and its number.
const SIGNALLED: i32 = 128;

#[derive(Parser)]
#[command(
    name = "rateguard",
    version,
    about = "A distributed API gateway with exact rate limiting",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Run(ConfigFile),
    /// Run the gateway with demo backends in one process; nothing else is needed
    Demo {
        /// Where the gateway listens
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Where the admin port listens, or "off"
        #[arg(long, default_value = "127.0.0.1:9090")]
        admin: String,
        /// How many backends
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=demo::BACKENDS_MAX as i64))]
        backends: u16,
    },
    /// Validate a configuration
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Print the effective configuration with every default, secrets masked
        #[arg(long)]
        print: bool,
    },
    /// Say who a request is, which route and limits it falls under, and which keys; consumes nothing
    Explain {
        #[command(flatten)]
        file: ConfigFile,
        /// GET, POST, ...
        method: String,
        /// The path, with or without a query
        path: String,
        /// The address that the connection comes from
        #[arg(long, default_value = "127.0.0.1")]
        ip: IpAddr,
        /// A header line, "Name: value"; may be repeated
        #[arg(short = 'H', long = "header")]
        headers: Vec<String>,
    },
    /// Run a demo backend
    Backend {
        /// Where it listens
        #[arg(long, default_value = "0.0.0.0:5000")]
        listen: SocketAddr,
    },
    /// Send a concurrent burst and show which requests got a token and which were throttled
    Burst {
        /// http://host[:port]/path
        url: String,
        /// Requests
        #[arg(short = 'n', long, default_value_t = 50)]
        requests: usize,
        /// Requests at one time
        #[arg(short = 'c', long, default_value_t = 50)]
        concurrency: usize,
        #[command(flatten)]
        headers: Headers,
    },
    /// Send requests one by one and show which backend answered how often
    Spread {
        /// http://host[:port]/path
        url: String,
        /// Requests
        #[arg(short = 'n', long, default_value_t = 40)]
        requests: usize,
        #[command(flatten)]
        headers: Headers,
    },
    /// Exit with 0 where the gateway is ready
    Healthcheck {
        /// Its admin port
        #[arg(long, default_value = "127.0.0.1:9090")]
        admin: SocketAddr,
    },
}

#[derive(Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, default_value = "config.toml")]
    config: PathBuf,
}

#[derive(Args)]
struct Headers {
    /// A header line, "Name: value"; may be repeated
    #[arg(short = 'H', long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
}

fn header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("a header is written \"Name: value\"")?;
    Ok((name.trim().into(), value.trim().into()))
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failed { code, message }) => {
            say(io::stderr(), format_args!("rateguard: {message}\n"));
            ExitCode::from(code)
        }
    }
}

/// Writes text for people; that nobody reads any more (`| head`) is no failure, where `println!` would panic.
fn say(mut to: impl Write, text: impl Display) {
    let _ = write!(to, "{text}").and_then(|()| to.flush());
}

/// Why a command failed.
struct Failed {
    code: u8,
    message: String,
}

fn at_run_time(error: impl Display) -> Failed {
    Failed { code: RUN_FAILED, message: error.to_string() }
}

/// What the configuration asks for may be impossible; else it is the machine's fault.
fn not_started(error: StartError) -> Failed {
    match error {
        StartError::Tls(_) => wrong_config(error),
        _ => at_run_time(error),
    }
}

fn wrong_config(error: impl Display) -> Failed {
    Failed { code: WRONG_CONFIG, message: error.to_string() }
}

fn tool(error: ToolError) -> Failed {
    Failed { code: error.exit_code(), message: error.to_string() }
}

fn run(command: Command) -> Result<(), Failed> {
    match command {
        Command::Run(file) => {
            let _log = log::init();
            let config = load(&file.config)?;
            for warning in config.warnings() {
                tracing::warn!("{warning}");
            }
            let running = control::start(config).map_err(not_started)?;
            running.wait().map_err(at_run_time)
        }
        Command::Demo { listen, admin, backends } => {
            let _log = log::init();
            demo::run(listen, &admin, usize::from(backends)).map_err(at_run_time)
        }
        Command::Check { file, print } => check(&file.config, print),
        Command::Explain { file, method, path, ip, headers } => {
            let config = load(&file.config)?;
            let question = Question { method, path, ip, headers };
            let text = explain::explain(&config, &question).map_err(wrong_config)?;
            say(io::stdout(), text);
            Ok(())
        }
        Command::Backend { listen } => {
            let _log = log::init();
            end_by_signals()?;
            backend::run(backend::Options { listen, name: None }).map_err(at_run_time)
        }
        Command::Burst { url, requests, concurrency, headers } => {
            end_by_signals()?;
            let options = burst::Options { url, requests, concurrency, headers: headers.headers };
            burst::run(&options).map(drop).map_err(tool)
        }
        Command::Spread { url, requests, headers } => {
            end_by_signals()?;
            let options = spread::Options { url, requests, headers: headers.headers };
            spread::run(&options).map(drop).map_err(tool)
        }
        Command::Healthcheck { admin } => healthcheck::run(admin).map_err(tool),
    }
}

/// Lets SIGTERM and Ctrl-C end a command that has nothing to finish, in a container too.
fn end_by_signals() -> Result<(), Failed> {
    if std::process::id() == FIRST_PROCESS {
        for signal in [SIGTERM, SIGINT] {
            let always = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_shutdown(signal, SIGNALLED + signal, always)
                .map_err(at_run_time)?;
        }
    }
    Ok(())
}

fn check(path: &Path, print: bool) -> Result<(), Failed> {
    let config = load(path)?;
    control::trust(&config).map_err(wrong_config)?;
    for warning in config.warnings() {
        say(io::stderr(), format_args!("warning: {warning}\n"));
    }
    match print {
        true => say(io::stdout(), config.print()),
        false => say(io::stdout(), format_args!("{}: ok\n", path.display())),
    }
    Ok(())
}

fn load(path: &Path) -> Result<Config, Failed> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        let problem = ConfigError {
            file: name.clone(),
            line: None,
            key: String::new(),
            problem: format!("cannot be read: {error}"),
            fix: "name a readable file with --config".into(),
        };
        wrong_config(problem)
    })?;
    Config::parse(&name, &text, &|variable| std::env::var(variable).ok()).map_err(wrong_config)
}
