//! Measures what a maintenance window does to a tracker under load, and what the procedure
//! it replaces does; with `--write-docs` it writes `docs/window.md`.
//!
//! ```text
//! cargo run --release -p end-to-end --bin window_experiment -- --write-docs
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use end_to_end::experiment::{self, Output, window};
use end_to_end::generator::Plan;

/// Measures a window under load, and beside it: stop, cp, start.
///
/// Exit code 0: what must hold does. 1: something does not, or could not be measured. 3: for
/// something this program, or the machine, was the limit, so that it is not known. The result
/// and the page are written in each case.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where databases and backups are put for the while: on the disk to be measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Sizes of the database, in 10^6 bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [30, 300, 3_000])]
    megabytes: Vec<u64>,
    /// Highest rate of UDP requests per second; less where the tracker cannot.
    #[arg(long, default_value_t = 8_000)]
    udp: u32,
    /// Highest rate of HTTP requests per second.
    #[arg(long, default_value_t = 200)]
    http: u32,
    /// Seconds of load before anything is measured.
    #[arg(long, default_value_t = 5)]
    warm_up: u64,
    /// Seconds measured before and after.
    #[arg(long, default_value_t = 12)]
    around: u64,
    /// Seconds of each rate that is tried.
    #[arg(long, default_value_t = 3)]
    probe: u64,
    /// Windows one after the other that are judged; 0: none.
    #[arg(long, default_value_t = 10)]
    windows: usize,
    /// Size of the database for these, in 10^6 bytes.
    #[arg(long, default_value_t = 1_000)]
    windows_megabytes: u64,
    /// Seconds before the first of these that all are compared with.
    #[arg(long, default_value_t = 60)]
    windows_before: u64,
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
    let (document, judgement) = (window::document(&outcome)?, window::judge(&outcome));
    arguments.output.show(&document, &judgement)
}

async fn measure(arguments: &Arguments) -> Result<window::Outcome> {
    let options = window::Options {
        directory: arguments.directory.clone(),
        megabytes: arguments.megabytes.clone(),
        plan: Plan {
            udp_per_second: arguments.udp,
            http_per_second: arguments.http,
            ..Plan::default()
        },
        warm_up: arguments.warm_up,
        around: arguments.around,
        probe: arguments.probe,
        repeat: (arguments.windows > 0).then_some(window::Repeat {
            megabytes: arguments.windows_megabytes,
            windows: arguments.windows,
            before: arguments.windows_before,
        }),
    };
    let keep = |outcome: &window::Outcome| arguments.output.keep(outcome);
    window::run(&options, experiment::command("window_experiment"), keep).await
}
