//! The order to take the database over from a rollback journal to WAL while the service runs.
//!
//! ```text
//!   PUT ──▶ ordered ──▶ a run begins ──▶ gate closed, drained ──▶ in WAL ──▶ pinned, copied ..
//!            ▲    │     reckoned with WAL      │ something was in the way, or it did
//!            │    └─ DELETE                    ▼ not come that far
//!            └──────────────────────────── the order stays, and says why
//! ```
//!
//! With the gate closed and nothing in flight the switch takes milliseconds: beside idle
//! connections it succeeds. There is no such way back, because in WAL every idle connection has a
//! lock on the file; that is what `journal_mode = "delete"` and a restart are for.
//!
//! The order is in memory: a restart forgets it. The switch itself lasts, as the journal mode is
//! a property of the file.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::window::{Run, RunId, Trigger};

/// The journal mode there is to go over to, as statuses name it.
pub const WAL: &str = "wal";

/// What is told when it has been done.
pub const SWITCHED: &str = "the database is in WAL mode from now on, also after a restart; set \
                            journal_mode = \"wal\" to state it in the configuration, or \
                            \"delete\" and restart to go back";

/// How to go back, for whoever asks for that while the service runs.
pub(crate) const THE_WAY_BACK: &str = "set journal_mode = \"delete\" and restart, because every \
                                       idle connection of a database in WAL mode has a lock on it";

/// An order that has not been carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// When it was given.
    pub ordered: DateTime<Utc>,
    /// Why the last run that was to carry it out did not; `null`: none has tried.
    pub failed: Option<NotSwitched>,
}

/// Why a run did not carry an order out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotSwitched {
    /// The run.
    pub run: RunId,
    /// What happened, and what to do.
    pub reason: String,
}

/// What whoever orders or withdraws is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The journal mode the database is in.
    pub journal_mode: String,
    /// The order as it stands; `null`: there is none.
    pub switch: Option<Order>,
    /// What will happen, for people.
    pub message: String,
}

/// Why nothing can be ordered. A value, not an error: nothing broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSwitch {
    /// The next start would go back.
    #[error(
        "maintenance.journal_mode = \"delete\" is configured, so the next start would take the \
         database back to a rollback journal; set it to \"wal\" and restart, which switches by \
         itself, or to \"keep\" and restart, and order this again"
    )]
    Configured,
    /// There is no file.
    #[error(
        "this database is one of a MySQL or MariaDB server, and only an SQLite file has a journal \
         mode: there is nothing to switch, and nothing to do"
    )]
    Server,
}

impl Order {
    pub(crate) fn new(ordered: DateTime<Utc>) -> Self {
        Self {
            ordered,
            failed: None,
        }
    }

    /// Whether a run is to carry it out that begins after this one. Beside somebody who reads
    /// without end no switch gets through, and no run that tries: the run after one goes without
    /// it, or there would be no backup for as long as it is ordered. Who begins one by hand may
    /// know better.
    pub(crate) fn is_for(&self, trigger: Trigger, before: Option<&RunId>) -> bool {
        let failed = self.failed.as_ref().map(|failed| &failed.run);
        trigger == Trigger::Operator || failed.is_none() || failed != before
    }
}

impl Ordered {
    /// There is nothing to order.
    pub(crate) fn already() -> Self {
        Self {
            journal_mode: WAL.to_owned(),
            switch: None,
            message: format!(
                "the database is in WAL mode already, so nothing was ordered; to go back, \
                 {THE_WAY_BACK}"
            ),
        }
    }

    /// It will be done. `run`: the one in progress.
    pub(crate) fn will_be(journal_mode: String, order: Order, run: Option<&Run>) -> Self {
        let when = match run {
            Some(run) if run.to_wal => format!("in run {}, which is in progress", run.id),
            Some(run) => format!(
                "in the first run after {}, which is in progress and was reckoned without",
                run.id
            ),
            None => "in the next run, which `torrust-maintenance run` begins now".to_owned(),
        };
        Self {
            journal_mode,
            switch: Some(order),
            message: format!(
                "the database goes over to WAL {when}, once the gate is closed and before the file \
                 is pinned; a restart before then forgets this"
            ),
        }
    }

    /// It will not be done. `stood`: there was an order.
    pub(crate) fn withdrawn(journal_mode: String, stood: bool) -> Self {
        let message = if stood {
            format!("the order is withdrawn: the database stays in journal mode {journal_mode}")
        } else if journal_mode == WAL {
            format!(
                "there is no order, and the database is in WAL mode; to go back, {THE_WAY_BACK}"
            )
        } else {
            format!("there was no order: the database stays in journal mode {journal_mode}")
        };
        Self {
            journal_mode,
            switch: None,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_after_one_that_did_not_switch_goes_without() {
        let id = |second| RunId::new(DateTime::from_timestamp(second, 0).expect("a time"));
        let (first, second) = (id(1), id(2));
        let mut order = Order::new(DateTime::UNIX_EPOCH);
        assert!(order.is_for(Trigger::Schedule, None));
        assert!(order.is_for(Trigger::Schedule, Some(&first)));
        order.failed = Some(NotSwitched {
            run: first.clone(),
            reason: "somebody reads".to_owned(),
        });
        assert!(!order.is_for(Trigger::Schedule, Some(&first)));
        assert!(!order.is_for(Trigger::CatchUp, Some(&first)));
        assert!(order.is_for(Trigger::Operator, Some(&first)));
        assert!(order.is_for(Trigger::Schedule, Some(&second)));
        assert!(order.is_for(Trigger::Schedule, None), "after a start");
    }
}
