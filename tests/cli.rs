//! The commands as a user meets them: exit codes, what is printed, and that no secret is.

use crate::support::client::{self, Client};
use crate::support::gateway::{Gateway, PROGRAM, config};
use crate::support::origin::Origin;
use crate::support::redis::Redis;
use crate::support::{Folder, signal, until};
use crate::upstreams::refusing;
use rateguard::config::Config;
use rateguard::gateway::Rules;
use rateguard::http::head::RequestHead;
use rateguard::identity::{self, Caller};
use rateguard::limit::policy::{Sheet, Subject};
use rateguard::route::{Asked, host_without_port};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A running command; killed when dropped.
struct Program {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
}

impl Program {
    fn start(arguments: &[&str]) -> Program {
        Program::start_with(arguments, &[])
    }

    fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Program {
        let mut child = Command::new(PROGRAM)
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = collect(child.stdout.take().unwrap());
        let err = collect(child.stderr.take().unwrap());
        Program { child, out, err }
    }

    fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    /// Waits until it has ended by itself and all it said is here.
    fn end(&mut self) -> ExitStatus {
        until("the command has ended", || self.child.try_wait().unwrap().is_some());
        until("all it said is here", || Arc::strong_count(&self.out) == 1 && Arc::strong_count(&self.err) == 1);
        self.child.wait().unwrap()
    }

    /// The address that follows `before` in what it printed.
    fn address_after(&self, before: &str) -> SocketAddr {
        let mut found = None;
        until("it prints its address", || {
            let out = self.out();
            let rest = out.split_once(before).map(|(_, rest)| rest.to_string());
            found = rest
                .and_then(|rest| rest.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).next()?.parse().ok());
            found.is_some()
        });
        found.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(stream: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let sink = text.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut sink = sink.lock().unwrap();
            sink.push_str(&line);
            sink.push('\n');
        }
    });
    text
}

/// Runs a command to its end: exit code, standard output, standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut program = Program::start(arguments);
    let status = program.end();
    (status.code(), program.out(), program.err())
}

const VALID: &str = "[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"off\"\n\
    [upstreams.app]\nservers = [\"127.0.0.1:9001\"]\n[[routes]]\npath = \"/\"\nupstream = \"app\"\n";

const LIMITS: &str = "[[limits]]\nname = \"per-user\"\nmatch.path = \"/api/\"\nby = [\"user\", \"endpoint\"]\n\
    rate = \"1/h\"\nburst = 10\n[[limits]]\nname = \"per-ip\"\nby = [\"ip\", \"method\"]\nrate = \"100/h\"\nburst = 1000\n";

fn path(folder: &Folder, name: &str, text: &str) -> String {
    folder.write(name, text).display().to_string()
}

#[test]
fn a_valid_config_checks_with_0() {
    let folder = Folder::new();
    let file = path(&folder, "good.toml", &format!("{VALID}{LIMITS}"));
    let (code, out, _) = run(&["check", "--config", &file]);
    assert_eq!((code, out), (Some(0), format!("{file}: ok\n")));
}

#[test]
fn a_broken_config_ends_every_command_with_2_and_says_where() {
    let folder = Folder::new();
    let file = path(&folder, "bad.toml", &format!("{VALID}[server.timeouts]\nhaed = \"1s\"\n"));
    for command in [&["check"][..], &["check", "--print"], &["run"], &["explain", "GET", "/"]] {
        let mut arguments = command.to_vec();
        arguments.extend(["--config", &file]);
        let (code, out, err) = run(&arguments);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{command:?}");
        let wanted = format!("rateguard: {file}:11: server.timeouts.haed: ");
        let line = err.lines().find(|line| line.starts_with(&wanted));
        assert!(line.is_some_and(|line| line.contains("did you mean \"head\"?")), "{command:?}: {err}");
    }
}

