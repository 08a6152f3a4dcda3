//! The operator's tool for the tracker's maintenance window and its backups. It knows the
//! tracker by its configuration file, its readiness endpoint and its backups alone.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{Parser, Subcommand};

use crate::configuration::Configuration;

mod check;
mod client;
mod configuration;
mod evaluate_wal;
mod exit;
mod forecast;
mod identity;
mod keep;
mod list;
mod monitor;
mod progress;
mod remote;
mod restore;
mod run;
mod selection;
mod sidecar;
mod signals;
mod status;
mod table;
mod units;
mod upload;
mod verify;

/// Looks after the maintenance window of a running tracker and the backups it makes.
#[derive(Parser)]
#[command(version, after_help = exit::HELP)]
struct CommandLine {
    #[command(flatten)]
    configuration: configuration::Options,
    /// Print JSON, errors too.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the configuration and show the next windows. Writes nothing.
    Check,
    Run(run::Arguments),
    Sidecar(sidecar::Arguments),
    /// Show whether announces flow, what is being done, and how the last runs ended.
    Status,
    EvaluateWal(evaluate_wal::Arguments),
    List(list::Arguments),
    Monitor(monitor::Arguments),
    Verify(verify::Arguments),
    Restore(restore::Arguments),
    Upload(upload::Arguments),
    Prune(keep::Prune),
    Protect(keep::Protect),
    Unprotect(keep::Unprotect),
    Delete(keep::Delete),
}

fn main() -> ExitCode {
    let arguments = match CommandLine::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => return exit::usage(&usage),
    };
    let json = arguments.json;
    let configuration = Configuration::from(arguments.configuration);
    let answer = match arguments.command {
        Command::Monitor(monitor) => return monitor.carry_out(&configuration, json, now()),
        Command::Check => check::carry_out(&configuration, now()),
        Command::Run(run) => run.carry_out(&configuration, json, now()),
        Command::Sidecar(sidecar) => sidecar.carry_out(&configuration, json, now()),
        Command::Status => status::carry_out(&configuration, json, now()),
        Command::EvaluateWal(evaluation) => evaluation.carry_out(&configuration, json),
        Command::List(list) => list.carry_out(&configuration, now()),
        Command::Verify(verify) => verify.carry_out(&configuration, json, now()),
        Command::Restore(restore) => restore.carry_out(&configuration, json, now()),
        Command::Upload(upload) => upload.carry_out(&configuration, json, now()),
        Command::Prune(prune) => prune.carry_out(&configuration, json, now()),
        Command::Protect(protect) => protect.carry_out(&configuration, now()),
        Command::Unprotect(unprotect) => unprotect.carry_out(&configuration, now()),
        Command::Delete(delete) => delete.carry_out(&configuration, now()),
    };
    match answer {
        Ok(answer) => answer.report(json),
        Err(failure) => failure.report(json),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "read once; the commands are handed it"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
