//! Heads read a second time, straight from RFC 9112: line by line, slowly, with nothing shared with the parser under test.
//!
//! Where this gateway is stricter or more lenient than the RFC on purpose, the line says `House rule`.

use rateguard::http::{Bounds, FIELDS_MAX, Framing, Method};
use std::collections::BTreeSet;

/// What a reading came to. Faults are told by the status that answers them.
#[derive(Debug)]
pub enum Verdict<T> {
    /// The empty line is missing; a refusal this early must have one of these faults.
    Unfinished(BTreeSet<u16>),
    /// The head is whole and has these faults.
    Faulty(BTreeSet<u16>),
    /// The head is whole and has no fault.
    Whole(T),
}

/// A field line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// As written.
    pub name: Vec<u8>,
    /// Without the white space around it.
    pub value: Vec<u8>,
}

impl Line {
    /// Whether this is its name, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// A request head.
#[derive(Debug)]
pub struct Request {
    pub method: Vec<u8>,
    /// Path and query; empty where an absolute target has neither.
    pub target: Vec<u8>,
    /// The authority of an absolute target, else the Host field's value.
    pub host: Vec<u8>,
    /// 0 or 1, of HTTP/1.x.
    pub minor: u8,
    pub fields: Vec<Line>,
    pub framing: Framing,
    pub length: Option<u64>,
    pub keep_alive: bool,
    pub expects_continue: bool,
    pub takes_trailers: bool,
    /// The protocols that may be switched to; none where the request does not ask for it.
    pub protocols: Vec<Vec<u8>>,
    /// Of OPTIONS and TRACE.
    pub max_forwards: Option<u64>,
    pub len: usize,
}

/// A response head.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub reason: Vec<u8>,
    pub minor: u8,
    pub fields: Vec<Line>,
    pub framing: Framing,
    pub length: Option<u64>,
    pub keep_alive: bool,
    pub len: usize,
}

/// Reads a request head.
pub fn request(input: &[u8], bounds: &Bounds) -> Verdict<Request> {
    // RFC 9112 section 2.2. House rule: one empty line is skipped, no more.
    let start = if input.starts_with(b"\r\n") { 2 } else { 0 };
    let text = &input[start..];
    let mut faults = BTreeSet::new();
    faults.extend((is_simple(text) || names_foreign_version(text)).then_some(505));
    let Some(end) = find(text, b"\r\n\r\n") else {
        faults.insert(400);
        faults.extend(too_long(text, start, bounds));
        return Verdict::Unfinished(faults);
    };
    let lines = split_lines(&text[..end]);
    let len = start + end + 4;
    if len > bounds.head_max {
        faults.extend(too_long(text, start, bounds));
    }
    // A line that ends with LF alone is one too many before it is malformed.
    if text[..end].iter().filter(|&&b| b == b'\n').count() > bounds.fields_max.min(FIELDS_MAX) {
        faults.insert(431);
    }
    let (method, target, minor) = request_line(lines[0], text, &mut faults);
    let fields = read_fields(&lines[1..], &mut faults);
    let told = Told::read(&fields, &mut faults);
    if told.te.is_some() && minor == 0 {
        faults.insert(400);
    }
    if told.te == Some(Coding::Other) {
        faults.insert(501);
    }
    if told.expects_other {
        faults.insert(417);
    }
    let max_forwards = match method {
        b"OPTIONS" | b"TRACE" => max_forwards(&fields, &mut faults),
        _ => None,
    };
    let (target, host) = match place(method, target, minor, &fields) {
        Ok(placed) => placed,
        Err(fault) => {
            faults.insert(fault);
            Default::default()
        }
    };
    let framing = match (told.te, told.length) {
        (Some(_), _) => Framing::Chunked,
        (None, Some(bytes)) if bytes > 0 => Framing::Length(bytes),
        _ => Framing::Empty,
    };
    if method == b"TRACE" && framing != Framing::Empty {
        faults.insert(400);
    }
    if !faults.is_empty() {
        return Verdict::Faulty(faults);
    }
    Verdict::Whole(Request {
        method: method.to_vec(),
        target,
        host,
        minor,
        framing,
        length: told.length,
        keep_alive: told.keeps_alive(minor),
        expects_continue: told.expects_continue && minor == 1,
        takes_trailers: told.takes_trailers && minor == 1,
        // House rule: not with a body.
        protocols: if minor == 1 && framing == Framing::Empty { told.protocols } else { Vec::new() },
        max_forwards,
        fields,
        len,
    })
}

