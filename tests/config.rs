//! Broken configs, one file for each fault in `tests/bad`: what is said about them, and where.
//!
//! The first line of a file tells: `# expect: <line> <key>: <part of the message>`, with `-` for no line or no key.
#![allow(clippy::disallowed_methods, reason = "shell: reads the files that it tests")]

use rateguard::config::Config;
use std::path::{Path, PathBuf};

const FILES_MIN: usize = 60;

#[test]
fn broken_configs_are_refused_with_line_key_and_fix() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let entries = std::fs::read_dir(&folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= FILES_MIN, "{} files in {}", files.len(), folder.display());
    let wrong: Vec<String> = files.iter().filter_map(|file| complaint(file)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What is not as expected about a file.
fn complaint(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let text = std::fs::read_to_string(file).ok()?;
    let Some((place, part)) = text.lines().next().and_then(expectation) else {
        return Some(format!("{name}: its first line is no \"# expect: <line> <key>: <part of the message>\""));
    };
    let error = match Config::parse(name, &text, &|_| None) {
        Ok(_) => return Some(format!("{name}: is accepted")),
        Err(error) => error,
    };
    let line = error.line.map_or("-".into(), |line| line.to_string());
    let key = if error.key.is_empty() { "-" } else { &error.key };
    let said = error.to_string();
    let as_expected = format!("{line} {key}") == place && said.contains(part) && !error.fix.is_empty();
    let one_line = !said.contains('\n') && said.starts_with(name);
    (!as_expected || !one_line).then(|| format!("expected {place}: …{part}…\n     got {said}"))
}

fn expectation(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("# expect: ")?.split_once(": ")
}

#[test]
fn the_shipped_config_is_valid_and_has_no_warnings() {
    let text = include_str!("../config.toml");
    let config = Config::parse("config.toml", text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.warnings(), Vec::<String>::new());
}
