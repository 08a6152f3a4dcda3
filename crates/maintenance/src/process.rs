//! A command of the operator's, and all that it has started: how it is waited for and ended.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::disk::Disk;

/// How long a command has to end by itself after SIGTERM, where nobody waits for it.
pub const TERM_WITHIN: Duration = Duration::from_secs(2);
/// How long it is waited for what was sent SIGKILL.
const KILL_WITHIN: Duration = Duration::from_secs(1);
/// How long what a command has started may outlive it, as the last reader of a pipe does.
const LINGERS: Duration = Duration::from_millis(500);
/// How often it is looked whether a process group is empty: nothing says when.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// More bytes than a process has in `stat`.
const STAT_LIMIT: u64 = 4096;

/// A command, and all that it has started, as far as that stayed in its process group.
#[derive(Debug)]
pub struct Group {
    leader: Child,
    /// The leader's number, and so the group's.
    id: Option<Pid>,
}

impl Group {
    /// Of a command that was started in a group of its own.
    #[must_use]
    pub fn of(leader: Child) -> Self {
        let id = leader.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self { leader, id }
    }

    /// Waits for the command's end, and a moment for that of what it has started. How it
    /// ended, and whether something goes on.
    ///
    /// # Errors
    ///
    /// When the command cannot be waited for.
    pub async fn ended(&mut self) -> io::Result<(ExitStatus, bool)> {
        let status = self.leader.wait().await?;
        let all = timeout(LINGERS, self.emptied()).await;
        Ok((status, all.is_err()))
    }

    /// Ends what there is of it: SIGTERM, and SIGKILL after `term_within` to what is slow or
    /// deaf.
    pub async fn end(&mut self, term_within: Duration) {
        self.signal(Signal::TERM);
        if timeout(term_within, self.emptied()).await.is_err() {
            self.signal(Signal::KILL);
            // What hangs in a disk even that does not end at once.
            let _ = timeout(KILL_WITHIN, self.emptied()).await;
        }
    }

    /// Waits until nobody is left.
    async fn emptied(&mut self) {
        // One that cannot be waited for is not there.
        let _ = self.leader.wait().await;
        while self.lives() {
            sleep(LOOK_EVERY).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.id.filter(|_| self.lives()) {
            // Gone already is as good.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Whether somebody is left. The leader keeps the group's number from being given to
    /// others until it is waited for, and from then on each of the others does.
    fn lives(&self) -> bool {
        let Some(group) = self.id else { return false };
        if self.leader.id().is_some() {
            return true;
        }
        // An orphan that is dead counts until process 1 waits for it, which may do so late or
        // never.
        test_kill_process_group(group) != Err(Errno::SRCH) && !is_dead(group)
    }
}

/// Whether all of a group are dead, as proc(5) has them. Not where none of it is to be seen.
fn is_dead(group: Pid) -> bool {
    let (disk, processes) = (Disk::default(), Path::new("/proc"));
    let state = |name: OsString| {
        let is_process = name.as_bytes().iter().all(u8::is_ascii_digit);
        let path = processes.join(name).join("stat");
        let stat = is_process.then(|| disk.read(&path, STAT_LIMIT).ok())??;
        state_in(group, &stat)
    };
    let names = disk.list(processes).unwrap_or_default();
    let mut states = names.into_iter().filter_map(state).peekable();
    states.peek().is_some() && states.all(|state| matches!(state, 'Z' | 'X'))
}

/// The state of a process, if it is of this group.
fn state_in(group: Pid, stat: &[u8]) -> Option<char> {
    // The name before may have anything in it.
    let stat = String::from_utf8_lossy(stat);
    let (_, stat) = stat.rsplit_once(')')?;
    let mut fields = stat.split_ascii_whitespace();
    let (state, of) = (fields.next()?, fields.nth(1)?);
    let of = of.parse().ok().and_then(Pid::from_raw);
    state.chars().next().filter(|_| of == Some(group))
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// How a command ended, in words.
#[must_use]
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_of_the_group_that_its_third_field_names() {
        let group = Pid::from_raw(4711).expect("a number");
        for (stat, state) in [
            (&b"4712 (sh) S 1 4711 4711 0 -1"[..], Some('S')),
            (b"4712 (a) b (c) Z 1 4711 0", Some('Z')),
            (b"4711 (sh) S 1 4712 4711 0 -1", None),
            (b"4712 (4711 4711 4711) S 1 7 7", None),
            (b"4712 (\xff) R 1 4711 7", Some('R')),
            (b"4712 (sh) R 1", None),
            (b"", None),
        ] {
            let seen = String::from_utf8_lossy(stat);
            assert_eq!(state_in(group, stat), state, "{seen}");
        }
    }
}
