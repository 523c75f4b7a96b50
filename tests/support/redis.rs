//! Real Redis servers, one for each test that needs one.

use super::{Folder, signal, until};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

/// A running redis-server; killed when dropped.
pub struct Redis {
    child: Option<Child>,
    pub port: u16,
    /// Bound and never listening: so the kernel gives the port to nobody else, also while the server is down, and the
    /// server may still listen on it.
    _port: Socket,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: Folder,
}

impl Redis {
    /// A server on a free port of 127.0.0.1, also on the unix socket `redis.sock` in its folder.
    pub fn start() -> Redis {
        Redis::start_with(&[])
    }

    /// As `start`, with further command line arguments.
    pub fn start_with(arguments: &[&str]) -> Redis {
        Redis::start_in(&[], arguments)
    }

    /// As `start_with`, with variables in its environment.
    pub fn start_in(environment: &[(&str, &str)], arguments: &[&str]) -> Redis {
        let held = hold_port();
        let mut redis = Redis {
            child: None,
            port: port_of(&held),
            _port: held,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            // A disk that others keep busy would hold up a start, and every write to a log, for minutes perhaps.
            folder: Folder::in_memory(),
        };
        redis.launch();
        redis
    }

    /// Starts the server again, on the same port, after `kill`.
    pub fn launch(&mut self) {
        let socket = self.socket();
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--repl-diskless-sync-delay",
                "0",
            ])
            .args(["--unixsocket", &socket, "--dir"])
            .arg(self.folder.path())
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed; ./tests/run installs it (Debian: apt-get install redis-server)");
        let child = self.child.insert(child);
        until("redis-server takes connections", || {
            assert!(child.try_wait().unwrap().is_none(), "redis-server {:?} has ended at once", self.arguments);
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    pub fn socket(&self) -> String {
        self.folder.path().join("redis.sock").display().to_string()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `[store]` lines for a gateway.
    pub fn store(&self) -> String {
        format!("[store]\nurl = \"{}\"\n", self.url())
    }

    /// A client connection.
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().unwrap()
    }

    /// Kills the server at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the server without closing anything: it hangs.
    pub fn suspend(&self) {
        super::suspend(self.process());
    }

    /// Lets a suspended server go on.
    pub fn resume(&self) {
        signal(self.process(), Signal::CONT);
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn port_of(held: &Socket) -> u16 {
    held.local_addr().unwrap().as_socket().unwrap().port()
}

/// A port of 127.0.0.1 that refuses connections, and that the kernel gives to nobody else, for as long as its socket is
/// held; a server may listen on it.
pub fn hold_port() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket
}
