//! Log lines to stderr: for eyes when it is a terminal, JSON when it is not; and a bound on lines that strangers can cause.
//!
//! A thread of its own writes them, so that nobody waits for who reads them: while that one is stuck, up to [`QUEUE_MAX`]
//! lines are kept and further ones lost. A gateway does not fall because its log did.
//! Shell.
#![allow(clippy::disallowed_methods, reason = "shell: the environment says what to log and how")]

use crate::time::Micros;
use std::env::VarError;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that wait to be written.
pub const QUEUE_MAX: usize = 8192;

/// Writes what still waits when it is dropped, for a second at most.
#[must_use = "lines are lost once it is dropped"]
pub struct Guard {
    _writer: Option<WorkerGuard>,
}

/// Starts logging. `RUST_LOG` says what (`info` without it, or where it cannot be read), `NO_COLOR` takes the colour away.
/// A second call changes nothing.
pub fn init() -> Guard {
    static STARTED: AtomicBool = AtomicBool::new(false);
    let is_first = !STARTED.swap(true, Ordering::Relaxed);
    Guard { _writer: is_first.then(start) }
}

fn start() -> WorkerGuard {
    let filter = match filter(std::env::var(EnvFilter::DEFAULT_ENV)) {
        Ok(filter) => filter,
        Err(complaint) => {
            // Not `eprintln!`, which panics when stderr is closed.
            let _ = writeln!(io::stderr(), "{complaint}");
            default_filter()
        }
    };
    let queue = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE_MAX).thread_name("log");
    let (writer, guard) = queue.finish(io::stderr());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false)
        // It would report a failed write with `eprintln!`, and that panics.
        .log_internal_errors(false);
    // Fails where something else already listens: then that stays.
    let _ = if io::stderr().is_terminal() {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        lines.compact().with_ansi(colour).finish().try_init()
    } else {
        lines.json().flatten_event(true).with_span_list(false).finish().try_init()
    };
    guard
}

/// How many lines may be written about something that a stranger, or a server that comes and goes, can repeat at will.
#[derive(Debug)]
pub struct Budget {
    lines: u32,
    window: Duration,
    /// Start of the window that `left` is for; none before the first line.
    start: Option<Micros>,
    left: u32,
    suppressed: u64,
}

/// What to do with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Write it.
    Write {
        /// Lines left out since the last one that was written.
        suppressed: u64,
    },
    /// Leave it out.
    Skip,
}

impl Budget {
    /// A budget of so many lines in each second; 0 writes none.
    pub fn new(lines_per_second: u32) -> Budget {
        Budget::within(lines_per_second, SECOND)
    }

    /// A budget of so many lines in each window of this length.
    pub fn within(lines: u32, window: Duration) -> Budget {
        Budget { lines, window, start: None, left: 0, suppressed: 0 }
    }

    /// Asks for one line. A window begins with the first line asked for after the last one ended.
    pub fn take(&mut self, now: Micros) -> Take {
        if self.start.is_none_or(|start| now.since(start) >= self.window) {
            self.start = Some(now);
            self.left = self.lines;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Take::Write { suppressed: std::mem::take(&mut self.suppressed) }
            }
            None => {
                self.suppressed = self.suppressed.saturating_add(1);
                Take::Skip
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Warns of every datagram that is none of a nameserver's: whoever sends such could fill the log.
const QUIET: &str = "hickory_net=error";

fn default_filter() -> EnvFilter {
    let filter = EnvFilter::default().add_directive(LevelFilter::INFO.into());
    match QUIET.parse() {
        Ok(quiet) => filter.add_directive(quiet),
        Err(_) => filter,
    }
}

/// The filter that `RUST_LOG` asks for, or one line that says why it cannot be used.
fn filter(wanted: Result<String, VarError>) -> Result<EnvFilter, String> {
    let wanted = match wanted {
        Ok(text) if !text.trim().is_empty() => text,
        Ok(_) | Err(VarError::NotPresent) => return Ok(default_filter()),
        Err(VarError::NotUnicode(bytes)) => {
            return Err(format!("RUST_LOG={bytes:?} is not text; logging at info"));
        }
    };
    EnvFilter::builder()
        .parse(&wanted)
        .map_err(|error| format!("RUST_LOG={wanted:?} cannot be used: {error}; logging at info"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(seconds: f64) -> Micros {
        Micros((seconds * 1e6) as u64)
    }

    fn write(suppressed: u64) -> Take {
        Take::Write { suppressed }
    }

    #[test]
    fn a_second_has_so_many_lines_and_no_more() {
        let mut budget = Budget::new(3);
        let takes: Vec<Take> = (0..5).map(|i| budget.take(Micros(7_000_000 + i))).collect();
        assert_eq!(takes, [write(0), write(0), write(0), Take::Skip, Take::Skip]);
    }

    #[test]
    fn the_first_line_of_a_new_second_reports_those_left_out_and_the_next_does_not() {
        let mut budget = Budget::new(1);
        assert_eq!(budget.take(second(5.5)), write(0));
        for _ in 0..1000 {
            assert_eq!(budget.take(second(6.4)), Take::Skip);
        }
        assert_eq!(budget.take(second(6.5)), write(1000));
        assert_eq!(budget.take(second(90.0)), write(0));
    }

    #[test]
    fn a_day_of_flood_writes_one_second_s_lines_each_second_and_loses_no_count() {
        let mut budget = Budget::new(2);
        let (mut written, mut reported) = (0_u64, 0_u64);
        let asked = 86_400 * 10;
        for i in 0..asked {
            if let Take::Write { suppressed } = budget.take(Micros(i * 100_000)) {
                written += 1;
                reported += suppressed;
            }
        }
        assert_eq!(written, 86_400 * 2);
        assert_eq!(written + reported + budget.suppressed, asked);
    }

    #[test]
    fn a_budget_of_none_writes_nothing() {
        let mut budget = Budget::new(0);
        assert!((0..10).all(|s| budget.take(second(f64::from(s) * 2.0)) == Take::Skip));
    }

    #[test]
    fn a_clock_that_steps_back_opens_no_new_second() {
        let mut budget = Budget::new(1);
        assert_eq!(budget.take(second(10.0)), write(0));
        assert_eq!(budget.take(second(1.0)), Take::Skip);
        assert_eq!(budget.take(second(11.0)), write(1));
    }

    #[test]
    fn what_to_log_is_info_unless_asked() {
        let said = |text: &str| filter(Ok(text.to_owned())).unwrap().to_string();
        assert_eq!(filter(Err(VarError::NotPresent)).unwrap().to_string(), "hickory_net=error,info");
        assert_eq!(said(""), "hickory_net=error,info");
        assert_eq!(said(" "), "hickory_net=error,info");
        assert_eq!(said("debug"), "debug");
        assert_eq!(said("warn,rateguard=trace"), "rateguard=trace,warn");
    }

    #[test]
    fn what_cannot_be_used_is_said_in_one_line() {
        use std::os::unix::ffi::OsStringExt;
        let bytes = std::ffi::OsString::from_vec(vec![0xff, b'\n']);
        for wanted in [Ok("rateguard=loud\n".to_owned()), Err(VarError::NotUnicode(bytes))] {
            let complaint = filter(wanted).unwrap_err();
            assert!(complaint.starts_with("RUST_LOG=") && complaint.lines().count() == 1, "{complaint}");
        }
    }
}
