//! What processes, disks and the machine did meanwhile, as Linux counts it in proc(5).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time, of the process and the kernel for it.
    pub cpu: Duration,
    /// Bytes of memory it has resident now.
    pub resident: u64,
    /// Bytes it caused to be written to a disk (`write_bytes` of proc(5)): counted when a
    /// page is dirtied, and nothing for a file system in memory.
    pub written: u64,
    /// Calls that write.
    pub write_calls: u64,
}

impl Usage {
    /// Of a process.
    ///
    /// # Errors
    /// When it has exited or belongs to somebody else.
    pub fn of(process: u32) -> Result<Self> {
        let stat = read(&format!("/proc/{process}/stat"))?;
        let io = read(&format!("/proc/{process}/io"))?;
        let status = read(&format!("/proc/{process}/status"))?;
        let kilobytes = labelled(&status, "VmRSS:")?;
        Ok(Self {
            cpu: processor_time(&stat)?,
            resident: kilobytes * 1024,
            written: labelled(&io, "write_bytes:")?,
            write_calls: labelled(&io, "syscw:")?,
        })
    }

    /// Of this process.
    ///
    /// # Errors
    /// When proc is not mounted.
    pub fn of_this() -> Result<Self> {
        Self::of(std::process::id())
    }
}

/// `utime` and `stime` of `proc_pid_stat(5)`.
fn processor_time(stat: &str) -> Result<Duration> {
    // The name is in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("a name in stat")?;
    let mut fields = fields.split(' ').skip(11);
    let mut ticks = || -> Result<u64> { Ok(fields.next().context("times in stat")?.parse()?) };
    Ok(of_ticks(ticks()? + ticks()?))
}

fn of_ticks(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_millis(ticks * 1_000 / per_second.max(1))
}

/// The first number after a label.
fn labelled(text: &str, label: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number
        .with_context(|| format!("{label} is missing"))?
        .parse()?)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

/// How the processors have spent their time since the machine started, all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Processors {
    /// Working, for whatever process.
    pub busy: Duration,
    /// Working or not.
    pub all: Duration,
}

impl Processors {
    /// Up to now.
    ///
    /// # Errors
    /// When proc is not mounted.
    pub fn now() -> Result<Self> {
        Self::parse(&read("/proc/stat")?)
    }

    /// Between an earlier instant and this one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            all: self.all.saturating_sub(earlier.all),
        }
    }

    fn parse(stat: &str) -> Result<Self> {
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            // Time of guests is in the first fields already.
            .take(8)
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let idle = ticks.get(3).context("idle in stat")? + ticks.get(4).unwrap_or(&0);
        let all: u64 = ticks.iter().sum();
        Ok(Self {
            busy: of_ticks(all - idle),
            all: of_ticks(all),
        })
    }
}

/// How the calling thread got its turns on a processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turns {
    /// On a processor.
    pub ran: Duration,
    /// Ready to run, and waiting for one.
    pub waited: Duration,
}

impl Turns {
    /// Of the calling thread, since it started.
    ///
    /// # Errors
    /// When proc is not mounted.
    pub fn of_this_thread() -> Result<Self> {
        let schedstat = read("/proc/thread-self/schedstat")?;
        let mut fields = schedstat.split_whitespace().map(str::parse);
        let mut next = || -> Result<Duration> {
            let nanoseconds = fields.next().context("times in schedstat")??;
            Ok(Duration::from_nanos(nanoseconds))
        };
        Ok(Self {
            ran: next()?,
            waited: next()?,
        })
    }
}

/// Datagrams the kernel dropped because a socket's buffer was full, of all UDP sockets of
/// IPv4 and IPv6 bound to one of these local ports.
///
/// # Errors
/// When proc is not mounted.
pub fn dropped_datagrams(ports: &[u16]) -> Result<u64> {
    Ok(dropped(&read("/proc/net/udp")?, ports)
        + fs::read_to_string("/proc/net/udp6").map_or(0, |table| dropped(&table, ports)))
}

fn dropped(table: &str, ports: &[u16]) -> u64 {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (_, port) = fields.nth(1)?.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let drops: u64 = fields.last()?.parse().ok()?;
        ports.contains(&port).then_some(drops)
    };
    table.lines().skip(1).filter_map(of_line).sum()
}

/// Flushes the disk below a directory has done since the machine started; `None` where
/// there is none below, or it does not count them (a disk without a volatile cache needs
/// none and counts none, Linux block/stat).
#[must_use]
pub fn flushes(directory: &Path) -> Option<u64> {
    let device = fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    stat.split_whitespace().nth(15)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_is_read_over() -> Result<()> {
        let stat = "77 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1";
        let per_second = rustix::param::clock_ticks_per_second();
        let wanted = Duration::from_millis(300_000 / per_second);
        assert_eq!(processor_time(stat)?, wanted);
        Ok(())
    }

    #[test]
    fn idle_and_waiting_for_a_disk_are_not_work() -> Result<()> {
        let found = Processors::parse("cpu  10 20 30 400 500 1 2 3 99 99\ncpu0 1\n")?;
        assert_eq!(found.busy, of_ticks(66));
        assert_eq!(found.all, of_ticks(966));
        Ok(())
    }

    #[test]
    fn only_the_drops_of_the_ports_asked_for_are_counted() {
        let table = "  sl  local_address rem_address st tx rx tr tm->when retrnsmt uid timeout inode ref pointer drops\n\
            1: 0100007F:1F90 00000000:0000 07 0:0 00:0 0 0 0 1 2 ffff 7\n\
            2: 0100007F:1F91 00000000:0000 07 0:0 00:0 0 0 0 1 2 ffff 5\n";
        assert_eq!(dropped(table, &[0x1f90]), 7);
        assert_eq!(dropped(table, &[0x1f90, 0x1f91]), 12);
        assert_eq!(dropped(table, &[1]), 0);
    }

    /// Each is counted at moments of its own, so that one may be told before another.
    #[test]
    fn work_is_counted_of_the_thread_the_process_and_the_machine() -> Result<()> {
        let read = || -> Result<_> {
            let (process, machine) = (Usage::of_this()?, Processors::now()?);
            Ok((process, machine, Turns::of_this_thread()?))
        };
        let before = read()?;
        assert!(before.0.resident > 0);
        let until = Instant::now() + crate::PATIENCE;
        loop {
            let now = read()?;
            let process = now.0.cpu > before.0.cpu;
            let machine = now.1.busy > before.1.busy && now.1.all > before.1.all;
            let thread = now.2.ran > before.2.ran;
            if process && machine && thread {
                return Ok(());
            }
            assert!(Instant::now() < until, "{before:?} {now:?}");
        }
    }
}
