//! `upload`: what the second place has not yet, once and by hand.

use serde_json::json;
use torrust_tracker_maintenance::catalogue::BackupId;
use torrust_tracker_maintenance::remote::Report;

use crate::client::block_on;
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::keep::writable;
use crate::progress::watched;
use crate::remote;

/// Upload the backups that `[maintenance.remote]` has not, newest first, and remove there what
/// `remote.keep` does not keep. The tracker does so by itself after each run.
#[derive(clap::Args)]
pub struct Arguments;

impl Arguments {
    #[expect(clippy::unused_self, reason = "as all commands")]
    pub fn carry_out(self, configuration: &Configuration, json: bool) -> Result<Answer, Failure> {
        let remote = remote::open(configuration)?;
        let catalogue = writable(&configuration.catalogue()?)?;
        let report = watched(json, |watch| block_on(remote.pass(&catalogue, watch)))?;
        let Report {
            uploaded,
            pending,
            removed,
            failure,
        } = report;
        if let Some(failure) = failure {
            let done = match uploaded.as_slice() {
                [] => String::new(),
                uploaded => format!("; before that, {} were uploaded", names(uploaded)),
            };
            return Err(Failure::from(failure).also(&done));
        }
        let mut lines = Vec::new();
        if !uploaded.is_empty() {
            lines.push(format!("uploaded {} to {}", names(&uploaded), remote.at()));
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
                "remote": remote.at(), "uploaded": uploaded, "pending": pending,
                "removed": removed,
            }),
        })
    }
}

fn names(ids: &[BackupId]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}
