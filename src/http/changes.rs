//! Header fields that a route sets and removes on the way.
//!
//! A field counts as changed in all spellings that a server may take for it, `_` for `-`. Refused are fields that frame a
//! message or speak of one connection, and those that this gateway writes itself and others rely on. Pure.

use super::field::{FieldName, is_like};
use super::head::is_authority;
use thiserror::Error;

/// Fields that a route may set or remove, each way.
pub const CHANGES_MAX: usize = 64;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the backend.
    Request,
    /// For the client.
    Response,
}

/// What becomes of the fields of messages. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    set: Vec<(String, String)>,
    removed: Vec<String>,
    host: Option<String>,
    /// The lines that are set, but for `Host`.
    lines: Vec<u8>,
}

/// For messages that nothing is changed in.
pub static NONE: Changes = Changes { set: Vec::new(), removed: Vec::new(), host: None, lines: Vec::new() };

/// Why a field cannot be changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadChange {
    /// It frames messages, or belongs to one connection.
    #[error("says where a message ends, or speaks of one connection")]
    Framing,
    /// It is the gateway's own.
    #[error("is written by this gateway, and others rely on it")]
    Ours,
    /// A request needs one.
    #[error("cannot be removed, since every request has one")]
    HostRemoved,
    /// It is not `host[:port]`.
    #[error("is no host")]
    BadHost,
    /// It stands there already, perhaps in another spelling.
    #[error("is changed twice, since neither case nor \"_\" for \"-\" counts")]
    Twice,
}

impl Changes {
    /// Adds a field that stands there once and with this value afterwards. Name and value must be valid.
    pub fn set(&mut self, kind: Kind, name: &str, value: &str) -> Result<(), BadChange> {
        self.check(kind, name)?;
        if kind == Kind::Request && is_like(name.as_bytes(), b"Host") {
            if !is_authority(value.as_bytes()) {
                return Err(BadChange::BadHost);
            }
            self.host = Some(value.to_owned());
        } else {
            for part in [name, ": ", value, "\r\n"] {
                self.lines.extend_from_slice(part.as_bytes());
            }
        }
        self.set.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Adds a field that does not pass.
    pub fn remove(&mut self, kind: Kind, name: &str) -> Result<(), BadChange> {
        self.check(kind, name)?;
        if kind == Kind::Request && is_like(name.as_bytes(), b"Host") {
            return Err(BadChange::HostRemoved);
        }
        self.removed.push(name.to_owned());
        Ok(())
    }

    fn check(&self, kind: Kind, name: &str) -> Result<(), BadChange> {
        let dashed = name.replace('_', "-");
        match (FieldName::of(dashed.as_bytes()), kind) {
            (
                FieldName::Connection
                | FieldName::ContentLength
                | FieldName::TransferEncoding
                | FieldName::Te
                | FieldName::Trailer
                | FieldName::Upgrade
                | FieldName::Expect
                | FieldName::HopByHop,
                _,
            ) => Err(BadChange::Framing),
            (FieldName::ForwardedFor | FieldName::RequestId | FieldName::MaxForwards, Kind::Request)
            | (FieldName::RateLimit | FieldName::Date, Kind::Response) => Err(BadChange::Ours),
            _ if kind == Kind::Request && dashed.eq_ignore_ascii_case("via") => Err(BadChange::Ours),
            _ if self.touches(name.as_bytes()) => Err(BadChange::Twice),
            _ => Ok(()),
        }
    }

    /// Whether nothing is changed.
    pub fn is_none(&self) -> bool {
        self.set.is_empty() && self.removed.is_empty()
    }

    /// Whether lines with this name do not pass as they are.
    pub fn touches(&self, name: &[u8]) -> bool {
        let set = self.set.iter().map(|(name, _)| name);
        set.chain(&self.removed).any(|changed| is_like(changed.as_bytes(), name))
    }

    /// The fields that are set, in the order of the file.
    pub fn set_fields(&self) -> &[(String, String)] {
        &self.set
    }

    /// The names of the fields that are removed.
    pub fn removed(&self) -> &[String] {
        &self.removed
    }

    /// The host to ask a backend for.
    pub(super) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The lines of the fields that are set, but for a request's host.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frames_and_what_is_ours_stays_as_it_is() {
        use {BadChange::*, Kind::*};
        let mut changes = Changes::default();
        for (kind, name, bad) in [
            (Request, "Connection", Framing),
            (Response, "content-length", Framing),
            (Response, "Content_Length", Framing),
            (Request, "Transfer-Encoding", Framing),
            (Request, "TE", Framing),
            (Request, "Trailer", Framing),
            (Response, "Upgrade", Framing),
            (Request, "Keep-Alive", Framing),
            (Request, "Proxy_Connection", Framing),
            (Request, "HTTP2-Settings", Framing),
            (Request, "Expect", Framing),
            (Request, "X-Forwarded-For", Ours),
            (Request, "X_Forwarded_For", Ours),
            (Request, "via", Ours),
            (Request, "X-Request-Id", Ours),
            (Request, "Max-Forwards", Ours),
            (Response, "RateLimit", Ours),
            (Response, "ratelimit-policy", Ours),
            (Response, "Date", Ours),
        ] {
            assert_eq!(changes.set(kind, name, "x"), Err(bad), "{name}");
            assert_eq!(changes.remove(kind, name), Err(bad), "{name}");
        }
        assert_eq!(changes.remove(Request, "Host"), Err(HostRemoved));
        assert_eq!(changes.set(Request, "Host", "a b"), Err(BadHost));
        assert!(changes.is_none() && changes.lines().is_empty());
    }

    #[test]
    fn each_field_is_changed_once() {
        let mut changes = Changes::default();
        assert_eq!(changes.set(Kind::Request, "X-Env", "prod"), Ok(()));
        assert_eq!(changes.remove(Kind::Request, "X-Key"), Ok(()));
        for name in ["x-env", "X_Env", "x_key"] {
            assert_eq!(changes.set(Kind::Request, name, ""), Err(BadChange::Twice), "{name}");
            assert_eq!(changes.remove(Kind::Request, name), Err(BadChange::Twice), "{name}");
            assert!(changes.touches(name.as_bytes()) && !NONE.touches(name.as_bytes()));
        }
        for name in ["Host", "X-Forwarded-Proto", "X-Forwarded-Host", "Date", "X-Real-IP"] {
            assert_eq!(changes.set(Kind::Request, name, "a.test:80"), Ok(()), "{name}");
        }
        assert_eq!(changes.host(), Some("a.test:80"));
        assert!(changes.lines().starts_with(b"X-Env: prod\r\nX-Forwarded-Proto: a.test:80\r\n"));
    }
}
