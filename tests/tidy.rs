//! The source as the house rules want it: imports point down, shells are a closed list of leaves, files and functions
//! stay readable, and nothing of one machine or of a rainy day is left in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms from the bottom to the top, as the map in `lib.rs` has them. A room may import those below it and, without
/// going round in circles, those beside it.
const LAYERS: [&[&str]; 8] = [
    &["http", "metrics", "coroutine", "log", "time", "resolve", "tls"],
    &["identity", "route", "redis", "conn", "deadlines", "splice"],
    &["limit", "upstream"],
    &["config", "reply"],
    &["server", "proxy", "relay", "tunnel", "gateway", "explain"],
    &["control", "worker", "admin"],
    &["cli", "demo"],
    &["main"],
];

/// Beside the gateway: only the commands know them, and they know nothing of it.
const BESIDE: [&str; 2] = ["backend", "tools"];

/// The files that may touch sockets, files, threads, the clock or the environment.
const SHELLS: [&str; 27] = [
    "admin/server.rs",
    "backend.rs",
    "cli.rs",
    "conn.rs",
    "control.rs",
    "deadlines.rs",
    "demo.rs",
    "log.rs",
    "proxy.rs",
    "redis/client.rs",
    "redis/connection.rs",
    "redis/dial.rs",
    "resolve/lookup.rs",
    "resolve/rounds.rs",
    "server.rs",
    "splice.rs",
    "time.rs",
    "tls.rs",
    "tools/burst.rs",
    "tools/client.rs",
    "tools/healthcheck.rs",
    "tools/spread.rs",
    "tools/terminal.rs",
    "upstream/dial.rs",
    "upstream/pool.rs",
    "upstream/probe.rs",
    "worker.rs",
];

const FILE_LINES_MAX: usize = 700;
const FN_LINES_MAX: usize = 70;

/// A source file.
struct File {
    /// Its path below `src`.
    name: String,
    text: String,
}

impl File {
    /// The top module that it belongs to.
    fn room(&self) -> &str {
        self.name.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The text before the tests; all of it in other files.
    fn product(&self) -> &str {
        self.text.split("#[cfg(test)]").next().unwrap()
    }

    /// The product's lines without their comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.product().lines().enumerate();
        lines.map(|(number, line)| (number + 1, line.split("//").next().unwrap()))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder with one of these endings.
fn below(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("fuzz/target") {
            // What the fuzzer has built.
            continue;
        }
        if path.is_dir() {
            below(&path, endings, found);
        } else if path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known)) {
            found.push(path);
        }
    }
}

/// The files of the product; files that are tests and nothing else are left out.
fn sources() -> Vec<File> {
    let folder = root().join("src");
    let mut paths = Vec::new();
    below(&folder, &["rs"], &mut paths);
    paths.sort();
    let file = |path: &PathBuf| File {
        name: path.strip_prefix(&folder).unwrap().to_str().unwrap().to_string(),
        text: std::fs::read_to_string(path).unwrap(),
    };
    let files: Vec<File> = paths.iter().map(file).filter(|file| !file.name.ends_with("tests.rs")).collect();
    assert!(files.len() > 40, "only {} source files were found", files.len());
    files
}

fn none(what: &str, found: impl IntoIterator<Item = String>) {
    let found: Vec<String> = found.into_iter().collect();
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// The rooms that a text names after `crate::`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for (at, word) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + word.len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => members(list),
            None => vec![rest],
        };
        let name =
            |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        rooms.extend(names.into_iter().map(name).filter(|name| !name.is_empty()));
    }
    rooms
}

/// The members of a list in braces, the opening one left out.
fn members(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(&list[start..at]);
                return found;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    panic!("a list without an end: {list:.80}");
}

/// Which room imports which others.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in sources() {
        let code: String = file.code().map(|(_, line)| format!("{line}\n")).collect();
        let mut rooms = imports(&code);
        rooms.remove(file.room());
        graph.entry(file.room().into()).or_default().extend(rooms);
    }
    graph
}

fn layer(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::a;\nuse crate::{b::{c, d}, e,\n f};\nlet x = crate::g::h(); mycrate::i();";
    assert_eq!(imports(code).into_iter().collect::<Vec<_>>(), ["a", "b", "e", "f", "g"]);
}

#[test]
fn every_room_has_its_place() {
    let known: BTreeSet<&str> = LAYERS.iter().copied().flatten().chain(&BESIDE).copied().collect();
    let files = sources();
    let rooms: BTreeSet<&str> = files.iter().map(File::room).filter(|room| *room != "lib").collect();
    assert_eq!(rooms, known);
    let map = &files.iter().find(|file| file.name == "lib.rs").unwrap().text;
    none("rooms that lib.rs does not have", known.iter().filter(|room| !map.contains(*room)).map(ToString::to_string));
    for name in known.iter().filter(|name| **name != "main") {
        assert!(map.contains(&format!("\npub mod {name};\n")), "{name} is no module");
    }
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for (room, targets) in graph() {
        for target in targets {
            let points_down = match (layer(&room), layer(&target)) {
                (Some(from), Some(to)) => to <= from,
                // Only the commands know what stands beside the gateway.
                (Some(from), None) => from >= layer("cli").unwrap() && BESIDE.contains(&target.as_str()),
                (None, _) => room == "lib",
            };
            if !points_down {
                wrong.push(format!("{room} imports {target}"));
            }
        }
    }
    none("imports that do not point down", wrong);
}

