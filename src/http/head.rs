//! Request and response heads: httparse into ranges, the framing decision, and the refusals that stop smuggling.
//!
//! `parse` gives `Ok(false)` while bytes are missing, an error where the message must be refused, and `Ok(true)` with
//! everything the gateway needs decided: target, host, framing, persistence. The head keeps no bytes of its own. Pure.

use super::field::{Coding, Field, FieldFacts, FieldName, max_forwards};
use super::path::{self, Signs};
use super::{BadResponse, Bounds, FIELDS_MAX, Framing, Method, Refusal, Span, Version};
use httparse::Status;

/// A request head.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// The method as written.
    pub method: Span,
    /// The method as far as it matters to us.
    pub kind: Method,
    /// Path and query as the client wrote them; empty where an absolute target has none (it means
    /// `/`, and `*` for OPTIONS).
    pub target: Span,
    /// The host asked for: the authority of an absolute target, else the Host field; empty in HTTP/1.0 without one.
    pub host: Span,
    /// The version of the client.
    pub version: Version,
    /// All field lines in order.
    pub fields: Vec<Field>,
    /// Where the body ends.
    pub framing: Framing,
    /// The number in Content-Length.
    pub length: Option<u64>,
    /// Whether the client wants the connection kept (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether `Connection` may name fields that go no further.
    pub nominates: bool,
    /// `Expect: 100-continue` in HTTP/1.1.
    pub expects_continue: bool,
    /// `TE: trailers`: the client makes use of trailers.
    pub takes_trailers: bool,
    /// The client offers to switch to another protocol, and may (RFC 9110 section 7.8).
    pub upgrades: bool,
    /// How often an OPTIONS or TRACE may still be passed on (RFC 9110 section 7.6.2).
    pub max_forwards: Option<u64>,
    /// Bytes of the head, the empty line included.
    pub len: usize,
}

/// A response head.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The status code, 100 to 599.
    pub status: u16,
    /// The reason phrase.
    pub reason: Span,
    /// All field lines in order.
    pub fields: Vec<Field>,
    /// Where the body ends, for the request that this answers.
    pub framing: Framing,
    /// The number in Content-Length; without a body it tells what one would have (RFC 9110 section 8.6).
    pub length: Option<u64>,
    /// Whether the backend keeps the connection.
    pub keep_alive: bool,
    /// Whether `Connection` may name fields that go no further.
    pub nominates: bool,
    /// Bytes of the head, the empty line included.
    pub len: usize,
}

const LONE_LF: &str = "lines must end with CRLF";

impl RequestHead {
    /// Parses the request head at the start of `buffer`. `Ok(false)`: more bytes are needed.
    pub fn parse(&mut self, buffer: &[u8], bounds: &Bounds) -> Result<bool, Refusal> {
        let mut table = [const { std::mem::MaybeUninit::uninit() }; FIELDS_MAX];
        let fields_max = bounds.fields_max.min(FIELDS_MAX);
        let mut request = httparse::Request::new(&mut []);
        (self.version, self.kind) = Default::default();
        // RFC 9112 section 2.2: one empty line before the request line is tolerated.
        let start = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
        match buffer.get(start) {
            Some(b'\r') if buffer.len() == 1 => return Ok(false),
            Some(b'\r' | b'\n') => return Err(Refusal::Bad("an empty line where a request was due")),
            _ => {}
        }
        let parsed = request.parse_with_uninit_headers(&buffer[start..], &mut table[..fields_max]);
        // As far as they are known, for the answer to a head that is refused.
        self.version = request.version.map(version_of).unwrap_or_default();
        self.kind = request.method.map(|method| method_of(method.as_bytes())).unwrap_or_default();
        self.len = match parsed {
            Ok(Status::Complete(len)) if start + len <= bounds.head_max => start + len,
            Ok(Status::Partial) if buffer.len() < bounds.head_max => return Ok(false),
            Ok(_) => return Err(too_large(&buffer[start..], bounds.head_max - start)),
            Err(error) => return refusal(error, &buffer[start..], bounds.head_max - start),
        };
        // httparse fills all three where it says Complete.
        let (Some(method), Some(target)) = (request.method, request.path) else {
            return Err(Refusal::Bad("malformed request line"));
        };
        self.method = Span::within(buffer, method.as_bytes());
        let target = Span::within(buffer, target.as_bytes());
        if self.method.start() != start || self.method.end() + 1 != target.start() {
            return Err(Refusal::Bad("malformed request line"));
        }
        let line_end = target.end() + " HTTP/1.1".len();
        record(buffer, line_end, self.len, request.headers, &mut self.fields)?;
        let fields = FieldFacts::gather(buffer, &self.fields)?;
        if fields.expects_other {
            return Err(Refusal::Expectation);
        }
        self.framing = request_framing(&fields, self.version)?;
        self.length = fields.length;
        self.keep_alive = fields.keeps_alive(self.version);
        self.nominates = fields.nominates;
        self.expects_continue = fields.expects_continue && self.version == Version::Http11;
        self.takes_trailers = fields.takes_trailers && self.version == Version::Http11;
        // A body would have to be over before the switch; the field is an offer that need not be taken.
        self.upgrades = fields.upgrades && self.version == Version::Http11 && self.framing == Framing::Empty;
        self.max_forwards = match self.kind {
            Method::Options | Method::Trace => max_forwards(buffer, &self.fields)?,
            _ => None,
        };
        self.place(buffer, target, &fields)?;
        if self.kind == Method::Trace && self.framing != Framing::Empty {
            return Err(Refusal::Bad("TRACE must not have a body"));
        }
        Ok(true)
    }

