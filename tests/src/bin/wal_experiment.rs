//! Measures whether WAL pays, and decides; with `--write-docs` it writes `docs/wal.md`.
//!
//! ```text
//! cargo run --release -p end-to-end --bin wal_experiment -- --write-docs
//! ```
//!
//! For `synchronous = FULL` in WAL it needs a tracker built for it beside the other:
//!
//! ```text
//! LIBSQLITE3_FLAGS= cargo build --release --locked -p torrust-tracker-with-maintenance --target-dir target/full
//! ... --full target/full/release/torrust-tracker
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use end_to_end::experiment::{self, Output, wal};
use end_to_end::generator::Plan;

/// Measures the journal modes of the database under load, and decides.
///
/// Exit code 0: everything was measured, whatever was decided. 1: a mode held no rate, or
/// something could not be measured. 3: this program, or the machine, was the limit, so that it
/// is not known which rate a mode holds. The result and the page are written in each case.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where databases are put for the while: on the disk to be measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Size of the database, in 10^6 bytes.
    #[arg(long, default_value_t = 300)]
    megabytes: u64,
    /// A tracker built without `LIBSQLITE3_FLAGS`, so with `synchronous = FULL`.
    #[arg(long)]
    full: Option<PathBuf>,
    /// Highest rate of UDP requests per second that is tried.
    #[arg(long, default_value_t = 12_000)]
    udp: u32,
    /// Highest rate of HTTP requests per second that is tried.
    #[arg(long, default_value_t = 300)]
    http: u32,
    /// How often each mode is measured, at least twice.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Seconds of load before anything is measured.
    #[arg(long, default_value_t = 4)]
    warm_up: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds of each rate that is tried.
    #[arg(long, default_value_t = 4)]
    probe: u64,
    #[command(flatten)]
    output: Output,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let outcome = match arguments.output.given()? {
        Some(outcome) => outcome,
        None => measure(&arguments).await?,
    };
    arguments.output.keep(&outcome)?;
    let (document, judgement) = (wal::document(&outcome)?, wal::judge(&outcome));
    arguments.output.show(&document, &judgement)
}

async fn measure(arguments: &Arguments) -> Result<wal::Outcome> {
    ensure!(
        arguments.rounds >= 2,
        "--rounds: at least two, or nothing is known of the noise"
    );
    let options = wal::Options {
        directory: arguments.directory.clone(),
        megabytes: arguments.megabytes,
        plan: Plan {
            udp_per_second: arguments.udp,
            http_per_second: arguments.http,
            ..Plan::default()
        },
        full: arguments.full.clone(),
        rounds: arguments.rounds,
        warm_up: arguments.warm_up,
        seconds: arguments.seconds,
        probe: arguments.probe,
    };
    wal::run(&options, experiment::command("wal_experiment")).await
}
