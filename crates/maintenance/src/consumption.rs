//! What this process has taken of the machine, as Linux counts it in proc(5). What cannot be
//! read (there is no `/proc`, or a sandbox keeps it away) is left out, and never 0.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::Disk;

/// Where a process finds itself.
const THIS: &str = "/proc/self";

/// More bytes than any of these files has.
const LIMIT: u64 = 4096;

/// What a process has taken since it started. `null`: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Consumption {
    /// Seconds of processor time, the kernel's for it included, of all its threads.
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory it has resident at this moment.
    pub resident_bytes: Option<u64>,
    /// Bytes it caused to be written to a disk: counted when a page is dirtied, and nothing for
    /// a file system in memory.
    pub written_bytes: Option<u64>,
}

impl Consumption {
    /// Of this process, up to now.
    #[must_use]
    pub fn now() -> Self {
        let disk = Disk::default();
        let read = |name: &str| {
            let bytes = disk.read(&Path::new(THIS).join(name), LIMIT).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let page_size = rustix::param::page_size() as u64;
        Self {
            cpu_seconds: read("stat").and_then(|stat| cpu_seconds(&stat, ticks_per_second)),
            resident_bytes: read("statm").and_then(|statm| resident_bytes(&statm, page_size)),
            written_bytes: read("io").and_then(|io| written_bytes(&io)),
        }
    }
}

/// `utime` and `stime` of `proc_pid_stat(5)`.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact for as long as any process lives"
)]
fn cpu_seconds(stat: &str, ticks_per_second: u64) -> Option<f64> {
    // The name before may have anything in it; behind it comes the third field.
    let (_, stat) = stat.rsplit_once(')')?;
    let mut fields = stat.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let both = ticks()?.checked_add(ticks()?)?;
    Some(both as f64 / ticks_per_second.max(1) as f64)
}

/// The second field of `proc_pid_statm(5)`.
fn resident_bytes(statm: &str, page_size: u64) -> Option<u64> {
    let pages = statm.split_ascii_whitespace().nth(1)?;
    pages.parse::<u64>().ok()?.checked_mul(page_size)
}

/// `write_bytes` of `proc_pid_io(5)`.
fn written_bytes(io: &str) -> Option<u64> {
    let of = |line: &str| {
        line.strip_prefix("write_bytes:")?
            .trim()
            .parse::<u64>()
            .ok()
    };
    io.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_the_process_and_of_the_kernel_for_it() {
        for (stat, wanted) in [
            (
                "77 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1",
                Some(3.0),
            ),
            ("77 (a) S 1 2 3 4 5 6 7 8 9 10 0 0", Some(0.0)),
            ("77 (a) S 1 2 3 4 5 6 7 8 9 10 250", None),
            ("77 (a) S 1 2 3 4 5 6 7 8 9 10 x 50", None),
            ("77 a S 1 2 3 4 5 6 7 8 9 10 250 50", None),
            ("", None),
        ] {
            assert_eq!(cpu_seconds(stat, 100), wanted, "{stat}");
        }
    }

    #[test]
    fn memory_is_counted_in_pages_and_told_in_bytes() {
        assert_eq!(resident_bytes("900 25 7 1 0 8 0\n", 4096), Some(102_400));
        assert_eq!(resident_bytes("900", 4096), None);
        assert_eq!(resident_bytes("900 many", 4096), None);
        assert_eq!(resident_bytes(&format!("1 {}", u64::MAX), 4096), None);
    }

    #[test]
    fn what_was_written_is_not_what_was_handed_in_or_taken_back() {
        let io = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\n\
                  cancelled_write_bytes: 7\n";
        assert_eq!(written_bytes(io), Some(6));
        assert_eq!(written_bytes("cancelled_write_bytes: 7\n"), None);
        assert_eq!(written_bytes("write_bytes: many\n"), None);
    }

    /// Of this very process, which has at least loaded its own program.
    #[test]
    fn this_process_is_found() {
        let now = Consumption::now();
        assert!(now.cpu_seconds.is_some(), "{now:?}");
        assert!(now.resident_bytes > Some(100_000), "{now:?}");
    }
}
