//! The program under test, as a process.

use super::{Folder, PATIENCE, signal, until};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_rateguard");

/// What gateways run on in this run of the tests.
pub fn io() -> String {
    std::env::var("RATEGUARD_TEST_IO").unwrap_or_else(|_| "auto".into())
}

/// A running gateway; killed when dropped.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<Vec<serde_json::Value>>>,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    _folder: Folder,
}

/// Puts a whole configuration together: `server` lines, one upstream `app` with `servers`, a route `/`, and `rest`.
pub fn config(server: &str, servers: &[SocketAddr], rest: &str) -> String {
    let servers: Vec<String> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nio = \"{}\"\n{server}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [upstreams.app]\nservers = [{}]\n[[routes]]\npath = \"/\"\nupstream = \"app\"\n{rest}\n",
        io(),
        servers.join(", ")
    )
}

impl Gateway {
    /// Starts a gateway with this configuration and waits until it listens.
    pub fn start(config: &str) -> Gateway {
        Gateway::start_by(config, Command::new(PROGRAM))
    }

    /// As `start`, with a command that runs the program (given as its last argument, or itself).
    pub fn start_by(config: &str, mut command: Command) -> Gateway {
        let folder = Folder::new();
        let path: PathBuf = folder.write("config.toml", config);
        let mut child = command
            .args(["run", "--config"])
            .arg(&path)
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the gateway's program starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let sink = log.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(serde_json::Value::String(line));
                sink.lock().unwrap().push(value);
            }
        });
        let find = |key: &str| -> Option<SocketAddr> {
            let log = log.lock().unwrap();
            log.iter().find_map(|line| line.get(key)?.as_str()?.parse().ok())
        };
        // Without an admin port, the address of the gateway stands in for it: it has no metrics to give.
        let has_admin = !config.contains("listen = \"off\"");
        let start = Instant::now();
        let (address, admin) = loop {
            if let (Some(address), admin) = (find("listen"), find("admin"))
                && (admin.is_some() || !has_admin)
            {
                break (address, admin.unwrap_or(address));
            }
            if child.try_wait().unwrap().is_some() || start.elapsed() >= PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                // All that it said, and no lock held while this thread panics.
                let _ = reader.join();
                let said = log.lock().unwrap().clone();
                panic!("the gateway did not start: {said:?}");
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        if let Some(wanted) = ["io_uring", "epoll"].into_iter().find(|io| config.contains(&format!("io = \"{io}\""))) {
            let ran_on = log.lock().unwrap().iter().find_map(|line| Some(line.get("io")?.as_str()?.to_string()));
            assert_eq!(ran_on.as_deref(), Some(wanted), "the gateway does not run on what the test is about");
        }
        if has_admin {
            until("the gateway is ready", || super::client::get(admin, "/readyz").status == 200);
        }
        Gateway { child, log, address, admin, _folder: folder }
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// The log lines so far.
    pub fn log(&self) -> Vec<serde_json::Value> {
        self.log.lock().unwrap().clone()
    }

    /// The log lines with this message.
    pub fn log_of(&self, message: &str) -> Vec<serde_json::Value> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// Waits until all workers are connected to the store.
    pub fn until_store_connected(&self) {
        until("both workers are connected to the store", || self.log_of("store connected").len() >= 2);
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        signal(self.child.id(), rustix::process::Signal::TERM);
    }

    /// Waits until it has stopped by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the gateway did not stop");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The value of a metric's series, such as `rateguard_decisions_total{limit="x",outcome="deny"}`; 0 where absent.
    pub fn metric(&self, series: &str) -> f64 {
        let text = super::client::get(self.admin, "/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the gateway at {}:", self.address);
            for line in self.log() {
                eprintln!("  {line}");
            }
        }
    }
}
