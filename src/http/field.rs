//! Field lines: which of them matter to this gateway, and what together they say of the connection and the body.
//!
//! Values that frame a message are read in one way only: a length is digits, a transfer coding is `chunked`, each stands
//! there once (RFC 9112 sections 6.1 to 6.3). Pure.

use super::body::is_token_byte;
use super::{Refusal, Span, Version};

/// A field that this gateway reads, sets or removes; all others are passed on as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldName {
    /// `Host`
    Host,
    /// `Content-Length`
    ContentLength,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// `Connection`
    Connection,
    /// `Keep-Alive`, `Proxy-Connection`, `HTTP2-Settings`: they speak of one connection only.
    HopByHop,
    /// `TE`: `trailers` is asked for anew on the next connection.
    Te,
    /// `Trailer`: goes with the trailers that it announces.
    Trailer,
    /// `Upgrade`: written anew, where the connection may become a tunnel.
    Upgrade,
    /// `Max-Forwards`
    MaxForwards,
    /// `Expect`
    Expect,
    /// `Date`: added to a response that has none.
    Date,
    /// `X-Forwarded-For`
    ForwardedFor,
    /// `X-Forwarded-Proto`
    ForwardedProto,
    /// `X-Forwarded-Host`
    ForwardedHost,
    /// `X-Request-Id`
    RequestId,
    /// `Forwarded`, `X-Real-IP` and any further `X-Forwarded-*`: what only a trusted proxy may tell of the client.
    ClientClaim,
    /// `RateLimit` and `RateLimit-Policy`: ours alone on a limited response.
    RateLimit,
    /// One of the above with `_` for a `-`, which backends that follow CGI (RFC 3875 section 4.1.18) cannot tell from it.
    Alias,
    /// Any other with a `_` in its name.
    Underscored,
    /// Any other.
    Other,
}

/// Members of `Connection` in a message, empty ones too: each field is compared with each of them.
pub const CONNECTION_OPTIONS_MAX: usize = 32;

/// What all further forwarding fields begin with.
const FORWARDED: &str = "x-forwarded-";

impl FieldName {
    /// What a name stands for, compared without case.
    pub(super) fn of(name: &[u8]) -> FieldName {
        match name.contains(&b'_') {
            false => FieldName::known(name),
            true => FieldName::underscored(name),
        }
    }

    /// As [`FieldName::of`], for a name with a `_`.
    pub(super) fn underscored(name: &[u8]) -> FieldName {
        // Longer than all names but those that a prefix tells.
        let mut dashed = [0; 24];
        let start = &mut dashed[..name.len().min(24)];
        for (to, &from) in start.iter_mut().zip(name) {
            *to = if from == b'_' { b'-' } else { from };
        }
        match FieldName::known(start) {
            FieldName::Other => FieldName::Underscored,
            _ => FieldName::Alias,
        }
    }

    /// As [`FieldName::of`], for a name without `_`.
    pub(super) fn known(name: &[u8]) -> FieldName {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => FieldName::Te,
            4 if is("host") => FieldName::Host,
            4 if is("date") => FieldName::Date,
            6 if is("expect") => FieldName::Expect,
            7 if is("trailer") => FieldName::Trailer,
            7 if is("upgrade") => FieldName::Upgrade,
            9 if is("forwarded") || is("x-real-ip") => FieldName::ClientClaim,
            9 if is("ratelimit") => FieldName::RateLimit,
            10 if is("connection") => FieldName::Connection,
            10 if is("keep-alive") => FieldName::HopByHop,
            12 if is("max-forwards") => FieldName::MaxForwards,
            12 if is("x-request-id") => FieldName::RequestId,
            14 if is("content-length") => FieldName::ContentLength,
            14 if is("http2-settings") => FieldName::HopByHop,
            15 if is("x-forwarded-for") => FieldName::ForwardedFor,
            16 if is("x-forwarded-host") => FieldName::ForwardedHost,
            16 if is("proxy-connection") => FieldName::HopByHop,
            16 if is("ratelimit-policy") => FieldName::RateLimit,
            17 if is("transfer-encoding") => FieldName::TransferEncoding,
            17 if is("x-forwarded-proto") => FieldName::ForwardedProto,
            13.. if name[..FORWARDED.len()].eq_ignore_ascii_case(FORWARDED.as_bytes()) => FieldName::ClientClaim,
            _ => FieldName::Other,
        }
    }
}

