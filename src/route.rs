//! Which rule a request falls under: host, path, methods and header fields, matched on the normalised path.
//!
//! Routes and limits share this matching, so that a request is limited by the rules of the place where it is sent.
//! A path prefix matches whole segments: `/api` and `/api/` both match `/api` and `/api/x`, never `/apix`.
//! Pure.

pub mod redirect;
pub mod rewrite;

use crate::http::field::{Field, FieldName};
use crate::http::head::RequestHead;
use std::collections::HashMap;

/// What a route or a limit applies to. The default matches every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The host asked for; `None` = any.
    pub host: Option<HostPattern>,
    /// Normalised path prefix (see [`crate::identity::endpoint`]); `/` = any.
    pub path: String,
    /// Only this path itself, nothing below it.
    pub exact: bool,
    /// Method tokens, as they stand on the wire; empty = any. GET stands for HEAD too, which costs backends the same.
    pub methods: Vec<String>,
    /// What must stand in the head, all of it; by name, each name once.
    pub headers: Vec<HeaderMatch>,
}

/// A header field that must be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeaderMatch {
    /// In small letters; compared without case.
    pub name: String,
    /// The whole value of one of its lines, compared byte for byte; `None` = any value.
    pub value: Option<String>,
}

/// A request, as far as rules tell requests apart.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The host asked for, without port.
    pub host: &'a [u8],
    /// The normalised path.
    pub path: &'a [u8],
    /// The request's head.
    pub head: &'a RequestHead,
    /// The bytes of the head.
    pub buffer: &'a [u8],
    /// Whether the peer's forwarding fields are believed; those that are not are not there.
    pub trusted: bool,
}

impl HeaderMatch {
    fn accepts(&self, asked: &Asked<'_>) -> bool {
        let is_there = |field: &&Field| match field.known {
            FieldName::ForwardedFor | FieldName::ForwardedProto | FieldName::ForwardedHost | FieldName::ClientClaim => {
                asked.trusted
            }
            _ => true,
        };
        let fits = |field: &Field| {
            field.name.of(asked.buffer).eq_ignore_ascii_case(self.name.as_bytes())
                && self.value.as_ref().is_none_or(|value| field.value.of(asked.buffer) == value.as_bytes())
        };
        asked.head.fields.iter().filter(is_there).any(fits)
    }

    /// Whether whatever satisfies `narrow` satisfies this one too.
    fn covers(&self, narrow: &HeaderMatch) -> bool {
        self.name == narrow.name && (self.value.is_none() || self.value == narrow.value)
    }
}

/// A host name to match, without port and the dot at its end, compared without case (RFC 9110 section 4.2.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `api.example.com`
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: any name that ends so, at any depth.
    Suffix(String),
}

impl HostPattern {
    /// Reads `example.com` or `*.example.com`; `None` where it is neither.
    pub fn parse(text: &str) -> Option<HostPattern> {
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        let valid = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':'));
        if !valid || (name.contains(':') && !name.starts_with('[')) {
            return None;
        }
        Some(if lower.starts_with("*.") { HostPattern::Suffix(format!(".{name}")) } else { HostPattern::Exact(lower) })
    }

    /// A host that it accepts.
    fn example(&self) -> String {
        match self {
            HostPattern::Exact(name) => name.clone(),
            HostPattern::Suffix(tail) => format!("x{tail}"),
        }
    }

    /// Whether it accepts every host that `narrow` accepts.
    fn covers(&self, narrow: &HostPattern) -> bool {
        match (self, narrow) {
            (HostPattern::Suffix(tail), HostPattern::Suffix(name)) => name.ends_with(tail),
            (HostPattern::Suffix(tail), HostPattern::Exact(name)) => name.ends_with(tail) && name.len() > tail.len(),
            (HostPattern::Exact(_), _) => self == narrow,
        }
    }

    fn accepts(&self, host: &[u8]) -> bool {
        match self {
            HostPattern::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
            HostPattern::Suffix(tail) => host
                .len()
                .checked_sub(tail.len())
                .is_some_and(|at| at > 0 && host[at..].eq_ignore_ascii_case(tail.as_bytes())),
        }
    }
}

impl Match {
    /// Whether all fits but the path, which is the tree's to match.
    fn accepts(&self, asked: &Asked<'_>) -> bool {
        self.fits(asked.host, asked.head.method.of(asked.buffer))
            && self.headers.iter().all(|header| header.accepts(asked))
    }

    /// Whether host and method fit. Case does not count: some backends take `post` for POST.
    fn fits(&self, host: &[u8], method: &[u8]) -> bool {
        self.host.as_ref().is_none_or(|pattern| pattern.accepts(host))
            && (self.methods.is_empty() || self.takes(method))
    }

