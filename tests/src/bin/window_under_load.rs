//! Prints how long announces pause: the real tracker on a database of a given size, a
//! load of announces, and some runs in the middle of it.
//!
//! ```text
//! cargo run --release -p end-to-end --bin window_under_load -- --megabytes 1000 --runs 5
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use end_to_end::load::{Door, Plan};
use end_to_end::session::{self, Session};
use end_to_end::tracker::Setup;
use end_to_end::{backups, database};
use serde_json::{Value, json};

/// Measures the pause of a maintenance window under load.
#[derive(Debug, Parser)]
struct Arguments {
    /// Size of the database, in 10^6 bytes.
    #[arg(long, default_value_t = 100)]
    megabytes: u64,
    /// Journal mode of the database.
    #[arg(long, value_enum, default_value_t = Journal::Wal)]
    journal: Journal,
    /// UDP announces per second.
    #[arg(long, default_value_t = 2_000)]
    udp: u32,
    /// HTTP announces per second.
    #[arg(long, default_value_t = 200)]
    http: u32,
    /// How many runs, a second of load after each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the database and its backups are put for the while.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Prints one JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Journal {
    /// Announces are served while the file is copied.
    Wal,
    /// Announces are held until the copy ends.
    Delete,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let session = measure(&arguments).await?;
    let lost = session.account.sent() - session.account.answered();
    Ok(if lost == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn measure(arguments: &Arguments) -> Result<Session> {
    let journal = match arguments.journal {
        Journal::Wal => "wal",
        Journal::Delete => "delete",
    };
    let setup = Setup::new_in(&arguments.directory)?
        .set("maintenance", "journal_mode", &format!("\"{journal}\""))
        .set("maintenance.gate", "hold_for", "\"90s\"");
    database::make(&setup.database(), arguments.megabytes * 1_000_000, journal)?;
    let tracker = setup.start().await?;
    let plan = Plan {
        udp_per_second: arguments.udp,
        http_per_second: arguments.http,
        ..Plan::default()
    };
    let session = session::hold(&tracker, plan, arguments.runs, Duration::from_secs(3_600)).await?;
    // What was measured must have been worth it.
    for directory in backups::published(&setup.backups())? {
        backups::Backup::open(&directory)?;
    }
    let figures = figures(&session)?;
    if arguments.json {
        println!("{figures:#}");
    } else {
        print_lines(&figures);
    }
    Ok(session)
}

fn figures(session: &Session) -> Result<Value> {
    let account = &session.account;
    let latency = |door: Door| {
        let milliseconds = |share| {
            account
                .latency(door, share)
                .map(|latency| latency.as_secs_f64() * 1_000.0)
        };
        json!({ "p50": milliseconds(0.5), "p99": milliseconds(0.99), "max": milliseconds(1.0) })
    };
    let pauses: Vec<f64> = session
        .runs
        .iter()
        .map(session::pause_ms)
        .collect::<Result<_>>()?;
    Ok(json!({
        "pauses_ms": pauses,
        "sent": account.sent(),
        "answered": account.answered(),
        "failures": account.failures(),
        "latency_ms": { "udp": latency(Door::Udp), "http": latency(Door::Http) },
    }))
}

fn print_lines(figures: &Value) {
    println!("gate closed, each run (ms)   {}", figures["pauses_ms"]);
    println!(
        "announces sent, answered     {}, {}",
        figures["sent"], figures["answered"]
    );
    println!("failures                     {}", figures["failures"]);
    println!(
        "UDP latency (ms)             {}",
        figures["latency_ms"]["udp"]
    );
    println!(
        "HTTP latency (ms)            {}",
        figures["latency_ms"]["http"]
    );
}
