//! Our own answers: what went wrong becomes a status, a blame and a problem document (RFC 9457), in one match.
//!
//! A denial says which limit, what rate and when to come back, the same in fields, body, log and metric
//! (draft-ietf-httpapi-ratelimit-headers-10). Pure.

use crate::http::forward::{connection, status_line_start};
use crate::http::{BadResponse, Method, Refusal, Version};
use crate::identity::NoCaller;
use crate::limit::StoreFault;
use crate::limit::policy::{Applied, Mode, Policy, Rule, Sheet, Tier};
use crate::route::redirect::Redirect;
use std::io::Write;
use std::mem::take;

/// Why a request got no answer from a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request itself is refused.
    Refused(Refusal),
    /// 401: the API key is nobody's.
    UnknownKey,
    /// 404: no route matches.
    NoRoute,
    /// 405: a TRACE that may go no further than here (RFC 9110 section 7.6.2).
    TraceEndsHere,
    /// 408: the client was too slow.
    TooSlow,
    /// 502: no backend took the connection.
    Unreachable,
    /// 502: the backend broke off before its response.
    BrokenOff,
    /// 502: the backend's response cannot be passed on.
    BadResponse(BadResponse),
    /// 504: no connection in time.
    ConnectTimeout,
    /// 504: no response in time.
    ResponseTimeout,
    /// 503: the store gave no decision and the limits are closed without it.
    StoreClosed(StoreFault),
    /// 502: TLS with the backend failed.
    BadTls,
    /// 503: this process has no more descriptors.
    Exhausted,
    /// 503: all backends have as many connections as they may.
    Busy,
    /// 503: too many connections.
    Overloaded,
}

impl From<NoCaller> for Failure {
    fn from(reason: NoCaller) -> Failure {
        match reason {
            NoCaller::UnknownKey => Failure::UnknownKey,
            NoCaller::Repeated => Failure::Refused(Refusal::Bad("the field that names the user stands there twice")),
        }
    }
}

/// Seconds after which a client may try again when the store or the gateway was not able to serve it.
const TRY_AGAIN_S: u64 = 1;

/// A failure as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Its phrase.
    pub title: &'static str,
    /// `client`, `upstream`, `store` or `gateway`.
    pub blame: &'static str,
    /// The problem type.
    pub kind: &'static str,
    /// What happened, in words.
    pub detail: &'static str,
    /// When to come back, where that is known.
    pub retry_after_s: Option<u64>,
}

const BLANK: &str = "about:blank";
const REDUCED_CAPACITY: &str = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";

impl Failure {
    /// The one place where failures become statuses.
    pub fn answer(&self) -> Answer {
        let by =
            |blame, status, title, detail| Answer { status, title, blame, kind: BLANK, detail, retry_after_s: None };
        let busy = |blame, detail| Answer {
            kind: REDUCED_CAPACITY,
            retry_after_s: Some(TRY_AGAIN_S),
            ..by(blame, 503, "Service Unavailable", detail)
        };
        match *self {
            Failure::Refused(refusal) => {
                let (status, title) = refusal_status(refusal);
                by("client", status, title, refusal_words(refusal))
            }
            Failure::UnknownKey => by("client", 401, "Unauthorized", "the API key is not known here"),
            Failure::NoRoute => by("client", 404, "Not Found", "no route matches this host, path, method and headers"),
            Failure::TraceEndsHere => by(
                "client",
                405,
                "Method Not Allowed",
                "Max-Forwards ends here, and this gateway does not echo requests",
            ),
            Failure::TooSlow => by("client", 408, "Request Timeout", "the request did not arrive in time"),
            Failure::Unreachable => by("upstream", 502, "Bad Gateway", "no backend could be reached"),
            Failure::BrokenOff => {
                by("upstream", 502, "Bad Gateway", "the backend closed the connection without a response")
            }
            Failure::BadResponse(bad) => by("upstream", 502, "Bad Gateway", bad.0),
            Failure::ConnectTimeout => by("upstream", 504, "Gateway Timeout", "no backend took the connection in time"),
            Failure::ResponseTimeout => by("upstream", 504, "Gateway Timeout", "the backend did not respond in time"),
            Failure::StoreClosed(fault) => busy("store", fault.words()),
            Failure::BadTls => by("upstream", 502, "Bad Gateway", "no backend could be spoken to securely"),
            Failure::Exhausted => busy("gateway", "this gateway has too many files open"),
            Failure::Busy => busy("upstream", "all backends are at their limit of connections"),
            Failure::Overloaded => busy("gateway", "too many connections"),
        }
    }
}

