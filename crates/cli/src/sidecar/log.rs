//! What a sidecar says while it runs: one line an event on standard error, for people or,
//! with `--json`, for programs.

use std::path::Path;

use chrono::{SecondsFormat, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::status::CopyOf;
use torrust_tracker_maintenance::window::RunId;

use super::Ended;
use super::contact::Contact;
use super::round::{Ready, State, Watching};
use super::work::{Product, extent};
use crate::exit::Failure;
use crate::progress::Show;
use crate::units;

/// Where lines go, beside the progress.
pub struct Log {
    pub show: Show,
    json: bool,
}

/// One line.
#[derive(Debug, PartialEq)]
pub struct News {
    /// A short name for programs.
    pub event: &'static str,
    pub run: Option<RunId>,
    pub message: String,
}

impl Log {
    pub fn new(json: bool) -> Self {
        Self {
            show: Show::new(json),
            json,
        }
    }

    pub fn begins(&self, contact: &Contact, once: bool) {
        let runs = if once { "the next run" } else { "every run" };
        let of = match contact {
            Contact::Http(http) => format!("the tracker at {}", http.endpoint()),
            Contact::TouchFile(file) => format!("the touch-file {}", file.path().display()),
            Contact::Own(_) => "a pin of its own".to_owned(),
        };
        self.say("waiting", None, &format!("waiting for {runs} of {of}"));
    }

    pub fn forced(&self, failure: &Failure, database: &Path) {
        let message = format!(
            "{}; --force: {} is pinned by this program itself",
            failure.message,
            database.display()
        );
        self.say("forced", None, &message);
    }

    /// What will keep it from its work, long before there is any.
    pub fn kept_out(&self, failure: &Failure) {
        let message = format!(
            "warning: {}; until that is mended no run can be taken",
            failure.message
        );
        self.say("warning", None, &message);
    }

    pub fn copied(&self, product: &Product) {
        self.say("copied", None, &extent(product));
    }

    pub fn hangs(&self) {
        let message = "what was given up has not ended, in the disk most likely; what is left of \
                       it is removed by the next start";
        self.say("hangs", None, message);
    }

    /// How a run ended. The last one's failure is what the program itself ends with.
    pub fn ended(&self, ended: &Ended, last: bool) {
        let run = ended.run.as_ref();
        match &ended.verdict {
            Ok(published) => {
                for warning in &published.warnings {
                    self.say("warning", run, &format!("warning: {warning}"));
                }
                self.write(
                    "done",
                    run,
                    &published.describe(),
                    &json!({ "result": ended.json() }),
                );
            }
            Err(_) if last => {}
            Err(failure) => {
                let Failure {
                    error,
                    message,
                    exit,
                } = failure;
                let code = *exit as u8;
                let more = json!({ "error": error, "exit_code": code });
                self.write(
                    "failed",
                    run,
                    &format!("no backup ({error}): {message}"),
                    &more,
                );
            }
        }
    }

    /// What there is to say of a change.
    pub fn news(&self, before: &State, after: &State) {
        if let Some(News {
            event,
            run,
            message,
        }) = news(before, after)
        {
            self.say(event, run.as_ref(), &message);
        }
    }

    fn say(&self, event: &str, run: Option<&RunId>, message: &str) {
        self.write(event, run, message, &json!({}));
    }

    fn write(&self, event: &str, run: Option<&RunId>, message: &str, more: &Value) {
        let time = now();
        let line = if self.json {
            let mut line = json!({ "time": time, "event": event, "run": run, "message": message });
            if let (Some(line), Some(more)) = (line.as_object_mut(), more.as_object()) {
                line.extend(more.clone());
            }
            line.to_string()
        } else {
            match run {
                Some(run) => format!("{time} run {run}: {message}"),
                None => format!("{time} {message}"),
            }
        };
        self.show.line(&line);
    }
}

/// The line a change is worth, if any. A reply that changes nothing an operator would want
/// to know of, such as a renewal, is worth none.
fn news(before: &State, after: &State) -> Option<News> {
    let of = |event, run: &RunId, message: String| {
        Some(News {
            event,
            run: Some(run.clone()),
            message,
        })
    };
    match (before, after) {
        (State::Claiming { ready, .. }, State::Leased { lease, .. }) => {
            let until = lease
                .deadline_utc
                .to_rfc3339_opts(SecondsFormat::Secs, true);
            of(
                "claimed",
                &ready.offer.run,
                format!("claimed; {}; until {until} at most", what(ready)),
            )
        }
        (
            State::Leased { lease, .. },
            State::Finishing {
                result: Err(failure),
                ..
            },
        ) => {
            let run = &lease.ready.offer.run;
            of("given_up", run, format!("given up: {}", failure.message))
        }
        (
            State::Starting { .. },
            State::Watching(Watching {
                started: Some((run, _)),
                ..
            }),
        ) => of("started", run, "the tracker has begun it".to_owned()),
        _ => trouble(before, after).or_else(|| passed(before, after)),
    }
}

fn what(ready: &Ready) -> String {
    let bytes = units::bytes(ready.offer.file.bytes);
    match ready.copy {
        CopyOf::PinnedFile => format!("{bytes}, announces flow"),
        CopyOf::PausedDatabase => format!("{bytes}, announces wait until the copy ends"),
    }
}

/// A tracker that does not answer is news once, and so is one that does again.
fn trouble(before: &State, after: &State) -> Option<News> {
    let of = |state: &State| match state {
        State::Starting { trouble, .. } => trouble.clone(),
        State::Watching(watching) => watching.trouble.clone(),
        _ => None,
    };
    let (event, message) = match (of(before), of(after)) {
        (None, Some(trouble)) => {
            let message = format!("{}; it is asked again and again", trouble.failure.message);
            ("no_answer", message)
        }
        (Some(_), None) if !matches!(after, State::Over { .. }) => {
            ("answers", "the tracker answers again".to_owned())
        }
        _ => return None,
    };
    Some(News {
        event,
        run: None,
        message,
    })
}

/// A run that is let go by, when it is.
fn passed(before: &State, after: &State) -> Option<News> {
    let of = |state: &State| match state {
        State::Watching(watching) => watching.passed.clone(),
        _ => None,
    };
    let passed = of(after)?;
    let known = of(before).is_some_and(|known| known.run == passed.run);
    let why = passed.why.filter(|_| !known)?;
    Some(News {
        event: "passed",
        run: Some(passed.run),
        message: format!("not taken: {}", why.message),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "when it was said is known where it is said"
)]
fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}