/// Method, target and minor version (RFC 9112 section 3), as far as they can be told.
fn request_line<'a>(line: &'a [u8], text: &[u8], faults: &mut BTreeSet<u16>) -> (&'a [u8], &'a [u8], u8) {
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let (method, target, minor) = match words.as_slice() {
        [method, target, b"HTTP/1.0"] => (*method, *target, 0),
        [method, target, b"HTTP/1.1"] => (*method, *target, 1),
        words => {
            // Malformed, unless all that is wrong with it is its version.
            let is_only_version = words.len() == 3 && names_foreign_version(text) || is_simple(text);
            faults.extend((!is_only_version).then_some(400));
            (words[0], *words.get(1).unwrap_or(&b"".as_slice()), 1)
        }
    };
    faults.extend((!is_token(method)).then_some(400));
    (method, target, minor)
}

/// Reads the head of a response to a request of this method.
pub fn response(input: &[u8], bounds: &Bounds, asked: Method) -> Verdict<Response> {
    let mut faults = BTreeSet::new();
    let Some(end) = find(input, b"\r\n\r\n") else { return Verdict::Unfinished(BTreeSet::from([502])) };
    let lines = split_lines(&input[..end]);
    let len = end + 4;
    if len > bounds.head_max || lines.len() - 1 > FIELDS_MAX {
        faults.insert(502);
    }
    let Some((minor, status, reason)) = status_line(lines[0]) else {
        faults.insert(502);
        return Verdict::Faulty(faults);
    };
    let fields = read_fields(&lines[1..], &mut faults);
    let told = Told::read(&fields, &mut faults);
    // RFC 9112 section 6.3.
    let framing = match (told.te, told.length) {
        _ if asked == Method::Head || status < 200 || status == 204 || status == 304 => Framing::Empty,
        (Some(Coding::Chunked), _) if minor == 1 => Framing::Chunked,
        (Some(_), _) => {
            faults.insert(502);
            Framing::Empty
        }
        (None, Some(0)) => Framing::Empty,
        (None, Some(bytes)) => Framing::Length(bytes),
        (None, None) => Framing::UntilClose,
    };
    if !faults.is_empty() {
        return Verdict::Faulty(faults);
    }
    let keep_alive = told.keeps_alive(minor) && framing != Framing::UntilClose;
    Verdict::Whole(Response { status, reason, minor, fields, framing, length: told.length, keep_alive, len })
}

/// `HTTP/1.1 200 OK`. House rule: the space before an empty reason may be missing.
fn status_line(line: &[u8]) -> Option<(u8, u16, Vec<u8>)> {
    let minor = match line.get(..9)? {
        b"HTTP/1.0 " => 0,
        b"HTTP/1.1 " => 1,
        _ => return None,
    };
    let digits = line.get(9..12)?;
    let reason = match &line[12..] {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return None,
    };
    let status = u16::try_from(number(digits)?).ok()?;
    let fits = (100..600).contains(&status) && reason.iter().all(|&b| is_text(b));
    fits.then(|| (minor, status, reason.to_vec()))
}