fn refusal_status(refusal: Refusal) -> (u16, &'static str) {
    match refusal {
        Refusal::Bad(_) => (400, "Bad Request"),
        Refusal::BodyTooLarge => (413, "Content Too Large"),
        Refusal::TargetTooLong => (414, "URI Too Long"),
        Refusal::Expectation => (417, "Expectation Failed"),
        Refusal::HeadTooLarge => (431, "Request Header Fields Too Large"),
        Refusal::NotImplemented(_) => (501, "Not Implemented"),
        Refusal::Version => (505, "HTTP Version Not Supported"),
    }
}

fn refusal_words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Bad(words) | Refusal::NotImplemented(words) => words,
        Refusal::BodyTooLarge => "the request body is larger than this gateway allows",
        Refusal::TargetTooLong => "the request line is longer than this gateway allows",
        Refusal::Expectation => "the only expectation served here is 100-continue",
        Refusal::HeadTooLarge => "the request head has more bytes or fields than this gateway allows",
        Refusal::Version => "only HTTP/1.0 and HTTP/1.1 are served here",
    }
}

/// To whom an answer goes.
#[derive(Clone, Copy, Debug)]
pub struct Addressee<'a> {
    /// The client's version.
    pub version: Version,
    /// The method asked with: a HEAD gets no body.
    pub asked: Method,
    /// Whether the connection stays open.
    pub keep_alive: bool,
    /// The request's id; empty where there is none yet.
    pub request_id: &'a str,
    /// The time as an HTTP date (RFC 9110 section 5.6.7).
    pub date: &'a str,
}

/// Appends the answer to a failure.
///
/// `fields` are whole lines to add, such as the rate limit's.
pub fn failure(out: &mut Vec<u8>, failure: &Failure, fields: &[u8], to: &Addressee<'_>) {
    let answer = failure.answer();
    let mut digits = itoa::Buffer::new();
    let start = begin(out, answer.status, answer.title, to);
    if let Some(seconds) = answer.retry_after_s {
        push_retry_after(out, seconds);
    }
    out.extend_from_slice(match answer.status {
        401 => b"WWW-Authenticate: ApiKey\r\n".as_slice(),
        405 => b"Allow:\r\n",
        _ => b"",
    });
    out.extend_from_slice(fields);
    start.body(out, to, |out| {
        out.extend_from_slice(b"{\"type\":\"");
        out.extend_from_slice(answer.kind.as_bytes());
        out.extend_from_slice(b"\",\"title\":\"");
        out.extend_from_slice(answer.title.as_bytes());
        out.extend_from_slice(b"\",\"status\":");
        out.extend_from_slice(digits.format(answer.status).as_bytes());
        out.extend_from_slice(b",\"detail\":");
        push_json(out, answer.detail);
        out.extend_from_slice(b",\"blame\":\"");
        out.extend_from_slice(answer.blame.as_bytes());
        out.push(b'"');
    });
}

