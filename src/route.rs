//! Which rule a request falls under: host, path prefix and methods, matched on the normalised path.
//!
//! Routes and limits share this matching, so that a request is limited by the rules of the place where it is sent.
//! A path prefix matches whole segments: `/api` and `/api/` both match `/api` and `/api/x`, never `/apix`.
//! Pure.

use std::collections::HashMap;

/// What a route or a limit applies to. The default matches every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The host asked for; `None` = any.
    pub host: Option<HostPattern>,
    /// Normalised path prefix (see [`crate::identity::Endpoint`]); `/` = any.
    pub path: String,
    /// Method tokens, as they stand on the wire; empty = any.
    pub methods: Vec<String>,
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
    /// Whether host and method fit; the path is the tree's to match. Case does not count: some backends take `post` for POST.
    pub fn accepts(&self, host: &[u8], method: &[u8]) -> bool {
        self.host.as_ref().is_none_or(|pattern| pattern.accepts(host))
            && (self.methods.is_empty() || self.methods.iter().any(|m| m.as_bytes().eq_ignore_ascii_case(method)))
    }

    /// Orders matches of one path: the narrower first (host over none, exact over suffix, methods over none).
    fn narrowness(&self) -> (u8, usize, bool) {
        let (kind, length) = match &self.host {
            Some(HostPattern::Exact(name)) => (2, name.len()),
            Some(HostPattern::Suffix(tail)) => (1, tail.len()),
            None => (0, 0),
        };
        (kind, length, !self.methods.is_empty())
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

    /// The rule with the longest path prefix that accepts the request; among equal paths the narrowest.
    pub fn longest(&self, host: &[u8], path: &[u8], method: &[u8]) -> Option<usize> {
        let mut best = None;
        self.walk(path, |node| {
            let fit = node.rules.iter().find(|(rule, _)| rule.accepts(host, method));
            best = fit.map(|&(_, id)| id).or(best);
        });
        best
    }

    /// Calls `found` with every rule that accepts the request, shortest path first.
    pub fn each(&self, host: &[u8], path: &[u8], method: &[u8], mut found: impl FnMut(usize)) {
        self.walk(path, |node| {
            for (rule, id) in &node.rules {
                if rule.accepts(host, method) {
                    found(*id);
                }
            }
        });
    }

    /// The most rules that one request can fall under. A request has one host and one method, so those of the rules
    /// are tried, and one of each that no rule names.
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
        let accepted = |node: &Node| node.rules.iter().filter(|(rule, _)| rule.accepts(host, method)).count();
        let mut sums: Vec<usize> = self.nodes.iter().map(accepted).collect();
        // A child is always made after its parent, so one pass in order is enough.
        for parent in 0..self.nodes.len() {
            for &child in self.nodes[parent].children.values() {
                sums[child] += sums[parent];
            }
        }
        sums.into_iter().max().unwrap_or(0)
    }

    fn walk(&self, path: &[u8], mut visit: impl FnMut(&Node)) {
        let mut node = &self.nodes[0];
        visit(node);
        for segment in segments(path) {
            match node.children.get(segment) {
                Some(&child) => node = &self.nodes[child],
                None => return,
            }
            visit(node);
        }
    }
}

fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|segment| !segment.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(path: &str) -> Match {
        Match { path: path.into(), ..Match::default() }
    }

    #[test]
    fn the_longest_prefix_wins_and_matches_whole_segments() {
        let tree = PathTree::new([(rule("/"), 0), (rule("/api"), 1), (rule("/api/v1"), 2)]);
        let of = |path: &str| tree.longest(b"h", path.as_bytes(), b"GET");
        assert_eq!(of("/"), Some(0));
        assert_eq!(of("/apix"), Some(0));
        assert_eq!(of("/api"), Some(1));
        assert_eq!(of("/api/v2"), Some(1));
        assert_eq!(of("/api/v1/x"), Some(2));
    }

    #[test]
    fn a_longer_path_that_does_not_accept_falls_back_to_a_shorter() {
        let mut narrow = rule("/api");
        narrow.methods = vec!["POST".into()];
        let tree = PathTree::new([(rule("/"), 0), (narrow, 1)]);
        assert_eq!(tree.longest(b"h", b"/api", b"GET"), Some(0));
        assert_eq!(tree.longest(b"h", b"/api", b"POST"), Some(1));
    }

    #[test]
    fn among_equal_paths_exact_host_beats_suffix_beats_none() {
        let with = |host: &str| Match { host: HostPattern::parse(host), ..rule("/") };
        let tree = PathTree::new([(rule("/"), 0), (with("*.example.com"), 1), (with("a.example.com"), 2)]);
        assert_eq!(tree.longest(b"A.Example.com", b"/", b"GET"), Some(2));
        assert_eq!(tree.longest(b"b.example.com", b"/", b"GET"), Some(1));
        assert_eq!(tree.longest(b"example.com", b"/", b"GET"), Some(0));
        assert_eq!(tree.longest(b".example.com", b"/", b"GET"), Some(0));
    }

    #[test]
    fn each_finds_every_rule_on_the_way() {
        let tree = PathTree::new([(rule("/"), 0), (rule("/api"), 1), (rule("/b"), 2)]);
        let mut found = Vec::new();
        tree.each(b"h", b"/api/x", b"GET", |id| found.push(id));
        assert_eq!(found, [0, 1]);
        assert_eq!(tree.most_on_one_path(), 2);
    }

    #[test]
    fn ports_and_brackets() {
        assert_eq!(host_without_port(b"a.b:80"), b"a.b");
        assert_eq!(host_without_port(b"a.b"), b"a.b");
        assert_eq!(host_without_port(b"[::1]:80"), b"[::1]");
        assert_eq!(host_without_port(b"[::1]"), b"[::1]");
    }

    #[test]
    fn the_dot_at_the_end_of_a_name_makes_no_other_host() {
        assert_eq!(host_without_port(b"a.b."), b"a.b");
        assert_eq!(host_without_port(b"a.b.:80"), b"a.b");
        assert_eq!(host_without_port(b"a.b.."), b"a.b.");
        assert_eq!(HostPattern::parse("A.b."), HostPattern::parse("a.b"));
        assert_eq!(HostPattern::parse("*.a.b."), HostPattern::parse("*.a.b"));
        assert_eq!((HostPattern::parse("."), HostPattern::parse("*.")), (None, None));
    }
}