    fn takes(&self, method: &[u8]) -> bool {
        let names = |method: &[u8]| self.methods.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(method));
        names(method) || (method.eq_ignore_ascii_case(b"HEAD") && names(b"GET"))
    }

    fn names_head(&self) -> bool {
        self.methods.iter().any(|name| name == "HEAD")
    }

    /// Whether a request can fall under both with nothing to tell which is narrower.
    pub fn is_like(&self, other: &Match) -> bool {
        let methods = match (self.methods.is_empty(), other.methods.is_empty()) {
            (true, true) => true,
            (false, false) => self.methods.iter().any(|method| other.methods.contains(method)),
            _ => false,
        };
        let same_place = self.host == other.host && self.path == other.path && self.exact == other.exact;
        same_place && methods && self.headers == other.headers
    }

    /// Whether every request that falls under `narrow` falls under this one too; where that is not sure, no.
    pub fn covers(&self, narrow: &Match) -> bool {
        let host = match (&self.host, &narrow.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => wide.covers(narrow),
        };
        let prefix = self.path.trim_end_matches('/');
        let path = match self.exact {
            true => narrow.exact && narrow.path == self.path,
            false => narrow.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let methods = self.methods.is_empty()
            || (!narrow.methods.is_empty() && narrow.methods.iter().all(|method| self.takes(method.as_bytes())));
        let asks_for = |header: &HeaderMatch| narrow.headers.iter().any(|other| header.covers(other));
        host && path && methods && self.headers.iter().all(asks_for)
    }

    /// Orders matches of one path: the narrower first (the path alone over all below it, host over none, exact over
    /// suffix, methods over none, more header fields over fewer, HEAD by name over HEAD as a GET).
    fn narrowness(&self) -> (bool, u8, usize, bool, usize, bool) {
        let (kind, length) = match &self.host {
            Some(HostPattern::Exact(name)) => (2, name.len()),
            Some(HostPattern::Suffix(tail)) => (1, tail.len()),
            None => (0, 0),
        };
        (self.exact, kind, length, !self.methods.is_empty(), self.headers.len(), self.names_head())
    }
}

/// The host that a Host value names: without port (`example.com:80`, `[::1]:80`), and without the one dot that a name may
/// end with, since `example.com.` is the same host.
pub fn host_without_port(host: &[u8]) -> &[u8] {
    let name = match host.iter().rposition(|&b| b == b':') {
        Some(at) if !host[at..].contains(&b']') => &host[..at],
        _ => host,
    };
    name.strip_suffix(b".").unwrap_or(name)
}

/// Rules by path prefix, one node per segment: matching costs the length of the path, however many rules there are.
#[derive(Debug)]
pub struct PathTree {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<[u8]>, usize, foldhash::fast::RandomState>,
    rules: Vec<(Match, usize)>,
}

impl PathTree {
    /// Builds the tree from matches and the numbers by which the caller knows them.
    pub fn new(rules: impl IntoIterator<Item = (Match, usize)>) -> PathTree {
        let mut nodes = vec![Node::default()];
        for (rule, id) in rules {
            let mut at = 0;
            for segment in segments(rule.path.as_bytes()) {
                at = match nodes[at].children.get(segment) {
                    Some(&child) => child,
                    None => {
                        nodes.push(Node::default());
                        let child = nodes.len() - 1;
                        nodes[at].children.insert(segment.into(), child);
                        child
                    }
                };
            }
            nodes[at].rules.push((rule, id));
        }
        for node in &mut nodes {
            node.rules.sort_by_key(|(rule, _)| std::cmp::Reverse(rule.narrowness()));
        }
        PathTree { nodes }
    }

    /// The rule with the longest path that accepts the request; among equal paths the narrowest, then the first.
    pub fn longest(&self, asked: &Asked<'_>) -> Option<usize> {
        let mut best = None;
        self.walk(asked.path, |node, is_end| {
            let fit = node.rules.iter().find(|(rule, _)| (is_end || !rule.exact) && rule.accepts(asked));
            best = fit.map(|&(_, id)| id).or(best);
        });
        best
    }

    /// Calls `found` with every rule that accepts the request, shortest path first.
    pub fn each(&self, asked: &Asked<'_>, mut found: impl FnMut(usize)) {
        self.walk(asked.path, |node, is_end| {
            for (rule, id) in &node.rules {
                if (is_end || !rule.exact) && rule.accepts(asked) {
                    found(*id);
                }
            }
        });
    }

    /// The most rules that one request can fall under. A request has one host and one method, so those of the rules
    /// are tried, and one of each that no rule names. It may have any header fields, and several of one name.
    pub fn most_on_one_path(&self) -> usize {
        let rules = || self.nodes.iter().flat_map(|node| &node.rules).map(|(rule, _)| rule);
        let mut hosts: Vec<String> = rules().filter_map(|rule| rule.host.as_ref()).map(HostPattern::example).collect();
        let mut methods: Vec<&str> = rules().flat_map(|rule| &rule.methods).map(String::as_str).collect();
        hosts.push(String::new());
        methods.push("");
        hosts.sort();
        hosts.dedup();
        methods.sort_unstable();
        methods.dedup();
        let each = |host: &String| methods.iter().map(|method| self.most_for(host.as_bytes(), method.as_bytes())).max();
        hosts.iter().filter_map(each).max().unwrap_or(0)
    }

    fn most_for(&self, host: &[u8], method: &[u8]) -> usize {
        let fitting = |node: &Node, exact: bool| {
            node.rules.iter().filter(|(rule, _)| rule.exact == exact && rule.fits(host, method)).count()
        };
        let mut sums: Vec<usize> = self.nodes.iter().map(|node| fitting(node, false)).collect();
        // A child is always made after its parent, so one pass in order is enough.
        for parent in 0..self.nodes.len() {
            for &child in self.nodes[parent].children.values() {
                sums[child] += sums[parent];
            }
        }
        sums.into_iter().zip(&self.nodes).map(|(sum, node)| sum + fitting(node, true)).max().unwrap_or(0)
    }

    /// Visits the nodes on the way of a path; the last one is told so where the path ends there.
    fn walk(&self, path: &[u8], mut visit: impl FnMut(&Node, bool)) {
        let mut node = &self.nodes[0];
        let mut left = segments(path);
        loop {
            let next = left.next();
            visit(node, next.is_none());
            match next.and_then(|segment| node.children.get(segment)) {
                Some(&child) => node = &self.nodes[child],
                None => return,
            }
        }
    }
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|segment| !segment.is_empty())
}

#[cfg(test)]
mod tests;