/// One field line.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// What it is to us.
    pub known: FieldName,
    /// The field name.
    pub name: Span,
    /// The value without surrounding white space.
    pub value: Span,
    /// The whole line from the name's first byte through CRLF.
    pub line: Span,
}

/// What the fields of a head say about the connection and the body.
#[derive(Default)]
pub(super) struct FieldFacts {
    pub(super) host: Option<Span>,
    pub(super) length: Option<u64>,
    pub(super) coding: Option<Coding>,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    /// `Connection` has an option besides these two, which may be the name of a field.
    pub(super) nominates: bool,
    pub(super) expects_continue: bool,
    pub(super) expects_other: bool,
    pub(super) takes_trailers: bool,
    /// `Connection: upgrade`, and a protocol that may be switched to.
    pub(super) upgrades: bool,
}

/// The transfer coding of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Chunked,
    Unknown,
}

impl FieldFacts {
    pub(super) fn gather(buffer: &[u8], fields: &[Field]) -> Result<FieldFacts, Refusal> {
        let mut facts = FieldFacts::default();
        let (mut upgrade, mut protocol) = (false, false);
        let mut options = 0;
        for field in fields {
            let value = || field.value.of(buffer);
            match field.known {
                FieldName::Host if facts.host.is_some() => return Err(Refusal::Bad("more than one Host field")),
                FieldName::Host => facts.host = Some(field.value),
                FieldName::ContentLength if facts.length.is_some() => {
                    return Err(Refusal::Bad("more than one Content-Length"));
                }
                FieldName::ContentLength => facts.length = Some(content_length(value())?),
                FieldName::TransferEncoding if facts.coding.is_some() => {
                    return Err(Refusal::Bad("more than one Transfer-Encoding"));
                }
                FieldName::TransferEncoding => facts.coding = Some(transfer_coding(value())?),
                FieldName::Connection => {
                    options += 1 + memchr::memchr_iter(b',', value()).count();
                    for option in tokens(value()) {
                        let (close, keep_alive) =
                            (option.eq_ignore_ascii_case(b"close"), option.eq_ignore_ascii_case(b"keep-alive"));
                        facts.close |= close;
                        facts.keep_alive |= keep_alive;
                        facts.nominates |= !close && !keep_alive;
                        upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                FieldName::Te => facts.takes_trailers |= tokens(value()).any(|t| t.eq_ignore_ascii_case(b"trailers")),
                FieldName::Upgrade => protocol |= protocols(value()).next().is_some(),
                FieldName::Expect if value().eq_ignore_ascii_case(b"100-continue") => facts.expects_continue = true,
                FieldName::Expect => facts.expects_other = true,
                _ => {}
            }
        }
        if facts.length.is_some() && facts.coding.is_some() {
            return Err(Refusal::Bad("Content-Length and Transfer-Encoding together"));
        }
        if options > CONNECTION_OPTIONS_MAX {
            return Err(Refusal::Bad("too many connection options"));
        }
        facts.upgrades = upgrade && protocol;
        Ok(facts)
    }

    pub(super) fn keeps_alive(&self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.close,
            Version::Http10 => self.keep_alive && !self.close,
        }
    }
}

/// Digits only, no sign, no list, no overflow (RFC 9110 section 8.6).
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    const BAD: Refusal = Refusal::Bad("malformed Content-Length");
    if value.is_empty() {
        return Err(BAD);
    }
    value.iter().try_fold(0u64, |sum, &b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0')).ok_or(BAD)?;
        sum.checked_mul(10).and_then(|ten| ten.checked_add(digit)).ok_or(BAD)
    })
}

