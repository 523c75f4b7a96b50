//! How long this machine keeps a thread waiting for a processor, for tests about time: an answer that is late because
//! nothing could run says nothing about the gateway, whose workers are pinned to processors and cannot move away.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(10);

/// Gaps below this are nothing out of the ordinary.
const GAP_MIN: Duration = Duration::from_millis(5);

/// What the beating thread of one processor has seen.
struct Processor {
    last: Instant,
    /// When each longer gap ended, and how long it was.
    gaps: Vec<(Instant, Duration)>,
}

/// The longest that a thread had to wait for a processor since then. Starts to watch with the first call: make one before
/// what is measured.
pub fn longest_wait_since(start: Instant) -> Duration {
    static PROCESSORS: OnceLock<Vec<Mutex<Processor>>> = OnceLock::new();
    let processors = PROCESSORS.get_or_init(|| {
        let allowed = sched_getaffinity(None).unwrap();
        let numbers: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&number| allowed.is_set(number)).collect();
        for (place, number) in numbers.iter().copied().enumerate() {
            std::thread::spawn(move || beat(&PROCESSORS.wait()[place], number));
        }
        numbers.iter().map(|_| Mutex::new(Processor { last: Instant::now(), gaps: Vec::new() })).collect()
    });
    let longest = |processor: &Mutex<Processor>| {
        let processor = processor.lock().unwrap();
        let ended = processor.gaps.iter().filter(|(end, _)| *end >= start).map(|(_, gap)| *gap).max();
        ended.unwrap_or_default().max(processor.last.elapsed().saturating_sub(BEAT))
    };
    processors.iter().map(longest).max().unwrap_or_default()
}

fn beat(processor: &Mutex<Processor>, number: usize) {
    let mut set = CpuSet::new();
    set.set(number);
    sched_setaffinity(None, &set).unwrap();
    loop {
        std::thread::sleep(BEAT);
        let mut processor = processor.lock().unwrap();
        let gap = processor.last.elapsed().saturating_sub(BEAT);
        processor.last = Instant::now();
        if gap >= GAP_MIN {
            let end = processor.last;
            processor.gaps.push((end, gap));
        }
    }
}
