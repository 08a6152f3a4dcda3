//! Sends announces to a running tracker at a given rate and accounts for every one.
//!
//! ```text
//! cargo run --release -p end-to-end --bin announce_load -- \
//!     --udp 127.0.0.1:6969 --http 127.0.0.1:7070 --endpoint 127.0.0.1:1414 \
//!     --udp-rate 8000 --http-rate 200 --seconds 60 --json load.json --plot load.svg
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use end_to_end::endpoint::Endpoint;
use end_to_end::generator::{Before, Generator, Mix, Plan, Report, Share, Summary};
use end_to_end::plot;

/// Sends announces at a given rate and accounts for every one.
///
/// Exit code 0: every request was answered, and the load was as planned. 1: not every one
/// was, or the tracker could not be reached. 3: this program, or the machine, did not keep
/// up, so that the figures say nothing of the tracker.
#[derive(Debug, Parser)]
struct Arguments {
    /// The UDP tracker.
    #[arg(long)]
    udp: SocketAddr,
    /// The HTTP tracker.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// The readiness endpoint, to mark when the gate closes and opens.
    #[arg(long)]
    endpoint: Option<SocketAddr>,
    /// UDP requests per second: connects, announces, scrapes.
    #[arg(long, default_value_t = 8_000)]
    udp_rate: u32,
    /// HTTP requests per second.
    #[arg(long, default_value_t = 200, requires = "http")]
    http_rate: u32,
    /// How long.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How long answers are waited for after the end, in seconds.
    #[arg(long, default_value_t = 30)]
    grace: u64,
    /// UDP source ports.
    #[arg(long, default_value_t = 128)]
    ports: u16,
    /// Of 100 UDP requests, connects.
    #[arg(long, default_value_t = 20)]
    connects: u32,
    /// Of 100 other requests, scrapes.
    #[arg(long, default_value_t = 5)]
    scrapes: u32,
    /// Of 100 HTTP requests, those on a connection that is kept.
    #[arg(long, default_value_t = 50)]
    kept_alive: u32,
    /// Torrents of each door; the n-th is asked for 1/n times as often as the first.
    #[arg(long, default_value_t = 20_000)]
    torrents: u32,
    /// How often a peer starts, completes, comes back and leaves, relative to each other.
    #[arg(long, value_delimiter = ',', num_args = 4, default_values_t = [15, 10, 65, 10])]
    mix: Vec<u32>,
    /// The same seed makes the same load.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the report is written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the plot is written as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
}

impl Arguments {
    fn plan(&self) -> Result<Plan> {
        let &[started, completed, regular, stopped] = self.mix.as_slice() else {
            anyhow::bail!("--mix has four numbers");
        };
        let mix = Mix {
            started,
            completed,
            regular,
            stopped,
        };
        ensure!(
            started > 0 && self.torrents > 0,
            "without torrents, or without peers that start, there is nobody to announce"
        );
        Ok(Plan {
            udp_per_second: self.udp_rate,
            http_per_second: self.http.map_or(0, |_| self.http_rate),
            ports: self.ports,
            connects: Share::percent(self.connects),
            scrapes: Share::percent(self.scrapes),
            kept_alive: Share::percent(self.kept_alive),
            torrents: self.torrents,
            mix,
            seed: self.seed,
        })
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let report = load(&arguments).await?;
    print_lines(&report);
    if let Some(path) = &arguments.json {
        write(path, &format!("{:#}\n", serde_json::to_value(&report)?))?;
    }
    if let Some(path) = &arguments.plot {
        let drawn = plot::svg("announce_load", &report.panels(), &report.marks)?;
        write(path, &drawn)?;
    }
    Ok(if !report.health.kept_up() {
        ExitCode::from(3)
    } else if report.all.counts.failed() > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn load(arguments: &Arguments) -> Result<Report> {
    let plan = arguments.plan()?;
    // Unused without a rate.
    let http = arguments.http.unwrap_or(arguments.udp);
    let grace = Duration::from_secs(arguments.grace);
    let status = match arguments.endpoint {
        Some(endpoint) => Some(Before::ask(Endpoint(endpoint)).await?),
        None => None,
    };
    let generator = Generator::start(plan, arguments.udp, http, grace).await?;
    let marks = status.map(|status| status.watch(generator.clock));
    generator
        .until(Duration::from_secs(arguments.seconds))
        .await?;
    let marks = match marks {
        Some(marks) => marks.stop().await?,
        None => Vec::new(),
    };
    let found = generator.stop().await?;
    Ok(Report::new(plan, &found, marks))
}

#[expect(clippy::disallowed_methods, reason = "a report is no live database")]
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn print_lines(report: &Report) {
    println!("                  sent   answered  errors  unanswered  p50 ms  p99 ms  max ms");
    for (kind, summary) in &report.kinds {
        print_line(kind.name(), summary);
    }
    print_line("all", &report.all);
    for (error, count) in &report.errors {
        println!("error             {count} x {error}");
    }
    for mark in &report.marks {
        println!("{:>9.3} s       {}", mark.second, mark.what);
    }
    let health = &report.health;
    println!(
        "generator         {:.0} sent a second; late p50 {:.3} p99 {:.3} max {:.3} ms; {:.2} of {:.2} busy processors",
        health.sent_per_second,
        health.late_p50_ms,
        health.late_p99_ms,
        health.late_max_ms,
        health.processors,
        health.machine
    );
    for limit in &health.limits {
        println!("NOT THE TRACKER   {limit}");
    }
}

fn print_line(name: &str, summary: &Summary) {
    let counts = &summary.counts;
    let latency = |found: Option<f64>| found.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
    println!(
        "{name:<14} {:>7} {:>10} {:>7} {:>11} {:>7} {:>7} {:>7}",
        counts.sent,
        counts.answered,
        counts.errors,
        counts.unanswered,
        latency(summary.p50_ms),
        latency(summary.p99_ms),
        latency(summary.max_ms),
    );
}
