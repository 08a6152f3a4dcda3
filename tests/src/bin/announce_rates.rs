//! Compares how fast the tracker and upstream's answer announces: rates, processor time and
//! latency, each beside upstream's in the same round, because a machine's speed drifts.
//!
//! Load comes from the public tester `aquatic_udp_load_test`; latency at a moderate rate from
//! the load of this package. Upstream is built apart, without what `.cargo/config.toml`
//! compiles into SQLite for us:
//!
//! ```text
//! cargo install --locked aquatic_udp_load_test@0.9.0
//! LIBSQLITE3_FLAGS= cargo build --release --locked -p end-to-end --bin upstream_tracker --target-dir target/upstream
//! cargo build --release --locked -p torrust-tracker-with-maintenance -p end-to-end
//! target/release/announce_rates --upstream target/upstream/release/upstream_tracker --json rates.json
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "reads clocks and /proc, writes its report; it has no live database open by descriptor"
)]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use end_to_end::load::{Door, Load, Plan};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, binaries};
use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

/// Compares announce rates with upstream's.
#[derive(Debug, Parser)]
struct Arguments {
    /// The tracker; built if it is not given and older than its source.
    #[arg(long)]
    tracker: Option<PathBuf>,
    /// Upstream's tracker: `upstream_tracker`, built without `LIBSQLITE3_FLAGS`.
    #[arg(long)]
    upstream: PathBuf,
    /// The load tester.
    #[arg(long, default_value = "aquatic_udp_load_test")]
    load_test: PathBuf,
    /// How often every case is measured, in turns.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long each load lasts, in seconds; a multiple of 5.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Announces per second when latency is measured.
    #[arg(long, default_value_t = 1_000)]
    moderate: u32,
    /// Where the databases are put for the while: on a disk, or syncs cost nothing.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where to write all figures, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One configuration of one of the two trackers.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    program: Program,
    persists: bool,
    journal: &'static str,
    threshold: &'static str,
    /// What its rate is compared with, and what should come out.
    against: &'static [(&'static str, f64)],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Ours,
    Upstream,
}

const CASES: [Case; 8] = [
    Case {
        name: "upstream, memory, error",
        program: Program::Upstream,
        persists: false,
        journal: "delete",
        threshold: "error",
        against: &[],
    },
    Case {
        name: "ours, memory, error",
        program: Program::Ours,
        persists: false,
        journal: "delete",
        threshold: "error",
        against: &[("upstream, memory, error", 2.0)],
    },
    Case {
        name: "upstream, memory, info",
        program: Program::Upstream,
        persists: false,
        journal: "delete",
        threshold: "info",
        against: &[],
    },
    Case {
        name: "ours, memory, info",
        program: Program::Ours,
        persists: false,
        journal: "delete",
        threshold: "info",
        against: &[("upstream, memory, info", 2.0)],
    },
    Case {
        name: "upstream, stored, rollback",
        program: Program::Upstream,
        persists: true,
        journal: "delete",
        threshold: "error",
        against: &[],
    },
    Case {
        name: "upstream, stored, WAL",
        program: Program::Upstream,
        persists: true,
        journal: "wal",
        threshold: "error",
        against: &[],
    },
    Case {
        name: "ours, stored, WAL",
        program: Program::Ours,
        persists: true,
        journal: "wal",
        threshold: "error",
        against: &[
            ("upstream, stored, rollback", 8.0),
            ("upstream, stored, WAL", 2.5),
        ],
    },
    Case {
        name: "ours, stored, rollback",
        program: Program::Ours,
        persists: true,
        journal: "delete",
        threshold: "error",
        against: &[("upstream, stored, rollback", 1.0)],
    },
];

/// What was measured of a case in a round.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Announces answered per second, saturated.
    announces: f64,
    /// All requests answered per second, saturated.
    responses: f64,
    /// Processor time per request answered, in microseconds.
    processor_us: f64,
    /// Milliseconds for a connect while saturated; unanswered ones count as a second.
    connect_p50: f64,
    connect_p99: f64,
    /// At the moderate rate.
    moderate: Moderate,
}

#[derive(Debug, Clone, Copy)]
struct Moderate {
    /// Share of the announces that were answered at all, in hundredths.
    answered: f64,
    /// Milliseconds for an announce, of those.
    p50: f64,
    p99: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cases: Vec<Case> = CASES
        .into_iter()
        .filter(|case| case.name.contains(&arguments.only))
        .collect();
    let mut figures: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    for round in 1..=arguments.rounds {
        for case in &cases {
            eprintln!("round {round} of {}: {}", arguments.rounds, case.name);
            let measured = measure(&arguments, case).await;
            let measured = measured.with_context(|| format!("measuring {}", case.name))?;
            figures.entry(case.name).or_default().push(measured);
        }
    }
    print_table(&cases, &figures);
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{:#}\n", to_json(&cases, &figures)))?;
    }
    Ok(())
}