/// Appends the answer that leads elsewhere (RFC 9110 section 15.4). `fields` are whole lines to add.
pub fn redirect(out: &mut Vec<u8>, redirect: &Redirect, location: &[u8], fields: &[u8], to: &Addressee<'_>) {
    const BODY: &[u8] = b"See the Location field.\n";
    let title: &[u8] = match redirect.status {
        301 => b" Moved Permanently",
        302 => b" Found",
        303 => b" See Other",
        307 => b" Temporary Redirect",
        _ => b" Permanent Redirect",
    };
    out.extend_from_slice(status_line_start(to.version));
    out.extend_from_slice(itoa::Buffer::new().format(redirect.status).as_bytes());
    for part in [title, b"\r\nDate: ", to.date.as_bytes(), b"\r\nLocation: ", location] {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\nContent-Type: text/plain\r\nContent-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(BODY.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(fields);
    out.extend_from_slice(redirect.response.lines());
    connection(out, to.version, to.keep_alive);
    out.extend_from_slice(b"\r\n");
    if to.asked != Method::Head {
        out.extend_from_slice(BODY);
    }
}

/// Appends our answer to an OPTIONS that may go no further than here: there is nothing to tell of this gateway.
pub fn options(out: &mut Vec<u8>, fields: &[u8], to: &Addressee<'_>) {
    out.extend_from_slice(status_line_start(to.version));
    out.extend_from_slice(b"204 No Content\r\nDate: ");
    out.extend_from_slice(to.date.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(fields);
    connection(out, to.version, to.keep_alive);
    out.extend_from_slice(b"\r\n");
}

/// A denial, worked out from the sheet.
#[derive(Clone, Copy, Debug)]
pub struct Denial<'p> {
    policy: &'p Policy,
    sheet: &'p Sheet,
    /// The violated limit that lasts longest.
    pub rule: &'p Rule,
    /// Its quota.
    pub tier: &'p Tier,
    /// When a repeat of the request can pass, where nobody else takes the tokens.
    pub retry_after_us: u64,
}

impl<'p> Denial<'p> {
    /// Which enforced limits are short; `None` where none is.
    pub fn of(policy: &'p Policy, sheet: &'p Sheet) -> Option<Denial<'p>> {
        let mut longest: Option<(&Applied, u64)> = None;
        for (applied, level) in sheet.violated(policy) {
            let wait = policy.shape(applied, sheet.share).retry_after_us(level);
            if longest.is_none_or(|(_, most)| wait > most) {
                longest = Some((applied, wait));
            }
        }
        let (applied, retry_after_us) = longest?;
        Some(Denial { policy, sheet, rule: policy.rule(applied), tier: policy.tier(applied), retry_after_us })
    }

    /// All violated limits, in configured order.
    pub fn violated(&self) -> impl Iterator<Item = &'p Rule> {
        self.sheet.violated(self.policy).map(|(applied, _)| self.policy.rule(applied))
    }

    /// Milliseconds to wait, rounded up.
    pub fn retry_after_ms(&self) -> u64 {
        self.retry_after_us.div_ceil(1000)
    }

    /// Seconds to wait, rounded up, at least 1: the unit of `Retry-After` (RFC 9110 section 10.2.3).
    pub fn retry_after_s(&self) -> u64 {
        self.retry_after_us.div_ceil(1_000_000).max(1)
    }
}

/// Appends seconds with one digit, rounded up, so that the time told is never too early.
fn push_tenths(out: &mut Vec<u8>, micros: u64) {
    let tenths = micros.div_ceil(100_000).max(1);
    out.extend_from_slice(itoa::Buffer::new().format(tenths / 10).as_bytes());
    if let digit @ 1.. = (tenths % 10) as u8 {
        out.extend_from_slice(&[b'.', b'0' + digit]);
    }
}

/// Appends the 429. Its detail: `Limit 'x' allows 5 requests per second with bursts of 10. Try again in 0.2 s.`
pub fn too_many(out: &mut Vec<u8>, denial: &Denial<'_>, fields: &[u8], to: &Addressee<'_>) {
    let start = begin(out, 429, "Too Many Requests", to);
    push_retry_after(out, denial.retry_after_s());
    out.extend_from_slice(fields);
    start.body(out, to, |out| {
        out.extend_from_slice(b"{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",");
        out.extend_from_slice(b"\"title\":\"Too Many Requests\",\"status\":429,\"detail\":\"");
        out.extend_from_slice(&denial.tier.json_sentence);
        out.extend_from_slice(b" Try again in ");
        push_tenths(out, denial.retry_after_us);
        out.extend_from_slice(b" s.\",\"violated-policies\":[");
        for (i, rule) in denial.violated().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&rule.json_name);
        }
        out.extend_from_slice(b"],");
        out.extend_from_slice(&denial.tier.json_members);
        out.extend_from_slice(b",\"retry_after_ms\":");
        out.extend_from_slice(itoa::Buffer::new().format(denial.retry_after_ms()).as_bytes());
        out.extend_from_slice(b",\"blame\":\"client\"");
    });
}

