//! What is wrong with a config, said so that it can be mended without the manual: file, line, key, problem and fix.
//!
//! Never holds the value of a secret. Pure.

use std::fmt;

/// A config that is refused. Displayed in one line: `config.toml:12: limits[0].rate: <problem>; <fix>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file's name as it was given.
    pub file: String,
    /// Counted from 1; `None` where what is missing has no place in the file.
    pub line: Option<usize>,
    /// The dotted path, such as `server.timeouts.head` or `limits[0].rate`; empty where the file is no TOML.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub fix: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.problem, self.fix)
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with a value, before it is known where the value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub problem: String,
    pub fix: String,
}

impl Flaw {
    pub fn new(problem: impl Into<String>, fix: impl Into<String>) -> Flaw {
        Flaw { problem: problem.into(), fix: fix.into() }
    }

    /// Something that the design names and this version does not do.
    pub fn later(what: &str, instead: impl Into<String>) -> Flaw {
        Flaw::new(format!("{what} is not supported yet"), instead)
    }
}

/// `did you mean "listen"?`, or, where nothing is near, what there is to choose from.
pub(super) fn did_you_mean<'c>(word: &str, candidates: impl Iterator<Item = &'c str> + Clone) -> String {
    let lower = word.to_ascii_lowercase();
    let near = candidates
        .clone()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance);
    if let Some((_, candidate)) = near {
        return format!("did you mean {candidate:?}?");
    }
    match one_of(candidates) {
        none if none.is_empty() => "there is none to choose from".into(),
        known => format!("use {known}"),
    }
}

/// How many choices a message names.
const NAMED_MAX: usize = 12;

fn one_of<'c>(candidates: impl Iterator<Item = &'c str> + Clone) -> String {
    let all = candidates.clone().count();
    let mut text = String::new();
    for (i, candidate) in candidates.take(NAMED_MAX).enumerate() {
        match i {
            0 => {}
            i if i + 1 == all => text.push_str(" or "),
            _ => text.push_str(", "),
        }
        text.push_str(&format!("{candidate:?}"));
    }
    if all > NAMED_MAX {
        text.push_str(", …");
    }
    text
}
