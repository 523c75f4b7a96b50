//! `rateguard spread`: asks the same thing many times, one request after another, each on a connection of its own, and
//! draws which backend and which gateway replica answered how often. Shell.
#![allow(clippy::disallowed_methods, reason = "shell: sends requests and prints")]

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::client::{Answer, Client, Connections, Outcome, Patience, ToolError};
use super::terminal;

/// The most requests that one run may send.
pub const REQUESTS_MAX: usize = 1_000_000;
/// Requests of a run that does not say how many.
pub const REQUESTS_DEFAULT: usize = 40;
/// Names that are counted apart; later ones share a row.
const NAMES_MAX: usize = 64;
/// A bar has room for at least this many columns, however long the names are.
const BAR_MIN: usize = 8;

/// What `rateguard spread` was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `http://host[:port][/path]`.
    pub url: String,
    /// How many requests, 1 to [`REQUESTS_MAX`].
    pub requests: usize,
    /// Headers to send with each, at most 64.
    pub headers: Vec<(String, String)>,
}

/// Who answered how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Requests that got a token, by the backend that answered.
    pub backends: BTreeMap<String, usize>,
    /// All answers, by the gateway replica that names itself.
    pub replicas: BTreeMap<String, usize>,
    /// Requests that were answered 429.
    pub denied: usize,
    /// Requests that got another error or no answer.
    pub failed: usize,
    /// Requests that got no answer, among the failed.
    pub unanswered: usize,
    /// Why the first of the failed failed.
    pub first_failure: Option<String>,
}

/// Sends the requests, shows progress on a terminal, prints the bars; an error where nothing answered at all.
pub fn run(options: &Options) -> Result<Spread, ToolError> {
    if !(1..=REQUESTS_MAX).contains(&options.requests) {
        return Err(ToolError::Usage(format!("-n {}: 1 to {REQUESTS_MAX} requests can be sent", options.requests)));
    }
    let client = Client::new(&options.url, &options.headers, Connections::Fresh, Patience::Patient)?;
    let mut out = io::stdout().lock();
    let progress = terminal::is_terminal();
    let mut spread = Spread::default();
    for number in 1..=options.requests {
        spread.add(client.fetch());
        if progress {
            write!(out, "\r{number}/{}", options.requests)?;
            out.flush()?;
        }
    }
    if progress {
        write!(out, "\r\x1b[K")?;
    }
    if spread.unanswered == options.requests {
        return Err(ToolError::Unreachable {
            url: options.url.clone(),
            cause: spread.first_failure.unwrap_or_default(),
        });
    }
    writeln!(out, "{} requests to {}, one after another\n", options.requests, options.url)?;
    write!(out, "{}", spread.draw(terminal::width()))?;
    out.flush()?;
    Ok(spread)
}

impl Spread {
    /// Counts one answer, or the reason why there is none.
    pub fn add(&mut self, fetched: Result<Answer, String>) {
        let answer = match fetched {
            Ok(answer) => answer,
            Err(cause) => {
                self.failed += 1;
                self.unanswered += 1;
                self.first_failure.get_or_insert(cause);
                return;
            }
        };
        if let Some(replica) = &answer.replica {
            count(&mut self.replicas, replica.clone());
        }
        match answer.outcome() {
            Outcome::Token => {
                let name = answer.hostname.unwrap_or_else(|| "(no hostname)".to_owned());
                count(&mut self.backends, name);
            }
            Outcome::Throttled => self.denied += 1,
            Outcome::Failed => {
                self.failed += 1;
                let cause = match answer.detail {
                    Some(detail) => format!("{}: {detail}", answer.status),
                    None => answer.status.to_string(),
                };
                self.first_failure.get_or_insert(cause);
            }
        }
    }

    /// The rows as bars, at most `width` columns wide unless the names alone are wider.
    pub fn draw(&self, width: usize) -> String {
        let mut backends = ranked(&self.backends);
        for (name, count) in [("(denied)", self.denied), ("(failed)", self.failed)] {
            if count > 0 {
                backends.push((name, count));
            }
        }
        let mut text = format!("backend\n{}", bars(&backends, width));
        if !self.replicas.is_empty() {
            text += &format!("\ngateway replica\n{}", bars(&ranked(&self.replicas), width));
        }
        if let Some(cause) = &self.first_failure {
            text += &format!("\nfirst failure: {cause}\n");
        }
        text
    }
}