    /// Decides target and host (RFC 9112 sections 3.2 and 3.3).
    fn place(&mut self, buffer: &[u8], target: Span, fields: &FieldFacts) -> Result<(), Refusal> {
        let text = target.of(buffer);
        let signs = Signs::of(text);
        if signs.forbidden() {
            return Err(Refusal::Bad("the request target has a character that must be percent-encoded"));
        }
        if signs.escape() && memchr::memchr_iter(b'%', text).any(|at| text[at..].starts_with(b"%00")) {
            return Err(Refusal::Bad("the request target has a NUL"));
        }
        if self.version == Version::Http11 && fields.host.is_none() {
            return Err(Refusal::Bad("the Host field is missing"));
        }
        self.host = fields.host.unwrap_or_default();
        if !self.host.is_empty() && !is_authority(self.host.of(buffer)) {
            return Err(Refusal::Bad("malformed Host field"));
        }
        if self.method.of(buffer) == b"CONNECT" {
            return Err(Refusal::NotImplemented("CONNECT is not served here"));
        }
        self.target = target;
        match text {
            [b'/', ..] => {}
            b"*" if self.kind == Method::Options => {}
            _ => self.place_absolute(buffer, target)?,
        }
        if !signs.several_readings() {
            return Ok(());
        }
        let target = self.target.of(buffer);
        path::check(&target[..memchr::memchr(b'?', target).unwrap_or(target.len())])
    }

    fn place_absolute(&mut self, buffer: &[u8], target: Span) -> Result<(), Refusal> {
        let text = target.of(buffer);
        let scheme = ["http://", "https://"]
            .into_iter()
            .find(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes())));
        let Some(scheme) = scheme else {
            return Err(Refusal::Bad("malformed request target"));
        };
        let start = target.start() + scheme.len();
        let rest = &buffer[start..target.end()];
        let length = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
        let authority = &rest[..length];
        if !is_authority(authority) {
            return Err(Refusal::Bad("malformed authority in the request target"));
        }
        self.host = Span::new(start, start + length);
        self.target = Span::new(start + length, target.end());
        Ok(())
    }

    /// The target as it goes on: an OPTIONS for an absolute target without path and query asks about the server itself
    /// (RFC 9112 section 3.2.4).
    pub fn forwarded_target<'b>(&self, buffer: &'b [u8]) -> &'b [u8] {
        match self.target.of(buffer) {
            b"" if self.kind == Method::Options => b"*",
            target => target,
        }
    }

    /// The value of the first field with this name, compared without case.
    pub fn field<'b>(&self, buffer: &'b [u8], name: &str) -> Option<&'b [u8]> {
        self.values(buffer, name).next()
    }

    /// The values of all fields with this name, compared without case.
    pub fn values<'b>(&self, buffer: &'b [u8], name: &str) -> impl Iterator<Item = &'b [u8]> {
        let is_named = move |field: &&Field| {
            field.name.len() == name.len() && field.name.of(buffer).eq_ignore_ascii_case(name.as_bytes())
        };
        self.fields.iter().filter(is_named).map(|field| field.value.of(buffer))
    }
}