async fn measure(arguments: &Arguments, case: &Case) -> Result<Figures> {
    let moderate = {
        let tracker = start(arguments, case).await?;
        moderate(arguments, &tracker).await?
    };
    // Another process and database, as the load before has left torrents behind.
    let tracker = start(arguments, case).await?;
    let before = processor_time(&tracker)?;
    let (loaded, load) = oneshot::channel();
    let (report, mut connects) = tokio::try_join!(
        load_test(arguments, tracker.addresses.udp, loaded),
        connects(
            tracker.addresses.udp,
            load,
            Duration::from_secs(arguments.seconds)
        ),
    )?;
    let spent = processor_time(&tracker)?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let answered = report.responses * arguments.seconds as f64;
    connects.sort_unstable();
    Ok(Figures {
        announces: report.announces,
        responses: report.responses,
        processor_us: spent.as_secs_f64() * 1e6 / answered.max(1.0),
        connect_p50: quantile(&connects, 0.5),
        connect_p99: quantile(&connects, 0.99),
        moderate,
    })
}

async fn start(arguments: &Arguments, case: &Case) -> Result<Tracker> {
    let (program, path) = match (case.program, &arguments.tracker) {
        (Program::Upstream, _) => (binaries::UPSTREAM, arguments.upstream.clone()),
        (Program::Ours, Some(path)) => (binaries::TRACKER, path.clone()),
        (Program::Ours, None) => (binaries::TRACKER, binaries::path(binaries::TRACKER)?),
    };
    // As upstream's own benchmarking configuration, but for what the case is about.
    let setup = Setup::without_maintenance_in(program, &arguments.directory)?
        .program_at(&path)
        .set("logging", "threshold", &format!("\"{}\"", case.threshold))
        .set("core", "tracker_usage_statistics", "false")
        .set("core.tracker_policy", "remove_peerless_torrents", "false")
        .set(
            "core.tracker_policy",
            "persistent_torrent_completed_stat",
            &case.persists.to_string(),
        );
    Connection::open(setup.database())?
        .execute_batch(&format!("PRAGMA journal_mode = {}; VACUUM", case.journal))?;
    setup.start_quiet().await
}

/// What the load tester reports, averages per second.
struct Report {
    responses: f64,
    announces: f64,
}

/// Tells when it begins to send.
async fn load_test(
    arguments: &Arguments,
    tracker: SocketAddr,
    loaded: oneshot::Sender<()>,
) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let configuration = directory.path().join("load_test.toml");
    // A receive buffer of what the kernel gives without further rights.
    let most = fs::read_to_string("/proc/sys/net/core/rmem_max")?;
    fs::write(
        &configuration,
        format!(
            "server_address = \"{tracker}\"\nduration = {}\n\
             [network]\nrecv_buffer = {}\n\
             [requests]\nweight_connect = 50\nweight_announce = 50\nweight_scrape = 1\n",
            arguments.seconds,
            most.trim(),
        ),
    )?;
    let mut load_test = Command::new(&arguments.load_test)
        .arg("-c")
        .arg(&configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", arguments.load_test.display()))?;
    let output = load_test.stdout.take().context("its output is piped")?;
    let mut lines = BufReader::new(output).lines();
    let mut loaded = Some(loaded);
    let mut said = String::new();
    while let Some(line) = lines.next_line().await? {
        // What it prints between making up its peers and sending for them.
        if line.starts_with("Peers per info hash")
            && let Some(loaded) = loaded.take()
        {
            // Who is told has its own error if it is not there any more.
            let _ = loaded.send(());
        }
        said = said + &line + "\n";
    }
    let status = load_test.wait().await?;
    ensure!(status.success(), "the load tester failed: {status}\n{said}");
    Ok(Report {
        responses: last_number(&said, "Average responses per second:")?,
        announces: last_number(&said, "- Announce responses:")?,
    })
}

/// The number behind the last occurrence of a label, which is the one of the whole run.
fn last_number(text: &str, label: &str) -> Result<f64> {
    let (_, after) = text
        .rsplit_once(label)
        .with_context(|| format!("the load tester did not say {label}"))?;
    let number = after.split_whitespace().next().unwrap_or_default();
    number
        .parse()
        .with_context(|| format!("{label} is followed by {number}"))
}

/// Milliseconds that connects take once there is load, one every 10 ms.
async fn connects(
    tracker: SocketAddr,
    load: oneshot::Receiver<()>,
    during: Duration,
) -> Result<Vec<Duration>> {
    let mut client = UdpClient::connect(tracker).await?;
    load.await.context("the load tester did not begin")?;
    let began = Instant::now();
    client.patience = Duration::from_secs(1);
    let mut taken = Vec::new();
    let mut ticks = interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while began.elapsed() < during {
        ticks.tick().await;
        let sent = Instant::now();
        let answered = client.reconnect().await;
        taken.push(if answered.is_ok() {
            sent.elapsed()
        } else {
            client.patience
        });
    }
    Ok(taken)
}

