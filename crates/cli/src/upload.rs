//! `upload`: what the second place has not yet, once and by hand.

use chrono::{DateTime, Utc};
use serde_json::json;
use torrust_tracker_maintenance::catalogue::BackupId;
use torrust_tracker_maintenance::remote::{Owner, Report};
use torrust_tracker_maintenance::status::BrokenThere;

use crate::client::block_on;
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::keep::writable;
use crate::progress::watched;
use crate::remote;

/// Upload the backups that `[maintenance.remote]` has not, newest first, replace those that are
/// broken there, and remove there what `remote.keep` does not keep. The tracker does so by itself
/// after each run.
#[derive(clap::Args)]
pub struct Arguments {
    /// Make it this catalogue's first, whosever it was: that tracker is gone, or another volume
    /// is mounted there. What is there and not here is then removed by the rules of
    /// `remote.keep`.
    #[arg(long)]
    take_over: bool,
}

/// Whose it was, if it was another's; and what was done.
type Done<E> = Result<(Option<Owner>, Report), E>;

impl Arguments {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let remote = remote::open(configuration)?;
        let catalogue = writable(&configuration.catalogue()?)?;
        let done: Done<_> = watched(json, |watch| {
            block_on(async {
                let former = if self.take_over {
                    remote.take_over(&catalogue, now, watch).await?
                } else {
                    None
                };
                let report = remote.pass(&catalogue, now, watch, &|_| {}).await?;
                Ok::<_, Failure>((former, report))
            })
        });
        let (former, report) = done?;
        let Report {
            uploaded,
            replaced,
            pending,
            removed,
            broken,
            failure,
        } = report;
        if let Some(failure) = failure {
            let done = match uploaded.as_slice() {
                [] => String::new(),
                uploaded => format!("; before that, {} were uploaded", names(uploaded)),
            };
            return Err(Failure::from(failure).also(&done));
        }
        if let Some(BrokenThere { id, why }) = broken.first() {
            let message = format!(
                "backup {id} in {} is broken: {why}; it could not be replaced by the one here, and is \
                 left as it is",
                remote.at()
            );
            return Err(Failure::new(Exit::Verification, "remote_damaged", message));
        }
        let mut lines = Vec::new();
        if let Some(former) = &former {
            lines.push(format!("{} was of the instance {former}", remote.at()));
        }
        if !uploaded.is_empty() {
            lines.push(format!("uploaded {} to {}", names(&uploaded), remote.at()));
        }
        for BrokenThere { id, why } in &replaced {
            lines.push(format!("of these, {id} was broken there: {why}"));
        }
        if !removed.is_empty() {
            lines.push(format!("removed {} there", names(&removed)));
        }
        if lines.is_empty() {
            lines.push(format!("{} has all it should have", remote.at()));
        }
        Ok(Answer {
            exit: Exit::Done,
            text: lines.join("\n"),
            json: json!({
                "remote": remote.at(), "taken_over_from": former, "uploaded": uploaded,
                "replaced": replaced, "pending": pending, "removed": removed,
            }),
        })
    }
}

fn names(ids: &[BackupId]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}