impl ResponseHead {
    /// Parses the response head at the start of `buffer`, for a request of this method. `Ok(false)`: more is needed.
    pub fn parse(&mut self, buffer: &[u8], bounds: &Bounds, asked: Method) -> Result<bool, BadResponse> {
        let mut table = [const { std::mem::MaybeUninit::uninit() }; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut []);
        if !b"HTTP/".starts_with(&buffer[..buffer.len().min(5)]) {
            return Err(BadResponse("malformed status line"));
        }
        let parser = httparse::ParserConfig::default();
        self.len = match parser.parse_response_with_uninit_headers(&mut response, buffer, &mut table) {
            Ok(Status::Complete(len)) if len <= bounds.head_max => len,
            Ok(Status::Partial) if buffer.len() < bounds.head_max => return Ok(false),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(BadResponse("response head too large")),
            Err(_) => return Err(BadResponse("malformed response head")),
        };
        let (Some(code), Some(version)) = (response.code, response.version) else {
            return Err(BadResponse("malformed status line"));
        };
        if !(100..600).contains(&code) {
            return Err(BadResponse("status code out of range"));
        }
        self.status = code;
        let after_code = "HTTP/1.1 200".len();
        let line_end = match memchr::memchr(b'\n', buffer) {
            Some(at) if at > after_code => at - 1,
            _ => return Err(BadResponse("malformed status line")),
        };
        // httparse has looked at these bytes, but gives only those that are text.
        self.reason = Span::new((after_code + 1).min(line_end), line_end);
        record(buffer, line_end, self.len, response.headers, &mut self.fields)
            .map_err(|_| BadResponse("malformed response field"))?;
        let fields =
            FieldFacts::gather(buffer, &self.fields).map_err(|_| BadResponse("response framing is ambiguous"))?;
        self.framing = response_framing(&fields, code, asked, version_of(version))?;
        self.length = fields.length;
        self.keep_alive = fields.keeps_alive(version_of(version)) && self.framing != Framing::UntilClose;
        self.nominates = fields.nominates;
        Ok(true)
    }

    /// A 1xx status: another head follows.
    pub fn is_interim(&self) -> bool {
        self.status < 200
    }
}

/// RFC 9112 section 6.3 for requests.
fn request_framing(fields: &FieldFacts, version: Version) -> Result<Framing, Refusal> {
    match (fields.coding, fields.length) {
        (Some(_), _) if version == Version::Http10 => Err(Refusal::Bad("Transfer-Encoding in HTTP/1.0")),
        (Some(Coding::Chunked), _) => Ok(Framing::Chunked),
        (Some(Coding::Unknown), _) => Err(Refusal::NotImplemented("the only transfer coding served here is chunked")),
        (None, Some(0) | None) => Ok(Framing::Empty),
        (None, Some(bytes)) => Ok(Framing::Length(bytes)),
    }
}

/// RFC 9112 section 6.3 for responses.
fn response_framing(fields: &FieldFacts, status: u16, asked: Method, version: Version) -> Result<Framing, BadResponse> {
    if asked == Method::Head || status < 200 || status == 204 || status == 304 {
        return Ok(Framing::Empty);
    }
    match (fields.coding, fields.length) {
        (Some(Coding::Chunked), _) if version == Version::Http11 => Ok(Framing::Chunked),
        (Some(_), _) => Err(BadResponse("response with a transfer coding that is not chunked")),
        (None, Some(0)) => Ok(Framing::Empty),
        (None, Some(bytes)) => Ok(Framing::Length(bytes)),
        (None, None) => Ok(Framing::UntilClose),
    }
}

/// `host[:port]` without user information (RFC 3986 section 3.2), and without `%`: some decode it, some do not.
pub(super) fn is_authority(text: &[u8]) -> bool {
    let is_inside = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
    let (host_fits, port) = match text {
        [b'[', rest @ ..] => {
            let (address, rest) = rest.split_at(memchr::memchr(b']', rest).unwrap_or(rest.len()));
            let port = rest.strip_prefix(b"]");
            (!address.is_empty() && address.iter().all(is_inside) && port.is_some(), port.unwrap_or_default())
        }
        _ => {
            let end = text.iter().position(|&b| !IN_NAME[usize::from(b)]);
            let (name, port) = text.split_at(end.unwrap_or(text.len()));
            (!name.is_empty(), port)
        }
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    host_fits && port_fits
}

/// The bytes of a host that is no address in brackets.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'')
            || matches!(byte, b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        byte += 1;
    }
    table
};