/// What the fields say of the body and the connection.
struct Told {
    length: Option<u64>,
    te: Option<Coding>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    expects_other: bool,
    takes_trailers: bool,
    protocols: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Coding {
    Chunked,
    Other,
}

impl Told {
    fn read(fields: &[Line], faults: &mut BTreeSet<u16>) -> Told {
        let values = |name: &str| -> Vec<&[u8]> {
            fields.iter().filter(|line| line.is(name)).map(|line| line.value.as_slice()).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        // House rule: what RFC 9112 section 6.3 lets a server repair is refused.
        let is_ambiguous = lengths.len() + codings.len() > 1 || values("host").len() > 1;
        let length = lengths.first().map(|value| number(value));
        let te = codings.first().map(|value| coding(value));
        if is_ambiguous || length == Some(None) || te == Some(None) {
            faults.insert(400);
        }
        let options: Vec<Vec<u8>> = values("connection").into_iter().flat_map(members).collect();
        // House rule: each field is compared with each option, so these are few; empty ones count.
        let members_with_empty = |value: &[u8]| 1 + value.iter().filter(|&&b| b == b',').count();
        if values("connection").into_iter().map(members_with_empty).sum::<usize>() > 32 {
            faults.insert(400);
        }
        let (good, bad): (Vec<&[u8]>, Vec<&[u8]>) =
            values("expect").into_iter().partition(|value| value.eq_ignore_ascii_case(b"100-continue"));
        let protocols = values("upgrade").into_iter().flat_map(protocols).collect();
        Told {
            length: length.flatten(),
            te: te.flatten(),
            close: options.contains(&b"close".to_vec()),
            keep_alive: options.contains(&b"keep-alive".to_vec()),
            expects_continue: !good.is_empty(),
            expects_other: !bad.is_empty(),
            takes_trailers: values("te").into_iter().flat_map(members).any(|member| member == b"trailers"),
            protocols: if options.contains(&b"upgrade".to_vec()) { protocols } else { Vec::new() },
        }
    }

    /// RFC 9112 section 9.3.
    fn keeps_alive(&self, minor: u8) -> bool {
        !self.close && (minor == 1 || self.keep_alive)
    }
}

/// RFC 9112 sections 6.1 and 7. House rule: of well-formed values only `chunked` alone is served.
fn coding(value: &[u8]) -> Option<Coding> {
    let members: Vec<&[u8]> = value.split(|&b| b == b',').map(trim).collect();
    let name = |member: &[u8]| trim(member.split(|&b| b == b';').next().unwrap_or_default()).to_ascii_lowercase();
    let is_final = |at: usize| at + 1 == members.len() && members[at].eq_ignore_ascii_case(b"chunked");
    let fits = |(at, member): (usize, &&[u8])| is_token(&name(member)) && (name(member) != b"chunked" || is_final(at));
    match value {
        _ if !members.iter().enumerate().all(fits) => None,
        _ if value.eq_ignore_ascii_case(b"chunked") => Some(Coding::Chunked),
        _ => Some(Coding::Other),
    }
}

/// The protocols of an Upgrade field as written. House rule: those that carry requests unseen do not count.
fn protocols(value: &[u8]) -> Vec<Vec<u8>> {
    const CARRIERS: [&[u8]; 4] = [b"h2", b"h3", b"http", b"tls"];
    let may_go = |member: &&[u8]| {
        let parts: Vec<&[u8]> = member.split(|&b| b == b'/').collect();
        !parts[0].is_empty()
            && parts.iter().all(|part| part.is_empty() || is_token(part))
            && !CARRIERS.iter().any(|carrier| parts[0].to_ascii_lowercase().starts_with(carrier))
    };
    list(value).into_iter().filter(may_go).map(<[u8]>::to_vec).collect()
}

/// RFC 9110 section 7.6.2. House rule: a number too large to count is as good as the largest.
fn max_forwards(fields: &[Line], faults: &mut BTreeSet<u16>) -> Option<u64> {
    let values: Vec<&Line> = fields.iter().filter(|line| line.is("max-forwards")).collect();
    let is_number = |line: &&Line| !line.value.is_empty() && line.value.iter().all(u8::is_ascii_digit);
    if values.len() > 1 || !values.iter().all(is_number) {
        faults.insert(400);
    }
    values.first().map(|line| number(&line.value).unwrap_or(u64::MAX))
}

/// The members of a list (RFC 9110 section 5.6.1).
pub fn list(value: &[u8]) -> Vec<&[u8]> {
    value.split(|&b| b == b',').map(trim).filter(|member| !member.is_empty()).collect()
}

/// The members of a list without case.
pub fn members(value: &[u8]) -> Vec<Vec<u8>> {
    list(value).into_iter().map(<[u8]>::to_ascii_lowercase).collect()
}

/// Target and host by RFC 9112 sections 3.2 and 3.3, or the fault.
fn place(method: &[u8], target: &[u8], minor: u8, fields: &[Line]) -> Result<(Vec<u8>, Vec<u8>), u16> {
    // House rule: any visible character may stand in a target, percent-encoded or not, but `#`.
    let is_text = target.iter().all(|&b| (b'!'..=b'~').contains(&b) && b != b'#');
    // House rule: nor an encoded NUL.
    if target.is_empty() || !is_text || find(target, b"%00").is_some() {
        return Err(400);
    }
    let named = fields.iter().find(|line| line.is("host")).map(|line| line.value.clone());
    let is_missing = named.is_none() && minor == 1;
    let named = named.unwrap_or_default();
    if is_missing || !(named.is_empty() || is_authority(&named)) {
        return Err(400);
    }
    if method == b"CONNECT" {
        return Err(501);
    }
    if target[0] == b'/' && has_several_meanings(target) {
        return Err(400);
    }
    if target[0] == b'/' || (target == b"*" && method == b"OPTIONS") {
        return Ok((target.to_vec(), named));
    }
    let text = String::from_utf8(target.to_vec()).map_err(|_| 400u16)?;
    let (scheme, rest) = text.split_once("://").ok_or(400u16)?;
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(400);
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match is_authority(authority.as_bytes()) && !has_several_meanings(path.as_bytes()) {
        true => Ok((path.into(), authority.into())),
        false => Err(400),
    }
}

/// House rule: no backslash, and nothing that makes it a question of taste what a dot segment leaves out, or where a
/// path parameter ends.
fn has_several_meanings(target: &[u8]) -> bool {
    let path = String::from_utf8_lossy(target.split(|&b| b == b'?').next().unwrap_or_default());
    // Nor an encoded control character.
    let is_control = |pair: &str| {
        let has_digits = pair.bytes().all(|b| b.is_ascii_hexdigit());
        has_digits && u8::from_str_radix(pair, 16).is_ok_and(|byte| byte.is_ascii_control())
    };
    if path.split('%').skip(1).any(|rest| rest.get(..2).is_some_and(is_control)) {
        return true;
    }
    // Nor `..` in two spellings, of which some servers see one.
    let is_up = |segment: &str| segment.to_ascii_lowercase().replace("%2e", ".") == "..";
    let ups: Vec<&str> = path.split('/').skip(1).filter(|segment| is_up(segment)).collect();
    if ups.contains(&"..") && ups.iter().any(|&up| up != "..") {
        return true;
    }
    // One byte for each encoded separator and dot: a target has no tabs, and a `.` means the same in both forms.
    let path = path.replace("%2f", "\t").replace("%2F", "\t").replace("%5c", "\t").replace("%5C", "\t");
    let path = path.replace("%2e", ".").replace("%2E", ".");
    let is_dots = |piece: &str| piece == "." || piece == "..";
    let mut before: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        let (name, parameters) = segment.split_once(';').unwrap_or((segment, ""));
        let is_plain = name == segment && !name.contains('\t');
        if parameters.contains('\t') || !is_plain && name.split('\t').any(is_dots) {
            return true;
        }
        match name {
            "." => {}
            ".." => match before.pop() {
                Some(left_out) if left_out.is_empty() || left_out.contains('\t') => return true,
                _ => {}
            },
            _ => before.push(name),
        }
    }
    path.contains('\\')
}

/// RFC 3986 section 3.2 without user information. House rules: a port has at most five digits, and there is no `%`.
fn is_authority(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let (host, port) = match text.strip_prefix('[') {
        Some(literal) => {
            let Some((address, after)) = literal.split_once(']') else { return false };
            if address.is_empty() || !address.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.') {
                return false;
            }
            match after.split_once(':') {
                Some(("", port)) => ("literal", port),
                None if after.is_empty() => ("literal", ""),
                _ => return false,
            }
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=".contains(c);
    !host.is_empty() && host.chars().all(is_host) && port.len() <= 5 && port.chars().all(|c| c.is_ascii_digit())
}

fn read_fields(lines: &[&[u8]], faults: &mut BTreeSet<u16>) -> Vec<Line> {
    let mut fields = Vec::new();
    for line in lines {
        let colon = line.iter().position(|&b| b == b':');
        let parts = colon.map(|at| (&line[..at], trim(&line[at + 1..])));
        match parts {
            Some((name, value)) if is_token(name) && value.iter().all(|&b| is_text(b)) => {
                fields.push(Line { name: name.to_vec(), value: value.to_vec() });
            }
            _ => {
                faults.insert(400);
            }
        }
    }
    fields
}

/// 414 where the request line alone is too long, else 431.
fn too_long(text: &[u8], start: usize, bounds: &Bounds) -> Option<u16> {
    let seen = &text[..text.len().min(bounds.head_max - start)];
    let fields = text.iter().filter(|&&b| b == b'\n').count();
    match seen.contains(&b'\n') {
        false => (start + text.len() >= bounds.head_max).then_some(414),
        true => (start + text.len() >= bounds.head_max || fields > bounds.fields_max).then_some(431),
    }
}

/// The bytes before the first line end of any kind, and what comes from there.
fn first_line(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&b| b == b'\r' || b == b'\n').unwrap_or(text.len()))
}

/// Whether the first line ends with a version that HTTP may have but this gateway does not serve.
fn names_foreign_version(text: &[u8]) -> bool {
    let word = first_line(text).0.rsplit(|&b| b == b' ').next().unwrap_or_default();
    match word {
        b"HTTP/1.0" | b"HTTP/1.1" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}

/// A request of HTTP/0.9: a method and a path, and the end of the line.
fn is_simple(text: &[u8]) -> bool {
    let (line, end) = first_line(text);
    let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let &[method, target] = words.as_slice() else { return false };
    !method.is_empty()
        && method.iter().all(u8::is_ascii_uppercase)
        && target.first() == Some(&b'/')
        && target.iter().all(u8::is_ascii_graphic)
        && (end.starts_with(b"\n") || end.starts_with(b"\r\n"))
}

fn split_lines(mut text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    while let Some(at) = find(text, b"\r\n") {
        lines.push(&text[..at]);
        text = &text[at + 2..];
    }
    lines.push(text);
    lines
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Digits only, below 2^64.
fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    let is_plain = text.chars().all(|c| c.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

/// Without spaces and tabs at both ends.
pub fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// RFC 9110 section 5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// RFC 9110 section 5.5: what may stand in a field value.
pub fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}
