use crate::support::client::Client;
use crate::support::gateway::{Gateway, PROGRAM, config};
use crate::support::origin::Origin;
use crate::support::redis::{hold_port, port_of};
use crate::support::{Folder, until};
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

/// A gateway whose stderr the test deals with.
struct Unheard {
    child: Child,
    address: SocketAddr,
    _port: socket2::Socket,
    _folder: Folder,
}

impl Unheard {
    fn start(rest: &str, rust_log: &str, stderr: Stdio) -> Unheard {
        let origin = Origin::ok();
        let port = hold_port();
        let address = SocketAddr::from(([127, 0, 0, 1], port_of(&port)));
        let text = config("", &[origin.address], rest).replacen("127.0.0.1:0", &address.to_string(), 1);
        let folder = Folder::new();
        let path = folder.write("config.toml", &text);
        let child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(path)
            .env("RUST_LOG", rust_log)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let gateway = Unheard { child, address, _port: port, _folder: folder };
        until("the gateway listens", || TcpStream::connect(address).is_ok());
        gateway
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_bad_rust_log_is_reported_in_one_line_and_info_is_logged() {
    let mut gateway = Unheard::start("", "rateguard=loud", Stdio::piped());
    let mut stderr = gateway.child.stderr.take().unwrap();
    let mut text = String::new();
    until("both lines are written", || {
        let mut piece = [0; 4096];
        let bytes = stderr.read(&mut piece).unwrap();
        text.push_str(std::str::from_utf8(&piece[..bytes]).unwrap());
        text.contains("\"listening\"")
    });
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("RUST_LOG=\"rateguard=loud\" cannot be used: "), "{text}");
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }
}

#[test]
fn a_closed_stderr_does_not_end_the_gateway() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut gateway = Unheard::start("", "debug", writer.into());
    assert_eq!(Client::connect(gateway.address).get("/", "").status, 200);
    assert!(gateway.child.try_wait().unwrap().is_none());
}

#[test]
fn a_reader_that_is_stuck_stops_nobody() {
    // Nobody reads the pipe: it holds 64 KiB, which is some hundred denials.
    let (_reader, writer) = std::io::pipe().unwrap();
    let limits = "[[limits]]\nname = \"none-left\"\nby = []\nrate = \"1/d\"\nburst = 1\n";
    let gateway = Unheard::start(limits, "info", writer.into());
    let mut client = Client::connect(gateway.address);
    let start = std::time::Instant::now();
    let mut answers = 0;
    // 100 lines of over a kilobyte a second: the pipe is full within one.
    while start.elapsed() < std::time::Duration::from_secs(5) {
        for _ in 0..50 {
            let long = "x".repeat(1000);
            let status = client.get(&format!("/{long}"), "").status;
            assert!(status == 200 || status == 429, "{status}");
            answers += 1;
        }
    }
    assert!(answers > 500, "only {answers} answers in 5 s");
}

/// Whoever reads the log behind a proxy must find the client there, and what it asked for.
#[test]
fn lines_name_the_client_the_server_and_the_endpoint() {
    let origin = Origin::ok();
    let hangs_up = Origin::new(|_, _| {});
    let rest = format!(
        "[identity]\nunknown_api_keys = \"reject\"\n[[limits]]\nname = \"x\"\nby = [\"ip\"]\nrate = \"1/d\"\nburst = 1\n\
         match.path = \"/limited\"\n[upstreams.other]\nservers = [\"{}\"]\n[[routes]]\npath = \"/other\"\nupstream = \"other\"\n",
        hangs_up.address
    );
    let gateway = Gateway::start(&config("trusted_proxies = [\"127.0.0.1\"]", &[origin.address], &rest));
    let ask = |path: &str, fields: &str| Client::connect(gateway.address).get(path, fields).status;
    let behind = "X-Forwarded-For: 7.7.7.7\r\n";
    let line = |message: &str, number: usize| {
        until("it is logged", || gateway.log_of(message).len() > number);
        gateway.log_of(message)[number].clone()
    };
    assert_eq!([ask("/limited", behind), ask("/limited", behind)], [200, 429]);
    let denied = line("denied", 0);
    assert_eq!((&denied["client"], &denied["peer"]), (&"7.7.7.7".into(), &"127.0.0.1".into()), "{denied}");
    assert_eq!([ask("/limited", ""), ask("/limited", "")], [200, 429]);
    assert!(line("denied", 1)["client"].is_null(), "it is the peer");

    assert_eq!(ask("/a/../b", &format!("{behind}X-API-Key: guessed\r\n")), 401);
    let refused = line("refused", 0);
    assert_eq!((&refused["client"], &refused["endpoint"]), (&"7.7.7.7".into(), &"/b".into()), "{refused}");
    let malformed = crate::support::client::raw(gateway.address, "GET / HTTP/1.1\r\nX-Forwarded-For: 7.7.7.7\r\n\r\n");
    assert_eq!(malformed.status, 400);
    let refused = line("refused", 1);
    assert!(refused["client"].is_null() && refused["endpoint"].is_null(), "{refused}");

    assert_eq!(ask("/other", behind), 502);
    let failed = line("the backend closed the connection without a response", 0);
    assert_eq!((&failed["client"], &failed["endpoint"]), (&"7.7.7.7".into(), &"/other".into()), "{failed}");
    assert_eq!(failed["server"], hangs_up.address.to_string(), "{failed}");
}