#[test]
fn a_config_that_cannot_be_read_ends_every_command_with_2() {
    let folder = Folder::new();
    let missing = folder.path().join("missing.toml").display().to_string();
    let directory = folder.path().display().to_string();
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    for file in [&missing, &directory, &binary.display().to_string()] {
        for command in [&["check"][..], &["run"], &["explain", "GET", "/"]] {
            let mut arguments = command.to_vec();
            arguments.extend(["--config", file]);
            let (code, _, err) = run(&arguments);
            assert_eq!(code, Some(2), "{command:?} {file}");
            assert!(err.contains(&format!("rateguard: {file}: cannot be read: ")), "{err}");
        }
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["check", "--nope"],
        &["explain", "GET"],
        &["demo", "--backends", "0"],
        &["burst", "http://127.0.0.1:1/", "-n", "0"],
        &["burst", "http://127.0.0.1:1/", "-H", "no colon"],
        &["burst", "https://127.0.0.1:1/"],
        &["spread", "127.0.0.1"],
        &["healthcheck", "--admin", "nowhere"],
    ] {
        let (code, _, err) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {err}");
        assert!(!err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_reached_ends_with_1() {
    let (_held, nobody) = refusing();
    let nobody = nobody.to_string();
    let url = format!("http://{nobody}/");
    for arguments in
        [&["burst", &url, "-n", "3"][..], &["spread", &url, "-n", "3"], &["healthcheck", "--admin", &nobody]]
    {
        let (code, _, err) = run(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {err}");
        assert!(err.starts_with("rateguard: nothing answered at http://"), "{err}");
    }
}

#[test]
fn an_address_in_use_ends_with_1() {
    let origin = Origin::ok();
    let other = Gateway::start(&config("", &[origin.address], ""));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Folder::new();
    // Another gateway's, too: sharing it would halve its clients and double its limits without a word.
    for address in [taken.local_addr().unwrap(), other.address, other.admin] {
        let file = path(&folder, "taken.toml", &VALID.replace("127.0.0.1:0", &address.to_string()));
        let (code, _, err) = run(&["run", "--config", &file]);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&format!("rateguard: cannot listen on {address}: ")), "{err}");
    }
}

#[test]
fn a_printed_config_is_a_config_and_says_the_same() {
    let folder = Folder::new();
    let shipped = include_str!("../config.toml");
    for text in [shipped, VALID, &format!("{VALID}{LIMITS}plans = {{ pro = {{ burst = 20 }} }}\n")] {
        let file = path(&folder, "config.toml", text);
        let (code, printed, err) = run(&["check", "--print", "--config", &file]);
        assert_eq!(code, Some(0), "{err}");
        let again = path(&folder, "printed.toml", &printed);
        assert_eq!(run(&["check", "--print", "--config", &again]), (Some(0), printed, err));
    }
}

/// The keys that the rules of this configuration give to a request from 127.0.0.1.
fn keys_by_the_rules(text: &str, request: &str) -> Vec<String> {
    let config = Config::parse("test", text, &|_| None).unwrap();
    let rules = Rules::of(&config).unwrap();
    let buffer = request.as_bytes();
    let (mut head, mut caller, mut endpoint) = (RequestHead::default(), Caller::default(), Vec::new());
    assert!(head.parse(buffer, &rules.bounds).unwrap());
    assert!(rules.identity.of(&head, buffer, [127, 0, 0, 1].into(), &mut caller).is_ok());
    identity::endpoint(head.forwarded_target(buffer), &mut endpoint);
    let host = host_without_port(head.host.of(buffer));
    let asked = Asked { host, path: &endpoint, head: &head, buffer, trusted: caller.via_trusted };
    let route = rules.routes.longest(&asked).unwrap();
    let label = &rules.route_table[route].label;
    let subject = Subject { head: &head, buffer, host, endpoint: &endpoint, route: label, caller: &caller };
    let mut sheet = Sheet::default();
    rules.policy.apply(&subject, &mut sheet).unwrap();
    sheet.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
}

#[test]
fn explain_names_user_route_limits_and_the_very_keys_that_are_used() {
    let redis = Redis::start();
    let origin = Origin::ok();
    let text = config("", &[origin.address], &format!("{LIMITS}{}", redis.store()));
    let gateway = Gateway::start(&text);
    let folder = Folder::new();
    let file = path(&folder, "config.toml", &text);
    let asked =
        ["explain", "GET", "/api//%61/../b?x=1", "-H", "X-API-Key: some-key", "-H", "Host: h", "--config", &file];
    let (code, out, err) = run(&asked);
    assert_eq!(code, Some(0), "{err}");
    let word = |what: &str| out.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default().trim().to_string();
    assert!(word("user").starts_with("key:") && !out.contains("some-key"), "{out}");
    assert_eq!(word("endpoint"), "/api/b", "{out}");
    assert!(word("route").starts_with("/ -> upstream app"), "{out}");
    let limits: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("limit ")).map(str::trim).collect();
    assert_eq!(limits, ["per-user", "per-ip"], "{out}");
    let mut explained: Vec<String> =
        out.lines().filter_map(|line| Some(line.trim().strip_prefix("key ")?.to_string())).collect();
    let request = "GET /api//%61/../b?x=1 HTTP/1.1\r\nHost: h\r\nX-API-Key: some-key\r\n\r\n";
    assert_eq!(explained, keys_by_the_rules(&text, request));
    let mut connection = redis.connection();
    let mut keys = || redis::cmd("KEYS").arg("*").query::<Vec<String>>(&mut connection).unwrap();
    assert_eq!(keys(), Vec::<String>::new(), "explaining has consumed something");
    gateway.until_store_connected();
    assert_eq!(Client::connect(gateway.address).send(request).response().status, 200);
    let mut used = keys();
    used.sort();
    explained.sort();
    assert_eq!(used, explained);
}

#[test]
fn explain_says_what_would_be_refused() {
    let folder = Folder::new();
    let file = path(&folder, "config.toml", &VALID.replace("path = \"/\"", "path = \"/known\""));
    for (asked, wanted) in
        [(["GET", "/x"], "answer    404 "), (["CONNECT", "/"], "answer    501 "), (["GET", "x"], "answer    400 ")]
    {
        let (code, out, err) = run(&["explain", asked[0], asked[1], "--config", &file]);
        assert_eq!(code, Some(0), "{err}");
        assert!(out.lines().any(|line| line.starts_with(wanted)), "{asked:?}: {out}");
    }
    assert_eq!(run(&["explain", "GET", "/\r\nX: y", "--config", &file]).0, Some(2));
}

/// The number that follows a word at the start of a line.
fn count(out: &str, word: &str) -> usize {
    let line = out.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_else(|| panic!("no {word} in {out}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_burst_gets_as_many_tokens_as_the_bucket_holds() {
    let backend = Program::start(&["backend", "--listen", "127.0.0.1:0"]);
    let origin = backend.address_after("listening on http://");
    let gateway = Gateway::start(&config("", &[origin], LIMITS));
    let url = format!("http://{}/api/data", gateway.address);
    let (code, out, err) = run(&["burst", &url, "-n", "30", "-c", "8", "-H", "X-API-Key: one"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!((count(&out, "allowed"), count(&out, "denied"), count(&out, "failed")), (10, 20, 0), "{out}");
    assert_eq!(out.matches(" token ").count(), 10, "{out}");
    assert_eq!(out.matches(" throttled ").count(), 20, "{out}");
    assert!(!out.contains('\x1b'), "colour on what is no terminal");
    let (_, out, _) = run(&["burst", &url, "-n", "5", "-c", "1", "-H", "X-API-Key: two"]);
    assert_eq!((count(&out, "allowed"), count(&out, "denied")), (5, 0), "another user has its own bucket: {out}");
}

/// How long its answers took has nothing to do with who reads what it prints.
#[test]
fn a_burst_is_as_fast_as_its_answers_for_a_slow_reader_too() {
    const PAUSE: Duration = Duration::from_secs(2);
    let origin = Origin::ok();
    let gateway = Gateway::start(&config("", &[origin.address], ""));
    let url = format!("http://{}/", gateway.address);
    // More than a pipe holds, less than what waits to be printed.
    let burst = Command::new(PROGRAM).args(["burst", &url, "-n", "3000", "-c", "4"]).stdout(Stdio::piped()).spawn();
    let (mut burst, start) = (burst.unwrap(), Instant::now());
    until("all are answered", || origin.requests().len() == 3000);
    let answered = start.elapsed();
    std::thread::sleep(PAUSE);
    let mut out = String::new();
    burst.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(burst.wait().unwrap().success());
    let elapsed = out.lines().find_map(|line| line.strip_prefix("elapsed")).unwrap();
    let seconds: f64 = elapsed.split_whitespace().next().unwrap().parse().unwrap();
    assert!(seconds < (answered + PAUSE / 2).as_secs_f64(), "{elapsed}, {answered:?}");
}

#[test]
fn who_reads_no_more_ends_no_command_badly() {
    let folder = Folder::new();
    let file = folder.write("config.toml", &config("", &["127.0.0.1:1".parse().unwrap()], LIMITS));
    let file = file.to_str().unwrap();
    for (arguments, code) in [
        (&["check", "--config", file][..], 0),
        (&["check", "--print", "--config", file], 0),
        (&["explain", "GET", "/", "--config", file], 0),
        (&["run", "--config", "/absent"], 2),
    ] {
        let closed = || {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            Stdio::from(writer)
        };
        let ended = Command::new(PROGRAM).args(arguments).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(ended.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn a_backend_says_who_it_is() {
    let backend = Program::start(&["backend", "--listen", "127.0.0.1:0"]);
    let address = backend.address_after("listening on http://");
    let info = client::get(address, "/api/info").json();
    let hostname = info["hostname"].as_str().unwrap();
    assert_eq!(info["message"], format!("Hello from backend {hostname}"));
    assert_eq!((info["path"].as_str(), info["method"].as_str()), (Some("/api/info"), Some("GET")));
    assert_eq!(client::get(address, "/healthz").status, 200);
    assert_eq!(client::get(address, "/status/503").status, 503);
}

#[test]
fn a_health_check_follows_readiness() {
    let backend = Program::start(&["backend", "--listen", "127.0.0.1:0"]);
    let gateway = Gateway::start(&config("", &[backend.address_after("listening on http://")], ""));
    let admin = gateway.admin.to_string();
    until("it is ready", || client::get(gateway.admin, "/readyz").status == 200);
    assert_eq!(run(&["healthcheck", "--admin", &admin]).0, Some(0));
    let mut client = Client::connect(gateway.address);
    client.send("GET /slow?ms=60000 HTTP/1.1\r\nHost: h\r\n\r\n");
    // The request must be under way, or the stop would be over before it is seen.
    until("the request has arrived", || gateway.metric("rateguard_connections") == 1.0);
    signal(gateway.process(), Signal::TERM);
    until("it is not ready any more", || client::get(gateway.admin, "/readyz").status == 503);
    let (code, _, err) = run(&["healthcheck", "--admin", &admin]);
    assert_eq!(code, Some(1));
    assert!(err.contains("503"), "{err}");
}

#[test]
fn the_demo_says_what_to_try_and_it_works() {
    let mut demo = Program::start(&["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let address = demo.address_after("RateGuard listens on http://");
    let admin = demo.address_after("curl http://");
    assert!(client::get(admin, "/metrics").text().contains("rateguard_build"));
    for told in [format!("curl -i http://{address}/api/data"), format!("burst http://{address}/api/data")] {
        assert!(demo.out().contains(&told), "{told}");
    }
    let (code, out, err) = run(&["spread", &format!("http://{address}/hello"), "-n", "60"]);
    assert_eq!(code, Some(0), "{err}");
    let counts: Vec<usize> = (1..=3).map(|number| count(&out, &format!("  backend-{number} "))).collect();
    assert_eq!(counts.iter().sum::<usize>(), 60, "{out}");
    // Each worker, of which there is one for each core, keeps a round of its own.
    let workers = std::thread::available_parallelism().unwrap().get();
    assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= workers, "{out}");
    let (_, out, _) = run(&["burst", &format!("http://{address}/api/data"), "-n", "30", "-c", "30"]);
    assert!(count(&out, "allowed") >= 10 && count(&out, "denied") > 0, "{out}");
    signal(demo.child.id(), Signal::INT);
    assert_eq!(demo.end().code(), Some(0), "{}", demo.err());
    assert!(demo.out().ends_with("stopped\n"));
}

#[test]
fn no_secret_is_printed_or_logged() {
    const SECRETS: [&str; 3] = ["alices-own-key", "somebodys-key", "redis-pa55word"];
    let origin = Origin::ok();
    let (_held, nobody) = refusing();
    let store = format!("[store]\nurl = \"redis://:redis-pa55word@{nobody}\"\n");
    let consumer = "[[consumers]]\nname = \"alice\"\napi_key = \"${ALICE_KEY}\"\n";
    let text = config("", &[origin.address], &format!("{LIMITS}{consumer}{store}"));
    let folder = Folder::new();
    let file = path(&folder, "config.toml", &text);
    let environment = [("ALICE_KEY", "alices-own-key"), ("RUST_LOG", "trace")];
    let mut said = String::new();
    for command in
        [&["check"][..], &["check", "--print"], &["explain", "GET", "/api/x", "-H", "X-API-Key: somebodys-key"]]
    {
        let mut arguments = command.to_vec();
        arguments.extend(["--config", &file]);
        let mut program = Program::start_with(&arguments, &environment);
        assert_eq!(program.end().code(), Some(0), "{}", program.err());
        said += &(program.out() + &program.err());
    }
    let gateway = Program::start_with(&["run", "--config", &file], &environment);
    let find = |key: &str| -> Option<SocketAddr> {
        let log = gateway.err();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find_map(|line| line.get(key)?.as_str()?.parse().ok())
    };
    until("the gateway listens", || find("admin").is_some());
    let mut client = Client::connect(find("listen").unwrap());
    for key in ["alices-own-key", "somebodys-key", "alices-own-key2"] {
        client.get("/api/x", &format!("X-API-Key: {key}\r\n"));
    }
    said += &gateway.err();
    said += &client::get(find("admin").unwrap(), "/metrics").text();
    assert!(said.contains("alice"), "the logs are about something");
    for secret in SECRETS {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is shown");
    }
}

#[test]
fn explain_tells_what_a_route_makes_of_a_request() {
    let folder = Folder::new();
    let text = "[upstreams.app]\nservers = [\"127.0.0.1:1\"]\n\
        [[routes]]\npath = \"/api\"\nheaders.X-Version = \"2\"\nupstream = \"app\"\nstrip_prefix = \"/api\"\nadd_prefix = \"/v2\"\n\
        timeouts = { response = \"5min\" }\nmax_body = \"1KiB\"\nresponse.remove = \"Server\"\n\
        request.set = { \"X-Env\" = \"prod\", Authorization = \"Bearer hidden\" }\n\
        [[routes]]\npath = \"/old\"\nexact = true\nredirect = { to = \"https://{host}/new\", status = 302 }\n\
         [[routes]]\npath = \"/secret\"\nheaders.X-Token = \"hidden\"\nupstream = \"app\"\n";
    let file = path(&folder, "config.toml", text);
    let explained = |path: &str, header: &str| {
        let (code, out, err) = run(&["explain", "GET", path, "-H", header, "-H", "Host: h:80", "--config", &file]);
        assert_eq!(code, Some(0), "{err}");
        assert!(!out.contains("hidden"), "{out}");
        out
    };
    let out = explained("//%61pi/x?y", "X-Version: 2");
    for line in [
        "route     /api x-version:2 -> upstream app (127.0.0.1:1)",
        "waits     1s for a connection, 300s for a response",
        "body      at most 1024 bytes",
        "sent as   /v2/x?y",
        "request   X-Env is set to \"prod\"",
        "request   Authorization is set to \"***\"",
        "response  Server is removed",
    ] {
        assert!(out.lines().any(|told| told == line), "{line}\n{out}");
    }
    assert!(explained("/old", "A: b").contains("route     =/old -> redirect 302 https://h/new\n"));
    assert!(explained("/secret", "X-Token: hidden").contains("route     /secret x-token:"));
    assert!(explained("/api%2fx", "X-Version: 2").contains("answer    400 Bad Request: the path has an encoded"));
    assert!(explained("/api/x", "X-Version: 1").contains("answer    404 Not Found: no route matches"));
}