fn push_retry_after(out: &mut Vec<u8>, seconds: u64) {
    out.extend_from_slice(b"Retry-After: ");
    out.extend_from_slice(itoa::Buffer::new().format(seconds).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of an answer with a problem document, up to the fields that not all of them have.
fn begin(out: &mut Vec<u8>, status: u16, title: &str, to: &Addressee<'_>) -> Begun {
    out.extend_from_slice(status_line_start(to.version));
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(title.as_bytes());
    out.extend_from_slice(b"\r\nDate: ");
    out.extend_from_slice(to.date.as_bytes());
    out.extend_from_slice(b"\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\nContent-Length: ");
    let length_at = out.len();
    out.extend_from_slice(b"\r\n");
    Begun { length_at }
}

/// An answer whose body is still to come.
struct Begun {
    /// Where the digits of the length belong.
    length_at: usize,
}

impl Begun {
    /// Ends the head and appends the document: what `members` writes, brace and all, and the request's id.
    fn body(self, out: &mut Vec<u8>, to: &Addressee<'_>, members: impl FnOnce(&mut Vec<u8>)) {
        connection(out, to.version, to.keep_alive);
        out.extend_from_slice(b"\r\n");
        let start = out.len();
        members(out);
        if !to.request_id.is_empty() {
            out.extend_from_slice(b",\"request_id\":");
            push_json(out, to.request_id);
        }
        out.extend_from_slice(b"}\n");
        let length = out.len() - start;
        if to.asked == Method::Head {
            out.truncate(start);
        }
        // The length is known last and stands first: what is behind it makes room.
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(length).as_bytes();
        let (from, end) = (self.length_at, out.len());
        out.extend_from_slice(digits);
        out.copy_within(from..end, from + digits.len());
        out[from..from + digits.len()].copy_from_slice(digits);
    }
}

/// Appends the fields of a limited response: `RateLimit-Policy` lists all enforced limits, `RateLimit` those of which the
/// level is known, the tightest first, that is the one with the fewest requests left.
pub fn rate_limit_fields(out: &mut Vec<u8>, policy: &Policy, sheet: &Sheet) {
    let mut is_first = true;
    for applied in sheet.applied().iter().filter(|applied| policy.rule(applied).mode == Mode::Enforce) {
        out.extend_from_slice(if take(&mut is_first) { b"RateLimit-Policy: ".as_slice() } else { b", " });
        out.extend_from_slice(&policy.tier(applied).policy_member);
    }
    if !is_first {
        out.extend_from_slice(b"\r\n");
        push_levels(out, policy, sheet);
    }
}

fn push_levels(out: &mut Vec<u8>, policy: &Policy, sheet: &Sheet) {
    let enforced = || sheet.outcomes().filter(|(applied, _)| policy.rule(applied).mode == Mode::Enforce);
    let mut members: [Option<Member<'_>>; crate::limit::APPLIED_MAX] = [None; crate::limit::APPLIED_MAX];
    let mut count = 0;
    for (place, (applied, level)) in members.iter_mut().zip(enforced()) {
        let rule = policy.rule(applied);
        let shape = policy.shape(applied, sheet.share);
        let wait_us = match level.short {
            true => shape.retry_after_us(level).max(1),
            false => shape.until_next_us(level),
        };
        *place = Some(Member {
            short: level.short,
            requests_left: shape.remaining(level) / rule.cost,
            wait_s: wait_us.div_ceil(1_000_000),
            name: &rule.name,
            remaining: shape.remaining(level),
        });
        count += 1;
    }
    if count == 0 {
        return;
    }
    let members = &mut members[..count];
    members.sort_by_key(|member| member.map(|m| (!m.short, m.requests_left, std::cmp::Reverse(m.wait_s))));
    let mut digits = itoa::Buffer::new();
    for (i, member) in members.iter().flatten().enumerate() {
        out.extend_from_slice(if i == 0 { b"RateLimit: \"".as_slice() } else { b", \"" });
        out.extend_from_slice(member.name.as_bytes());
        out.extend_from_slice(b"\";r=");
        out.extend_from_slice(digits.format(member.remaining).as_bytes());
        out.extend_from_slice(b";t=");
        out.extend_from_slice(digits.format(member.wait_s).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// One member of the `RateLimit` list.
#[derive(Clone, Copy)]
struct Member<'a> {
    short: bool,
    requests_left: u64,
    wait_s: u64,
    name: &'a str,
    remaining: u64,
}

/// Appends a JSON string (RFC 8259 section 7). Hardly anything needs an escape, so that is asked of many bytes at once.
fn push_json(out: &mut Vec<u8>, text: &str) {
    let needs_escape = |byte: u8| (byte == b'"') | (byte == b'\\') | byte.is_ascii_control();
    out.push(b'"');
    if text.bytes().fold(false, |any, byte| any | needs_escape(byte)) {
        for byte in text.bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                // Writing into a Vec cannot fail.
                control if needs_escape(control) => drop(write!(out, "\\u{control:04x}")),
                plain => out.push(plain),
            }
        }
    } else {
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests;