/// One more for `name`, or for all the others once there are [`NAMES_MAX`] names.
fn count(rows: &mut BTreeMap<String, usize>, name: String) {
    let known = rows.contains_key(&name) || rows.len() < NAMES_MAX;
    let row = if known { name } else { "(others)".to_owned() };
    *rows.entry(row).or_default() += 1;
}

/// The rows, most frequent first, then by name.
fn ranked(rows: &BTreeMap<String, usize>) -> Vec<(&str, usize)> {
    let mut rows: Vec<(&str, usize)> = rows.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    rows
}

/// A line for each row: name, count, share of all, and a bar whose longest fills the width.
fn bars(rows: &[(&str, usize)], width: usize) -> String {
    let total: usize = rows.iter().map(|(_, count)| count).sum();
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let name_width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let count_width = most.to_string().len();
    // Two columns of indent, two between the parts, seven for the percentage.
    let bar_max = width.saturating_sub(2 + name_width + 2 + count_width + 2 + 7 + 2).max(BAR_MIN);
    let mut text = String::new();
    for (name, count) in rows {
        // What is there is seen: a row of one among thousands still gets a block.
        let blocks = (count * bar_max).div_ceil(most.max(1));
        let permille = (count * 1000 + total / 2) / total.max(1);
        text += &format!(
            "  {name:name_width$}  {count:>count_width$}  {:>3}.{} %  {}\n",
            permille / 10,
            permille % 10,
            "█".repeat(blocks)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, hostname: Option<&str>, replica: Option<&str>) -> Answer {
        Answer {
            status,
            hostname: hostname.map(str::to_owned),
            replica: replica.map(str::to_owned),
            ..Answer::default()
        }
    }

    #[test]
    fn every_answer_lands_in_one_row() {
        let mut spread = Spread::default();
        spread.add(Ok(answer(200, Some("b1"), Some("g1"))));
        spread.add(Ok(answer(200, Some("b1"), Some("g2"))));
        spread.add(Ok(answer(204, None, None)));
        spread.add(Ok(answer(429, None, Some("g2"))));
        spread.add(Ok(answer(503, Some("b2"), None)));
        spread.add(Err("refused".to_owned()));
        assert_eq!(spread.backends, BTreeMap::from([("b1".to_owned(), 2), ("(no hostname)".to_owned(), 1)]));
        assert_eq!(spread.replicas, BTreeMap::from([("g1".to_owned(), 1), ("g2".to_owned(), 2)]));
        assert_eq!((spread.denied, spread.failed, spread.unanswered), (1, 2, 1));
        assert_eq!(spread.first_failure.as_deref(), Some("503"));
    }

    #[test]
    fn bars_fill_the_width_and_no_more() {
        let text = bars(&[("b1", 300), ("backend-2", 99), ("(denied)", 1)], 60);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                format!("  b1         300   75.0 %  {}", "█".repeat(33)),
                format!("  backend-2   99   24.8 %  {}", "█".repeat(11)),
                format!("  (denied)     1    0.3 %  {}", "█"),
            ]
        );
        assert_eq!(lines[0].chars().count(), 60);
    }

    #[test]
    fn bars_stand_with_nothing_and_with_long_names() {
        assert_eq!(bars(&[], 80), "");
        assert_eq!(bars(&[("x", 0)], 80), "  x  0    0.0 %  \n");
        let long = "n".repeat(100);
        assert!(bars(&[(&long, 1)], 40).ends_with(&format!("  {}\n", "█".repeat(BAR_MIN))));
    }

    #[test]
    fn names_are_bounded() {
        let mut rows = BTreeMap::new();
        for number in 0..1000 {
            count(&mut rows, format!("b{number}"));
        }
        assert_eq!(rows.len(), NAMES_MAX + 1);
        assert_eq!(rows.values().sum::<usize>(), 1000);
    }
}
