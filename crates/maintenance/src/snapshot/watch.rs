//! What the driver and a job know of each other: give up, and how far.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A cancel flag and a progress bar, shared by a job and whoever watches it. Clones are
/// the same watch.
#[derive(Clone, Default)]
pub struct Watch(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    cancelled: Condvar,
}

#[derive(Default)]
struct State {
    cancelled: Option<String>,
    on_cancel: Vec<Box<dyn FnOnce() + Send>>,
    expected: Option<(&'static str, Duration)>,
    step: Option<Step>,
}

struct Step {
    doing: &'static str,
    done: u64,
    total: Option<u64>,
    began: Instant,
    expected: Option<Duration>,
}

/// How far a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing: `copying`.
    pub doing: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
    /// Seconds since this step began.
    pub seconds: f64,
    /// Seconds it is expected to take in all, where `done` does not tell.
    #[serde(default)]
    pub expected: Option<f64>,
}

impl Watch {
    /// Asks the job to give up, and ends what it waits for. The first reason stands.
    pub fn cancel(&self, why: &str) {
        let mut state = self.state();
        if state.cancelled.is_some() {
            return;
        }
        state.cancelled = Some(why.to_owned());
        let actions = std::mem::take(&mut state.on_cancel);
        drop(state);
        self.0.cancelled.notify_all();
        for action in actions {
            action();
        }
    }

    /// Why the job is to give up, if it is.
    #[must_use]
    pub fn cancelled(&self) -> Option<String> {
        self.state().cancelled.clone()
    }

    /// Has `action` run when the watch is cancelled, by whoever cancels it; at once if it
    /// already is. It is kept as long as the watch: one that is to lapse before holds
    /// only a `Weak` to what it acts on.
    pub fn on_cancel(&self, action: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.cancelled.is_none() {
            state.on_cancel.push(Box::new(action));
        } else {
            drop(state);
            action();
        }
    }

    /// Starts a step of the job, with its size in bytes if that is known.
    #[expect(
        clippy::disallowed_methods,
        reason = "how long a step takes is measured where it is taken"
    )]
    pub fn begin(&self, what: &'static str, total: Option<u64>) {
        let mut state = self.state();
        let expected = state.expected.filter(|(step, _)| *step == what);
        state.step = Some(Step {
            doing: what,
            done: 0,
            total,
            began: Instant::now(),
            expected: expected.map(|(_, expected)| expected),
        });
    }

    /// Says how long a step that is yet to begin will take, if nobody has said so before.
    pub fn expect(&self, what: &'static str, expected: Duration) {
        let mut state = self.state();
        if state.expected.is_none_or(|(step, _)| step != what) {
            state.expected = Some((what, expected));
        }
    }

    /// Counts bytes of the current step; nothing if none began.
    pub fn advance(&self, bytes: u64) {
        if let Some(step) = &mut self.state().step {
            step.done = step.done.saturating_add(bytes);
        }
    }

    /// The current step; `None` before the first began.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.state().step.as_ref().map(|step| Progress {
            doing: step.doing.to_owned(),
            done: step.done,
            total: step.total,
            seconds: step.began.elapsed().as_secs_f64(),
            expected: step.expected.map(|expected| expected.as_secs_f64()),
        })
    }

    /// Waits; returns at once when the watch is, or gets, cancelled.
    pub(crate) fn pause(&self, duration: Duration) {
        let waited = self
            .0
            .cancelled
            .wait_timeout_while(self.state(), duration, |state| state.cancelled.is_none());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The state. No code panics while it holds the lock, but a panic elsewhere must not
    /// keep a job from being cancelled.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("cancelled", &self.cancelled())
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_first_reason_stands_and_actions_run_once() {
        let watch = Watch::default();
        let ran = Arc::new(AtomicUsize::new(0));
        let count = |ran: &Arc<AtomicUsize>| {
            let ran = Arc::clone(ran);
            move || {
                ran.fetch_add(1, Ordering::Relaxed);
            }
        };
        watch.on_cancel(count(&ran));
        assert_eq!(watch.cancelled(), None);
        watch.clone().cancel("deadline");
        watch.cancel("signal");
        assert_eq!(watch.cancelled().as_deref(), Some("deadline"));
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        watch.on_cancel(count(&ran));
        assert_eq!(ran.load(Ordering::Relaxed), 2, "too late is at once");
    }

    #[test]
    fn progress_is_of_the_step_that_began_last() {
        let watch = Watch::default();
        watch.advance(5);
        assert_eq!(watch.progress(), None);
        watch.begin("copying", Some(10));
        watch.advance(4);
        watch.advance(3);
        let progress = watch.progress().expect("a step began");
        assert_eq!((progress.doing.as_str(), progress.done), ("copying", 7));
        assert_eq!(progress.total, Some(10));
        watch.begin("verifying", None);
        let progress = watch.progress().expect("a step began");
        assert_eq!((progress.doing.as_str(), progress.done), ("verifying", 0));
    }

    #[test]
    fn what_is_expected_is_shown_with_its_step() {
        let watch = Watch::default();
        watch.expect("verifying", Duration::from_secs(40));
        // A guess after somebody knew better.
        watch.expect("verifying", Duration::from_secs(99));
        let expected = |what| {
            watch.begin(what, None);
            watch.progress().expect("a step began").expected
        };
        assert_eq!(expected("copying"), None);
        assert_eq!(expected("verifying"), Some(40.0));
    }

    #[test]
    fn cancelling_ends_a_pause() {
        let watch = Watch::default();
        let other = watch.clone();
        let canceller = std::thread::spawn(move || other.cancel("enough"));
        watch.pause(Duration::from_secs(3600));
        assert_eq!(watch.cancelled().as_deref(), Some("enough"));
        canceller.join().expect("it only cancels");
    }
}
