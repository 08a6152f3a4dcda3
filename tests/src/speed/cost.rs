//! What a run costs the process it is linked into: memory, and for how long announces wait.
//!
//! A service of its own, with the library linked in as the tracker has it, commits through
//! the gate while it is asked for one run. It is started anew for every run, so that each
//! pays for what only the first one does.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use torrust_tracker_maintenance::config::Source;
use torrust_tracker_maintenance::maintenance::{Maintenance, Service};

use super::writer;
use crate::announce::hex;
use crate::database;
use crate::endpoint::Endpoint;

/// Commits a second of the service.
const RATE: u32 = 200;

/// Commits before a run is asked for: the log has been checkpointed by then, and what
/// takes memory once has taken it.
const WARM: u32 = 600;

/// A run of 3 GB, compressed, on a slow and busy machine.
const WITHIN: Duration = Duration::from_secs(1_800);

/// What one run cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Size of the database, in 10^6 bytes.
    pub megabytes: u64,
    /// Whether the backup was compressed.
    pub compressed: bool,
    /// Milliseconds the gate was closed.
    pub pause_ms: f64,
    /// Bytes by which the process was larger at its largest than before the run.
    pub memory: u64,
}

/// Measures one run on `database`, of `megabytes`, with the backup in the new directory
/// `catalogue`.
///
/// # Errors
/// When the service cannot be started or the run is not done.
pub fn measure(
    database: &Path,
    megabytes: u64,
    catalogue: &Path,
    compressed: bool,
) -> Result<Cost> {
    let compression = if compressed { "zstd" } else { "none" };
    let mut service = Command::new(std::env::current_exe()?)
        .args(["service", "--compression", compression, "--database"])
        .arg(database)
        .arg("--catalogue")
        .arg(catalogue)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the service")?;
    let measured = measure_in(&mut service);
    // Its standard input closes: it shuts down.
    drop(service.stdin.take());
    let status = service.wait()?;
    let (pause_ms, memory) = measured?;
    ensure!(status.success(), "the service: {status}");
    Ok(Cost {
        megabytes,
        compressed,
        pause_ms,
        memory,
    })
}

/// The pause, and the memory added.
fn measure_in(service: &mut Child) -> Result<(f64, u64)> {
    let mut says = BufReader::new(service.stdout.take().context("it is piped")?);
    let mut address = String::new();
    says.read_line(&mut address)?;
    let address = address
        .trim()
        .parse()
        .context("the address of the service")?;
    let process = Path::new("/proc").join(service.id().to_string());
    // Forgets the peak so far (proc(5), `/proc/[pid]/clear_refs`).
    std::fs::write(process.join("clear_refs"), "5").context("resetting the peak of memory")?;
    let before = resident(&process, "VmRSS")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run: Value = runtime.block_on(Endpoint(address).run(WITHIN))?;
    let peak = resident(&process, "VmHWM")?;
    if run["outcome"]["kind"] != "done" {
        bail!("a run was not done: {run:#}");
    }
    let pause = run["pause_ms"].as_f64().context("pause_ms of a run")?;
    Ok((pause, peak.saturating_sub(before)))
}

/// Bytes, from a line of `/proc/[pid]/status`, which has 1,024s of them.
fn resident(process: &Path, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(process.join("status"))?;
    let kibibytes: u64 = status
        .lines()
        .find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix(':')?;
            value.trim().strip_suffix(" kB")?.parse().ok()
        })
        .with_context(|| format!("{key} of a process"))?;
    Ok(kibibytes * 1024)
}

/// What the service does: commits through its gate until its standard input ends.
///
/// # Errors
/// When the library or the database refuses.
pub fn serve(database: &Path, catalogue: &Path, compression: &str) -> Result<()> {
    let (begins, ends) = (
        Utc::now() + TimeDelta::hours(12),
        Utc::now() + TimeDelta::hours(13),
    );
    let settings = Source::text(format!(
        "[maintenance]\nenabled = true\nwindow = \"{}-{}\"\n\
         [maintenance.backup]\ndirectory = '{}'\ncompression = \"{compression}\"\n\
         wal_limit = \"16GiB\"\n[maintenance.readiness]\nbind_address = \"127.0.0.1:0\"",
        begins.format("%H:%M"),
        ends.format("%H:%M"),
        catalogue.display()
    ));
    let settings = settings.maintenance()?.context("it is enabled")?;
    let service = Service {
        name: "run_cost".to_owned(),
        database: database.to_owned().into(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let maintenance = Maintenance::prepare(settings, service)?;
    let connection = database::open(database)?;
    let gate = maintenance.gate().clone();
    let running = maintenance.start()?;
    let (warm, is_warm) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let mut warm = Some(warm);
        let mut due = tokio::time::interval(Duration::from_secs(1) / RATE);
        for nth in 0_u32.. {
            due.tick().await;
            let _pass = gate.enter().await;
            let info_hash = hex(&std::array::from_fn::<u8, 20, _>(|_| fastrand::u8(..)));
            let committed =
                tokio::task::block_in_place(|| connection.execute(writer::UPSERT, (info_hash, 1)));
            if let Err(error) = committed {
                eprintln!("a commit of the service failed: {error}");
            }
            if nth == WARM
                && let Some(warm) = warm.take()
            {
                // Whoever waits for it may be gone.
                let _ = warm.send(());
            }
        }
    });
    runtime.block_on(is_warm)?;
    let address = running.readiness_address().context("it has an endpoint")?;
    println!("{address}");
    std::io::stdout().flush()?;
    // Until whoever started it closes this end or is gone.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    runtime.block_on(running.shutdown());
    Ok(())
}