/// Exactly `chunked` is served. A list is told apart into what is well-formed, but not known here, and what no list of
/// codings can be: one that chunks twice, or ends with anything after `chunked` (RFC 9112 sections 6.1 and 7).
fn transfer_coding(value: &[u8]) -> Result<Coding, Refusal> {
    const BAD: Refusal = Refusal::Bad("malformed Transfer-Encoding");
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Coding::Chunked);
    }
    let mut chunked = false;
    for member in value.split(|&b| b == b',') {
        let (name, parameters) = match member.iter().position(|&b| b == b';') {
            Some(at) => member.split_at(at),
            None => (member, [].as_slice()),
        };
        let name = name.trim_ascii();
        if chunked || name.is_empty() || !name.iter().all(|&b| is_token_byte(b)) {
            return Err(BAD);
        }
        chunked = name.eq_ignore_ascii_case(b"chunked");
        if chunked && !parameters.is_empty() {
            return Err(BAD);
        }
    }
    Ok(Coding::Unknown)
}

/// What the names of fields with secrets in them often contain.
const SECRETS: [&str; 6] = ["auth", "cookie", "key", "password", "secret", "token"];

/// Whether the values of a field are better not shown to anybody, as far as its name tells.
pub fn may_be_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRETS.iter().any(|word| name.contains(word))
}

/// Whether two names are one to a server that follows CGI: compared without case, `_` as `-`.
pub fn is_like(a: &[u8], b: &[u8]) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    a.len() == b.len() && a.iter().zip(b).all(|(&a, &b)| dashed(a) == dashed(b))
}

/// The members of a comma-separated list of tokens, white space removed.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// The protocols of an `Upgrade` field that a connection may switch to (RFC 9110 section 7.8).
///
/// Everything but another version of HTTP, and TLS: requests in those would pass through the tunnel unseen, which
/// smugglers use `h2c` for.
pub fn protocols(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    tokens(value).filter(|protocol| {
        // Their drafts too: h2c-14.
        let starts = |known: &&[u8]| protocol.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
        let is_http = [b"h2".as_slice(), b"h3", b"http", b"tls"].iter().any(starts);
        let well_formed = protocol.first() != Some(&b'/') && protocol.iter().all(|&b| is_token_byte(b) || b == b'/');
        well_formed && !is_http
    })
}

/// The protocol that a 101 switches to, where it names one and only one.
pub(super) fn switched_to<'b>(buffer: &'b [u8], fields: &[Field]) -> Option<&'b [u8]> {
    let named = fields.iter().filter(|field| field.known == FieldName::Upgrade);
    let mut named = named.flat_map(|field| tokens(field.value.of(buffer)));
    let only = named.next()?;
    named.next().is_none().then_some(only)
}

/// `Max-Forwards` (RFC 9110 section 7.6.2): one number. More than can be counted is as good as the most that can.
pub(super) fn max_forwards(buffer: &[u8], fields: &[Field]) -> Result<Option<u64>, Refusal> {
    let mut lines = fields.iter().filter(|field| field.known == FieldName::MaxForwards);
    let Some(line) = lines.next() else { return Ok(None) };
    let digits = line.value.of(buffer);
    if lines.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Bad("malformed Max-Forwards"));
    }
    let number = digits.iter().fold(0u64, |sum, b| sum.saturating_mul(10).saturating_add(u64::from(b - b'0')));
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_their_aliases_for_what_they_are() {
        for (name, known) in [
            ("HOST", FieldName::Host),
            ("x-forwarded-for", FieldName::ForwardedFor),
            ("X-Forwarded-Port", FieldName::ClientClaim),
            ("X-Forwarded-", FieldName::Other),
            ("X-Forwarded", FieldName::Other),
            ("X_Forwarded_For", FieldName::Alias),
            ("X-Forwarded_For", FieldName::Alias),
            ("content_length", FieldName::Alias),
            ("Transfer_Encoding", FieldName::Alias),
            ("X_Forwarded_A-Very-Long-Name-Indeed", FieldName::Alias),
            ("X_Very_Long_Name_That_Nobody_Knows", FieldName::Underscored),
            ("a_b", FieldName::Underscored),
            ("_", FieldName::Underscored),
            ("a", FieldName::Other),
        ] {
            assert_eq!(FieldName::of(name.as_bytes()), known, "{name}");
        }
    }
}
