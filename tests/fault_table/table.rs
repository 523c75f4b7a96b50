//! The table as text: for readers, and for programs. No clock but the date's, no IO but questions about the machine.

use super::figures::{Statuses, Waits};
use super::load::{BURST, CLIENTS, RATE, USERS};
use super::runs::Run;
use std::fmt::Write;
use std::process::Command;
use std::time::SystemTime;

const HEAD: &str = "\
| fault | mode | requests | 200 / 429 / 503 / other | added p50, p99 | longest (before) | recovery | over: by the store, all | allowed | kept |
|---|---|---|---|---|---|---|---|---|---|
";

const LEGEND: &str = "\
Requests and statuses are those sent during the fault. Times are in milliseconds: what was added to the median and to
the 99th percentile of the same run before the fault, and the longest wait until the recovery, with the longest before
the fault in brackets. Recovery: from the end of the fault until the store decided on eight connections, seen every
20 ms; 0 where it had never stopped. Over: what the worst user was admitted beyond burst + rate * t, in any stretch of the whole
run: by decisions of the store alone, and by all. Allowed: the same two, as promised; with `local` one burst more for each switch,
and one where the store itself lost its buckets or its clock jumped; with `open`, everything passes.
Kept: no request failed, none but in `closed` got a 503, none waited longer than the deadline and 5 ms beyond the longest before, and
no more passed than allowed.
";

fn statuses(statuses: &Statuses) -> String {
    format!("{} / {} / {} / {}", statuses.ok, statuses.denied, statuses.refused, statuses.other)
}

fn bound(requests: f64) -> String {
    if requests.is_finite() { format!("{requests:.0}") } else { "any".into() }
}

/// A line of the table.
pub fn row(run: &Run) -> String {
    let recovery = run.recovery_ms.map_or_else(|| "none in 3 s".into(), |took| format!("{took:.0}"));
    let broken = run.broken();
    let busy = if run.is_busy() { " (busy)" } else { "" };
    let kept = if broken.is_empty() { format!("yes{busy}") } else { format!("**no**: {}", broken.join("; ")) };
    let [by_store, in_all] = run.bounds().map(bound);
    format!(
        "| {} | {} | {} | {} | {:+.2}, {:+.2} | {:.1} ({:.1}) | {recovery} | {:.1}, {:.1} | {by_store}, {in_all} | {kept} |",
        run.fault,
        run.mode,
        run.statuses.sum(),
        statuses(&run.statuses),
        run.added_p50(),
        run.added_p99(),
        run.waits.longest,
        run.waits_before.longest,
        run.over_by_store,
        run.over,
    )
}

/// The whole page.
pub fn markdown(runs: &[Run], seed: u64) -> String {
    let mut page = "# What a client sees of a failing Redis\n\n".to_owned();
    let mut idle: Vec<f64> = runs.iter().map(|run| run.idle).collect();
    idle.sort_unstable_by(f64::total_cmp);
    let idle = idle.get(idle.len() / 2).copied().unwrap_or_default() * 100.0;
    let pulse = runs.iter().map(|run| run.pulse_ms).fold(0.0, f64::max);
    let busy = runs.iter().filter(|run| run.is_busy()).count();
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let _ = write!(
        page,
        "Written by `tests/fault_table/run` on {} (seed {seed}, {profile} profile).\n\n- Machine: {}. {}.\n\
         - It was idle for {idle:.0} % of the time (median of the runs); a thread waited for a processor for {pulse:.0} ms \
         at most. In {busy} of {} runs, marked as busy, others were at work too: their tails and recoveries are not the gateway's alone.\n\
         - Load: {CLIENTS} connections, 100 requests a second each, {USERS} users at random; a limit of {RATE}/s with \
         bursts of {BURST} by user; two workers; store deadline 20 ms.\n\n",
        date(),
        machine(),
        version(),
        runs.len(),
    );
    page.push_str(LEGEND);
    page.push('\n');
    page.push_str(HEAD);
    for run in runs {
        page.push_str(&row(run));
        page.push('\n');
    }
    page.push_str(&hang(runs));
    page
}

/// The figures asked of a store that hangs under load.
fn hang(runs: &[Run]) -> String {
    let mut text = "\n## Redis stopped (SIGSTOP) under load\n\n\
        | mode | added p99 until the breaker opened (<= 25 ms) | added p99 after that (<= 0.2 ms) | recovery after SIGCONT (<= 1000 ms) | 5xx | over (allowed) |\n\
        |---|---|---|---|---|---|\n"
        .to_owned();
    for run in runs.iter().filter(|run| run.fault == "SIGSTOP") {
        let [until_opened, once_open] = run.added_by_hang();
        let failed = [run.statuses_before, run.statuses, run.statuses_after].map(|seen| seen.refused + seen.other);
        let _ = writeln!(
            text,
            "| {} | {until_opened:.2} | {once_open:.2} | {} | {} | {:.1} ({}) |",
            run.mode,
            run.recovery_ms.map_or_else(|| "none".into(), |took| format!("{took:.0}")),
            failed.iter().sum::<usize>(),
            run.over,
            bound(run.bounds()[1]),
        );
    }
    text
}

/// One line for each run, nothing rounded away.
pub fn csv(runs: &[Run], seed: u64) -> String {
    let mut text = "seed,fault,mode,fault_ms,recovery_ms,over_by_store,over,switches,losses,pulse_ms,idle".to_owned();
    for phase in ["before", "during", "after"] {
        let _ = write!(text, ",200_{phase},429_{phase},503_{phase},other_{phase}");
    }
    for phase in ["before", "during", "first_100ms", "later"] {
        let _ = write!(text, ",p50_ms_{phase},p99_ms_{phase},longest_ms_{phase}");
    }
    text.push_str(",store_errors\n");
    for run in runs {
        let recovery = run.recovery_ms.map_or_else(String::new, |took| format!("{took:.3}"));
        let _ = write!(
            text,
            "{seed},{},{},{:.3},{recovery},{:.3},{:.3},{},{},{:.3},{:.3}",
            run.fault,
            run.mode,
            run.fault_ms,
            run.over_by_store,
            run.over,
            run.switches,
            run.losses,
            run.pulse_ms,
            run.idle
        );
        for seen in [run.statuses_before, run.statuses, run.statuses_after] {
            let _ = write!(text, ",{},{},{},{}", seen.ok, seen.denied, seen.refused, seen.other);
        }
        for Waits { p50, p99, longest } in [run.waits_before, run.waits, run.waits_until_opened, run.waits_once_open] {
            let _ = write!(text, ",{p50:.3},{p99:.3},{longest:.3}");
        }
        let _ = writeln!(text, ",{}", run.errors);
    }
    text
}

fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processors} processors, Linux {}", kernel.trim())
}

fn version() -> String {
    let told = Command::new("redis-server").arg("--version").output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let version = told.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("of some version");
    format!("redis-server {version}")
}
