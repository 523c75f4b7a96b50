//! The HTTP/1.1 client of the tools: one GET at a time over ureq, blocking, with every wait and size bounded, and what
//! the tools want to know about an answer picked out of it. It refuses anything but `http://`. Shell.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "shell: talks to the gateway as a client would"
)]

use std::io::{self, Read as _};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::terminal::clean;

/// Wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Wait for the request to be sent.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// Wait for the head of an answer: the demo backend's `/slow` takes up to 60 s.
const HEAD_WAIT: Duration = Duration::from_secs(70);
/// Wait for the whole body of an answer.
const BODY_WAIT: Duration = Duration::from_secs(60);
/// Bytes of an answer's head.
const HEAD_MAX: usize = 64 << 10;
/// Bytes of an answer's body that are looked at; the rest is read and dropped.
const BODY_KEPT: u64 = 64 << 10;
/// Bytes of an answer's body, beyond which the request counts as failed.
const BODY_MAX: u64 = 4 << 30;
/// Request headers that a user may add.
const HEADERS_MAX: usize = 64;
/// Characters of a peer's name that are shown.
const NAME_CHARS_MAX: usize = 40;
/// Characters of a peer's explanation that are shown.
const DETAIL_CHARS_MAX: usize = 160;

/// Why a tool ended without doing what it was asked to.
#[derive(Debug, Error)]
pub enum ToolError {
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// Not one request was answered.
    #[error("nothing answered at {url}: {cause}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The first failure.
        cause: String,
    },
    /// The gateway answered, but not that it is ready.
    #[error("not ready: {0}")]
    NotReady(String),
    /// This machine does not give what the tool needs.
    #[error("cannot start: {0}")]
    Resources(String),
    /// Standard output takes no more.
    #[error("cannot write the report: {0}")]
    Output(#[from] io::Error),
}

impl ToolError {
    /// The process's exit code: 2 for wrong usage, 1 for what failed at run time.
    pub fn exit_code(&self) -> u8 {
        match self {
            ToolError::Usage(_) => 2,
            ToolError::Unreachable { .. } | ToolError::NotReady(_) | ToolError::Resources(_) | ToolError::Output(_) => {
                1
            }
        }
    }
}

/// Whether a connection serves more than one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One connection, kept alive: what load looks like.
    Keep,
    /// A new connection for each request: what a balancer in front spreads.
    Fresh,
}

/// How long to wait for each step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Long enough for the slowest answer that the demo backend can be asked for.
    Patient,
    /// This long for a request as a whole.
    Within(Duration),
}

/// A GET that can be sent again and again from one thread.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    target: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Client {
    /// A client for `url`, which must be `http://host[:port][/path]`, sending `headers` (at most 64) with each request.
    pub fn new(
        url: &str,
        headers: &[(String, String)],
        connections: Connections,
        patience: Patience,
    ) -> Result<Client, ToolError> {
        let target = target(url)?;
        let mut headers = checked(headers)?;
        if connections == Connections::Fresh {
            headers.push((HeaderName::from_static("connection"), HeaderValue::from_static("close")));
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(HEAD_MAX)
            .max_idle_connections(match connections {
                Connections::Keep => 1,
                Connections::Fresh => 0,
            })
            .user_agent(concat!("rateguard/", env!("CARGO_PKG_VERSION")));
        let config = match patience {
            // No limit on the whole: ureq would start a thread to resolve each name, even a number.
            Patience::Patient => config
                .timeout_connect(Some(CONNECT_WAIT))
                .timeout_send_request(Some(SEND_WAIT))
                .timeout_recv_response(Some(HEAD_WAIT))
                .timeout_recv_body(Some(BODY_WAIT)),
            Patience::Within(limit) => config.timeout_global(Some(limit)),
        };
        Ok(Client { agent: config.build().new_agent(), target, headers })
    }

    /// Sends the request and reads its answer to the end; the error is a sentence for a person.
    pub fn fetch(&self) -> Result<Answer, String> {
        let mut request = self.agent.get(self.target.clone());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answer = request.call().map_err(said)?;
        let (head, body) = answer.into_parts();
        let mut body = body.into_with_config().limit(BODY_MAX).reader();
        let mut kept = Vec::new();
        body.by_ref()
            .take(BODY_KEPT)
            .read_to_end(&mut kept)
            .and_then(|_| io::copy(&mut body, &mut io::sink()))
            .map_err(|error| format!("the body broke off: {}", said(error)))?;
        Ok(Answer::new(head.status.as_u16(), &head.headers, &kept))
    }
}

