//! Free space while a run takes it: what a run leaves of it in any case.
//!
//! Before a run begins its room is reckoned. What it cannot know is what others write
//! meanwhile, and how a database compresses that is not what it was. A file system that is
//! full fails the service's own writes, which is worse than a night without a backup.
//!
//! A thread of its own looks, since asking a volume that is gone may take for ever; it is left
//! behind then, and ends when it gets its answer.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crate::disk::{self, Space};
use crate::snapshot::Watch;
use crate::window::{Cause, Failure};

/// A run leaves the `PART`th part of a file system, ...
const PART: u64 = 100;

/// ... or this many bytes, if that is more: some seconds of the busiest tracker's log.
const MOST: u64 = 256 << 20;

/// How often is looked: at 1 GB/s a quarter of a gigabyte apart.
const EVERY: Duration = Duration::from_millis(250);

/// Bytes of a file system that a run does not touch.
pub(crate) fn reserve(space: Space) -> u64 {
    (space.total / PART).min(MOST)
}

/// Does a part of a run, and cancels its watch as soon as one of these places has less left
/// than its reserve.
pub(crate) fn leaving_reserves<T>(
    places: Vec<PathBuf>,
    watch: &Watch,
    part: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    // Where this hangs, what follows would as well.
    if let Some(short) = shortage(&places) {
        return Err(short);
    }
    let found = Arc::new(OnceLock::new());
    // Never sent on: dropping this end is the message.
    let (ours, ended) = mpsc::sync_channel::<()>(0);
    let looking = {
        let (found, watch) = (Arc::clone(&found), watch.clone());
        move || {
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Some(short) = shortage(&places) {
                    let message = short.message.clone();
                    // Before the watch, whose cancelling may end the part at once.
                    let _ = found.set(short);
                    return watch.cancel(&message);
                }
            }
        }
    };
    // Where there is no thread to be had, the reckoning has to do.
    let _ = thread::Builder::new()
        .name("maintenance-room".into())
        .spawn(looking);
    let done = part();
    drop(ours);
    done.map_err(|failure| found.get().cloned().unwrap_or(failure))
}

/// What is too full, if anything is. What cannot be asked is not known to be.
fn shortage(places: &[PathBuf]) -> Option<Failure> {
    places.iter().find_map(|place| {
        let space = disk::space(place).ok()?;
        let reserve = reserve(space);
        (space.free < reserve).then(|| Failure {
            cause: Cause::NoRoom,
            message: format!(
                "the file system of {} has {} left, and a run leaves {} there, so that the service \
                 can go on writing; free space there (where it is the backups': `torrust-maintenance \
                 prune`, fewer in backup.keep, or a file system of their own)",
                place.display(),
                bytesize::ByteSize(space.free),
                bytesize::ByteSize(reserve)
            ),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::testing::Volume;

    #[test]
    fn a_reserve_is_a_share_of_the_file_system_up_to_a_limit() {
        let of = |total| reserve(Space { free: 0, total });
        assert_eq!(of(0), 0);
        assert_eq!(of(1 << 30), (1 << 30) / 100);
        assert_eq!(of(1 << 40), MOST);
    }

    #[test]
    fn what_cannot_be_asked_and_what_has_room_is_let_go_on() {
        let volume = Volume::memory(1 << 20);
        let places = vec!["/nowhere".into(), volume.path().to_owned()];
        let done = leaving_reserves(places, &Watch::default(), || Ok(7));
        assert_eq!(done, Ok(7));
    }

    /// A failure of another kind stays what it is.
    #[test]
    fn only_what_was_given_up_for_it_fails_for_want_of_room() {
        let failed = Failure::other(&"as it happens");
        let volume = Volume::memory(1 << 20);
        let places = vec![volume.path().to_owned()];
        let done = leaving_reserves::<()>(places, &Watch::default(), || Err(failed.clone()));
        assert_eq!(done, Err(failed));
    }
}