/// Turns httparse's fields into ranges. Lines must follow each other without a gap and end with CRLF, up to the empty
/// line that ends the head at `end`: httparse takes a lone LF too.
fn record(
    buffer: &[u8],
    start_line_end: usize,
    end: usize,
    headers: &[httparse::Header<'_>],
    fields: &mut Vec<Field>,
) -> Result<(), Refusal> {
    fields.clear();
    check_line_end(buffer, start_line_end)?;
    let mut at = start_line_end + 2;
    // Looked for in all bytes at once, since hardly any name has one.
    let mut underscore = underscore_from(at, buffer, end);
    for header in headers {
        let name = Span::within(buffer, header.name.as_bytes());
        let value = Span::within(buffer, header.value);
        if name.start() != at || buffer[name.end()] != b':' {
            return Err(Refusal::Bad("malformed field line"));
        }
        let mut line_end = value.end();
        while let Some(b' ' | b'\t') = buffer.get(line_end) {
            line_end += 1;
        }
        check_line_end(buffer, line_end)?;
        at = line_end + 2;
        if underscore < name.start() {
            underscore = underscore_from(name.start(), buffer, end);
        }
        fields.push(Field {
            known: match underscore < name.end() {
                true => FieldName::underscored(header.name.as_bytes()),
                false => FieldName::known(header.name.as_bytes()),
            },
            name,
            value,
            line: Span::new(name.start(), at),
        });
    }
    check_line_end(buffer, at)?;
    match at + 2 == end {
        true => Ok(()),
        false => Err(Refusal::Bad("malformed head")),
    }
}

/// Where the first `_` of a head is from here on; its end where there is none.
fn underscore_from(at: usize, buffer: &[u8], end: usize) -> usize {
    memchr::memchr(b'_', &buffer[at.min(end)..end]).map_or(end, |behind| at + behind)
}

fn check_line_end(buffer: &[u8], at: usize) -> Result<(), Refusal> {
    match buffer.get(at..at + 2) {
        Some(b"\r\n") => Ok(()),
        _ => Err(Refusal::Bad(LONE_LF)),
    }
}

fn version_of(minor: u8) -> Version {
    match minor {
        0 => Version::Http10,
        _ => Version::Http11,
    }
}

fn method_of(token: &[u8]) -> Method {
    match token {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        b"POST" => Method::Post,
        b"PUT" => Method::Put,
        b"PATCH" => Method::Patch,
        b"DELETE" => Method::Delete,
        b"OPTIONS" => Method::Options,
        b"TRACE" => Method::Trace,
        _ => Method::Other,
    }
}

/// What to make of a request that has more bytes than `most`.
fn too_large(request: &[u8], most: usize) -> Refusal {
    match memchr::memchr(b'\n', &request[..request.len().min(most)]) {
        Some(_) => Refusal::HeadTooLarge,
        None => Refusal::TargetTooLong,
    }
}

/// What to make of a request that httparse refuses, and that may have `most` bytes. `Ok(false)` where the bytes to come
/// decide between two refusals.
fn refusal(error: httparse::Error, request: &[u8], most: usize) -> Result<bool, Refusal> {
    let line_end = request.iter().position(|&b| b == b'\r' || b == b'\n');
    let line = &request[..line_end.unwrap_or(request.len())];
    let end = |at: usize| at + if request[at] == b'\r' { 2 } else { 1 };
    let is_too_long = line_end.map_or(request.len() >= most, |at| end(at) > most);
    Err(match error {
        httparse::Error::TooManyHeaders => Refusal::HeadTooLarge,
        httparse::Error::Version if is_too_long => Refusal::TargetTooLong,
        httparse::Error::Version if line_end.is_none() => return Ok(false),
        httparse::Error::Version => version_refusal(line),
        // A method and a target, and no version: HTTP/0.9.
        httparse::Error::Token if is_simple(line) => match &request[line.len()..] {
            _ if is_too_long => Refusal::TargetTooLong,
            b"\r" => return Ok(false),
            [b'\r', b'\n', ..] | [b'\n', ..] => Refusal::Version,
            _ => Refusal::Bad("malformed request line"),
        },
        httparse::Error::HeaderName => Refusal::Bad("malformed field name"),
        httparse::Error::HeaderValue => Refusal::Bad("malformed field value"),
        httparse::Error::NewLine => Refusal::Bad(LONE_LF),
        _ => Refusal::Bad("malformed request line"),
    })
}

/// `GET /path`, as HTTP/0.9 asks.
fn is_simple(line: &[u8]) -> bool {
    let Some(space) = line.iter().position(|&b| b == b' ') else { return false };
    let (method, target) = (&line[..space], &line[space + 1..]);
    !method.is_empty()
        && method.iter().all(u8::is_ascii_uppercase)
        && target.first() == Some(&b'/')
        && target.iter().all(u8::is_ascii_graphic)
}

/// `HTTP/2.0` is a version we do not speak; `HTTQ/1.1` is no version at all.
fn version_refusal(line: &[u8]) -> Refusal {
    let word = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
    match word {
        b"HTTP/1.0" | b"HTTP/1.1" => Refusal::Bad("malformed request line"),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Refusal::Version
        }
        _ => Refusal::Bad("malformed request line"),
    }
}

#[cfg(test)]
mod tests;
