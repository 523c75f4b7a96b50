//! The fault table: every fault of the store, in every mode of failure, and what the client saw of it. The test runs a few
//! rows in a short form and holds them to what is promised; `tests/fault_table/run` writes the whole table.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "tests are shell, and a panic is how they fail"
)]

#[allow(dead_code, reason = "the other test binaries use the rest")]
mod support;

/// How busy the machine is, where time is the subject.
#[path = "store_faults/pulse.rs"]
mod pulse;

/// What can go wrong, staged with real servers.
#[path = "fault_table/faults.rs"]
mod faults;

/// Faults of the line to Redis, and of its whole arrangement.
#[path = "fault_table/places.rs"]
mod places;

/// Clients that ask at a steady pace, and probes that find out whether the store decides.
#[path = "fault_table/load.rs"]
mod load;

/// What is reckoned from the answers.
#[path = "fault_table/figures.rs"]
mod figures;

/// One fault in one mode, from the start to the recovery.
#[path = "fault_table/runs.rs"]
mod runs;

/// The table as text.
#[path = "fault_table/table.rs"]
mod table;

use faults::FAULTS;
use runs::{MODES, Run, Times, run};
use std::time::Duration;

/// Long enough for a bucket to fill, and for the breaker to open; no longer, for this is run with every test.
const SHORT: Times = Times {
    before: Duration::from_millis(300),
    fault: Duration::from_millis(700),
    after: Duration::from_millis(3000),
    settled: Duration::from_millis(100),
};

const WHOLE: Times = Times {
    before: Duration::from_millis(1000),
    fault: Duration::from_millis(2000),
    after: Duration::from_millis(3000),
    settled: Duration::from_millis(300),
};

/// What is run with every test.
const CHECKED: [&str; 3] = ["kill", "SIGSTOP", "connection reset"];

#[test]
fn promises_are_kept_while_redis_is_killed_hangs_and_is_cut_off() {
    let seed = support::seed();
    for (name, stage) in FAULTS.iter().filter(|(name, _)| CHECKED.contains(name)) {
        for mode in MODES {
            let Some(run) = run(name, *stage, mode, SHORT, seed) else { continue };
            let broken = run.broken();
            assert!(broken.is_empty(), "{name}, {mode}: {broken:?}\n{run:#?}");
        }
    }
}

/// Writes the table to the file that `RATEGUARD_FAULT_TABLE` names, and the figures beside it. With
/// `RATEGUARD_FAULT_TABLE_ONLY`, of the faults whose names hold it.
#[test]
#[ignore = "takes six minutes; tests/fault_table/run runs it"]
fn the_whole_table() {
    let path = std::env::var("RATEGUARD_FAULT_TABLE").expect("RATEGUARD_FAULT_TABLE names the file to write");
    let only = std::env::var("RATEGUARD_FAULT_TABLE_ONLY").unwrap_or_default();
    let seed = support::seed();
    let mut runs: Vec<Run> = Vec::new();
    for (name, stage) in FAULTS.iter().filter(|(name, _)| name.contains(&only)) {
        for mode in MODES {
            match run(name, *stage, mode, WHOLE, seed) {
                Some(run) => {
                    println!("{}", table::row(&run));
                    runs.push(run);
                }
                None => println!("| {name} | {mode} | cannot be staged on this machine |"),
            }
        }
    }
    let figures = path.strip_suffix(".md").unwrap_or(&path).to_owned() + ".csv";
    let figures = figures.replace("README.csv", "raw.csv");
    std::fs::write(&path, table::markdown(&runs, seed)).unwrap();
    std::fs::write(&figures, table::csv(&runs, seed)).unwrap();
    println!("written: {path} and {figures}");
    let broken: Vec<String> = runs
        .iter()
        .flat_map(|run| run.broken().into_iter().map(|what| format!("{}, {}: {what}", run.fault, run.mode)))
        .collect();
    assert!(broken.is_empty(), "promises that were not kept, and not by the machine's fault:\n{}", broken.join("\n"));
}