#[test]
fn rooms_of_one_layer_do_not_go_round_in_circles() {
    let graph = graph();
    for rooms in LAYERS {
        let mut left: BTreeSet<&str> = rooms.iter().copied().collect();
        while !left.is_empty() {
            let free = |room: &&str| graph.get(*room).is_none_or(|to| to.iter().all(|to| !left.contains(to.as_str())));
            let leaf = left.iter().copied().find(|room| free(room));
            let leaf = leaf.unwrap_or_else(|| panic!("these import each other: {left:?}"));
            left.remove(leaf);
        }
    }
}

#[test]
fn the_shell_is_a_closed_list_of_leaves() {
    let files = sources();
    let marked: Vec<&File> = files.iter().filter(|file| file.product().contains("reason = \"shell:")).collect();
    let names: Vec<&str> = marked.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, SHELLS);
    // What a mod.rs allows, its children are allowed.
    none("shells that are no leaf", names.iter().filter(|name| name.ends_with("mod.rs")).map(ToString::to_string));
    for file in marked {
        let header: String = file.text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(header.contains("Shell"), "{} does not say that it is a shell", file.name);
        let children = file.name.trim_end_matches(".rs").to_string() + "/";
        none("children of a shell", files.iter().map(|f| f.name.clone()).filter(|name| name.starts_with(&children)));
    }
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    let silent = sources().into_iter().filter(|file| !file.text.starts_with("//! "));
    none("files that do not say what they are for", silent.map(|file| file.name));
}

#[test]
fn files_and_functions_stay_short() {
    let mut long = Vec::new();
    for file in sources() {
        let lines: Vec<&str> = file.text.lines().collect();
        if lines.len() > FILE_LINES_MAX {
            long.push(format!("{}: {} lines", file.name, lines.len()));
        }
        for (start, line) in file.product().lines().enumerate() {
            let Some(name) = function(line) else { continue };
            let indent = line.len() - line.trim_start().len();
            let ends = |at: &usize| lines[*at].len() == indent + 1 && lines[*at].trim_start() == "}";
            let is_one_line = line.ends_with('}') || line.ends_with(';');
            let end = if is_one_line { start } else { (start..lines.len()).find(ends).expect("a function ends") };
            if end + 1 - start > FN_LINES_MAX {
                long.push(format!("{}:{}: {name} has {} lines", file.name, start + 1, end + 1 - start));
            }
        }
    }
    none("too long to read", long);
}

/// The name of the function that begins on this line, where one does.
fn function(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    for word in ["pub(super) ", "pub(crate) ", "pub ", "const ", "async ", "unsafe "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[test]
fn nothing_is_left_for_a_rainy_day() {
    let mut found = Vec::new();
    for file in sources() {
        for (number, line) in file.product().lines().enumerate() {
            for word in ["FIXME", "TODO", "XXX", "HACK"] {
                if line.contains(word) {
                    found.push(format!("{}:{}: {word}", file.name, number + 1));
                }
            }
        }
        for (number, line) in file.code() {
            for word in [".unwrap()", "todo!", "dbg!", "unimplemented!"] {
                if line.contains(word) {
                    found.push(format!("{}:{number}: {word}", file.name));
                }
            }
        }
    }
    none("unfinished", found);
}

#[test]
fn unsafe_code_is_in_one_file_and_says_why_it_is_sound() {
    for file in sources() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in file.code() {
            if !line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe") {
                continue;
            }
            assert_eq!(file.name, "deadlines.rs", "line {number} is unsafe");
            let above = lines[..number - 1].iter().rev().take_while(|line| line.trim_start().starts_with("//"));
            assert!(above.into_iter().any(|line| line.contains("SAFETY: ")), "{}:{number} has no SAFETY", file.name);
        }
    }
}

#[test]
fn nothing_names_a_place_of_one_machine() {
    // Put together here, so that this file does not hold them.
    let places = ["work", "home", "root", "Users", "var/tmp"].map(|folder| format!("/{folder}/"));
    let mut files = Vec::new();
    for folder in
        ["src", "tests", "lua", "docker", "nginx"].map(|name| root().join(name)).iter().filter(|path| path.exists())
    {
        below(folder, &["rs", "toml", "lua", "conf", "yml", "yaml"], &mut files);
    }
    files.extend(["Cargo.toml", "config.toml"].map(|name| root().join(name)));
    let mut found = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            // An address on the web may well hold such a folder.
            let is_place = |place: &String| line.contains(place.as_str()) && !line.contains("://");
            if places.iter().any(is_place) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    none("paths of one machine", found);
}
