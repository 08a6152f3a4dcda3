//! A sidecar's lease on a run: the right to copy the pinned file, for as long as it is
//! renewed and no longer.
//!
//! A lease belongs to one run and ends with it, so the run's id is its generation: what
//! was said of an earlier run, or by a sidecar that slept through the end of one, is of no
//! effect. Its nonce is chosen by the sidecar, which makes every request repeatable: a
//! claim whose answer was lost is made again with the same nonce and finds itself granted.
//! Who does not know the nonce cannot renew or finish, so it is shown to nobody.
//!
//! When a lease ends depends on nobody but the tracker: [`crate::window`] keeps the time.
//! What the sidecar is told at the end is a [`Verdict`], and because that answer can be
//! lost as well, the last ones are remembered.
//!
//! Everything here is pure.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::window::{Phase, RunId};

/// Verdicts that are remembered, for a sidecar that did not hear its own.
pub const VERDICTS_KEPT: usize = 20;

/// Most characters of the reason a sidecar gives for a failure.
pub const REASON_LIMIT: usize = 1000;

/// What sidecars have to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a lease lasts unless it is renewed.
    pub ttl: Duration,
    /// How long a run waits, ready, for a sidecar to claim it.
    pub claim_within: Duration,
    /// The same while announces wait too; not longer. A sidecar that has died must not cost
    /// a pause of all of `claim_within` every night.
    pub claim_within_held: Duration,
}

impl Terms {
    /// How long a run waits to be claimed; `held_until`: for as long announces wait.
    #[must_use]
    pub fn claimed_within(self, held_until: Option<Instant>) -> Duration {
        match held_until {
            Some(_) => self.claim_within_held.min(self.claim_within),
            None => self.claim_within,
        }
    }
}

/// What a sidecar calls itself: 1 to 100 printable characters. Shown to whoever asks.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Holder(String);

/// What a lease is known by: 16 to 64 of `A-Z a-z 0-9 - _`. Known to its holder alone.
#[derive(Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Nonce(String);

/// A text that cannot be the name of a sidecar or of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No [`Holder`].
    #[error("a holder has 1 to 100 printable characters")]
    Holder,
    /// No [`Nonce`].
    #[error("a lease is 16 to 64 characters of A-Z, a-z, 0-9, - and _, chosen at random")]
    Nonce,
}

/// The right to copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// Who has it.
    pub holder: Holder,
    /// What it is known by.
    pub nonce: Nonce,
    /// When it ends unless it is renewed; never past the run's deadline.
    pub until: Instant,
}

/// How a sidecar says it is finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finished {
    /// It has its copy.
    Ok,
    /// It has none, for this reason.
    Failed(String),
}

/// What a lease that was granted or renewed comes to, counted from the moment of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Who has it.
    pub holder: Holder,
    /// How long a lease lasts unless it is renewed.
    pub ttl: Duration,
    /// Until this one ends unless it is renewed; less than that near the deadline.
    pub expires: Duration,
    /// Until the run ends whatever is renewed.
    pub deadline: Duration,
}

/// Whether a copy may be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether no byte of the file changed from ready to the moment of the verdict. A copy
    /// is to be used only if this is true.
    pub held_throughout: bool,
    /// Why not.
    pub why: Option<String>,
}

/// Why a sidecar does not get what it asks for. A value, not an error: nothing broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The run named is not the current one.
    #[error(
        "this run is not the current one: it has ended, or never was, or the tracker was \
         restarted since; do not use what was copied under it, and wait for the next at /ready"
    )]
    StaleRun,
    /// The tracker makes its backups by itself.
    #[error(
        "the tracker copies by itself; set maintenance.backup.taken_by = \"sidecar\" to have a \
         sidecar do it"
    )]
    TakenByTracker,
    /// The run has not come to where it can be claimed.
    #[error("the run is not offered ({phase}); wait for it at /ready?wait=60")]
    NotReady {
        /// Where it stands.
        phase: Phase,
    },
    /// Somebody else has it.
    #[error(
        "{holder:?} has the lease for {:.0} s yet unless it renews it; wait for the next run, and \
         let one sidecar alone use this tracker",
        .expires.as_secs_f64().ceil()
    )]
    Taken {
        /// Who.
        holder: Holder,
        /// For how long, unless it is renewed.
        expires: Duration,
    },
    /// The nonce is not of the lease on the run.
    #[error(
        "this is not the lease on the run; claim the run before you renew or finish, with the \
         same lease in each request, and do not use what was copied without"
    )]
    NotHolder,
}

impl Holder {
    /// What a sidecar that has no HTTP is called: it did not say.
    #[must_use]
    pub fn by_touch_file() -> Self {
        Self("touch-file".to_owned())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Holder {
    type Error = Unfit;

    fn try_from(text: String) -> Result<Self, Unfit> {
        let fits = (1..=100).contains(&text.chars().count()) && text.chars().all(is_printable);
        fits.then_some(Self(text)).ok_or(Unfit::Holder)
    }
}

impl From<Holder> for String {
    fn from(Holder(text): Holder) -> Self {
        text
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// In quotes, as it stands in messages.
impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for Nonce {
    type Error = Unfit;

    fn try_from(text: String) -> Result<Self, Unfit> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let fits = (16..=64).contains(&text.len()) && text.bytes().all(allowed);
        fits.then_some(Self(text)).ok_or(Unfit::Nonce)
    }
}

impl Nonce {
    /// The text, for the answer to who sent it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// It gets into logs and messages by way of what it is part of, and must not be read there.
impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// Whether a character can stand in a line of a log without doing anything to it. Beside
/// the controls (`Cc`) that leaves out the ends of a line or a paragraph and what turns the
/// direction of writing, with which a name could pass for another.
fn is_printable(c: char) -> bool {
    let deceives = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !deceives
}

/// A text of somebody else's as it may stand in a line of a log: what is not printable
/// becomes a space.
pub(crate) fn on_one_line(text: &str) -> String {
    let printed = |c| if is_printable(c) { c } else { ' ' };
    text.chars().map(printed).collect()
}

impl Verdict {
    /// The file held.
    #[must_use]
    pub fn held() -> Self {
        Self {
            held_throughout: true,
            why: None,
        }
    }

    /// It did not, or nobody can tell.
    #[must_use]
    pub fn broken(why: impl Into<String>) -> Self {
        Self {
            held_throughout: false,
            why: Some(why.into()),
        }
    }
}

/// The verdicts on the leases that ended last.
#[derive(Debug, Clone, Default)]
pub struct Verdicts(VecDeque<(RunId, Nonce, Verdict)>);

impl Verdicts {
    /// Remembers one, and forgets the oldest if there are too many.
    pub fn remember(&mut self, run: RunId, nonce: Nonce, verdict: Verdict) {
        self.0.push_front((run, nonce, verdict));
        self.0.truncate(VERDICTS_KEPT);
    }

    /// The verdict on a lease that has ended.
    #[must_use]
    pub fn of(&self, run: &RunId, nonce: &Nonce) -> Option<&Verdict> {
        let mut verdicts = self.0.iter();
        let (.., verdict) = verdicts.find(|(of, known, _)| of == run && known == nonce)?;
        Some(verdict)
    }
}

#[cfg(test)]
mod tests;
