//! Compares how fast the tracker and upstream's answer announces; with `--write-docs` it
//! writes `docs/rates.md`.
//!
//! It needs the public load tester, once:
//!
//! ```text
//! cargo install --locked aquatic_udp_load_test@0.9.0
//! cargo run --release --locked -p end-to-end --bin announce_rates -- --write-docs
//! ```
//!
//! Upstream's tracker it builds by itself, in a target directory of its own, without what
//! `.cargo/config.toml` compiles into `SQLite` for ours; the first time that takes minutes.
//! Measuring takes some 12 more: 8 cases, 3 rounds, 31 s each, of which 22 are load.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use end_to_end::experiment::{self, Output, rates};

/// Compares announce rates with upstream's.
///
/// Exit code 0: what must hold does. 1: something does not, or could not be measured. 3: of
/// something it cannot be told, because the load was the limit, noise hides it, or --only left
/// it out. The result and the page are written in each case.
#[derive(Debug, Parser)]
struct Arguments {
    /// The tracker; built if it is not given and older than its source.
    #[arg(long)]
    tracker: Option<PathBuf>,
    /// Upstream's tracker as it is published, built without `LIBSQLITE3_FLAGS`. Built so if it
    /// is not given.
    #[arg(long)]
    upstream: Option<PathBuf>,
    /// The public load tester.
    #[arg(long, default_value = "aquatic_udp_load_test")]
    load_test: PathBuf,
    /// How often every case is measured, in turns; once shows no noise.
    #[arg(long, default_value_t = rates::Loads::default().rounds)]
    rounds: usize,
    /// How long the public tester sends, in seconds; a multiple of 5.
    #[arg(long, default_value_t = rates::Loads::default().tester_seconds)]
    seconds: u64,
    /// How long each of the two loads of this package sends, in seconds.
    #[arg(long, default_value_t = rates::Loads::default().own_seconds)]
    own_seconds: u64,
    /// Announces per second when latency is measured.
    #[arg(long, default_value_t = rates::Loads::default().moderate)]
    moderate: u32,
    /// Where databases are put for the while: on the disk to be measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
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
    let (document, judgement) = (rates::document(&outcome)?, rates::judge(&outcome));
    arguments.output.show(&document, &judgement)
}

async fn measure(arguments: &Arguments) -> Result<rates::Outcome> {
    ensure!(
        arguments.rounds > 0 && arguments.seconds > 0 && arguments.own_seconds > 0,
        "--rounds, --seconds and --own-seconds: at least 1, or nothing is measured"
    );
    ensure!(
        arguments.moderate > 0,
        "--moderate: at least 1, or there is no latency"
    );
    let options = rates::Options {
        directory: arguments.directory.clone(),
        tracker: arguments.tracker.clone(),
        upstream: arguments.upstream.clone(),
        load_test: arguments.load_test.clone(),
        only: arguments.only.clone(),
        loads: rates::Loads {
            rounds: arguments.rounds,
            tester_seconds: arguments.seconds,
            own_seconds: arguments.own_seconds,
            moderate: arguments.moderate,
        },
    };
    let keep = |outcome: &rates::Outcome| arguments.output.keep(outcome);
    rates::run(&options, experiment::command("announce_rates"), keep).await
}