/// Announces at the moderate rate, from the load that waits for nobody.
async fn moderate(arguments: &Arguments, tracker: &Tracker) -> Result<Moderate> {
    let plan = Plan {
        udp_per_second: arguments.moderate,
        http_per_second: 0,
        ..Plan::default()
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    let wanted = usize::try_from(u64::from(arguments.moderate) * arguments.seconds)?;
    load.until(PATIENCE * 4, |counts| counts.sent >= wanted)
        .await?;
    let account = load.stop(Duration::from_secs(2)).await?;
    let share = |share| {
        let latency = account.latency(Door::Udp, share);
        latency.map_or(f64::NAN, milliseconds)
    };
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let answered = 100.0 * account.answered() as f64 / account.sent() as f64;
    Ok(Moderate {
        answered,
        p50: share(0.5),
        p99: share(0.99),
    })
}

/// User and system time so far (fields 14 and 15 of proc(5)'s `stat`, in hundredths of a
/// second on every Linux).
fn processor_time(tracker: &Tracker) -> Result<Duration> {
    let path = PathBuf::from(format!("/proc/{}/stat", tracker.pid()?.as_raw_nonzero()));
    let stat = fs::read_to_string(&path)?;
    let (_, after_name) = stat.rsplit_once(')').context("a name in brackets")?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let mut sum = 0;
    for tick in ticks {
        sum += tick.parse::<u64>()?;
    }
    Ok(Duration::from_millis(10 * sum))
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(index).copied().map_or(f64::NAN, milliseconds)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The middle one of a figure over all rounds.
fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of each round the rate in terms of another case's in the same round.
fn ratios(figures: &BTreeMap<&str, Vec<Figures>>, case: &str, against: &str) -> Option<Vec<f64>> {
    let (mine, theirs) = (figures.get(case)?, figures.get(against)?);
    let pairs = mine.iter().zip(theirs);
    Some(
        pairs
            .map(|(mine, theirs)| mine.announces / theirs.announces)
            .collect(),
    )
}

fn print_table(cases: &[Case], figures: &BTreeMap<&str, Vec<Figures>>) {
    println!(
        "{:<28}{:>12}{:>10}{:>22}{:>22}{:>10}",
        "medians",
        "announces/s",
        "us each",
        "connect p50/p99 ms",
        "announce p50/p99 ms",
        "answered"
    );
    for case in cases {
        let Some(all) = figures.get(case.name) else {
            continue;
        };
        let middle = |figure: fn(&Figures) -> f64| median(all.iter().map(figure).collect());
        println!(
            "{:<28}{:>12.0}{:>10.1}{:>22}{:>22}{:>9.1}%",
            case.name,
            middle(|figures| figures.announces),
            middle(|figures| figures.processor_us),
            format!(
                "{:.2} / {:.2}",
                middle(|figures| figures.connect_p50),
                middle(|figures| figures.connect_p99)
            ),
            format!(
                "{:.2} / {:.2}",
                middle(|figures| figures.moderate.p50),
                middle(|figures| figures.moderate.p99)
            ),
            middle(|figures| figures.moderate.answered),
        );
    }
    for case in cases {
        for (against, wanted) in case.against {
            if let Some(ratios) = ratios(figures, case.name, against) {
                let each: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
                println!(
                    "{} is {:.2} times {against} (wanted: {wanted}; rounds: {})",
                    case.name,
                    median(ratios),
                    each.join(", ")
                );
            }
        }
    }
}

fn to_json(cases: &[Case], figures: &BTreeMap<&str, Vec<Figures>>) -> Value {
    let cases = cases.iter().map(|case| {
        let rounds = figures.get(case.name).into_iter().flatten();
        let against = case.against.iter().map(|(against, wanted)| {
            let ratios = ratios(figures, case.name, against);
            json!({ "case": against, "wanted": wanted, "ratios": ratios })
        });
        json!({
            "name": case.name,
            "against": against.collect::<Vec<_>>(),
            "rounds": rounds.map(|round| json!({
                "announces_per_second": round.announces,
                "responses_per_second": round.responses,
                "processor_us_per_response": round.processor_us,
                "connect_saturated_ms": { "p50": round.connect_p50, "p99": round.connect_p99 },
                "moderate": {
                    "answered_percent": round.moderate.answered,
                    "announce_ms": { "p50": round.moderate.p50, "p99": round.moderate.p99 },
                },
            })).collect::<Vec<_>>(),
        })
    });
    json!({ "cases": cases.collect::<Vec<_>>() })
}
