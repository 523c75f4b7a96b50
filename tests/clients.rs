//! Programs that people really use against HTTP servers, each through the gateway: what they do by themselves must work.

use crate::support::gateway::{Gateway, config};
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// A backend that knows the parts of HTTP/1.1 which the demo backend refuses.
mod origin;

mod curl;
mod load_tools;
mod raw;
mod scripts;

use origin::Origin;

/// A gateway before a capable backend.
struct Setup {
    gateway: Gateway,
    origin: Origin,
}

impl Setup {
    fn new() -> Setup {
        let origin = Origin::start();
        Setup { gateway: Gateway::start(&config("", &[origin.address()], "")), origin }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway.address)
    }
}

/// Runs a program to its end with this on its standard input; fails where it fails, hangs or is not there.
fn run(program: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("timeout")
        .args(["30", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout (coreutils) starts");
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // It may end without having read all, or before it has read anything.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    match output.status.code() {
        Some(0) => output,
        Some(124) => panic!("{program} did not end: {said}"),
        Some(127) => panic!("{program} is needed for this test and is not there; ./tests/run installs it"),
        _ => panic!("{program} {arguments:?} failed with {}: {said}", output.status),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that are different everywhere.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(crate::support::seed()).fill(&mut bytes);
    bytes
}
