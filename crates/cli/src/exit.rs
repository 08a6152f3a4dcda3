//! How a command ends: the one place for exit codes and for what is said with them.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Value, json};
use torrust_tracker_maintenance::mysql::{self, import};
use torrust_tracker_maintenance::window::{Cause, Outcome};
use torrust_tracker_maintenance::{catalogue, config, files, restore, verify};

use crate::client;

/// The exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    /// The tracker serves all the same.
    Failed = 1,
    Usage = 2,
    /// There is nothing to do it to: no tracker runs, there is no backup.
    NotApplicable = 3,
    Busy = 4,
    Deadline = 5,
    Verification = 6,
}

/// What `--help` says of them.
pub const HELP: &str = "Exit codes: 0 done; 1 failed, the tracker serves; 2 configuration or usage; \
     3 not applicable (tracker not running, no backup, needs --force); 4 busy; \
     5 deadline passed; \
     6 verification failed, or WAL does not pay (`evaluate-wal`). Anything else is a failure. \
     `monitor` has those of Nagios' plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&Outcome> for Exit {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Failed { cause, .. } => match cause {
                Cause::Verification => Self::Verification,
                Cause::Busy => Self::Busy,
                Cause::WalLimit
                | Cause::Sidecar
                | Cause::BrokenPin
                | Cause::HeldLimit
                | Cause::NoRoom
                | Cause::Database
                | Cause::Hook
                | Cause::Panicked
                | Cause::Other => Self::Failed,
            },
            Outcome::WouldNotFit { .. } | Outcome::NoSidecar { .. } | Outcome::Aborted { .. } => {
                Self::Failed
            }
            Outcome::Deadline { .. } => Self::Deadline,
        }
    }
}

/// What a command has to say when it did its work; standard output.
#[derive(Debug)]
pub struct Answer {
    pub exit: Exit,
    /// For people; no line break at the end.
    pub text: String,
    /// For programs, with `--json`; shapes are in `docs/cli.md`.
    pub json: Value,
}

impl Answer {
    /// Says so and gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        let text = if json {
            &pretty(&self.json)
        } else {
            &self.text
        };
        // A reader that has seen enough (`| head`) is no failure.
        let _ = writeln!(std::io::stdout(), "{text}");
        self.exit.into()
    }
}

/// Why a command could not do its work; standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// A short name for programs.
    pub error: &'static str,
    /// What, to what, and what to do.
    pub message: String,
}

impl Failure {
    pub fn new(exit: Exit, error: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            exit,
            error,
            message,
        }
    }

    /// Adds what is worth knowing besides.
    pub fn also(mut self, note: &str) -> Self {
        self.message.push_str(note);
        self
    }

    /// Says so and gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        let text = if json {
            let Self {
                exit,
                error,
                message,
            } = self;
            pretty(&json!({ "error": error, "message": message, "exit_code": *exit as u8 }))
        } else {
            format!("error: {}", self.message)
        };
        let _ = writeln!(std::io::stderr(), "{text}");
        self.exit.into()
    }
}

/// A command line that is wrong, or asked for help. It was not understood, so whether it
/// asked for JSON, or for `monitor` with its own exit codes, is seen from its words.
pub fn usage(error: &clap::Error) -> ExitCode {
    let has = |word: &str| std::env::args_os().any(|argument| argument == word);
    let json = has("--json");
    if has("monitor") && error.use_stderr() {
        return crate::monitor::usage(error.to_string().trim_end(), json);
    }
    if json && error.use_stderr() {
        let message = error.to_string();
        let message = message
            .strip_prefix("error: ")
            .unwrap_or(&message)
            .trim_end();
        return Failure::new(Exit::Usage, "usage", message).report(true);
    }
    let _ = error.print();
    let exit = if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Done
    };
    exit.into()
}

fn pretty(json: &Value) -> String {
    format!("{json:#}")
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Self::new(Exit::Usage, "configuration", error.to_string())
    }
}

impl From<catalogue::Error> for Failure {
    fn from(error: catalogue::Error) -> Self {
        use catalogue::Error;
        let (exit, code) = match &error {
            Error::Unknown { .. } | Error::NoDatabase { .. } => (Exit::Usage, "unknown_backup"),
            Error::Busy { .. } => (Exit::Busy, "busy"),
            Error::Kept { .. } => (Exit::NotApplicable, "kept"),
            Error::Unusable { .. } => (Exit::Usage, "no_catalogue"),
            Error::Broken {
                flaw: catalogue::Flaw::Damaged,
                ..
            } => (Exit::Verification, "broken_backup"),
            Error::Broken { .. } => (Exit::Failed, "unreadable_backup"),
            _ => (Exit::Failed, "catalogue"),
        };
        Self::new(exit, code, error.to_string())
    }
}

impl From<verify::Error> for Failure {
    fn from(error: verify::Error) -> Self {
        use verify::Error;
        let (exit, code) = match &error {
            Error::Corrupt { .. } => (Exit::Verification, "damaged"),
            Error::Closed { .. } => (Exit::Usage, "encrypted"),
            Error::Cancelled { .. } => (Exit::Failed, "interrupted"),
            Error::Disk(_) | Error::Sqlite { .. } => (Exit::Failed, "not_verified"),
        };
        Self::new(exit, code, error.to_string())
    }
}

