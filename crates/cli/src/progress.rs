//! Long work: how far it is, and how an operator ends it early.
//!
//! On standard error: a bar on a terminal, a line every 10 s elsewhere, a line of JSON every
//! second with `--json`. Standard output is for the answer alone.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use torrust_tracker_maintenance::snapshot::{Progress, Watch};
use torrust_tracker_maintenance::window::Phase;

use crate::client::block_on;
use crate::status;

const SIZED: &str = "{prefix:<13} [{bar:30}] {msg}";
const UNSIZED: &str = "{prefix:<13} {msg}";
const NAMED: &str = "{prefix}";

/// Does a job on a thread of its own and shows how far it is. SIGINT and SIGTERM cancel the
/// watch, so that the job tidies up behind itself.
pub fn watched<T: Send>(json: bool, job: impl FnOnce(&Watch) -> T + Send) -> T {
    let watch = Watch::default();
    let show = Show::new(json);
    std::thread::scope(|scope| {
        let job = block_on(async {
            // Listened for before there is anything to tidy up. Where that cannot be, a
            // signal ends the program as it would any other.
            let signals = signal(SignalKind::interrupt()).and_then(|interrupt| {
                let terminate = signal(SignalKind::terminate())?;
                Ok((interrupt, terminate))
            });
            let (done, mut ended) = oneshot::channel::<()>();
            let job = scope.spawn(|| {
                // Dropped when the job ends, in whichever way.
                let _done = done;
                job(&watch)
            });
            match signals {
                Ok((mut interrupt, mut terminate)) => loop {
                    tokio::select! {
                        _ = &mut ended => break,
                        _ = interrupt.recv() => watch.cancel("it was interrupted (SIGINT)"),
                        _ = terminate.recv() => watch.cancel("it was told to end (SIGTERM)"),
                        () = sleep(show.every()) => show.progress(&watch),
                    }
                },
                Err(_) => drop(ended.await),
            }
            job
        });
        show.end();
        job.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How progress is shown.
#[derive(Debug)]
pub enum Show {
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Show {
    pub fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if std::io::stderr().is_terminal() {
            Self::Bar(ProgressBar::new(0))
        } else {
            Self::Lines
        }
    }

    pub fn every(&self) -> Duration {
        match self {
            Self::Bar(_) => Duration::from_millis(100),
            Self::Lines => Duration::from_secs(10),
            Self::Json => Duration::from_secs(1),
        }
    }

    /// When progress is due; not at once.
    pub fn ticks(&self) -> Interval {
        let mut ticks = interval(self.every());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        ticks
    }

    /// How far a job of this process is.
    pub fn progress(&self, watch: &Watch) {
        let Some(progress) = watch.progress() else {
            return;
        };
        // A reader that went away is no reason to end the work.
        let _ = match self {
            Self::Bar(bar) => {
                draw(bar, &progress);
                Ok(())
            }
            Self::Lines => writeln!(std::io::stderr(), "{}", status::progress(&progress)),
            Self::Json => writeln!(std::io::stderr(), "{}", json!({ "progress": progress })),
        };
    }

    /// How far a run of the tracker's is. In a phase that takes no time worth measuring there
    /// is no progress.
    pub fn phase(&self, phase: Phase, progress: Option<&Progress>) {
        // A reader that went away is no reason to end the work.
        let _ = match (self, progress) {
            (Self::Bar(bar), Some(progress)) => {
                draw(bar, progress);
                Ok(())
            }
            (Self::Bar(bar), None) => {
                name(bar, NAMED, &phase.to_string());
                bar.tick();
                Ok(())
            }
            (Self::Lines, Some(progress)) => {
                writeln!(std::io::stderr(), "{}", status::progress(progress))
            }
            (Self::Lines, None) => writeln!(std::io::stderr(), "{phase}"),
            (Self::Json, progress) => {
                let line = json!({ "phase": phase, "progress": progress });
                writeln!(std::io::stderr(), "{line}")
            }
        };
    }

    /// Writes a line beside it.
    pub fn line(&self, line: &str) {
        let write = || writeln!(std::io::stderr(), "{line}");
        // A reader that went away is no reason to end the work.
        let _ = match self {
            Self::Bar(bar) => bar.suspend(write),
            Self::Lines | Self::Json => write(),
        };
    }

    pub fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let template = if progress.total.is_some() {
        SIZED
    } else {
        UNSIZED
    };
    name(bar, template, &progress.doing);
    bar.set_length(progress.total.unwrap_or(0));
    bar.set_position(progress.done);
    bar.set_message(status::extent(progress));
}

/// Says what is being done, in a style that goes with it: a phase and a step of it may have one
/// name.
fn name(bar: &ProgressBar, template: &str, doing: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(doing.to_owned());
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc;

    use super::*;

    /// One test, because a signal is for every job of a process.
    #[test]
    fn a_job_gives_its_result_may_panic_and_hears_of_signals() {
        assert_eq!(watched(true, Watch::cancelled), None);
        let panicked = std::panic::catch_unwind(|| watched(false, |_| panic!("as it happens")));
        assert!(panicked.is_err());
        for (name, told) in [("-INT", "(SIGINT)"), ("-TERM", "(SIGTERM)")] {
            let why = watched(true, |watch| {
                let (cancel, cancelled) = mpsc::channel();
                watch.on_cancel(move || {
                    let _ = cancel.send(());
                });
                let process = std::process::id().to_string();
                let sent = Command::new("kill").args([name, &process]).status();
                assert!(sent.is_ok_and(|sent| sent.success()));
                cancelled.recv().expect("the watch is cancelled");
                watch.cancelled()
            });
            assert!(why.is_some_and(|why| why.contains(told)), "{name}");
        }
    }

    #[test]
    fn a_bar_changes_with_the_step() {
        let bar = ProgressBar::hidden();
        let at = |doing: &str, done, total| Progress {
            doing: doing.to_owned(),
            done,
            total,
            seconds: 1.0,
            expected: None,
        };
        draw(&bar, &at("unpacking", 5, Some(10)));
        assert_eq!((bar.position(), bar.length()), (5, Some(10)));
        draw(&bar, &at("checking", 0, None));
        assert_eq!((bar.position(), bar.length()), (0, Some(0)));
        assert_eq!(
            (bar.prefix(), bar.message()),
            ("checking".into(), "1 s so far".into())
        );
    }

    /// A run is shown by its phase until there is something to measure, also where that has the
    /// phase's name.
    #[test]
    fn a_run_is_shown_by_its_phase_or_by_how_far_that_is() {
        let bar = ProgressBar::hidden();
        let show = Show::Bar(bar.clone());
        let copying = Progress {
            doing: "copying".to_owned(),
            done: 5_000_000_000,
            total: Some(10_000_000_000),
            seconds: 5.0,
            expected: None,
        };
        show.phase(Phase::Copying, None);
        assert_eq!(
            (bar.prefix(), bar.message()),
            ("copying".into(), String::new())
        );
        show.phase(Phase::Copying, Some(&copying));
        assert_eq!(
            (bar.position(), bar.length(), bar.message()),
            (
                5_000_000_000,
                Some(10_000_000_000),
                "5.0 GB of 10.0 GB, 50 %, 1.0 GB/s, 5 s left".into()
            )
        );
        show.phase(Phase::Finishing, None);
        assert_eq!(bar.prefix(), "finishing");
    }

    #[test]
    fn the_templates_are_understood() {
        for template in [SIZED, UNSIZED, NAMED] {
            ProgressStyle::with_template(template).expect(template);
        }
    }
}
