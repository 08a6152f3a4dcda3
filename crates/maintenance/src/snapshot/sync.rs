//! Syncing behind a copy's back, by a thread nobody has to wait for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::{Error, Watch};
use crate::disk;

/// Syncs asked for and not yet done: one under way and one after it.
const OUTSTANDING: usize = 2;

/// A thread that syncs a file. A sync cannot be interrupted, so when the watch is cancelled
/// the thread is left to it, and goes when it is done; nobody else uses the file then.
pub(super) struct Syncer {
    path: PathBuf,
    watch: Watch,
    to_sync: Sender<What>,
    reports: Receiver<Report>,
    outstanding: usize,
}

/// How much to sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// What is needed to read back what was written.
    Data,
    /// All of it.
    All,
}

enum Report {
    Synced(io::Result<()>),
    Cancelled,
}

impl Syncer {
    /// Of a file through a descriptor of its own, so that syncing and writing do not
    /// exclude each other.
    pub(super) fn of(file: disk::File, watch: &Watch) -> Result<Self, Error> {
        let path = file.path().to_owned();
        Self::start(&path, watch, move |what| match what {
            What::Data => file.sync_data(),
            What::All => file.sync_all(),
        })
    }

    fn start(
        path: &Path,
        watch: &Watch,
        sync: impl Fn(What) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Error> {
        let (to_sync, wanted) = mpsc::channel();
        let (report, reports) = mpsc::channel();
        // The thread has the one strong reference: should it panic, the channel hangs up.
        let report = Arc::new(report);
        let cancelled = Arc::downgrade(&report);
        watch.on_cancel(move || {
            if let Some(report) = cancelled.upgrade() {
                // Nobody listens once the copy is over.
                let _ = report.send(Report::Cancelled);
            }
        });
        thread::Builder::new()
            .name("sync".into())
            .spawn(move || {
                for what in wanted {
                    // Without a listener there is nobody to sync for.
                    if report.send(Report::Synced(sync(what))).is_err() {
                        break;
                    }
                }
            })
            .map_err(|source| Error::Io {
                doing: "start a thread to sync",
                path: path.into(),
                source,
            })?;
        Ok(Self {
            path: path.into(),
            watch: watch.clone(),
            to_sync,
            reports,
            outstanding: 0,
        })
    }

    /// Has what was written so far synced, without waiting for it, unless the disk is two
    /// such requests behind: then the copy waits, and memory does not fill.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if self.outstanding == OUTSTANDING {
            self.wait()?;
        }
        self.ask(What::Data)
    }

    /// Returns when all that was written is durable.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.ask(What::All)?;
        while self.outstanding > 0 {
            self.wait()?;
        }
        Ok(())
    }

    fn ask(&mut self, what: What) -> Result<(), Error> {
        self.outstanding += 1;
        self.to_sync
            .send(what)
            .map_err(|_| Error::Panicked("syncing"))
    }

    fn wait(&mut self) -> Result<(), Error> {
        match self.reports.recv() {
            Ok(Report::Synced(synced)) => {
                self.outstanding -= 1;
                synced.map_err(|source| Error::Io {
                    doing: "sync",
                    path: self.path.clone(),
                    source,
                })
            }
            Ok(Report::Cancelled) => {
                Err(Error::Cancelled(self.watch.cancelled().unwrap_or_default()))
            }
            Err(_) => Err(Error::Panicked("syncing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_hangs_does_not_keep_a_cancelled_copy() {
        for full in [false, true] {
            let watch = Watch::default();
            let (let_go, hanging) = mpsc::channel::<()>();
            let mut syncer = Syncer::start(Path::new("raw"), &watch, move |_| {
                // Until the end of the test.
                let _ = hanging.recv();
                Ok(())
            })
            .expect("a thread");
            for _ in 0..OUTSTANDING {
                syncer.sync().expect("it only asks");
            }
            let other = watch.clone();
            let canceller = thread::spawn(move || other.cancel("deadline"));
            let given_up = if full { syncer.sync() } else { syncer.finish() };
            assert!(
                matches!(&given_up, Err(Error::Cancelled(why)) if why == "deadline"),
                "{given_up:?}"
            );
            canceller.join().expect("it only cancels");
            drop(let_go);
        }
    }

    #[test]
    fn an_error_or_a_panic_of_the_thread_fails_the_copy() {
        let watch = Watch::default();
        let syncer = Syncer::start(Path::new("raw"), &watch, |what| match what {
            What::All => Err(io::ErrorKind::StorageFull.into()),
            What::Data => Ok(()),
        });
        let mut syncer = syncer.expect("a thread");
        for _ in 0..5 {
            syncer.sync().expect("data can be synced");
        }
        let failed = syncer.finish();
        assert!(
            matches!(failed, Err(Error::Io { doing: "sync", .. })),
            "{failed:?}"
        );
        let syncer = Syncer::start(Path::new("raw"), &watch, |_| panic!("on purpose"));
        let failed = syncer.expect("a thread").finish();
        assert!(
            matches!(failed, Err(Error::Panicked("syncing"))),
            "{failed:?}"
        );
    }
}