impl From<restore::Error> for Failure {
    fn from(error: restore::Error) -> Self {
        use restore::Error;
        let message = error.to_string();
        let (exit, code) = match error {
            Error::Refused { objections, .. } => match crate::restore::exit(&objections) {
                Exit::Busy => (Exit::Busy, "in_use"),
                Exit::Failed => (Exit::Failed, "no_room"),
                Exit::Usage => (Exit::Usage, "unusable_target"),
                exit if objections.iter().all(is_partial) => (exit, "needs_partial"),
                exit => (exit, "needs_force"),
            },
            Error::Unsettled { .. } => (Exit::NotApplicable, "needs_force"),
            Error::Unusable { .. } => (Exit::Usage, "unusable_target"),
            Error::Verify(error) => return Self::from(error),
            Error::Disk(_) | Error::Apart { .. } => (Exit::Failed, "not_restored"),
        };
        Self::new(exit, code, message)
    }
}

fn is_partial(objection: &restore::Objection) -> bool {
    matches!(objection, restore::Objection::Partial { .. })
}

impl From<files::Error> for Failure {
    fn from(error: files::Error) -> Self {
        use files::Error;
        let message = error.to_string();
        let (exit, code) = match error {
            Error::None(_) => (Exit::NotApplicable, "no_files"),
            Error::Unusable { .. } => (Exit::Usage, "unusable_target"),
            Error::Refused(objections) => match crate::restore::files::exit(&objections) {
                Exit::Failed => (Exit::Failed, "no_room"),
                exit => (exit, "in_the_way"),
            },
            Error::Verify(error) => return Self::from(error),
            _ => (Exit::Failed, "not_restored"),
        };
        Self::new(exit, code, message)
    }
}

impl From<import::Error> for Failure {
    fn from(error: import::Error) -> Self {
        use import::Error;
        let message = error.to_string();
        let (exit, code) = match error {
            Error::Refused { objections, .. } => match crate::restore::server::exit(&objections) {
                Exit::Busy => (Exit::Busy, "in_use"),
                exit => (exit, "not_empty"),
            },
            Error::NotADump { .. } => (Exit::Usage, "not_a_dump"),
            Error::Verify(error) => return Self::from(error),
            Error::Client(mysql::Error::NoProgram { .. } | mysql::Error::NotStarted { .. }) => {
                (Exit::Usage, "no_client_program")
            }
            Error::Client(mysql::Error::Cancelled(_)) => (Exit::Failed, "interrupted"),
            Error::Client(_) => (Exit::Failed, "server"),
            Error::Halfway { .. } => (Exit::Failed, "half_restored"),
            Error::Differs { .. } => (Exit::Verification, "rows_differ"),
        };
        Self::new(exit, code, message)
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        use client::Error;
        let message = error.to_string();
        match error {
            Error::NotRunning { .. } => Self::new(Exit::NotApplicable, "not_running", message),
            Error::Unreachable { .. } => Self::new(Exit::NotApplicable, "unreachable", message),
            Error::NotAllowed { .. } => Self::new(Exit::Usage, "not_allowed", message),
            Error::Refused { status: 401, .. } => Self::new(Exit::Usage, "unauthorized", message),
            Error::Refused { error, .. } if error == "taken_by_tracker" => {
                Self::new(Exit::Usage, "taken_by_tracker", message)
            }
            Error::Refused { status: 409, .. } => Self::new(Exit::Busy, "busy", message),
            Error::Refused { error, .. } if error == "shutting_down" => {
                Self::new(Exit::NotApplicable, "shutting_down", message)
            }
            Error::Refused { .. } => Self::new(Exit::Failed, "refused", message),
            Error::Silent { .. } => Self::new(Exit::Failed, "no_answer", message),
            Error::NotUnderstood { .. } => Self::new(Exit::Failed, "not_understood", message),
        }
    }
}

#[cfg(test)]
mod tests {
    use torrust_tracker_maintenance::window::Phase;

    use super::*;

    #[test]
    fn codes_are_a_contract() {
        use Exit::{Busy, Deadline, Done, Failed, NotApplicable, Usage, Verification};
        let all = [
            Done,
            Failed,
            Usage,
            NotApplicable,
            Busy,
            Deadline,
            Verification,
        ];
        assert_eq!(all.map(|exit| exit as u8), [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn every_outcome_has_its_code() {
        let (phase, message) = (Phase::Copying, String::new());
        let failed = |cause| Outcome::Failed {
            phase,
            cause,
            message: message.clone(),
        };
        for (outcome, exit) in [
            (Outcome::Done, Exit::Done),
            (failed(Cause::Verification), Exit::Verification),
            (failed(Cause::Busy), Exit::Busy),
            (failed(Cause::WalLimit), Exit::Failed),
            (failed(Cause::Sidecar), Exit::Failed),
            (failed(Cause::BrokenPin), Exit::Failed),
            (failed(Cause::HeldLimit), Exit::Failed),
            (failed(Cause::NoRoom), Exit::Failed),
            (failed(Cause::Database), Exit::Failed),
            (failed(Cause::Hook), Exit::Failed),
            (failed(Cause::Panicked), Exit::Failed),
            (failed(Cause::Other), Exit::Failed),
            (
                Outcome::WouldNotFit {
                    message: message.clone(),
                },
                Exit::Failed,
            ),
            (
                Outcome::NoSidecar {
                    message: message.clone(),
                },
                Exit::Failed,
            ),
            (
                Outcome::Deadline {
                    phase,
                    message: message.clone(),
                },
                Exit::Deadline,
            ),
            (
                Outcome::Aborted {
                    phase,
                    message: message.clone(),
                },
                Exit::Failed,
            ),
        ] {
            assert_eq!(Exit::from(&outcome), exit, "{outcome:?}");
        }
    }
}
