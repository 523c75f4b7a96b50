//! A strict reader of messages, for both ends of the gateway: what it does not take is no well-formed HTTP/1.1.
//!
//! Bytes are shown as Latin-1, so that every byte is one character of the tables.

/// Bytes as text, one character each.
pub fn latin(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => text.into(),
        _ => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// Text of such characters as bytes.
pub fn raw(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).expect("one character is one byte")).collect()
}

/// A start line and the field lines below it, as `Name: value`.
#[derive(Debug, Clone)]
pub struct Head {
    pub line: String,
    pub fields: Vec<String>,
    pub len: usize,
}

/// The body behind a head, as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pub data: String,
    pub trailers: Vec<String>,
    pub used: usize,
    pub done: bool,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    After(usize),
    Chunked,
    AtClose,
}

impl Head {
    /// Reads a head; `None` where its empty line has not come.
    pub fn read(bytes: &[u8]) -> Result<Option<Head>, String> {
        let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
        let text = latin(&bytes[..end]);
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_string();
        if line.contains(|c: char| c.is_ascii_control() && c != '\t') {
            return Err(format!("a start line with controls: {line:?}"));
        }
        Ok(Some(Head { line, fields: lines.map(field).collect::<Result<_, _>>()?, len: end + 4 }))
    }

    /// The values of the fields with this name.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let pairs = self.fields.iter().filter_map(|line| line.split_once(": "));
        pairs.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// What the fields say of the body; `None` where they say nothing.
    pub fn framing(&self) -> Result<Option<Ends>, String> {
        match (self.values("Content-Length").as_slice(), self.values("Transfer-Encoding").as_slice()) {
            ([], []) => Ok(None),
            ([], ["chunked"]) => Ok(Some(Ends::Chunked)),
            ([length], []) => {
                let is_plain = length.bytes().all(|b| b.is_ascii_digit());
                let length = length.parse().ok().filter(|_| is_plain);
                length.map(|length| Some(Ends::After(length))).ok_or_else(|| format!("a bad length: {self:?}"))
            }
            _ => Err(format!("framing that can be read in two ways: {self:?}")),
        }
    }
}

/// Reads one field line.
fn field(line: &str) -> Result<String, String> {
    let bad = || format!("a malformed field line: {line:?}");
    let (name, value) = line.split_once(':').ok_or_else(bad)?;
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let is_plain = |c: char| c == '\t' || (c >= ' ' && c != '\u{7f}');
    match !name.is_empty() && name.chars().all(is_token) && value.chars().all(is_plain) {
        true => Ok(format!("{name}: {}", value.trim_matches([' ', '\t']))),
        false => Err(bad()),
    }
}

impl Body {
    /// Reads what is there of a body.
    pub fn read(bytes: &[u8], ends: Ends) -> Result<Body, String> {
        match ends {
            Ends::After(length) => {
                let used = length.min(bytes.len());
                Ok(Body { data: latin(&bytes[..used]), trailers: Vec::new(), used, done: used == length })
            }
            Ends::AtClose => Ok(Body { data: latin(bytes), used: bytes.len(), ..Body::default() }),
            Ends::Chunked => Body::chunked(bytes),
        }
    }

    fn chunked(bytes: &[u8]) -> Result<Body, String> {
        let mut body = Body::default();
        while let Some(end) = find(&bytes[body.used..], b"\r\n") {
            let digits = latin(&bytes[body.used..][..end]);
            let is_size = (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let size = usize::from_str_radix(&digits, 16).ok().filter(|_| is_size);
            let size = size.ok_or_else(|| format!("a malformed chunk size: {digits:?}"))?;
            let rest = &bytes[body.used + end + 2..];
            if size == 0 {
                return body.end(bytes, rest);
            }
            body.data.push_str(&latin(&rest[..size.min(rest.len())]));
            match rest.get(size..) {
                Some([b'\r', b'\n', ..]) => body.used += end + 2 + size + 2,
                None | Some([] | [b'\r']) => return Ok(body),
                Some(other) => return Err(format!("no CRLF behind a chunk: {:?}", latin(other))),
            }
        }
        Ok(body)
    }

    /// Reads the trailers behind the last chunk.
    fn end(mut self, bytes: &[u8], rest: &[u8]) -> Result<Body, String> {
        let block = [b"\r\n", rest].concat();
        let Some(end) = find(&block, b"\r\n\r\n") else { return Ok(self) };
        let text = latin(&block[..end]);
        self.trailers = text.split("\r\n").skip(1).map(field).collect::<Result<_, _>>()?;
        self.used = bytes.len() - (block.len() - end - 4);
        self.done = true;
        Ok(self)
    }
}

/// Field lines to compare: names in lower case, in the order of names, lines of one name as they came.
pub fn sorted(lines: &[String]) -> Vec<String> {
    let lower = |line: &String| match line.split_once(':') {
        Some((name, value)) => format!("{}: {}", name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])),
        None => line.clone(),
    };
    let mut lines: Vec<String> = lines.iter().map(lower).collect();
    lines.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    lines
}

/// The name of a field line.
pub fn name_of(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memchr_iter(needle[0], haystack).find(|at| haystack[*at..].starts_with(needle))
}

/// An answer as the client got it.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: Head,
    pub body: Body,
}

impl Answer {
    /// Reads an answer off the front of `bytes`, with the bytes that it takes; `None` while more may come. At the end
    /// of the stream one that is not whole is given as it is, with `body.done` unset.
    pub fn read(bytes: &[u8], to_head: bool, is_end: bool) -> Result<Option<(Answer, usize)>, String> {
        let Some(head) = Head::read(bytes)? else { return Ok(None) };
        let status = status(&head.line)?;
        let ends = match head.framing()? {
            _ if to_head || status < 200 || status == 204 || status == 304 => Ends::After(0),
            Some(ends) => ends,
            None => Ends::AtClose,
        };
        let mut body = Body::read(&bytes[head.len..], ends)?;
        body.done |= ends == Ends::AtClose && is_end;
        let used = head.len + body.used;
        Ok((body.done || is_end).then_some((Answer { status, head, body }, used)))
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.values(name).first().copied()
    }

    /// Whether this is a problem document that blames this side.
    pub fn is_problem(&self, blame: &str) -> bool {
        let problem: serde_json::Value = serde_json::from_str(&self.body.data).unwrap_or_default();
        self.field("Content-Type") == Some("application/problem+json")
            && problem["status"] == self.status
            && problem["blame"] == blame
            && problem["detail"].as_str().is_some_and(|detail| !detail.is_empty())
    }

    /// What must be the same however the bytes arrived: all but the time, the request's id and the cut of the chunks.
    pub fn essence(&self) -> String {
        let fields = self.head.fields.iter().filter(|line| !line.starts_with("Date: "));
        let body = match self.body.data.split_once("\"request_id\":") {
            Some((before, _)) => before,
            None => &self.body.data,
        };
        format!("{} {:?} {body} {:?}", self.head.line, fields.collect::<Vec<_>>(), self.body.trailers)
    }
}

/// The status in a status line, which must be one to the letter.
fn status(line: &str) -> Result<u16, String> {
    let bad = || format!("a malformed status line: {line:?}");
    let rest = line.strip_prefix("HTTP/1.1 ").or(line.strip_prefix("HTTP/1.0 ")).ok_or_else(bad)?;
    let (code, _) = rest.split_at_checked(4).filter(|(code, _)| code.ends_with(' ')).ok_or_else(bad)?;
    code.trim_end().parse().ok().filter(|code| (100..600).contains(code)).ok_or_else(bad)
}
