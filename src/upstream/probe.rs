//! Asks the servers of an upstream how they are, again and again: once for the process, on its control thread.
//!
//! Shell. One task for each server; a question has a connection of its own, and is over within its time.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "shell: waits, and speaks to backends")]

use super::Health;
use super::dial::{ConnectFault, Dialer};
use super::members::{Group, Member, News};
use crate::conn::{Conn, Deadlines, End};
use crate::http::head::ResponseHead;
use crate::http::{Method, RESPONSE_BOUNDS};
use crate::log::{Budget, Take};
use crate::time::now;
use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How often new servers are looked for; the first of them are asked at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// New servers that are asked at the same time; the next ones follow after [`PACE`]. A thousand handshakes at once would be
/// a burst of descriptors and of work, and each round after the first would be one too.
const TOGETHER_MAX: usize = 32;
const PACE: Duration = Duration::from_millis(50);

/// Interim responses before the one that counts.
const INTERIM_MAX: usize = 16;

/// Lines that may be logged within [`LINES_WINDOW`] of what probes found out.
const LINES_MAX: u32 = 30;
const LINES_WINDOW: Duration = Duration::from_secs(10);

/// Asks all servers of this upstream, those too that come later; never ends.
pub async fn keep_asking(group: Arc<Group>, path: String) {
    let lines = RefCell::new(Budget::within(LINES_MAX, LINES_WINDOW));
    let asker = Rc::new(Asker {
        dialer: Dialer::of(&group),
        request: request(&group, &path),
        lines,
        asked: RefCell::default(),
        group,
    });
    let mut version = None;
    loop {
        if version.replace(asker.group.version()) != Some(asker.group.version()) {
            // One that has gone and come back meanwhile is still being asked.
            let is_new = |member: &&Arc<Member>| asker.asked.borrow_mut().insert(member.id);
            for (number, member) in asker.group.members().iter().filter(is_new).enumerate() {
                let pause = PACE * u32::try_from(number / TOGETHER_MAX).unwrap_or(u32::MAX);
                monoio::spawn(asker.clone().ask_again_and_again(member.clone(), pause));
            }
        }
        monoio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// By server of the settings.
fn request(group: &Group, path: &str) -> Vec<Vec<u8>> {
    let of = |server: &super::Server| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: rateguard-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            server.address.authority()
        )
    };
    group.settings.servers.iter().map(|server| of(server).into_bytes()).collect()
}

struct Asker {
    group: Arc<Group>,
    dialer: Dialer,
    request: Vec<Vec<u8>>,
    lines: RefCell<Budget>,
    /// Those that are being asked.
    asked: RefCell<HashSet<u64>>,
}

/// Why an answer is none of a server that is well.
#[derive(Debug)]
enum Bad {
    Connect(ConnectFault),
    BrokenOff,
    NoHttp,
    Status(u16),
    Late,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Connect(ConnectFault::TimedOut) | Bad::Late => f.write_str("no answer in time"),
            Bad::Connect(ConnectFault::Tls) => f.write_str("the TLS handshake failed"),
            Bad::Connect(ConnectFault::Refused | ConnectFault::Full) => f.write_str("it takes no connection"),
            Bad::Connect(ConnectFault::Exhausted) => f.write_str("this process has too many files open"),
            Bad::BrokenOff => f.write_str("it closed the connection without an answer"),
            Bad::NoHttp => f.write_str("its answer is not HTTP"),
            Bad::Status(status) => write!(f, "it answers {status}"),
        }
    }
}

impl Asker {
    /// After a pause, and until the server is gone from its upstream.
    async fn ask_again_and_again(self: Rc<Asker>, member: Arc<Member>, pause: Duration) {
        if !pause.is_zero() {
            monoio::time::sleep(pause).await;
        }
        let health = &self.group.settings.health;
        while self.group.members().iter().any(|known| known.id == member.id) {
            let answer = monoio::time::timeout(health.timeout, self.ask(&member)).await.unwrap_or(Err(Bad::Late));
            // What we lack ourselves says nothing of the server.
            if !matches!(answer, Err(Bad::Connect(ConnectFault::Exhausted))) {
                self.note(&member, answer, health);
            }
            // A little apart, so that those which came together are not asked together for ever.
            let jitter = health.interval.mul_f64(fastrand::f64() / 10.0);
            monoio::time::sleep(health.interval + jitter).await;
        }
        self.asked.borrow_mut().remove(&member.id);
    }

    fn note(&self, member: &Member, answer: Result<(), Bad>, health: &Health) {
        let (upstream, server) = (self.group.settings.name.as_str(), member.name.as_str());
        let present = now();
        let Some(news) = member.probed(answer.is_ok(), health, present) else { return };
        let Take::Write { suppressed } = self.lines.borrow_mut().take(present) else { return };
        match news {
            News::Down => {
                let reason = answer.err().map(|bad| bad.to_string()).unwrap_or_default();
                tracing::warn!(upstream, server, reason, suppressed, "{}", news.words());
            }
            News::Up | News::Back | News::Arrived => tracing::info!(upstream, server, suppressed, "{}", news.words()),
        }
    }

    async fn ask(&self, member: &Member) -> Result<(), Bad> {
        // Its deadlines are this question's.
        let deadlines = Rc::new(Deadlines::default());
        let (host, within) = (self.group.host(member), self.group.settings.health.timeout);
        let opened = self.dialer.dial(&member.place, host, None, within, &deadlines).await;
        let mut conn = opened.map_err(Bad::Connect)?;
        let mut request = self.request.get(member.server).cloned().unwrap_or_default();
        conn.writer.send(&mut request, within).await.result.map_err(|_| Bad::BrokenOff)?;
        let status = answer(&mut conn).await?;
        match self.group.settings.health.statuses.contains(status) {
            true => Ok(()),
            false => Err(Bad::Status(status)),
        }
    }
}

/// The status of the final response.
async fn answer(conn: &mut Conn) -> Result<u16, Bad> {
    let mut head = ResponseHead::default();
    for _ in 0..=INTERIM_MAX {
        while !head.parse(conn.reader.data(), &RESPONSE_BOUNDS, Method::Get).map_err(|_| Bad::NoHttp)? {
            conn.reader.fill(RESPONSE_BOUNDS.head_max).await.map_err(|end| match end {
                End::TimedOut => Bad::Late,
                End::Closed | End::Broken => Bad::BrokenOff,
            })?;
        }
        if !head.is_interim() {
            return Ok(head.status);
        }
        conn.reader.consume(head.len);
    }
    Err(Bad::NoHttp)
}
