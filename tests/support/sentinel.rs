//! A primary, its replica, and three sentinels that watch them: all real.

use super::redis::{Redis, hold_port, port_of};
use super::{Folder, until};
use socket2::Socket;
use std::process::{Child, Command, Stdio};

/// What the sentinels call the primary.
pub const PRIMARY: &str = "buckets";

/// One sentinel; killed when dropped.
pub struct Sentinel {
    child: Child,
    pub port: u16,
    _port: Socket,
    _folder: Folder,
}

impl Sentinel {
    /// A sentinel that watches the primary on this port; two must agree that it is down. `lines` go into its configuration.
    fn start(primary: u16, lines: &str) -> Sentinel {
        let held = hold_port();
        let port = port_of(&held);
        let folder = Folder::new();
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {PRIMARY} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {PRIMARY} 500\nsentinel failover-timeout {PRIMARY} 2000\n{lines}\n",
            folder.path().display()
        );
        let child = Command::new("redis-server")
            .arg(folder.write("sentinel.conf", &config))
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        until("a sentinel takes connections", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Sentinel { child, port, _port: held, _folder: folder }
    }
}

impl Sentinel {
    fn connection(&self) -> redis::Connection {
        redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap().get_connection().unwrap()
    }

    fn tell(&self, command: &[&str]) {
        redis::cmd("SENTINEL").arg(command).exec(&mut self.connection()).unwrap();
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of them.
pub struct Watched {
    pub sentinels: Vec<Sentinel>,
    /// The first is the primary at the start.
    pub servers: [Redis; 2],
}

impl Watched {
    /// With sentinels that know each other and the replica, ready for a failover.
    pub fn start() -> Watched {
        let watched = Watched::start_with("");
        for sentinel in &watched.sentinels {
            // They look round every ten seconds else.
            sentinel.tell(&["DEBUG", "info-period", "300"]);
        }
        until("the sentinels know each other and the replica", || {
            watched.sentinels.iter().all(|sentinel| {
                let told: Vec<String> =
                    redis::cmd("SENTINEL").arg(&["MASTER", PRIMARY]).query(&mut sentinel.connection()).unwrap();
                let is = |key: &str, value: &str| told.chunks(2).any(|pair| pair[0] == key && pair[1] == value);
                is("num-slaves", "1") && is("num-other-sentinels", "2")
            })
        });
        watched
    }

    /// Sentinels that know the primary, with further lines in their configuration.
    pub fn start_with(lines: &str) -> Watched {
        let servers = [Redis::start(), Redis::start()];
        let [primary, replica] = &servers;
        redis::cmd("REPLICAOF").arg("127.0.0.1").arg(primary.port).exec(&mut replica.connection()).unwrap();
        until("the replica has caught up", || info(replica, "replication").contains("master_link_status:up"));
        let sentinels = (0..3).map(|_| Sentinel::start(primary.port, lines)).collect();
        Watched { sentinels, servers }
    }

    /// Asks the first sentinel to make the replica the primary.
    pub fn fail_over(&self) {
        until("the sentinel takes the replica for a good one", || {
            redis::cmd("SENTINEL").arg(&["FAILOVER", PRIMARY]).exec(&mut self.sentinels[0].connection()).is_ok()
        });
    }

    /// The URL of a store behind these sentinels.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{}/{PRIMARY}", sentinels.join(","))
    }
}

/// A section of INFO.
pub fn info(server: &Redis, section: &str) -> String {
    redis::cmd("INFO").arg(section).query(&mut server.connection()).unwrap()
}

/// Whether a server has this role now. It has none while its answer is lost: what promotes a server cuts its clients off.
pub fn has_role(server: &Redis, role: &str) -> bool {
    let connection = redis::Client::open(server.url()).unwrap().get_connection();
    let said = connection.and_then(|mut connection| redis::cmd("ROLE").query::<Vec<redis::Value>>(&mut connection));
    said.is_ok_and(|said| matches!(said.first(), Some(redis::Value::BulkString(is)) if is == role.as_bytes()))
}
