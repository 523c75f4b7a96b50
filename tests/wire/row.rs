//! The rows of the request table: bytes, the section that speaks of them, what the client gets, what the backend sees.

use super::message::{name_of, raw};

/// The limits and the trust that a gateway runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    Usual,
    /// Heads of 1 KiB and 8 fields, bodies of 16 bytes.
    Tight,
    /// Clients are trusted proxies.
    Trusting,
}

/// A request as the backend is to see it.
#[derive(Clone, Debug)]
pub struct Saw {
    pub line: &'static str,
    /// All fields except those that every request gets on its way; one that stands here replaces that.
    pub fields: Vec<String>,
    pub body: String,
    pub trailers: Vec<String>,
    pub host: &'static str,
}

/// What the client gets for one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The backend's answer to this.
    Of(Saw),
    /// Our own answer; the connection goes on.
    Own(u16),
    /// Our own answer, the last on the connection.
    Refusal(u16),
}

#[derive(Clone, Debug)]
pub struct Row {
    pub section: &'static str,
    pub bytes: Vec<u8>,
    pub setting: Setting,
    pub replies: Vec<Reply>,
    /// The connection ends after the last reply.
    pub closes: bool,
    /// The fault is in the body: the backend may have seen a beginning where the head came before it.
    pub in_body: bool,
    /// The client ends its side instead of sending a second request.
    pub ends: bool,
    /// The client speaks HTTP/1.0.
    pub is_old: bool,
    /// It is not the parsers that refuse it.
    pub passes_parsers: bool,
}

/// Follows every row on its connection.
pub const SECOND: &str = "GET /second HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

fn row(section: &'static str, text: &str, replies: Vec<Reply>) -> Row {
    Row {
        section,
        bytes: raw(text),
        setting: Setting::Usual,
        replies,
        closes: false,
        in_body: false,
        ends: false,
        is_old: false,
        passes_parsers: false,
    }
}

/// Requests that are refused with this status before the backend hears of them.
pub fn refused<T: AsRef<str>>(section: &'static str, status: u16, texts: impl IntoIterator<Item = T>) -> Vec<Row> {
    texts.into_iter().map(|text| row(section, text.as_ref(), vec![Reply::Refusal(status)])).collect()
}

/// Requests the body of which is refused with this status: never whole for the backend.
pub fn broken<T: AsRef<str>>(section: &'static str, status: u16, texts: impl IntoIterator<Item = T>) -> Vec<Row> {
    refused(section, status, texts).into_iter().map(|row| Row { in_body: true, ..row }).collect()
}

/// Requests that the backend sees like this.
pub fn served(section: &'static str, text: impl AsRef<str>, saw: impl IntoIterator<Item = Saw>) -> Vec<Row> {
    vec![row(section, text.as_ref(), saw.into_iter().map(Reply::Of).collect())]
}

/// A request that is answered in any of these ways, one after the other.
pub fn replies(section: &'static str, text: impl AsRef<str>, replies: impl IntoIterator<Item = Reply>) -> Vec<Row> {
    vec![row(section, text.as_ref(), replies.into_iter().collect())]
}

/// A GET with these field lines.
pub fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n")
}

/// A POST with these field lines and this body.
pub fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{body}")
}

/// A chunked POST with this framing as its body.
pub fn chunks(body: &str) -> String {
    post("Transfer-Encoding: chunked", body)
}

/// What the backend is to see.
pub fn saw(line: &'static str, fields: &[&str], body: &str) -> Saw {
    Saw {
        line,
        fields: fields.iter().map(ToString::to_string).collect(),
        body: body.into(),
        trailers: Vec::new(),
        host: "h",
    }
}

/// `GET /` with these fields.
pub fn got(fields: &[&str]) -> Saw {
    saw("GET / HTTP/1.1", fields, "")
}

/// `POST /` with a length and this body.
pub fn posted(body: &str) -> Saw {
    saw("POST / HTTP/1.1", &[&format!("Content-Length: {}", body.chars().count())], body)
}

/// A chunked `POST /` with this data.
pub fn chunked(data: &str) -> Saw {
    saw("POST / HTTP/1.1", &["Transfer-Encoding: chunked"], data)
}

impl Saw {
    /// Asked of this host.
    pub fn host(self, host: &'static str) -> Saw {
        Saw { host, ..self }
    }

    pub fn trailers(self, lines: &[&str]) -> Saw {
        Saw { trailers: lines.iter().map(ToString::to_string).collect(), ..self }
    }

    /// All field lines, those of the way included; `*` stands for an id that we made.
    pub fn all_fields(&self) -> Vec<String> {
        let mut lines = self.fields.clone();
        let own = [
            format!("Host: {}", self.host),
            format!("X-Forwarded-Host: {}", self.host),
            "X-Forwarded-For: 127.0.0.1".into(),
            "X-Forwarded-Proto: http".into(),
            "Via: 1.1 rateguard".into(),
            "X-Request-Id: *".into(),
        ];
        for line in own {
            let is_named = |other: &String| name_of(other).eq_ignore_ascii_case(name_of(&line));
            let has_no_host = self.host.is_empty() && line.starts_with("X-Forwarded-Host");
            if !self.fields.iter().any(is_named) && !has_no_host {
                lines.push(line);
            }
        }
        lines
    }
}

/// Changes rows of a group.
pub trait Rows {
    fn tight(self) -> Self;
    fn trusting(self) -> Self;
    /// The connection ends behind these.
    fn closing(self) -> Self;
    /// The client ends its side behind these.
    fn ending(self) -> Self;
    /// They are in HTTP/1.0.
    fn old(self) -> Self;
    /// What refuses them stands behind the parsers.
    fn past_the_parsers(self) -> Self;
}

fn each(rows: Vec<Row>, change: impl Fn(Row) -> Row) -> Vec<Row> {
    rows.into_iter().map(change).collect()
}

impl Rows for Vec<Row> {
    fn tight(self) -> Self {
        each(self, |row| Row { setting: Setting::Tight, ..row })
    }

    fn trusting(self) -> Self {
        each(self, |row| Row { setting: Setting::Trusting, ..row })
    }

    fn closing(self) -> Self {
        each(self, |row| Row { closes: true, ..row })
    }

    fn ending(self) -> Self {
        each(self, |row| Row { ends: true, closes: true, ..row })
    }

    fn old(self) -> Self {
        each(self, |row| Row { is_old: true, ..row })
    }

    fn past_the_parsers(self) -> Self {
        each(self, |row| Row { passes_parsers: true, ..row })
    }
}

impl Row {
    /// The refusal that it ends with.
    pub fn refusal(&self) -> Option<u16> {
        match self.replies.last() {
            Some(Reply::Refusal(status)) => Some(*status),
            _ => None,
        }
    }

    /// Whether a second request behind it is served.
    pub fn goes_on(&self) -> bool {
        !self.closes && self.refusal().is_none()
    }

    /// Whether it is a HEAD that is refused.
    pub fn is_to_head(&self) -> bool {
        self.bytes.starts_with(b"HEAD ") && matches!(self.replies[..], [Reply::Refusal(_)])
    }

    /// The bytes up to the second request.
    pub fn feed(&self) -> Vec<u8> {
        let second = if self.ends { b"".as_slice() } else { SECOND.as_bytes() };
        [&self.bytes, second].concat()
    }

    /// The requests that the backend is to see, without the second.
    pub fn saw(&self) -> impl Iterator<Item = &Saw> {
        self.replies.iter().filter_map(|reply| match reply {
            Reply::Of(saw) => Some(saw),
            Reply::Own(_) | Reply::Refusal(_) => None,
        })
    }
}