/// A failure in words, without what would garble a terminal.
fn said(error: impl ToString) -> String {
    clean(&error.to_string(), DETAIL_CHARS_MAX)
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It got a token: any answer below 400.
    Token,
    /// 429: it was denied.
    Throttled,
    /// Another status, or no answer at all.
    Failed,
}

/// What the tools want to know about an answer. Names and details are clean enough to print.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Retry-After` in seconds, where it is a number.
    pub retry_after_s: Option<u64>,
    /// Tokens left: `r` of the first, that is the tightest, limit in `RateLimit`.
    pub remaining: Option<u64>,
    /// `X-RateGuard-Replica`: which gateway answered.
    pub replica: Option<String>,
    /// `hostname` of a JSON body: which backend answered.
    pub hostname: Option<String>,
    /// `detail` of a problem+json body: why not.
    pub detail: Option<String>,
}

/// The members of a JSON body that the tools look at; others, and bodies of another shape, are fine.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Described {
    hostname: Option<String>,
    detail: Option<String>,
}

impl Answer {
    /// Picks the answer's marks out of its head and the beginning of its body.
    pub fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Answer {
        let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let described: Described = serde_json::from_slice(body).unwrap_or_default();
        Answer {
            status,
            retry_after_s: field("retry-after").and_then(|value| value.trim().parse().ok()),
            remaining: field("ratelimit").and_then(remaining),
            replica: field("x-rateguard-replica").map(|name| clean(name, NAME_CHARS_MAX)),
            hostname: described.hostname.map(|name| clean(&name, NAME_CHARS_MAX)),
            detail: described.detail.map(|text| clean(&text, DETAIL_CHARS_MAX)),
        }
    }

    /// What became of the request.
    pub fn outcome(&self) -> Outcome {
        match self.status {
            429 => Outcome::Throttled,
            0..=399 => Outcome::Token,
            _ => Outcome::Failed,
        }
    }
}

/// `r` of the first item of a `RateLimit` field such as `"per-user";r=7;t=1, "per-ip";r=90`.
fn remaining(field: &str) -> Option<u64> {
    // The name is a quoted string and may hold any of the separators.
    let mut quoted = false;
    let mut escaped = false;
    let name_end = field.char_indices().find(|(at, c)| {
        if escaped {
            escaped = false;
        } else if *c == '\\' {
            escaped = quoted;
        } else if *c == '"' {
            quoted = !quoted;
            return !quoted && *at > 0;
        }
        false
    });
    let (end, _) = name_end?;
    let parameters = field.get(end + 1..)?.split(',').next()?;
    parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("r=")).and_then(|value| value.parse().ok())
}

/// The target that `url` names, refused unless it is plain http with a host and without a password.
fn target(url: &str) -> Result<Uri, ToolError> {
    let usage = |what: &str| {
        Err(ToolError::Usage(format!(
            "{}: {what}; write it like http://127.0.0.1:8080/api/data",
            clean(url, DETAIL_CHARS_MAX)
        )))
    };
    let Ok(target) = url.parse::<Uri>() else {
        return usage("not a URL");
    };
    match target.scheme_str() {
        Some("http") => {}
        Some("https") => return usage("https is not spoken here"),
        _ => return usage("the URL has to begin with http://"),
    }
    match target.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            usage("a name and password do not belong in the URL, use -H")
        }
        Some(authority) if !authority.host().is_empty() => Ok(target),
        _ => usage("the URL names no host"),
    }
}

/// The user's headers, each one that can be sent.
fn checked(headers: &[(String, String)]) -> Result<Vec<(HeaderName, HeaderValue)>, ToolError> {
    if headers.len() > HEADERS_MAX {
        return Err(ToolError::Usage(format!("{} headers; at most {HEADERS_MAX} can be added", headers.len())));
    }
    headers
        .iter()
        .map(|(name, value)| {
            let wrong = || {
                ToolError::Usage(format!(
                    "-H '{}': not a header; write it like 'X-API-Key: demo'",
                    clean(name, NAME_CHARS_MAX)
                ))
            };
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| wrong())?;
            let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
            Ok((name, value))
        })
        .collect()
}

#[cfg(test)]
mod tests;
